"""The sections with prompts: samples of prompts, and edits of real pictures."""

import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import ddim

from ..data.images import read_images
from ..evaluation.metrics import errors
from .context import Context, Section
from .jobs import Job, Listen
from .pictures import tiles

STEPS = 50
SAMPLE_GUIDANCE, EDIT_GUIDANCE = 5.0, 3.0
"""At 7.5, the usual guidance of larger models, edits of ``emoji`` lose the colours of their source."""
EDITS = 3
DRAWINGS = "drawings"
"""The folder of the real pictures, below the output folder. It is not ``originals``: the page's commands invert
everything there with the pixel model."""


@dataclass(frozen=True)
class EditMethod:
    """An inversion with a kind of attention control, as the page shows it."""

    key: str
    label: str
    method: str
    attention: Literal["refine", "none"]


FIRST = EditMethod("direct_refine", "Direct, refined attention", "direct", "refine")
"""The method of the first edits, the default of ``ddim edit``."""
OTHERS = (
    EditMethod("negative_refine", "Negative prompt, refined attention", "negative-prompt", "refine"),
    EditMethod("edit_friendly", "Edit-friendly DDPM", "edit-friendly", "none"),
    EditMethod("direct_plain", "Direct, no attention control", "direct", "none"),
    EditMethod("ddim_plain", "Plain DDIM", "ddim", "none"),
)
SLOW = (EditMethod("null_refine", "Null-text, refined attention", "null-text", "refine"),)
"""Five times as many network calls as the others: only if ``full``."""


class Gallery:
    """The prompts and real pictures that ``pictures.csv`` lists beside a text model.

    The k-th picture of ``answers/`` shows what the edit of the k-th picture of ``test_images/`` should give. Rows
    without a file are prompts of the training set.

    Args:
        name: a bundled model, or a folder.
        shape: (C, H, W) of the model's pictures.

    Attributes:
        pixels, names, prompts, owners: the real pictures [N, C, H, W] in [0, 1], their file names without suffix,
            their prompts, and who owns them (empty if the list does not say).
        answers, targets: the first three answers [3, C, H, W], and their prompts.
        known: the prompts of the training set.

    Raises:
        InputError: there is no such list, or it has fewer than three sources or answers.
    """

    def __init__(self, name: str, shape: tuple[int, int, int]) -> None:
        root = ddim.bundled_test_images(name)[0].parents[1] if name in ddim.bundled_models() else Path(name)
        listed = root / "pictures.csv"
        if not listed.is_file():
            raise ddim.InputError(f"{root} has no pictures.csv. The demo's edits need one beside the model.")
        with listed.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        sources = [row for row in rows if row["file"].startswith("test_images/")]
        answers = [row for row in rows if row["file"].startswith("answers/")][:EDITS]
        if len(answers) < EDITS or len(sources) < EDITS:
            raise ddim.InputError(
                f"{listed} lists {len(sources)} sources and {len(answers)} answers. The demo needs {EDITS} of each."
            )
        self.prompts = [row["prompt"] for row in sources]
        self.known = [row["prompt"] for row in rows if not row["file"]]
        self.names = [Path(row["file"]).stem for row in sources]
        self.owners = [row.get("source") or "" for row in sources]
        self.targets = [row["prompt"] for row in answers]
        self.pixels = read_images([root / row["file"] for row in sources], shape)
        self.answers = read_images([root / row["file"] for row in answers], shape)

    @property
    def credits(self) -> list[str]:
        """The owners of the pictures, each once."""
        return sorted({*self.owners} - {""})


def text_to_image(context: Context, gallery: Gallery) -> Section:
    """Samples for prompts of the training set, and for the prompts of real pictures that the model never saw."""
    lists = [prompts for prompts in (gallery.known, gallery.prompts) if prompts]

    def run(prompts: list[str], listen: Listen) -> tuple[Tensor, float, float]:
        """The images, network calls per image, and seconds."""
        began, model, count = time.perf_counter(), context.counted(), len(prompts)
        settings = {"prompt": prompts, "steps": STEPS, "guidance": SAMPLE_GUIDANCE, "seed": context.seed}
        images = ddim.sample(model, count, **settings, on_event=listen(1)).cpu()
        return images, model.calls(count), time.perf_counter() - began

    def command(prompt: str) -> str:
        guidance = f"{SAMPLE_GUIDANCE:g}"
        return context.command("sample", prompt=prompt, guidance=guidance, steps=STEPS, seed=context.seed, n=1)

    def finish(results: list[list[tuple[Tensor, float, float]]]) -> dict[str, Any]:
        """Saves two sheets: samples for known prompts; and real pictures, each above the sample for its prompt."""
        columns, (images, nfe, _) = -(-len(gallery.prompts) // 2), results[0][-1]
        pairs = torch.stack([gallery.pixels, images], 1)
        sheet = torch.cat([part.transpose(0, 1).flatten(0, 1) for part in pairs.split(columns)])
        about: dict[str, Any] = {
            "prompts": gallery.prompts,
            "known": gallery.known,
            "steps": STEPS,
            "guidance": SAMPLE_GUIDANCE,
            "nfe": nfe,
            "owners": gallery.credits,
            "seconds": round(sum(seconds for *_, seconds in results[0]), 2),
            "command": command(gallery.prompts[0]),
        }
        if gallery.known:
            about["known_command"] = command(gallery.known[0])
            about["known_file"] = context.save(tiles(results[0][0][0], columns, scale=1), "words_known", about)
        about["file"] = context.save(tiles(sheet, columns, scale=1), "words", about)
        return about

    return Section([[Job(2 * STEPS * len(prompts), partial(run, prompts)) for prompts in lists]], finish)


def edits(context: Context, gallery: Gallery) -> Section:
    """The first section: three edits of real pictures, a job for each, by the method that ``ddim edit`` uses."""

    def run(k: int, listen: Listen) -> dict[str, Any]:
        about, views = edit(context, gallery, FIRST, [k], listen)
        about |= {"from": gallery.prompts[k], "to": gallery.targets[k], "owner": gallery.owners[k]}
        return {**about, "file": context.save(tiles(views, 4), f"edit_{gallery.names[k]}", about)}

    def finish(results: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        for k, name in enumerate(gallery.names):
            about = {"prompt": gallery.prompts[k], "owner": gallery.owners[k]}
            context.save(tiles(gallery.pixels[k : k + 1], 1, scale=1), f"{DRAWINGS}/{name}", about)
        return results[0]

    return Section([[Job(edit_calls(FIRST, 1), partial(run, k)) for k in range(EDITS)]], finish)


def other_edits(context: Context, gallery: Gallery) -> Section:
    """The same edits by other inversions, with attention control and without it."""
    methods = (*SLOW, *OTHERS) if context.full else OTHERS

    def run(how: EditMethod, listen: Listen) -> dict[str, Any]:
        about, views = edit(context, gallery, how, range(EDITS), listen)
        about |= {"owners": gallery.credits}
        return {**about, "file": context.save(tiles(views, 4, scale=2), f"edits_{how.key}", about)}

    return Section([[Job(edit_calls(how, EDITS), partial(run, how)) for how in methods]], lambda results: results[0])


def edit_calls(how: EditMethod, pictures: int) -> int:
    """Network calls for so many pictures."""
    tuning = 20 if how.method == "null-text" else 0  # at most: tuning stops early once the loss is small
    return pictures * STEPS * (1 + 4 + tuning)


def edit(
    context: Context, gallery: Gallery, how: EditMethod, which: Sequence[int], listen: Listen
) -> tuple[dict[str, Any], Tensor]:
    """Edits the pictures with the numbers ``which``.

    Returns:
        What ``results.json`` says of the edits; and [4 n, C, H, W], for each of the n pictures the source, its
        reconstruction, the edit and the answer.
    """
    began, model = time.perf_counter(), context.counted()
    rows, prompts = list(which), [gallery.prompts[k] for k in which]
    targets, sources = [gallery.targets[k] for k in which], gallery.pixels[rows]
    edited = ddim.edit(
        model,
        sources,
        [[target] for target in targets],
        source_prompt=prompts,
        method=how.method,
        attention=how.attention,
        steps=STEPS,
        guidance=EDIT_GUIDANCE,
        on_event=listen(1),
    )
    reconstruction = edited.reconstruction.cpu().float()
    picture = str(context.out / DRAWINGS / f"{gallery.names[rows[0]]}.png")
    words = {"from": prompts[0], "to": targets[0], "method": how.method, "guidance": f"{EDIT_GUIDANCE:g}"}
    about: dict[str, Any] = {
        "key": how.key,
        "label": how.label,
        "method": how.method,
        "attention": how.attention,
        "steps": STEPS,
        "guidance": EDIT_GUIDANCE,
        "psnr": [error["psnr"] for error in errors(sources, reconstruction)],
        "nfe": model.calls(len(rows)),
        "seconds": round(time.perf_counter() - began, 2),
        "command": context.command("edit", picture, **words, attention=how.attention),
    }
    views = torch.stack([sources, reconstruction, edited.edits[:, 0].cpu().float(), gallery.answers[rows]], 1)
    return about, views.flatten(0, 1)
