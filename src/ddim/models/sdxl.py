"""The adapter for Stable Diffusion XL in the diffusers format (Podell et al. 2023, arXiv 2307.01952)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError, is_whole
from ..core.conditioning import POOLED, TEXT, Conditioning
from .sd import StableDiffusion

if TYPE_CHECKING:
    from typing_extensions import Self

    from .loading import Loading


SIZE_IDS = "size_ids"
"""Name of the condition [N, 6]: original height and width, top and left of the crop, target height and width."""
_NUMBERS = 6
_LARGEST = 2**14
_ZEROS, _AESTHETIC = "force_zeros_for_empty_prompt", "requires_aesthetics_score"


@dataclass(frozen=True)
class SizeIds:
    """The size conditioning of SDXL, in pixels (section 2.2 of Podell et al. 2023).

    In training these numbers described how an image was resized and cropped; in sampling they ask for an image that
    looks as if it had been treated so.

    Args:
        original: (height, width) of the training image before cropping; small values give the look of an enlarged
            small image. None is the size of the generated image.
        crop: (top, left) of the crop; (0, 0) gives images whose subject is centred.
        target: (height, width) after cropping; None is the size of the generated image.

    Raises:
        InputError: an argument is not a pair of whole numbers in its range.
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
                    f"{name} is {pair!r}; it must be two whole numbers from {least} to {_LARGEST}.",
                    parameter="size_ids",
                )

    def numbers(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Returns the six numbers for an image of (height, width) ``size``."""
        return (*(self.original or size), *self.crop, *(self.target or size))


class StableDiffusionXL(StableDiffusion):
    """A Stable Diffusion XL model; ``ddim.load`` makes it from a folder, the hub or a pipeline object.

    Two text encoders encode each prompt. Without a negative prompt, the unconditional branch consists of zeros if the
    pipeline's config has ``force_zeros_for_empty_prompt``, and is the encoded empty prompt otherwise.
    """

    family: ClassVar[str] = "SDXL text-to-image"
    pipeline_class: ClassVar[str] = "StableDiffusionXLPipeline"
    assumed: ClassVar[str] = f"{_ZEROS} is assumed to be true, as in the published models"
    conditions: ClassVar[tuple[str, ...]] = (TEXT, POOLED, SIZE_IDS)
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
        """The size conditioning of both branches of guidance; set it to None to restore the default."""
        return self._sizes

    @size_ids.setter
    def size_ids(self, value: SizeIds | None) -> None:
        if value is not None and not isinstance(value, SizeIds):
            raise InputError(
                f"{value!r} is not a SizeIds; use, for example, SizeIds(original=(1024, 1024)).", parameter="size_ids"
            )
        self._sizes = SizeIds() if value is None else value

    @classmethod
    def from_pipeline(cls, pipeline: Any, name: str | None = None) -> "Self":
        """Wraps a pipeline object, which is not changed. Raises InputError for SDXL's refiner."""
        if pipeline.text_encoder is None or pipeline.config.get(_AESTHETIC):
            raise refiner(name or type(pipeline).__name__)
        return super().from_pipeline(pipeline, name)

    @classmethod
    def check_pipeline(cls, name: str, pipeline: Any) -> None:
        """Raises InputError for a U-Net that needs other conditions.

        The refiner's U-Net is recognised by its five additional numbers; the base model's has six.
        """
        super().check_pipeline(name, pipeline)
        unet = pipeline.unet.config
        wanted = unet.projection_class_embeddings_input_dim
        pooled, each = int(pipeline.text_encoder_2.config.projection_dim), int(unet.addition_time_embed_dim)
        if wanted == pooled + (_NUMBERS - 1) * each:
            raise refiner(name)
        if wanted != pooled + _NUMBERS * each:
            raise InputError(
                f"the U-Net of {name!r} needs {wanted} numbers beside the text embeddings, but SDXL's pipeline makes "
                f"{pooled} from the prompt and {_NUMBERS} times {each} from the size.",
                parameter="model",
            )

    @classmethod
    def read_pipeline(cls, folder: Path, how: "Loading") -> Any:
        """Makes the pipeline of a folder, after checking its parts. Raises InputError for SDXL's refiner."""
        from .model_folder import read_index

        index = read_index(folder) or {}
        if index.get(_AESTHETIC) or index.get("text_encoder") == [None, None]:
            raise refiner(str(folder))
        return super().read_pipeline(folder, how)

    @classmethod
    def pipeline_options(cls, index: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options of a StableDiffusionXLPipeline: ``force_zeros_for_empty_prompt`` from the index."""
        zeros = index.get(_ZEROS, True)
        if not isinstance(zeros, bool):
            raise InputError(f"{_ZEROS} in its index is {zeros!r}; it must be true or false.", parameter="model")
        return {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of ``text``, ``pooled`` and ``size_ids`` for one prompt."""
        pooled = self.condition_shape(self.pipeline.text_encoder_2, POOLED)
        shapes = {**super().condition_shapes(), POOLED: pooled, SIZE_IDS: (1, _NUMBERS)}
        return {name: shapes[name] for name in self.required_conditions()}

    def network_conditions(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Converts conditions to keyword arguments of the U-Net; the added ones go into ``added_cond_kwargs``."""
        added = {"text_embeds": tensors[POOLED], "time_ids": tensors[SIZE_IDS]}
        return {**super().network_conditions(tensors), "added_cond_kwargs": added}

    def negative_text(self, negative: str | None) -> str | None:
        """Returns the text of the unconditional branch, or None if that branch consists of zeros."""
        zeros = negative is None and self.pipeline.config.get(_ZEROS, True)
        return None if zeros else super().negative_text(negative)

    def encode_prompt(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """Encodes prompts to ``text`` [N, L, D], ``pooled`` [N, P] and ``size_ids`` [N, 6].

        Warns (DDIMWarning) if a prompt is too long, and says where it is cut.
        """
        cond = super().encode_prompt(prompts, size)
        numbers = self.size_ids.numbers(size or self.picture[1:])
        ids = torch.tensor([numbers] * len(prompts), dtype=self.state_dtype, device=self.device)
        return cond.replace(**{SIZE_IDS: ids})

    def embed(self, encoder: Any, rows: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Encodes token ids [N, L]: the second to last layer, and the second encoder's pooled projection.

        Like diffusers' pipeline, it ignores the attention mask.
        """
        output = encoder(rows, output_hidden_states=True)
        pooled = {POOLED: output.text_embeds} if "text_embeds" in output else {}
        return {TEXT: output.hidden_states[-2], **pooled}


def refiner(name: str) -> InputError:
    """Returns the error for SDXL's refiner, which is not supported."""
    return InputError(
        f"{name!r} is SDXL's refiner, which has only one text encoder and needs an aesthetic score; this version "
        "supports the base model only.",
        parameter="model",
    )
