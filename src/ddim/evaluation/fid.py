"""Images drawn for a distance between sets: their features are kept, one row an image, so that a killed run goes on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._utils.errors import InputError
from ..core.contracts import options_of
from ..data.idx import idx_file
from ..models.base import Model
from ..pipelines.common import Spacing, grid_for
from ..pipelines.events import Progress
from ..pipelines.sample import sample, solver_with_eta
from ..training.config import DataConfig
from ..training.data import Images
from .reference import Features, as_saved
from .store import Columns, Rows
from .trips import in_runs

COLUMNS = Columns(
    {"model": "string", "features": "string", "setting": "string", "seed": "int64", "drawn": "string"},
    {"vector": "binary"},
)
"""``drawn``: the prompt or the label, where there is one. ``vector``: float32, little-endian."""


@dataclass(frozen=True)
class Walk:
    """How images are drawn; see ``ddim.sample``.

    Attributes:
        steps, solver, eta, spacing, options, guidance: as there.
    """

    steps: int = 50
    solver: str = "ddim"
    eta: float = 0.0
    spacing: Spacing | None = None
    options: Mapping[str, Any] | None = None
    guidance: float = 7.5

    def about(self, model: Model) -> dict[str, Any]:
        """All that shapes an image beside the model and its seed. Raises InputError for what cannot be."""
        made = solver_with_eta(self.solver, self.eta, self.options)
        grid = grid_for(model, self.steps, self.spacing)
        guided = {"guidance": float(self.guidance)} if model.text else {}
        spacing = grid.spacing if self.spacing is None or isinstance(self.spacing, str) else list(self.spacing)
        return {"solver": self.solver, "options": options_of(made), "steps": grid.steps, "spacing": spacing, **guided}


def whole_data(config: DataConfig, split: str | None = None) -> DataConfig:
    """The pictures of a recipe as a reference: each once, unmirrored, of ``split``; by default of the test split where
    the files are idx, which has one, else of the recipe's own."""
    idx = idx_file(replace(config.sources[0], split="train")) is not None if split is None else False
    chosen = split or ("test" if idx else config.split)
    more = tuple(replace(source, repeat=1) for source in config.more)
    return replace(config, split=chosen, repeat=1, flip=False, more=more)


def words_of(model: Model, images: Images, count: int) -> list[str | int | None]:
    """What conditions each of ``count`` images: of a model with text the prompts of the data, in their order and then
    anew from the first; of a class-conditional one the classes in turn; of others nothing.

    Raises:
        InputError: a model with text, and data without prompts.
    """
    if model.classes:
        return [k % model.classes for k in range(count)]
    if not model.text:
        return [None] * count
    order = list(range(len(images)))
    parts = images.stream([order[at : at + 250] for at in range(0, min(count, len(order)), 250)])
    prompts = [prompt for part in parts for prompt in part.prompts]
    if not any(prompts):
        raise InputError(
            f"the model {model.name!r} draws prompts, and the data has none; give one with data.prompt.",
            parameter="recipe",
        )
    return [prompts[k % len(prompts)] for k in range(count)]


def items_of(
    model: Model, network: Features, walk: Walk, seed: int, words: Sequence[str | int | None], processes: int = 1
) -> list[dict[str, Any]]:
    """The identities of the images to be drawn, in such an order that each of the processes has seeds that follow each
    other."""
    setting = json.dumps(walk.about(model), sort_keys=True)
    same = {"model": model.fingerprint, "features": network.fingerprint, "setting": setting}
    each = -(-len(words) // processes)
    order = [p * each + k for k in range(each) for p in range(processes) if p * each + k < len(words)]
    return [{**same, "seed": seed + k, "drawn": "" if words[k] is None else str(words[k])} for k in order]


def draw_features(
    model: Model,
    network: Features,
    walk: Walk,
    items: Sequence[dict[str, Any]],
    rows: Rows,
    *,
    batch: int = 64,
    progress: Progress | None = None,
) -> Tensor:
    """The features of the images that ``items`` name, float32 [N, D] by seed; those with a row are not drawn again.

    Raises:
        InputError, DDIMError: as ``ddim.sample``.
    """

    def run(some: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = [network.features(as_saved(_drawn(model, walk, part))) for part in in_runs(some)]
        vectors = torch.cat(found).numpy().astype("<f4")
        return [{**item, "vector": vector.tobytes()} for item, vector in zip(some, vectors, strict=True)]

    rows.measure(items, batch, run, progress)
    rows.gather()
    if not rows.processes.main:
        return torch.zeros(0, network.dim)
    found = rows.of(sorted(items, key=lambda item: item["seed"]))
    return torch.from_numpy(np.stack([np.frombuffer(row["vector"], "<f4") for row in found]).astype(np.float32))


def _drawn(model: Model, walk: Walk, items: Sequence[dict[str, Any]]) -> Tensor:
    words = [item["drawn"] for item in items]
    return sample(
        model,
        len(items),
        steps=walk.steps,
        solver=walk.solver,
        eta=walk.eta,
        spacing=walk.spacing,
        options=walk.options,
        seed=items[0]["seed"],
        labels=[int(word) for word in words] if model.classes else None,
        prompt=words if model.text else None,
        guidance=walk.guidance if model.text else None,
        batch=len(items),
    )
