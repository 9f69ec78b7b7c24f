"""What the verbs ask of a model."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .._utils.errors import InputError, is_whole
from ..core.denoiser import Cond, Denoiser
from ..core.path import GaussianPath
from ..core.prediction import Hold
from ..editing.tokens import Tokens


class Model(Protocol):
    """A denoiser with its path and its pictures; it works on the pictures themselves, or on their codes."""

    @property
    def name(self) -> str:
        """As it was asked for."""
        ...

    @property
    def path(self) -> GaussianPath:
        """Its noise levels."""
        ...

    @property
    def prediction(self) -> str:
        """``eps``, ``x0``, ``v`` or ``flow``."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what it diffuses."""
        ...

    @property
    def picture(self) -> tuple[int, int, int]:
        """(C, H, W) of its pictures, in pixels."""
        ...

    @property
    def multiple(self) -> int:
        """It takes any picture whose sides are multiples of this; 0 where ``picture`` is the only size."""
        ...

    @property
    def text(self) -> bool:
        """Whether prompts condition it."""
        ...

    @property
    def spacing(self) -> str:
        """The spacing its scheduler config asks for."""
        ...

    @property
    def offset(self) -> int:
        """The offset of that spacing when it is ``leading``."""
        ...

    @property
    def hold(self) -> Hold:
        """How its scheduler config has the predicted x0 held: what the verbs do unless told otherwise."""
        ...

    @property
    def classes(self) -> int:
        """How many classes it is conditioned on; 0 without."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What its network computes in."""
        ...

    @property
    def state_dtype(self) -> torch.dtype:
        """The sampler's dtype: float32, or wider."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of config and weights, the same on every machine."""
        ...

    def denoiser(self) -> Denoiser:
        """The network as a denoiser."""
        ...

    def condition(
        self,
        labels: int | Sequence[int] | None,
        count: int,
        prompts: str | Sequence[str] | None = None,
        negative: str = "",
    ) -> Cond:
        """What conditions ``count`` samples: ``labels`` [count] of a class-conditional model, or, of one with text,
        ``words`` and ``null`` [count, L, D]: the embedded prompts, and the embedded ``negative`` of guidance.

        Raises InputError where labels, prompts and model do not go together.
        """
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] in [0, 1] to x0 in the model's range, ``state_dtype``."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """x0 to images in [0, 1], as the network made them: float."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What it is, for people and for JSON."""
        ...


class TextModel(Model, Protocol):
    """A model with ``text``: what editing asks of it."""

    def tokens(self, prompt: str) -> Tokens:
        """A prompt as it is embedded, and where its words are."""
        ...

    @property
    def network(self) -> Any:
        """The U-Net, whose attention is controlled."""
        ...

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Each prompt with its embedding [L, D]."""
        ...


def class_labels(labels: Any, count: int, classes: int, name: str) -> Tensor:
    """Class labels as a tensor, int64 [count]; one label serves for all.

    Args:
        labels: a number, or a sequence of them.
        count: how many images.
        classes: how many classes ``name``, a model or a classifier, knows.

    Raises:
        InputError: a number of labels that does not fit, or one that is not a class.
    """
    several: list[Any] = list(labels) if isinstance(labels, Iterable) and not is_whole(labels) else [labels]
    given = several * count if len(several) == 1 else several
    if len(given) != count:
        raise InputError(f"{len(given)} were given for {count} images.", parameter="labels")
    wrong = [k for k in given if not is_whole(k) or not 0 <= k < classes]
    if wrong:
        raise InputError(f"{wrong[0]!r} is not a class of {name!r}; use 0 to {classes - 1}.", parameter="labels")
    return torch.tensor([int(k) for k in given], dtype=torch.long)
