"""Reconstruction error against S, every inversion: the layout of Table 2 of Song et al. 2021 (arXiv 2010.02502)."""

from collections.abc import Callable, Sequence
from math import log10
from typing import Any

import torch

from ..models.base import Model
from .edits import Picture
from .plots import Point
from .store import Columns, Row
from .tables import finite_mean, markdown
from .trips import DISTANCES, IDENTITY, Item, Trip, distances, in_runs, measured_alone, trip_items, walk

STEPS = (10, 20, 50, 100, 200, 500, 1000)
PAPER = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}
"""What the paper reports for DDIM on CIFAR10's test set: mean squared error a dimension, on [0, 1]."""

COLUMNS = Columns(
    IDENTITY, {**DISTANCES, **dict.fromkeys(("nfe_back", "nfe_forward", "seconds"), "float64"), "failed": "string"}
)
FORMATS = {
    "method": "",
    "steps": "d",
    "images": "d",
    "mse": ".3g",
    "psnr": ".2f",
    "psnr_worst": ".2f",
    "max": ".3g",
    "ssim": ".4f",
    "nfe_back": "g",
    "nfe_forward": "g",
    "seconds": ".3g",
    "failed": "d",
}
"""The long table's columns."""


class Reconstructions:
    """Walks pictures back and forward, and measures.

    Args:
        model: any.
        pictures: to invert.
        calls: given a number of images, network calls an image since it was last asked.
    """

    def __init__(self, model: Model, pictures: Sequence[Picture], calls: Callable[[int], float]) -> None:
        self.model, self.pictures, self.calls = model, list(pictures), calls

    def items(self, trip: Trip) -> list[Item]:
        """The identities of a trip's rows."""
        return trip_items(self.model, self.pictures, trip)

    def run(self, trip: Trip, items: Sequence[Item]) -> list[Row]:
        """The rows of some of a trip's items.

        Raises:
            InputError: a trip that cannot be made.
        """
        return [
            row
            for some in in_runs(items)
            for row in measured_alone(COLUMNS, some, lambda few: self._measured(trip, few))
        ]

    def _measured(self, trip: Trip, items: Sequence[Item]) -> list[Row]:
        pictures = [self.pictures[item["seed"]] for item in items]
        self.calls(1)
        walked = walk(self.model, pictures, trip, items[0]["seed"], self.calls)
        told = {
            "nfe_back": float(walked.nfe_back),
            "nfe_forward": float(walked.nfe_forward),
            "seconds": walked.seconds,
            "failed": "",
        }
        found = distances(torch.stack([picture.pixels for picture in pictures]), walked.pictures)
        return [{**item, **row, **told} for item, row in zip(items, found, strict=True)]


def summary(trip: Trip, rows: Sequence[Row]) -> dict[str, Any]:
    """A trip's row of the long table: the mean squared error, its PSNR, the worst picture's, means of the rest."""
    error = finite_mean(rows, "mse")
    worst = [row["psnr"] for row in rows if row["psnr"] is not None]
    return {
        "method": trip.way.title,
        "steps": trip.steps,
        "images": len(rows),
        "mse": error,
        "psnr": -10 * log10(error) if error else None,
        "psnr_worst": min(worst) if worst and min(worst) < float("inf") else None,
        "max": max((row["max"] for row in rows if row["max"] is not None), default=None),
        **{name: finite_mean(rows, name) for name in ("ssim", "nfe_back", "nfe_forward", "seconds")},
        "failed": sum(bool(row["failed"]) for row in rows),
    }


def page(table: Sequence[Row]) -> str:
    """The long table in the paper's layout, a method a line and S across: errors, and below them what they took."""
    steps = sorted({row["steps"] for row in table})
    cells = {(row["method"], row["steps"]): row for row in table}
    methods = list(dict.fromkeys(row["method"] for row in table))
    heads = {s: f"S = {s}" for s in steps}

    def part(title: str, text: Callable[[Row], str | None], first: Sequence[Row] = ()) -> str:
        lines = [
            {"method": m, **{heads[s]: text(cells[m, s]) if (m, s) in cells else None for s in steps}} for m in methods
        ]
        return f"{title}\n\n{markdown([*first, *lines], {'method': '', **dict.fromkeys(heads.values(), '')})}"

    def number(name: str, form: str) -> Callable[[Row], str | None]:
        return lambda row: None if row[name] is None else format(row[name], form)

    def calls(row: Row) -> str | None:
        return None if row["nfe_back"] is None else f"{row['nfe_back']:g} + {row['nfe_forward']:g}"

    paper = {
        "method": "DDIM on CIFAR10, as published",
        **{heads[s]: f"{PAPER[s]:g}" if s in PAPER else None for s in steps},
    }
    parts = [
        part(
            "Mean squared error a dimension, pictures on [0, 1]",
            number("mse", ".2g"),
            [paper] if set(PAPER) & set(steps) else [],
        ),
        part("Its PSNR, dB", number("psnr", ".1f")),
        part("PSNR of the worst picture, dB", number("psnr_worst", ".1f")),
        part("Network calls a picture, back + forward", calls),
        part("Seconds a picture", number("seconds", ".2g")),
    ]
    if any(row["failed"] for row in table):
        parts.append(part("Pictures that failed", number("failed", "d")))
    return "\n\n".join(parts)


def lines(table: Sequence[Row]) -> dict[str, list[Point]]:
    """The plot's: the error against S, a line a method."""
    out: dict[str, list[Point]] = {}
    for row in table:
        if row["mse"]:
            out.setdefault(row["method"], []).append(Point(row["steps"], row["mse"]))
    return out
