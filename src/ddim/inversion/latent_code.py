"""LatentCode: all that is needed to come back, as a value that can be saved."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import DDIMError, DDIMWarning, InputError, is_number, is_range, is_texts, is_whole
from .._utils.foreign import first_line, told
from .._utils.temporary import remove_stale, temporary_beside
from ..core.grid import Grid
from ..core.path import Node

FORMAT = "ddim.latent-code"
VERSION = 3
READABLE = (1, 2, 3)
HOLD = "hold"
"""In ``LatentCode.settings``: how x0 was held, ``Hold.options``; absent where it was not."""
WORDS = ("words", "null")
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class LatentCode:
    """Where images lie on the noisy end of a grid, and how they got there.

    Attributes:
        state: the solver's whole state: named tensors [N, ...]. Exactness belongs to all of it. Floats at ``grid[0]``;
            of a reversible solver int64 at its ``first`` node, on its lattice.
        grid: the nodes that were walked.
        method: the inversion's name.
        solver: the name of the solver that comes forward again.
        options: the solver's options.
        settings: the inversion's own, for the record; and ``hold``, how x0 was held on the way back and is to be on the
            way forward (``prediction.Hold.options``), where it was.
        model: the model's name.
        fingerprint: of the model's config and weights; see ``Model.fingerprint``.
        dtype: what the network computed in; in another one it does not come back exactly.
        cond: tensors that condition the model, [N, ...]: class labels; embedded prompts (``words``) and what stands
            for no prompt (``null``).
        extras: what a method keeps for the way forward, [N, S, ...], entry i for the step from ``grid[i]``: ``null``
            (tuned embeddings), ``noise`` (noise maps), ``pivot`` (where the step must end), and ``end`` [N, 1, ...]
            (where the last one must).
        prompts: one an image; empty for a model without text.
        negative: the prompt behind ``cond["null"]``.
        guidance: ``Guidance.options`` for the way forward; empty for a model without text.
    """

    state: Mapping[str, Tensor]
    grid: Grid
    method: str
    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    fingerprint: str = ""
    dtype: str = "float32"
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    negative: str = ""
    guidance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def x(self) -> Tensor:
        """The latent itself, floats [N, ...]; the rest of the state is needed to come back exactly."""
        return self.floats["x"]

    @property
    def floats(self) -> Mapping[str, Tensor]:
        """The state as floats: what a reversible solver keeps as integers of its lattice is read."""
        from ..solvers import ReversibleSolver, make_solver

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

        def taken(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor[rows] for name, tensor in group.items()}

        return replace(
            self,
            state=taken(self.state),
            cond=taken(self.cond),
            extras=taken(self.extras),
            prompts=self.prompts[which],
        )

    def _other_condition(self, wanted: Mapping[str, Sequence[int]]) -> tuple[str, str] | None:
        """What the code is conditioned by and what is wanted, in words; None where they are the same."""
        had = {name: tuple(tensor.shape[1:]) for name, tensor in self.cond.items()}
        if "null" in self.extras:  # of every step
            had["null"] = tuple(self.extras["null"].shape[2:])
        want = {name: tuple(shape) for name, shape in wanted.items()}
        unguided = self.guidance.get("weight", 1) == 1  # asks for no ``null``
        same = had == want or (unguided and had == {k: v for k, v in want.items() if k != "null"})
        return None if same else (_condition(had), _condition(want))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the code as safetensors with its settings as JSON metadata; the file appears whole or not at all."""
        from safetensors.torch import save

        groups = {"state": self.state, "cond": self.cond, "extras": self.extras}
        tensors = {f"{g}.{k}": v.detach().cpu().contiguous() for g, kv in groups.items() for k, v in kv.items()}
        tensors["grid"] = torch.tensor([[n.t, n.alpha, n.sigma] for n in self.grid], dtype=torch.float64)
        about = {
            "format": FORMAT,
            "version": VERSION,
            "spacing": self.grid.spacing,
            "method": self.method,
            "solver": self.solver,
            "options": dict(self.options),
            "settings": dict(self.settings),
            "model": self.model,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "prompts": list(self.prompts),
            "negative": self.negative,
            "guidance": dict(self.guidance),
        }
        return write_whole(path, save(tensors, metadata={"ddim": json.dumps(about)}))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "LatentCode":
        """A code from a file that ``save`` wrote; bit for bit what was saved.

        Raises:
            InputError: no such file, a corrupt one, or one that holds something else.
        """
        about, tensors = _read(Path(path))
        grid = _grid(path, tensors.pop("grid"), about["spacing"])
        groups: dict[str, dict[str, Tensor]] = {"state": {}, "cond": {}, "extras": {}}
        for name, tensor in tensors.items():
            group, _, key = name.partition(".")
            if group not in groups or not key:
                raise InputError(f"{path} holds a tensor {name!r}, which no latent code has.", parameter="path")
            groups[group][key] = tensor
        if {"x", "ahead"} <= set(groups["state"]):  # versions 1 and 2 kept a two-node solver's state a node earlier
            groups["state"] = {"x": groups["state"]["ahead"], "before": groups["state"]["x"]}
        if "x" not in groups["state"]:
            raise InputError(f"{path} holds no latent; it is not a code that ddim can replay.", parameter="path")
        shape = groups["state"]["x"].shape
        if shape[:1] == (0,):
            raise InputError(f"{path} is of no image; it is not a code that ddim can replay.", parameter="path")
        whole = all(v.shape == shape for v in groups["state"].values()) and _one_kind(groups["state"], about["solver"])
        others = [*groups["cond"].values(), *groups["extras"].values()]
        counts = {"null": grid.steps, "noise": grid.steps, "pivot": grid.steps, "end": 1}
        stepwise = all(v.shape[1:2] == (counts[k],) for k, v in groups["extras"].items() if k in counts)
        like = all(v.shape[2:] == shape[1:] for k, v in groups["extras"].items() if k in ("noise", "pivot", "end"))
        words = [groups[group][key].shape[-2:] for group in ("cond", "extras") for key in WORDS if key in groups[group]]
        spoken = all(v.ndim == 3 for k, v in groups["cond"].items() if k in WORDS) and len(set(words)) < 2
        fits = whole and len(shape) > 1 and 0 not in shape and all(v.shape[:1] == shape[:1] for v in others)
        if not (fits and stepwise and like and spoken):
            raise InputError(
                f"{path} holds tensors that do not fit together; it is not a whole latent code.", parameter="path"
            )
        if len(about.get("prompts", ())) not in (0, *shape[:1]):
            raise InputError(
                f"{path} has {len(about['prompts'])} prompts for {shape[0]} images; it is not whole.", parameter="path"
            )
        begun = about["settings"].get("partial")
        if begun is not None and shape[0] not in (begun["done"], min(begun["done"] + begun["batch"], begun["images"])):
            raise InputError(f"{path} has another number of images than its 'partial' says.", parameter="path")
        return LatentCode(
            grid=grid,
            method=about["method"],
            solver=about["solver"],
            options=about["options"],
            settings=about["settings"],
            model=about["model"],
            fingerprint=about["fingerprint"],
            dtype=about["dtype"],
            prompts=tuple(about.get("prompts", ())),
            negative=about.get("negative", ""),
            guidance=about.get("guidance", {}),
            **groups,
        )

    def check(
        self,
        model_name: str,
        fingerprint: str,
        shape: Sequence[int],
        dtype: str = "float32",
        cond: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Raises InputError for a model of another shape or condition; warns, by name, for another model or dtype.

        Args:
            model_name, fingerprint, dtype: the model's.
            shape: (C, H, W) that it diffuses; 0 stands for any height or width.
            cond: what conditions it, and the shape of that for one image; None leaves it unasked.
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
        if cond is not None and (other := self._other_condition(cond)):
            raise InputError(
                f"it is of {other[0]} (model {self.model!r}), but the model {model_name!r} takes {other[1]}.",
                parameter="code",
            )
        if self.fingerprint and self.fingerprint != fingerprint:
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


def _condition(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """``words 77x768, null 77x768``."""
    each = (f"{name} {'x'.join(map(str, shape))}".strip() for name, shape in sorted(shapes.items(), reverse=True))
    return ", ".join(each) or "no condition"


def _ends(which: slice) -> tuple[Any, Any, Any]:
    return which.start, which.stop, which.step


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import safe_open

    if not path.is_file():
        raise InputError(f"there is no file {path}.", parameter="path")
    try:
        with safe_open(str(path), framework="pt") as f:
            metadata = f.metadata() or {}
            if "ddim" not in metadata:
                raise InputError(
                    f"{path} is a safetensors file, but not a latent code that ddim wrote.", parameter="path"
                )
            about = json.loads(metadata["ddim"])
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except InputError:
        raise
    except Exception as error:  # a format inside a format, each with errors of its own
        raise InputError(
            f"{path} cannot be read as a latent code, which invert makes of a picture ({first_line(error)}).",
            parameter="path",
        ) from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(f"{path} is a safetensors file, but not a latent code that ddim wrote.", parameter="path")
    if not is_whole(about.get("version")) or about["version"] not in READABLE:
        raise InputError(
            f"{path} has format version {about.get('version')}; this ddim reads versions 1 to 3.", parameter="path"
        )
    keys = {"spacing", "method", "solver", "options", "settings", "model", "fingerprint", "dtype"}
    if missing := sorted(keys - set(about)) or (["grid"] if "grid" not in tensors else []):
        raise InputError(f"{path} lacks {', '.join(missing)}; it is not a whole latent code.", parameter="path")
    wrong = [k for k in keys if not isinstance(about[k], dict if k in ("options", "settings") else str)]
    good = {
        "prompts": isinstance(about.get("prompts", []), list) and is_texts(about.get("prompts", [])),
        "negative": isinstance(about.get("negative", ""), str),
        "guidance": _is_guidance(about.get("guidance", {})),
        "dtype": isinstance(about["dtype"], str) and isinstance(getattr(torch, about["dtype"], None), torch.dtype),
        "options": isinstance(about["options"], dict) and all(map(_is_plain, about["options"].values())),
        "settings": isinstance(about["settings"], dict) and _are_settings(about["settings"]),
    }
    wrong += [key for key, fine in good.items() if not fine]
    wrong += [f"tensor {name}" for name, tensor in tensors.items() if not _is_sound(name, tensor)]
    if wrong:
        raise InputError(
            f"{path} has a {wrong[0]} that cannot be read; it is not a whole latent code.", parameter="path"
        )
    return about, tensors


def _grid(path: str | os.PathLike[str], rows: Tensor, spacing: str) -> Grid:
    """The grid of a file; raises InputError where it is none."""
    if rows.ndim != 2 or rows.shape[1] != 3 or not bool((rows >= 0).all()):
        raise InputError(f"{path} has a grid that is no list of (t, alpha, sigma), none below 0.", parameter="path")
    try:
        return Grid(tuple(Node(*row) for row in rows.tolist()), spacing)
    except InputError as error:
        raise InputError(f"{path} has a grid that cannot be walked: {error.message}", parameter="path") from None


def _one_kind(state: Mapping[str, Tensor], solver: str) -> bool:
    """Whether a state is of floats, or of the integers of a reversible solver's lattice."""
    from ..solvers import SOLVERS, ReversibleSolver

    if all(v.is_floating_point() for v in state.values()):
        return True
    kind = SOLVERS.get(solver)
    keys = kind.keys if isinstance(kind, type) and issubclass(kind, ReversibleSolver) else ()
    return set(state) == set(keys) and {v.dtype for v in state.values()} == {torch.int64}


def _is_sound(name: str, tensor: Tensor) -> bool:
    """Whether a tensor's numbers can be what they stand for: whole for labels, and finite floats for all else."""
    if name == "cond.labels":
        return tensor.dtype == torch.int64 and tensor.ndim == 1
    if tensor.dtype in _FLOATS:
        # while a method tunes, the least loss so far may be infinite
        return name.startswith("extras.resume.") or bool(torch.isfinite(tensor).all())
    if name.startswith("state."):  # on a reversible solver's lattice
        from ..solvers.lattice import LARGEST

        return tensor.dtype == torch.int64 and bool(((tensor > -LARGEST) & (tensor < LARGEST)).all())
    return tensor.dtype in (torch.int64, torch.bool) and name.startswith(("cond.", "extras.resume."))


def _is_guidance(value: Any) -> bool:
    """Whether ``Guidance.of`` can read it."""
    if not isinstance(value, dict) or not set(value) <= {"weight", "rescale", "interval"}:
        return False
    low, high = value["interval"] if is_range(value.get("interval")) else (0.0, 1.0)
    return not value or (
        is_number(value.get("weight"))
        and is_number(value.get("rescale", 0.0))
        and 0 <= value.get("rescale", 0.0) <= 1
        and is_range(value.get("interval", (0.0, 1.0)))
        and 0 <= low < high <= 1
    )


def _is_plain(value: Any) -> bool:
    """Whether a value can be an option: a number, a text, yes or no, or nothing."""
    return value is None or isinstance(value, (str, bool)) or is_number(value)


def _are_settings(value: Mapping[str, Any]) -> bool:
    """Whether these can be an inversion's, with how far an interrupted run came."""
    begun = value.get("partial", dict.fromkeys(("images", "done", "steps", "batch"), 1))
    counted = isinstance(begun, dict) and set(begun) == {"images", "done", "steps", "batch"}
    counted = counted and all(is_whole(v) and v >= 0 for v in begun.values())
    if counted and "partial" in value:
        counted = begun["done"] < begun["images"] and begun["batch"] > 0
    return counted and all(_is_plain(v) for k, v in value.items() if k not in ("partial", HOLD))


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """Writes bytes under a temporary name beside the target and renames: whole or not at all.

    A process's first file in a folder removes what killed processes left there.

    Raises:
        DDIMError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    target = Path(path)
    temporary = temporary_beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _tidy(os.path.abspath(target.parent))
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise DDIMError(f"{target} could not be written: {told(error)}") from None
    finally:  # gone already when all went well; also after Ctrl-C
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target


@cache
def _tidy(folder: str) -> None:
    remove_stale(Path(folder))
