"""The settings of attention control, the attention layers of a network, and the plan of an edit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from torch import Tensor

from .._utils.choices import ATTENTIONS
from .._utils.errors import InputError, UnknownName, is_number, is_range, is_whole

Window = tuple[float, float]
Size = tuple[int, int]


@dataclass(frozen=True)
class AttentionEdit:
    """The settings of attention control: how the attention of the targets follows that of the source.

    A window (begin, end) is a part of the steps in [0, 1]: (0, 0.4) is the first 40 %, (0, 1) all, (0, 0) none. Both
    ends are rounded down to whole steps, but a window that is not empty holds at least the step that it begins in:
    (0, 0.4) holds the only step of a model that samples in one. An edit refuses settings that would have no effect.

    Args:
        kind: which cross-attention maps a target takes over from the source. ``refine``: those of the tokens that both
            prompts share. ``replace``: word k takes those of word k; both prompts must have equal numbers of words.
            ``none``: nothing is taken over from the source, and the settings of what is must be left out.
        cross_steps: the window in which cross-attention maps are taken over; tau of section 3.2. In joint attention
            these are the attention of the image's queries to the words' keys.
        self_steps: the window in which self-attention maps are taken over. In joint attention these are the attention
            of the image's queries to the image's keys.
        value_steps: the window in which the values of the image's tokens are taken over in self-attention and in joint
            attention (Wang et al. 2024, arXiv 2411.04746). By default none.
        weight_steps: the window in which the maps of weighted words are scaled. By default it is ``cross_steps``, as in
            the authors' code, also for ``none``.
        layers: the part of the network's depth whose attention is changed: (0, 0.5) are the first half of its
            transformer blocks, in the order in which they run. The maps of the blend words come from all blocks.
        layer_indices: the indices of the transformer blocks whose attention is changed, from 0 in the order in which
            they run, in place of ``layers``. FLUX's single blocks follow its double blocks.
        self_positions: self-attention maps and values of at most this many positions are taken over. By default all but
            those of the highest resolution: up to 32 x 32 for Stable Diffusion at 512 pixels and for SDXL at 1024. A
            network of one resolution takes over all. An edit refuses fewer than the smallest resolution has.
        blend_side: local blend uses the cross-attention maps of the highest resolution whose longer side is at most
            this. By default a quarter of the latent's longer side, and at least 8: 16 for Stable Diffusion at 512
            pixels, 32 for SDXL at 1024. A network of one resolution uses its own: 64 for Stable Diffusion 3 at 1024. An
            edit refuses less than the smallest resolution has.
        blend_start: the fraction of the steps after which the blend words act.
        blend_threshold: in (0, 1): a word covers the pixels where its map exceeds this fraction of the map's maximum.

    Raises:
        InputError: ``kind`` is unknown, a number is out of range, a setting has no effect for ``none``, or both
            ``layers`` and ``layer_indices`` are given.
    """

    kind: str = "refine"
    cross_steps: Window = (0.0, 0.4)
    self_steps: Window = (0.0, 0.6)
    value_steps: Window = (0.0, 0.0)
    weight_steps: Window | None = None
    layers: Window = (0.0, 1.0)
    layer_indices: tuple[int, ...] | None = None
    self_positions: int | None = None
    blend_side: int | None = None
    blend_start: float = 0.2
    blend_threshold: float = 0.3

    def __post_init__(self) -> None:
        if self.kind not in ATTENTIONS:
            raise UnknownName("attention", str(self.kind), ATTENTIONS)
        for name in ("cross_steps", "self_steps", "value_steps", "weight_steps", "layers"):
            window, what = getattr(self, name), "layers" if name == "layers" else "steps"
            if name == "weight_steps" and window is None:
                continue
            if not is_range(window) or not 0 <= window[0] <= window[1] <= 1:
                raise InputError(
                    f"{window} is not a range inside [0, 1]; (0, 1) is all {what}, and (0, 0) none.", parameter=name
                )
        self._check_layer_indices()
        for name in ("self_positions", "blend_side"):
            value = getattr(self, name)
            if value is not None and not (is_whole(value) and value > 0):
                raise InputError(f"{value} is not a number above 0; None follows the latent's size.", parameter=name)
        if not is_number(self.blend_start) or not 0 <= self.blend_start <= 1:
            raise InputError(f"{self.blend_start} lies outside [0, 1]; 0.2 is usual.", parameter="blend_start")
        if not is_number(self.blend_threshold) or not 0 < self.blend_threshold < 1:
            raise InputError(f"{self.blend_threshold} lies outside (0, 1); 0.3 is usual.", parameter="blend_threshold")
        if self.kind == "none":
            self.refuse(
                ("cross_steps", "self_steps", "value_steps", "self_positions"), "attention 'none' takes nothing over"
            )

    def _check_layer_indices(self) -> None:
        """Raises InputError if ``layer_indices`` are no indices, or ``layers`` are given beside them."""
        chosen = self.layer_indices
        if chosen is None:
            return
        if not isinstance(chosen, tuple) or not chosen or not all(is_whole(k) and k >= 0 for k in chosen):
            raise InputError(
                f"{chosen!r} are no indices of transformer blocks; write for example (0, 1, 17).",
                parameter="layer_indices",
            )
        if tuple(self.layers) != (0.0, 1.0):
            raise InputError(
                f"{self.layers} does not go with layer_indices, which names the layers too; use one of the two.",
                parameter="layers",
            )

    def changes(self, block: int, blocks: int) -> bool:
        """Whether the attention of a transformer block may change: it lies in ``layers``, or in ``layer_indices``.

        Args:
            block: the index of the block, from 0.
            blocks: the number of blocks of the network.
        """
        return within(self.layers, block, blocks) if self.layer_indices is None else block in self.layer_indices

    @property
    def weight_window(self) -> Window:
        """The window in which weighted words are scaled: ``weight_steps``, or ``cross_steps`` if that is None."""
        return self.cross_steps if self.weight_steps is None else self.weight_steps

    def refuse(self, names: tuple[str, ...], why: str) -> None:
        """Raises InputError if one of these settings differs from its default, because it would have no effect.

        Args:
            names: the fields to check.
            why: the reason, for the message "... does nothing, {why}; leave it out."
        """
        usual = {field.name: field.default for field in fields(self)}
        if changed := next((name for name in names if getattr(self, name) != usual[name]), None):
            raise InputError(f"{getattr(self, changed)} does nothing, {why}; leave it out.", parameter=changed)


def within(window: Window, step: int, steps: int) -> bool:
    """Whether a step, counted from 0, lies in a window.

    Both ends are rounded down to whole steps. A window that is not empty holds at least the step in which it begins.
    """
    # The 1e-9 keeps products such as 0.3 * 10 from falling just below a whole number.
    begin, end = (math.floor(part * steps + 1e-9) for part in window)
    return begin <= step < max(end, begin + (window[0] < window[1]))


Part = Literal["picture", "words"]

CROSS: tuple[Part, ...] = ("words",)
"""The keys of a cross-attention layer: the image's queries look at the words."""

SELF: tuple[Part, ...] = ("picture",)
"""The keys of a self-attention layer: the image's queries look at the image."""

IMAGE_FIRST: tuple[Part, ...] = ("picture", "words")
"""The keys of joint attention whose sequence begins with the image."""

WORDS_FIRST: tuple[Part, ...] = ("words", "picture")
"""The keys of joint attention whose sequence begins with the words."""


@dataclass(frozen=True)
class AttentionSite:
    """An attention layer of a network: which of its keys are words, and which of its queries are picture.

    The queries of a layer with one kind of keys are the picture's tokens. The queries of joint attention, whose keys
    are of both kinds, are the same tokens as its keys, in the same order.

    Attributes:
        name: the name of the module.
        keys: the kinds of its keys, in their order: ``CROSS``, ``SELF``, ``IMAGE_FIRST`` or ``WORDS_FIRST``.
        level: how many times the latent is halved before it reaches the layer.
        block: the index of its transformer block in the network, from 0 in the order in which the blocks run.
        multiple: the picture's tokens are padded at their end to a multiple of this.
        varies: whether the number of words' keys may differ from that of the prompts' tokens, because prompts of
            different lengths are padded to the longest of a batch.
        reference: whether the tokens of a reference picture may follow; they are no part of the picture.
    """

    name: str
    keys: tuple[Part, ...]
    level: int
    block: int = 0
    multiple: int = 1
    varies: bool = False
    reference: bool = False

    @property
    def words(self) -> bool:
        """Whether it looks at words: cross-attention and joint attention."""
        return "words" in self.keys

    @property
    def picture(self) -> bool:
        """Whether it looks at the image: self-attention and joint attention."""
        return "picture" in self.keys

    @property
    def joint(self) -> bool:
        """Whether words and image share one softmax."""
        return self.words and self.picture

    def size(self, latent: Size) -> Size:
        """Returns (height, width) of the layer's map for a latent of this size. Each halving rounds up."""
        height, width = latent
        for _ in range(self.level):
            height, width = -(-height // 2), -(-width // 2)
        return height, width

    def positions(self, latent: Size) -> int:
        """Returns the number of the picture's tokens for a latent of this size, padding included."""
        height, width = self.size(latent)
        return -(-height * width // self.multiple) * self.multiple

    def parts(self, latent: Size, keys: int, tokens: int) -> tuple[slice, slice]:
        """Returns where the picture's keys lie, and where the words' do; either may be empty.

        Args:
            latent: (height, width) of the latent.
            keys: the number of keys.
            tokens: the number of the prompts' tokens L; ignored if it ``varies``.
        """
        picture = self.positions(latent) if self.picture else 0
        words = (keys - picture if self.varies else tokens) if self.words else 0
        if self.keys[0] == "words":
            return slice(words, words + picture), slice(0, words)
        return slice(0, picture), slice(picture, picture + words)


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """The attention control of N images with K targets each.

    The rows of a batch are the source of an image followed by its targets: s1, t11 .. t1K, s2, ...

    Attributes:
        edit: the settings.
        layers: the attention layers of the network.
        size: (height, width) of the latent.
        mapping: which source tokens each target token takes its map from, [N, K, L, L]; see ``align.replace``.
        new: true where a target token keeps its own map, [N, K, L].
        scales: the factor of each target token's map, [N, K, L]; None if no word is weighted.
        blend: 1 at the tokens of the blend words in source and target, [N, K, 2, L]; None if there are none.
    """

    edit: AttentionEdit
    layers: tuple[AttentionSite, ...]
    size: Size
    mapping: Tensor
    new: Tensor
    scales: Tensor | None = None
    blend: Tensor | None = None

    def __getitem__(self, which: slice) -> "AttentionPlan":
        """Returns the plan of the images that the slice selects."""
        scales = None if self.scales is None else self.scales[which]
        blend = None if self.blend is None else self.blend[which]
        return replace(self, mapping=self.mapping[which], new=self.new[which], scales=scales, blend=blend)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """``mapping``, ``new``, ``scales`` and ``blend``."""
        return self.mapping, self.new, self.scales, self.blend

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> "AttentionPlan":
        """Returns a plan with other ``tensors``."""
        mapping, new, scales, blend = tensors
        assert mapping is not None
        assert new is not None
        return replace(self, mapping=mapping, new=new, scales=scales, blend=blend)

    def __post_init__(self) -> None:
        beyond = max(self.edit.layer_indices or (0,))
        if self.layers and beyond >= self.blocks:
            raise InputError(
                f"the network has {self.blocks} transformer blocks, numbered from 0, so {beyond} is none of them.",
                parameter="layer_indices",
            )

    @property
    def blocks(self) -> int:
        """The number of the network's transformer blocks."""
        return max((layer.block for layer in self.layers), default=-1) + 1

    def changes(self, layer: AttentionSite) -> bool:
        """Whether the settings let a layer's attention change."""
        return self.edit.changes(layer.block, self.blocks)

    @property
    def blend_size(self) -> Size:
        """(height, width) of the maps that local blend uses: the largest within ``blend_side``, else the smallest."""
        limit = self.edit.blend_side or max(8, -(-max(self.size) // 4))
        sizes = sorted({layer.size(self.size) for layer in self.layers if layer.words}, key=max)
        return max((s for s in sizes if max(s) <= limit), key=max, default=sizes[0])

    @property
    def self_positions(self) -> int:
        """The largest number of positions of a self-attention map that is taken over.

        By default it is that of the second-largest layer of the network, or of the only one.
        """
        sizes = (layer.size(self.size) for layer in self.layers if layer.picture)
        areas = sorted({height * width for height, width in sizes})
        return self.edit.self_positions or (areas[-2:] or [0])[0]
