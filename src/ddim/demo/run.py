"""Runs the demo's sections one after the other and writes the page."""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from .._utils.errors import InputError
from .._utils.files import write_whole
from .._utils.foreign import readable
from ..cli.files import folder, protect, slug
from ..cli.output import Terminal
from ..cli.session import open_model
from ..cli.tables import describe
from ..core.noise import checked_seed
from ..data.images import read_images
from ..models import bundled_models, bundled_test_images
from .editing import DRAWINGS, Edits, Gallery, Words
from .inverting import Between, Inversion
from .page import render
from .pool import Bars, work_off, workers
from .sampling import SHEET, Consistency, Noise, Sheets
from .studio import Studio

MOST, USUAL = 16, "emoji"


def run(
    terminal: Terminal,
    out: Path,
    *,
    model: str = "fashion",
    images: Path | None = None,
    seed: int = 0,
    quick: bool = False,
    editor: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """The whole demo.

    Args:
        terminal: where progress goes.
        out: the folder for ``index.html``, ``results.json`` and the pictures.
        model: a bundled model, a folder or a hub id; unconditional.
        images: a folder with at least four pictures to invert; by default those beside the model.
        seed: the k-th sample has seed + k.
        quick: leave out all work at the largest S.
        editor: the text model for the sections with words, with its ``pictures.csv``; by default ``emoji``, where the
            package carries it. An empty name leaves them out.
        device: by default cuda where there is one.

    Returns:
        What ``results.json`` holds.

    Raises:
        InputError: a conditional model, too few pictures, or a folder that cannot be used.
    """
    began = time.perf_counter()
    places = ("originals/x.png", f"{DRAWINGS}/x.png", "index.html", "results.json")
    protect([folder(out) / place for place in places])
    counted = open_model(terminal, model, device, "float32", labels=[])
    if counted.classes:
        raise InputError(
            f"the demo needs an unconditional model; {model!r} has {counted.classes} classes.", parameter="model"
        )
    checked_seed(seed, SHEET)
    paths = _pictures(model, images)
    names = [slug(p.stem) for p in paths]
    protect([out / "originals" / f"{n}.png" for n in names], paths)
    pixels = read_images(paths, counted.shape, resize=images is not None)
    long = None if quick else counted.schedule.path.levels
    studio = Studio(counted, model, out, seed, names, pixels, long)
    inversion = Inversion(studio)
    sections: dict[str, Any] = {
        "samples": Sheets(studio),
        "noise": Noise(studio),
        "consistency": Consistency(studio),
        "inversion": inversion,
        "between": Between(studio, inversion),
    }
    asked = editor
    editor = editor if editor is not None else USUAL if USUAL in bundled_models() else ""
    drawer = open_model(terminal, editor, device, "float32") if editor else None
    if drawer is not None:
        if not drawer.text:
            raise InputError(f"the demo's editor needs a text model; {editor!r} takes no prompts.", parameter="editor")
        gallery, easel = Gallery(editor, drawer.picture), Studio(drawer, editor, out, seed, [], pixels, long)
        sections |= {"words": Words(easel, gallery), "edits": Edits(easel, gallery)}
    plan = {key: section.stages() for key, section in sections.items()}
    weights = {key: sum(job.weight for stage in stages for job in stage) for key, stages in plan.items()}
    results: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    with workers(counted.device.type) as count, Bars(terminal, list(weights.values())) as bars:
        for key, section in sections.items():
            since = time.perf_counter()
            with bars.section(section.title, weights[key]):
                for stage in plan[key]:
                    work_off(stage, count, bars)
                results[key] = section.result()
            seconds[key] = round(time.perf_counter() - since, 2)
    whole = {
        "ddim": __version__,
        "command": studio.command(
            "demo", **({} if out == Path("demo") else {"out": out}), **_asked(seed, quick, asked)
        ),
        "model": describe(counted, model),
        "editor": describe(drawer, editor) if drawer is not None else None,
        "machine": {**_machine(str(counted.device)), "workers": count},
        "seed": seed,
        "quick": quick,
        "seconds": {**seconds, "all": round(time.perf_counter() - began, 1)},
        "network_calls": sum(weights.values()),
        **results,
    }
    write_whole(out / "results.json", (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode())
    write_whole(out / "index.html", readable(render(whole, str(out))).encode())
    return whole


def _pictures(model: str, images: Path | None) -> list[Path]:
    """Up to 16 pictures to invert."""
    if images is not None:
        if not images.is_dir():
            raise InputError(f"{images} is not a folder.", parameter="images")
        found, where = sorted(images.glob("*.png")), str(images)
    elif model in bundled_models():
        found, where = bundled_test_images(model), "the bundled model"
    else:
        found, where = sorted(Path(model, "test_images").glob("*.png")), f"{model}/test_images"
    if len(found) < 4:
        raise InputError(
            f"the demo inverts four PNGs or more, but {where} has {len(found)}; name another folder.",
            parameter="images",
        )
    return found[:MOST]


def _asked(seed: int, quick: bool, editor: str | None) -> dict[str, Any]:
    other = {} if editor is None else {"editor": editor}
    return {**({"seed": seed} if seed else {}), **({"quick": True} if quick else {}), **other}


def _machine(device: str) -> dict[str, Any]:
    """What it ran on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "processor": _processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
