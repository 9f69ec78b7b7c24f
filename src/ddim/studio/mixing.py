"""The way from one picture to another: an interpolation between their codes."""

import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .._utils.errors import InputError
from ..core.slerp import check_frames
from ..data.images import save_image, sheet
from ..evaluation.metrics import psnr
from ..inversion import make_inversion
from ..pipelines.capabilities import check_inversion
from ..pipelines.interpolate import interpolate
from ..pipelines.invert import invert
from ..pipelines.pictures import read_pictures
from .desk import Desk, Session
from .editing import loaded
from .jobs import Job
from .pictures import Upload
from .requests import EditRequest, Repeat

MOST_FRAMES = 33
"""The most frames of one interpolation."""


@dataclass(frozen=True, eq=False)
class Mixed:
    """An interpolation.

    Attributes:
        frames: [F, C, H, W] in [0, 1].
        ends: the PSNR of the first and the last frame against the two pictures, in dB.
        calls, seconds: network calls per frame, and time.
        strip: the file.
        command, python: how it is made again.
    """

    frames: Tensor
    ends: tuple[float, float]
    calls: float
    seconds: float
    strip: Path
    command: str
    python: str


@dataclass(eq=False)
class MixWork:
    """An interpolation that a job runs.

    Args:
        desk: the server.
        session: the page.
        request: model, source prompt or class of both pictures, method, steps and seed.
        first, second: the pictures.
        frames: the number of frames, both pictures included; None is an empty field.
    """

    desk: Desk
    session: Session
    request: EditRequest
    first: Upload
    second: Upload
    frames: int | None = 7

    def __call__(self, job: Job) -> Mixed:
        """Inverts both pictures, and samples between them.

        Raises:
            InputError: a setting cannot be used.
            DDIMError: it failed.
            KeyboardInterrupt: it was stopped.
        """
        asked = self.request
        count = self._count()
        model = loaded(self.desk, asked.model, job)
        check_inversion(model, make_inversion(asked.method))
        asked.check_numbers(model, self.desk.limits.max_steps, guidance=False, target=False)
        began = time.perf_counter()
        pictures = [read_pictures(model, one.path, resize=True) for one in (self.first, self.second)]
        arguments = asked.inversion_arguments(model)
        job.watch(model.peek)
        codes = []
        for name, picture in zip(("first", "second"), pictures, strict=True):
            job.say(f"inverting the {name} picture")
            codes.append(invert(model, picture, on_event=job.on_event, **arguments))
        job.say("sampling between them")
        frames = interpolate(model, *codes, frames=count, on_event=job.on_event)
        ends = tuple(float(psnr(p.pixels, frames[k][None])[0]) for p, k in zip(pictures, (0, -1), strict=True))
        folder = self.session.new_folder()
        names = [self.first.name, self.second.name]
        file = folder / f"{self.first.path.stem}_to_{self.second.path.stem}.png"
        save_image(sheet(frames, len(frames)), file)
        command, python = self._again(names, arguments, file.name)
        return Mixed(
            frames,
            (ends[0], ends[1]),
            model.calls(len(frames)),
            time.perf_counter() - began,
            file,
            command,
            python,
        )

    def _count(self) -> int:
        """Returns the number of frames; raises InputError if it is missing or does not fit."""
        if self.frames is None:
            raise InputError(f"it is missing; use a whole number from 2 to {MOST_FRAMES}.", parameter="frames")
        check_frames(self.frames)
        if self.frames > MOST_FRAMES:
            raise InputError(f"{self.frames} are too many; use {MOST_FRAMES} or fewer.", parameter="frames")
        return self.frames

    def _again(self, names: list[str], arguments: dict[str, object], file: str) -> tuple[str, str]:
        """Returns the command and the Python that make it again."""
        repeat = Repeat("interpolate", self.request.model, tuple(names), arguments, self.desk.loading)
        command = f"{repeat.command} --frames {self.frames} --resize"
        words = "".join(f", {name}={value!r}" for name, value in {**arguments, "resize": True}.items())
        lines = [
            "import ddim",
            "",
            repeat.load_line,
            *(f"{end} = ddim.invert(model, {name!r}{words})" for end, name in zip(("a", "b"), names, strict=True)),
            f"frames = ddim.interpolate(model, a, b, frames={self.frames})",
            f"ddim.save_image(ddim.sheet(frames, len(frames)), {file!r})",
        ]
        return command, "\n".join(lines) + "\n"
