"""Where the demo's sections work: the model, the folder, the seeds, and what was sampled already."""

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import verbs
from ..cli.terminal import Report, Terminal, progress
from ..cli.work import Counted, about_model
from ..images import save_image

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
        top = self.model.path.levels
        fitting = [s for s in wanted if s < (self.long or top + 1)]
        return [*fitting, self.long] if self.long else fitting or [top]

    def seeds(self, count: int) -> list[int]:
        """The first ones."""
        return list(range(self.seed, self.seed + count))

    def sample(self, steps: int, count: int, eta: float, solver: str, report: Report | None) -> dict[str, Any]:
        """Samples with their settings, calls and seconds; for eta = 0 from earlier work where there is some."""
        kept = self.sampled.get(steps) if eta == 0 and solver == "ddim" else None
        began = time.perf_counter()
        if kept is None or len(kept) < count:
            self.model.calls(1)
            images = verbs.sample(
                self.model.as_model,
                count,
                steps=steps,
                eta=eta,
                seed=self.seed,
                solver=solver,
                batch=BATCH,
                progress=report,
            ).cpu()
            nfe, seconds = self.model.calls(count), round(time.perf_counter() - began, 2)
            if eta == 0 and solver == "ddim":
                self.sampled[steps] = images
        else:
            images, nfe, seconds = kept[:count], steps, None
        return {
            "images": images,
            "solver": solver,
            "steps": steps,
            "eta": eta if solver == "ddim" else None,
            "seeds": self.seeds(count),
            "nfe": nfe,
            "seconds": seconds,
            "command": self.command("sample", n=count, steps=steps, **_noise(eta, solver), **self._seed()),
        }

    def save(self, picture: "Image", name: str, about: dict[str, Any]) -> str:
        """Writes ``name``.png with its settings inside, and returns the name as the page links it."""
        settings = {k: v for k, v in {**about_model(self.model), **about}.items() if not isinstance(v, Tensor)}
        save_image(picture, self.out / f"{name}.png", about=json.dumps(settings, default=str))
        return f"{name}.png"

    def original(self, name: str) -> str:
        """A test picture as a command names it."""
        return str(self.out / "originals" / f"{name}.png")

    def command(self, verb: str, *words: str, **options: Any) -> str:
        """``ddim sample -n 8 --steps 50``, with the model where it is not the default one."""
        parts = ["ddim", verb, *words]
        if self.name != "fashion":
            parts += ["--model", self.name]
        for key, value in options.items():
            parts += [f"-{key}" if len(key) == 1 else f"--{key}", *([] if value is True else [str(value)])]
        return " ".join(p if "*" in p else shlex.quote(p) for p in parts)

    def _seed(self) -> dict[str, int]:
        return {"seed": self.seed} if self.seed else {}


def _noise(eta: float, solver: str) -> dict[str, Any]:
    if solver != "ddim":
        return {"solver": solver}
    return {"eta": f"{eta:g}"} if eta else {}


class Bars:
    """One bar a section and one for the whole; on a stderr that is no terminal, a line a section."""

    def __init__(self, terminal: Terminal, weights: Sequence[int]) -> None:
        self.lines = not (terminal.live or terminal.as_json or terminal.quiet)
        self.bar = progress(transient=False) if terminal.live else None
        self.total, self.whole, self.part = sum(weights), None, None
        self.began = self.entered = time.perf_counter()

    def __enter__(self) -> "Bars":
        if self.bar is not None:
            self.bar.start()
            self.whole = self.bar.add_task("[bold]the whole demo", total=self.total, rate="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    @contextlib.contextmanager
    def section(self, title: str, weight: int) -> Iterator[None]:
        """A section of so many network calls."""
        self.entered = time.perf_counter()
        if self.bar is not None:
            self.part = self.bar.add_task(title, total=weight, rate="")
        yield
        if self.lines:
            spent = time.perf_counter() - self.entered
            print(f"{title}: {spent:.1f} s, {weight} network calls", file=sys.stderr, flush=True)

    def job(self, weight: int) -> Report | None:
        """Whom a job tells; its share of the bars is ``weight``."""
        bar, part, whole, sofar = self.bar, self.part, self.whole, 0.0
        if bar is None or part is None or whole is None:
            return None

        def report(done: int, total: int) -> None:
            nonlocal sofar
            step = weight * done / total - sofar
            sofar += step
            for task, since in ((part, self.entered), (whole, self.began)):
                bar.advance(task, step)
                completed = bar.tasks[task].completed
                bar.update(task, rate=f"{completed / max(time.perf_counter() - since, 1e-9):.0f} images/s")

        return report
