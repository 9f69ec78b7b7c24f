"""A run over PIE-Bench: edits entries, keeps the pictures, scores them; and the table over their rows."""

import json
import time
from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path
from typing import Any

from torch import Tensor

from .._utils.error_text import one_line
from .._utils.errors import DDIMError, InputError
from ..data.images import open_image, read_images, save_image
from ..pipelines.edit import edit
from .edits import Setting
from .methods import Way
from .pie_bench import CATEGORIES, Entry
from .scores import METRICS, Scorer
from .store import Columns, Row
from .tables import finite_mean

COLUMNS = Columns(
    {
        **dict.fromkeys(("key", "entry", "method", "options", "attention", "fingerprint"), "string"),
        **{"category": "int64", "steps": "int64", "guidance": "float64", "blend_weight": "float64", "seed": "int64"},
        "as_published": "bool",
        **dict.fromkeys(("clip_model", "dino_model", "metrics"), "string"),
    },
    {**dict.fromkeys((*METRICS, "seconds", "nfe"), "float64"), "failed": "string"},
)
"""A row is an edited and scored entry: what shaped it, and what was found; ``failed`` is the sentence of an edit that
diverged, and empty otherwise."""
Item = dict[str, Any]


class Diverged(DDIMError):
    """An edit that made no picture: a result too."""


class PieBench:
    """Edits entries of PIE-Bench and scores them.

    Args:
        model: a text-to-image model.
        entries: from ``pie_bench.read_entries``.
        scorer: from ``scores.open_scorer``.
        calls: network calls since it was last asked; what a row has as ``nfe``.
        blend_weight: factor on the attention to the target's blend word, 0 or more; entries without blend words take
            none. The benchmark's own prompt-to-prompt edits (Ju et al. 2023) have 2.
        seed: of each edit, for methods that draw noise; those edits have 1234.
    """

    def __init__(
        self,
        model: Any,
        entries: Sequence[Entry],
        scorer: Scorer,
        calls: Callable[[], float] = lambda: nan,
        *,
        blend_weight: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.model, self.entries, self.scorer, self.calls = model, list(entries), scorer, calls
        self.blend_weight, self.seed = blend_weight, seed
        self.of = {(entry.key, entry.digest): entry for entry in self.entries}

    def items(self, setting: Setting) -> list[Item]:
        """The identities of the entries' rows under a setting."""
        scored = {
            "as_published": self.scorer.as_published,
            **{f"{kind}_model": name for kind, name in self.scorer.names.items()},
            "metrics": " ".join(self.scorer.metrics),
        }
        return [{**self._made(setting, entry), "category": entry.category, **scored} for entry in self.entries]

    def _made(self, setting: Setting, entry: Entry) -> Item:
        """What shaped an edit, and not how it was scored."""
        return {
            "key": entry.key,
            "entry": entry.digest,
            "method": setting.method,
            "options": Way(setting.method, setting.options).told,
            "attention": setting.attention,
            "steps": setting.steps,
            "guidance": float(setting.guidance),
            "blend_weight": float(self.blend_weight),
            "seed": self.seed,
            "fingerprint": str(self.model.fingerprint)[:12],
        }

    def run(self, setting: Setting, item: Item, folder: Path) -> Row:
        """The row of an item; one whose edit diverged is a result too, without numbers.

        Pictures are kept in ``folder``, and taken from there if they were made by this setting: scoring them again, in
        another way, does not edit again.

        Raises:
            InputError: a setting that cannot be used.
        """
        entry = self.of[item["key"], item["entry"]]
        began, scores, failed = time.perf_counter(), dict[str, float](), ""
        try:
            source, back, edited, told = self.pictures(setting, entry, folder)
            mask = entry.mask_at((source.shape[2], source.shape[3]))
            found = self.scorer.score(source, back, edited, mask, [entry.target_prompt])
            scores = {name: value.item() for name, value in found.items()}
        except Diverged as failure:
            failed = one_line(failure)
            told = {"seconds": time.perf_counter() - began, "nfe": self.calls()}
        return {**item, **dict.fromkeys(METRICS), **scores, **told, "failed": failed}

    def pictures(self, setting: Setting, entry: Entry, folder: Path) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
        """Source, reconstruction and edit, [1, 3, H, W] each at the model's size and in 8 bits; seconds and calls of
        the edit.

        Raises:
            Diverged: the edit made no picture.
            InputError: a setting that cannot be used.
            DDIMError: the folder cannot be written, or the disk is full.
        """
        shape, made = self.model.picture, self._made(setting, entry)
        source = read_images(entry.image, shape, resize=True)
        # the digest, because keys may differ where a file's name cannot show it
        name = f"{''.join(c if c.isalnum() else '-' for c in entry.key[:60])}_{entry.digest}"
        files = folder / f"{name}.reconstruction.png", folder / f"{name}.png"
        told = _told(files[1], made)
        if told is None or not files[0].is_file():
            weights = {entry.blend[1]: self.blend_weight} if entry.blend and self.blend_weight != 1 else None
            began = time.perf_counter()
            try:
                result = edit(
                    self.model,
                    source,
                    entry.target_prompt,
                    source_prompt=entry.source_prompt,
                    **setting.arguments,
                    blend=entry.blend,
                    weights=weights,
                    seed=self.seed,
                )
            except InputError:
                raise
            except DDIMError as error:  # and not that of a disk that is full
                raise Diverged(str(error)) from None
            told = {"seconds": time.perf_counter() - began, "nfe": self.calls()}
            save_image(result.reconstruction[0], files[0])
            save_image(result.edits[0, 0], files[1], json.dumps({**made, "told": told}))  # last: it says both are whole
        back, edited = (read_images(file, shape) for file in files)
        return source, back, edited, told


def _told(file: Path, made: Item) -> dict[str, float] | None:
    """What a kept edit says of its making; None where there is none, or another."""
    if not file.is_file():
        return None
    try:
        about = json.loads(open_image(file).info.get("Description", ""))
        told = about.pop("told")
    except (InputError, ValueError, KeyError, AttributeError):
        return None
    return told if about == made else None


def summary(rows: Sequence[Row], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """A setting's rows as the table's: one a category that occurs, and one over all.

    Means leave out what is not finite: an entry whose edit diverged (it is counted as failed), one without background,
    the PSNR of a background that is the same to the bit.
    """
    parts = [(f"{k} {name}", [r for r in rows if r["category"] == k]) for k, name in enumerate(CATEGORIES)]
    out = []
    for title, mine in (*parts, ("all", list(rows))):
        if mine:
            means = {name: finite_mean(mine, name) for name in metrics}
            scaled = {METRICS[n].title: None if v is None else v * METRICS[n].factor for n, v in means.items()}
            out.append(
                {
                    "category": title,
                    "images": len(mine),
                    "failed": sum(bool(r["failed"]) for r in mine),
                    **scaled,
                    "seconds": finite_mean(mine, "seconds"),
                }
            )
    return out
