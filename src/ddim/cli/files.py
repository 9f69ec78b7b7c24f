"""Names of what is written: each says how it was made, and none is an input."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError

CODE = ".code.safetensors"
PNG = ".png"


def is_code(path: Path) -> bool:
    """Whether a file's name is that of a saved code, or of one that an interrupted run left."""
    return path.name.removesuffix(".partial").endswith(".safetensors")


def slug(text: str | Path) -> str:
    """The last part of a model's or a file's name, in letters that every file system takes."""
    last = str(text).rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    return re.sub(r"[^\w.+-]+", "-", last).strip("-.") or "model"


def phrase(words: str) -> str:
    """Words in a file's name: at most 40 letters, and a short hash where other words would read the same."""
    letters = re.sub(r"[^\w.+-]+", "-", words).strip("-.")
    if not words.strip():
        return "empty"
    if len(letters) <= 40 and letters.replace("-", " ") == words.replace("-", " "):
        return letters
    return "-".join(part for part in (letters[:40].rstrip("-."), short_hash(words)) if part)


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


def target(out: Path | None, name: str, suffix: str) -> Path:
    """Where a file goes: ``out`` itself where it ends in ``suffix``, or the default name in the folder ``out``.

    Raises:
        InputError: a name that is neither.
    """
    if out is None:
        return Path(name)
    if out.name.endswith(suffix) and not out.is_dir():
        return out
    return folder(out, suffix) / name


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


def protect(targets: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raises InputError where something that is read would be written over, or one name would serve for two files."""
    sources = {p.resolve() for p in inputs}
    seen: set[Path] = set()
    for path in targets:
        if path.resolve() in sources:
            raise InputError(f"{path} is an input and is not written over; choose another --out.", parameter="out")
        if path.resolve() in seen:
            raise InputError(
                f"two results would both be named {path}; run them apart, each with its own --out.", parameter="out"
            )
        seen.add(path.resolve())
