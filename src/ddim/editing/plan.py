"""What attention control is to do: the user's settings, the sites of a network, and the plan of an edit."""

import math
from dataclasses import dataclass, fields, replace

from torch import Tensor

from .._utils.choices import ATTENTIONS
from .._utils.errors import InputError, UnknownName, is_number, is_range, is_whole

Window = tuple[float, float]
Size = tuple[int, int]


@dataclass(frozen=True)
class AttentionEdit:
    """How the attention of the target follows the source's; windows are parts (begin, end) of the steps.

    Args:
        kind: ``refine`` (tokens that both prompts share keep the source's cross maps), ``replace`` (word k takes word
            k's map; equal numbers of words), ``none`` (neither cross nor self maps are taken over, so that it goes with
            none of their settings).
        cross_steps: where cross-attention maps are taken over; tau of section 3.2.
        self_steps: where self-attention maps are.
        weight_steps: where weighted words are scaled; by default where cross maps are taken over, as in the authors'
            code, and for ``none`` in the same part of the steps.
        self_positions: self maps of at most so many positions are taken over; by default all but those of the largest
            resolution (32 x 32 and less of Stable Diffusion's 64 x 64 at 512 pixels, and of SDXL's at 1024).
        blend_side: blending reads the cross maps of the largest resolution whose longer side is at most this; by
            default a quarter of the latent's, and no less than 8 (16 for Stable Diffusion at 512 pixels, 32 for SDXL at
            1024).
        blend_start: from which part of the steps on words blend.
        blend_threshold: in (0, 1): where a word's map counts as its place, against the map's maximum.

    Raises:
        InputError: an unknown kind, a number out of its range, a setting that does nothing for ``none``.
    """

    kind: str = "refine"
    cross_steps: Window = (0.0, 0.4)
    self_steps: Window = (0.0, 0.6)
    weight_steps: Window | None = None
    self_positions: int | None = None
    blend_side: int | None = None
    blend_start: float = 0.2
    blend_threshold: float = 0.3

    def __post_init__(self) -> None:
        if self.kind not in ATTENTIONS:
            raise UnknownName("attention", str(self.kind), ATTENTIONS)
        for name in ("cross_steps", "self_steps", "weight_steps"):
            window = getattr(self, name)
            if name == "weight_steps" and window is None:
                continue
            if not is_range(window) or not 0 <= window[0] <= window[1] <= 1:
                raise InputError(f"{window} is no part of the steps; (0, 1) is all, (0, 0) none.", parameter=name)
        for name in ("self_positions", "blend_side"):
            value = getattr(self, name)
            if value is not None and not (is_whole(value) and value > 0):
                raise InputError(f"{value} is not a number above 0; None follows the latent's size.", parameter=name)
        if not is_number(self.blend_start) or not 0 <= self.blend_start <= 1:
            raise InputError(f"{self.blend_start} lies outside [0, 1]; 0.2 is usual.", parameter="blend_start")
        if not is_number(self.blend_threshold) or not 0 < self.blend_threshold < 1:
            raise InputError(f"{self.blend_threshold} lies outside (0, 1); 0.3 is usual.", parameter="blend_threshold")
        if self.kind == "none":
            self.refuse(("cross_steps", "self_steps", "self_positions"), "attention 'none' takes no maps over")

    @property
    def weight_window(self) -> Window:
        """Where weighted words are scaled."""
        return self.cross_steps if self.weight_steps is None else self.weight_steps

    def refuse(self, names: tuple[str, ...], why: str) -> None:
        """Raises InputError for the first of these settings that is not as by default, since it would do nothing."""
        usual = {field.name: field.default for field in fields(self)}
        if given := next((name for name in names if getattr(self, name) != usual[name]), None):
            raise InputError(f"{getattr(self, given)} does nothing, {why}; leave it out.", parameter=given)


def within(window: Window, step: int, steps: int) -> bool:
    """Whether a step, counted from 0, lies in a window; its ends are rounded down to whole steps."""
    begin, end = (math.floor(part * steps + 1e-9) for part in window)
    return begin <= step < end


@dataclass(frozen=True)
class AttentionSite:
    """An attention layer: where it stands, whether it looks at words, and how often its map is halved."""

    name: str
    cross: bool
    level: int

    def size(self, latent: Size) -> Size:
        """(height, width) of its map; a convolution of stride 2 rounds up."""
        height, width = latent
        for _ in range(self.level):
            height, width = -(-height // 2), -(-width // 2)
        return height, width


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """All that attention control needs to know of N images with K targets each.

    The rows of a batch are each image's source and then its targets: s1, t11 .. t1K, s2, ...

    Attributes:
        edit: windows and kind.
        layers: the sites of the network.
        size: (height, width) of the latent.
        mapping: [N, K, L, L], see ``align.replace``.
        new: [N, K, L], true where a target's token keeps its own map.
        scales: [N, K, L], or None without weighted words.
        blend: [N, K, 2, L], 1 at the tokens to blend by, of the source and of the target; None without.
    """

    edit: AttentionEdit
    layers: tuple[AttentionSite, ...]
    size: Size
    mapping: Tensor
    new: Tensor
    scales: Tensor | None = None
    blend: Tensor | None = None

    def __getitem__(self, which: slice) -> "AttentionPlan":
        """The plan of some of the images."""
        scales = None if self.scales is None else self.scales[which]
        blend = None if self.blend is None else self.blend[which]
        return replace(self, mapping=self.mapping[which], new=self.new[which], scales=scales, blend=blend)

    @property
    def blend_size(self) -> Size:
        """(height, width) of the maps that blending reads: the largest that is small enough, or the smallest."""
        limit = self.edit.blend_side or max(8, -(-max(self.size) // 4))
        sizes = sorted({layer.size(self.size) for layer in self.layers if layer.cross}, key=max)
        return max((s for s in sizes if max(s) <= limit), key=max, default=sizes[0])

    @property
    def self_positions(self) -> int:
        """The most positions of a self map that is taken over; where there is one resolution, it is."""
        sizes = (layer.size(self.size) for layer in self.layers if not layer.cross)
        areas = sorted({height * width for height, width in sizes})
        return self.edit.self_positions or (areas[-2:] or [0])[0]
