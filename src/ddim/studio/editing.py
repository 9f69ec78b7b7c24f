"""One edit of a page: the work, and the files that it leaves."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import __version__
from .._utils.errors import DDIMError
from .._utils.files import write_whole
from ..core.guidance import Guidance
from ..data.images import save_image, to_pil
from ..editing.editors import EDITORS
from ..evaluation.metrics import psnr
from ..inversion.latent_code import LatentCode
from ..pipelines.capabilities import check_class_edit, check_prompt_edit
from ..pipelines.edit import Edited, edit
from ..pipelines.invert import invert
from ..pipelines.pictures import read_pictures
from .desk import Desk, Session
from .errors import sentence_of
from .jobs import Job
from .pictures import Upload, crop_for, photograph_of
from .requests import EditRequest, Repeat, repeat_edit
from .watched import Watched

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class EditOutcome:
    """What an edit made.

    Attributes:
        before, after: the picture as it was and as it became, uint8 [C, H, W].
        reconstruction_psnr: of the round trip on the model's crop, in dB.
        edit_psnr: of the whole picture after against before, in dB; infinite if they are equal.
        kept: the part of the bytes that are the same in both.
        calls, seconds: network calls and time.
        png, code, about: the files; ``code`` is None for a method without an inversion.
        mask: the file of the mask, or None.
        repeat: how it is made again.
        python: the Python that makes it again.
        notes: warnings of the library.
    """

    before: Tensor
    after: Tensor
    reconstruction_psnr: float
    edit_psnr: float
    kept: float
    calls: float
    seconds: float
    png: Path
    code: Path | None
    about: Path
    mask: Path | None
    repeat: Repeat
    python: str
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> list[str]:
        """All files, for downloads."""
        return [str(path) for path in (self.png, self.code, self.about, self.mask) if path is not None]


@dataclass(frozen=True, eq=False)
class Kept:
    """What a stopped edit left, with which the same inversion goes on.

    Attributes:
        code: the code, or what was tuned so far.
        partial: whether the inversion was not complete.
        file: where it was saved.
    """

    code: LatentCode
    partial: bool
    file: Path


@dataclass(eq=False)
class EditWork:
    """An edit that a job runs.

    Args:
        desk: the server.
        session: the page.
        request: the settings.
        upload: the picture.
        mask: a grey image of its size, white where it may change, or None.

    Attributes:
        code: the code of the picture, as soon as it is inverted.
    """

    desk: Desk
    session: Session
    request: EditRequest
    upload: Upload
    mask: "Image.Image | None" = None
    code: LatentCode | None = field(default=None, init=False)

    def __call__(self, job: Job) -> EditOutcome:
        """Makes the edit.

        Raises:
            InputError: a setting cannot be used.
            DDIMError: it failed.
            KeyboardInterrupt: it was stopped; ``keep`` then keeps what was done.
        """
        model = loaded(self.desk, self.request.model, job)
        (check_prompt_edit if model.text else check_class_edit)(model)
        self.request.check(model, self.desk.limits.max_steps)
        mask = self._mask_file()
        crop = None if mask else crop_for(model, self.upload.size)
        arguments = self.request.arguments(model)
        job.watch(model.peek)
        began = time.perf_counter()
        job.say("editing")
        edited = self._edited(model, job, arguments, {"mask": str(mask)} if mask else {"crop": crop})
        job.say("writing files")
        names = {"mask": mask.name if mask else None, "crop": crop}
        repeat = repeat_edit(self.request, model, self.upload.name, loading=self.desk.loading, **names)
        return self._outcome(model, edited, repeat, mask, time.perf_counter() - began)

    def keep(self, job: Job) -> str:
        """Keeps what a stopped or failed edit had inverted, and returns a sentence about it; empty if there is none."""
        code, partial = (job.partial, True) if job.partial is not None else (self.code, False)
        if code is None or self._by_editor_alone:
            return ""
        name = f"{self.upload.path.stem}_{self.request.method}.code.safetensors{'.partial' if partial else ''}"
        try:
            file = self.session.place(name)
            code.save(file)
        except (DDIMError, OSError) as error:
            return f"What was done could not be kept: {sentence_of(error)}"
        self.session.kept = {self._inversion_key: Kept(code, partial, file)}
        what = "What was tuned so far" if partial else "The inverted code"
        return f"{what} is kept: the same edit goes on from there, also with another target."

    # --- the work ---------------------------------------------------------------------------------------------------

    @property
    def _by_editor_alone(self) -> bool:
        """Whether the method edits the picture itself, so that its code saves no work."""
        return self.request.method in EDITORS and EDITORS[self.request.method]().inversion() is None

    @property
    def _inversion_key(self) -> tuple[Any, ...]:
        """What the inversion depends on."""
        asked, mask = self.request, None if self.mask is None else self.mask.tobytes()
        digest = hashlib.sha256(self.upload.path.read_bytes() + (mask or b"")).hexdigest()
        names = (
            "model",
            "source_prompt",
            "source_label",
            "method",
            "strength",
            "guidance",
            "steps",
            "seed",
            "negative",
        )
        return digest, *(getattr(asked, name) for name in names)

    def _edited(self, model: Watched, job: Job, arguments: dict[str, Any], where: Mapping[str, Any]) -> Edited:
        """Edits the picture, or the code that an earlier edit with the same inversion left."""
        kept: Kept | None = self.session.kept.get(self._inversion_key)
        self.session.kept = {}
        if kept is None:
            return edit(model, self.upload.path, on_code=self._remember, on_event=job.on_event, **arguments, **where)
        code, self.code = kept.code, None if kept.partial else kept.code
        if kept.partial:
            job.partial = code  # if it is stopped before it takes this over
            code = self._continued(model, job, arguments, code, where)
            job.partial = None
            self._remember(code)
        rest = ("source_prompt", "source_labels", "steps", "seed", "negative")
        rest = rest if self.request.method in EDITORS else (*rest, "method")
        own = {name: value for name, value in arguments.items() if name not in rest}
        if "guidance" not in own and "guidance_scale" not in own and model.text:
            own["guidance"] = model.info.guidance
        region = {name: value for name, value in where.items() if name == "mask"}
        return edit(model, code, on_event=job.on_event, **own, **region)

    def _remember(self, code: LatentCode) -> None:
        self.code = code

    def _continued(
        self, model: Watched, job: Job, arguments: dict[str, Any], partial: LatentCode, where: Mapping[str, Any]
    ) -> LatentCode:
        """Completes an inversion that was stopped."""
        pictures = read_pictures(model, self.upload.path, keep=True, **where)
        given = {
            name: arguments[name] for name in ("method", "steps", "seed", "negative", "strength") if name in arguments
        }
        given |= {"prompt": arguments["source_prompt"]} if "source_prompt" in arguments else {}
        given |= {"labels": arguments["source_labels"]} if "source_labels" in arguments else {}
        guidance: Guidance = Guidance.of(partial.guidance)
        return invert(
            model, pictures, guidance=guidance, keep_source=True, resume=partial, on_event=job.on_event, **given
        )

    # --- files ------------------------------------------------------------------------------------------------------

    def _mask_file(self) -> Path | None:
        """Writes the mask, if there is one; returns the file."""
        if self.mask is None:
            return None
        return save_image(self.mask, self.session.place(f"{self.upload.path.stem}_mask.png"))

    def _outcome(
        self, model: Watched, edited: Edited, repeat: Repeat, mask: Path | None, seconds: float
    ) -> EditOutcome:
        """Measures an edit, and writes its files."""
        before, icc = photograph_of(self.upload)
        assert edited.composites is not None  # there is a mask, a crop, or a code that keeps its source
        after = edited.composites[0][0]
        source = edited.source
        if source is None:  # a code was edited, which keeps the photograph
            source = read_pictures(model, self.upload.path, crop=edited.code.sources[0].crop).pixels
        facts: dict[str, Any] = {
            "reconstruction_psnr": float(psnr(source, edited.reconstruction)[0]),
            "edit_psnr": float(psnr(before[None] / 255.0, after[None] / 255.0)[0]),
            "kept": float((before == after).double().mean()),
            "calls": model.calls(1),
            "seconds": round(seconds, 3),
        }
        stem = f"{self.upload.path.stem}_{self.request.method}"
        folder = self.session.new_folder()
        about = {
            "command": repeat.command,
            "ddim": __version__,
            "model": model.name,
            "fingerprint": model.fingerprint,
            "picture": self.upload.name,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in repeat.arguments.items()},
            **{name: value if value != float("inf") else None for name, value in facts.items()},
        }
        png = save_image(after, folder / f"{stem}.png", about=json.dumps(about), icc=icc)
        code = None
        if not self._by_editor_alone:
            code = folder / f"{stem}.code.safetensors"
            edited.code.save(code)
        ending = f"ddim.save_image(edited.composites[0][0], {png.name!r})"
        python = repeat.python(ending)
        file = write_whole(folder / f"{stem}.json", f"{json.dumps({**about, 'python': python}, indent=2)}\n".encode())
        return EditOutcome(
            before, after, **facts, png=png, code=code, about=file, mask=mask, repeat=repeat, python=python
        )


def loaded(desk: Desk, name: str, job: Job) -> Watched:
    """Returns a model, ready for a job, and says so while it loads. Raises what ``Desk.model`` raises."""
    if name not in desk.loaded:
        job.say(f"loading {name}")
    model = desk.model(name)
    model.forget()
    return model


def comparable(before: Tensor, after: Tensor) -> tuple["Image.Image", "Image.Image"]:
    """Returns two pictures as RGB on white, which a slider lays over each other."""
    from ..data.images import flatten

    return flatten(to_pil(before), "RGB"), flatten(to_pil(after), "RGB")
