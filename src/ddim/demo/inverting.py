"""The sections that start from real pictures: round trips by several methods, and interpolations."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

import ddim

from ..evaluation.metrics.pairwise import decibels, errors
from .context import Context, Section
from .jobs import Job, Listen
from .pictures import AMPLIFIED, difference, latent, mean_mse, same_as_png, tiles

ORIGINALS = "originals"
"""The folder of the pictures, below the output folder."""
COLUMNS = 4
METHODS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("ddim", "DDIM", "ddim", {}),
    ("ddim5", "DDIM ×5", "ddim", {"iterations": 5}),
    ("heun", "Heun", "heun", {}),
    ("edict", "EDICT", "edict", {}),
    ("bdia", "BDIA", "bdia", {}),
    ("belm", "BELM", "belm", {}),
]
"""Each with its key in ``results.json``, its label on the page, its name and its options."""
EXACT = "bdia"
"""The key of the method whose codes are interpolated."""


class Sources(NamedTuple):
    """The real pictures to invert: file names without their suffix, and pixels [N, C, H, W] in [0, 1]."""

    names: Sequence[str]
    pixels: Tensor


def round_trip_steps(context: Context) -> list[int]:
    """S = 50, or if ``full`` 10, 20 and 50, as far as the model has levels for them."""
    levels = context.model.schedule.path.levels
    return [s for s in ((10, 20, 50) if context.full else (50,)) if s <= levels] or [levels]


def round_trips(context: Context, sources: Sources) -> Section:
    """Every method on every picture at several S; the pictures of the largest S are shown."""
    (names, pixels), steps = sources, round_trip_steps(context)

    def run(key: str, label: str, name: str, options: dict[str, Any], s: int, listen: Listen) -> dict[str, Any]:
        """Inverts and reconstructs the pictures, and saves the results of the largest S."""
        began, model, method = time.perf_counter(), context.counted(), ddim.make_inversion(name, options)
        share = method.nfe / _calls_per_step(method)
        code = ddim.invert(model, pixels, steps=s, method=method, on_event=listen(share))
        nfe = {"invert": model.calls(len(names))}
        reconstruction = ddim.reconstruct(model, code, on_event=listen(1 - share)).cpu()
        nfe["reconstruct"] = model.calls(len(names))
        mse, found = mean_mse(pixels, reconstruction), errors(pixels, reconstruction)
        numbers: dict[str, Any] = {
            "method": key,
            "label": label,
            "name": name,
            "given": options,
            "exact": method.exact,
            "steps": s,
            "options": dict(method.options),
            "mse": mse,
            "psnr": decibels(mse),
            "max": max(error["max"] or 0.0 for error in found),
            "same_png": same_as_png(pixels, reconstruction),
            "pictures": len(names),
            "nfe": nfe,
            "seconds": round(time.perf_counter() - began, 2),
        }
        if s < steps[-1]:
            return {"numbers": numbers}
        context.codes[key] = code
        command = context.command("invert", str(context.out / ORIGINALS / "*.png"), method=name, steps=s)
        shown = {
            **numbers,
            "paper": method.paper,
            "latent_mean": float(code.x.mean()),
            "latent_std": float(code.x.std()),
            "command": command + "".join(f" -o {option}={value}" for option, value in options.items()),
        }
        views = {
            "latent": latent(code.x),
            "reconstruction": reconstruction,
            "difference": difference(pixels, reconstruction),
        }
        files = {
            what: context.save(tiles(view, COLUMNS), f"inversion_{key}_{what}", {**shown, "shows": what})
            for what, view in views.items()
        }
        each = [{"image": image, **error} for image, error in zip(names, found, strict=True)]
        return {"numbers": numbers, "shown": {**shown, "each": each, "files": files}}

    def finish(results: list[list[dict[str, Any]]]) -> dict[str, Any]:
        for k, name in enumerate(names):
            context.save(tiles(pixels[k : k + 1], 1, scale=1), f"{ORIGINALS}/{name}", {"shows": "original"})
        return {
            "originals": context.save(tiles(pixels, COLUMNS), "inversion_originals", {"shows": "originals"}),
            "images": list(names),
            "amplified": AMPLIFIED,
            "steps": steps[-1],
            "methods": [result["shown"] for result in results[0] if "shown" in result],
            "curve": [result["numbers"] for result in results[0]],
        }

    jobs: list[Job] = []
    for key, label, name, options in METHODS:
        calls = _calls_per_step(ddim.make_inversion(name, options)) * len(names)
        jobs += [Job(calls * s, partial(run, key, label, name, options, s)) for s in steps]
    return Section([jobs], finish)


def _calls_per_step(method: ddim.Inversion) -> int:
    """Network calls of a step in both directions."""
    return method.nfe + method.solver().nfe


@dataclass(frozen=True)
class Figure:
    """An interpolation, as the page shows it.

    Attributes:
        which: the numbers of its pictures.
        rows, columns: of its images.
        ends: the numbers of the images that are reconstructions of the pictures.
        option: the option of ``ddim interpolate`` that asks for it.
    """

    which: list[int]
    rows: int
    columns: int
    ends: list[int]
    option: dict[str, Any]


def interpolations(context: Context, sources: Sources) -> Section:
    """A row between two pictures, a chain through four, and a grid between four corners, on codes of ``EXACT``."""
    (names, pixels), steps = sources, round_trip_steps(context)[-1]

    def pick(*kinds: str) -> list[int]:
        """For each kind the first picture whose name ends with it, or else the first that is not taken yet."""
        chosen: list[int] = []
        for kind in kinds:
            rest = [k for k in range(len(names)) if k not in chosen]
            chosen.append(next((k for k in rest if names[k].endswith(kind)), rest[0]))
        return chosen

    figures = {
        "row": Figure(pick("sneaker", "ankle-boot"), 1, 11, [0, 10], {"frames": 11}),
        "chain": Figure(pick("t-shirt", "pullover", "coat", "dress"), 1, 13, [0, 4, 8, 12], {"frames": 5}),
        "corners": Figure(pick("trouser", "dress", "sandal", "bag"), 7, 7, [0, 6, 42, 48], {"grid": "7x7"}),
    }

    def calls(figure: Figure) -> int:  # the pictures are also reconstructed, and inverted again by plain DDIM
        return (figure.rows * figure.columns + 2 * len(figure.which)) * steps

    def run(figure: Figure, listen: Listen) -> tuple[Tensor, float]:
        began, codes = time.perf_counter(), [context.codes[EXACT][k] for k in figure.which]
        if figure.rows == 1:
            images = ddim.interpolate(context.model, *codes, frames=figure.option["frames"], on_event=listen(1))
        else:
            rows, columns = figure.rows, figure.columns
            images = ddim.interpolate_grid(context.model, *codes, rows=rows, columns=columns, on_event=listen(1))
        return images.cpu(), time.perf_counter() - began

    def save(key: str, figure: Figure, images: Tensor, seconds: float) -> dict[str, Any]:
        between = [names[k] for k in figure.which]
        files = [str(context.out / ORIGINALS / f"{name}.png") for name in between]
        about: dict[str, Any] = {
            "between": between,
            "method": EXACT,
            "steps": steps,
            **figure.option,
            "count": len(images),
            "seconds": round(seconds, 2),
            "command": context.command("interpolate", *files, steps=steps, **figure.option),
            "mse_at_ends": mean_mse(pixels[figure.which], images[figure.ends]),
        }
        return {**about, "file": context.save(tiles(images, figure.columns), f"between_{key}", about)}

    def finish(results: list[list[tuple[Tensor, float]]]) -> dict[str, Any]:
        made = zip(figures.items(), results[0], strict=True)
        return {key: save(key, figure, *images_and_seconds) for (key, figure), images_and_seconds in made}

    return Section([[Job(calls(figure), partial(run, figure)) for figure in figures.values()]], finish)
