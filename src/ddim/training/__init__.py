"""Trains a pixel model, an autoencoder, a text-to-image model or a classifier from one TOML file.

The result is a folder that diffusers or transformers loads.
"""

from typing import TYPE_CHECKING, Any

from .config import TrainConfig
from .config_file import config_from_dict, load_config
from .progress import Event

if TYPE_CHECKING:
    from .loop import train

__all__ = ["Event", "TrainConfig", "config_from_dict", "load_config", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # imported lazily: the loop needs torch, but reading a config does not
        from .loop import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
