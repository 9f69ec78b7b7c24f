"""CONDITIONING of ComfyUI as the library's ``Conditioning``, which a code stores, and back.

A CONDITIONING is a list of entries ``[embedded tokens, dictionary]``. A code must contain all that its reconstruction
needs, as tensors with a row for each image. So what is no tensor and no number, such as a ControlNet, is refused, and
so is more than one entry, of which each would act in an area or in some of the steps.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ddim import Conditioning, InputError

TEXT, TEXT_MASK, POOLED, EMBEDDED = "text", "text_mask", "pooled", "guidance"
MASKED = "masked"
"""Marks a condition that came with an ``attention_mask``; other texts are never padded with masked tokens."""
_NUMBER, _LIST = "number:", "list:"
_BY_AREA = ("area", "mask", "control", "gligen", "hooks", "default", "unclip_conditioning", "noise_concat")
"""Settings of an entry that acts in an area, in some steps, or through another model."""
_WHOLE = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
"""Settings of an entry that acts everywhere."""

Entries = Sequence[Sequence[Any]]


def conditioning_of(entries: Entries, parameter: str) -> Conditioning:
    """Converts a CONDITIONING to the condition of one image.

    Args:
        entries: the CONDITIONING.
        parameter: the input of the node, for an error.

    Raises:
        InputError: it has no entry or several, or what a code cannot store.
    """
    if len(entries) != 1:
        raise InputError(
            f"{len(entries)} conditions are combined in it, and a code stores one for each image; connect one prompt.",
            parameter=parameter,
        )
    text, about = entries[0]
    tensors: dict[str, Tensor] = {} if text is None else {TEXT: _row(text, parameter)}
    for key, value in about.items():
        if value is None or (key in _WHOLE and value == _WHOLE[key]):
            continue
        if key in _BY_AREA or key in _WHOLE:
            raise InputError(
                f"it has {key!r}, which acts in a part of the picture or of the steps, or through another model, and "
                "a code cannot store that; connect the prompt itself.",
                parameter=parameter,
            )
        tensors |= _named(key, value, parameter)
    return Conditioning(tensors)


def _row(tensor: Tensor, parameter: str) -> Tensor:
    if len(tensor) != 1:
        raise InputError(f"it has {len(tensor)} rows; connect the prompt of one image.", parameter=parameter)
    return tensor.detach().cpu()


def _named(key: str, value: Any, parameter: str) -> dict[str, Tensor]:
    """Returns the tensors that stand for an item of an entry's dictionary."""
    if key == "attention_mask" and isinstance(value, Tensor):
        return {TEXT_MASK: _row(value, parameter) > 0, MASKED: torch.ones(1, dtype=torch.bool)}
    if key == EMBEDDED and isinstance(value, (int, float)):
        return {EMBEDDED: torch.tensor([float(value)])}
    if isinstance(value, Tensor):
        return {POOLED if key == "pooled_output" else key: _row(value, parameter)}
    if isinstance(value, (bool, int, float)):
        return {f"{_NUMBER}{key}": torch.tensor([value], dtype=torch.float64 if isinstance(value, float) else None)}
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, Tensor) for one in value):
        return {f"{_LIST}{key}:{k}": _row(one, parameter) for k, one in enumerate(value)}
    raise InputError(
        f"it has {key!r}, a {type(value).__name__}, which a code cannot store; connect the prompt itself.",
        parameter=parameter,
    )


def entries_of(cond: Conditioning, device: torch.device) -> Iterator[tuple[list[int], list[list[Any]]]]:
    """Yields rows that one call of the network can take together, with their CONDITIONING.

    ComfyUI keeps one number for all rows of a call, and texts of unequal lengths cannot stand in it. So the rows are
    grouped by their numbers and the lengths of their texts.

    Args:
        cond: the conditions of N rows.
        device: where the tensors are to be.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    lengths = _lengths(cond)
    for row in range(cond.rows or 0):
        numbers = tuple(
            float(t[row]) for name, t in cond.tensors.items() if name == EMBEDDED or name.startswith(_NUMBER)
        )
        groups.setdefault((lengths[row], *numbers), []).append(row)
    for (length, *_), rows in groups.items():
        yield rows, [_entry(cond[rows].to(device), length)]


def _lengths(cond: Conditioning) -> list[int | None]:
    """The number of tokens of each row's text; None for the whole text."""
    if TEXT_MASK not in cond or MASKED in cond:
        return [None] * (cond.rows or 0)
    return [int(mask.sum()) for mask in cond.tensors[TEXT_MASK]]


def _entry(cond: Conditioning, length: int | None) -> list[Any]:
    text: Tensor | None = None
    about: dict[str, Any] = {}
    lists: dict[str, dict[int, Tensor]] = {}
    for name, tensor in cond.tensors.items():
        if name == TEXT:
            text = tensor[:, :length]
        elif name == TEXT_MASK:
            if MASKED in cond:
                about["attention_mask"] = tensor.to(torch.int64)
        elif name == EMBEDDED:
            about[name] = float(tensor[0])
        elif name.startswith(_NUMBER):
            about[name.removeprefix(_NUMBER)] = tensor[0].item()
        elif name.startswith(_LIST):
            key, _, place = name.removeprefix(_LIST).rpartition(":")
            lists.setdefault(key, {})[int(place)] = tensor
        elif name != MASKED:
            about["pooled_output" if name == POOLED else name] = tensor
    about |= {key: [one for _, one in sorted(parts.items())] for key, parts in lists.items()}
    return [text, about]


def name_of(cond: Conditioning) -> str:
    """Returns a name for a condition that depends on its content alone, which a code stores as its prompt."""
    digest = hashlib.sha256()
    for name, tensor in sorted(cond.tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.double().contiguous().numpy().tobytes())
    return f"conditioning {digest.hexdigest()[:12]}"
