"""Every inversion under guidance: how well it reconstructs, what it costs, and whether its codes can be edited."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

from ..._utils.errors import InputError
from ..benchmark import Benchmark
from ..columns import FAILED, Item, Row, count, derived, key, keys, least, measured
from ..options import ImageOptions, MethodOptions, ModelOption, Option, PairOptions
from ..plots import Plot, by_line
from ..rows import isolate_failures
from .table2 import TRIP_KEYS, chosen_steps

if TYPE_CHECKING:
    from torch import Tensor

    from ...inversion.latent_code import LatentCode
    from ..edit_settings import EditPair
    from ..eval_images import EvalImage
    from ..metrics.networks import Lpips
    from ..round_trip import TripSetting
    from ..runner import Session

STEPS, WEIGHTS = (10, 20, 50), (1.0, 7.5)
AUTOENCODER = "autoencoder"
"""The line of the autoencoder alone, without an inversion: the ceiling of every method."""

EXPLAINED = {
    "psnr": "dB, the mean over the images; psnr_worst is that of the worst image",
    "nfe": "network calls per image in both directions; a guided call counts as two",
    "seconds": "per image of a batch, both directions",
    "memory_mb": "peak memory of tensors for one image in both directions, without the model itself; 2^20 bytes",
    "top1": "share of the edits, with attention refine, whose answer is the nearest image; of the same code, or for "
    "exact methods of one at guidance 1",
}


def _total(rows: Sequence[Row], name: str) -> int | None:
    return sum(row[name] or 0 for row in rows) or None


def _share_right(rows: Sequence[Row], _: str) -> float | None:
    edits = _total(rows, "edits")
    return sum(row["right"] or 0 for row in rows) / edits if edits else None


@dataclass(frozen=True, kw_only=True)
class LeaderboardOptions(MethodOptions, ImageOptions, PairOptions):
    """The options of the leaderboard."""

    model: ModelOption = "emoji"
    steps: Annotated[
        Sequence[int] | None, Option("Number of steps S; repeatable. By default 10, 20 and 50.", "-S", least=1)
    ] = None
    guidance: Annotated[
        Sequence[float] | None, Option("Weight of classifier-free guidance; repeatable. By default 1 and 7.5.", "-w")
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
        derived("top1", ".1%", _share_right),
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
        found = accepted(model, specs, chosen_steps(options.steps, STEPS, model), weights)
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

        from ..round_trip import compare, round_trip

        images = [self.images.images[item["seed"]] for item in items]
        pixels = torch.stack([image.pixels for image in images])
        edits: list[dict[str, Any]] = [{"edits": None, "right": None, "failed": ""}] * len(items)
        if setting.spec.method == AUTOENCODER:
            began = perf_counter()
            back = self._through_autoencoder(pixels)
            cost = {"nfe": 0.0, "seconds": (perf_counter() - began) / len(items)}
        else:
            trip = round_trip(self.session.model, images, setting, items[0]["seed"])
            back = trip.images
            cost = {"nfe": trip.nfe_back + trip.nfe_forward, "seconds": trip.seconds}
            if self.targets:
                edits = self._edit(setting, trip.code, images)
        apart: list[float | None] = [None] * len(items)
        if self.lpips is not None:
            colour = [images.expand(-1, 3, -1, -1) for images in (pixels, back)]  # LPIPS takes three channels
            apart = [float(value) for value in self.lpips.distance(*colour)]
        memory = [self._memory(setting) if item["seed"] == 0 else None for item in items]
        found = zip(compare(pixels, back), apart, memory, edits, strict=True)
        return [{**errors, "lpips": one, "memory_mb": mb, **cost, **edited} for errors, one, mb, edited in found]

    def _through_autoencoder(self, pixels: "Tensor") -> "Tensor":
        import torch

        model = self.session.model
        with torch.no_grad():
            return model.decode(model.encode(pixels.to(model.state_dtype))).cpu()

    def _memory(self, setting: "TripSetting") -> float:
        """The peak memory of the first image's round trip, which is run again, because watching takes time."""
        import torch

        from ..metrics.memory import peak_memory
        from ..round_trip import round_trip

        first = self.images.images[:1]

        def once() -> object:
            if setting.spec.method == AUTOENCODER:
                return self._through_autoencoder(first[0].pixels[None])
            return round_trip(self.session.model, first, setting, 0)

        return peak_memory(once, torch.device(self.session.model.device))

    def _edit(self, setting: "TripSetting", code: "LatentCode", images: "Sequence[EvalImage]") -> list[dict[str, Any]]:
        """How many edits of each image there are, and how many have their answer as the nearest image.

        Exact methods are edited from codes at guidance 1, as ``edit`` makes them from images.
        """
        from ...solvers import REVERSIBLE
        from ..round_trip import inverted

        def edited(places: Sequence[int]) -> list[dict[str, Any]]:
            chosen = [images[k] for k in places]
            if setting.spec.method not in REVERSIBLE or setting.guidance in (None, 1):
                own = code if len(places) == len(images) else code[places[0]]
            else:
                own = inverted(self.session.model, chosen, replace(setting, guidance=1.0), seed=0)
            return self._edit_together(setting, own, chosen)

        def failed(k: int, why: str) -> dict[str, Any]:
            return {"edits": len(self.targets[id(images[k])]), "right": 0, "failed": f"edit: {why}"}

        return isolate_failures(range(len(images)), edited, failed)

    def _edit_together(
        self, setting: "TripSetting", code: "LatentCode", images: "Sequence[EvalImage]"
    ) -> list[dict[str, Any]]:
        from ...pipelines.edit import edit

        pairs = [self.targets.get(id(image), []) for image in images]
        most = max(map(len, pairs))
        if not most:
            return [{"edits": 0, "right": 0, "failed": ""}] * len(pairs)
        # ``edit`` takes the same number of targets for each image, so the last target of an image may be repeated
        prompts = [[pair.answer.prompt for pair in own] or [i.prompt] for own, i in zip(pairs, images, strict=True)]
        padded = [own + [own[-1]] * (most - len(own)) for own in prompts]
        made = edit(self.session.model, code, padded, guidance=setting.guidance, attention="refine")
        found = made.edits.cpu().float()
        right = [
            sum(self._rank(image, pair.answer) == 1 for image, pair in zip(edits, own, strict=False))
            for edits, own in zip(found, pairs, strict=True)
        ]
        return [{"edits": len(own), "right": some, "failed": ""} for own, some in zip(pairs, right, strict=True)]

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
        """PSNR against network calls at the largest weight, a line for each method."""
        rows = [row for row in table if row["nfe"] and row["psnr"] is not None]
        weight = max((row["guidance"] for row in rows if row["guidance"] is not None), default=None)
        lines = by_line([row for row in rows if row["guidance"] == weight], "method", "nfe", "psnr")
        title = f"{self.session.model.name}, {len(self.images.images)} images"
        title += f", w = {weight:g}" if weight is not None else ""
        return {"": Plot(lines, "network calls per image, both directions", "PSNR, dB", title)}
