"""Reads and writes codes as safetensors files, with settings as JSON metadata and a checksum over both."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from .._utils.error_text import first_line
from .._utils.errors import InputError, is_dict, is_number, is_plain, is_range, is_texts, is_whole
from .._utils.files import write_whole
from .._utils.tensors import rows_of
from ..core.conditioning import LABELS, POOLED, TEXT, Conditioning, PromptConditioning
from ..core.grid import Grid
from ..core.guidance import Proximal, SkipLayers
from ..core.path import MOST_LEVELS, Node, description, path_from
from .extras import EXTRAS, TUNED, TUNED_POOLED
from .latent_code import HOLD, LatentCode
from .photograph import MOST_ICC, Photograph, is_packed, packed, unpacked

FORMAT = "ddim.latent-code"
VERSION = 3
READABLE = (1, 2, 3)
MOST_ROWS = 2**16
"""The most rows that a recorded network call may have. A larger number in a file is an error."""
MOST_THREADS = 2**10
"""The most parts or threads that a recorded layout may have. A larger number in a file is an error."""
SOURCE, ICC = "source.", ".icc"
"""A kept source is the tensor ``source.0``, the compressed photograph of image 0, and ``source.0.icc``, its colour
profile. The setting ``sources`` has their sizes and crops. See ``inversion.photograph``."""
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_GROUPS = ("state", "cond", "uncond", "extras", "calls")
_RENAMED = {
    "cond.words": "cond.text",
    "cond.null": "uncond.text",
    "extras.null": f"extras.{TUNED}",
    "extras.resume.null": f"extras.resume.{TUNED}",
}
"""The names of tensors in versions 1 and 2 of the format, with their names in version 3."""


def write_code(code: LatentCode, path: str | os.PathLike[str]) -> Path:
    """Writes a code to a file; see ``LatentCode.save``."""
    return write_whole(path, code_bytes(code))


def code_bytes(code: LatentCode) -> bytes:
    """Returns what the file of a code contains."""
    from safetensors.torch import save

    uncond = code.conditions.uncond
    groups: dict[str, Mapping[str, Tensor]] = {
        "state": code.state,
        "cond": code.conditions.cond.tensors,
        "uncond": {} if uncond is None else uncond.tensors,
        "extras": code.extras,
        "calls": code.calls,
    }
    tensors = _without_shared_memory(
        {f"{g}.{k}": v.detach().cpu().contiguous() for g, kv in groups.items() for k, v in kv.items()}
    )
    tensors["grid"] = torch.tensor([[n.t, n.alpha, n.sigma] for n in code.grid], dtype=torch.float64)
    if code.grid.inner:
        inner = [[i, part, n.t, n.alpha, n.sigma] for (i, part), n in sorted(code.grid.inner.items())]
        tensors["inner"] = torch.tensor(inner, dtype=torch.float64)
    path_about, path_tensors = ({}, {}) if code.grid.path is None else description(code.grid.path)
    tensors |= {f"path.{key}": tensor for key, tensor in path_tensors.items()}
    sources, source_tensors = _packed_sources(code.sources)
    tensors |= source_tensors
    about: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "spacing": code.grid.spacing,
        "path": path_about,
        "method": code.method,
        "solver": code.solver,
        "options": dict(code.options),
        "settings": dict(code.settings),
        "model": code.model,
        "fingerprint": code.fingerprint,
        "dtype": code.dtype,
        "machine": dict(code.machine),
        "numbers": dict(code.conditions.cond.numbers),
        "prompts": list(code.prompts),
        "negative": code.negative,
        "guidance": dict(code.guidance),
        **({"sources": sources} if sources else {}),
    }
    about["checksum"] = checksum(about, tensors)
    return save(tensors, metadata={"ddim": json.dumps(about)})


def _packed_sources(sources: Sequence[Photograph]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Returns the setting ``sources`` and the tensors of the photographs that a code keeps."""
    about: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for k, source in enumerate(sources):
        described, tensors[f"{SOURCE}{k}"] = packed(source)
        about.append(described)
        if source.icc:
            tensors[f"{SOURCE}{k}{ICC}"] = torch.frombuffer(bytearray(source.icc), dtype=torch.uint8)
    return about, tensors


def _without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors that share memory, which safetensors refuses. Two branches of guidance may share a tensor."""
    seen, out = set[int](), dict[str, Tensor]()
    for name, tensor in tensors.items():
        where = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if where in seen else tensor
        seen.add(where)
    return out


def checksum(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of the settings (without the checksum) and of the tensors with their names and shapes."""
    settings = {key: value for key, value in about.items() if key != "checksum"}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)}".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_code(path: str | os.PathLike[str]) -> LatentCode:
    """Reads a code from a file; see ``LatentCode.load``."""
    return _code_of(path, *_read(Path(path)))


def code_from_bytes(data: bytes, name: str = "the code") -> LatentCode:
    """Returns the code of which ``code_bytes`` returned these bytes.

    Args:
        data: the content of a code's file.
        name: what an error calls it.

    Raises:
        InputError: they are not a code, or are damaged.
    """
    return _code_of(name, *_read(Path(name), data))


def _code_of(path: str | os.PathLike[str], about: Mapping[str, Any], tensors: dict[str, Tensor]) -> LatentCode:
    """Makes a code of the settings and tensors of a file."""
    grid = _grid(path, tensors, about)
    sources = _sources(path, tensors, about)
    groups = _grouped(path, tensors)
    _check_complete(path, about, groups, grid)
    numbers = about.get("numbers", {})
    uncond = Conditioning(groups["uncond"], numbers) if groups["uncond"] else None
    return LatentCode(
        state=groups["state"],
        grid=grid,
        method=about["method"],
        solver=about["solver"],
        options=about["options"],
        settings=about["settings"],
        model=about["model"],
        fingerprint=about["fingerprint"],
        dtype=about["dtype"],
        conditions=PromptConditioning(Conditioning(groups["cond"], numbers), uncond),
        extras=groups["extras"],
        calls=groups["calls"],
        machine=about.get("machine", {}),
        prompts=tuple(about.get("prompts", ())),
        negative=about.get("negative"),
        guidance=about.get("guidance", {}),
        sources=sources,
    )


def _grouped(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sorts the tensors into groups, with the names of version 3."""
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in _GROUPS}
    for name, tensor in tensors.items():
        group, _, key = _RENAMED.get(name, name).partition(".")
        if group not in groups or not key:
            raise InputError(f"{path} holds a tensor {name!r}, which no latent code has.", parameter="path")
        groups[group][key] = tensor
    state = groups["state"]
    if {"x", "ahead"} <= set(state):  # versions 1 and 2 stored the state one node earlier
        groups["state"] = {"x": state["ahead"], "before": state["x"]}
    return groups


def _check_complete(
    path: str | os.PathLike[str], about: Mapping[str, Any], groups: Mapping[str, Mapping[str, Tensor]], grid: Grid
) -> None:
    """Raises InputError if tensors are missing, or do not fit each other, the grid or the settings."""
    state, cond, uncond, extras, calls = (groups[name] for name in _GROUPS)
    if "x" not in state:
        raise InputError(f"{path} holds no latent; it is not a code that ddim can replay.", parameter="path")
    shape = state["x"].shape
    if shape[:1] == (0,):
        raise InputError(f"{path} contains no image; it is not a code that ddim can replay.", parameter="path")
    every = [v for group in groups.values() for v in group.values()]
    known = [(EXTRAS[name], tensor) for name, tensor in extras.items() if name in EXTRAS]
    texts = [group[TEXT] for group in (cond, uncond) if TEXT in group]
    sizes = {t.shape[-2:] for t in [*texts, *([extras[TUNED]] if TUNED in extras else [])]}
    checks = (
        all(v.shape == shape for v in state.values()) and _has_one_dtype_kind(state, about["solver"]),
        len(shape) > 1 and 0 not in shape and all(v.shape[:1] == shape[:1] for v in every),
        all(v.shape[1:2] == (grid.steps if extra.per_step else 1,) for extra, v in known),
        all(v.shape[2:] == shape[1:] for extra, v in known if extra.sample),
        all(t.ndim == 3 for t in texts) and len(sizes) < 2,
        not uncond or {k: v.shape for k, v in uncond.items()} == {k: v.shape for k, v in cond.items()},
        TUNED not in extras or TEXT in uncond,
        TUNED_POOLED not in extras
        or (TUNED in extras and POOLED in uncond and extras[TUNED_POOLED].shape[2:] == uncond[POOLED].shape[1:]),
        _are_calls(calls),
    )
    if not all(checks):
        raise InputError(
            f"{path} holds tensors that do not fit together; it is not a whole latent code.", parameter="path"
        )
    if len(about.get("prompts", ())) not in (0, *shape[:1]):
        raise InputError(
            f"{path} has {len(about['prompts'])} prompts for {shape[0]} images; it is not whole.", parameter="path"
        )
    if len(about.get("sources", ())) not in (0, *shape[:1]):
        raise InputError(
            f"{path} has {len(about['sources'])} sources for {shape[0]} images; it is not whole.", parameter="path"
        )
    begun = about["settings"].get("partial")
    if begun is not None and shape[0] not in (begun["done"], min(begun["done"] + begun["batch"], begun["images"])):
        raise InputError(f"{path} has another number of images than its setting 'partial' says.", parameter="path")


def _are_calls(calls: Mapping[str, Tensor]) -> bool:
    """Whether these tensors are a valid record of network calls: for each image the rows and its place."""
    if not calls:
        return True
    if set(calls) != {"rows", "place"} or any(v.ndim != 1 or v.dtype != torch.int64 for v in calls.values()):
        return False
    rows, place = calls["rows"], calls["place"]
    return rows.shape == place.shape and bool(((place >= 0) & (place < rows) & (rows <= MOST_ROWS)).all())


def _content(path: Path, data: bytes | None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Returns the metadata and the tensors of a safetensors file, or of the bytes of one."""
    if data is not None:
        from safetensors.torch import load

        tensors = load(data)  # first, because it checks the header
        header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return header.get("__metadata__", {}), tensors
    from safetensors import safe_open

    with cast("AbstractContextManager[Any]", safe_open(str(path), framework="pt")) as f:
        metadata: dict[str, str] = f.metadata() or {}
        names = f.keys() if "ddim" in metadata else ()  # a checkpoint of gigabytes is not read
        return metadata, {name: f.get_tensor(name) for name in names}


def _read(path: Path, data: bytes | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads the settings and tensors of a file, and checks each by itself. Raises InputError if one is invalid."""
    if data is None and not path.is_file():
        raise InputError(f"there is no file {path}.", parameter="path")
    try:
        metadata, tensors = _content(path, data)
        if "ddim" not in metadata:
            raise InputError(f"{path} is a safetensors file, but not a latent code that ddim wrote.", parameter="path")
        about: Any = json.loads(metadata["ddim"])
    except InputError:
        raise
    except Exception as error:  # safetensors and json raise errors of many types
        damage = f", or it is damaged ({first_line(error)})" if ".safetensors" in path.name else ""
        raise InputError(
            f"{path} is not a latent code{damage}; ddim invert (ddim.invert in Python) makes a code of an image.",
            parameter="path",
        ) from None
    if not is_dict(about) or about.get("format") != FORMAT:
        raise InputError(f"{path} is a safetensors file, but not a latent code that ddim wrote.", parameter="path")
    if not is_whole(about.get("version")) or about["version"] not in READABLE:
        raise InputError(
            f"{path} has format version {about.get('version')}; this ddim reads versions 1 to 3.", parameter="path"
        )
    keys = {"spacing", "method", "solver", "options", "settings", "model", "fingerprint", "dtype"}
    if about["version"] == VERSION:
        keys |= {"checksum"}
    if missing := sorted(keys - set(about)) or (["grid"] if "grid" not in tensors else []):
        raise InputError(f"{path} lacks {', '.join(missing)}; it is not a whole latent code.", parameter="path")
    if about["version"] == VERSION and about["checksum"] != checksum(about, tensors):
        raise InputError(
            f"{path} has been changed since it was written, or is damaged: its checksum differs; copy it again from "
            "where it was made.",
            parameter="path",
        )
    wrong = [repr(k) for k in keys if not isinstance(about[k], dict if k in ("options", "settings") else str)]
    good = {
        "prompts": isinstance(about.get("prompts", []), list) and is_texts(about.get("prompts", [])),
        "negative": isinstance(about.get("negative"), (str, type(None))),
        "machine": _is_machine(about.get("machine", {})),
        "path": is_dict(about.get("path", {})) and all(map(is_plain, about.get("path", {}).values())),
        "numbers": is_dict(about.get("numbers", {})) and all(map(is_whole, about.get("numbers", {}).values())),
        "guidance": _is_guidance(about.get("guidance", {})),
        "sources": isinstance(about.get("sources", []), list) and all(map(is_packed, about.get("sources", []))),
        "dtype": isinstance(about["dtype"], str) and isinstance(getattr(torch, about["dtype"], None), torch.dtype),
        "options": is_dict(about["options"]) and all(map(is_plain, about["options"].values())),
        "settings": is_dict(about["settings"]) and _are_settings(about["settings"]),
    }
    wrong += [repr(key) for key, is_good in good.items() if not is_good]
    wrong += [f"tensor {name!r}" for name, tensor in tensors.items() if not _is_sound(name, tensor)]
    if wrong:
        raise InputError(f"{path} is not a whole latent code: its {wrong[0]} cannot be read.", parameter="path")
    return about, tensors


def _grid(path: str | os.PathLike[str], tensors: dict[str, Tensor], about: Mapping[str, Any]) -> Grid:
    """Removes the tensors of the grid from ``tensors`` and returns the grid. Raises InputError if it is invalid."""
    rows, inner = tensors.pop("grid"), tensors.pop("inner", torch.zeros(0, 5, dtype=torch.float64))
    described = {name.removeprefix("path."): tensors.pop(name) for name in list(tensors) if name.startswith("path.")}
    if rows.ndim != 2 or rows.shape[1] != 3 or not bool((rows >= 0).all()):
        raise InputError(f"{path} has a grid that is no list of (t, alpha, sigma) of at least 0.", parameter="path")
    if inner.ndim != 2 or inner.shape[1] != 5 or not bool((inner >= 0).all()):
        raise InputError(f"{path} has nodes inside its steps that cannot be read.", parameter="path")
    nodes = {(int(i), part): Node(*node) for i, part, *node in rows_of(inner)}
    try:
        own = path_from(about["path"], described) if about.get("path") and about["version"] == VERSION else None
        return Grid(tuple(Node(*row) for row in rows_of(rows)), about["spacing"], own, nodes)
    except InputError as error:
        raise InputError(f"{path} has a grid that cannot be used: {error.message}", parameter="path") from None


def _sources(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], about: Mapping[str, Any]
) -> tuple[Photograph, ...]:
    """Removes the kept sources from ``tensors`` and returns them. Raises InputError if one is missing or damaged."""
    kept = {name: tensors.pop(name) for name in list(tensors) if name.startswith(SOURCE)}
    sources: list[Photograph] = []
    for k, described in enumerate(about.get("sources", [])):
        data, icc = kept.pop(f"{SOURCE}{k}", None), kept.pop(f"{SOURCE}{k}{ICC}", None)
        found = None if data is None else unpacked(described, data, b"" if icc is None else icc.numpy().tobytes())
        if found is None:
            raise InputError(
                f"{path} has no whole photograph {k} in 'sources'; it is not a whole latent code.", parameter="path"
            )
        sources.append(found)
    if kept:
        raise InputError(f"{path} holds a tensor {next(iter(kept))!r}, which no latent code has.", parameter="path")
    return tuple(sources)


def _has_one_dtype_kind(state: Mapping[str, Tensor], solver: str) -> bool:
    """Whether all entries of a state are floats, or all entries of a reversible solver and integers."""
    from ..solvers import SOLVERS
    from ..solvers.lattice import ReversibleSolver

    if all(v.is_floating_point() for v in state.values()):
        return True
    kind = SOLVERS.get(solver)
    keys = kind.keys if kind is not None and issubclass(kind, ReversibleSolver) else ()
    return set(state) == set(keys) and {v.dtype for v in state.values()} == {torch.int64}


def _is_sound(name: str, tensor: Tensor) -> bool:
    """Whether a tensor has a dtype and values that are possible for its name.

    Class labels are int64, states are finite floats or integers of a lattice, and other floats are finite.
    """
    if name in (f"cond.{LABELS}", f"uncond.{LABELS}"):
        return tensor.dtype == torch.int64 and tensor.ndim == 1
    if name == "path.alpha_bar":
        return tensor.dtype == torch.float64 and tensor.ndim == 1 and len(tensor) <= MOST_LEVELS
    if name.startswith(SOURCE):
        return tensor.dtype == torch.uint8 and tensor.ndim == 1 and (ICC not in name or len(tensor) <= MOST_ICC)
    if tensor.dtype in _FLOATS:
        # An interrupted null-text inversion may store an infinite loss, of images before their first sweep.
        return name.startswith("extras.resume.") or bool(torch.isfinite(tensor).all())
    if name.startswith("state."):  # on a reversible solver's lattice
        from ..solvers.lattice import LARGEST

        return tensor.dtype == torch.int64 and bool(((tensor > -LARGEST) & (tensor < LARGEST)).all())
    return tensor.dtype in (torch.int64, torch.bool) and name.startswith(
        ("cond.", "uncond.", "calls.", "extras.resume.")
    )


def _is_guidance(value: Any) -> bool:
    """Whether ``Guidance.of`` accepts this value."""
    if not is_dict(value) or not set(value) <= {"weight", "rescale", "interval", "embedded", "skip", "proximal"}:
        return False
    for key, kind in (("skip", SkipLayers), ("proximal", Proximal)):
        if key in value:
            try:
                kind.of(value[key])
            except InputError:
                return False
    low, high = value["interval"] if is_range(value.get("interval")) else (0.0, 1.0)
    return not value or (
        is_number(value.get("weight"))
        and is_number(value.get("rescale", 0.0))
        and 0 <= value.get("rescale", 0.0) <= 1
        and is_range(value.get("interval", (0.0, 1.0)))
        and 0 <= low < high <= 1
        and (value.get("embedded") is None or is_number(value["embedded"]))
    )


def _is_machine(value: Any) -> bool:
    """Whether this value is a valid ``LatentCode.machine``."""
    if not is_dict(value) or not all(map(is_plain, value.values())):
        return False
    counts, rows = [value.get(key, 0) for key in ("workers", "threads")], value.get("min_rows", 1)
    laid_out = all(is_whole(n) and 0 < n <= MOST_THREADS for n in counts) and is_whole(rows) and rows > 0
    laid_out = laid_out and isinstance(value.get("batched_cfg"), bool)
    return laid_out or "workers" not in value


def _are_settings(value: Mapping[str, Any]) -> bool:
    """Whether these are valid settings of an inversion, and if ``partial`` is among them, a valid progress."""
    begun = value.get("partial", dict.fromkeys(("images", "done", "steps", "batch"), 1))
    counted = is_dict(begun) and set(begun) == {"images", "done", "steps", "batch"}
    counted = counted and all(is_whole(v) and v >= 0 for v in begun.values())
    if counted and "partial" in value:
        counted = begun["done"] < begun["images"] and begun["batch"] > 0
    return counted and all(is_plain(v) for k, v in value.items() if k not in ("partial", HOLD))
