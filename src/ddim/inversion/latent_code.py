"""LatentCode: all that is needed to come back, as a value that can be saved."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import DDIMWarning, InputError, is_whole
from ..core.conditioning import TEXT, PromptConditioning
from ..core.grid import Grid
from .replay import TUNED

HOLD, ADAPTERS = "hold", "adapters"
"""In ``LatentCode.settings``: how x0 was held, ``Hold.options``; the LoRA adapters that acted, ``Model.adapters``.
Absent where there was neither."""


@dataclass(frozen=True, eq=False)
class LatentCode:
    """Where images lie on the noisy end of a grid, and how they got there.

    Attributes:
        state: the solver's whole state: named tensors [N, ...]. Exactness belongs to all of it. Floats at ``grid[0]``;
            of a reversible solver int64 at its ``first`` node, on its lattice.
        grid: the nodes of the way forward.
        method: the inversion's name.
        solver: the name of the solver that comes forward again.
        options: the solver's options.
        settings: the inversion's own, for the record; and ``hold``, how x0 was held on the way back and is to be on the
            way forward (``prediction.Hold.options``), where it was.
        model: the model's name.
        fingerprint: of the model's config and weights; see ``Model.fingerprint``.
        dtype: what the network computed in; in another one it does not come back exactly.
        conditions: both branches of guidance, N rows each: class labels, embedded prompts and what goes with them.
        calls: how the network was asked on the way to noise, for methods that are exact only if it is asked so again:
            ``rows`` of the call that an image was in and its ``place`` there, int64 [N]; see ``CALLS``.
        machine: what else decides the last bits of an answer, for these methods; see ``inversion.calls``.
        extras: what a method keeps for the way forward, [N, S, ...], entry i for the step from ``grid[i]``:
            ``uncond_text`` (tuned embeddings), ``noise`` (noise maps), ``pivot`` (where the step must end), and ``end``
            [N, 1, ...] (where the last one must).
        prompts: one an image; empty for a model without text.
        negative: the prompt of the unconditional branch; None where none was given.
        guidance: ``Guidance.options`` for the way forward; empty for a model without text.
    """

    state: Mapping[str, Tensor]
    grid: Grid
    method: str
    solver: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    model: str = ""
    fingerprint: str = ""
    dtype: str = "float32"
    conditions: PromptConditioning = field(default_factory=PromptConditioning)
    extras: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    calls: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    machine: Mapping[str, Any] = field(default_factory=dict[str, Any])
    prompts: tuple[str, ...] = ()
    negative: str | None = None
    guidance: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def x(self) -> Tensor:
        """The latent itself, floats [N, ...]; the rest of the state is needed to come back exactly."""
        return self.floats["x"]

    @property
    def floats(self) -> Mapping[str, Tensor]:
        """The state as floats: what a reversible solver keeps as integers of its lattice is read."""
        from ..solvers import make_solver
        from ..solvers.lattice import ReversibleSolver

        if self.state["x"].is_floating_point():
            return self.state
        solver = make_solver(self.solver, self.options)
        assert isinstance(solver, ReversibleSolver)
        dtype = torch.float64 if self.dtype == "float64" else torch.float32
        state = solver.on_lattice(self.state, self.grid, solver.first(self.grid), dtype)
        return {key: state.entry(key) for key in state}

    def __len__(self) -> int:
        return len(self.state["x"])

    def __getitem__(self, which: int | slice) -> "LatentCode":
        """The code of one image, or of a slice of them; still with a batch dimension.

        Args:
            which: as for a list: counted from the end where it is negative, slices also by steps and backwards.

        Raises:
            InputError: what is neither a number nor a slice of numbers; a slice without an image.
            IndexError: no such image, so that a loop over a code ends.
        """
        if not isinstance(which, slice) and is_whole(which):
            one = index(which)
            if not -len(self) <= one < len(self):
                raise IndexError(f"There is no image {one} in a code of {len(self)}.")
            which = slice(one % len(self), one % len(self) + 1)
        if not isinstance(which, slice) or not all(n is None or is_whole(n) for n in _ends(which)) or which.step == 0:
            raise InputError(f"{which!r} is neither the number of an image nor a slice of them.", parameter="which")
        chosen = range(len(self))[which]
        if not chosen:
            shown = ":".join("" if n is None else str(n) for n in _ends(which)[: 2 + (which.step is not None)])
            raise InputError(f"{shown} leaves none of {len(self)} images.", parameter="which")
        rows = slice(chosen.start, chosen.stop) if chosen.step == 1 else list(chosen)  # a view where one will do

        return self._rows(rows, self.prompts[which])

    def take(self, which: Sequence[int]) -> "LatentCode":
        """The code of the images of these numbers, in this order; a number may stand several times.

        Raises:
            InputError: no number at all, or one of an image that is not there.
        """
        rows = list(which)
        if not rows or not all(is_whole(k) and -len(self) <= k < len(self) for k in rows):
            raise InputError(f"{rows} are not numbers of images in a code of {len(self)}.", parameter="which")
        return self._rows(rows, tuple(self.prompts[k] for k in rows) if self.prompts else ())

    def _rows(self, rows: slice | list[int], prompts: tuple[str, ...]) -> "LatentCode":
        def taken(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor[rows] for name, tensor in group.items()}

        return replace(
            self,
            state=taken(self.state),
            conditions=self.conditions[rows],
            extras=taken(self.extras),
            calls=taken(self.calls),
            prompts=prompts,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the code as safetensors with its settings as JSON metadata; the file appears whole or not at all."""
        from .code_file import write_code

        return write_code(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "LatentCode":
        """A code from a file that ``save`` wrote; bit for bit what was saved.

        Raises:
            InputError: no such file, a corrupt one, or one that holds something else.
        """
        from .code_file import read_code

        return read_code(path)

    def check(
        self,
        model_name: str,
        fingerprint: str,
        shape: Sequence[int],
        dtype: str = "float32",
        conditions: PromptConditioning | None = None,
        adapters: str = "",
    ) -> None:
        """Raises InputError for a model of another shape or condition; warns, by name, for another model or dtype.

        Args:
            model_name, fingerprint, dtype: the model's.
            shape: (C, H, W) that it diffuses; 0 stands for any height or width.
            conditions: of one image, as the model makes them; None leaves them unasked.
            adapters: ``Model.adapters``.
        """
        if "partial" in self.settings:
            begun = self.settings["partial"]
            raise InputError(
                f"it is of an interrupted run ({begun['done']} of {begun['images']} images done, then step "
                f"{begun['steps']} of {self.grid.steps}); finish it with invert and resume.",
                parameter="code",
            )
        own = self.state["x"].shape[1:]
        if len(own) != len(shape) or any(want not in (0, have) for want, have in zip(shape, own, strict=True)):
            raise InputError(
                f"it is of shape {tuple(own)} (model {self.model!r}), "
                f"but the model {model_name!r} works on {tuple(n or 'any' for n in shape)}.",
                parameter="code",
            )
        if conditions is not None and (other := self._other_condition(conditions)):
            raise InputError(
                f"it is of {other[0]} (model {self.model!r}), but the model {model_name!r} takes {other[1]}.",
                parameter="code",
            )
        had = str(self.settings.get(ADAPTERS, ""))
        if self.fingerprint != fingerprint and had != adapters:
            warnings.warn(
                f"This code was made with the adapters {had or 'none'}, but with the model {model_name!r} act "
                f"{adapters or 'none'}: what comes back will differ.",
                DDIMWarning,
                stacklevel=3,
            )
        elif self.fingerprint and self.fingerprint != fingerprint:
            warnings.warn(
                f"This code was made by the model {self.model!r} ({self.fingerprint[:12]}), not by {model_name!r} "
                f"({fingerprint[:12]}): what comes back will differ.",
                DDIMWarning,
                stacklevel=3,
            )
        elif self.dtype != dtype:
            warnings.warn(
                f"This code was made in {self.dtype}, but the model {model_name!r} computes in {dtype}: what comes "
                f"back will differ; load the model with dtype {self.dtype!r}.",
                DDIMWarning,
                stacklevel=3,
            )

    def _other_condition(self, wanted: PromptConditioning) -> tuple[str, str] | None:
        """What the code is conditioned by and what is wanted, in words; None where they are the same."""
        guided = self.guidance.get("weight", 1) != 1  # else nothing asks for the unconditional branch
        had, want = _shapes(self.conditions, guided), _shapes(wanted, guided)
        if TUNED in self.extras:  # of every step
            had[f"uncond {TEXT}"] = tuple(self.extras[TUNED].shape[2:])
        return None if had == want else (_condition(had), _condition(want))


def _shapes(conditions: PromptConditioning, guided: bool) -> dict[str, tuple[int, ...]]:
    branches = [("", conditions.cond)] + ([("uncond ", conditions.uncond)] if conditions.uncond and guided else [])
    return {f"{branch}{k}": tuple(v.shape[1:]) for branch, c in branches for k, v in c.tensors.items()}


def _condition(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """``text 77x768, uncond text 77x768``."""
    return ", ".join(f"{name} {'x'.join(map(str, shape))}".strip() for name, shape in shapes.items()) or "no condition"


def _ends(which: slice) -> tuple[Any, Any, Any]:
    return which.start, which.stop, which.step
