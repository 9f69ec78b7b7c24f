"""The sections of the demo that start from real pictures: there and back, and the way between two of them."""

import time
from dataclasses import dataclass
from typing import Any

from ..cli.session import errors, psnr
from ..inversion import make_inversion
from ..inversion.latent_code import LatentCode
from ..models.counted import Counted
from ..pipelines import interpolate as between
from ..pipelines.events import steps_of
from ..pipelines.invert import invert
from ..pipelines.reconstruct import reconstruct
from .pictures import AMPLIFIED, difference, latent, same_as_png, tiles
from .studio import Job, Studio

COLUMNS = 4
EXACT = "bdia"


@dataclass(frozen=True)
class Method:
    """An inversion as the page shows it."""

    key: str
    label: str
    name: str
    options: dict[str, Any]


METHODS = [
    Method("ddim", "DDIM", "ddim", {}),
    Method("ddim5", "DDIM ×5", "ddim", {"iterations": 5}),
    Method("heun", "Heun", "heun", {}),
    Method("edict", "EDICT", "edict", {}),
    Method("bdia", "BDIA", "bdia", {}),
    Method("belm", "BELM", "belm", {}),
]


class Inversion:
    """Every method on every test picture at S = 10, 20, 50; pictures of the largest."""

    title = "There and back"

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        top = studio.model.schedule.path.levels
        self.steps = [s for s in (10, 20, 50) if s <= top] or [top]
        self.curve: dict[tuple[str, int], dict[str, Any]] = {}
        self.shown: dict[str, dict[str, Any]] = {}
        self.codes: dict[str, LatentCode] = {}

    def stages(self) -> list[list[Job]]:
        """A job for each method and S."""
        out = []
        for method in METHODS:
            made = make_inversion(method.name, method.options)
            for s in self.steps:
                weight = (made.nfe + made.solver().nfe) * s * len(self.studio.pixels)
                out.append(Job(weight, lambda report, m=method, s=s: self._walk(m, s, report)))
        return [out]

    def _walk(self, method: Method, steps: int, report: Any) -> None:
        studio, began = self.studio, time.perf_counter()
        pixels, counted = studio.pixels, Counted(studio.model.model)
        model = counted
        made = make_inversion(method.name, method.options)
        there = made.nfe / (made.nfe + made.solver().nfe)  # its share of the way, for the bar

        def half(begin: float, share: float) -> Any:
            return report and (lambda done, total: report(round(1000 * (begin + share * done / total)), 1000))

        code = invert(model, pixels, steps=steps, method=made, on_event=steps_of(half(0, there)))
        nfe = {"invert": counted.calls(len(pixels))}
        back = reconstruct(model, code, on_event=steps_of(half(there, 1 - there))).cpu()
        nfe["reconstruct"] = counted.calls(len(pixels))
        found = errors(pixels, back)
        mse = sum(e["mse"] or 0.0 for e in found) / len(found)
        numbers = {
            "method": method.key,
            "label": method.label,
            "exact": made.exact,
            "steps": steps,
            "options": dict(made.options),
            "mse": mse,
            "psnr": psnr(mse),
            "max": max(e["max"] or 0.0 for e in found),
            "same_png": same_as_png(pixels, back),
            "pictures": len(pixels),
            "nfe": nfe,
            "seconds": round(time.perf_counter() - began, 2),
        }
        self.curve[method.key, steps] = numbers
        if steps == self.steps[-1]:
            set_to = [f"-o {k}={v}" for k, v in method.options.items()]
            self.codes[method.key] = code
            words = [str(studio.out / "originals" / "*.png")]
            about = {
                **numbers,
                "paper": made.paper,
                "latent_mean": float(code.x.mean()),
                "latent_std": float(code.x.std()),
                "each": [{"image": n, **e} for n, e in zip(studio.sources, found, strict=True)],
                "command": " ".join([studio.command("invert", *words, method=method.name, steps=steps), *set_to]),
            }
            views = {"latent": latent(code.x), "reconstruction": back, "difference": difference(pixels, back)}
            brief = {k: v for k, v in about.items() if k != "each"}
            about["files"] = {
                what: studio.save(tiles(view, COLUMNS), f"inversion_{method.key}_{what}", {**brief, "shows": what})
                for what, view in views.items()
            }
            self.shown[method.key] = about

    def result(self) -> dict[str, Any]:
        """Saves the originals, one file each and all on a sheet."""
        studio = self.studio
        for k, name in enumerate(studio.sources):
            studio.save(tiles(studio.pixels[k : k + 1], 1, scale=1), f"originals/{name}", {"shows": "original"})
        sheet = studio.save(tiles(studio.pixels, COLUMNS), "inversion_originals", {"shows": "originals"})
        return {
            "originals": sheet,
            "images": studio.sources,
            "amplified": AMPLIFIED,
            "steps": self.steps[-1],
            "methods": [self.shown[m.key] for m in METHODS],
            "curve": [self.curve[m.key, s] for m in METHODS for s in self.steps],
        }


class Between:
    """From picture to picture: a row, a chain and four corners, on the codes of an exact method."""

    title = "Between"
    frames, stops, grid = 11, 5, (7, 7)

    def __init__(self, studio: Studio, inversion: Inversion) -> None:
        self.studio, self.inversion = studio, inversion
        self.pair = self._pick("sneaker", "ankle-boot")
        self.chain = self._pick("t-shirt", "pullover", "coat", "dress")
        self.corners = self._pick("trouser", "dress", "sandal", "bag")
        self.done: dict[str, Any] = {}

    def _pick(self, *kinds: str) -> list[int]:
        """The first picture of each kind by its file name, or else the first that are left."""
        names, chosen = self.studio.sources, []
        for kind in kinds:
            rest = [k for k in range(len(names)) if k not in chosen]
            chosen.append(next((k for k in rest if names[k].endswith(kind)), rest[0]))
        return chosen

    def stages(self) -> list[list[Job]]:
        """A job for each figure."""
        s, (rows, columns) = self.inversion.steps[-1], self.grid
        chain = (len(self.chain) - 1) * (self.stops - 1) + 1

        def weight(frames: int, ends: list[int]) -> int:  # the ends come back and are walked back once more
            return (frames + 2 * len(ends)) * s

        return [
            [
                Job(weight(self.frames, self.pair), lambda r: self._row("row", self.pair, self.frames, r)),
                Job(weight(chain, self.chain), lambda r: self._row("chain", self.chain, self.stops, r)),
                Job(weight(rows * columns, self.corners), self._grid),
            ]
        ]

    def _row(self, what: str, which: list[int], frames: int, report: Any) -> None:
        began = time.perf_counter()
        images = between.interpolate(self.studio.model, *self._codes(which), frames=frames, on_event=steps_of(report))
        self._keep(what, which, images.cpu(), len(images), began, {"frames": frames})

    def _grid(self, report: Any) -> None:
        began, (rows, columns) = time.perf_counter(), self.grid
        images = between.interpolate_grid(
            self.studio.model, *self._codes(self.corners), rows=rows, columns=columns, on_event=steps_of(report)
        )
        self._keep("corners", self.corners, images.cpu(), columns, began, {"grid": f"{rows}x{columns}"})

    def _codes(self, which: list[int]) -> list[LatentCode]:
        return [self.inversion.codes[EXACT][k] for k in which]

    def _keep(
        self, what: str, which: list[int], images: Any, columns: int, began: float, shape: dict[str, Any]
    ) -> None:
        names = [self.studio.sources[k] for k in which]
        steps = self.inversion.steps[-1]
        count = len(images)
        about: dict[str, Any] = {
            "between": names,
            "method": EXACT,
            "steps": steps,
            **shape,
            "count": count,
            "seconds": round(time.perf_counter() - began, 2),
            "command": self.studio.command("interpolate", *map(self.studio.original, names), steps=steps, **shape),
        }
        ends = [k * (shape["frames"] - 1) for k in range(len(which))] if "frames" in shape else self._corner_places()
        found = errors(self.studio.pixels[which], images[ends])
        about["mse_at_ends"] = sum(e["mse"] or 0.0 for e in found) / len(found)
        about["file"] = self.studio.save(tiles(images, columns), f"between_{what}", about)
        self.done[what] = about

    def _corner_places(self) -> list[int]:
        rows, columns = self.grid
        return [0, columns - 1, (rows - 1) * columns, rows * columns - 1]

    def result(self) -> dict[str, Any]:
        """The three figures."""
        return {key: self.done[key] for key in ("row", "chain", "corners")}
