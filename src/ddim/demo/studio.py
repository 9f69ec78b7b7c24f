"""Where the demo's sections work: the model, the folder, the seeds, and what was sampled already."""

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..cli.output import Report
from ..cli.session import about_model
from ..data.images import save_image
from ..models.counted import Counted
from ..pipelines.events import steps_of
from ..pipelines.sample import sample

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 50


@dataclass(frozen=True)
class Job:
    """A piece of work: ``weight`` network calls (an image each), and what does it, given whom to tell."""

    weight: int
    work: Callable[[Report | None], None]


@dataclass
class Studio:
    """What every section needs.

    Attributes:
        model: counted.
        name: how the model was asked for.
        out: the folder, as it was typed.
        seed: the k-th sample has seed + k.
        sources: the pictures to invert, by file name without its suffix.
        pixels: the same as a tensor [N, C, H, W].
        long: the largest S that is shown; None leaves it out.
        sampled: eta = 0 samples by S, to be used again.
    """

    model: Counted
    name: str
    out: Path
    seed: int
    sources: list[str]
    pixels: Tensor
    long: int | None
    sampled: dict[int, Tensor] = field(default_factory=dict)

    def steps(self, *wanted: int) -> list[int]:
        """Those S that the model has room for, and the longest; never none."""
        top = self.model.schedule.path.levels
        fitting = [s for s in wanted if s < (self.long or top + 1)]
        return [*fitting, self.long] if self.long else fitting or [top]

    def sample(
        self, steps: int, count: int, eta: float, solver: str, report: Report | None, first: int = 0
    ) -> dict[str, Any]:
        """Samples, from the ``first`` on, with their settings, calls and seconds; where they are known, from before."""
        kept = self.sampled.get(steps) if eta == 0 and solver == "ddim" else None
        began = time.perf_counter()
        if kept is None:
            model = Counted(self.model.model)
            images = sample(
                model,
                count,
                steps=steps,
                eta=eta,
                seed=self.seed + first,
                solver=solver,
                batch=BATCH,
                on_event=steps_of(report),
            ).cpu()
            nfe, spent = model.calls(count), (began, time.perf_counter())
        else:
            images, nfe, spent = kept[first : first + count], steps, None
        return {
            "images": images,
            "solver": solver,
            "steps": steps,
            "eta": eta if solver == "ddim" else None,
            "seeds": list(range(self.seed + first, self.seed + first + count)),
            "nfe": nfe,
            "seconds": round(spent[1] - spent[0], 2) if spent else None,
            "spent": spent,
            "command": self.command("sample", n=count, steps=steps, **_noise(eta, solver), **self._seed()),
        }

    def save(self, picture: "Image", name: str, about: dict[str, Any]) -> str:
        """Writes ``name``.png with its settings inside, and returns the name as the page links it."""
        settings = {**about_model(self.model), **plain(about)}
        save_image(picture, self.out / f"{name}.png", about=json.dumps(settings, default=str))
        return f"{name}.png"

    def original(self, name: str) -> str:
        """A test picture as a command names it."""
        return str(self.out / "originals" / f"{name}.png")

    def command(self, verb: str, *words: str, **options: Any) -> str:
        """``ddim sample -n 8 --steps 50``, with the model where it is not the default one."""
        parts = ["ddim", verb, *words]
        usual = "emoji" if verb == "edit" else "fashion"
        if self.name != usual:
            parts += ["--model", self.name]
        for key, value in options.items():
            parts += [f"-{key}" if len(key) == 1 else f"--{key}", *([] if value is True else [str(value)])]
        return " ".join(p if "*" in p else shlex.quote(p) for p in parts)

    def _seed(self) -> dict[str, int]:
        return {"seed": self.seed} if self.seed else {}


def plain(about: dict[str, Any]) -> dict[str, Any]:
    """What of a result goes into files: neither tensors nor clock times."""
    return {k: v for k, v in about.items() if not isinstance(v, Tensor) and k != "spent"}


def _noise(eta: float, solver: str) -> dict[str, Any]:
    if solver != "ddim":
        return {"solver": solver}
    return {"eta": f"{eta:g}"} if eta else {}
