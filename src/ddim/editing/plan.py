"""The settings of attention control, the attention layers of a network, and the plan of an edit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from torch import Tensor

from .._utils.choices import ATTENTION_BRANCHES, ATTENTIONS, KEY_VALUE_AREAS
from .._utils.errors import InputError, UnknownName, is_number, is_range, is_whole

Window = tuple[float, float]
Size = tuple[int, int]


@dataclass(frozen=True)
class Preset:
    """The settings that a kind of attention control has by default.

    Attributes:
        paper: the source of the method; empty for no method.
        settings: the defaults of this kind, by the names of the fields of ``AttentionEdit``. What is missing is
            ``NOTHING``'s.
    """

    paper: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


NOTHING: Mapping[str, Any] = {
    "cross_steps": (0.0, 0.0),
    "self_steps": (0.0, 0.0),
    "value_steps": (0.0, 0.0),
    "key_value_steps": (0.0, 0.0),
    "key_value_area": "image",
    "feature_steps": (0.0, 0.0),
    "branches": "cond",
    "layers": (0.0, 1.0),
    "self_positions": None,
}
"""The settings that take nothing over."""

_PROMPT_TO_PROMPT = Preset("Hertz et al. 2022, arXiv 2208.01626", {"cross_steps": (0.0, 0.4), "self_steps": (0.0, 0.6)})

PRESETS: Mapping[str, Preset] = {
    "refine": _PROMPT_TO_PROMPT,
    "replace": _PROMPT_TO_PROMPT,
    "masactrl": Preset(
        "Cao et al. 2023, arXiv 2304.08465",
        # From step 4 of 50 and from block 10 of the 16 of Stable Diffusion.
        {"key_value_steps": (0.08, 1.0), "branches": "both", "layers": (0.625, 1.0), "self_positions": math.inf},
    ),
    "plug-and-play": Preset(
        "Tumanyan et al. 2022, arXiv 2211.12572",
        # The decoder's layers from the fourth on are the second half of the blocks of Stable Diffusion.
        {
            "self_steps": (0.0, 0.5),
            "feature_steps": (0.0, 0.8),
            "branches": "both",
            "layers": (0.5, 1.0),
            "self_positions": math.inf,
        },
    ),
    "kv-edit": Preset(
        "Zhu et al. 2025, arXiv 2502.17363",
        {
            "key_value_steps": (0.0, 1.0),
            "key_value_area": "background",
            "branches": "both",
            "self_positions": math.inf,
        },
    ),
    "none": Preset(settings=_PROMPT_TO_PROMPT.settings),  # of which only the window of weighted words acts
}
"""The kinds of attention control: name -> the paper, and the settings that are its defaults."""

OF_THE_KIND: Any = None
"""The default of a setting that is the kind's own, in ``PRESETS``."""


@dataclass(frozen=True)
class AttentionEdit:
    """The settings of attention control: how the attention of the targets follows that of the source.

    In each step a source and its targets are asked together, so that nothing of an earlier step is stored. The kinds
    are named sets of defaults (``PRESETS``) of the same settings, which go together: ``AttentionEdit("refine",
    key_value_steps=(0.08, 1))`` takes over maps as prompt-to-prompt does, and keys and values as MasaCtrl does.

    A window (begin, end) is a part of the steps in [0, 1]: (0, 0.4) is the first 40 %, (0, 1) all, (0, 0) none. Both
    ends are rounded down to whole steps, but a window that is not empty holds at least the step that it begins in:
    (0, 0.4) holds the only step of a model that samples in one. An edit refuses settings that would have no effect.

    Args:
        kind: the name of a set of defaults, and how the words of the prompts are aligned for the cross-attention maps.
            ``refine`` (prompt-to-prompt): a target takes over the maps of the tokens that both prompts share.
            ``replace`` (prompt-to-prompt): word k takes those of word k; both prompts must have equal numbers of words.
            ``masactrl``: the targets look with their own queries at the source's keys and values, from step 4 of 50 and
            from the eleventh of 16 blocks on. ``plug-and-play``: the self-attention maps of the second half of the
            blocks in half of the steps, and the features of a residual block in 0.8 of them; for U-Nets. ``kv-edit``:
            the keys and values outside the user's mask. All of these align words as ``refine`` does. ``none``: nothing
            is taken over from the source, and the settings of what is must be left out.
        cross_steps: the window in which cross-attention maps are taken over; tau of section 3.2 of prompt-to-prompt. In
            joint attention these are the attention of the image's queries to the words' keys.
        self_steps: the window in which self-attention maps (the queries and keys) are taken over. In joint attention
            these are the attention of the image's queries to the image's keys.
        value_steps: the window in which the values of the image's tokens are taken over in self-attention and in joint
            attention (Wang et al. 2024, arXiv 2411.04746).
        key_value_steps: the window in which the targets look with their own queries at the keys and values of the
            source's image tokens, in self-attention and in joint attention (MasaCtrl).
        key_value_area: which of them. ``image``: all. ``background``: those outside the user's mask (KV-Edit); a token
            is inside if the mask lets any part of it change. ``words``: all, but a query inside the area of the blend
            words sees the keys inside that of the source, and another query sees the others (MasaCtrl's masks; an area
            is where ``blend_threshold`` puts the words).
        feature_steps: the window in which the features of a U-Net's residual block are taken over (plug-and-play):
            what the second block of the second level of the decoder adds to its input.
        branches: the branches of classifier-free guidance in which the targets follow the source: ``cond``, or
            ``both``. The attention to the words follows in the conditional branch only.
        weight_steps: the window in which the maps of weighted words are scaled. By default it is ``cross_steps``, as in
            the authors' code, also for ``none``.
        layers: the part of the network's depth whose attention is changed: (0, 0.5) are the first half of its
            transformer blocks, in the order in which they run. The maps of the blend words come from all blocks, and
            ``feature_steps`` do not depend on it.
        layer_indices: the indices of the transformer blocks whose attention is changed, from 0 in the order in which
            they run, in place of ``layers``. FLUX's single blocks follow its double blocks.
        self_positions: self-attention maps, keys and values of at most this many positions are taken over. By default
            ``refine`` and ``replace`` leave out those of the highest resolution: up to 32 x 32 are taken over for
            Stable Diffusion at 512 pixels and for SDXL at 1024. The other kinds, and networks of one resolution, take
            over all (``math.inf``). An edit refuses fewer than the smallest resolution has.
        blend_side: local blend uses the cross-attention maps of the highest resolution whose longer side is at most
            this. By default a quarter of the latent's longer side, and at least 8: 16 for Stable Diffusion at 512
            pixels, 32 for SDXL at 1024. A network of one resolution uses its own: 64 for Stable Diffusion 3 at 1024. An
            edit refuses less than the smallest resolution has.
        blend_start: the fraction of the steps after which the blend words act.
        blend_threshold: in (0, 1): a word covers the pixels where its map exceeds this fraction of the map's maximum.

    A setting that is left out or None is that of ``PRESETS[kind]``.

    Raises:
        InputError: ``kind`` or another name is unknown, a number is out of range, a setting has no effect, or both
            ``layers`` and ``layer_indices`` are given.
    """

    kind: str = "refine"
    cross_steps: Window = OF_THE_KIND
    self_steps: Window = OF_THE_KIND
    value_steps: Window = OF_THE_KIND
    weight_steps: Window | None = None
    layers: Window = OF_THE_KIND
    layer_indices: tuple[int, ...] | None = None
    self_positions: float | None = OF_THE_KIND
    blend_side: int | None = None
    blend_start: float = 0.2
    blend_threshold: float = 0.3
    key_value_steps: Window = OF_THE_KIND
    key_value_area: str = OF_THE_KIND
    feature_steps: Window = OF_THE_KIND
    branches: str = OF_THE_KIND

    def __post_init__(self) -> None:
        if self.kind not in ATTENTIONS:
            raise UnknownName("attention", str(self.kind), ATTENTIONS)
        for name, usual in self.usual().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, usual)
        for name, known in (("key_value_area", KEY_VALUE_AREAS), ("branches", ATTENTION_BRANCHES)):
            if getattr(self, name) not in known:
                raise UnknownName(name, str(getattr(self, name)), known)
        for name in (*_WINDOWS, "layers"):
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
            if value is None or (name == "self_positions" and value == math.inf):
                continue
            if not is_whole(value) or value <= 0:
                raise InputError(f"{value} is not a number above 0; None follows the latent's size.", parameter=name)
        if not is_number(self.blend_start) or not 0 <= self.blend_start <= 1:
            raise InputError(f"{self.blend_start} lies outside [0, 1]; 0.2 is usual.", parameter="blend_start")
        if not is_number(self.blend_threshold) or not 0 < self.blend_threshold < 1:
            raise InputError(f"{self.blend_threshold} lies outside (0, 1); 0.3 is usual.", parameter="blend_threshold")
        self._check_idle()

    def _check_idle(self) -> None:
        """Raises InputError for a setting that has no effect beside the others."""
        if self.kind == "none":
            self.refuse(tuple(name for name in NOTHING if name != "layers"), "attention 'none' takes nothing over")
        if not _open(self.key_value_steps):
            self.refuse(("key_value_area",), "since key_value_steps is empty")
        if not any(_open(window) for window in self.picture_windows):
            self.refuse(("branches",), "since nothing but attention to the words is taken over")
        begin, end = self.key_value_steps
        covered = begin <= self.value_steps[0] and self.value_steps[1] <= end and self.key_value_area != "background"
        if covered and _open(self.value_steps):
            self.refuse(("value_steps",), "since key_value_steps takes over the values of these steps too")

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

    def usual(self) -> dict[str, Any]:
        """Returns the defaults of this kind: ``PRESETS``, without ``layers`` if ``layer_indices`` names the blocks."""
        usual = {**NOTHING, **PRESETS[self.kind].settings}
        return usual if self.layer_indices is None else {**usual, "layers": NOTHING["layers"]}

    @property
    def picture_windows(self) -> tuple[Window, Window, Window, Window]:
        """The windows of what is taken over from the image: maps, values, keys with values, and features."""
        return self.self_steps, self.value_steps, self.key_value_steps, self.feature_steps

    def takes(self, name: str) -> bool:
        """Whether a window, such as ``"feature_steps"``, is not empty, and the kind takes anything over."""
        return self.kind != "none" and _open(getattr(self, name))

    @property
    def weight_window(self) -> Window:
        """The window in which weighted words are scaled: ``weight_steps``, or ``cross_steps`` if that is None."""
        return self.cross_steps if self.weight_steps is None else self.weight_steps

    def refuse(self, names: tuple[str, ...], why: str) -> None:
        """Raises InputError if one of these settings differs from the kind's, because it would have no effect.

        Args:
            names: the fields to check.
            why: the reason, for the message "... does nothing, {why}; leave it out."
        """
        usual = {one.name: one.default for one in fields(self)} | self.usual()
        if changed := next((name for name in names if getattr(self, name) != usual[name]), None):
            raise InputError(f"{getattr(self, changed)} does nothing, {why}; leave it out.", parameter=changed)


_WINDOWS = ("cross_steps", "self_steps", "value_steps", "key_value_steps", "feature_steps", "weight_steps")


def _open(window: Window) -> bool:
    """Whether a window is not empty."""
    return window[0] < window[1]


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
        mask: the mask on the latent, [N, K or 1, H, W], where it decides which keys and values are taken over.
        areas: the areas of the blend words in source and target, [N, K, 2, H, W], where they decide which keys a query
            sees; None as long as no maps are known.
        features: the names of the modules of a U-Net whose output ``feature_steps`` takes over.
    """

    edit: AttentionEdit
    layers: tuple[AttentionSite, ...]
    size: Size
    mapping: Tensor
    new: Tensor
    scales: Tensor | None = None
    blend: Tensor | None = None
    mask: Tensor | None = None
    areas: Tensor | None = None
    features: tuple[str, ...] = ()

    def __getitem__(self, which: slice) -> "AttentionPlan":
        """Returns the plan of the images that the slice selects."""
        return self.with_tensors([None if tensor is None else tensor[which] for tensor in self.tensors])

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """``mapping``, ``new``, ``scales``, ``blend``, ``mask`` and ``areas``."""
        return self.mapping, self.new, self.scales, self.blend, self.mask, self.areas

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> "AttentionPlan":
        """Returns a plan with other ``tensors``."""
        mapping, new, scales, blend, mask, areas = tensors
        assert mapping is not None
        assert new is not None
        return replace(self, mapping=mapping, new=new, scales=scales, blend=blend, mask=mask, areas=areas)

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
    def self_positions(self) -> float:
        """The largest number of positions of a self-attention layer of which anything is taken over.

        Unless the settings name it, it is that of the second-largest layer of the network, or of the only one.
        """
        sizes = (layer.size(self.size) for layer in self.layers if layer.picture)
        areas = sorted({height * width for height, width in sizes})
        return self.edit.self_positions or (areas[-2:] or [0])[0]
