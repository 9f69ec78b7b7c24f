"""Every inversion under guidance, side by side: what comes back, what it takes, and whether its codes can be edited."""

import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from ..inversion.latent_code import LatentCode
from ..models.base import Model
from ..pipelines.edit import edit
from .edits import EditPair, Picture, edit_pairs
from .material import Material
from .memory import peak_memory
from .methods import Way
from .networks import Lpips
from .pairs import digest
from .plots import Point
from .store import Columns, Row, surviving
from .tables import finite_mean
from .trips import DISTANCES, IDENTITY, Item, Trip, distances, in_runs, measured_alone, trip_items, walk

STEPS, WEIGHTS = (10, 20, 50), (1.0, 7.5)
FLOOR = Way("autoencoder")
"""What comes back where nothing but the autoencoder is between: the ceiling of every method."""

COLUMNS = Columns(
    {**IDENTITY, "edits_of": "string", "judge": "string"},
    {
        **DISTANCES,
        **dict.fromkeys(("lpips", "nfe", "seconds", "memory_mb"), "float64"),
        **{"edits": "int64", "right": "int64", "failed": "string"},
    },
)
"""``edits_of`` is a digest of the targets and of what their answers are sought among, ``judge`` the network of LPIPS;
each is empty where there is none. ``memory_mb`` is measured on the first picture alone."""

FORMATS = {
    "method": "",
    "guidance": "g",
    "steps": "d",
    "images": "d",
    "psnr": ".2f",
    "psnr_worst": ".2f",
    "ssim": ".3f",
    "lpips": ".3f",
    "nfe": "g",
    "seconds": ".3g",
    "memory_mb": ".1f",
    "edits": "d",
    "top1": ".1%",
    "failed": "d",
}


class Leaderboard:
    """Inverts pictures, brings them back, edits the same codes, and measures.

    Args:
        model: any.
        material: the pictures; for a model with text also those that its edits are to become.
        calls: given a number of images, network calls an image since it was last asked.
        lpips: the perceptual distance, where it is to be had.
        words, styles: edits of a picture to other words of its style, and to other styles of its word.
    """

    def __init__(
        self,
        model: Model,
        material: Material,
        calls: Callable[[int], float],
        lpips: Lpips | None = None,
        words: int = 2,
        styles: int = 2,
    ) -> None:
        self.model, self.material, self.calls, self.lpips = model, material, calls, lpips
        self.targets: dict[int, list[EditPair]] = {}
        self.about_edits = ""
        wanted = {id(picture) for picture in material.pictures}
        for pair in edit_pairs(material.known, words, styles):
            if id(pair.source) in wanted:
                self.targets.setdefault(id(pair.source), []).append(pair)
        if self.targets:
            self.about_edits = f"{digest(torch.stack([p.pixels for p in material.known]))} {words} {styles}"

    @property
    def choices(self) -> str:
        """How many pictures an answer is sought among, in words."""
        sizes = sorted({len(gallery.names) for gallery in self.material.galleries.values()})
        return " to ".join(map(str, dict.fromkeys((sizes[0], sizes[-1])))) + " pictures"

    def trips(self, combinations: Sequence[tuple[Way, float, int]]) -> list[Trip]:
        """Trips of methods, weights and steps, and before them the autoencoder's, where there is one."""
        text = self.model.text
        made = [Trip(way, steps, weight if text else None) for way, weight, steps in combinations]
        return [*([Trip(FLOOR, 0)] if text else []), *made]

    def items(self, trip: Trip) -> list[Item]:
        """The identities of a trip's rows."""
        own = {
            "edits_of": self.about_edits if trip.way != FLOOR else "",
            "judge": "" if self.lpips is None else "lpips squeeze",
        }
        return [{**item, **own} for item in trip_items(self.model, self.material.pictures, trip)]

    def run(self, trip: Trip, items: Sequence[Item]) -> list[Row]:
        """The rows of some of a trip's items.

        Raises:
            InputError: a trip that cannot be made.
        """
        out: list[Row] = []
        for some in in_runs(items):
            out += measured_alone(COLUMNS, some, lambda few: self._measured(trip, few))
        return out

    def _measured(self, trip: Trip, items: Sequence[Item]) -> list[Row]:
        pictures, first = [self.material.pictures[item["seed"]] for item in items], items[0]["seed"]
        pixels = torch.stack([picture.pixels for picture in pictures])
        self.calls(1)
        edits: list[dict[str, Any]] = [{"edits": None, "right": None, "failed": ""}] * len(items)
        if trip.way == FLOOR:
            began = time.perf_counter()
            back = self._floor(pixels)
            told = {"nfe": 0.0, "seconds": (time.perf_counter() - began) / len(items)}
        else:
            walked = walk(self.model, pictures, trip, first, self.calls)
            back = walked.pictures
            told = {"nfe": float(walked.nfe_back + walked.nfe_forward), "seconds": walked.seconds}
            if self.targets:
                edits = self._edited(walked.code, pictures)
        near: list[float | None] = [None] * len(items) if self.lpips is None else self._judged(self.lpips, pixels, back)
        memory = [self._memory(trip) if item["seed"] == 0 else None for item in items]
        found = zip(items, distances(pixels, back), near, memory, edits, strict=True)
        return [
            {**item, **distance, "lpips": apart, "memory_mb": most, **told, **edited}
            for item, distance, apart, most, edited in found
        ]

    def _floor(self, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.decode(self.model.encode(pixels.to(self.model.state_dtype))).cpu()

    def _memory(self, trip: Trip) -> float:
        """Of the first picture's way back and forward, walked again: watching takes time."""
        first = self.material.pictures[:1]

        def once() -> object:
            if trip.way == FLOOR:
                return self._floor(first[0].pixels[None])
            return walk(self.model, first, trip, 0, self.calls)

        return peak_memory(once, torch.device(self.model.device))

    @staticmethod
    def _judged(lpips: Lpips, pixels: Tensor, back: Tensor) -> list[float | None]:
        three = [images.expand(-1, 3, -1, -1) for images in (pixels, back)]  # a grey picture's channel, thrice
        return [float(v) for v in lpips.distance(*three)]

    def _edited(self, code: LatentCode, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
        """How many edits of each picture there are, and how many are nearest to their answer."""

        def found(few: Sequence[int]) -> list[dict[str, Any]]:
            one = len(few) < len(pictures)
            return self._found(code[few[0]] if one else code, [pictures[k] for k in few])

        def failed(k: int, why: str, _: float) -> dict[str, Any]:
            return {"edits": len(self.targets[id(pictures[k])]), "right": 0, "failed": f"edit: {why}"}

        return surviving(range(len(pictures)), found, lambda _, edited, __: edited, failed)

    def _found(self, code: LatentCode, pictures: Sequence[Picture]) -> list[dict[str, Any]]:
        pairs = [self.targets.get(id(picture), []) for picture in pictures]
        most = max(map(len, pairs))
        if not most:
            return [{"edits": 0, "right": 0, "failed": ""}] * len(pairs)
        # as many targets for each, which the verb asks for: a picture with fewer takes what it has again
        prompts = [[pair.answer.prompt for pair in own] or [p.prompt] for own, p in zip(pairs, pictures, strict=True)]
        padded = [own + [own[-1]] * (most - len(own)) for own in prompts]
        made = edit(self.model, code, padded, attention="refine").edits.cpu().float()
        right = [
            sum(self._rank(image, pair.answer) == 1 for image, pair in zip(images, own, strict=False))
            for images, own in zip(made, pairs, strict=True)
        ]
        return [{"edits": len(own), "right": count, "failed": ""} for own, count in zip(pairs, right, strict=True)]

    def _rank(self, image: Tensor, answer: Picture) -> int:
        galleries = self.material.galleries
        gallery, name = (galleries[""], answer.prompt) if "" in galleries else (galleries[answer.style], answer.word)
        return gallery.rank(image[None], [name])[0]


def summary(trip: Trip, rows: Sequence[Row]) -> dict[str, Any]:
    """A trip's row of the table: means over pictures; the worst PSNR; the share of edits nearest to their answer."""
    worst = [row["psnr"] for row in rows if row["psnr"] is not None]
    edits = sum(row["edits"] or 0 for row in rows)
    floor = trip.way == FLOOR
    return {
        "method": trip.way.title,
        "guidance": trip.guidance,
        "steps": None if floor else trip.steps,
        "images": len(rows),
        "psnr": finite_mean(rows, "psnr"),
        "psnr_worst": min(worst) if worst and min(worst) < inf else None,
        **{name: finite_mean(rows, name) for name in ("ssim", "lpips", "nfe", "seconds", "memory_mb")},
        "edits": edits or None,
        "top1": sum(row["right"] or 0 for row in rows) / edits if edits else None,
        "failed": sum(bool(row["failed"]) for row in rows),
    }


def ranked(table: Sequence[Row]) -> list[Row]:
    """By guidance, then steps, then PSNR, the best first; the autoencoder before all."""

    def place(row: Row) -> tuple[float, int, float]:
        return row["guidance"] or 0.0, row["steps"] or 0, inf if row["psnr"] is None else -row["psnr"]

    return sorted(table, key=place)


def lines(table: Sequence[Row]) -> tuple[float | None, dict[str, list[Point]]]:
    """The plot's: PSNR against network calls, a line a method and S along it; at the largest weight, which is told."""
    methods = [row for row in table if row["nfe"] and row["psnr"] is not None]
    weight = max((row["guidance"] for row in methods if row["guidance"] is not None), default=None)
    out: dict[str, list[Point]] = {}
    for row in methods:
        if row["guidance"] == weight:
            out.setdefault(row["method"], []).append(Point(row["nfe"], row["psnr"]))
    return weight, out
