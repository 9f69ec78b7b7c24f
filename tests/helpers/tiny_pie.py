"""A made-up set in the format of PIE-Bench: small pictures, one a category."""

import json
from pathlib import Path
from typing import Any

import tiny_text

import ddim

SIDE = 48
BOX = (150, 330, 100, 400)
"""Rows and columns of the mask of a made-up entry, at 512 pixels."""


def runs(top: int, bottom: int, left: int, right: int) -> list[int]:
    """A box as PIE-Bench writes it: a run a row."""
    return [n for row in range(top, bottom) for n in (row * 512 + left, right - left)]


def made_up(folder: Path, count: int = 10, **changed: Any) -> Path:
    """A set of ``count`` small pictures, one a category; ``changed`` is put into the first entry."""
    entries = {}
    for k in range(count):
        path = folder / "annotation_images" / f"{k}_kind" / f"{k:012d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        ddim.to_pil(tiny_text.pictures(1, SIDE, SIDE, seed=k)[0]).save(path)
        entries[f"{k:012d}"] = {
            "image_path": f"{k}_kind/{k:012d}.png",
            "original_prompt": "a [cat] next to a mirror",
            "editing_prompt": "a [tiger] next to a mirror",
            "editing_instruction": "Make it a tiger",
            "editing_type_id": str(k % 10),
            "blended_word": "cat tiger" if k % 2 else "",
            "mask": runs(*BOX) if k != 9 else [0, 512 * 512],
        }
    entries[f"{0:012d}"].update(changed)
    (folder / "mapping_file.json").write_text(json.dumps(entries))
    return folder
