"""``ModelInfo``: the facts about a model that do not change."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ModelInfo:
    """The facts about a model.

    Args:
        name: the name, path or hub id that it was loaded by.
        family: the kind of model, as a text for people.
        shape: (C, H, W) of the diffused tensor: of the image, or of its latent.
        picture: (C, H, W) of the images in pixels.
        parameters: the number of its weights.
        dtype: the dtype that its network computes in.
        device: the device that it computes on.
        multiple: the model takes images of any size whose sides are multiples of this; 0 if ``picture`` is the only
            size.
        largest: the longest side in pixels that its network has positions for; 0 if there is no such limit.
        text: whether it is conditioned on prompts.
        classes: how many classes it is conditioned on; 0 for none.
        null_class: the label of the null class, which stands for no class in classifier-free guidance; None if there
            is none.
        prompt_tokens: the largest number of tokens in a prompt, without start and end token; 0 without text.
        guidance: the usual guidance weight for its samples: the one that its folder names in ``ddim.json``, or else
            that of its family; 1 if none is known.
        steps: the usual number of steps; few for a model that is distilled to a few.
        assumed: what ``steps`` and ``guidance`` were guessed from, as a sentence for where they are used; empty if
            they are known.
        embedded: the usual value for its samples of the guidance scale that its network takes as an input,
            ``Guidance.embedded``; None if its network takes none.
        guidance_kinds: the kinds of guidance that it takes: ``"cfg"``, classifier-free guidance by ``Guidance.weight``,
            and ``"embedded"``. A model without prompts and without a null class has no ``"cfg"``.
        rescales: whether ``Guidance.rescale`` has an effect; not where guidance keeps the lengths of the output.
        skip_layers: the number of layers that skip-layer guidance can leave out; 0 if it can leave out none.
        optional_conditions: the names of conditions that its network takes if they are given.
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
    steps: int = 50
    assumed: str = ""
    embedded: float | None = None
    guidance_kinds: frozenset[str] = frozenset({"cfg"})
    optional_conditions: tuple[str, ...] = ()
    largest: int = 0
    skip_layers: int = 0
    rescales: bool = True

    @property
    def few_steps(self) -> bool:
        """Whether it is usually sampled in fewer than ten steps, as distilled models are."""
        return self.steps < 10

    def __post_init__(self) -> None:
        if not self.text and self.null_class is None:
            object.__setattr__(self, "guidance_kinds", self.guidance_kinds - {"cfg"})
