"""Files that are added to a text-to-image pipeline when it is loaded: LoRA adapters, and words of textual inversion."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch

from .._utils.error_text import reason_of
from .._utils.errors import DDIMError, DDIMWarning, InputError, is_mapping, is_number
from .._utils.silence import loading, without_logs
from .live import safe_name
from .model_folder import LORA_FILES
from .weights import PICKLES, header_of, one_of, sides

LoraFiles: TypeAlias = (
    "str | PathLike[str] | Mapping[Any, float] | Sequence[str | PathLike[str] | tuple[str | PathLike[str], float]]"
)
"""What ``ddim.load`` takes as ``lora``: a file, file -> scale, or several files, each alone or with its scale."""
WordFiles: TypeAlias = "str | PathLike[str] | Mapping[Any, str] | Sequence[str | PathLike[str]]"
"""What ``ddim.load`` takes as ``textual_inversion``: a file, several, or file -> the word that it adds."""
LORA, WORDS = "lora", "textual_inversion"
_WORD_FILES = ("learned_embeds.safetensors",)
_KOHYA = ("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")
"""Names of the embeddings in files for two text encoders."""
_TEXT_KEYS = ("text_encoder", "lora_te")
"""How the names of a LoRA's tensors for text encoders begin."""
_NO_WEIGHTS = (".alpha", ".dora_scale")
_ALONE = "emb_params"
"""Name of the embedding in files that do not name their word."""


@dataclass(frozen=True)
class Additions:
    """What is added to a pipeline when it is loaded.

    Args:
        loras: file of an adapter and its scale.
        words: file of textual inversion, and the word that it adds; None is the file's own.
    """

    loras: tuple[tuple[Path, float], ...] = ()
    words: tuple[tuple[Path, str | None], ...] = ()

    @property
    def any(self) -> bool:
        """Whether there is anything to add."""
        return bool(self.loras or self.words)


NOTHING = Additions()


def additions_of(lora: Any = None, textual_inversion: Any = None) -> Additions:
    """Finds the files of ``lora`` and ``textual_inversion``, in the forms that ``ddim.load`` takes.

    Raises:
        InputError: a file does not exist, is a pickle or no safetensors file, or a scale or a word is none.
        DDIMError: a file is damaged, or the hub cannot be reached.
    """
    loras = [(_file(name, LORA), _scale(name, scale)) for name, scale in _pairs(lora, 1.0, LORA)]
    if loras and find_spec("peft") is None:
        raise InputError("it needs peft: pip install peft.", parameter=LORA)
    words = [(_file(name, WORDS), _word(word)) for name, word in _pairs(textual_inversion, None, WORDS)]
    return Additions(tuple(loras), tuple(words))


def _pairs(given: Any, usual: Any, parameter: str) -> list[tuple[Any, Any]]:
    """Returns each name with its scale or word."""
    if given is None:
        return []
    if isinstance(given, (str, PathLike)):
        given = [given]
    found: list[tuple[Any, Any]] = []
    rows: Iterable[Any] = given.items() if is_mapping(given) else given if isinstance(given, Iterable) else [given]
    for one in rows:
        name, value = one if isinstance(one, (tuple, list)) and len(one) == 2 else (one, usual)
        if not isinstance(name, (str, PathLike)) or name == "":
            raise InputError(
                f"{name!r} is not the name of a file; give a .safetensors file, or a hub id.", parameter=parameter
            )
        found.append((name, value))
    return found


def _scale(name: Any, scale: Any) -> float:
    if not is_number(scale):
        raise InputError(f"the scale of {str(name)!r} is {scale!r}, which is not a finite number.", parameter=LORA)
    return float(scale)


def _word(word: Any) -> str | None:
    if word is None or (isinstance(word, str) and re.fullmatch(r"\S+", word)):
        return word
    raise InputError(f"{word!r} is not a word; write for example '<cat-toy>'.", parameter=WORDS)


def _file(name: str | PathLike[str], parameter: str) -> Path:
    """Finds a safetensors file: a file, the one in a folder, or one on the hub or in its cache."""
    from .hub import file_from_hub

    path, usual = Path(name), LORA_FILES if parameter == LORA else _WORD_FILES
    if path.suffix.lower() in PICKLES:
        raise InputError(f"{path} is a pickle, which is never loaded; give a .safetensors file.", parameter=parameter)
    if path.is_dir():
        path = path / one_of([file.name for file in path.iterdir()], usual, str(path), parameter)
    if not path.is_file():
        parts = str(name).split("/")
        beside = path.parent.glob("*.safetensors") if path.parent.is_dir() else ()
        local = len(parts) < 2 or str(name).startswith((".", "/", "~")) or path.parent.is_dir()
        if local or not all(parts) or (len(parts) > 2 and path.suffix != ".safetensors"):
            near = get_close_matches(str(path), [str(file) for file in beside], 1)
            raise InputError(
                f"there is no file {str(path)!r}.{f' Did you mean {near[0]!r}?' if near else ''}",
                parameter=parameter,
                hint="Give a .safetensors file, or one on the hub: owner/name, or owner/name/file.safetensors.",
            )
        path = file_from_hub(str(name), usual, parameter)
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"{path} is not a .safetensors file.", parameter=parameter)
    header_of(path, parameter)
    return path


def is_lora(keys: Iterable[str]) -> bool:
    """Whether the names of a file's tensors are those of an adapter: LoRA, LoKr or LoHa."""
    return any("lora" in key.lower() or ".lokr_" in key or ".hada_" in key for key in keys)


def is_word(keys: Iterable[str]) -> bool:
    """Whether the names of a file's tensors are those of textual inversion, of a file that does not name its word."""
    return set(keys) <= {_ALONE, *_KOHYA[0]}


def add(pipeline: Any, additions: Additions, network_part: str) -> None:
    """Adds LoRA adapters and words to a pipeline.

    Args:
        pipeline: a pipeline of diffusers, whose parts are on the CPU.
        additions: what to add.
        network_part: the name of its network.

    Raises:
        InputError: a file does not fit the pipeline.
    """
    for file, word in additions.words:
        _add_word(pipeline, file, word)
    if not additions.loras:
        return
    names = _adapter_names([file for file, _ in additions.loras])
    for name, (file, _) in zip(names, additions.loras, strict=True):
        _add_lora(pipeline, file, name, network_part)
    with loading():
        pipeline.set_adapters(names, [scale for _, scale in additions.loras])


def _adapter_names(files: Sequence[Path]) -> list[str]:
    """Returns a name for each adapter, after its file, that peft takes: without full stops, and see ``live.SAFE``."""
    names: list[str] = []
    for file in files:
        usual = file.stem if file.name not in LORA_FILES else file.parent.name
        name = re.sub(r"[^\w-]+", "_", usual) or "lora"
        same = sum(name == other or other.startswith(f"{name}__") for other in names)
        names.append(f"{name}__{same + 1}" if same else name)
    return [safe_name(name) for name in names]


def _add_lora(pipeline: Any, file: Path, name: str, network_part: str) -> None:
    """Loads a LoRA, and checks that every tensor of its file has found its layer."""
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    shapes = {key: stored.shape for key, stored in header_of(file, LORA).items()}
    kind = type(pipeline).__name__
    if not is_lora(shapes):
        raise InputError(
            f"{file} is no LoRA: its tensors, such as {min(shapes, default='none')!r}, are not those of an adapter.",
            parameter=LORA,
        )
    before = {id(weight) for part in parts for weight in part.parameters()}
    try:
        with without_logs():
            pipeline.load_lora_weights(
                str(file.parent), weight_name=file.name, adapter_name=name, use_safetensors=True, local_files_only=True
            )
    except Exception:  # diffusers and peft raise errors of many types, of many lines, for a file that does not fit
        first = min(shapes)
        raise InputError(
            f"{file} does not fit the layers of the {kind}, so that it is the LoRA of another model; its first tensor "
            f"is {first!r} of {sides(shapes[first])}.",
            parameter=LORA,
        ) from None
    added = [weight for part in parts for weight in part.parameters() if id(weight) not in before]
    network = [weight for weight in getattr(pipeline, network_part).parameters() if id(weight) not in before]
    # diffusers ignores tensors that it has no layer for
    only_text = all(key.startswith(_TEXT_KEYS) for key in shapes)
    if not added or (not network and not only_text) or any(weight.is_meta for weight in added):
        first = next((key for key in sorted(shapes) if only_text or not key.startswith(_TEXT_KEYS)), "none")
        raise InputError(
            f"{file} does not fit the {kind}: its tensors, such as {first!r}, belong to no layer of the "
            f"{'text encoder' if only_text else network_part}, so that it is the LoRA of another model.",
            parameter=LORA,
        )
    stored = sum(prod(shape) for key, shape in shapes.items() if shape and not key.endswith(_NO_WEIGHTS))
    if (numbers := sum(weight.numel() for weight in added)) < stored:
        warnings.warn(
            f"{file} fits the {kind} only in part: {numbers} of its {stored} numbers belong to layers of the model, "
            "and the others are ignored.",
            DDIMWarning,
            stacklevel=6,
        )


def _add_word(pipeline: Any, file: Path, word: str | None) -> None:
    """Adds the word of a file of textual inversion to each text encoder of a pipeline."""
    from safetensors.torch import load_file

    kind = type(pipeline).__name__
    encoders = [part for part in ("text_encoder", "text_encoder_2") if getattr(pipeline, part, None) is not None]
    try:
        tensors = load_file(file)
    except Exception as error:  # safetensors has an error type of its own, and the disk may fail
        raise DDIMError(f"{file} cannot be read: {reason_of(error)}", parameter=WORDS) from None
    both = next((keys for keys in _KOHYA if set(keys) == set(tensors)), None)
    rows = [tensors[key] for key in both] if both else list(tensors.values())
    if len(rows) != len(encoders):
        raise InputError(
            f"{file} holds {len(rows)} embeddings ({', '.join(sorted(tensors)[:4])}), but the {kind} has "
            f"{len(encoders)} text encoders and needs one for each"
            + (" (clip_l and clip_g)." if len(encoders) > 1 else "."),
            parameter=WORDS,
        )
    key = next(iter(tensors))
    own = file.stem if both or key == _ALONE else key
    said = own if word is None else word
    for part, row in zip(encoders, rows, strict=True):
        encoder, tokenizer = getattr(pipeline, part), getattr(pipeline, part.replace("text_encoder", "tokenizer"))
        width = encoder.get_input_embeddings().weight.shape[1]
        if row.ndim not in (1, 2) or row.shape[-1] != width or not row.is_floating_point():
            raise InputError(
                f"{file} does not fit the {kind}: its embedding is {sides(row.shape)}, but the {part} takes vectors of "
                f"{width} numbers.",
                parameter=WORDS,
            )
        if said in tokenizer.get_vocab():
            raise InputError(
                f"the tokenizer has the word {said!r} already; choose another for {file}: textual_inversion="
                f"{{{str(file)!r}: '<word>'}}.",
                parameter=WORDS,
            )
        with loading():
            pipeline.load_textual_inversion({said: row}, token=said, tokenizer=tokenizer, text_encoder=encoder)
