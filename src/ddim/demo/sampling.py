"""The sections of the demo that draw from noise: sheets, S against eta, and one x_T at many S."""

from typing import Any

import torch
from torch import Tensor

from ..cli.output import Report
from ..cli.session import errors
from .pictures import tiles
from .studio import Job, Studio, plain

SHEET = 100
PART = 25
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
        self.studio, self.steps = studio, studio.steps(20, 50)
        self.parts: dict[tuple[int, int], dict[str, Any]] = {}

    def stages(self) -> list[list[Job]]:
        """One a sheet, so that each has its own time; quarters of it side by side."""
        quarters = range(0, SHEET, PART)
        return [[Job(PART * s, lambda r, s=s, q=q: self._part(s, q, r)) for q in quarters] for s in self.steps]

    def _part(self, steps: int, first: int, report: Report | None) -> None:
        self.parts[steps, first] = self.studio.sample(steps, PART, 0.0, "ddim", report, first)

    def result(self) -> list[dict[str, Any]]:
        """Saves the sheets, and keeps the samples for the sections to come."""
        done = []
        for steps in self.steps:
            parts = [self.parts[steps, first] for first in range(0, SHEET, PART)]
            images = torch.cat([part["images"] for part in parts])
            self.studio.sampled[steps] = images
            spent = max(p["spent"][1] for p in parts) - min(p["spent"][0] for p in parts)
            whole = self.studio.sample(steps, SHEET, 0.0, "ddim", None)
            done.append({**whole, "nfe": parts[0]["nfe"], "seconds": round(spent, 2)})
        for one in done:
            one["file"] = self.studio.save(tiles(one["images"], 10, scale=3, gap=3), f"samples_S{one['steps']}", one)
        _compare(done)
        return [plain(one) for one in done]


class Noise:
    """Rows S, columns eta: the same seeds in every cell."""

    title = "Steps and noise"

    def __init__(self, studio: Studio) -> None:
        self.studio, self.steps = studio, studio.steps(10, 20, 50, 100)
        self.cells: dict[tuple[int, str], dict[str, Any]] = {}

    def stages(self) -> list[list[Job]]:
        """A job a cell; the cells of eta = 0 that a sheet holds already cost nothing."""
        free = set(self.studio.steps(20, 50))
        return [
            [
                Job(
                    0 if label == "0" and s in free else CELL * s,
                    lambda report, s=s, noise=(label, eta, solver): self._cell(s, *noise, report),
                )
                for s in self.steps
                for label, eta, solver in NOISES
            ]
        ]

    def _cell(self, steps: int, label: str, eta: float, solver: str, report: Report | None) -> None:
        self.cells[steps, label] = {**self.studio.sample(steps, CELL, eta, solver, report), "noise": label}

    def result(self) -> list[dict[str, Any]]:
        """Saves the cells; those of eta = 0 are kept for the next section."""
        done = [self.cells[s, label] for s in self.steps for label, _, _ in NOISES]
        for one in done:
            if one["noise"] == "0":
                self.studio.sampled.setdefault(one["steps"], one["images"])
            name = f"noise_S{one['steps']}_{'eta' * (one['noise'] != SIGMA_HAT)}{one['noise']}"
            one["file"] = self.studio.save(tiles(one["images"], 4, scale=3, gap=3), name, one)
        return [plain(one) for one in done]


class Consistency:
    """One x_T, many S: what is sampled for the table's first column, in rows."""

    title = "One noise, many S"

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def stages(self) -> list[list[Job]]:
        """Nothing new is computed."""
        return []

    def result(self) -> list[dict[str, Any]]:
        """Saves the rows, each with its distance from the last."""
        done = [self.studio.sample(s, CELL, 0.0, "ddim", None) for s in self.studio.steps(10, 20, 50, 100)]
        for one in done:
            one["file"] = self.studio.save(tiles(one["images"], CELL), f"one_noise_S{one['steps']}", one)
        _compare(done)
        return [plain(one) for one in done]


def _compare(done: list[dict[str, Any]]) -> None:
    """Adds to each its mean squared distance from the one with the most steps, for the same seeds."""
    longest: Tensor = done[-1]["images"]
    for one in done[:-1]:
        found = errors(longest, one["images"])
        one["mse_to_longest"] = sum(e["mse"] or 0.0 for e in found) / len(found)
