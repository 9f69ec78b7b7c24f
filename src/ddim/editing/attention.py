"""Attention control: prompt-to-prompt (Hertz et al. 2022, arXiv 2208.01626), the maths of one call.

A network's processors hand queries, keys and values to the controller that comes with the call; the network keeps no
edit.
"""

import math
from collections import Counter

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .._utils.errors import DDIMError
from .plan import AttentionPlan, AttentionSite, within


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
        self,
        layer: AttentionSite,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        cfg_branch: str | None,
    ) -> Tensor:
        """The attention's output [B, heads, Q, d] from query, key and value of these shapes.

        Only rows under the words are edited, and of these only the targets'. ``cfg_branch`` says which rows those are.
        """
        self._check(layer, query, key, cfg_branch)
        if cfg_branch == "uncond":
            return scaled_dot_product_attention(query, key, value, attn_mask=mask)
        first = self.rows if cfg_branch == "both" else 0
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

    def _check(self, layer: AttentionSite, query: Tensor, key: Tensor, cfg_branch: str | None) -> None:
        height, width = layer.size(self.plan.size)
        rows = self.rows * (2 if cfg_branch == "both" else 1)
        keys = self.plan.new.shape[2] if layer.cross else height * width
        want, have = (rows, height * width, keys), (len(query), query.shape[2], key.shape[2])
        if have != want:
            raise DDIMError(
                f"The attention layer {layer.name} has (rows, positions, keys) {have}; attention control expected "
                f"{want} of it. This U-Net is not built as those of Stable Diffusion are; use attention = 'none'."
            )
        self.seen[layer.name, cfg_branch == "uncond"] += 1

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
