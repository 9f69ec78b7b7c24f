"""Describes a picture in words, with an image-to-text model of transformers such as BLIP."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .._utils.error_text import reason_of
from .._utils.errors import InputError
from .._utils.files import read_json
from .._utils.silence import loading
from .device import device_and_dtype
from .hub import is_repository
from .weights import pretrained

if TYPE_CHECKING:
    from PIL import Image

ASKED = "Describe this picture in one short sentence."
"""What a model that takes instructions is asked."""
LONGEST = 48
"""The most tokens of a description; the text encoder of Stable Diffusion takes 77."""


class Captioner:
    """Describes pictures in a sentence. Its weights, safetensors only, are loaded when it is first used.

    Args:
        name: the folder of an image-to-text model of transformers, or a hub id.
        device: where it computes, in float32; as for ``ddim.load``.

    Raises:
        InputError: the folder has no such model, or there is no such folder.
    """

    def __init__(self, name: str, device: "str | torch.device | None" = None) -> None:
        self.name = name
        self.device, _ = device_and_dtype(device, "float32")
        self._loaded: tuple[Any, Any] | None = None
        if Path(name).is_dir():
            config = Path(name) / "config.json"
            _kind_of(read_json(config) if config.is_file() else {}, name)
        elif not is_repository(name):
            raise InputError(f"there is no folder {name!r}; use a folder or a hub id.", parameter="captioner")

    def describe(self, image: "Image.Image", on_token: Callable[[], None] = lambda: None) -> str:
        """Returns what a picture shows, in one line; the same picture gives the same words.

        Args:
            image: the picture, RGB.
            on_token: called after each token; an exception that it raises ends the work.

        Raises:
            InputError: the files of the model are missing, are pickles, or do not fit its config.
            DDIMError: the files are damaged.
        """
        from transformers import StoppingCriteria, StoppingCriteriaList

        class Told(StoppingCriteria):
            def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
                on_token()
                return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

        network, processor = self.load()
        asked = _inputs(processor, image).to(self.device)
        with torch.no_grad(), loading():
            told = StoppingCriteriaList([Told()])
            tokens = network.generate(**asked, do_sample=False, max_new_tokens=LONGEST, stopping_criteria=told)
        prompt = asked.get("input_ids")
        if prompt is not None and torch.equal(tokens[:, : prompt.shape[1]], prompt):  # a decoder repeats its prompt
            tokens = tokens[:, prompt.shape[1] :]
        return " ".join(processor.batch_decode(tokens, skip_special_tokens=True)[0].split())

    @property
    def loaded(self) -> bool:
        """Whether its weights are in memory."""
        return self._loaded is not None

    def load(self) -> tuple[Any, Any]:
        """Loads network and processor, if they are not in memory yet, and returns them; raises as ``describe``."""
        if self._loaded is None:
            with loading():
                from transformers import AutoConfig, AutoProcessor

                here = {"local_files_only": True} if Path(self.name).is_dir() else {}
                try:
                    config = AutoConfig.from_pretrained(self.name, trust_remote_code=False, **here)
                    processor = AutoProcessor.from_pretrained(self.name, trust_remote_code=False, **here)
                except Exception as error:  # transformers and the hub's client raise errors of many types
                    raise InputError(
                        f"{self.name} cannot be loaded as an image-to-text model: {reason_of(error)}",
                        parameter="captioner",
                    ) from None
            kind = _kind_of(config.to_dict(), self.name)
            self._loaded = pretrained(kind, self.name, parameter="captioner").to(self.device), processor
        return self._loaded


def _kind_of(config: Mapping[str, Any], name: str) -> str:
    """Returns the class in transformers for a config. Raises InputError if it is no image-to-text model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in KNOWN:
        raise InputError(
            f"{name} has no image-to-text model, such as BLIP: the model_type in its config is {kind!r}.",
            parameter="captioner",
        )
    return KNOWN[kind]


def _inputs(processor: Any, image: "Image.Image") -> Any:
    """Returns what a network needs for a picture, and for the question where it takes instructions."""
    if getattr(processor, "chat_template", None) is None:
        return processor(images=image, return_tensors="pt")
    content = [{"type": "image"}, {"type": "text", "text": ASKED}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=image, text=text, return_tensors="pt")
