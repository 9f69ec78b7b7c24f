"""The part of training_step.py for ``--device``: bare steps on one device, of the example and of ddim.train, in turns.

It needs torch and diffusers only. Both sides begin with the same weights. In their first steps they are given the same
images, noise and levels, so that their losses say whether they solve the same problem; these steps are not timed. Then
the example draws its own noise on the device, as it does, and ours draws it on the CPU, as ddim.train does. A step of
the example ends when its loss is read, as there; ours reads it late.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rounds import CIFAR, headline, opened, ratios
from torch import Tensor
from torch.nn.functional import mse_loss

from ddim.core.late import LateValues
from ddim.training import config_from_dict
from ddim.training.data import MemoryImages
from ddim.training.ema import EMA
from ddim.training.loop import image_order, repeatable
from ddim.training.step import Alone, Step, positions
from ddim.training.tasks import make_task
from ddim.training.tasks.base import Draw

SAME = 5
"""The steps in which both sides are given the same."""
CASES = (("fashion", 64), (CIFAR, 128))
"""The network and the batch of its recipe, and the shape of google/ddpm-cifar10-32."""
PLAIN, GRAPH, EAGER = "diffusers' example", "ours, CUDA graph", "ours, no graph"
CONTIGUOUS, COMPILED = "ours, graph, contiguous", "ours, compiled, no graph"
RATE, BETAS, DECAY, STEPS = 1e-4, (0.95, 0.999), 1e-6, 10_000


class Ours:
    """The steps of ddim.train, without checkpoints and progress."""

    def __init__(
        self, options: dict[str, Any], pixels: Tensor, batch: int, precision: str, device: torch.device, name: str
    ) -> None:
        size, channels = options["sample_size"], options["in_channels"]
        left = ("sample_size", "in_channels", "out_channels")
        optimisation = {"lr": RATE, "betas": list(BETAS), "weight_decay": DECAY, "lr_schedule": "cosine", "warmup": 0}
        config = config_from_dict(
            {
                "data": {"path": "random", "size": size, "channels": channels},
                "model": {key: value for key, value in options.items() if key not in left},
                "train": {"steps": STEPS, "batch": batch, "precision": precision, **optimisation},
                "output": {"folder": "none"},
            }
        )
        self.settings, self.device, processes = config.train, device, Alone(device)
        self.task = make_task(config)
        self.images = self.task.prepare(MemoryImages(pixels, [""] * len(pixels), range(len(pixels)), []), device)
        self.order = lambda: image_order(config.train, len(pixels), 0, processes)
        self.batches = self.images.stream(self.order())
        with repeatable(device, 0):
            self.step = Step(config.train, self.task, processes)
        if name == CONTIGUOUS:
            self.step.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            self.step.ema = EMA(self.step.network, config.train.ema, config.train.ema_warmup)
        self.start = {key: value.to("cpu", copy=True) for key, value in self.step.network.state_dict().items()}
        if name == COMPILED:
            self.step.network.compile()
        self.notes: list[str] = []
        self.step.start(graphs=name in (GRAPH, CONTIGUOUS), notify=self.notes.append)
        self.losses: list[float] = []
        self.done, self.late = 0, LateValues[int]()

    def __call__(self, count: int) -> float:
        """Makes some steps; returns seconds a step."""
        with repeatable(self.device, 0):
            if not self.done and self.device.type == "cuda":
                # As a graph is recorded, so that both compute the same bits: attention has two gradients on CUDA.
                torch.use_deterministic_algorithms(True)
            began = now(self.device)
            for k in range(count):
                values = self.step(self.done, self.batches)
                self.done += 1
                self.losses += [loss for _, (loss, _) in self.late.add(self.done, values, wait=k == count - 1)]
            return (now(self.device) - began) / count

    def given(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images in [-1, 1], noise and diffusers' timesteps of the first steps, on the device."""
        for step, batch in enumerate(self.images.stream(self.order())):
            draw = Draw(self.settings.seed, step, self.settings.batch, positions(self.settings, 0, Alone(self.device)))
            inputs = self.task.inputs(batch, draw)
            clean = inputs["pixels"].float() / 127.5 - 1
            yield clean.to(self.device), inputs["noise"].to(self.device), inputs["t"].to(self.device) - 1


class Example:
    """diffusers' examples/unconditional_image_generation/train_unconditional.py in one process, without Accelerate."""

    def __init__(
        self, options: dict[str, Any], images: Tensor, batch: int, precision: str, device: torch.device, like: Ours
    ) -> None:
        from diffusers import DDPMScheduler, UNet2DModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        self.device, self.precision = device, precision
        self.images, self.batch = images, batch
        self.network = UNet2DModel(**options)
        self.network.load_state_dict(like.start)
        self.network.to(device).train()
        self.scheduler = DDPMScheduler()
        weights = self.network.parameters()
        self.optimizer = torch.optim.AdamW(weights, lr=RATE, betas=BETAS, weight_decay=DECAY)
        self.rate = get_scheduler("cosine", self.optimizer, num_warmup_steps=0, num_training_steps=STEPS)
        self.averaged = EMAModel(self.network.parameters(), decay=0.9999, use_ema_warmup=True)
        self.losses: list[float] = []
        self.material = like.given()

    def drawn(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images, noise and timesteps as the example draws them."""
        data = torch.utils.data.DataLoader(self.images, batch_size=self.batch, shuffle=True)  # type: ignore[arg-type]
        while True:
            for images in data:
                clean = images.to(self.device)
                noise = torch.randn(clean.shape, device=self.device)
                yield clean, noise, torch.randint(0, 1000, (len(clean),), device=self.device)

    def __call__(self, count: int) -> float:
        """Makes some steps; returns seconds a step."""
        began = now(self.device)
        for _ in range(count):
            clean, noise, times = next(self.material)
            noisy = self.scheduler.add_noise(clean, noise, times)  # type: ignore[arg-type]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                said = self.network(noisy, times).sample
            loss = mse_loss(said.float(), noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self.rate.step()
            self.optimizer.zero_grad()
            self.averaged.step(self.network.parameters())
            self.losses.append(loss.detach().item())
        return (now(self.device) - began) / count


def now(device: torch.device) -> float:
    """The time when the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def with_peak(make: Callable[[], Any], device: torch.device) -> tuple[Any, str]:
    """Makes a side and its first steps; returns it, and the memory that this reserved on the GPU, in words."""
    if device.type != "cuda":
        made = make()
        made(SAME)
        return made, ""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    made = make()
    made(SAME)
    torch.cuda.synchronize(device)
    return made, f"{(torch.cuda.max_memory_reserved(device) - before) / 2**20:8.0f} MiB reserved at most"


def measure(
    options: dict[str, Any], batch: int, precision: str, device: torch.device, args: argparse.Namespace, name: str
) -> None:
    """Measures one network in one precision, and prints its rows."""
    pixels = torch.randint(
        0,
        256,
        (4 * batch, options["in_channels"], options["sample_size"], options["sample_size"]),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    names = [GRAPH, EAGER] if device.type == "cuda" else [EAGER]
    names += [CONTIGUOUS] * ("contiguous" in args.also) + [COMPILED] * ("compile" in args.also)
    runs: dict[str, Any] = {}
    memory: dict[str, str] = {}
    for each in names:
        make = lambda each=each: Ours(options, pixels, batch, precision, device, each)  # noqa: E731
        runs[each], memory[each] = with_peak(make, device)
    like = runs[EAGER]
    images = pixels.float() / 127.5 - 1
    example, memory[PLAIN] = with_peak(lambda: Example(options, images, batch, precision, device, like), device)
    example.material = example.drawn()
    runs = {PLAIN: example, **runs}
    same = {each: run.losses[:SAME] for each, run in runs.items()}
    for run in runs.values():
        run(2)
    times: dict[str, list[float]] = {each: [] for each in runs}
    for _ in range(args.rounds):
        for each, run in runs.items():
            times[each].append(run(args.steps))
    print(f"\n{name}, batch {batch}, {precision}, {args.steps} steps a round, {args.rounds} rounds")
    for each, seconds in times.items():
        middle = 1e3 * statistics.median(seconds)
        print(f"{each:24s} {middle:8.2f} ms a step, {ratios(times, each, PLAIN)} times as fast, {memory[each]}")
    for each, losses in same.items():
        off = max(abs(a / b - 1) for a, b in zip(losses, same[PLAIN], strict=True))
        print(f"{each:24s} first losses {numbers(losses)}; at most {off:.1e} off the example's")
    if device.type == "cuda":
        print(f"graph and no graph: {'the same' if same[GRAPH] == same[EAGER] else 'OTHER'} losses to the bit")
    else:
        print("There is no CUDA device in use, so no step was recorded as a graph.")
    for note in sorted({f"{each}: {note}" for each, run in runs.items() for note in getattr(run, "notes", [])}):
        print(note)


def numbers(values: Sequence[float]) -> str:
    """Numbers in a line."""
    return " ".join(f"{value:.5f}" for value in values)


def main(args: argparse.Namespace, options_of: Callable[[Any], dict[str, Any]]) -> None:
    """Measures the networks and precisions that were asked for, or all.

    Args:
        args: the options of training_step.py; those that were not given are None.
        options_of: reads the options of a network.
    """
    device = torch.device(args.device)
    cases = [(args.network, args.batch or dict(CASES).get(args.network, 64))] if args.network else CASES
    args.steps, args.rounds = args.steps or 20, args.rounds or 5
    print(headline(args, f"bare steps on {device}"))
    if device.type == "cuda":
        tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        print(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, TF32 (cuDNN, products) {tf32}")
    for name, batch in cases:
        with opened(name) as network:
            options = options_of(network)
        for precision in [args.precision] if args.precision else ["float32", "bfloat16"]:
            measure(options, args.batch or batch, precision, device, args, name)
            if device.type == "cuda":
                torch.cuda.empty_cache()
