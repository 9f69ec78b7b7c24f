"""Names of the files that commands write. A name tells the settings; no file is an input; all can be written."""

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
"""The most bytes of a name that is made here. File systems take 255, and a name grows: by ``.code.safetensors``, by
``.partial``, and by the temporary name while the file is written."""
ROOM = "x" * 32
"""The most that a name grows by."""


def is_code(path: Path) -> bool:
    """Whether a file's name is that of a saved code, or of one that an interrupted run left."""
    return path.name.removesuffix(".partial").endswith(".safetensors")


def slug(text: str | Path) -> str:
    """The last part of a model's or a file's name, in letters that every file system takes."""
    last = str(text).rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    return shortened(re.sub(r"[^\w.+-]+", "-", last).strip("-.") or "model", 100)


def phrase(words: str) -> str:
    """A prompt in a file's name: at most 40 bytes, with a short hash where another prompt would look the same."""
    letters = re.sub(r"[^\w.+-]+", "-", words).strip("-.")
    if not words.strip():
        return "empty"
    if letters.replace("-", " ") == words.replace("-", " "):
        return shortened(letters, 40, words)
    return "-".join(part for part in (_cut(letters, 40), short_hash(words)) if part)


def shortened(name: str, most: int = LONGEST, whole: str | None = None) -> str:
    """Cuts a name of more than ``most`` bytes between two letters, and adds a short hash of ``whole`` (by default the
    name itself), so that it differs from others that begin alike."""
    if len(os.fsencode(name)) <= most:
        return name
    return f"{_cut(name, most)}-{short_hash(name if whole is None else whole)}"


def _cut(name: str, most: int) -> str:
    """The first ``most`` bytes, without an incomplete letter at the end."""
    return os.fsencode(name)[:most].decode(errors="ignore").rstrip("-.")


def phrases(prompts: Sequence[str], what: str) -> str:
    """A prompt in a file's name; of more than one their number and a hash: ``3prompts-1f3a9c``."""
    return phrase(prompts[0]) if len(prompts) == 1 else f"{len(prompts)}{what}-{short_hash(*prompts)}"


def short_hash(*texts: str) -> str:
    """Six hexadecimal digits that differ for other texts."""
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
    """``ddim_S50_eta0_seed0``: the method, S, its options, the spacing if one was typed, and the rest without None."""
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
    """The file to write: ``out`` itself where it ends in ``suffix``, or the default name in the folder ``out``.

    Args:
        out: the value of ``--out``.
        name: without its suffix; a long one is shortened.
        suffix: such as ``.png``.

    Raises:
        InputError: ``out`` is neither.
    """
    if out is not None and out.name.endswith(suffix) and not out.is_dir():
        return out
    return folder(out, suffix) / f"{shortened(name)}{suffix}"


def folder(out: Path | None, suffix: str = "") -> Path:
    """``out`` as a folder, for more than one file.

    Raises:
        InputError: it is a file, or looks like the name of one.
    """
    if out is None:
        return Path()
    if out.is_dir():
        return out
    if suffix and out.name.endswith(suffix):
        raise InputError(f"{out} names one file, but there is more than one to write; name a folder.", parameter="out")
    if out.exists() or re.search(r"\.[A-Za-z][A-Za-z0-9]*$", out.name):
        raise InputError(f"{out} is neither a folder nor a file that ends in {suffix}.", parameter="out")
    return out


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
            f"{path} cannot be written, because {there} takes no files ({error.strerror or error}).",
            parameter=parameter,
        ) from None
    tried.add(there)
