"""Attention control: prompt-to-prompt (Hertz et al. 2022, arXiv 2208.01626) on the attention layers of a U-Net.

The layers get a processor of ours once; what it does comes with each call, so that a network keeps no edit.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .._utils.errors import DDIMError, InputError, UnknownName, is_number, is_range, is_whole

Kind = Literal["refine", "replace", "none"]
KINDS: tuple[str, ...] = get_args(Kind)
Window = tuple[float, float]
Size = tuple[int, int]
PLAIN = ("AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor", "SlicedAttnProcessor", "FusedAttnProcessor2_0")
"""Processors of diffusers that compute plain attention, and that ours may therefore stand in for."""


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
        self_positions: self maps of at most so many positions are taken over; by default a quarter of the latent's
            (Stable Diffusion at 512 pixels: 32 x 32 of 64 x 64).
        blend_side: blending reads the cross maps of the largest resolution whose longer side is at most this; by
            default a quarter of the latent's, and no less than 8 (Stable Diffusion: 16).
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
        if self.kind not in KINDS:
            raise UnknownName("attention", str(self.kind), KINDS)
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
class Layer:
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
        layers: that ``install`` found.
        size: (height, width) of the latent.
        mapping: [N, K, L, L], see ``align.replace``.
        new: [N, K, L], true where a target's token keeps its own map.
        scales: [N, K, L], or None without weighted words.
        blend: [N, K, 2, L], 1 at the tokens to blend by, of the source and of the target; None without.
    """

    edit: AttentionEdit
    layers: tuple[Layer, ...]
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
        """The most positions of a self map that is taken over."""
        return self.edit.self_positions or self.size[0] * self.size[1] // 4


class AttentionController:
    """What one call of the denoiser does at its attention layers; made for that call, and counted at its end.

    Args:
        plan: what is known of the rows.
        step: counted from 0.
        steps: S.
    """

    def __init__(self, plan: AttentionPlan, step: int, steps: int) -> None:
        edit, on = plan.edit, plan.edit.kind != "none"
        self.plan = plan
        self.images, self.targets = plan.new.shape[:2]
        self.rows = self.images * (1 + self.targets)
        self.cross = on and within(edit.cross_steps, step, steps)
        self.itself = on and within(edit.self_steps, step, steps)
        self.weigh = plan.scales is not None and within(edit.weight_window, step, steps)
        self.seen: Counter[tuple[str, bool]] = Counter()
        self.maps: Tensor | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is changed and nothing kept, so that the call may do without."""
        return not (self.cross or self.itself or self.weigh or self.plan.blend is not None)

    def attend(
        self, layer: Layer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, half: str | None
    ) -> Tensor:
        """The attention's output [B, heads, Q, d] from query, key and value of these shapes.

        Only rows under the words are edited, and of these only the targets'. ``half`` says which rows those are.
        """
        self._check(layer, query, key, half)
        if half == "null":
            return scaled_dot_product_attention(query, key, value, attn_mask=mask)
        first = self.rows if half == "both" else 0
        if not layer.cross:
            if self.itself and query.shape[2] <= self.plan.self_positions:
                query, key = self._sources(query, first), self._sources(key, first)
            return scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        keep = self.plan.blend is not None and layer.size(self.plan.size) == self.plan.blend_size
        if not (self.cross or self.weigh or keep):
            return out
        masked = mask if mask is None or len(mask) == 1 else mask[first:]
        maps = _softmax_maps(query[first:], key[first:], masked).unflatten(0, (self.images, 1 + self.targets))
        source, target = maps[:, :1], maps[:, 1:]
        if self.cross:
            taken = source @ self.plan.mapping[:, :, None].to(source)
            target = torch.where(self.plan.new[:, :, None, None], target, taken)
        if keep:
            self._keep(source, target)
        if self.weigh:
            assert self.plan.scales is not None
            target = target * self.plan.scales[:, :, None, None].to(target)
        if self.cross or self.weigh:
            values = self._grouped(value[first:])[:, 1:]
            self._grouped(out[first:])[:, 1:] = target.to(value.dtype) @ values
        return out

    def finish(self) -> Tensor | None:
        """The maps of the words to blend by, [N, K, 2, h, w], summed over layers; None without.

        Raises:
            DDIMError: the layers of the U-Net did not all pass by, each once.
        """
        halves = [Counter({n: c for (n, null), c in self.seen.items() if null is want}) for want in (False, True)]
        every = Counter(layer.name for layer in self.plan.layers)
        if halves[0] != every or halves[1] not in (every, Counter()):
            raise DDIMError(
                f"Attention control saw {halves[0].total()} attention layers in a call of a U-Net that has "
                f"{len(every)}: its attention processors were changed after ddim.edit had set them."
            )
        return self.maps

    def _check(self, layer: Layer, query: Tensor, key: Tensor, half: str | None) -> None:
        height, width = layer.size(self.plan.size)
        rows = self.rows * (2 if half == "both" else 1)
        keys = self.plan.new.shape[2] if layer.cross else height * width
        want, have = (rows, height * width, keys), (len(query), query.shape[2], key.shape[2])
        if have != want:
            raise DDIMError(
                f"The attention layer {layer.name} has (rows, positions, keys) {have}; attention control expected "
                f"{want} of it. This U-Net is not built as those of Stable Diffusion are; use attention = 'none'."
            )
        self.seen[layer.name, half == "null"] += 1

    def _grouped(self, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.images, 1 + self.targets))

    def _sources(self, x: Tensor, first: int) -> Tensor:
        """Every target's row is its source's."""
        rows = self._grouped(x[first:])[:, :1].expand(-1, 1 + self.targets, *x.shape[1:]).flatten(0, 1)
        return torch.cat([x[:first], rows])

    def _keep(self, source: Tensor, target: Tensor) -> None:
        """Adds the maps of the words to blend by, mean over heads, from [N, 1 or K, heads, Q, L]."""
        assert self.plan.blend is not None
        words = self.plan.blend.to(source)
        pair = [(m.mean(2) * words[:, :, side, None]).sum(-1) for side, m in enumerate((source, target))]
        maps = torch.stack(pair, 2).unflatten(-1, self.plan.blend_size)
        self.maps = maps if self.maps is None else self.maps + maps


def _softmax_maps(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) [B, heads, Q, L], in float32 or wider."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ key.to(wide).transpose(-1, -2) / math.sqrt(query.shape[-1])
    return (scores if mask is None else scores + mask.to(wide)).softmax(-1)


class ControlledAttention:
    """A processor for diffusers' ``Attention``: without a control the plain attention of its own ``AttnProcessor2_0``.

    Args:
        layer: where it is set.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        control: AttentionController | None = None,
        half: str | None = None,
    ) -> Tensor:
        """From [B, Q, C] to the same; ``control`` and ``half`` come through ``cross_attention_kwargs``."""
        x, context = hidden_states, encoder_hidden_states
        if attn.spatial_norm is not None:
            x = attn.spatial_norm(x, temb)
        picture = x.shape if x.ndim == 4 else None
        if picture is not None:
            x = x.flatten(2).transpose(1, 2)
        mask = attention_mask
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, (x if context is None else context).shape[1], len(x))
            mask = mask.view(len(x), attn.heads, -1, mask.shape[-1])
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        if context is None:
            context = x
        elif attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        query, key, value = (
            y.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for y in (attn.to_q(x), attn.to_k(context), attn.to_v(context))
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if control is None:
            out = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            out = control.attend(self.layer, query, key, value, mask, half)
        out = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2).to(query.dtype)))
        if picture is not None:
            out = out.transpose(-1, -2).reshape(picture)
        if attn.residual_connection:
            out = out + hidden_states
        return out / attn.rescale_output_factor


def install(unet: Any) -> tuple[Layer, ...]:
    """Sets our processor on the attention layers of a UNet2DConditionModel's transformer blocks; twice is once.

    Raises:
        InputError: a U-Net without cross attention, or with processors that do more than plain attention.
    """
    depth, layers = len(unet.down_blocks), []
    for name, block in unet.named_modules():
        if type(block).__name__ != "BasicTransformerBlock":
            continue
        for part in ("attn1", "attn2"):
            attention = getattr(block, part, None)
            if attention is None:
                continue
            layer = Layer(f"{name}.{part}", bool(attention.is_cross_attention), _level(name, depth))
            layers.append(layer)
            present = attention.processor
            if isinstance(present, ControlledAttention) and present.layer == layer:
                continue
            if not isinstance(present, ControlledAttention) and type(present).__name__ not in PLAIN:
                raise InputError(
                    f"The attention processor {type(present).__name__} of {layer.name} does more than attend; "
                    "attention control cannot stand in for it, call unet.set_default_attn_processor() first."
                )
            attention.set_processor(ControlledAttention(layer))
    if not any(layer.cross for layer in layers):
        raise InputError("The U-Net has no cross-attention layers in transformer blocks; there is nothing to control.")
    return tuple(layers)


def _level(name: str, depth: int) -> int:
    """How often the map is halved at a block of a U-Net with ``depth`` down blocks."""
    found = re.match(r"(down|up)_blocks\.(\d+)\.", name)
    if found is None:
        return depth - 1
    return int(found[2]) if found[1] == "down" else depth - 1 - int(found[2])
