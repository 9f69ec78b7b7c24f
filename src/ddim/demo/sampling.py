"""The sections of the demo that draw from noise: sheets, S against eta, and one x_T at many S."""

from typing import Any

from torch import Tensor

from ..cli.work import errors
from .pictures import tiles
from .studio import Job, Studio

SHEET = 100
CELL = 8
SIGMA_HAT = "sigma-hat"
NOISES: list[tuple[str, float, str]] = [
    ("0", 0.0, "ddim"),
    ("0.2", 0.2, "ddim"),
    ("0.5", 0.5, "ddim"),
    ("1", 1.0, "ddim"),
    (SIGMA_HAT, 0.0, "ddpm"),
]
"""Columns of the table: what it is called, eta, and the solver."""


class Sheets:
    """100 samples at S = 20, 50 and 1000."""

    title = "Samples"

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.done: list[dict[str, Any]] = []

    def jobs(self) -> list[Job]:
        """One a sheet."""
        return [Job(SHEET * s, lambda report, s=s: self._sheet(s, report)) for s in self.studio.steps(20, 50)]

    def _sheet(self, steps: int, report: Any) -> None:
        self.done.append(self.studio.sample(steps, SHEET, 0.0, "ddim", report))

    def result(self) -> list[dict[str, Any]]:
        """Saves the sheets."""
        for one in self.done:
            one["file"] = self.studio.save(tiles(one["images"], 10, scale=3, gap=3), f"samples_S{one['steps']}", one)
        _compare(self.done)
        return [_plain(one) for one in self.done]


class Noise:
    """Rows S, columns eta: the same seeds in every cell."""

    title = "Steps and noise"

    def __init__(self, studio: Studio) -> None:
        self.studio, self.done = studio, []
        self.steps = studio.steps(10, 20, 50, 100)

    def jobs(self) -> list[Job]:
        """One a cell; the cells of eta = 0 that a sheet holds already cost nothing."""
        free = set(self.studio.steps(20, 50))
        return [
            Job(
                0 if label == "0" and s in free else CELL * s,
                lambda report, s=s, noise=(label, eta, solver): self._cell(s, *noise, report),
            )
            for s in self.steps
            for label, eta, solver in NOISES
        ]

    def _cell(self, steps: int, label: str, eta: float, solver: str, report: Any) -> None:
        self.done.append({**self.studio.sample(steps, CELL, eta, solver, report), "noise": label})

    def result(self) -> list[dict[str, Any]]:
        """Saves the cells."""
        for one in self.done:
            name = f"noise_S{one['steps']}_{'eta' * (one['noise'] != SIGMA_HAT)}{one['noise']}"
            one["file"] = self.studio.save(tiles(one["images"], 4, scale=3, gap=3), name, one)
        return [_plain(one) for one in self.done]


class Consistency:
    """One x_T, many S: what is sampled for the table's first column, in rows."""

    title = "One noise, many S"

    def __init__(self, studio: Studio) -> None:
        self.studio, self.done = studio, []

    def jobs(self) -> list[Job]:
        """Nothing new is computed."""
        return [Job(0, lambda report, s=s: self._row(s)) for s in self.studio.steps(10, 20, 50, 100)]

    def _row(self, steps: int) -> None:
        self.done.append(self.studio.sample(steps, CELL, 0.0, "ddim", None))

    def result(self) -> list[dict[str, Any]]:
        """Saves the rows, each with its distance from the last."""
        for one in self.done:
            one["file"] = self.studio.save(tiles(one["images"], CELL), f"one_noise_S{one['steps']}", one)
        _compare(self.done)
        return [_plain(one) for one in self.done]


def _compare(done: list[dict[str, Any]]) -> None:
    """Adds to each its mean squared distance from the one with the most steps, for the same seeds."""
    longest: Tensor = done[-1]["images"]
    for one in done[:-1]:
        found = errors(longest, one["images"])
        one["mse_to_longest"] = sum(e["mse"] or 0.0 for e in found) / len(found)


def _plain(one: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in one.items() if not isinstance(v, Tensor)}
