"""PIE-Bench: 700 pictures, the edit that each is to get, and where it may change (Ju et al. 2023, arXiv 2310.01506).

``read_entries`` reads the published folder; ``PieBench`` edits its entries and scores them.
"""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .._utils.errors import DDIMWarning, InputError, is_whole
from .._utils.files import read_json
from ..data.images import open_image
from ..editing.plan import AttentionEdit
from ..pipelines.common import need_text
from ..pipelines.edit_plan import planned

MAPPING, PICTURES = "mapping_file.json", "annotation_images"
CATEGORIES = (
    *("random", "change object", "add object", "delete object", "change content"),
    *("change pose", "change colour", "change material", "change background", "change style"),
)
"""By ``editing_type_id``, 0 to 9."""
SIDE = 512


@dataclass(frozen=True, eq=False)
class Entry:
    """One edit of the benchmark.

    Attributes:
        key: its name in the mapping file.
        image: the picture's file.
        source_prompt, target_prompt: without the brackets that mark what differs.
        category: 0 to 9, a place in ``CATEGORIES``.
        blend: the words, of source and target, where the edit is to happen; None where the benchmark names none.
        mask: bool [512, 512], True where the picture may change.
        digest: of picture, prompts, words and mask: two entries that share it are the same.
    """

    key: str
    image: Path
    source_prompt: str
    target_prompt: str
    category: int
    blend: tuple[str, str] | None
    mask: Tensor
    digest: str

    def mask_at(self, size: tuple[int, int]) -> Tensor:
        """The mask for a picture of (height, width), by the nearest pixel, with the border free; bool [1, 1, H, W]."""
        return freed(interpolate(self.mask[None, None].float(), size, mode="nearest") > 0)


def read_entries(folder: Path, categories: Sequence[int] | None = None, limit: int | None = None) -> list[Entry]:
    """The entries of a PIE-Bench folder, in the order of its mapping file.

    Args:
        folder: has ``mapping_file.json`` and ``annotation_images``, or a folder in it has.
        categories: only these.
        limit: only the first of them.

    Raises:
        InputError: no mapping file, an entry that is malformed, a picture that is missing, broken or not square, an
            unknown category, nothing left.
    """
    if strange := next((c for c in categories or [] if c not in range(len(CATEGORIES))), None):
        raise InputError(f"{strange} is none of PIE-Bench's, 0 to {len(CATEGORIES) - 1}.", parameter="categories")
    mapping = _mapping(folder)
    rows = (
        (key, row, f"{mapping}, entry {key!r}:")
        for key, row in read_json(mapping, "mapping of keys to entries").items()
    )
    known = ((key, row, _category(row, where), where) for key, row, where in rows)
    wanted = islice((x for x in known if categories is None or x[2] in categories), limit)
    entries = [_entry(key, row, category, mapping.parent / PICTURES, where) for key, row, category, where in wanted]
    if not entries:
        raise InputError(
            f"{mapping} has no entry{' of the categories asked for' if categories else ''}.", parameter="data"
        )
    return entries


def decode_mask(runs: Any, side: int = SIDE) -> Tensor:
    """A mask from its run lengths, bool [side, side].

    Args:
        runs: [start, length, start, length, ...] of what may change, in pixels counted row by row. A run that goes on
            beyond the last pixel ends there.
        side: of the picture.

    Returns:
        the mask with its border free, as the benchmark has it: annotations are poor there.

    Raises:
        InputError: not pairs of whole numbers, a start outside the picture, a negative length.
    """
    if not isinstance(runs, list) or not all(is_whole(v) for v in runs):
        raise InputError("its mask is no list of whole numbers.")
    if len(runs) % 2:
        raise InputError(f"its mask has {len(runs)} numbers; starts and lengths come in pairs.")
    flat = torch.zeros(side * side, dtype=torch.bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        if not 0 <= start < len(flat) or length < 0:
            raise InputError(f"its mask has a run of {length} from {start}, outside a picture of {side}x{side}.")
        flat[start : start + length] = True
    return freed(flat.view(side, side))


def freed(mask: Tensor) -> Tensor:
    """The mask [..., H, W] with its outermost pixels True."""
    out = torch.ones_like(mask)
    out[..., 1:-1, 1:-1] = mask[..., 1:-1, 1:-1]
    return out


def fitted(model: Any, entries: Sequence[Entry], attention: str) -> list[Entry]:
    """The entries as a model can edit them, checked before any is edited.

    An entry whose blend words are not in its prompts (some are misspelt) goes without them, and a DDIMWarning says so.

    Args:
        model: a text-to-image model.
        entries: from ``read_entries``.
        attention: ``refine``, ``replace`` or ``none``.

    Raises:
        InputError: a model without text, prompts that do not go with the attention control.
    """
    need_text(model)
    how, out = AttentionEdit(attention), []
    for entry in entries:
        prompts = entry.source_prompt, entry.target_prompt
        try:
            for prompt, word in zip(prompts, entry.blend or (), strict=False):
                model.tokens(prompt).places(word)
        except InputError as error:
            warnings.warn(f"Entry {entry.key!r} is edited without its blend words: {error}", DDIMWarning, stacklevel=2)
            entry = replace(entry, blend=None)
        try:
            planned(model, prompts[:1], prompts[1], model.picture[1:], how, entry.blend)
        except InputError as error:
            raise InputError(f"Entry {entry.key!r}: {error}") from None
        out.append(entry)
    return out


def _mapping(folder: Path) -> Path:
    found = [p for p in (folder / MAPPING, *sorted(folder.glob(f"*/{MAPPING}"))) if p.is_file()]
    if not found:
        raise InputError(
            f"{folder} has no {MAPPING}; give the folder that PIE-Bench was unpacked to.", parameter="data"
        )
    if len(found) > 1 and found[0].parent != folder:
        raise InputError(
            f"{folder} has several {MAPPING}, such as {found[0]} and {found[1]}; give one's folder.", parameter="data"
        )
    return found[0]


def _category(row: Any, where: str) -> int:
    if not isinstance(row, dict):
        raise InputError(f"{where} it is no record of prompts, category and mask.")
    given = row.get("editing_type_id")
    known = {str(k): k for k in range(len(CATEGORIES))}
    if str(given) not in known:
        raise InputError(f"{where} editing_type_id is {given!r}, which is none of 0 to {len(CATEGORIES) - 1}.")
    return known[str(given)]


def _entry(key: str, row: dict[str, Any], category: int, pictures: Path, where: str) -> Entry:
    texts = ("image_path", "original_prompt", "editing_prompt", "blended_word")
    if lacking := next((name for name in texts if not isinstance(row.get(name), str)), None):
        raise InputError(f"{where} it has no text as {lacking}.")
    try:
        mask = decode_mask(row.get("mask"))
        image = open_image(pictures / row["image_path"])
    except InputError as error:
        raise InputError(f"{where} {error}") from None
    if image.width != image.height:
        raise InputError(f"{where} its picture is {image.width}x{image.height}; masks belong to square ones.")
    source, target = (row[name].replace("[", "").replace("]", "") for name in texts[1:3])
    words = row["blended_word"].split()
    blend = (words[0], words[1]) if len(words) == 2 else None
    if words and blend is None:
        told = f"Entry {key!r} is edited without its blend words: {row['blended_word']!r} is no word of each prompt."
        warnings.warn(told, DDIMWarning, stacklevel=3)
    hashed = hashlib.sha256(repr((source, target, blend, image.size, image.mode)).encode())
    hashed.update(image.tobytes())
    hashed.update(mask.numpy().tobytes())
    path = pictures / row["image_path"]
    return Entry(key, path, source, target, category, blend, mask, hashed.hexdigest()[:12])
