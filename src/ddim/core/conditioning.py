"""The conditions of a network as values: named tensors with one row per sample."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._utils.errors import InputError

TEXT, TEXT_MASK, POOLED, LABELS = "text", "text_mask", "pooled", "labels"
"""The names of the usual tensors: the embedded tokens [N, L, D], a mask of the tokens that are not padding [N, L], one
embedding of the whole prompt [N, D], and class labels [N]."""
EMBEDDED, REFERENCE = "guidance", "reference"
"""The names of two tensors that few networks take: the guidance scale of a guidance-distilled network, float32 [N], and
the latents of a picture that the network looks at, [N, C, h, w]."""
CONTENT = (TEXT, TEXT_MASK, POOLED, LABELS, EMBEDDED)
"""The names of the tensors that an edit chooses for its targets: what the image shows, and how strongly it follows its
prompt. Targets take all other tensors from their source, such as its size."""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """One condition for each of N samples.

    Args:
        tensors: the tensors by name, [N, ...] each; empty for an unconditional model.
        numbers: whole numbers that the network needs besides the tensors; they are the same for all rows.

    Raises:
        InputError: the tensors have different numbers of rows.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    numbers: Mapping[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        if len(counts := {len(tensor) for tensor in self.tensors.values()}) > 1:
            raise InputError(f"its tensors have {sorted(counts)} rows; they must agree.", parameter="conditioning")

    @property
    def rows(self) -> int | None:
        """The number of rows N; None if there are no tensors, which fits any number of samples."""
        return next((len(tensor) for tensor in self.tensors.values()), None)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, which: slice | Sequence[int] | Tensor) -> "Conditioning":
        """Returns the rows that ``which`` selects, as indexing a tensor does."""
        return self._with({name: tensor[which] for name, tensor in self.tensors.items()})

    def repeat(self, times: int) -> "Conditioning":
        """Repeats every row ``times`` times; the copies of a row are neighbours."""
        return self._with({name: tensor.repeat_interleave(times, 0) for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str) -> "Conditioning":
        """Copies the tensors to a device."""
        return self._with({name: tensor.to(device) for name, tensor in self.tensors.items()})

    def replace(self, **tensors: Tensor) -> "Conditioning":
        """Replaces the tensors of these names, or adds them."""
        return self._with({**self.tensors, **tensors})

    def _with(self, tensors: Mapping[str, Tensor]) -> "Conditioning":
        return Conditioning(tensors, self.numbers)

    @staticmethod
    def cat(parts: Iterable["Conditioning"]) -> "Conditioning":
        """Concatenates the rows of the conditions. Shorter texts are padded with zeros, which the mask excludes.

        Raises:
            InputError: there is no condition, or they differ in their tensors, numbers or shapes. Only the number of
                text tokens may differ.
        """
        conditions = list(parts)
        if not conditions:
            raise InputError("there is no condition to concatenate; give at least one.", parameter="conditioning")
        first = conditions[0]
        if any(set(p.tensors) - {TEXT_MASK} != set(first.tensors) - {TEXT_MASK} for p in conditions) or any(
            dict(p.numbers) != dict(first.numbers) for p in conditions
        ):
            raise InputError(
                f"conditions with the tensors {_named(conditions)} cannot stand in one batch; they must have the same "
                "tensors and numbers.",
                parameter="conditioning",
            )
        if len(conditions) == 1:
            return first
        conditions = _padded(conditions)
        for name in conditions[0].tensors:
            if len(shapes := {tuple(p.tensors[name].shape[1:]) for p in conditions}) > 1:
                raise InputError(
                    f"{name} with the shapes {' and '.join(map(str, sorted(shapes)))} cannot stand in one batch; use "
                    "conditions of one model.",
                    parameter="conditioning",
                )
        return first._with({name: torch.cat([p.tensors[name] for p in conditions]) for name in conditions[0].tensors})


def equal_rows(a: Conditioning, b: Conditioning) -> Tensor:
    """Returns which rows of two conditions of the same tensors are equal to the bit, bool [N]; padding does not count.

    Raises:
        InputError: as for ``Conditioning.cat``.
    """
    both = [tensor.chunk(2) for tensor in Conditioning.cat([a, b]).tensors.values()]
    return torch.stack([(one == other).reshape(len(one), -1).all(1) for one, other in both]).all(0)


def _named(parts: Sequence[Conditioning]) -> str:
    return " and ".join(dict.fromkeys(", ".join(sorted(p.tensors)) or "nothing" for p in parts))


def _padded(parts: Sequence[Conditioning]) -> list[Conditioning]:
    """Pads the texts to the longest, and adds masks if texts were padded or if any of the conditions has a mask."""
    texts = [p.tensors[TEXT] for p in parts if TEXT in p]
    if not texts:
        return list(parts)
    longest = max(t.shape[1] for t in texts)
    masked = any(TEXT_MASK in p for p in parts) or any(t.shape[1] < longest for t in texts)
    if not masked:
        return list(parts)
    out: list[Conditioning] = []
    for part, text in zip(parts, texts, strict=True):
        missing = longest - text.shape[1]
        mask = part.tensors.get(TEXT_MASK, torch.ones(text.shape[:2], dtype=torch.bool, device=text.device))
        out.append(
            part.replace(
                text=torch.nn.functional.pad(text, (0, 0, 0, missing)),
                text_mask=torch.nn.functional.pad(mask, (0, missing)),
            )
        )
    return out


@dataclass(frozen=True, eq=False)
class PromptConditioning:
    """The two conditions of classifier-free guidance.

    Args:
        cond: the condition that the samples should satisfy.
        uncond: the condition that guidance leads away from: the empty prompt, a negative prompt or the null class. None
            if the model has no such condition; then the guidance weight can only be 1.
    """

    cond: Conditioning = field(default_factory=Conditioning)
    uncond: Conditioning | None = None

    def __getitem__(self, which: slice | Sequence[int] | Tensor) -> "PromptConditioning":
        """Returns the rows that ``which`` selects, of both conditions."""
        return self._both(lambda c: c[which])

    def repeat(self, times: int) -> "PromptConditioning":
        """Repeats every row of both conditions ``times`` times; the copies of a row are neighbours."""
        return self._both(lambda c: c.repeat(times))

    def to(self, device: torch.device | str) -> "PromptConditioning":
        """Copies the tensors of both conditions to a device."""
        return self._both(lambda c: c.to(device))

    def _both(self, change: Callable[[Conditioning], Conditioning]) -> "PromptConditioning":
        return PromptConditioning(change(self.cond), None if self.uncond is None else change(self.uncond))

    @staticmethod
    def cat(parts: Iterable["PromptConditioning"]) -> "PromptConditioning":
        """Concatenates the rows of both conditions; see ``Conditioning.cat``.

        Raises:
            InputError: as for ``Conditioning.cat``, or only some of the parts have an unconditional condition.
        """
        pairs = list(parts)
        unconds = [p.uncond for p in pairs if p.uncond is not None]
        if len(unconds) not in (0, len(pairs)):
            raise InputError(
                "some have an unconditional branch and others do not; they cannot stand in one batch.",
                parameter="conditioning",
            )
        return PromptConditioning(
            Conditioning.cat(p.cond for p in pairs), Conditioning.cat(unconds) if unconds else None
        )
