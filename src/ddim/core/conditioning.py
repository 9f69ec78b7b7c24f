"""What a network is conditioned by, as a value: named tensors, one row a sample."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._utils.errors import InputError

TEXT, TEXT_MASK, POOLED, LABELS = "text", "text_mask", "pooled", "labels"
"""Names of tensors: embedded tokens [N, L, D], which of them count [N, L], an embedding of the whole prompt [N, D],
class labels [N]."""
ASKED_FOR = (TEXT, TEXT_MASK, POOLED, LABELS)
"""Those that say what is to be seen; others, such as sizes, are facts of the picture."""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """One condition for each of N samples.

    Args:
        tensors: by name, [N, ...] each; none for an unconditional model.
        numbers: whole numbers that go with them and are the same for all rows.

    Raises:
        InputError: tensors of different numbers of rows.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    numbers: Mapping[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        if len(counts := {len(tensor) for tensor in self.tensors.values()}) > 1:
            raise InputError(f"its tensors have {sorted(counts)} rows; they must agree.", parameter="conditioning")

    @property
    def rows(self) -> int | None:
        """N; None without tensors, which goes with any number of samples."""
        return next((len(tensor) for tensor in self.tensors.values()), None)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, which: slice | Sequence[int] | Tensor) -> "Conditioning":
        """Some of the rows."""
        return self._with({name: tensor[which] for name, tensor in self.tensors.items()})

    def repeat(self, times: int) -> "Conditioning":
        """Every row that many times, next to itself."""
        return self._with({name: tensor.repeat_interleave(times, 0) for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str) -> "Conditioning":
        """The same on another device."""
        return self._with({name: tensor.to(device) for name, tensor in self.tensors.items()})

    def replace(self, **tensors: Tensor) -> "Conditioning":
        """Other tensors in place of those of the same names."""
        return self._with({**self.tensors, **tensors})

    def _with(self, tensors: Mapping[str, Tensor]) -> "Conditioning":
        return Conditioning(tensors, self.numbers)

    @staticmethod
    def cat(parts: Iterable["Conditioning"]) -> "Conditioning":
        """The rows of several, one after the other; shorter texts are padded with zeros, which their mask leaves out.

        Raises:
            InputError: no condition, or some of different structure or sizes; only the length of texts may differ.
        """
        several = list(parts)
        if not several:
            raise InputError("no condition at all; give at least one.", parameter="conditioning")
        first = several[0]
        if any(set(p.tensors) - {TEXT_MASK} != set(first.tensors) - {TEXT_MASK} for p in several) or any(
            dict(p.numbers) != dict(first.numbers) for p in several
        ):
            raise InputError(
                f"conditions of {_named(several)} cannot stand in one batch; they must have the same parts.",
                parameter="conditioning",
            )
        if len(several) == 1:
            return first
        several = _padded(several)
        for name in several[0].tensors:
            if len(shapes := {tuple(p.tensors[name].shape[1:]) for p in several}) > 1:
                raise InputError(
                    f"{name} of shapes {' and '.join(map(str, sorted(shapes)))} cannot stand in one batch; they must "
                    "be of one model.",
                    parameter="conditioning",
                )
        return first._with({name: torch.cat([p.tensors[name] for p in several]) for name in several[0].tensors})


def _named(parts: Sequence[Conditioning]) -> str:
    return " and ".join(dict.fromkeys(", ".join(sorted(p.tensors)) or "nothing" for p in parts))


def _padded(parts: Sequence[Conditioning]) -> list[Conditioning]:
    """The same with texts of one length, and with masks where that or one of them asks for masks."""
    texts = [p.tensors[TEXT] for p in parts if TEXT in p]
    if not texts:
        return list(parts)
    longest = max(t.shape[1] for t in texts)
    masked = any(TEXT_MASK in p for p in parts) or any(t.shape[1] < longest for t in texts)
    if not masked:
        return list(parts)
    out: list[Conditioning] = []
    for part, text in zip(parts, texts, strict=True):
        lack = longest - text.shape[1]
        mask = part.tensors.get(TEXT_MASK, torch.ones(text.shape[:2], dtype=torch.bool, device=text.device))
        out.append(
            part.replace(
                text=torch.nn.functional.pad(text, (0, 0, 0, lack)),
                text_mask=torch.nn.functional.pad(mask, (0, lack)),
            )
        )
    return out


@dataclass(frozen=True, eq=False)
class PromptConditioning:
    """The two conditions of classifier-free guidance, both whole.

    Args:
        cond: what the samples are to be.
        uncond: what stands for no condition, or what guidance leads away from; None where there is no such thing, and
            then only the weight 1 is possible.
    """

    cond: Conditioning = field(default_factory=Conditioning)
    uncond: Conditioning | None = None

    def __getitem__(self, which: slice | Sequence[int] | Tensor) -> "PromptConditioning":
        """Some of the rows, of both."""
        return self._both(lambda c: c[which])

    def repeat(self, times: int) -> "PromptConditioning":
        """Every row that many times, next to itself, of both."""
        return self._both(lambda c: c.repeat(times))

    def to(self, device: torch.device | str) -> "PromptConditioning":
        """The same on another device."""
        return self._both(lambda c: c.to(device))

    def _both(self, change: Callable[[Conditioning], Conditioning]) -> "PromptConditioning":
        return PromptConditioning(change(self.cond), None if self.uncond is None else change(self.uncond))

    @staticmethod
    def cat(parts: Iterable["PromptConditioning"]) -> "PromptConditioning":
        """The rows of several, one after the other."""
        several = list(parts)
        unconds = [p.uncond for p in several if p.uncond is not None]
        if len(unconds) not in (0, len(several)):
            raise InputError("some of the conditions have no opposite, others do.", parameter="conditioning")
        return PromptConditioning(
            Conditioning.cat(p.cond for p in several), Conditioning.cat(unconds) if unconds else None
        )
