"""Edits whose answer is known: a held-out drawing to another word in its style, or to its word in another style.

"noto dog face" to "noto cat face" has an answer, Noto's cat. Two questions are asked of an edit: is the answer, of all
images in its style, the nearest to it; and is what the source and the answer have in common still there?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..._utils.choices import ATTENTIONS
from ..._utils.errors import InputError
from ..._utils.names import slug
from ..benchmark import Benchmark
from ..columns import FAILED, Column, Item, Row, count, derived, key, keys, measured, summarise
from ..options import MethodOptions, ModelOption, Option, PairOptions, names
from ..plots import Plot, Point
from .table2 import method_title

if TYPE_CHECKING:
    from torch import Tensor

    from ..edit_settings import EditPair, EditSetting
    from ..runner import Session

SHOWN = 40
"""The number of edits on a sheet."""

EDIT_KEYS = (
    *keys("fingerprint"),
    key("method", value=method_title),
    *keys("options"),
    key("attention"),
    *keys("steps", kind="int64"),
    *keys("guidance", kind="float64"),
)
"""The keys that ``EditSetting.keys`` fills in."""


def share_within(rank: int) -> "Column":
    """The share of edits whose answer is among the ``rank`` nearest images; an edit that failed counts as not found."""
    return derived(
        f"top{rank}",
        ".1%",
        lambda rows, _: sum(r["rank"] is not None and r["rank"] <= rank for r in rows) / len(rows),
    )


@dataclass(frozen=True, kw_only=True)
class EditsOptions(MethodOptions, PairOptions):
    """The options of the benchmark of edits."""

    recipe: Annotated[
        Path,
        Option(
            "The recipe that trained the model; it says where the images are, and which of them were held out.",
            metavar="RECIPE.toml",
            positional=True,
        ),
    ]
    model: ModelOption = "emoji"
    attention: Annotated[
        Sequence[str] | None, Option(f"{names(ATTENTIONS)}; repeatable. By default none and refine.")
    ] = None
    steps: Annotated[int, Option("Number of steps S, from 1 to the model's T.", "-S", least=1)] = 20
    guidance: Annotated[
        float | None,
        Option("Weight of classifier-free guidance; by default the usual one of the model, or of an editor.", "-w"),
    ] = None
    limit: Annotated[int | None, Option("Measure only the first LIMIT edits, for a trial.", least=1)] = None


class Edits(Benchmark[EditsOptions, "EditSetting"]):
    """Edits whose answer is known: held-out drawings to another word, or to another style.

    Example: ddim evaluate edits recipes/emoji.toml --method direct --method null-text
    """

    name = "edits"
    options_type = EditsOptions
    unit = "edits"
    failed_key = "pair"
    columns = (
        *EDIT_KEYS,
        *keys("pair"),
        key("kind", title="edit"),
        *keys("pictures"),
        derived("pairs", "d", count),
        FAILED,
        measured("source_psnr", ".2f"),
        measured("source_ssim", ".3f"),
        measured("kept_mse", ".4f"),
        measured("common"),
        measured("answer_psnr", ".2f"),
        measured("rank", None, "int64"),
        share_within(1),
        share_within(5),
        measured("seconds", ".2f"),
        measured("nfe"),
    )
    """``pictures`` is a hash of the source and of the images among which its answer is searched. ``kept_mse`` is the
    error where source and answer agree, ``common`` the share of these pixels."""

    def __init__(self, options: EditsOptions, session: "Session") -> None:
        import torch

        from ..edit_settings import edit_pairs, edit_settings
        from ..eval_images import galleries, read_recipe, recipe_images
        from ..method_spec import chosen_methods, usable_methods
        from ..metrics.pairwise import digest

        super().__init__(options, session)
        specs = chosen_methods(options.method, options.option)
        config = read_recipe(options.recipe)
        model = session.open_model(options)
        if not model.text:
            raise InputError(f"{model.name!r} has no text encoder; edits by words need one.", parameter="model")
        with session.reporter.status("reading the images"):
            images = recipe_images(config)
            pairs = edit_pairs(images, options.words, options.styles)[: options.limit]
        if not pairs:
            raise InputError("--words and --styles leave nothing to edit; use 1 or more for one.", parameter="words")
        self.pairs = {pair.key: pair for pair in pairs}
        self.galleries = galleries(images)
        styles = {style: [image.pixels for image in images if image.style == style] for style in self.galleries}
        digests = {style: digest(torch.stack(own)) for style, own in styles.items()}
        self.digests = {pair.key: f"{digest(pair.source.pixels)} {digests[pair.answer.style]}" for pair in pairs}
        self.edit_settings = edit_settings(
            model,
            specs or usable_methods(model),
            options.attention or ["none", "refine"],
            options.guidance,
            options.steps,
        )
        self.shown = {pair.key for pair in shown_pairs(pairs)}
        self.points: dict[str, list[Point]] = {}

    def settings(self) -> "Sequence[EditSetting]":
        """Every method with every attention control."""
        return self.edit_settings

    def items(self, setting: "EditSetting") -> list[Item]:
        """One for each pair, those of one source next to each other."""
        shared = setting.keys(self.session.model)
        return [
            {**shared, "pair": pair.key, "kind": pair.kind, "pictures": self.digests[pair.key]}
            for pair in self.pairs.values()
        ]

    def blocks(self, setting: "EditSetting", items: Sequence[Item]) -> list[list[Item]]:
        """The edits of one source together, because they share an inversion."""
        return [list(some) for _, some in groupby(items, self._source)]

    def _source(self, item: Item) -> int:
        return id(self.pairs[item["pair"]].source)

    def run(self, setting: "EditSetting", items: Sequence[Item]) -> list[Row]:
        """Edits one source to several answers, and compares."""
        from ...pipelines.edit import edit
        from ..metrics.pairwise import agreement, mse_where, psnr, ssim

        pairs = [self.pairs[item["pair"]] for item in items]
        source = pairs[0].source
        found = edit(
            self.session.model,
            source.pixels,
            [pair.answer.prompt for pair in pairs],
            source_prompt=source.prompt,
            **setting.arguments,
        )
        edits, back = found.edits[0].cpu().float(), found.reconstruction.cpu().float()
        before = source.pixels[None]
        rows: list[Row] = []
        for pair, image in zip(pairs, edits[:, None], strict=True):
            answer = pair.answer.pixels[None]
            common = agreement(before, answer)
            rows.append(
                {
                    "source_psnr": psnr(before, back).item(),
                    "source_ssim": ssim(before, back).item(),
                    "kept_mse": mse_where(image, before, common).item(),
                    "common": common.float().mean().item(),
                    "answer_psnr": psnr(image, answer).item(),
                    "rank": self.galleries[pair.answer.style].rank(image, [pair.answer.word])[0],
                }
            )
        self._keep_images(setting, items, edits)
        return rows

    def summary(self, setting: "EditSetting", rows: Sequence[Row]) -> list[Row]:
        """A line for the edits to another word, and one for those to another style."""
        whole = summarise(self.columns, rows)
        point = [] if whole["source_psnr"] is None else [Point(whole["source_psnr"], 100 * whole["top1"])]
        self.points[str(setting)] = point
        kinds = [[row for row in rows if row["kind"] == kind] for kind in ("word", "style")]
        return [summarise(self.columns, some) for some in kinds if some]

    def end(self, setting: "EditSetting") -> None:
        """Writes a sheet of the setting: source, edit and answer of the pairs that are shown."""
        import torch

        from ...data.images import read_images, save_image, sheet

        folder, tiles = self._folder(setting), []
        for pair in shown_pairs(list(self.pairs.values())):
            file = _image_file(folder, pair.key)
            if file.is_file():
                pixels = pair.source.pixels
                tiles += [pixels, read_images(file, tuple(pixels.shape))[0], pair.answer.pixels]
        if tiles:
            save_image(sheet(torch.stack(tiles), columns=15), folder.with_name(f"{folder.name}.png"))

    def _folder(self, setting: "EditSetting") -> Path:
        return self.session.out / setting.file_name(self.session.model)

    def _keep_images(self, setting: "EditSetting", items: Sequence[Item], images: "Tensor") -> None:
        from ...data.images import save_image, to_pil

        for item, image in zip(items, images, strict=True):
            if item["pair"] in self.shown:
                save_image(to_pil(image), _image_file(self._folder(setting), item["pair"]))

    def about(self) -> Mapping[str, Any]:
        """How many sources and pairs there are."""
        return {"images": len({id(pair.source) for pair in self.pairs.values()}), "pairs": len(self.pairs)}

    def plots(self, table: Sequence[Row]) -> Mapping[str, Plot]:
        """A point for each setting, over all of its edits."""
        title = f"{len(self.pairs)} edits of {self.session.model.name}"
        x, y = "PSNR of the reconstructed source, dB", "edits nearest to their answer, %"
        return {"": Plot(self.points, x, y, title, log_x=False)}


def shown_pairs(pairs: "Sequence[EditPair]") -> "list[EditPair]":
    """The pairs on a sheet: a random choice that is always the same and does not depend on the result."""
    import numpy as np

    return [pairs[k] for k in sorted(np.random.default_rng(0).permutation(len(pairs))[:SHOWN].tolist())]


def _image_file(folder: Path, pair: str) -> Path:
    """The file of an edit. It is named by the pair and not by its place, which depends on --words and --styles."""
    return folder / f"{slug(pair.replace(' -> ', ' to ').replace('/', ' '))}.png"
