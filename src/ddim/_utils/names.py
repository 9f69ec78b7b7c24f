"""Names of the files that a run writes, and a check before the run that all of them can be written."""

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError

LONGEST = 180
"""The most bytes of a name that is made here. File systems take 255, and a name grows: by ``.code.safetensors``, by
``.partial``, and by the temporary name while the file is written."""
ROOM = "x" * 32
"""The most that a name grows by."""


def slug(text: str | Path) -> str:
    """The last part of a model's or a file's name, in letters that every file system takes."""
    last = str(text).rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    return shortened(re.sub(r"[^\w.+-]+", "-", last).strip("-.") or "model", 100)


def shortened(name: str, most: int = LONGEST, whole: str | None = None) -> str:
    """Cuts a name of more than ``most`` bytes between two letters, and adds a short hash of ``whole`` (by default the
    name itself), so that it differs from others that begin alike."""
    if len(os.fsencode(name)) <= most:
        return name
    return f"{cut(name, most)}-{short_hash(name if whole is None else whole)}"


def cut(name: str, most: int) -> str:
    """The first ``most`` bytes, without an incomplete letter at the end."""
    return os.fsencode(name)[:most].decode(errors="ignore").rstrip("-.")


def short_hash(*texts: str) -> str:
    """Six hexadecimal digits that differ for other texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:6]


def value_text(value: Any) -> str:
    """0.5 as ``0.5``, 1.0 as ``1``."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings_text(
    method: str,
    steps: int,
    options: Mapping[str, Any],
    spacing: str | Sequence[float] | None = None,
    rest: Mapping[str, Any] | None = None,
) -> str:
    """``ddim_S50_eta0_seed0``: the method, S, its options, the spacing if one was typed, and the rest without None."""
    parts = [slug(method), f"S{steps}", *(f"{k}{value_text(v)}" for k, v in options.items())]
    if isinstance(spacing, str):
        parts.append(spacing)
    elif spacing is not None:
        listed = "-".join(f"{t:g}" for t in spacing)
        parts.append(f"t{listed}" if len(spacing) <= 6 else f"explicit-{short_hash(listed)}")
    parts += [f"{k}{value_text(v)}" for k, v in (rest or {}).items() if v is not None]
    return "_".join(parts)


def protect(targets: Iterable[Path], inputs: Iterable[Path] = (), parameter: str = "out") -> None:
    """Checks, before any work, that all files can be written and that none overwrites an input.

    Args:
        targets: the files that will be written.
        inputs: the files that are read.
        parameter: the option that decides where the files go.

    Raises:
        InputError: an input would be overwritten, two results have one name, or a file cannot be written.
    """
    sources = {p.resolve() for p in inputs}
    seen: set[Path] = set()
    tried: set[Path] = set()
    for path in targets:
        _check_writable(path, tried, parameter)
        if path.resolve() in sources:
            raise InputError(f"{path} is an input and is not written over; choose another.", parameter=parameter)
        if path.resolve() in seen:
            raise InputError(f"two results would both be named {path}; run them separately.", parameter=parameter)
        seen.add(path.resolve())


def _check_writable(path: Path, tried: set[Path], parameter: str) -> None:
    """Raises InputError where ``path`` cannot be written; ``tried`` are folders in which a trial file could be made."""
    there = path.parent
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise InputError(f"{path} cannot be written, because {there} is not a folder.", parameter=parameter)
    *folders, name = path.relative_to(there).parts
    for part in (*folders, name + ROOM):
        try:
            os.lstat(there / part)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                shown = part.removesuffix(ROOM)
                raise InputError(
                    f"{shown} has {len(os.fsencode(shown))} bytes, too many for a name in {there}; use a shorter one.",
                    parameter=parameter,
                ) from None
    if path.is_dir():
        raise InputError(f"{path} cannot be written, because it is a folder.", parameter=parameter)
    if there in tried:
        return
    try:  # os.access would not notice a file system that takes no files
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise InputError(
            f"{path} cannot be written, because files cannot be created in {there} ({error.strerror or error}).",
            parameter=parameter,
        ) from None
    tried.add(there)
