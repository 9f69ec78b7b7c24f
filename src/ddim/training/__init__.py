"""Training, from one TOML file into a folder that diffusers loads: of a pixel model, an autoencoder, a text-to-image
model or a classifier."""

from typing import TYPE_CHECKING, Any

from .config import TrainConfig
from .config_file import config_from_dict, load_config
from .progress import Event

if TYPE_CHECKING:
    from .loop import train

__all__ = ["Event", "TrainConfig", "config_from_dict", "load_config", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # the loop needs torch; reading a config does not
        from .loop import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
