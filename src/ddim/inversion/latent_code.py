"""``LatentCode``, the result of inverting images: all that reconstruction needs, in a form that can be saved."""

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
from ..core.conditioning import TEXT, TEXT_MASK, Conditioning, PromptConditioning
from ..core.grid import Grid
from .extras import TUNED
from .photograph import Crop, Photograph

HOLD, ADAPTERS, QUANTISED = "hold", "adapters", "quantised"
"""Keys of ``LatentCode.settings``: the limit of x0 (``Hold.options``), the LoRA adapters and learned words
(``Model.adapters``), and the classes of quantised layers (``Model.quantised``, joined by commas). They are absent if
the inversion used none."""

STRENGTH, LEFT_OUT = "strength", "left_out"
"""Keys of ``LatentCode.settings``: the strength at which the images were inverted, and the number of steps that it left
out at the noisy end of the grid. They are absent if no strength was given."""

SAMPLED = "sample"
"""The ``LatentCode.method`` of codes that are made from seeds, not by inverting images."""


@dataclass(frozen=True, eq=False)
class LatentCode:
    """The latent code of N images: their state at the noisy end of a grid, and all settings that reconstruct them.

    Attributes:
        state: the complete state of the solver, named tensors [N, ...]. An exact reconstruction needs all of them. They
            are floats at ``grid[0]``; for a reversible solver they are int64 on its lattice, at its ``first`` node.
        grid: the grid to sample on.
        method: the name of the inversion, or ``sample`` for a code that was made from seeds.
        solver: the name of the solver to sample with.
        options: the options of the solver.
        settings: the options of the inversion, as a record; and under ``hold`` the limit of x0 (``Hold.options``) that
            was used, and that sampling must use too. It is absent if x0 was not limited. Under ``strength`` and
            ``left_out``: see ``invert``.
        model: the name of the model.
        fingerprint: a hash of the model's config and weights; see ``Model.fingerprint``.
        dtype: the dtype in which the network computed. With another one, the reconstruction is not exact.
        conditions: both conditions of guidance, N rows each: class labels, embedded prompts and related tensors.
        calls: the network calls of the inversion, for methods that are exact only if they are repeated: the number of
            ``rows`` of the call that each image was in, and its ``place`` among them, int64 [N]. See
            ``inversion.calls``.
        machine: everything else that decides the last bits of a network's output, for these methods; see
            ``inversion.calls.machine_now``.
        extras: tensors that the method stored for sampling, [N, S, ...] with entry i for the step from ``grid[i]``:
            ``uncond_text`` and ``uncond_pooled`` (optimized embeddings), ``noise`` (noise maps), ``pivot`` (the
            samples after each step) and ``asked`` (the same, where the network is called); and [N, 1, ...]: ``end``
            (the sample after the last step) and ``source`` (the image). See ``inversion.extras``.
        prompts: the prompt of each image; empty for a model without text.
        negative: the prompt of the unconditional branch; None if there was none.
        guidance: ``Guidance.options`` to sample with; empty for a model without text or classes.
        sources: the photograph of each image, if the code keeps them (``keep_source`` of ``invert``); otherwise empty.
            ``edit`` pastes its edits into them. Codes that are joined keep them only if every code has its own, and a
            mixture of codes keeps none.
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
    sources: tuple[Photograph, ...] = ()

    def __repr__(self) -> str:
        kept = f", sources={self.sources!r}" if self.sources else ""
        shape, steps = tuple(self.state["x"].shape) if "x" in self.state else (), self.grid.steps
        return f"LatentCode({shape}, method={self.method!r}, steps={steps}, model={self.model!r}{kept})"

    @property
    def crops(self) -> tuple[Crop, ...]:
        """The crops of the sources that the code keeps."""
        return tuple(source.crop for source in self.sources)

    @property
    def x(self) -> Tensor:
        """The latents as floats, [N, ...]. An exact reconstruction needs the rest of the state too."""
        return self.floats["x"]

    @property
    def floats(self) -> Mapping[str, Tensor]:
        """The state as floats. The integers of a reversible solver are converted from its lattice."""
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
        """Returns the code of one image or of a slice of the images, always with a batch dimension.

        Args:
            which: an index or a slice, as for a list. Negative numbers count from the end.

        Raises:
            InputError: ``which`` is neither an integer nor a slice of integers, or the slice selects no image.
            IndexError: there is no image of this index. It ends a ``for`` loop over a code.
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
        # A slice makes views and no copies.
        rows = slice(chosen.start, chosen.stop) if chosen.step == 1 else list(chosen)

        return self._rows(rows, self.prompts[which], self.sources[which])

    def take(self, which: Sequence[int]) -> "LatentCode":
        """Returns the code of the images with these indices, in this order. An index may be repeated.

        Raises:
            InputError: there is no index, or one of an image that does not exist.
        """
        rows = list(which)
        if not rows or not all(is_whole(k) and -len(self) <= k < len(self) for k in rows):
            raise InputError(f"{rows} are not indices of images in a code of {len(self)}.", parameter="which")
        prompts = tuple(self.prompts[k] for k in rows) if self.prompts else ()
        sources = tuple(self.sources[k] for k in rows) if self.sources else ()
        return self._rows(rows, prompts, sources)

    def _rows(self, rows: slice | list[int], prompts: tuple[str, ...], sources: tuple[Photograph, ...]) -> "LatentCode":
        def taken(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor[rows] for name, tensor in group.items()}

        return replace(
            self,
            state=taken(self.state),
            conditions=self.conditions[rows],
            extras=taken(self.extras),
            calls=taken(self.calls),
            prompts=prompts,
            sources=sources,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the code to a safetensors file, with its settings as JSON metadata, and returns the path.

        The file is written completely or not at all.

        Raises:
            DDIMError: the file could not be written.
        """
        from .code_file import write_code

        return write_code(self, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "LatentCode":
        """Reads a code from a file that ``save`` wrote. It equals the saved one bit for bit.

        Raises:
            InputError: the file does not exist, is damaged, or contains something else.
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
        optional: Sequence[str] = (),
        quantised: Sequence[str] = (),
    ) -> None:
        """Checks whether a model can sample from this code, and warns if it is not the model that made the code.

        Args:
            model_name, fingerprint, dtype: the name, fingerprint and dtype of the model.
            shape: the shape (C, H, W) of the model's samples; 0 stands for any height or width.
            conditions: the conditions of one image as the model makes them; None does not check them.
            adapters: ``Model.adapters``.
            optional: names of conditions that the model takes if a code has them.
            quantised: ``Model.quantised``.

        Raises:
            InputError: the code is of an interrupted inversion, or the model has another shape or other conditions.

        Warns:
            DDIMWarning: the code was made with other adapters or quantised layers, by another model, or in another
                dtype.
        """
        if "partial" in self.settings:
            begun = self.settings["partial"]
            raise InputError(
                f"it is of an interrupted run ({begun['done']} of {begun['images']} images done, then step "
                f"{begun['steps']} of {self.grid.steps}); finish it with invert and resume.",
                parameter="code",
            )
        self.check_shape(model_name, shape)
        if conditions is not None:
            self.check_conditions(model_name, conditions, optional)
        had, layers = str(self.settings.get(ADAPTERS, "")), str(self.settings.get(QUANTISED, ""))
        if self.fingerprint != fingerprint and had != adapters:
            warnings.warn(
                f"This code was made with the adapters {had or 'none'}, but the model {model_name!r} has "
                f"{adapters or 'none'}: the reconstruction will differ. LoRAs and learned words are given when a model "
                "is loaded (lora, textual_inversion).",
                DDIMWarning,
                stacklevel=3,
            )
        elif self.fingerprint != fingerprint and layers != ", ".join(quantised):
            warnings.warn(
                f"This code was made with {f'quantised layers ({layers})' if layers else 'no quantised layers'}, but "
                f"the model {model_name!r} has {', '.join(quantised) or 'none'}: the reconstruction will differ.",
                DDIMWarning,
                stacklevel=3,
            )
        elif self.fingerprint and self.fingerprint != fingerprint:
            warnings.warn(
                f"This code was made by the model {self.model!r} ({self.fingerprint[:12]}), not by {model_name!r} "
                f"({fingerprint[:12]}): the reconstruction will differ.",
                DDIMWarning,
                stacklevel=3,
            )
        elif self.dtype != dtype:
            warnings.warn(
                f"This code was made in {self.dtype}, but the model {model_name!r} computes in {dtype}: the "
                f"reconstruction will differ; load the model with dtype {self.dtype!r}.",
                DDIMWarning,
                stacklevel=3,
            )

    def check_shape(self, model_name: str, shape: Sequence[int]) -> None:
        """Raises InputError if the samples of a model have another shape; the arguments are those of ``check``."""
        own = self.state["x"].shape[1:]
        if len(own) != len(shape) or any(want not in (0, have) for want, have in zip(shape, own, strict=True)):
            raise InputError(
                f"it was made by the model {self.model!r}, whose samples have the shape {tuple(own)}, and "
                f"{self._other(model_name)} takes {tuple(n or 'any' for n in shape)}; "
                "use the model that made it.",
                parameter="code",
            )

    def check_conditions(self, model_name: str, wanted: PromptConditioning, optional: Sequence[str] = ()) -> None:
        """Raises InputError if a model has other conditions; ``wanted`` are the ``conditions`` of ``check``."""
        guided = self.guidance.get("weight", 1) != 1  # at weight 1 the unconditional branch is not used
        had, want = _shapes(self.conditions, guided, optional), _shapes(wanted, guided, optional)
        if TUNED in self.extras:  # these embeddings, one per step, replace the unconditional text
            had[f"uncond {TEXT}"] = _shape(self.conditions.cond, TEXT, self.extras[TUNED][:, 0])
        if had != want:
            # Models of one name differ in nothing else that a reader could see.
            shapes = f" ({_condition(had)} and not {_condition(want)})" if model_name == self.model else ""
            raise InputError(
                f"it was made by the model {self.model!r}, which has other conditions than "
                f"{self._other(model_name)}{shapes}; use the model that made it.",
                parameter="code",
            )

    def _other(self, model_name: str) -> str:
        """A model that did not make this code, which may have the same name."""
        return "another model of this name" if model_name == self.model else f"the model {model_name!r}"


def joined_rows(codes: Sequence[LatentCode]) -> dict[str, Any]:
    """The fields ``prompts`` and ``sources`` of codes that are joined; sources only if every code keeps its own."""
    kept = all(code.sources for code in codes)
    return {
        "prompts": tuple(prompt for code in codes for prompt in code.prompts),
        "sources": tuple(source for code in codes for source in code.sources) if kept else (),
    }


def _shapes(conditions: PromptConditioning, guided: bool, without: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors without their rows, by name; of ``uncond`` only if guidance uses it.

    The tensors named in ``without`` are left out.
    """
    branches = [("", conditions.cond)] + ([("uncond ", conditions.uncond)] if conditions.uncond and guided else [])
    named = [(branch, name, c, tensor) for branch, c in branches for name, tensor in c.tensors.items()]
    return {f"{branch}{name}": _shape(c, name, tensor) for branch, name, c, tensor in named if name not in without}


def _shape(condition: Conditioning, name: str, tensor: Tensor) -> tuple[int, ...]:
    """Returns the shape of a tensor without its rows, and without the number of tokens where a mask leaves it free."""
    free = TEXT_MASK in condition and name in (TEXT, TEXT_MASK)
    return tuple(tensor.shape[2 if free else 1 :])


def _condition(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Writes shapes as text, such as ``text 77x768, uncond text 77x768``."""
    return ", ".join(f"{name} {'x'.join(map(str, shape))}".strip() for name, shape in shapes.items()) or "no condition"


def _ends(which: slice) -> tuple[Any, Any, Any]:
    return which.start, which.stop, which.step
