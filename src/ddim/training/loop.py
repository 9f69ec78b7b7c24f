"""The training loop.

A run is a function of its config: the images of step s, their noise levels, noise and flips, and the learning rate are
computed from (seed, s). So a checkpoint consists of the step, the weights, their average and the optimiser's state. A
resumed run repeats an unbroken one bit for bit, on the same machine with the same number of processes.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._utils.errors import InputError, NotFinite
from .._utils.lock import only_process
from ..core.gradients import quick_gradients
from ..data.images import save_image
from . import draws
from .checkpoint import Checkpoints, clean_run, holds_run, whole_folder
from .config import OptimConfig, TrainConfig
from .data import Batch, Images, fingerprint, load_images
from .ema import EMA
from .progress import OnEvent, Reporter
from .tasks import Task, make_task
from .tasks.base import Draw, write_about

if TYPE_CHECKING:
    from accelerate import Accelerator


def train(config: TrainConfig, *, resume: bool = False, on_event: OnEvent | None = None) -> Path:
    """Trains a model. Under ``accelerate launch`` or ``torchrun`` it uses all of their processes.

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
        DDIMError: the disk is full.
    """
    task = make_task(config)
    accelerator = _accelerator(config.train)
    if config.train.batch % (accelerator.num_processes * config.train.accumulate):
        raise InputError(
            f"{config.train.batch} cannot be divided among {accelerator.num_processes} processes "
            f"with {config.train.accumulate} micro-batches each.",
            parameter="train.batch",
        )
    alone = only_process(Path(config.output.folder)) if accelerator.is_main_process else nullcontext()
    device = accelerator.device
    with alone, _repeatable(device, config.train.threads), quick_gradients(device):
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
        torch.manual_seed(draws.network_seed(self.config.train.seed, 0, 0, 0))
        self.network = self.task.build()
        self.ema = EMA(self.network.to(self.accelerator.device), self.config.train.ema, self.config.train.ema_warmup)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=self.config.train.lr,
            betas=self.config.train.betas,
            weight_decay=self.config.train.weight_decay,
            fused=self.accelerator.device.type in ("cpu", "cuda"),
        )
        step = 0
        if last is not None:
            about, _ = self.checkpoints.about(last, self.config.as_dict())
            sources = {
                "images": " and ".join(source.path for source in self.config.data.sources) + " contains other images",
                "weights": f"{self.config.loss.weight} contains other weights",
                "autoencoder": f"{self.config.text.autoencoder} contains another autoencoder",
            }
            for name, found in self.sums.items():
                if about.get(name, found) != found:
                    raise InputError(f"{sources[name]} than the run in {self.folder} began with.")
            self.checkpoints.load(last, self.network, self.ema, self.optimizer)
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
        forward = self.accelerator.prepare(self.network)  # wrapped in DDP if there are several processes
        forward.train()
        micro_batches = self.images.stream(_order(settings, len(self.images), first, self.accelerator))
        skipped = len(self.images.skipped)
        for step in range(first, settings.steps):
            lr = learning_rate(settings, step)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            loss = torch.zeros((), device=self.accelerator.device)
            for micro in range(settings.accumulate):
                last = micro == settings.accumulate - 1  # DDP exchanges gradients only in the last backward pass
                with nullcontext() if last else self.accelerator.no_sync(forward):
                    part = self._micro_batch(forward, next(micro_batches), step, micro) / settings.accumulate
                    self.accelerator.backward(part)
                loss += part.detach()
            value = float(self.accelerator.reduce(loss, "mean"))  # type: ignore[arg-type]
            limit = settings.grad_clip or math.inf
            norm = float(torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit))
            if not (math.isfinite(value) and math.isfinite(norm)):
                raise NotFinite(
                    f"The loss is {value:g} and its gradient norm {norm:g} at step {step + 1}; the last checkpoint is "
                    "still good.",
                    step=step + 1,
                    hint="A lower train.lr or train.precision = 'float32' may help.",
                )
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.ema.update(step)

            done = step + 1
            self.report.step(done, value, lr, norm)
            if len(self.images.skipped) > skipped:
                skipped = len(self.images.skipped)
                self.report.event("skipped", done, _skipped(self.images))
            self.report.pause_clock()
            end = done == settings.steps
            if output.sample_every and (done % output.sample_every == 0 or end):
                self._sheet(done)
            if done % output.checkpoint_every == 0 or end:
                # After the sheet: a run killed in between resumes before this step, and makes the sheet again.
                self._checkpoint(done)
            self.report.resume_clock()

    def _micro_batch(self, forward: nn.Module, batch: Batch, step: int, micro: int) -> Tensor:
        """Computes the loss of this process's part of a micro-batch."""
        settings = self.config.train
        draw = Draw(settings.seed, step, settings.batch, _positions(settings, micro, self.accelerator))
        torch.manual_seed(draws.network_seed(settings.seed, step, micro, self.accelerator.process_index))  # dropout
        device = self.accelerator.device.type
        with torch.autocast(device, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            return self.task.loss(forward, batch, draw)

    def _checkpoint(self, step: int) -> None:
        """Writes a checkpoint after ``step`` steps."""
        if self.main:
            about = {"config": self.config.as_dict(), **self.sums}
            path = self.checkpoints.save(step, self.network, self.ema, self.optimizer, about)
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


def learning_rate(config: OptimConfig, step: int) -> float:
    """Returns the learning rate of step number ``step`` (from 0).

    It rises linearly during ``warmup``. Then it is constant, with a linear fall at the end if ``decay`` is set, or
    follows half a period of a cosine.
    """
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.lr_schedule == "constant":
        fall = min(1.0, (config.steps - step) / config.decay) if config.decay else 1.0
        return config.lr * min(rise, fall)
    if step < config.warmup:
        return config.lr * rise
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def _positions(config: OptimConfig, micro: int, accelerator: "Accelerator") -> range:
    """Returns the positions in a step's whole batch that belong to this process's micro-batch."""
    share = config.batch // (config.accumulate * accelerator.num_processes)
    start = (micro * accelerator.num_processes + accelerator.process_index) * share
    return range(start, start + share)


def _order(config: OptimConfig, count: int, first: int, accelerator: "Accelerator") -> Iterator[list[int]]:
    """Yields the image indices of each micro-batch of this process, from step ``first`` on.

    An epoch need not end with a batch: one batch may contain the end of an epoch and the beginning of the next.
    """
    epoch, permutation = -1, draws.order(config.seed, 0, count)
    for step in range(first, config.steps):
        for micro in range(config.accumulate):
            batch = []
            for position in _positions(config, micro, accelerator):
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
    # Mixed precision is our own autocast in _micro_batch, because Accelerate fixes one setting for the whole process.
    return Accelerator(mixed_precision="no", cpu=config.device == "cpu")


@contextmanager
def _repeatable(device: torch.device, threads: int) -> Iterator[None]:
    """Inside the block, the same input gives the same bits; afterwards the caller's settings are restored."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    gpus = [device] if device.type == "cuda" else []
    if gpus:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this setting
        torch.use_deterministic_algorithms(True, warn_only=True)
    if threads:
        torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(gpus), torch.backends.cudnn.flags(benchmark=False, deterministic=True):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


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
