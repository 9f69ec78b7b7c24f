"""Names of what is written: each says how it was made, none is an input, and all can be written before work begins."""

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._utils.errors import InputError

if TYPE_CHECKING:
    from ..core.guidance import Guidance

CODE = ".code.safetensors"
PNG = ".png"
LONGEST = 180
"""Bytes of a name that is made here. File systems take 255, and a name grows: ``.code.safetensors``, ``.partial``, and
what a file is called while it is written."""
ROOM = "x" * 32
"""As much as a name grows at the most."""


def is_code(path: Path) -> bool:
    """Whether a file's name is that of a saved code, or of one that an interrupted run left."""
    return path.name.removesuffix(".partial").endswith(".safetensors")


def slug(text: str | Path) -> str:
    """The last part of a model's or a file's name, in letters that every file system takes."""
    last = str(text).rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    return shortened(re.sub(r"[^\w.+-]+", "-", last).strip("-.") or "model", 100)


def phrase(words: str) -> str:
    """Words in a file's name: at most 40 bytes, and a short hash where other words would read the same."""
    letters = re.sub(r"[^\w.+-]+", "-", words).strip("-.")
    if not words.strip():
        return "empty"
    if letters.replace("-", " ") == words.replace("-", " "):
        return shortened(letters, 40, words)
    return "-".join(part for part in (_cut(letters, 40), short_hash(words)) if part)


def shortened(name: str, most: int = LONGEST, whole: str | None = None) -> str:
    """A name of more than ``most`` bytes cut between two letters, with a short hash of ``whole`` (the name itself) that
    tells it from others that begin alike."""
    if len(os.fsencode(name)) <= most:
        return name
    return f"{_cut(name, most)}-{short_hash(name if whole is None else whole)}"


def _cut(name: str, most: int) -> str:
    """The first ``most`` bytes, without half a letter at the end."""
    return os.fsencode(name)[:most].decode(errors="ignore").rstrip("-.")


def phrases(several: Sequence[str], what: str) -> str:
    """One in a file's name, or how many there are and which: ``3prompts-1f3a9c``."""
    return phrase(several[0]) if len(several) == 1 else f"{len(several)}{what}-{short_hash(*several)}"


def short_hash(*texts: str) -> str:
    """Six letters that tell texts apart."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:6]


def stem(path: Path) -> str:
    """``shirt`` of ``shirt.png``; ``shirt_bdia_S50`` of ``shirt_bdia_S50.code.safetensors``."""
    name = path.name
    return slug(name.removesuffix(CODE) if name.endswith(CODE) else path.stem)


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
    """``ddim_S50_eta0_seed0``: the method, S, options, a spacing that was asked for, and the rest; None is left out."""
    parts = [slug(method), f"S{steps}", *(f"{k}{value_text(v)}" for k, v in options.items())]
    if isinstance(spacing, str):
        parts.append(spacing)
    elif spacing is not None:
        parts.append("t" + "-".join(f"{t:g}" for t in spacing) if len(spacing) <= 6 else "explicit")
    parts += [f"{k}{value_text(v)}" for k, v in (rest or {}).items() if v is not None]
    return "_".join(parts)


def prompts_slug(prompts: Sequence[str] | None) -> str:
    """The prompt in a file's name; of several prompts, their number and a hash; empty without a prompt."""
    distinct = list(prompts or [])
    if len(set(distinct)) == 1:
        distinct = distinct[:1]
    return phrases(distinct, "prompts") if any(p.strip() for p in distinct) else ""


def guidance_tags(guidance: "Guidance", usual: float, negative: str | None = None) -> dict[str, Any]:
    """What a file's name says of the guidance, as far as it is unusual; for ``files.settings_text``."""
    unusual = guidance.interval != (0.0, 1.0)
    return {
        "w": float(guidance.weight) if guidance.weight != usual else None,
        "rescale": guidance.rescale or None,
        "interval": "-".join(f"{v:g}" for v in guidance.interval) if unusual else None,
        "not-": prompts_slug([negative or ""]) or ("empty" if negative == "" else None),
    }


def target(out: Path | None, name: str, suffix: str) -> Path:
    """Where a file goes: ``out`` itself where it ends in ``suffix``, or the default name in the folder ``out``.

    Args:
        out: as it was asked for.
        name: without its suffix; a long one is shortened.
        suffix: such as ``.png``.

    Raises:
        InputError: a name that is neither.
    """
    if out is not None and out.name.endswith(suffix) and not out.is_dir():
        return out
    return folder(out, suffix) / f"{shortened(name)}{suffix}"


def folder(out: Path | None, suffix: str = "") -> Path:
    """``out`` as a folder, for several files.

    Raises:
        InputError: it is a file, or looks like the name of one.
    """
    if out is None:
        return Path()
    if out.is_dir():
        return out
    if suffix and out.name.endswith(suffix):
        raise InputError(f"{out} names one file, but there are several to write; give a folder.", parameter="out")
    if out.exists() or re.search(r"\.[A-Za-z][A-Za-z0-9]*$", out.name):
        raise InputError(f"{out} is neither a folder nor a file that ends in {suffix}.", parameter="out")
    return out


def protect(targets: Iterable[Path], inputs: Iterable[Path] = (), parameter: str = "out") -> None:
    """To be asked before the work, of all that it will write.

    Args:
        targets: the files.
        inputs: what is read.
        parameter: what decides where the files go.

    Raises:
        InputError: something that is read would be written over, one name would serve for two files, or a file could
            not be written.
    """
    sources = {p.resolve() for p in inputs}
    seen: set[Path] = set()
    tried: set[Path] = set()
    for path in targets:
        _check_writable(path, tried, parameter)
        if path.resolve() in sources:
            raise InputError(f"{path} is an input and is not written over; choose another.", parameter=parameter)
        if path.resolve() in seen:
            raise InputError(
                f"two results would both be named {path}; run them apart, each with its own.", parameter=parameter
            )
        seen.add(path.resolve())


def _check_writable(path: Path, tried: set[Path], parameter: str) -> None:
    """Raises InputError where ``path`` cannot be written; ``tried`` are the folders in which a file was made."""
    there = path.parent
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise InputError(f"{path} cannot be written, for {there} is no folder.", parameter=parameter)
    *folders, name = path.relative_to(there).parts
    for part in (*folders, name + ROOM):
        try:
            os.lstat(there / part)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                shown = part.removesuffix(ROOM)
                raise InputError(
                    f"{shown} has {len(os.fsencode(shown))} bytes, too many for a name in {there}; give a shorter one.",
                    parameter=parameter,
                ) from None
    if path.is_dir():
        raise InputError(f"{path} cannot be written, for it is a folder.", parameter=parameter)
    if there in tried:
        return
    try:  # asking for permission would not tell of a file system that takes no files
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise InputError(
            f"{path} cannot be written, for {there} takes no files ({error.strerror or error}).", parameter=parameter
        ) from None
    tried.add(there)
