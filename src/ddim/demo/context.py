"""What the sections share: the model, the output folder, the seeds, and results that later sections use again."""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

import ddim

from ..models.counted import Counted
from .jobs import Job

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_MODELS = {"sample": "fashion", "invert": "fashion", "interpolate": "fashion", "edit": "emoji"}
"""The model that each command uses without ``--model``."""


class DemoModel(NamedTuple):
    """A model to show.

    Attributes:
        name: the bundled name, folder or hub id that it was loaded by.
        model: as ``ddim.load`` returns it.
        facts: what the page and ``results.json`` say about it: ``Model.describe()``, and its ``schedule`` and
            ``licence`` if they are known.
    """

    name: str
    model: ddim.Model
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        stages: the jobs to run: stages one after the other, the jobs of a stage side by side.
        finish: called with the results of the jobs, in the order of ``stages``. It saves the section's pictures and
            returns what ``results.json`` holds of the section.
    """

    stages: list[list[Job]]
    finish: Callable[[list[list[Any]]], Any]


@dataclass(frozen=True)
class Context:
    """One model and where its results go.

    Attributes:
        name, model: as for ``DemoModel``.
        out: the output folder, as it was typed.
        seed: the k-th sample has the seed ``seed + k``.
        full: show the model's largest S too, and measure again what the page can take from stored tables.
        samples: images sampled so far at eta = 0, by S.
        codes: codes of the pictures so far, by the key of their method.
    """

    name: str
    model: ddim.Model
    out: Path
    seed: int
    full: bool = False
    samples: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    codes: dict[str, ddim.LatentCode] = field(default_factory=dict[str, ddim.LatentCode])

    def counted(self) -> Counted:
        """The model with a counter of network calls. Jobs that run side by side need one each."""
        return Counted(self.model)

    def steps(self, *usual: int) -> list[int]:
        """The S of ``usual`` that the model has levels for, and if ``full`` its number of levels; at least one."""
        levels = self.model.schedule.path.levels
        chosen = [s for s in usual if s <= levels]
        return sorted({*chosen, levels}) if self.full else chosen or [levels]

    def save(self, picture: "Image", name: str, about: Mapping[str, Any]) -> str:
        """Writes ``name``.png with its settings inside, and returns its path below the output folder."""
        origin = {"ddim": ddim.__version__, "model": self.model.name, "fingerprint": self.model.fingerprint}
        ddim.save_image(picture, self.out / f"{name}.png", about=json.dumps({**origin, **about}, default=str))
        return f"{name}.png"

    def command(self, verb: str, *words: str, **options: Any) -> str:
        """The line ``ddim verb words --option value ...``, with ``--model`` unless it is the command's default."""
        parts = ["ddim", verb, *words]
        if self.name != DEFAULT_MODELS[verb]:
            parts += ["--model", self.name]
        for key, value in options.items():
            parts += [f"-{key}" if len(key) == 1 else f"--{key}", str(value)]
        return " ".join(part if "*" in part else shlex.quote(part) for part in parts)
