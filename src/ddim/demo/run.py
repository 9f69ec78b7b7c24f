"""Runs the sections one after the other, and writes the page after each."""

import contextlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import ddim

from .._utils.cores import usable_cores
from .._utils.error_text import printable
from .._utils.files import write_whole
from ..core.noise import checked_seed
from ..data.images import read_images
from .context import Context, DemoModel, Section
from .editing import DRAWINGS, Gallery, edits, other_edits, text_to_image
from .inverting import ORIGINALS, Sources, interpolations, round_trips
from .jobs import Progress, run_jobs, worker_threads
from .page import TITLES, render
from .sampling import SHEET, consistency, sheets, steps_and_noise

LEAST, MOST = 4, 16
"""How many pictures the demo inverts."""


def source_pictures(model: str, images: Path | None) -> list[Path]:
    """The pictures to invert, at most 16.

    Args:
        model: the bundled model or the folder whose own test pictures are used.
        images: a folder to use instead.

    Raises:
        InputError: ``images`` is not a folder, or there are fewer than four PNG files.
    """
    if images is not None:
        if not images.is_dir():
            raise ddim.InputError(f"{images} is not a folder.", parameter="images")
        found, where = sorted(images.glob("*.png")), str(images)
    elif model in ddim.bundled_models():
        found, where = ddim.bundled_test_images(model), "the bundled model"
    else:
        found, where = sorted(Path(model, "test_images").glob("*.png")), f"{model}/test_images"
    if len(found) < LEAST:
        raise ddim.InputError(
            f"the demo inverts at least four PNG files, but {where} has {len(found)}; name another folder.",
            parameter="images",
        )
    return found[:MOST]


def output_files(out: Path, names: Sequence[str]) -> list[Path]:
    """Files that ``run`` writes: the page, its numbers, the named pictures, and one in each folder."""
    pictures = [out / ORIGINALS / f"{name}.png" for name in names]
    return [out / "index.html", out / "results.json", out / DRAWINGS / "x.png", *pictures]


def run(
    out: Path,
    model: DemoModel,
    pictures: Mapping[str, Path],
    progress: Progress,
    *,
    command: str,
    editor: DemoModel | None = None,
    resize: bool = False,
    seed: int = 0,
    full: bool = False,
) -> dict[str, Any]:
    """Runs the demo and writes ``index.html``, ``results.json`` and the pictures.

    The page and its numbers are written whole after each section, beginning with the first. If a later section is
    interrupted or fails, they are written once more and say so.

    Args:
        out: the output folder.
        model: an unconditional model, for all sections without prompts.
        pictures: at least four real pictures to invert, by the names of their copies in ``out``.
        progress: called after each step and around each section.
        command: the line that the page shows as its own.
        editor: a text model with a ``pictures.csv``, for the sections with prompts. None leaves these sections out.
        resize: fit pictures of another size or number of channels to the model.
        seed: the k-th sample has the seed ``seed + k``.
        full: measure all of it again: samples with the model's largest S, round trips at three S, the slow inversion
            of the edits. Otherwise the page takes the longest tables from stored results, if they are of this model.

    Returns:
        The content of ``results.json``.

    Raises:
        InputError: a conditional model, an editor without prompts or ``pictures.csv``, a picture or a seed that does
            not fit.
        DDIMError: a network returned NaN, or a file cannot be written.
    """
    began, network = time.perf_counter(), model.model
    if network.classes:
        raise ddim.InputError(
            f"the demo needs an unconditional model; {model.name!r} has {network.classes} classes.", parameter="model"
        )
    if editor is not None and not editor.model.text:
        raise ddim.InputError(
            f"the demo's editor needs a text model; {editor.name!r} takes no prompts.", parameter="editor"
        )
    checked_seed(seed, SHEET)
    sources = Sources(list(pictures), read_images(list(pictures.values()), network.shape, resize=resize))
    sections = _sections(Context(model.name, network, out, seed, full), sources, editor)
    calls = {key: sum(job.calls for stage in section.stages for job in stage) for key, section in sections.items()}
    progress.start(sum(calls.values()))
    with worker_threads(network.device.type) as workers:
        facts = {
            "ddim": ddim.__version__,
            "command": command,
            "model": dict(model.facts),
            "editor": dict(editor.facts) if editor else None,
            "machine": {**_machine(network.device), "workers": workers},
            "seed": seed,
            "full": full,
        }
        page = _Page(out, facts, calls, began)
        with page:
            for key, section in sections.items():
                since = time.perf_counter()
                with progress.section(TITLES[key], calls[key]):
                    made = section.finish([run_jobs(stage, workers, progress) for stage in section.stages])
                page.add(key, made, time.perf_counter() - since)
                if len(page.results) == 1:
                    progress.page(page.file)
    return page.content("complete")


def _sections(context: Context, sources: Sources, editor: DemoModel | None) -> dict[str, Section]:
    """The sections by their names, in the order of the page: edits first, which is what most people came for."""
    inverting = {"inversion": round_trips(context, sources), "between": interpolations(context, sources)}
    sampling = {"samples": sheets(context), "noise": steps_and_noise(context), "consistency": consistency(context)}
    if editor is None:
        return {**inverting, **sampling}
    gallery = Gallery(editor.name, editor.model.picture)
    words = Context(editor.name, editor.model, context.out, context.seed, context.full)
    editing = {"edits": edits(words, gallery), "methods": other_edits(words, gallery)}
    return {**editing, **inverting, "words": text_to_image(words, gallery), **sampling}


class _Page:
    """The page and its numbers, written whole after each section.

    As a context it writes them once more if an exception ends it: a page that waits for the rest would load itself
    again for ever.

    Args:
        out: the output folder.
        facts: what the page says beside its sections.
        calls: network calls by section, in the order of the page.
        began: when the demo began.
    """

    def __init__(self, out: Path, facts: Mapping[str, Any], calls: Mapping[str, int], began: float) -> None:
        self.out, self.facts, self.calls, self.began = out, facts, calls, began
        self.file = out / "index.html"
        self.results: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> "_Page":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self.results:
            with contextlib.suppress(ddim.DDIMError):  # the first error says more
                self.write("ended")

    def add(self, key: str, made: Any, seconds: float) -> None:
        """Adds a section, and writes the page with it."""
        self.results[key], self.seconds[key] = made, round(seconds, 2)
        self.write("complete" if len(self.results) == len(self.calls) else "making")

    def write(self, state: str) -> None:
        """Writes the page and its numbers as far as they are."""
        content = self.content(state)
        write_whole(self.out / "results.json", (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
        write_whole(self.file, printable(render(content, str(self.out))).encode())

    def content(self, state: str) -> dict[str, Any]:
        """The content of ``results.json``; ``state`` is ``making``, ``complete`` or ``ended``."""
        return {
            **self.facts,
            "state": state,
            "sections": list(self.calls),
            "seconds": {**self.seconds, "all": round(time.perf_counter() - self.began, 1)},
            "network_calls": sum(self.calls[key] for key in self.results),
            **self.results,
        }


def _machine(device: torch.device) -> dict[str, Any]:
    """The machine that the demo runs on."""
    facts = {
        "processor": _processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
