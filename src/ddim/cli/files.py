"""Names of the files that commands write. A name tells the settings; no file is an input; all can be written."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._utils.errors import InputError
from .._utils.names import cut, short_hash, shortened, slug

if TYPE_CHECKING:
    from ..core.guidance import Guidance

CODE = ".code.safetensors"
PNG = ".png"


def is_code(path: Path) -> bool:
    """Whether a file's name is that of a saved code, or of one that an interrupted run left."""
    return path.name.removesuffix(".partial").endswith(".safetensors")


def phrase(words: str) -> str:
    """A prompt in a file's name: at most 40 bytes, with a short hash where another prompt would look the same."""
    letters = re.sub(r"[^\w.+-]+", "-", words).strip("-.")
    if not words.strip():
        return "empty"
    if letters.replace("-", " ") == words.replace("-", " "):
        return shortened(letters, 40, words)
    return "-".join(part for part in (cut(letters, 40), short_hash(words)) if part)


def phrases(prompts: Sequence[str], what: str) -> str:
    """A prompt in a file's name; of more than one their number and a hash: ``3prompts-1f3a9c``."""
    return phrase(prompts[0]) if len(prompts) == 1 else f"{len(prompts)}{what}-{short_hash(*prompts)}"


def stem(path: Path) -> str:
    """``shirt`` of ``shirt.png``; ``shirt_bdia_S50`` of ``shirt_bdia_S50.code.safetensors``."""
    name = path.name
    return slug(name.removesuffix(CODE) if name.endswith(CODE) else path.stem)


def pictures_slug(paths: Sequence[Path]) -> str:
    """Several files in the name of one: their number, and a hash that other files do not have."""
    return f"{len(paths)}pictures-{short_hash(*map(str, paths))}"


def resized(resize: bool) -> dict[str, str]:
    """What a file's name says of ``--resize``; for ``settings_text``."""
    return {"resized": ""} if resize else {}


def prompts_slug(prompts: Sequence[str] | None) -> str:
    """The prompt in a file's name; of several prompts, their number and a hash; empty without a prompt."""
    distinct = list(prompts or [])
    if len(set(distinct)) == 1:
        distinct = distinct[:1]
    return phrases(distinct, "prompts") if any(p.strip() for p in distinct) else ""


def model_slug(model: str) -> str:
    """The model or the folder in a file's name.

    The folders of training runs have the same names, so theirs is joined to that of the run: ``fashion-model`` of
    ``runs/fashion/model``.
    """
    parts = [part for part in model.replace("\\", "/").split("/") if part not in ("", ".")]
    begin = len(parts) - 1
    while begin > 0 and re.fullmatch(r"model|checkpoints?([-_]?\w+)?|step[-_]?\d+", parts[begin]):
        begin -= 1
    return slug("-".join(parts[max(begin, 0) :]))


def model_tag(model: str | None, usual: str) -> dict[str, str]:
    """What a file's name says of a model that was typed; nothing for the one that would be used without; for
    ``settings_text``."""
    return {} if model in (None, usual) else {"on-": model_slug(str(model))}


def guidance_tags(
    guidance: "Guidance",
    usual: float,
    negative: str | None = None,
    reference: Path | None = None,
    *,
    embedded: float | None = None,
) -> dict[str, Any]:
    """What a file's name says of the guidance and the reference, as far as it is unusual; for ``settings_text``.

    Args:
        guidance: the guidance.
        usual: the weight that has no tag.
        negative: the negative prompt.
        reference: the file of the picture that the network looks at.
        embedded: the embedded scale that has no tag.
    """
    unusual = guidance.interval != (0.0, 1.0)
    return {
        "w": float(guidance.weight) if guidance.weight != usual else None,
        "embedded": None if guidance.embedded in (None, embedded) else float(guidance.embedded),
        "rescale": guidance.rescale or None,
        "interval": "-".join(f"{v:g}" for v in guidance.interval) if unusual else None,
        "skip": skip_text(guidance),
        "proximal": guidance.proximal and f"{guidance.proximal.kind}-{guidance.proximal.quantile:g}",
        "not-": prompts_slug([negative or ""]) or ("empty" if negative == "" else None),
        "reference-": None if reference is None else stem(reference),
    }


def skip_text(guidance: "Guidance") -> str | None:
    """What a file's name says of skip-layer guidance: the layers, and what else is unusual."""
    if guidance.skip is None:
        return None
    skip, usual = guidance.skip, type(guidance.skip)(guidance.skip.layers)
    more = [f"x{skip.scale:g}"] if skip.scale != usual.scale else []
    more += ["-".join(f"{part:g}" for part in skip.interval)] if skip.interval != usual.interval else []
    return "-".join([*map(str, skip.layers), *more])


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
