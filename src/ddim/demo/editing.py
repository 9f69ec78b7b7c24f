"""The sections of the demo that work with words: prompts to pictures, and edits of real pictures."""

import csv
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import InputError
from ..cli.session import errors
from ..data.images import read_images
from ..models import bundled_models
from ..models.counted import Counted
from ..pipelines.events import steps_of
from ..pipelines.sample import sample
from .pictures import tiles
from .studio import Job, Studio, plain

STEPS = 50
DRAWN, EDITED = 5.0, 3.0
"""Guidance. At 7.5, usual for larger models, edits against a source's own prompt lose their colours on `emoji`."""
EDITS = 3
DRAWINGS = "drawings"
"""The folder of the real ones; not ``originals``, all of which the page's commands invert with the pixel model."""


@dataclass(frozen=True)
class How:
    """An inversion and an attention control, as the page shows them."""

    key: str
    label: str
    method: str
    attention: str


HOWS = [
    How("direct_refine", "Direct, attention refined", "direct", "refine"),
    How("null_refine", "Null-text, attention refined", "null-text", "refine"),
    How("negative_refine", "Negative prompt, attention refined", "negative-prompt", "refine"),
    How("edit_friendly", "Edit-friendly DDPM", "edit-friendly", "none"),
    How("direct_plain", "Direct, attention free", "direct", "none"),
    How("ddim_plain", "Plain DDIM", "ddim", "none"),
]


class Gallery:
    """The real pictures beside a text model, from its ``pictures.csv``: k-th held-out picture, k-th answer; and prompts
    without a picture, which it was trained on.

    Args:
        name: a bundled model, or a folder.
        shape: (C, H, W) of the model's pictures.

    Raises:
        InputError: no such list, or fewer than three edits in it.
    """

    def __init__(self, name: str, shape: tuple[int, int, int]) -> None:
        root = bundled_models().get(name, Path(name))
        listed = root / "pictures.csv"
        if not listed.is_file():
            raise InputError(f"{root} has no pictures.csv; the demo's edits need one beside the model.")
        with listed.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        sources = [row for row in rows if row["file"].startswith("test_images/")]
        answers = [row for row in rows if row["file"].startswith("answers/")]
        if len(answers) < EDITS or len(sources) < EDITS:
            raise InputError(f"{listed} lists {len(answers)} answers and {len(sources)} sources; {EDITS} are needed.")
        self.prompts = [row["prompt"] for row in sources]
        self.known = [row["prompt"] for row in rows if not row["file"]]
        self.names = [Path(row["file"]).stem for row in sources]
        self.owners = [row.get("source") or "" for row in sources]
        self.targets = [row["prompt"] for row in answers[:EDITS]]
        self.pixels = read_images([root / row["file"] for row in sources], shape)
        self.answers = read_images([root / row["file"] for row in answers[:EDITS]], shape)


class Words:
    """Prompts that the model was trained on, and those of real pictures, none of which it saw."""

    title = "Words to pictures"

    def __init__(self, studio: Studio, gallery: Gallery) -> None:
        self.studio, self.gallery = studio, gallery
        self.asked = {"known": gallery.known, "held": gallery.prompts}
        self.drawn: dict[str, Tensor] = {}
        self.seconds, self.nfe = 0.0, 0.0

    def stages(self) -> list[list[Job]]:
        """One a list of prompts."""
        lists = [(which, 2 * STEPS * len(prompts)) for which, prompts in self.asked.items() if prompts]
        return [[Job(weight, lambda report, w=which: self._draw(w, report)) for which, weight in lists]]

    def _draw(self, which: str, report: Any) -> None:
        began, counted = time.perf_counter(), Counted(self.studio.model.model)
        prompts = self.asked[which]
        self.drawn[which] = sample(
            counted,
            len(prompts),
            prompt=prompts,
            steps=STEPS,
            guidance=DRAWN,
            seed=self.studio.seed,
            on_event=steps_of(report),
        ).cpu()
        self.seconds += time.perf_counter() - began
        self.nfe = counted.calls(len(prompts))

    def result(self) -> dict[str, Any]:
        """Saves two sheets: of known prompts; and real pictures, each above what was drawn from its prompt."""
        gallery, columns = self.gallery, -(-len(self.gallery.prompts) // 2)
        rows = torch.stack([gallery.pixels.cpu(), self.drawn["held"]], 1)
        order = torch.cat([part.transpose(0, 1).flatten(0, 1) for part in rows.split(columns)])
        about: dict[str, Any] = {
            "prompts": gallery.prompts,
            "known": gallery.known,
            "steps": STEPS,
            "guidance": DRAWN,
            "nfe": self.nfe,
            "owners": sorted({*gallery.owners} - {""}),
            "seconds": round(self.seconds, 2),
            "command": self._command(gallery.prompts[0]),
        }
        if "known" in self.drawn:
            about["known_command"] = self._command(gallery.known[0])
            about["known_file"] = self.studio.save(
                tiles(self.drawn["known"], columns, scale=1, gap=4), "words_known", about
            )
        about["file"] = self.studio.save(tiles(order, columns, scale=1, gap=4), "words", about)
        return about

    def _command(self, prompt: str) -> str:
        return self.studio.command(
            "sample", prompt=prompt, guidance=f"{DRAWN:g}", steps=STEPS, seed=self.studio.seed, n=1
        )


class Edits:
    """Three edits of real pictures, by several inversions and with attention control or without."""

    title = "Edits of real pictures"

    def __init__(self, studio: Studio, gallery: Gallery) -> None:
        self.studio, self.gallery = studio, gallery
        self.shown: dict[str, dict[str, Any]] = {}

    def stages(self) -> list[list[Job]]:
        """One a way."""
        return [[Job(self._weight(how), lambda report, h=how: self._edit(h, report)) for how in HOWS]]

    def _weight(self, how: How) -> int:
        tuning = 20 if how.method == "null-text" else 0  # at most; it stops when it is near enough
        return EDITS * STEPS * (1 + 4 + tuning)

    def _edit(self, how: How, report: Any) -> None:
        from ..pipelines.edit import edit

        gallery, began, counted = self.gallery, time.perf_counter(), Counted(self.studio.model.model)
        sources = gallery.pixels[:EDITS]
        made = edit(
            counted,
            sources,
            [[target] for target in gallery.targets],
            source_prompt=gallery.prompts[:EDITS],
            method=how.method,
            attention=how.attention,  # type: ignore[arg-type]
            steps=STEPS,
            guidance=EDITED,
            on_event=steps_of(report),
        )
        back, edits = made.reconstruction.cpu().float(), made.edits[:, 0].cpu().float()
        found = errors(sources, back)
        rows = torch.stack([sources, back, edits, gallery.answers], 1).flatten(0, 1)
        about: dict[str, Any] = {
            "key": how.key,
            "label": how.label,
            "method": how.method,
            "attention": how.attention,
            "steps": STEPS,
            "guidance": EDITED,
            "edits": list(zip(gallery.prompts, gallery.targets, strict=False)),
            "psnr": [e["psnr"] for e in found],
            "owners": sorted({*gallery.owners} - {""}),
            "nfe": counted.calls(EDITS),
            "seconds": round(time.perf_counter() - began, 2),
            "command": self._command(how),
        }
        about["file"] = self.studio.save(tiles(rows, 4, scale=2), f"edits_{how.key}", about)
        self.shown[how.key] = about

    def _command(self, how: How) -> str:
        words = {"from": self.gallery.prompts[0], "to": self.gallery.targets[0], "method": how.method}
        words["guidance"] = f"{EDITED:g}"
        picture = str(self.studio.out / DRAWINGS / f"{self.gallery.names[0]}.png")
        return self.studio.command("edit", picture, **words, attention=how.attention)

    def result(self) -> list[dict[str, Any]]:
        """Saves the real drawings, one file each."""
        for k, name in enumerate(self.gallery.names):
            pixels = self.gallery.pixels[k : k + 1]
            about = {"prompt": self.gallery.prompts[k], "owner": self.gallery.owners[k]}
            self.studio.save(tiles(pixels, 1, scale=1), f"{DRAWINGS}/{name}", about)
        return [plain(self.shown[how.key]) for how in HOWS]
