"""One step of training: the gradient of its micro-batches, clipping, AdamW, and the average of the weights."""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..models.engine.graphs import Notify
from . import draws
from .config import OptimConfig
from .data import Batch
from .ema import EMA
from .graph import Gradient
from .tasks import Task
from .tasks.base import Draw


class Processes(Protocol):
    """What a step needs of the processes that train together. Accelerate's ``Accelerator`` has it."""

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        ...

    @property
    def num_processes(self) -> int:
        """How many processes there are."""
        ...

    @property
    def process_index(self) -> int:
        """The number of this process, from 0."""
        ...

    def prepare(self, network: nn.Module, /) -> nn.Module:
        """Wraps the network, so that its backward pass exchanges gradients with the other processes."""
        ...

    def no_sync(self, network: nn.Module, /) -> AbstractContextManager[object]:
        """A context in which the backward pass exchanges nothing."""
        ...

    def backward(self, loss: Tensor, /) -> None:
        """Adds the gradient of the loss to the gradients of the weights."""
        ...

    def reduce(self, values: Tensor, /, reduction: str) -> Any:
        """Combines a tensor over the processes; ``reduction`` is ``mean``."""
        ...


@dataclass(frozen=True)
class Alone:
    """The ``Processes`` of one process, without Accelerate.

    Args:
        device: the device that it computes on.
    """

    device: torch.device
    num_processes: int = 1
    process_index: int = 0

    def prepare(self, network: nn.Module) -> nn.Module:
        """Returns the network, which exchanges nothing."""
        return network

    def no_sync(self, network: nn.Module) -> AbstractContextManager[object]:
        """Returns a context that changes nothing."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of the loss to those of the weights."""
        loss.backward()

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        """Returns the values, which are their own mean."""
        return values


class Step:
    """Makes the steps of a run.

    On a CUDA device the convolutions' weights are in channels-last layout, and a single process computes the gradient
    as a CUDA graph; see ``Gradient``. No step waits for the GPU.

    Args:
        settings: the optimisation.
        task: what is trained; it has been prepared for the images.
        processes: the processes that train together.

    Attributes:
        network, ema, optimizer: the state that the steps change.
    """

    def __init__(self, settings: OptimConfig, task: Task, processes: Processes) -> None:
        self.settings, self.task, self.processes = settings, task, processes
        device = processes.device
        self._dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
        torch.manual_seed(draws.network_seed(settings.seed, 0, 0, 0))
        self.network = task.build().to(device)
        if device.type == "cuda":
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = EMA(self.network, settings.ema, settings.ema_warmup)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )
        self._weights = list(self.network.parameters())

    def start(self, *, graphs: bool = True, notify: Notify | None = None) -> None:
        """Prepares for the first step, after the state of a checkpoint has been loaded.

        Args:
            graphs: whether a GPU may compute the gradient as a CUDA graph.
            notify: called once with a sentence if it does not.
        """
        self._forward = self.processes.prepare(self.network)  # wrapped in DDP if there are several processes
        self._forward.train()
        reason = None if graphs else "it is switched off"
        if (count := self.processes.num_processes) > 1:
            reason = f"{count} processes share each batch"
        self._gradient = Gradient(
            self._add_gradient,
            self.network,
            self.processes.device,
            reason=reason,
            notify=notify,
        )

    def __call__(self, step: int, micro_batches: Iterator[Batch]) -> Tensor:
        """Makes a step.

        Args:
            step: its number, from 0.
            micro_batches: its micro-batches are taken from here.

        Returns:
            The loss, a mean over all processes, and the gradient norm before clipping, [2] on the device.
        """
        settings, processes = self.settings, self.processes
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        loss = torch.zeros((), device=processes.device)
        for micro in range(settings.accumulate):
            draw = Draw(settings.seed, step, settings.batch, positions(settings, micro, processes))
            inputs = self.task.inputs(next(micro_batches), draw)
            torch.manual_seed(draws.network_seed(settings.seed, step, micro, processes.process_index))  # dropout
            last = micro == settings.accumulate - 1  # DDP exchanges gradients only in the last backward pass
            with nullcontext() if last else processes.no_sync(self._forward):
                loss += self._gradient(inputs)
        loss = processes.reduce(loss, "mean")
        norm = torch.nn.utils.clip_grad_norm_(self._weights, settings.grad_clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(step)
        return torch.stack([loss, norm])

    def _add_gradient(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Adds the gradient of this process's part of a micro-batch, and returns its part of the loss."""
        kind = self.processes.device.type
        plain = sdpa_kernel(SDPBackend.MATH) if kind == "cpu" and self.task.plain_attention else nullcontext()
        with plain, torch.autocast(kind, self._dtype, enabled=self._dtype != torch.float32):
            loss = self.task.loss(self._forward, inputs)
        loss = loss / self.settings.accumulate
        self.processes.backward(loss)
        return loss.detach()


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


def positions(config: OptimConfig, micro: int, processes: Processes) -> range:
    """Returns the positions in a step's whole batch that belong to this process's micro-batch."""
    share = config.batch // (config.accumulate * processes.num_processes)
    start = (micro * processes.num_processes + processes.process_index) * share
    return range(start, start + share)
