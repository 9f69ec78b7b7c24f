"""Runs the sections one after the other and writes the page."""

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
from .context import Context, DemoModel
from .editing import DRAWINGS, Gallery, edits, text_to_image
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
    quick: bool = False,
) -> dict[str, Any]:
    """Runs the demo and writes ``index.html``, ``results.json`` and the pictures.

    Args:
        out: the output folder.
        model: an unconditional model, for all sections without prompts.
        pictures: at least four real pictures to invert, by the names of their copies in ``out``.
        progress: called after each step and around each section.
        command: the line that the page shows as its own.
        editor: a text model with a ``pictures.csv``, for the sections with prompts. None leaves these sections out.
        resize: fit pictures of another size or number of channels to the model.
        seed: the k-th sample has the seed ``seed + k``.
        quick: leave out samples with the model's largest S.

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
    context = Context(model.name, network, out, seed, None if quick else network.schedule.path.levels)
    sections = {
        "samples": sheets(context),
        "noise": steps_and_noise(context),
        "consistency": consistency(context),
        "inversion": round_trips(context, sources),
        "between": interpolations(context, sources),
    }
    if editor is not None:
        gallery = Gallery(editor.name, editor.model.picture)
        context = Context(editor.name, editor.model, out, seed)
        sections |= {"words": text_to_image(context, gallery), "edits": edits(context, gallery)}
    calls = {key: sum(job.calls for stage in section.stages for job in stage) for key, section in sections.items()}
    results: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    progress.start(sum(calls.values()))
    with worker_threads(network.device.type) as workers:
        for key, section in sections.items():
            since = time.perf_counter()
            with progress.section(TITLES[key], calls[key]):
                results[key] = section.finish([run_jobs(stage, workers, progress) for stage in section.stages])
            seconds[key] = round(time.perf_counter() - since, 2)
        machine = {**_machine(network.device), "workers": workers}
    whole = {
        "ddim": ddim.__version__,
        "command": command,
        "model": dict(model.facts),
        "editor": dict(editor.facts) if editor else None,
        "machine": machine,
        "seed": seed,
        "quick": quick,
        "seconds": {**seconds, "all": round(time.perf_counter() - began, 1)},
        "network_calls": sum(calls.values()),
        **results,
    }
    write_whole(out / "results.json", (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode())
    write_whole(out / "index.html", printable(render(whole, str(out))).encode())
    return whole


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
