"""Attention control: the computation for one network call.

It takes over maps, as prompt-to-prompt does (Hertz et al. 2022, arXiv 2208.01626), values, keys with values (MasaCtrl,
Cao et al. 2023, arXiv 2304.08465; KV-Edit, Zhu et al. 2025, arXiv 2502.17363), and features of a residual block
(plug-and-play, Tumanyan et al. 2022, arXiv 2211.12572).

The attention processors of a network pass queries, keys and values to the ``AttentionController`` in the arguments of
the call. The network itself stores nothing about the edit. The rows of a source and its targets are in one batch at the
same noise level, so that nothing of an earlier call is stored either: KV-Edit's cache of all steps and blocks is the
source's row here, which a pinned inversion keeps on its trajectory.

A layer of a U-Net looks either at the words or at the image. In the joint attention of a transformer (Esser et al.
2024, arXiv 2403.03206) one softmax is over both, so that the attention of an image's token is a row [to the image, to
the words] whose entries sum to 1. Such a row of a target is edited as follows:

1. Where cross-attention is taken over, the entries of the words become the source's: column j becomes the sum over i of
   ``mapping[i, j]`` times the source's entry i. Tokens that are new keep their own.
2. Where self-attention is taken over, the entries of the image become the source's.
3. After 1 or 2 the row is divided by its sum, so that it is a softmax again. The taken entries keep their ratios to
   each other, and so do the others. A row that was taken over as a whole is the source's row.
4. The entries of weighted words are multiplied by their weights, as in a U-Net: the other entries do not change, and
   the row no longer sums to 1.

The rows of the words' tokens, which a U-Net does not have, are the target's own.

Where keys and values are taken over, those of the image's tokens in a target become the source's, before all of the
above. The queries, and the keys and values of the words, stay the target's own.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, pad, scaled_dot_product_attention

from .._utils.errors import DDIMError
from .plan import AttentionPlan, AttentionSite, within

MAP_BYTES = 2**28
"""The most memory for attention maps at one time, in bytes; a single query of one head may need more.

The maps of a layer are computed for some of its heads at a time, and where one head needs more, for some of its
queries. All maps of one layer of FLUX at 1024 pixels would take 2 GB for each row of the batch.
"""

_COPIES = 3
"""As many tensors of the size of the maps exist at one time, at most, while maps are computed and edited."""


class _Acts(NamedTuple):
    """What is done in a layer with words.

    Attributes:
        cross: whether the attention to the words is taken over from the source.
        image: whether the attention to the image is.
        reweight: whether words are weighted.
        keep: whether the maps of the blend words are recorded.
    """

    cross: bool
    image: bool
    reweight: bool
    keep: bool


class AttentionController:
    """Computes the attention of all layers in one network call, with the changes of an edit.

    A controller serves one call. At its end, ``finish`` checks that every layer has used it once.

    Args:
        plan: the edit of each row of the batch.
        step: the index of the step, from 0.
        steps: the number of steps S.
    """

    def __init__(self, plan: AttentionPlan, step: int, steps: int) -> None:
        edit, takes = plan.edit, plan.edit.kind != "none"
        self.plan, self.step, self.steps = plan, step, steps
        self.images, self.targets = plan.new.shape[:2]
        self.rows = self.images * (1 + self.targets)
        self.cross = takes and within(edit.cross_steps, step, steps)
        self.self_attention = takes and within(edit.self_steps, step, steps)
        self.values = takes and within(edit.value_steps, step, steps)
        self.key_values = takes and within(edit.key_value_steps, step, steps)
        self.features = takes and within(edit.feature_steps, step, steps)
        self.reweight = plan.scales is not None and within(edit.weight_window, step, steps)
        self.seen: Counter[tuple[str, bool]] = Counter()
        self.maps: Tensor | None = None

    @property
    def idle(self) -> bool:
        """Whether this call neither changes nor records attention, so that it does not need the controller."""
        return not (any(self._acts) or self.plan.blend is not None)

    @property
    def _acts(self) -> tuple[bool, ...]:
        """What acts in this step."""
        return self.cross, self.self_attention, self.values, self.key_values, self.features, self.reweight

    @property
    def key(self) -> Hashable:
        """All that decides what the controller computes, besides the tensors of its plan."""
        plan = self.plan
        return plan.edit, plan.layers, plan.size, plan.features, *self._acts

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> "AttentionController":
        """Returns a controller for the same call with other tensors in its plan; see ``AttentionPlan.tensors``."""
        return AttentionController(self.plan.with_tensors(tensors), self.step, self.steps)

    def adopt(self, seen: Mapping[tuple[str, bool], int], maps: Tensor | None) -> None:
        """Takes over the layers that another controller has seen in a part of this call, and the maps of that part.

        A call has several parts where the branches of guidance are asked one after the other.
        """
        self.seen += Counter(seen)
        if maps is not None:
            self.maps = maps if self.maps is None else self.maps + maps

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

        Only the targets' rows are edited, of the conditional branch and of what ``AttentionEdit.branches`` adds, and of
        those only what the image's tokens see. Keys and values that are taken over are seen by the words' tokens too.

        Args:
            layer: the attention layer.
            query: [B, heads, Q, d].
            key, value: [B, heads, K, d], where K is the number of tokens L for cross-attention, and Q otherwise.
            mask: an additive or boolean attention mask that broadcasts to [B, heads, Q, K], or None.
            cfg_branch: the rows of the batch: ``"cond"``, ``"uncond"``, or ``"both"`` for the unconditional rows
                followed by the conditional ones.

        Raises:
            DDIMError: the shapes are not those that the plan expects.
        """
        self._check(layer, query, key, cfg_branch)
        plan, changes = self.plan, self.plan.changes(layer)
        height, width = layer.size(plan.size)
        own = changes and layer.picture and height * width <= plan.self_positions
        uncond, cond = self._branches(cfg_branch)
        rows = [branch for branch in (uncond, cond) if branch is not None] if own else []
        rows = rows if plan.edit.branches == "both" else [branch for branch in rows if branch is cond]
        if rows and (self.values or self.key_values or (self.self_attention and not layer.joint)):
            query, key, value, mask = self._with_sources(layer, query, key, value, mask, rows)
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        if not layer.words:
            return out
        # The fused kernel above does not return the maps; where they are needed, they are computed a second time.
        keep = plan.blend is not None and (height, width) == plan.blend_size
        for branch in (uncond, cond):
            acts = _Acts(
                cross=changes and self.cross and branch is cond,
                image=self.self_attention and branch in rows,
                reweight=changes and self.reweight and branch is cond,
                keep=keep and branch is cond,
            )
            if branch is not None and any(acts):
                part = query[branch], key[branch], value[branch], _rows(mask, branch), out[branch]
                self._edit_words(layer, *part, acts)
        return out

    def follow_features(self, name: str, x: Tensor, cfg_branch: str | None) -> Tensor:
        """Returns the features of a U-Net's layer with each target's replaced by those of its source.

        Args:
            name: the name of the module; one of ``AttentionPlan.features``.
            x: its output, [B, C, h, w].
            cfg_branch: as for ``attend``.
        """
        self.seen[name, cfg_branch == "uncond"] += 1
        uncond, cond = self._branches(cfg_branch)
        both = self.plan.edit.branches == "both"
        return self._followed(x, [rows for rows in (uncond, cond) if rows is not None and (both or rows is cond)])

    def _branches(self, cfg_branch: str | None) -> tuple[slice | None, slice | None]:
        """Returns the rows of the unconditional and of the conditional branch; None for one that is not in the call."""
        first, second = slice(0, self.rows), slice(self.rows, 2 * self.rows)
        if cfg_branch == "both":
            return first, second
        return (first, None) if cfg_branch == "uncond" else (None, first)

    def _edit_words(
        self,
        layer: AttentionSite,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        out: Tensor,
        acts: _Acts,
    ) -> None:
        """Edits the attention of the targets' image tokens in a layer with words, and records the blend words' maps.

        Args:
            layer: the attention layer.
            query, key, value, mask: as for ``attend``, of the rows of one branch of guidance.
            out: the output of the layer, [N (1 + K), heads, Q, d], which is changed in place.
            acts: what is done.
        """
        plan, (cross, image, reweight, keep) = self.plan, acts
        picture, words = layer.parts(plan.size, key.shape[2], plan.new.shape[2])
        # Padding behind the tokens of all prompts of the plan has no entry in it; the batch's padding may be shorter.
        length = min(plan.new.shape[2], words.stop - words.start)
        words = slice(words.start, words.start + length)
        mapping, new = plan.mapping[..., :length, :length], plan.new[:, :, None, None, :length]
        queries = picture if layer.joint else slice(0, query.shape[2])
        found = query.new_zeros(0)
        if keep:
            wide = torch.promote_types(query.dtype, torch.float32)
            found = query.new_zeros(*plan.new.shape[:2], 2, queries.stop - queries.start, dtype=wide)
        for heads, places in _chunks(query, queries, key):
            maps = self._grouped(_softmax_maps(query[:, heads, places], key[:, heads], _chunk_of(mask, heads, places)))
            source, target = maps[:, :1], maps[:, 1:]
            if cross:
                taken = source[..., words].flatten(2, 3) @ mapping.to(source)
                target[..., words] = torch.where(new, target[..., words], taken.unflatten(2, target.shape[2:4]))
                del taken
            if image:
                target[..., picture] = source[..., picture]
            if layer.joint and (cross or image):
                target /= target.sum(-1, keepdim=True)
            if keep:  # before the reweighting, which must not change where a word lies
                at = slice(places.start - queries.start, places.stop - queries.start)
                found[..., at] += self._word_maps(source[..., words], target[..., words]) / query.shape[1]
            if reweight:
                assert plan.scales is not None
                target[..., words] *= plan.scales[:, :, None, None, :length].to(target)
            if cross or image or reweight:
                values = self._grouped(value[:, heads])[:, 1:]
                self._grouped(out[:, heads, places])[:, 1:] = target.to(value.dtype) @ values
            del maps, source, target  # before the next chunk makes its own
        if keep:
            height, width = plan.blend_size
            found = found[..., : height * width].unflatten(-1, (height, width))
            self.maps = found if self.maps is None else self.maps + found

    def finish(self) -> Tensor | None:
        """Ends the call, and returns the attention maps of the blend words, summed over the layers.

        Returns:
            maps [N, K, 2, h, w] of the source and of the target, or None if there are no blend words.

        Raises:
            DDIMError: not every attention layer of the network has used this controller exactly once.
        """
        cond, uncond = (
            Counter({name: n for (name, is_uncond), n in self.seen.items() if is_uncond is wanted})
            for wanted in (False, True)
        )
        every = Counter(layer.name for layer in self.plan.layers)
        every += Counter(self.plan.features if self.features else ())
        # The unconditional branch may be missing (weight 1), or be part of a call for both branches.
        if cond != every or uncond not in (every, Counter()):
            raise DDIMError(
                f"Attention control saw {cond.total()} layers in a call of a network that has {len(every)}: its "
                "attention processors were changed after ddim.edit had set them."
            )
        return self.maps

    def _check(self, layer: AttentionSite, query: Tensor, key: Tensor, cfg_branch: str | None) -> None:
        """Counts the use of a layer. Raises DDIMError if its shapes are not those that the plan expects."""
        positions, tokens = layer.positions(self.plan.size), self.plan.new.shape[2]
        rows = self.rows * (2 if cfg_branch == "both" else 1)
        looked_at = positions if layer.picture else 0
        if layer.varies:  # any number of words, but at least one
            tokens = max(1, key.shape[2] - looked_at)
        keys = looked_at + (tokens if layer.words else 0)
        keys = max(keys, key.shape[2]) if layer.reference else keys
        want, have = (rows, keys if layer.joint else positions, keys), (len(query), query.shape[2], key.shape[2])
        if have != want:
            raise DDIMError(
                f"The attention layer {layer.name} has (rows, positions, keys) {have}; attention control expected "
                f"{want}. This network is not built like others of its family; use attention = 'none'."
            )
        self.seen[layer.name, cfg_branch == "uncond"] += 1

    def _grouped(self, x: Tensor) -> Tensor:
        """Views the rows [N (1 + K), ...] as [N, 1 + K, ...]: each image with its source and its targets."""
        return x.unflatten(0, (self.images, 1 + self.targets))

    def _followed(
        self, x: Tensor, rows: Sequence[slice], places: slice = slice(None), keep: Tensor | None = None
    ) -> Tensor:
        """Returns a copy of x in which each target's row is that of its source.

        Args:
            x: [B, heads, tokens, d], or of another shape without ``places`` and ``keep``.
            rows: the rows of the branches of guidance in which targets follow.
            places: the tokens.
            keep: true for the tokens of a target that stay its own, [N, 1, 1, tokens, 1].
        """
        x = x.clone()
        for branch in rows:
            each = self._grouped(x[branch])[:, :, :, places]
            source, targets = each[:, :1], each[:, 1:]
            targets.copy_(source.expand_as(targets) if keep is None else torch.where(keep, targets, source))
        return x

    def _with_sources(
        self,
        layer: AttentionSite,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        rows: Sequence[slice],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Takes over queries, keys and values of the image's tokens; returns what attention is computed from."""
        picture, _ = layer.parts(self.plan.size, key.shape[2], self.plan.new.shape[2])
        area = self.plan.edit.key_value_area
        if self.key_values:
            keep = self._inside(layer) if area == "background" else None
            key, value = self._followed(key, rows, picture, keep), self._followed(value, rows, picture, keep)
        if self.values:
            value = self._followed(value, rows, picture)
        if self.self_attention and not layer.joint:
            query, key = self._followed(query, rows), self._followed(key, rows)
        if self.key_values and area == "words" and self.plan.areas is not None:
            mask = self._within_areas(layer, query, key, mask, rows, picture)
        return query, key, value, mask

    def _inside(self, layer: AttentionSite) -> Tensor:
        """Returns which of a layer's picture tokens the mask lets change in any part, [N, K or 1, 1, tokens, 1].

        Tokens of padding count as inside: they belong to no part of the picture.
        """
        assert self.plan.mask is not None
        inside = adaptive_max_pool2d((self.plan.mask > 0).float(), layer.size(self.plan.size)).flatten(2) > 0
        inside = pad(inside, (0, layer.positions(self.plan.size) - inside.shape[2]), value=True)
        return inside[:, :, None, :, None]

    def _within_areas(
        self,
        layer: AttentionSite,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        rows: Sequence[slice],
        picture: slice,
    ) -> Tensor:
        """Returns the mask with which each image query of a target sees the image keys of its own kind of area.

        A query inside the words' area of the target sees the keys inside that of the source, and any other query sees
        the others. Where there are none of its kind, it sees all.
        """
        areas = self.plan.areas
        assert areas is not None
        size, (n, k) = layer.size(self.plan.size), areas.shape[:2]
        inside = adaptive_max_pool2d(areas.float().flatten(0, 1), size).flatten(2).unflatten(0, (n, k)) > 0
        inside = pad(inside, (0, layer.positions(self.plan.size) - inside.shape[-1]))
        source, target = inside[:, :, 0], inside[:, :, 1]
        sees = target[..., :, None] == source[..., None, :]  # [N, K, Q, K]
        sees = sees | ~sees.any(-1, keepdim=True)
        every = sees.new_ones(len(query), 1, query.shape[2], key.shape[2])
        queries = picture if layer.joint else slice(0, query.shape[2])
        for branch in rows:
            self._grouped(every[branch])[:, 1:, 0, queries, picture] = sees
        if mask is None:
            return every
        return mask & every if mask.dtype == torch.bool else mask.masked_fill(~every, -math.inf)

    def _word_maps(self, source: Tensor, target: Tensor) -> Tensor:
        """Returns the maps of the blend words in source and target, [N, K, 2, Q], summed over words and heads.

        Args:
            source, target: attention to the words, [N, 1, heads, Q, L] and [N, K, heads, Q, L].
        """
        assert self.plan.blend is not None
        words = self.plan.blend[..., : source.shape[-1]].to(source)
        pair = [(m.sum(2) * words[:, :, side, None]).sum(-1) for side, m in enumerate((source, target))]
        return torch.stack(pair, 2)


def _chunks(query: Tensor, queries: slice, key: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yields the heads and the queries whose maps are computed at one time, so that they fit into ``MAP_BYTES``.

    Args:
        query: [B, heads, Q, d].
        queries: those whose maps are needed.
        key: [B, heads, K, d].
    """
    size = torch.promote_types(query.dtype, torch.float32).itemsize
    fit = MAP_BYTES // (_COPIES * size * len(query) * key.shape[2])  # queries of one head
    count, many = queries.stop - queries.start, query.shape[1]
    heads, places = (max(1, fit // count), count) if fit >= count else (1, max(1, fit))
    for head in range(0, many, heads):
        for place in range(queries.start, queries.stop, places):
            yield slice(head, min(head + heads, many)), slice(place, min(place + places, queries.stop))


def _rows(mask: Tensor | None, branch: slice) -> Tensor | None:
    """Returns some rows of a mask; a mask of one row is for all."""
    return mask if mask is None or len(mask) == 1 else mask[branch]


def _chunk_of(mask: Tensor | None, heads: slice, places: slice) -> Tensor | None:
    """Returns the part of a mask for some heads and queries; it may have one of either, for all."""
    if mask is None:
        return None
    mask = mask if mask.shape[1] == 1 else mask[:, heads]
    return mask if mask.shape[2] == 1 else mask[:, :, places]


def _softmax_maps(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the attention maps softmax(q k^T / sqrt(d)), [B, heads, Q, L], computed in at least float32."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(wide) / math.sqrt(query.shape[-1])) @ key.to(wide).transpose(-1, -2)
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype == torch.bool:
        return scores.masked_fill_(~mask, -math.inf).softmax(-1)
    return scores.add_(mask.to(wide)).softmax(-1)
