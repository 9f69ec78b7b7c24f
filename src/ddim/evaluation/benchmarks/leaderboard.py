"""Every inversion and every editor: how well it reconstructs, how well it edits, and what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isnan
from statistics import fmean
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

from ..._utils.errors import InputError
from ..benchmark import Benchmark
from ..columns import FAILED, Item, Row, Value, count, derived, key, keys, least, mean, measured, share_interval
from ..options import ImageOptions, MethodOptions, ModelOption, Option, PairOptions
from ..plots import Plot, Point, by_line
from ..rows import isolate_failures
from .table2 import TRIP_KEYS, chosen_steps

if TYPE_CHECKING:
    from torch import Tensor

    from ...inversion.latent_code import LatentCode
    from ..edit_settings import EditPair
    from ..eval_images import EvalImage
    from ..metrics.networks import Lpips
    from ..round_trip import RoundTrip, TripSetting
    from ..runner import Session

STEPS, WEIGHTS = (10, 20, 50), (1.0, 7.5)
AUTOENCODER = "autoencoder"
"""The line of the autoencoder alone, without an inversion: the ceiling of every method."""

EXPLAINED = {
    "psnr": "dB, the mean over the images; psnr_worst is that of the worst image",
    "nfe": "network calls per image in both directions; a guided call counts as two",
    "seconds": "per image of a batch, both directions",
    "memory_mb": "peak memory of tensors for one image in both directions, without the model itself; 2^20 bytes",
    "top1": "share of the edits whose answer is the nearest image, with its 95 % interval (Wilson 1927); with "
    "attention refine, or none for an editor",
    "kept_psnr": "dB, of edits against their source where source and answer agree; kept_bytes is the share of equal "
    "bytes there, without a mask",
    "edit_nfe": "network calls per edit with its share of the inversion; edit_seconds likewise",
}


def _total(rows: Sequence[Row], name: str) -> int | None:
    return sum(row[name] or 0 for row in rows) or None


def _share(end: int) -> Value:
    """The share of edits that are right (0), or the low (1) or high end (2) of its interval."""

    def value(rows: Sequence[Row], _: str) -> float | None:
        return share_interval(sum(row["right"] or 0 for row in rows), _total(rows, "edits") or 0)[end]

    return value


def _kept_psnr(rows: Sequence[Row], _: str) -> float | None:
    from ..metrics.pairwise import decibels

    return decibels(mean(rows, "kept_mse"))


NO_EDIT = dict.fromkeys(("edits", "right", "kept_mse", "kept_bytes", "edit_nfe", "edit_seconds"))
"""The columns of the edits of an image without any."""


@dataclass(frozen=True, kw_only=True)
class LeaderboardOptions(MethodOptions, ImageOptions, PairOptions):
    """The options of the leaderboard."""

    model: ModelOption = "emoji"
    steps: Annotated[
        Sequence[int] | None, Option("Number of steps S; repeatable. By default 10, 20 and 50.", "-S", least=1)
    ] = None
    guidance: Annotated[
        Sequence[float] | None,
        Option(
            "Weight of classifier-free guidance; repeatable. By default 1 and 7.5; editors also have their usual one.",
            "-w",
        ),
    ] = None


class Leaderboard(Benchmark[LeaderboardOptions, "TripSetting"]):
    """Every inversion under guidance: PSNR, SSIM, LPIPS, network calls, seconds, memory, and edits of the same codes.

    By default the images are the few that are bundled with the model. With --recipe they are the recipe's held-out
    images, and the answer of an edit is searched among all images of its style.

    Example: ddim evaluate leaderboard --model emoji --recipe recipes/emoji.toml --images 50
    """

    name = "leaderboard"
    options_type = LeaderboardOptions
    failed_key = "picture"
    columns = (
        *TRIP_KEYS,
        key("guidance", "float64", "g"),
        key("steps", "int64", "d", lambda rows, name: rows[0][name] or None),
        *keys("edits_of", "judge"),
        derived("images", "d", count),
        *(measured(name) for name in ("mse", "max")),
        measured("psnr", ".2f"),
        derived("psnr_worst", ".2f", lambda rows, _: least(rows, "psnr")),
        measured("ssim", ".3f"),
        measured("lpips", ".3f"),
        measured("nfe", "g"),
        measured("seconds", ".3g"),
        measured("memory_mb", ".1f"),
        measured("edits", "d", "int64", _total),
        measured("right", None, "int64"),
        derived("top1", ".1%", _share(0)),
        derived("top1_low", ".1%", _share(1)),
        derived("top1_high", ".1%", _share(2)),
        measured("kept_mse"),
        derived("kept_psnr", ".2f", _kept_psnr),
        measured("kept_bytes", ".1%"),
        measured("edit_nfe", "g"),
        measured("edit_seconds", ".3g"),
        FAILED,
    )
    """``edits_of`` is a hash of the targets of the edits and of the images among which answers are searched. ``judge``
    is the network of LPIPS. Both are empty if there is none. ``memory_mb`` is measured on the first image only."""

    def __init__(self, options: LeaderboardOptions, session: "Session") -> None:
        import torch

        from ..edit_settings import edit_pairs
        from ..eval_images import eval_images, read_recipe
        from ..method_spec import MethodSpec, accepted, chosen_methods
        from ..metrics.pairwise import digest
        from ..round_trip import TripSetting

        super().__init__(options, session)
        specs = chosen_methods(options.method, options.option)
        recipe = None if options.recipe is None else read_recipe(options.recipe)
        model = session.open_model(options)
        if options.guidance and not model.text:
            raise InputError(
                f"it goes with prompts, and the model {model.name!r} has no text encoder.", parameter="guidance"
            )
        weights = list(dict.fromkeys(options.guidance or WEIGHTS)) if model.text else [1.0]
        steps = chosen_steps(options.steps, STEPS, model)
        editors = [spec for spec in specs if spec.only_edits]
        inversions = [spec for spec in specs if not spec.only_edits]
        found = accepted(model, inversions, steps, weights) if inversions or not specs else []
        found = [one for one in found if not one[0].only_edits]
        if editors or (not specs and model.text and options.words + options.styles):
            found += accepted(model, editors, steps, weights, edits=True)
        self.trips = [TripSetting(spec, s, weight if model.text else None) for spec, weight, s in found]
        if model.text:
            self.trips.insert(0, TripSetting(MethodSpec(AUTOENCODER), 0))
        with session.reporter.status("reading the images"):
            self.images = eval_images(model, options.images, recipe, options.data)
        self.lpips = self._open_lpips()
        self.targets: dict[int, list[EditPair]] = {}
        wanted = {id(image) for image in self.images.images}
        for pair in edit_pairs(self.images.known, options.words, options.styles):
            if id(pair.source) in wanted:
                self.targets.setdefault(id(pair.source), []).append(pair)
        self.edits_of = ""
        if self.targets:
            known = digest(torch.stack([image.pixels for image in self.images.known]))
            self.edits_of = f"{known} {options.words} {options.styles}"

    def _open_lpips(self) -> "Lpips | None":
        """LPIPS; or None, with a warning."""
        from ..metrics.networks import Lpips

        try:
            return Lpips(self.session.model.device)
        except InputError as error:
            if self.session.processes.main:
                self.session.reporter.warn(f"The column lpips is empty: {error}")
            return None

    def settings(self) -> "Sequence[TripSetting]":
        """One for each method, weight and number of steps, and before them the autoencoder if there is one."""
        return self.trips

    def items(self, setting: "TripSetting") -> list[Item]:
        """One for each image."""
        from ..round_trip import trip_items

        edits_of = "" if setting.spec.method == AUTOENCODER else self.edits_of
        own = {"edits_of": edits_of, "judge": "" if self.lpips is None else "lpips squeeze"}
        return [{**item, **own} for item in trip_items(self.session.model, self.images.images, setting)]

    def run(self, setting: "TripSetting", items: Sequence[Item]) -> list[Row]:
        """Inverts and reconstructs images, edits their codes, and compares."""
        from ..round_trip import consecutive

        return [row for some in consecutive(items) for row in self._measure(setting, some)]

    def _measure(self, setting: "TripSetting", items: Sequence[Item]) -> list[Row]:
        import torch

        from ..round_trip import ERRORS, compare, round_trip

        images = [self.images.images[item["seed"]] for item in items]
        pixels = torch.stack([image.pixels for image in images])
        edits: list[dict[str, Any]] = [{**NO_EDIT, "failed": ""}] * len(items)
        trip: RoundTrip | None = None
        back: Tensor | None = None
        cost: dict[str, float | None] = {"nfe": None, "seconds": None}
        if setting.spec.method == AUTOENCODER:
            began = perf_counter()
            back = self._through_autoencoder(pixels)
            cost = {"nfe": 0.0, "seconds": (perf_counter() - began) / len(items)}
        elif setting.spec.editor is None:
            trip = round_trip(self.session.model, images, setting, items[0]["seed"])
            back = trip.images
            cost = {"nfe": trip.nfe_back + trip.nfe_forward, "seconds": trip.seconds}
        if setting.spec.method != AUTOENCODER and self.targets:
            edits, beside = self._edit(setting, images, items[0]["seed"], trip)
            back = beside if back is None else back
        nothing: list[Row] = [dict.fromkeys(ERRORS)] * len(items)
        apart: list[float | None] = [None] * len(items)
        if self.lpips is not None and back is not None:
            colour = [images.expand(-1, 3, -1, -1) for images in (pixels, back)]  # LPIPS takes three channels
            apart = [float(value) for value in self.lpips.distance(*colour)]
        memory = [self._memory(setting) if item["seed"] == 0 else None for item in items]
        errors = nothing if back is None else compare(pixels, back)
        found = zip(errors, apart, memory, edits, strict=True)
        return [{**error, "lpips": one, "memory_mb": mb, **cost, **edited} for error, one, mb, edited in found]

    def _through_autoencoder(self, pixels: "Tensor") -> "Tensor":
        import torch

        model = self.session.model
        with torch.no_grad():
            return model.decode(model.encode(pixels.to(model.state_dtype))).cpu()

    def _memory(self, setting: "TripSetting") -> float | None:
        """The peak memory of the first image's round trip, which is run again, because watching takes time.

        None for an editor, which makes no round trip.
        """
        import torch

        from ..metrics.memory import peak_memory
        from ..round_trip import round_trip

        if setting.spec.editor is not None:
            return None
        first = self.images.images[:1]

        def once() -> object:
            if setting.spec.method == AUTOENCODER:
                return self._through_autoencoder(first[0].pixels[None])
            return round_trip(self.session.model, first, setting, 0)

        return peak_memory(once, torch.device(self.session.model.device))

    def _edit(
        self, setting: "TripSetting", images: "Sequence[EvalImage]", seed: int, trip: "RoundTrip | None"
    ) -> tuple[list[dict[str, Any]], "Tensor | None"]:
        """The columns of the edits of each image, and the reconstructions beside them; None if edits failed.

        An image whose edits fail alone does not stop the others. Editors edit the images, and others the codes of the
        round trip; exact methods codes at guidance 1, as ``edit`` makes them from images.
        """
        import torch

        from ...solvers import REVERSIBLE
        from ..round_trip import inverted

        backs: list[Tensor | None] = [None] * len(images)

        def edited(places: Sequence[int]) -> list[dict[str, Any]]:
            chosen, own = [images[k] for k in places], None
            if trip is not None and (setting.spec.method not in REVERSIBLE or setting.guidance == 1):
                own = trip.code if len(places) == len(images) else trip.code[places[0]]
            elif trip is not None:
                own = inverted(self.session.model, chosen, replace(setting, guidance=1.0), seed=0)
            found, back = self._edit_together(setting, chosen, seed + places[0], own)
            for row in found:
                row["edit_nfe"] += 0.0 if trip is None else trip.nfe_back / max(1, row["edits"])
            for place, one in zip(places, back, strict=True):
                backs[place] = one
            return found

        def failed(k: int, why: str) -> dict[str, Any]:
            return {**NO_EDIT, "edits": len(self.targets.get(id(images[k]), [])), "right": 0, "failed": f"edit: {why}"}

        rows = isolate_failures(range(len(images)), edited, failed)
        whole = [back for back in backs if back is not None]
        return rows, torch.stack(whole) if len(whole) == len(backs) else None

    def _edit_together(
        self, setting: "TripSetting", images: "Sequence[EvalImage]", seed: int, code: "LatentCode | None"
    ) -> tuple[list[dict[str, Any]], "Tensor"]:
        import torch

        from ...data.images import to_uint8
        from ...pipelines.edit import edit
        from ..metrics.pairwise import agreement, mse_where

        model = self.session.model
        pairs = [self.targets.get(id(image), []) for image in images]
        most = max(1, *map(len, pairs))
        # ``edit`` takes the same number of targets for each image, so the last target of an image may be repeated
        prompts = [[pair.answer.prompt for pair in own] or [i.prompt] for own, i in zip(pairs, images, strict=True)]
        padded = [own + [own[-1]] * (most - len(own)) for own in prompts]
        before = torch.stack([image.pixels for image in images])
        model.calls(1)
        began = perf_counter()
        arguments = setting.spec.edit_arguments
        if code is None:
            prompts_before = [image.prompt for image in images]
            arguments |= {"source_prompt": prompts_before, "steps": setting.steps, "seed": seed}
        else:
            arguments = {"attention": arguments["attention"]}
        source = before if code is None else code
        made = edit(model, source, padded, guidance=setting.guidance, batch=len(images) * (1 + most), **arguments)
        found = made.edits.cpu().float()
        cost = {
            "edit_seconds": (perf_counter() - began) / (len(images) * most),
            "edit_nfe": float(model.calls(len(images) * most)),
        }
        rows: list[dict[str, Any]] = []
        for source, edits, own in zip(before, found, pairs, strict=True):
            kept: list[tuple[float, float]] = []
            for image, pair in zip(edits, own, strict=False):
                common = agreement(source[None], pair.answer.pixels[None])
                error = mse_where(image[None], source[None], common).item()
                same = (to_uint8(image) == to_uint8(source)).float().mean(0)[common[0, 0]].mean().item()
                kept.append((error, same))
            known = [one for one in kept if not isnan(one[0])]
            right = sum(self._rank(image, pair.answer) == 1 for image, pair in zip(edits, own, strict=False))
            rows.append(
                {
                    "edits": len(own),
                    "right": right,
                    "kept_mse": fmean(error for error, _ in known) if known else None,
                    "kept_bytes": fmean(same for _, same in known) if known else None,
                    **cost,
                    "failed": "",
                }
            )
        return rows, made.reconstruction.cpu().float()

    def _rank(self, image: "Tensor", answer: "EvalImage") -> int:
        galleries = self.images.galleries
        gallery, name = (galleries[""], answer.prompt) if "" in galleries else (galleries[answer.style], answer.word)
        return gallery.rank(image[None], [name])[0]

    def arrange(self, table: list[Row]) -> list[Row]:
        """By guidance, then steps, then PSNR, the best first; the autoencoder before all."""

        def place(row: Row) -> tuple[float, int, float]:
            return row["guidance"] or 0.0, row["steps"] or 0, inf if row["psnr"] is None else -row["psnr"]

        return sorted(table, key=place)

    def about(self) -> Mapping[str, Any]:
        """The images, what the columns mean, and among how many images an answer is searched."""
        run = {"batch": self.options.batch, "dtype": self.options.dtype}
        found = {**self.images.about, **run, **EXPLAINED}
        if self.session.model.text:
            sizes = sorted({len(gallery.names) for gallery in self.images.galleries.values()})
            among = " to ".join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))
            found["answers"] = f"each searched among {among} images"
        return found

    def plots(self, table: Sequence[Row]) -> Mapping[str, Plot]:
        """PSNR against network calls at the largest weight, and what edits keep against how many are right."""
        rows = [row for row in table if row["nfe"] and row["psnr"] is not None]
        weight = max((row["guidance"] for row in rows if row["guidance"] is not None), default=None)
        lines = by_line([row for row in rows if row["guidance"] == weight], "method", "nfe", "psnr")
        title = f"{self.session.model.name}, {len(self.images.images)} images"
        title += f", w = {weight:g}" if weight is not None else ""
        plots = {"": Plot(lines, "network calls per image, both directions", "PSNR, dB", title)}
        if self.targets:
            plots["-pareto"] = self._pareto(table)
        return plots

    def _pareto(self, table: Sequence[Row]) -> Plot:
        """For each method its setting with the most edits that are right, and among equals the most that is kept."""
        best: dict[str, Row] = {}
        for row in table:
            if row.get("top1") is not None and row.get("kept_psnr") is not None:
                had = best.get(row["method"])
                if had is None or (row["top1"], row["kept_psnr"]) > (had["top1"], had["kept_psnr"]):
                    best[row["method"]] = row
        lines = {
            method: [Point(row["kept_psnr"], 100 * row["top1"], 100 * row["top1_low"], 100 * row["top1_high"])]
            for method, row in best.items()
        }
        title = f"{self.session.model.name}: each method at its setting with the most edits right"
        return Plot(lines, "PSNR of what should stay, dB", "edits nearest to their answer, %", title, log_x=False)
