"""PIE-Bench: edits by words of 700 images (Ju et al. 2023, arXiv 2310.01506)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

from ..._utils.choices import ATTENTIONS
from ..._utils.errors import InputError
from ..._utils.names import value_text
from ...editing.editors import EDITORS
from ...inversion import INVERSIONS
from ..benchmark import Benchmark
from ..columns import FAILED, Column, Item, Row, count, derived, key, keys, mean, measured, summarise
from ..options import MethodOptions, Option, names
from ..plots import Plot, Point
from .edits import EDIT_KEYS

if TYPE_CHECKING:
    from torch import Tensor

    from ..edit_settings import EditSetting
    from ..pie_entries import Entry
    from ..runner import Session

METRICS = ("structure", "psnr", "lpips", "mse", "ssim", "clip", "clip-edited")
"""The keys of ``metrics.scores.METRICS``, which needs torch."""
CLIP, DINO = "openai/clip-vit-large-patch14", "facebook/dino-vitb8"


@dataclass(frozen=True, kw_only=True)
class PieBenchOptions(MethodOptions):
    """The options of PIE-Bench."""

    data: Annotated[Path, Option("The folder with mapping_file.json and annotation_images.")]
    method: Annotated[Sequence[str], Option(f"{names([*INVERSIONS, *EDITORS])}; repeatable.")] = ("direct",)
    attention: Annotated[Sequence[str], Option(f"{names(ATTENTIONS)}; repeatable.")] = ("refine",)
    steps: Annotated[int, Option("Number of steps S, from 1 to the model's T.", "-S", least=1)] = 50
    guidance: Annotated[
        float | None,
        Option("Weight of classifier-free guidance; by default the usual one of the model, or of an editor.", "-w"),
    ] = None
    limit: Annotated[int | None, Option("Measure only the first LIMIT entries, for a trial.", least=1)] = None
    categories: Annotated[
        Sequence[int] | None, Option("Only these categories of 0 to 9, such as 0,1,8; repeatable.", separated=True)
    ] = None
    metrics: Annotated[
        Sequence[str] | None,
        Option(f"{', '.join(METRICS)}; repeatable. By default all whose network can be loaded.", separated=True),
    ] = None
    as_published: Annotated[bool, Option("Score as the published tables did, including their errors.")] = False
    blend_weight: Annotated[
        float, Option("Factor on the attention to the target's blend word; the published edits have 2.", least=0)
    ] = 1.0
    seed: Annotated[int, Option("The seed of each edit; the published edits have 1234.", least=0, most=2**63 - 1)] = 0
    clip: Annotated[str, Option("The CLIP model: a folder or a hub id.")] = CLIP
    dino: Annotated[str, Option("The DINO ViT: a folder or a hub id.")] = DINO


class PieBench(Benchmark[PieBenchOptions, "EditSetting"]):
    """PIE-Bench: edits by words of 700 images, with scores of their background, their structure and CLIP.

    Example: ddim evaluate pie-bench --model stable-diffusion-v1-5/stable-diffusion-v1-5 --data PIE-Bench_v1
    """

    name = "pie-bench"
    options_type = PieBenchOptions
    failed_key = "key"
    columns = (
        *keys("key", "entry"),
        *EDIT_KEYS,
        key("category", "int64"),
        *keys("seed", kind="int64"),
        *keys("blend_weight", kind="float64"),
        *keys("as_published", kind="bool"),
        *keys("clip_model", "dino_model", "metrics"),
        derived("images", "d", count),
        FAILED,
        *(measured(name) for name in METRICS),
        measured("seconds", ".2f"),
        measured("nfe"),
    )

    def __init__(self, options: PieBenchOptions, session: "Session") -> None:
        from ...editing.plan import AttentionEdit
        from ...models import device_and_dtype
        from ..edit_settings import edit_settings
        from ..method_spec import chosen_methods
        from ..metrics.scores import check_metrics, open_scorer
        from ..pie_entries import editable_entries, read_entries

        super().__init__(options, session)
        specs = chosen_methods(options.method, options.option)
        where, _ = device_and_dtype(session.device, "float32")
        attentions = list(dict.fromkeys(options.attention))
        check_metrics(options.metrics or [])
        for attention in attentions:
            AttentionEdit(attention)
        if not isfinite(options.blend_weight):
            raise InputError(
                f"{options.blend_weight} is not a number; the published edits have 2.", parameter="blend_weight"
            )
        with session.reporter.status("reading the images"):
            entries = read_entries(options.data, options.categories, options.limit)
        with session.reporter.status("loading the networks that score"):
            self.scorer = open_scorer(
                options.metrics,
                clip=options.clip,
                dino=options.dino,
                device=where,
                as_published=options.as_published,
            )
        model = session.open_model(options)
        for attention in attentions:  # what a control cannot do is reported before any edit
            entries = editable_entries(model, entries, attention)
        self.entries = {(entry.key, entry.digest): entry for entry in entries}
        self.edit_settings = edit_settings(model, specs, attentions, options.guidance, options.steps)
        self.unusual = {
            "blend_weight": options.blend_weight if options.blend_weight != 1 else None,
            "seed": options.seed or None,
        }
        self.columns = [self._shown(column) for column in type(self).columns]

    def _shown(self, column: Column) -> Column:
        """A metric's column as the table shows it; as it is, for another or one that is not measured."""
        from ..metrics.scores import METRICS as metrics

        if column.name not in self.scorer.metrics or column.key:
            return column
        metric = metrics[column.name]

        def scaled(rows: Sequence[Row], name: str) -> float | None:
            return None if (value := mean(rows, name)) is None else value * metric.factor

        return replace(column, form=".2f", title=metric.title, value=scaled)

    def settings(self) -> "Sequence[EditSetting]":
        """Every method with every attention control."""
        return self.edit_settings

    def items(self, setting: "EditSetting") -> list[Item]:
        """One for each entry."""
        scored = {
            "as_published": self.scorer.as_published,
            **{f"{kind}_model": name for kind, name in self.scorer.names.items()},
            "metrics": " ".join(self.scorer.metrics),
        }
        return [
            {**self._edit_keys(setting, entry), "category": entry.category, **scored} for entry in self.entries.values()
        ]

    def _edit_keys(self, setting: "EditSetting", entry: "Entry") -> Item:
        """The keys that shape an edit, without those of its scores."""
        own = {"key": entry.key, "entry": entry.digest, "blend_weight": float(self.options.blend_weight)}
        return {**own, **setting.keys(self.session.model), "seed": self.options.seed}

    def run(self, setting: "EditSetting", items: Sequence[Item]) -> list[Row]:
        """Edits and scores entries. Images of the same edit that are on disk are scored without editing again."""
        rows: list[Row] = []
        for item in items:
            entry = self.entries[item["key"], item["entry"]]
            source, back, edited, cost = self._images(setting, entry)
            mask = entry.mask_at((source.shape[2], source.shape[3]))
            scores = self.scorer.score(source, back, edited, mask, [entry.target_prompt])
            rows.append({**{name: value.item() for name, value in scores.items()}, **cost})
        return rows

    def _images(self, setting: "EditSetting", entry: "Entry") -> "tuple[Tensor, Tensor, Tensor, dict[str, float]]":
        """Source, reconstruction and edit, [1, 3, H, W] each in 8 bits, with the seconds and calls of the edit.

        Raises:
            InputError: the setting cannot be used.
            DDIMError: the edit diverged, or the folder cannot be written.
        """
        from ...data.images import read_images, save_image
        from ...pipelines.edit import edit

        model = self.session.model
        keys = self._edit_keys(setting, entry)
        source = read_images(entry.image, model.picture, resize=True)
        folder = self.session.out / setting.file_name(model, self.unusual)
        # the digest is a part of the name, because two keys may differ in characters that a file name cannot have
        name = f"{''.join(c if c.isalnum() else '-' for c in entry.key[:60])}_{entry.digest}"
        files = folder / f"{name}.reconstruction.png", folder / f"{name}.png"
        cost = _cost_of_kept(files[1], keys)
        if cost is None or not files[0].is_file():
            weight = self.options.blend_weight
            blend = entry.blend if setting.spec.editor is None else None  # editors have no attention to words
            model.calls(1)
            began = perf_counter()
            found = edit(
                model,
                source,
                entry.target_for(setting.spec.editor),
                source_prompt=entry.source_prompt,
                **setting.arguments,
                blend=blend,
                weights={blend[1]: weight} if blend and weight != 1 else None,
                seed=self.options.seed,
            )
            cost = {"seconds": perf_counter() - began, "nfe": model.calls(1)}
            save_image(found.reconstruction[0], files[0])
            # last, because its description says that both files are complete
            save_image(found.edits[0, 0], files[1], json.dumps({**keys, "told": cost}))
        back, edited = (read_images(file, model.picture) for file in files)
        return source, back, edited, cost

    def summary(self, setting: "EditSetting", rows: Sequence[Row]) -> list[Row]:
        """A line for each category that occurs, and one over all entries."""
        from ..pie_entries import CATEGORIES

        parts = [(f"{k} {name}", [row for row in rows if row["category"] == k]) for k, name in enumerate(CATEGORIES)]
        return [{**summarise(self.columns, some), "category": title} for title, some in (*parts, ("all", rows)) if some]

    def table_name(self) -> str:
        """With what is not as usual, so that no table overwrites another."""
        unusual = "".join(f"_{key}{value_text(value)}" for key, value in self.unusual.items() if value is not None)
        return f"{self.name}{'_as-published' if self.options.as_published else ''}{unusual}"

    def about(self) -> Mapping[str, Any]:
        """How many entries there are, and how they are scored."""
        how = "as published" if self.options.as_published else "over the background alone, without JPEG"
        return {"entries": len(self.entries), "metrics": how}

    def plots(self, table: Sequence[Row]) -> Mapping[str, Plot]:
        """A point for each setting, over all entries, if both metrics are measured."""
        lines = {
            f"{row['method']} · {row['attention']}": [Point(row["PSNR"], row["CLIP whole"])]
            for row in table
            if row["category"] == "all" and row.get("PSNR") is not None and row.get("CLIP whole") is not None
        }
        x, y = "PSNR of the background, dB", "CLIP score of the whole edit"
        return {"": Plot(lines, x, y, f"PIE-Bench, {self.session.model.name}", log_x=False)}


def _cost_of_kept(file: Path, keys: Item) -> dict[str, float] | None:
    """The seconds and calls of an edit on disk; None if there is none, or one of another setting."""
    from ...data.images import open_image

    if not file.is_file():
        return None
    try:
        about = json.loads(open_image(file).info.get("Description", ""))
        cost = about.pop("told")
    except (InputError, ValueError, KeyError, AttributeError):
        return None
    return cost if about == keys else None
