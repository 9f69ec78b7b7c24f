"""The entries of PIE-Bench: 700 images, an edit of each, and the mask of what may change (Ju et al. 2023).

The paper is arXiv 2310.01506. ``read_entries`` reads the published folder.
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
from ..editing.editors.base import Editor
from ..editing.plan import AttentionEdit
from ..pipelines.capabilities import check_prompt_edit
from ..pipelines.edit_plan import planned

MAPPING, PICTURES = "mapping_file.json", "annotation_images"
CATEGORIES = (
    *("random", "change object", "add object", "delete object", "change content"),
    *("change pose", "change colour", "change material", "change background", "change style"),
)
"""The categories, in the order of ``editing_type_id``, 0 to 9."""
SIDE = 512


@dataclass(frozen=True, eq=False)
class Entry:
    """One edit of the benchmark.

    Attributes:
        key: its name in the mapping file.
        image: the image's file.
        source_prompt, target_prompt: the prompts, without the brackets that mark what differs.
        category: 0 to 9, an index of ``CATEGORIES``.
        blend: the words of the source and of the target prompt where the edit happens; None if the benchmark names
            none.
        instruction: what to change, for instruction editors; may be empty.
        mask: bool [512, 512], True where the image may change.
        digest: a hash of the image, the prompts, the blend words and the mask.
    """

    key: str
    image: Path
    source_prompt: str
    target_prompt: str
    category: int
    blend: tuple[str, str] | None
    instruction: str
    mask: Tensor
    digest: str

    def target_for(self, editor: Editor | None) -> str:
        """The target prompt of a method: the instruction for an editor that shows the image to the network.

        Raises:
            InputError: the entry has no instruction.
        """
        if editor is None or not editor.looks:
            return self.target_prompt
        if not self.instruction:
            raise InputError(f"Entry {self.key!r} has no editing_instruction, which {editor.name!r} takes.")
        return self.instruction

    def mask_at(self, size: tuple[int, int]) -> Tensor:
        """The mask at (height, width), resized to the nearest pixel, with a free border; bool [1, 1, H, W]."""
        return with_free_border(interpolate(self.mask[None, None].float(), size, mode="nearest") > 0)


def read_entries(folder: Path, categories: Sequence[int] | None = None, limit: int | None = None) -> list[Entry]:
    """The entries of a PIE-Bench folder, in the order of its mapping file.

    Args:
        folder: contains ``mapping_file.json`` and ``annotation_images``, or has a subfolder that does.
        categories: only entries of these categories.
        limit: only the first so many of them.

    Raises:
        InputError: there is no mapping file, an entry is malformed, an image is missing, broken or not square, a
            category is unknown, or no entry is left.
    """
    if unknown := next((c for c in categories or [] if c not in range(len(CATEGORIES))), None):
        raise InputError(
            f"{unknown} is not a category; PIE-Bench has 0 to {len(CATEGORIES) - 1}.", parameter="categories"
        )
    mapping = _mapping(folder)
    rows = (
        (key, row, f"{mapping}, entry {key!r}:")
        for key, row in read_json(mapping, "mapping of keys to entries").items()
    )
    known = ((key, row, _category(row, where), where) for key, row, where in rows)
    wanted = islice((x for x in known if categories is None or x[2] in categories), limit)
    entries = [_entry(key, row, category, mapping.parent / PICTURES, where) for key, row, category, where in wanted]
    if not entries:
        raise InputError(f"{mapping} has no entry{' of these categories' if categories else ''}.", parameter="data")
    return entries


def decode_mask(runs: Any, side: int = SIDE) -> Tensor:
    """Decodes a mask from its run lengths.

    Args:
        runs: [start, length, start, length, ...] of what may change, in pixels counted row by row. A run that extends
            beyond the last pixel ends there.
        side: the height and width of the image.

    Returns:
        The mask, bool [side, side]. Its border is free, as in the benchmark, because annotations are poor there.

    Raises:
        InputError: the runs are not pairs of whole numbers, a start lies outside the image, or a length is negative.
    """
    if not isinstance(runs, list) or not all(is_whole(v) for v in runs):
        raise InputError("its mask is not a list of whole numbers.")
    if len(runs) % 2:
        raise InputError(f"its mask has {len(runs)} numbers; starts and lengths come in pairs.")
    flat = torch.zeros(side * side, dtype=torch.bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        if not 0 <= start < len(flat) or length < 0:
            raise InputError(f"its mask has a run of {length} from {start}, outside an image of {side}x{side}.")
        flat[start : start + length] = True
    return with_free_border(flat.view(side, side))


def with_free_border(mask: Tensor) -> Tensor:
    """The mask [..., H, W] with its outermost pixels set to True."""
    out = torch.ones_like(mask)
    out[..., 1:-1, 1:-1] = mask[..., 1:-1, 1:-1]
    return out


def editable_entries(model: Any, entries: Sequence[Entry], attention: str) -> list[Entry]:
    """Checks, before any edit, that a model can edit the entries.

    Some blend words are misspelt. An entry whose words are not in its prompts is returned without them, and a
    DDIMWarning names it.

    Args:
        model: a text-to-image model.
        entries: from ``read_entries``.
        attention: ``refine``, ``replace`` or ``none``.

    Raises:
        InputError: the model has no text encoder, or the prompts do not fit the attention control.
    """
    check_prompt_edit(model)
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
            f"{folder} has no {MAPPING}; give the folder into which PIE-Bench was unpacked.", parameter="data"
        )
    if len(found) > 1 and found[0].parent != folder:
        raise InputError(
            f"{folder} has more than one {MAPPING}, such as {found[0]} and {found[1]}; give the folder of one.",
            parameter="data",
        )
    return found[0]


def _category(row: Any, where: str) -> int:
    if not isinstance(row, dict):
        raise InputError(f"{where} it is not a record of prompts, category and mask.")
    category = row.get("editing_type_id")
    known = {str(k): k for k in range(len(CATEGORIES))}
    if str(category) not in known:
        raise InputError(f"{where} editing_type_id is {category!r}, not one of 0 to {len(CATEGORIES) - 1}.")
    return known[str(category)]


def _entry(key: str, row: dict[str, Any], category: int, pictures: Path, where: str) -> Entry:
    texts = ("image_path", "original_prompt", "editing_prompt", "blended_word")
    if lacking := next((name for name in texts if not isinstance(row.get(name), str)), None):
        raise InputError(f"{where} {lacking} is missing or not a text.")
    try:
        mask = decode_mask(row.get("mask"))
        image = open_image(pictures / row["image_path"])
    except InputError as error:
        raise InputError(f"{where} {error}") from None
    if image.width != image.height:
        raise InputError(f"{where} its image is {image.width}x{image.height}; masks are for square images.")
    source, target = (row[name].replace("[", "").replace("]", "") for name in texts[1:3])
    instruction = row.get("editing_instruction") or ""
    if not isinstance(instruction, str):
        raise InputError(f"{where} editing_instruction is not a text.")
    words = row["blended_word"].split()
    blend = (words[0], words[1]) if len(words) == 2 else None
    if words and blend is None:
        problem = f"{row['blended_word']!r} is not one word of each prompt."
        warnings.warn(f"Entry {key!r} is edited without its blend words: {problem}", DDIMWarning, stacklevel=3)
    hashed = hashlib.sha256(repr((source, target, instruction, blend, image.size, image.mode)).encode())
    hashed.update(image.tobytes())
    hashed.update(mask.numpy().tobytes())
    path = pictures / row["image_path"]
    return Entry(key, path, source, target, category, blend, instruction, mask, hashed.hexdigest()[:12])
