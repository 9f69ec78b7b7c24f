"""Asks a network for sources and targets together, and for equal rows only once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .._utils.errors import InputError
from ..core.conditioning import TEXT, TEXT_MASK, Conditioning, PromptConditioning
from ..core.denoiser import PLAIN, Call, Network
from ..core.guidance import Guidance, combined, nothing_to_lead_away_from, with_embedded
from ..core.path import Node
from ..core.prediction import NO_HOLD, Hold, Pair, to_pair


@dataclass(frozen=True, eq=False)
class Side:
    """The conditions and the guidance of the sources, or of the targets, with one row per sample.

    Args:
        prompts: the two conditions of guidance, M rows each.
        guidance: its weight and other settings. ``embedded`` replaces the scale in the conditions.
        images: the number of source images N; row k belongs to image k // (M / N).

    Raises:
        InputError: guidance leaves out layers (``SkipLayers``), which needs a call of its own, or pulls to an image.
    """

    prompts: PromptConditioning
    guidance: Guidance
    images: int

    def __post_init__(self) -> None:
        if self.guidance.skip is not None:
            raise InputError(
                f"{self.guidance.skip.layers} are left out in a third call, which this method does not make; leave it "
                "out, or use a method such as 'direct'.",
                parameter="skip_layers",
            )
        if self.guidance.proximal is not None and self.guidance.proximal.pull:
            raise InputError(f"{self.guidance.proximal.pull:g} has no effect on an editor; use 0.", parameter="pull")
        object.__setattr__(self, "prompts", with_embedded(self.prompts, self.guidance.embedded))

    def repeat(self, times: int) -> "Side":
        """Repeats every row, so that the copies of a row are neighbours."""
        return self if times == 1 else replace(self, prompts=self.prompts.repeat(times))

    def at(self, weight: float) -> "Side":
        """Returns the same conditions with another guidance weight."""
        return replace(self, guidance=self.guidance.at(weight))

    def branch(self, name: str) -> Conditioning:
        """Returns the condition of the branch ``cond`` or ``uncond``.

        Raises:
            InputError: there is no unconditional branch.
        """
        found = self.prompts.cond if name == "cond" else self.prompts.uncond
        if found is None:
            raise nothing_to_lead_away_from(self.guidance)
        return found

    @cached_property
    def digests(self) -> dict[str, list[str]]:
        """For each branch a digest of each row: equal digests are equal conditions, however far a text is padded."""
        branches = {"cond": self.prompts.cond, "uncond": self.prompts.uncond}
        return {name: _row_digests(c) for name, c in branches.items() if c is not None}


def _row_digests(cond: Conditioning) -> list[str]:
    """Returns a digest of each row; an empty list if there are no tensors."""
    mask = cond.tensors.get(TEXT_MASK)
    rows: list[str] = []
    for row in range(cond.rows or 0):
        sums = hashlib.sha256()
        for name in sorted(set(cond.tensors) - {TEXT_MASK}):
            value = cond.tensors[name][row]
            if name == TEXT and mask is not None:
                value = value[mask[row].bool()]
            sums.update(f"{name}{tuple(value.shape)}".encode())
            sums.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        rows.append(sums.hexdigest())
    return rows


class Question(NamedTuple):
    """A question to the network: samples x, [M, ...], and the side that they are asked for, M rows."""

    x: Tensor
    side: Side


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of one branch of one question."""

    question: int
    branch: str
    x: Tensor
    cond: Conditioning
    digests: Sequence[str]
    per_image: int


def ask(network: Network, node: Node, *questions: Question, hold: Hold = NO_HOLD, call: Call = PLAIN) -> list[Pair]:
    """Asks several questions at one node in as few calls as possible, and returns a pair for each.

    All rows stand in one call, or the two branches of guidance in one call each if ``Guidance.batched_cfg`` is false.
    Rows of one image with equal samples, to the bit, and equal conditions are asked once and the answer is copied.
    Otherwise equal rows could differ in their last bits, and an edit to the source's own prompt would not return it.

    Args:
        network: the model.
        node: the node of all samples.
        questions: samples with the side that they are asked for.
        hold: limits x0 after guidance.
        call: the other arguments of the network call.
    """
    t_max, schedule = network.schedule.path.t_max, network.schedule
    rows: list[_Rows] = []
    for k, (x, side) in enumerate(questions):
        branches = ("uncond", "cond") if side.guidance.applies(node, t_max) else ("cond",)
        per_image = max(1, len(x) // side.images)
        for branch in branches:
            found = side.branch(branch)
            rows.append(_Rows(k, branch, x, found, side.digests.get(branch, []), per_image))
    batched = all(side.guidance.batched_cfg for _, side in questions)
    groups = [rows] if batched else [[r for r in rows if r.branch == b] for b in ("uncond", "cond")]
    outputs: dict[tuple[int, str], Tensor] = {}
    for group in groups:
        if group:
            answers = _answers(network, node, group, replace(call, branches=("cond",)))
            outputs |= {(r.question, r.branch): a for r, a in zip(group, answers, strict=True)}
    pairs: list[Pair] = []
    for k, (x, side) in enumerate(questions):
        output = outputs[k, "cond"]
        if (k, "uncond") in outputs:
            output = combined(network, output, outputs[k, "uncond"], side.guidance, node)
        pair = to_pair(schedule.prediction, output, x, node, sigma_data=schedule.sigma_data)
        pairs.append(hold(pair, x, node) if hold.acts else pair)
    return pairs


def _answers(network: Network, node: Node, group: Sequence[_Rows], call: Call) -> list[Tensor]:
    """Returns the output for each of the groups of rows, from one call without repeated rows."""
    x = torch.cat([r.x for r in group])
    cond = Conditioning.cat([r.cond for r in group]) if group[0].cond.tensors else group[0].cond
    first = _first_equals(group, x)
    kept = [row for row, same in enumerate(first) if row == same]
    if len(kept) == len(first):
        (output,) = network.ask(x, node, cond, call=call)
    else:
        (asked,) = network.ask(x[kept], node, cond[kept] if cond.tensors else cond, call=call)
        output = asked[[kept.index(same) for same in first]]
    return list(torch.split(output, [len(r.x) for r in group]))


def _first_equals(group: Sequence[_Rows], x: Tensor) -> list[int]:
    """Returns for each row the first row with the same sample and condition, among those of the same image."""
    seen: dict[tuple[int, str], list[int]] = {}
    first: list[int] = []
    for r in group:
        for k in range(len(r.x)):
            row = len(first)
            alike = seen.setdefault((k // r.per_image, r.digests[k] if r.digests else ""), [])
            same = next((other for other in alike if torch.equal(x[other], x[row])), row)
            first.append(same)
            if same == row:
                alike.append(row)
    return first
