"""Stable Diffusion XL: text-to-image in the diffusers format (Podell et al. 2023, arXiv 2307.01952)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError, is_whole
from .._utils.files import read_json
from ..core.conditioning import POOLED, TEXT, Conditioning
from .sd import StableDiffusion

SIZE_IDS = "size_ids"
"""Name of a condition [N, 6]: original height and width, top and left of the crop, target height and width."""
_NUMBERS = 6
_LARGEST = 2**14
_ZEROS, _AESTHETIC = "force_zeros_for_empty_prompt", "requires_aesthetics_score"


@dataclass(frozen=True)
class SizeIds:
    """What SDXL is told of a picture's size and of what was cut off (section 2.2 of Podell et al. 2023), in pixels.

    Args:
        original: (height, width) before a training picture was cut; smaller ones stand for pictures that were enlarged.
            None is the size of the picture that is made.
        crop: (top, left) of what was cut off; (0, 0) is what centres a thing in the picture.
        target: (height, width) after the cut; None is the size of the picture that is made.

    Raises:
        InputError: what is no pair of whole numbers in its range.
    """

    original: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, least in (("original", 1), ("crop", 0), ("target", 1)):
            pair = getattr(self, name)
            if pair is None and name != "crop":
                continue
            both = pair if isinstance(pair, (tuple, list)) else ()
            if len(both) != 2 or not all(is_whole(n) and least <= n <= _LARGEST for n in both):
                raise InputError(
                    f"{name} is {pair!r}, which is not two whole numbers from {least} to {_LARGEST}.",
                    parameter="size_ids",
                )

    def numbers(self, size: tuple[int, int]) -> tuple[int, ...]:
        """The six numbers for a picture of (height, width) ``size``."""
        return (*(self.original or size), *self.crop, *(self.target or size))


class StableDiffusionXL(StableDiffusion):
    """A Stable Diffusion XL pipeline behind the library's interface; made by ``ddim.load``.

    Each prompt is read by two text encoders. Without a negative prompt the unconditional branch is zeros where the
    pipeline's config has ``force_zeros_for_empty_prompt``, and the encoded empty prompt otherwise.
    """

    family: ClassVar[str] = "SDXL text-to-image"
    told: ClassVar[tuple[str, ...]] = (TEXT, POOLED, SIZE_IDS)
    addition: ClassVar[str | None] = "text_time"
    upcasts: ClassVar[bool] = True
    usual_guidance: ClassVar[float] = 5.0
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **StableDiffusion.parts,
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_2": StableDiffusion.parts["tokenizer"],
    }
    _sizes = SizeIds()

    @property
    def size_ids(self) -> SizeIds:
        """What the network is told of the picture's size, in both branches of guidance; None restores the default."""
        return self._sizes

    @size_ids.setter
    def size_ids(self, value: SizeIds | None) -> None:
        if value is not None and not isinstance(value, SizeIds):
            raise InputError(f"{value!r} is no SizeIds; write SizeIds(original=(1024, 1024)).", parameter="size_ids")
        self._sizes = SizeIds() if value is None else value

    @classmethod
    def from_pipeline(cls, pipeline: Any, name: str | None = None) -> StableDiffusion:
        """See ``Model``."""
        if pipeline.text_encoder is None or pipeline.config.get(_AESTHETIC):
            raise refiner(name or type(pipeline).__name__)
        return super().from_pipeline(pipeline, name)

    @classmethod
    def check_conditions(cls, name: str, pipeline: Any) -> None:
        """See ``StableDiffusion``; knows the refiner's U-Net, which is told five numbers beside the prompt, not six."""
        super().check_conditions(name, pipeline)
        unet = pipeline.unet.config
        wanted = unet.projection_class_embeddings_input_dim
        pooled, each = int(pipeline.text_encoder_2.config.projection_dim), int(unet.addition_time_embed_dim)
        if wanted == pooled + (_NUMBERS - 1) * each:
            raise refiner(name)
        if wanted != pooled + _NUMBERS * each:
            raise InputError(
                f"the U-Net of {name!r} wants {wanted} numbers beside the words, and SDXL's pipeline has {pooled} of "
                f"the prompt and {_NUMBERS} times {each} of the size.",
                parameter="model",
            )

    @classmethod
    def read_pipeline(cls, folder: Path) -> Any:
        """See ``StableDiffusion``."""
        from .model_folder import INDEX

        index = read_json(folder / INDEX)
        if index.get(_AESTHETIC) or index.get("text_encoder") == [None, None]:
            raise refiner(str(folder))
        return super().read_pipeline(folder)

    @classmethod
    def make_pipeline(cls, parts: Mapping[str, Any], index: Mapping[str, Any]) -> Any:
        """See ``StableDiffusion``."""
        from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

        zeros = index.get(_ZEROS, True)
        if not isinstance(zeros, bool):
            raise InputError(f"its {_ZEROS} is {zeros!r}, which is neither true nor false.", parameter="model")
        return StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=zeros, add_watermarker=False)

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """See ``StableDiffusion``."""
        pooled = self.condition_shape(self.pipeline.text_encoder_2, POOLED)
        return {**super().condition_shapes(), POOLED: pooled, SIZE_IDS: (1, _NUMBERS)}

    def network_conditions(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """See ``StableDiffusion``."""
        added = {"text_embeds": tensors[POOLED], "time_ids": tensors[SIZE_IDS]}
        return {**super().network_conditions(tensors), "added_cond_kwargs": added}

    def negative_text(self, negative: str | None) -> str | None:
        """See ``StableDiffusion``."""
        zeros = negative is None and self.pipeline.config.get(_ZEROS, True)
        return None if zeros else super().negative_text(negative)

    def zero_conditioning(self, cond: Conditioning) -> Conditioning:
        """Zeros for the words and for the prompt as a whole; the sizes stay."""
        return super().zero_conditioning(cond).replace(**{POOLED: torch.zeros_like(cond.tensors[POOLED])})

    def encode_prompt(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """``text`` [N, L, D], ``pooled`` [N, P], ``size_ids`` [N, 6]. Warns of a prompt that is cut, and where."""
        cond = super().encode_prompt(prompts, size)
        numbers = self.size_ids.numbers(size or self.picture[1:])
        ids = torch.tensor([numbers] * len(prompts), dtype=self.state_dtype, device=self.device)
        return cond.replace(**{SIZE_IDS: ids})

    def embed(self, encoder: Any, rows: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The last layer but one, and of the second encoder its projection; as diffusers', without a mask."""
        said = encoder(rows, output_hidden_states=True)
        whole = {POOLED: said.text_embeds} if "text_embeds" in said else {}
        return {TEXT: said.hidden_states[-2], **whole}


def refiner(name: str) -> InputError:
    """What is said of SDXL's refiner."""
    return InputError(
        f"{name!r} is SDXL's refiner, which has one text encoder and is told an aesthetic score; this version does not "
        "take it, but the base model.",
        parameter="model",
    )
