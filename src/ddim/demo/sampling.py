"""The sections that sample: sheets of samples, a table of S against eta, and the same noise at several S."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ddim

from .context import Context, Section
from .jobs import Job, Listen
from .pictures import mean_mse, tiles

SHEET, PART, CELL, BATCH = 100, 25, 8, 50
"""Images on a sheet, in a job for a sheet, in a cell of the table, and in a network call."""


@dataclass(frozen=True)
class Noise:
    """How much noise a step adds: a column of the table."""

    name: str
    eta: float = 0.0
    solver: str = "ddim"

    @property
    def options(self) -> dict[str, str]:
        """The options of ``ddim sample`` for it."""
        if self.solver != "ddim":
            return {"solver": self.solver}
        return {"eta": f"{self.eta:g}"} if self.eta else {}


NONE, SIGMA_HAT = Noise("0"), Noise("sigma-hat", solver="ddpm")
NOISES = (NONE, Noise("0.2", 0.2), Noise("0.5", 0.5), Noise("1", 1.0), SIGMA_HAT)


def shown_steps(context: Context) -> list[int]:
    """The S of the table and of the rows from the same noise."""
    return context.steps(10, 20, 50, 100) if context.full else context.steps(10, 20, 50)


class Samples(NamedTuple):
    """Images [N, C, H, W], network calls for each, and when sampling began and ended, if it was not earlier."""

    images: Tensor
    nfe: float
    time: tuple[float, float] | None = None


def draw(context: Context, steps: int, count: int, noise: Noise, first: int, listen: Listen) -> Samples:
    """The samples from number ``first`` on. Those without noise may be there already."""
    if noise == NONE and steps in context.samples:
        return Samples(context.samples[steps][first : first + count], steps)
    began, model = time.perf_counter(), context.counted()
    images = ddim.sample(
        model,
        count,
        steps=steps,
        eta=noise.eta,
        seed=context.seed + first,
        solver=noise.solver,
        batch=BATCH,
        on_event=listen(1),
    ).cpu()
    return Samples(images, model.calls(count), (began, time.perf_counter()))


def describe(context: Context, samples: Samples, steps: int, noise: Noise) -> dict[str, Any]:
    """What ``results.json`` says about samples from the first seed on."""
    count, seed = len(samples.images), {"seed": context.seed} if context.seed else {}
    return {
        "solver": noise.solver,
        "steps": steps,
        "eta": noise.eta if noise.solver == "ddim" else None,
        "seeds": list(range(context.seed, context.seed + count)),
        "nfe": samples.nfe,
        "seconds": round(samples.time[1] - samples.time[0], 2) if samples.time else None,
        "command": context.command("sample", n=count, steps=steps, **noise.options, **seed),
    }


def sheets(context: Context) -> Section:
    """100 samples at S = 20 and 50 (``full``: the longest too), a stage for each, so that each has its own time."""
    steps, firsts = context.steps(20, 50), range(0, SHEET, PART)

    def finish(results: list[list[Samples]]) -> list[dict[str, Any]]:
        abouts: list[dict[str, Any]] = []
        for s, parts in zip(steps, results, strict=True):
            context.samples[s] = images = torch.cat([part.images for part in parts])
            times = [part.time for part in parts if part.time]
            whole = Samples(images, parts[0].nfe, (min(t[0] for t in times), max(t[1] for t in times)))
            about = describe(context, whole, s, NONE)
            about["file"] = context.save(tiles(images, 10, scale=3, gap=3), f"samples_S{s}", about)
            abouts.append(about)
        add_distances(abouts, [context.samples[s] for s in steps])
        return abouts

    return Section([[Job(PART * s, partial(draw, context, s, PART, NONE, k)) for k in firsts] for s in steps], finish)


def steps_and_noise(context: Context) -> Section:
    """A table: a row for each S, a column for each amount of noise, and the same seeds in every cell."""
    cells = [(s, noise) for s in shown_steps(context) for noise in NOISES]

    def calls(steps: int, noise: Noise) -> int:
        return 0 if noise == NONE and steps in context.steps(20, 50) else CELL * steps  # ``sheets`` has these samples

    def finish(results: list[list[Samples]]) -> list[dict[str, Any]]:
        abouts: list[dict[str, Any]] = []
        for (s, noise), samples in zip(cells, results[0], strict=True):
            about = {**describe(context, samples, s, noise), "noise": noise.name}
            if noise == NONE:
                context.samples.setdefault(s, samples.images)
            name = f"noise_S{s}_{'' if noise == SIGMA_HAT else 'eta'}{noise.name}"
            about["file"] = context.save(tiles(samples.images, 4, scale=3, gap=3), name, about)
            abouts.append(about)
        return abouts

    return Section([[Job(calls(*cell), partial(draw, context, cell[0], CELL, cell[1], 0)) for cell in cells]], finish)


def consistency(context: Context) -> Section:
    """The first column of the table again, in rows: the same x_T with several S."""

    def finish(_: list[list[Any]]) -> list[dict[str, Any]]:
        rows = {s: Samples(context.samples[s][:CELL], s) for s in shown_steps(context)}
        abouts = [describe(context, row, s, NONE) for s, row in rows.items()]
        for (s, row), about in zip(rows.items(), abouts, strict=True):
            about["file"] = context.save(tiles(row.images, CELL), f"one_noise_S{s}", about)
        add_distances(abouts, [row.images for row in rows.values()])
        return abouts

    return Section([], finish)


def add_distances(abouts: list[dict[str, Any]], images: list[Tensor]) -> None:
    """Adds the mean squared error between the images of each and those of the last, which has the most steps."""
    for about, own in zip(abouts[:-1], images[:-1], strict=True):
        about["mse_to_longest"] = mean_mse(images[-1], own)
