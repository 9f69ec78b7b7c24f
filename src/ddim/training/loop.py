"""The training loop.

A run is a function of its config: the images of step s, their noise levels, noise and flips, and the learning rate
are computed from (seed, s). So a resumed run needs the step, the weights, their average and the optimiser's state,
and then repeats the unbroken one bit for bit on the same machine with the same number of processes.
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
    """Trains what ``config`` says; under ``accelerate launch`` or ``torchrun`` on all of their processes.

    Args:
        config: the run, from ``load_config``.
        resume: continue from the newest checkpoint in ``config.output.folder`` (from the start if there is none).
        on_event: called in the main process with each ``Event``: every step, checkpoint, sheet.

    Returns:
        ``<folder>/model``, which diffusers loads: with DDIMPipeline, AutoencoderKL or StableDiffusionPipeline; or
        transformers: with ResNetForImageClassification.

    Raises:
        InputError: a config, data set or folder that cannot be used; a config or input changed on resume.
        NotFinite: the loss is no longer finite.
        DDIMError: the disk is full.
    """
    task = make_task(config)
    accelerator = _accelerator(config.train)
    if config.train.batch % (accelerator.num_processes * config.train.accumulate):
        raise InputError(
            f"{config.train.batch} does not divide into {accelerator.num_processes} processes "
            f"with {config.train.accumulate} micro-batches each.",
            parameter="train.batch",
        )
    alone = only_process(Path(config.output.folder)) if accelerator.is_main_process else nullcontext()
    device = accelerator.device
    with alone, _repeatable(device, config.train.threads), quick_gradients(device):
        return _Run(config, task, accelerator, on_event).run(resume)


class _Run:
    """One call of ``train``: everything that lives as long as the run."""

    def __init__(self, config: TrainConfig, task: Task, accelerator: "Accelerator", on_event: OnEvent | None) -> None:
        self.config, self.task, self.accelerator = config, task, accelerator
        self.main = accelerator.is_main_process
        self.folder = Path(config.output.folder)
        self.checkpoints = Checkpoints(self.folder / "checkpoints", config.output.keep)
        self.report = Reporter(config.output, config.train.steps, config.train.batch, self.main, on_event)

    def run(self, resume: bool) -> Path:
        last = self._last_checkpoint(resume)
        with self.accelerator.main_process_first():  # HF datasets prepares a set once, the others find it done
            images = load_images(self.config.data)
        self.sums = {"images": fingerprint(images), **self.task.sums()}
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
                "images": " and ".join(source.path for source in self.config.data.sources) + " holds other images",
                "weights": f"{self.config.loss.weight} holds other weights",
                "autoencoder": f"{self.config.text.autoencoder} holds another autoencoder",
            }
            for name, found in self.sums.items():
                if about.get(name, found) != found:
                    raise InputError(f"{sources[name]} than the run in {self.folder} began with.")
            self.checkpoints.load(last, self.network, self.ema, self.optimizer)
            step = about["step"]
        self.report.open(step)
        try:
            self._tell_start(step)
            self._loop(step)
            return self._finish()
        finally:
            self.report.close()

    def _loop(self, first: int) -> None:
        settings, output = self.config.train, self.config.output
        forward = self.accelerator.prepare(self.network)  # DDP where there are several processes
        forward.train()
        micro_batches = self.images.stream(_order(settings, len(self.images), first, self.accelerator))
        skipped = len(self.images.skipped)
        for step in range(first, settings.steps):
            lr = learning_rate(settings, step)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            loss = torch.zeros((), device=self.accelerator.device)
            for micro in range(settings.accumulate):
                last = micro == settings.accumulate - 1
                with nullcontext() if last else self.accelerator.no_sync(forward):
                    part = self._micro_batch(forward, next(micro_batches), step, micro) / settings.accumulate
                    self.accelerator.backward(part)
                loss += part.detach()
            value = float(self.accelerator.reduce(loss, "mean"))  # type: ignore[arg-type]
            limit = settings.grad_clip or math.inf
            norm = float(torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit))
            if not (math.isfinite(value) and math.isfinite(norm)):
                raise NotFinite(
                    f"The loss is {value:g} and its gradient {norm:g} at step {step + 1}; the last checkpoint is good.",
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
                self.report.tell("skipped", done, _skipped(self.images))
            self.report.pause()
            end = done == settings.steps
            if output.sample_every and (done % output.sample_every == 0 or end):
                self._sheet(done)
            if done % output.checkpoint_every == 0 or end:
                self._checkpoint(done)  # last: a resumed run then makes up for the sheet, too
            self.report.go_on()

    def _micro_batch(self, forward: nn.Module, batch: Batch, step: int, micro: int) -> Tensor:
        """The loss of this process's share of a step's micro-batch."""
        settings = self.config.train
        draw = Draw(settings.seed, step, settings.batch, _places(settings, micro, self.accelerator))
        torch.manual_seed(draws.network_seed(settings.seed, step, micro, self.accelerator.process_index))  # dropout
        device = self.accelerator.device.type
        with torch.autocast(device, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            return self.task.loss(forward, batch, draw)

    def _checkpoint(self, step: int) -> None:
        if self.main:
            about = {"config": self.config.as_dict(), **self.sums}
            path = self.checkpoints.save(step, self.network, self.ema, self.optimizer, about)
            self.report.tell("checkpoint", step, f"checkpoint: {path}", path)
        self.accelerator.wait_for_everyone()

    def _sheet(self, step: int) -> None:
        if not self.main:
            return
        path = self.folder / "samples" / f"step-{step:08d}.png"
        with self.ema.swapped(), _asked(self.network):
            sheet = self.task.sheet(self.network)
        save_image(sheet, path)
        self.report.tell("samples", step, f"samples: {path}", path)

    def _finish(self) -> Path:
        target = self.folder / "model"
        if self.main:
            about: dict[str, Any] = {
                "config": self.config.as_dict(),
                **self.sums,
                "skipped": self.images.skipped,
                "versions": _versions(),
            }
            with self.ema.swapped(), _asked(self.network), whole_folder(target) as folder:
                self.task.export(self.network, folder)
                write_about(folder, about)
            note = f" {_skipped(self.images)}" if self.images.skipped else ""
            self.report.tell("done", self.config.train.steps, f"Done: {target}.{note}", target)
        self.accelerator.wait_for_everyone()
        return target

    def _last_checkpoint(self, resume: bool) -> Path | None:
        """The checkpoint to continue from; cleans up after a killed process."""
        if not resume and holds_run(self.folder):
            raise InputError(
                f"{self.folder} already holds a run; continue it with --resume or choose another.",
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
                f"the run in {self.folder} was made with other values of {', '.join(changed)}; "
                "restore them or choose another.",
                parameter="output.folder",
            )
        return found[-1]

    def _tell_start(self, step: int) -> None:
        count = sum(p.numel() for p in self.network.parameters())
        begin = f"continuing after step {step}" if step else "starting"
        self.report.tell(
            "start",
            step,
            f"{begin}: {len(self.images)} images, {count:,} parameters, {self.config.train.steps} steps of "
            f"{self.config.train.batch}, {self.accelerator.num_processes} x {self.accelerator.device.type}",
            self.folder,
        )
        if self.images.skipped:
            self.report.tell("skipped", step, _skipped(self.images))


def learning_rate(config: OptimConfig, step: int) -> float:
    """The rate of step ``step`` (from 0): a linear rise, then constant, perhaps with a fall, or a half cosine."""
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.lr_schedule == "constant":
        fall = min(1.0, (config.steps - step) / config.decay) if config.decay else 1.0
        return config.lr * min(rise, fall)
    if step < config.warmup:
        return config.lr * rise
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def _places(config: OptimConfig, micro: int, accelerator: "Accelerator") -> range:
    """Which places of a step's whole batch this process fills with its micro-batch."""
    share = config.batch // (config.accumulate * accelerator.num_processes)
    start = (micro * accelerator.num_processes + accelerator.process_index) * share
    return range(start, start + share)


def _order(config: OptimConfig, count: int, first: int, accelerator: "Accelerator") -> Iterator[list[int]]:
    """The image indices of this process's micro-batches from step ``first`` on; epochs follow without a gap."""
    epoch, permutation = -1, draws.order(config.seed, 0, count)
    for step in range(first, config.steps):
        for micro in range(config.accumulate):
            batch = []
            for place in _places(config, micro, accelerator):
                wanted, at = divmod(step * config.batch + place, count)
                if wanted != epoch:
                    epoch, permutation = wanted, draws.order(config.seed, wanted, count)
                batch.append(int(permutation[at]))
            yield batch


def _skipped(images: Images) -> str:
    names = ", ".join(images.skipped[:3]) + (", ..." if len(images.skipped) > 3 else "")
    return f"{len(images.skipped)} images could not be decoded and are left out: {names}."


def _accelerator(config: OptimConfig) -> "Accelerator":
    try:
        from accelerate import Accelerator
    except ImportError:
        raise InputError("Training needs more packages: pip install 'ddim[train]'.") from None
    # Precision is our own autocast below: Accelerate keeps one for the life of the process.
    return Accelerator(mixed_precision="no", cpu=config.device == "cpu")


@contextmanager
def _repeatable(device: torch.device, threads: int) -> Iterator[None]:
    """The same input gives the same bits inside; the caller's generators and settings are back afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    gpus = [device] if device.type == "cuda" else []
    if gpus:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for
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
def _asked(network: nn.Module) -> Iterator[None]:
    """The network as it is used, not trained (no dropout), inside."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def _versions() -> dict[str, str]:
    import accelerate
    import diffusers

    return {"torch": torch.__version__, "diffusers": diffusers.__version__, "accelerate": accelerate.__version__}
