"""Attention control of prompt-to-prompt (Hertz et al. 2022, arXiv 2208.01626): the computation for one network call.

The attention processors of a network pass queries, keys and values to the ``AttentionController`` in the arguments of
the call. The network itself stores nothing about the edit.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .._utils.errors import DDIMError
from .plan import AttentionPlan, AttentionSite, within


class AttentionController:
    """Computes the attention of all layers in one network call, with the changes of an edit.

    A controller serves one call. At its end, ``finish`` checks that every layer has used it once.

    Args:
        plan: the edit of each row of the batch.
        step: the index of the step, from 0.
        steps: the number of steps S.
    """

    def __init__(self, plan: AttentionPlan, step: int, steps: int) -> None:
        edit, takes_maps = plan.edit, plan.edit.kind != "none"
        self.plan, self.step, self.steps = plan, step, steps
        self.images, self.targets = plan.new.shape[:2]
        self.rows = self.images * (1 + self.targets)
        self.cross = takes_maps and within(edit.cross_steps, step, steps)
        self.self_attention = takes_maps and within(edit.self_steps, step, steps)
        self.reweight = plan.scales is not None and within(edit.weight_window, step, steps)
        self.seen: Counter[tuple[str, bool]] = Counter()
        self.maps: Tensor | None = None

    @property
    def idle(self) -> bool:
        """Whether this call neither changes nor records attention, so that it does not need the controller."""
        return not (self.cross or self.self_attention or self.reweight or self.plan.blend is not None)

    @property
    def key(self) -> Hashable:
        """All that decides what the controller computes, besides the tensors of its plan."""
        plan = self.plan
        return plan.edit, plan.layers, plan.size, self.cross, self.self_attention, self.reweight

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> "AttentionController":
        """Returns a controller for the same call with other tensors in its plan; see ``AttentionPlan.tensors``."""
        return AttentionController(self.plan.with_tensors(tensors), self.step, self.steps)

    def adopt(self, seen: Mapping[tuple[str, bool], int], maps: Tensor | None) -> None:
        """Takes over the layers that another controller has seen in this call, and the maps that it has recorded."""
        self.seen, self.maps = Counter(seen), maps

    def attend(
        self,
        layer: AttentionSite,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        cfg_branch: str | None,
    ) -> Tensor:
        """Returns the output of an attention layer, [B, heads, Q, d].

        Only the targets' rows of the conditional branch are edited.

        Args:
            layer: the attention layer.
            query: [B, heads, Q, d].
            key, value: [B, heads, K, d], where K is the number of tokens L for cross-attention, and Q otherwise.
            mask: an additive attention mask that broadcasts to [B, heads, Q, K], or None.
            cfg_branch: the rows of the batch: ``"cond"``, ``"uncond"``, or ``"both"`` for the unconditional rows
                followed by the conditional ones.

        Raises:
            DDIMError: the shapes are not those that the plan expects.
        """
        self._check(layer, query, key, cfg_branch)
        if cfg_branch == "uncond":
            return scaled_dot_product_attention(query, key, value, attn_mask=mask)
        first = self.rows if cfg_branch == "both" else 0
        if not layer.cross:
            if self.self_attention and query.shape[2] <= self.plan.self_positions:
                query, key = self._sources(query, first), self._sources(key, first)
            return scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        # The maps are computed a second time below, because the fused kernel above does not return them.
        keep = self.plan.blend is not None and layer.size(self.plan.size) == self.plan.blend_size
        if not (self.cross or self.reweight or keep):
            return out
        masked = mask if mask is None or len(mask) == 1 else mask[first:]
        maps = _softmax_maps(query[first:], key[first:], masked).unflatten(0, (self.images, 1 + self.targets))
        source, target = maps[:, :1], maps[:, 1:]
        if self.cross:
            taken = source @ self.plan.mapping[:, :, None].to(source)
            target = torch.where(self.plan.new[:, :, None, None], target, taken)
        if keep:  # before the reweighting, which must not change where a word lies
            self._keep(source, target)
        if self.reweight:
            assert self.plan.scales is not None
            target = target * self.plan.scales[:, :, None, None].to(target)
        if self.cross or self.reweight:
            values = self._grouped(value[first:])[:, 1:]
            self._grouped(out[first:])[:, 1:] = target.to(value.dtype) @ values
        return out

    def finish(self) -> Tensor | None:
        """Ends the call, and returns the attention maps of the blend words, summed over the layers.

        Returns:
            maps [N, K, 2, h, w] of the source and of the target, or None if there are no blend words.

        Raises:
            DDIMError: not every attention layer of the U-Net has used this controller exactly once.
        """
        cond, uncond = (
            Counter({name: n for (name, is_uncond), n in self.seen.items() if is_uncond is wanted})
            for wanted in (False, True)
        )
        every = Counter(layer.name for layer in self.plan.layers)
        # The unconditional branch may be missing (weight 1), or be part of a call for both branches.
        if cond != every or uncond not in (every, Counter()):
            raise DDIMError(
                f"Attention control saw {cond.total()} attention layers in a call of a U-Net that has "
                f"{len(every)}: its attention processors were changed after ddim.edit had set them."
            )
        return self.maps

    def _check(self, layer: AttentionSite, query: Tensor, key: Tensor, cfg_branch: str | None) -> None:
        """Counts the use of a layer. Raises DDIMError if its shapes are not those that the plan expects."""
        height, width = layer.size(self.plan.size)
        rows = self.rows * (2 if cfg_branch == "both" else 1)
        keys = self.plan.new.shape[2] if layer.cross else height * width
        want, have = (rows, height * width, keys), (len(query), query.shape[2], key.shape[2])
        if have != want:
            raise DDIMError(
                f"The attention layer {layer.name} has (rows, positions, keys) {have}; attention control expected "
                f"{want}. This U-Net is not built like those of Stable Diffusion; use attention = 'none'."
            )
        self.seen[layer.name, cfg_branch == "uncond"] += 1

    def _grouped(self, x: Tensor) -> Tensor:
        """Views the rows [N (1 + K), ...] as [N, 1 + K, ...]: each image with its source and its targets."""
        return x.unflatten(0, (self.images, 1 + self.targets))

    def _sources(self, x: Tensor, first: int) -> Tensor:
        """Replaces each target's row by that of its source; rows before ``first`` do not change."""
        rows = self._grouped(x[first:])[:, :1].expand(-1, 1 + self.targets, *x.shape[1:]).flatten(0, 1)
        return torch.cat([x[:first], rows])

    def _keep(self, source: Tensor, target: Tensor) -> None:
        """Adds the maps of the blend words in a layer to those of the call, averaged over the heads.

        Args:
            source, target: the attention maps, [N, 1, heads, Q, L] and [N, K, heads, Q, L].
        """
        assert self.plan.blend is not None
        words = self.plan.blend.to(source)
        pair = [(m.mean(2) * words[:, :, side, None]).sum(-1) for side, m in enumerate((source, target))]
        maps = torch.stack(pair, 2).unflatten(-1, self.plan.blend_size)
        self.maps = maps if self.maps is None else self.maps + maps


def _softmax_maps(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the attention maps softmax(q k^T / sqrt(d)), [B, heads, Q, L], computed in at least float32."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ key.to(wide).transpose(-1, -2) / math.sqrt(query.shape[-1])
    return (scores if mask is None else scores + mask.to(wide)).softmax(-1)
