"""The facts of a model, in one place."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ModelInfo:
    """What a model is.

    Args:
        name: as it was asked for.
        family: which adapter serves it, for people.
        shape: (C, H, W) of what it diffuses.
        picture: (C, H, W) of its pictures, in pixels.
        parameters: numbers in its weights.
        dtype: what its network computes in.
        device: where it computes.
        multiple: it takes any picture whose sides are multiples of this; 0 where ``picture`` is the only size.
        text: whether prompts condition it.
        classes: how many classes condition it; 0 without.
        null_class: the label that stands for no class; None without classes.
        prompt_tokens: how many tokens a prompt has at most, start and end left out; 0 without text.
        guidance: the weight that its samples usually have; 1 where nothing else is known.
        embedded: whether its network is told a guidance of its own, ``Guidance.embedded``.
    """

    name: str
    family: str
    shape: tuple[int, int, int]
    picture: tuple[int, int, int]
    parameters: int
    dtype: torch.dtype
    device: torch.device
    multiple: int = 0
    text: bool = False
    classes: int = 0
    null_class: int | None = None
    prompt_tokens: int = 0
    guidance: float = 1.0
    embedded: bool = False
