"""The training loop.

A run is a function of its config: the images of step s, their noise levels, noise and flips, and the learning rate are
computed from (seed, s). So a checkpoint consists of the step, the weights, their average and the optimiser's state. A
resumed run repeats an unbroken one bit for bit, on the same machine with the same number of processes.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._utils.errors import InputError, NotFinite
from .._utils.lock import only_process
from ..core.gradients import quick_gradients
from ..core.late import LateValues
from ..data.images import save_image
from ..models.engine.kernels import deterministic
from ..models.engine.threads import thread_limit
from . import draws
from .checkpoint import Checkpoints, clean_run, holds_run, whole_folder
from .config import OptimConfig, TrainConfig
from .data import Images, fingerprint, load_images
from .processes import other_processes
from .progress import OnEvent, Reporter
from .step import Processes, Step, learning_rate, positions
from .tasks import Task, make_task
from .tasks.base import write_about

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(config: TrainConfig, *, resume: bool = False, on_event: OnEvent | None = None) -> Path:
    """Trains a model. Under ``accelerate launch`` or ``torchrun`` it uses all of their processes.

    Otherwise it starts ``config.train.processes`` - 1 further processes, which end with it.

    Args:
        config: the config, from ``load_config``.
        resume: continue from the newest checkpoint in ``config.output.folder``, or start if there is none.
        on_event: called in the main process with each ``Event``: every step, checkpoint and sample sheet.

    Returns:
        ``<folder>/model``. diffusers loads it with DDIMPipeline, AutoencoderKL or StableDiffusionPipeline, and
        transformers loads a classifier with ResNetForImageClassification.

    Raises:
        InputError: the config, the data or the folder cannot be used, or has changed since the run began.
        NotFinite: the loss is no longer finite.
        DDIMError: the disk is full, or one of the other processes failed.
    """
    task = make_task(config)
    with other_processes(config, resume):
        return _train(config, task, resume, on_event)


def _train(config: TrainConfig, task: Task, resume: bool, on_event: OnEvent | None) -> Path:
    """Trains in this process, together with the others."""
    accelerator = _accelerator(config.train)
    if config.train.batch % (accelerator.num_processes * config.train.accumulate):
        raise InputError(
            f"{config.train.batch} cannot be divided among {accelerator.num_processes} processes "
            f"with {config.train.accumulate} micro-batches each.",
            parameter="train.batch",
        )
    alone = only_process(Path(config.output.folder)) if accelerator.is_main_process else nullcontext()
    device = accelerator.device
    with alone, repeatable(device, config.train.threads), quick_gradients(device):
        return _Run(config, task, accelerator, on_event).run(resume)


class _Run:
    """One call of ``train``: the objects that live as long as the run."""

    def __init__(self, config: TrainConfig, task: Task, accelerator: "Accelerator", on_event: OnEvent | None) -> None:
        self.config, self.task, self.accelerator = config, task, accelerator
        self.main = accelerator.is_main_process
        self.folder = Path(config.output.folder)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.output.keep)
        self.report = Reporter(config.output, config.train.steps, config.train.batch, self.main, on_event)

    def run(self, resume: bool) -> Path:
        """Runs the whole training and returns the folder of the model."""
        last = self._last_checkpoint(resume)
        # The main process goes first, so that ``datasets`` prepares a set once and the others find it in the cache.
        with self.accelerator.main_process_first():
            images = load_images(self.config.data)
        self.sums = {"images": fingerprint(images), **self.task.checksums()}
        self.images = self.task.prepare(images, self.accelerator.device)
        self.step = Step(self.config.train, self.task, self.accelerator)
        self.network, self.ema = self.step.network, self.step.ema
        step = 0
        if last is not None:
            about, _ = self.checkpoints.about(last, self.config.as_dict())
            sources = {
                "images": " and ".join(source.path for source in self.config.data.sources) + " contains other images",
                "weights": f"{self.config.loss.weight} contains other weights",
                "autoencoder": f"{self.config.text.autoencoder} contains another autoencoder",
                "base": f"{self.config.flow.base} contains another autoencoder or text encoder",
            }
            for name, found in self.sums.items():
                if about.get(name, found) != found:
                    raise InputError(f"{sources[name]} than the run in {self.folder} began with.")
            self.checkpoints.load(last, self.network, self.ema, self.step.optimizer)
            step = about["step"]
        self.report.open(step)
        try:
            self._report_start(step)
            self._loop(step)
            return self._finish()
        finally:
            self.report.close()

    def _loop(self, first: int) -> None:
        """Trains from step number ``first`` (from 0) to the last one."""
        settings, output = self.config.train, self.config.output
        self.step.start(notify=lambda message: self.report.event("engine", first, message))
        micro_batches = self.images.stream(image_order(settings, len(self.images), first, self.accelerator))
        skipped = len(self.images.skipped)
        late = LateValues[int]()
        for step in range(first, settings.steps):
            values = self.step(step, micro_batches)
            done = step + 1
            end = done == settings.steps
            sheet = bool(output.sample_every) and (done % output.sample_every == 0 or end)
            checkpoint = done % output.checkpoint_every == 0 or end
            for at, (loss, norm) in late.add(done, values, wait=sheet or checkpoint):
                self._report_step(at, loss, norm)
            if len(self.images.skipped) > skipped:
                skipped = len(self.images.skipped)
                self.report.event("skipped", done, _skipped(self.images))
            self.report.pause_clock()
            if sheet:
                self._sheet(done)
            if checkpoint:
                # After the sheet: a run killed in between resumes before this step, and makes the sheet again.
                self._checkpoint(done)
            self.report.resume_clock()

    def _report_step(self, step: int, loss: float, norm: float) -> None:
        """Reports that ``step`` steps have been made. Raises NotFinite if the last one was not finite."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NotFinite(
                f"The loss is {loss:g} and its gradient norm {norm:g} at step {step}; the last checkpoint is still "
                "good.",
                step=step,
                hint="A lower train.lr or train.precision = 'float32' may help.",
            )
        self.report.step(step, loss, learning_rate(self.config.train, step - 1), norm)

    def _checkpoint(self, step: int) -> None:
        """Writes a checkpoint after ``step`` steps."""
        if self.main:
            about = {"config": self.config.as_dict(), **self.sums}
            path = self.checkpoints.save(step, self.network, self.ema, self.step.optimizer, about)
            self.report.event("checkpoint", step, f"checkpoint: {path}", path)
        self.accelerator.wait_for_everyone()

    def _sheet(self, step: int) -> None:
        """Writes a sample sheet, made with the averaged weights."""
        if not self.main:
            return
        path = self.folder / "samples" / f"step-{step:08d}.png"
        with self.ema.swapped(), _eval_mode(self.network):
            sheet = self.task.sheet(self.network)
        save_image(sheet, path)
        self.report.event("samples", step, f"samples: {path}", path)

    def _finish(self) -> Path:
        """Exports the averaged weights as a model, and returns its folder."""
        target = self.folder / "model"
        if self.main:
            about: dict[str, Any] = {
                "config": self.config.as_dict(),
                **self.sums,
                "skipped": self.images.skipped,
                "versions": _versions(),
            }
            with self.ema.swapped(), _eval_mode(self.network), whole_folder(target) as folder:
                self.task.export(self.network, folder)
                write_about(folder, about)
            note = f" {_skipped(self.images)}" if self.images.skipped else ""
            self.report.event("done", self.config.train.steps, f"Done: {target}.{note}", target)
        self.accelerator.wait_for_everyone()
        return target

    def _last_checkpoint(self, resume: bool) -> Path | None:
        """Returns the checkpoint to continue from, or None; also cleans up after a killed process.

        Raises:
            InputError: the folder already contains a run that is not to be resumed, or the config has changed.
        """
        if not resume and holds_run(self.folder):
            raise InputError(
                f"{self.folder} already contains a run; continue it with --resume, or choose another folder.",
                parameter="output.folder",
            )
        self.accelerator.wait_for_everyone()
        if self.main:
            clean_run(self.folder)
        self.accelerator.wait_for_everyone()
        found = self.checkpoints.all()
        if not found:
            return None
        _, changed = self.checkpoints.about(found[-1], self.config.as_dict())
        if changed:
            raise InputError(
                f"the run in {self.folder} began with other values of {', '.join(changed)}; "
                "restore them, or choose another folder.",
                parameter="output.folder",
            )
        return found[-1]

    def _report_start(self, step: int) -> None:
        count = sum(p.numel() for p in self.network.parameters())
        begin = f"continuing after step {step}" if step else "starting"
        self.report.event(
            "start",
            step,
            f"{begin}: {len(self.images)} images, {count:,} parameters, {self.config.train.steps} steps of "
            f"{self.config.train.batch}, {self.accelerator.num_processes} x {self.accelerator.device.type}",
            self.folder,
        )
        if self.images.skipped:
            self.report.event("skipped", step, _skipped(self.images))


def image_order(config: OptimConfig, count: int, first: int, processes: Processes) -> Iterator[list[int]]:
    """Yields the image indices of each micro-batch of this process, from step ``first`` on.

    An epoch need not end with a batch: one batch may contain the end of an epoch and the beginning of the next.
    """
    epoch, permutation = -1, draws.order(config.seed, 0, count)
    for step in range(first, config.steps):
        for micro in range(config.accumulate):
            batch = []
            for position in positions(config, micro, processes):
                wanted, at = divmod(step * config.batch + position, count)
                if wanted != epoch:
                    epoch, permutation = wanted, draws.order(config.seed, wanted, count)
                batch.append(int(permutation[at]))
            yield batch


def _skipped(images: Images) -> str:
    """Returns a message about the images that could not be decoded."""
    names = ", ".join(images.skipped[:3]) + (", ..." if len(images.skipped) > 3 else "")
    return f"{len(images.skipped)} images could not be decoded and are left out: {names}."


def _accelerator(config: OptimConfig) -> "Accelerator":
    """Makes the Accelerator. Raises InputError if the package is not installed."""
    try:
        from accelerate import Accelerator
    except ImportError:
        raise InputError("Training needs more packages: pip install 'ddim[train]'.") from None
    # Mixed precision is our own autocast in ``Step``, because Accelerate fixes one setting for the whole process.
    return Accelerator(mixed_precision="no", cpu=config.device == "cpu")


@contextmanager
def repeatable(device: torch.device, threads: int) -> Iterator[None]:
    """Inside the block, the same input gives the same bits; afterwards the caller's settings are restored.

    Args:
        device: the device of the network.
        threads: the number of CPU threads; 0 uses torch's number, but at most the cores that the process may use.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or thread_limit())
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), deterministic(device):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _eval_mode(network: nn.Module) -> Iterator[None]:
    """Inside the block, the network is in eval mode (no dropout)."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def _versions() -> dict[str, str]:
    """Returns the versions of the libraries that the result depends on."""
    import accelerate
    import diffusers

    return {"torch": torch.__version__, "diffusers": diffusers.__version__, "accelerate": accelerate.__version__}
