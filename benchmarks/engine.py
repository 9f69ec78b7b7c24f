"""Measures from which work on another thread pays, and writes the table that chooses the threads of a call.

    python benchmarks/engine.py --dtype float32            # prints the measurements and the two thresholds
    python benchmarks/engine.py --dtype float32 --write    # and writes them into models/engine/thread_table.py

One network call on one thread is compared with two threads, in two ways: the rows in two parts, and all layers shared.
The work of a call is the estimate of ``Work``. Each call is timed alone and beside a process that keeps one core busy.
A time is the median of three turns, and a turn is a mean, because a wait in every tenth call counts too.

A way pays from the least work on where two threads take at most 0.9 of the time of one when alone, and not too much
more than it beside the busy process, there and in all larger calls: 1.3 times for parts, and twice for shared layers,
without which a large network would leave most cores of a large machine idle. The table has the work of one of the two
threads, rounded up to two digits. Where no call qualifies, the old entry stays.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ddim
from ddim._utils.files import write_whole
from ddim.evaluation.tables import machine
from ddim.models.engine import thread_table
from ddim.models.engine.optimize import optimize_network
from ddim.models.engine.threads import Plan, _pool
from ddim.models.engine.work import Work

CALLS = {
    "fashion": (2, 4, 8, 16, 32),
    "emoji": (2, 4, 8, 16),
    "wide": (1, 2, 4),
    "large": (1, 2),
    "sd": (1,),
}
"""The networks and the rows of their calls: the two of the package, two random pixel U-Nets of 32 and 64 pixels, and a
U-Net of the shape of Stable Diffusion 1.5 for images of 256 pixels."""
ONE, PARTS, LAYERS = "one thread", "two parts", "shared layers"
GAIN, LOSS = 0.9, {PARTS: 1.3, LAYERS: 2.0}


@dataclass(frozen=True)
class Measured:
    """One call: its work, and the milliseconds of each way, alone and beside a busy process."""

    what: str
    work: float
    alone: dict[str, float]
    busy: dict[str, float]

    def pays(self, way: str) -> bool:
        """Whether a way qualifies for this call."""
        if way not in self.alone:
            return False
        return self.alone[way] <= GAIN * self.alone[ONE] and self.busy[way] <= LOSS[way] * self.busy[ONE]


@contextmanager
def busy_process() -> Iterator[None]:
    """Keeps the last core that may be used busy."""
    spin = f"import os; os.sched_setaffinity(0, {{{max(os.sched_getaffinity(0))}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", spin])
    try:
        time.sleep(0.3)
        yield
    finally:
        process.kill()
        process.wait()


def network_of(name: str, dtype: torch.dtype) -> tuple[Any, tuple[int, ...]]:
    """A network by name, as ``ddim.load`` makes it quick, and the shape of its x."""
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    if name in ("fashion", "emoji"):
        model: Any = ddim.load(name, dtype=dtype)
        return model.network, model.shape
    with torch.device("meta"):
        if name == "sd":
            made: Any = UNet2DConditionModel(cross_attention_dim=768)
        else:
            channels, side = ((128, 256, 256), 32) if name == "wide" else ((128, 256, 512), 64)
            down, up = ("DownBlock2D",) * 3, ("UpBlock2D",) * 3
            made = UNet2DModel(side, block_out_channels=channels, down_block_types=down, up_block_types=up)
    made.to_empty(device="cpu").eval().requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)
    for parameter in made.parameters():
        parameter.fill_(1e-3)
    optimize_network(made)
    return made, (4, 32, 32) if name == "sd" else (3, made.config.sample_size, made.config.sample_size)


def ways_of(network: Any, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """One call in each of the ways that its rows allow."""
    t, text = torch.tensor(500), getattr(network.config, "cross_attention_dim", None)
    words = [torch.randn(len(x), 77, text, dtype=x.dtype)] if text else []

    def ask(rows: torch.Tensor, *about: torch.Tensor) -> object:
        return network(rows, t, *about, return_dict=False)

    def in_layers(threads: int) -> None:
        torch.set_num_threads(threads)
        ask(x, *words)

    def in_parts() -> None:
        list(_pool(Plan(2, 1)).map(ask, *(tensor.tensor_split(2) for tensor in (x, *words))))

    ways: dict[str, Callable[[], object]] = {ONE: lambda: in_layers(1), LAYERS: lambda: in_layers(2)}
    return ways if len(x) == 1 else {**ways, PARTS: in_parts}


def milliseconds(ways: Mapping[str, Callable[[], object]], least: float) -> dict[str, float]:
    """The time of a call in each way: the median of three turns, each of which is a mean over ``least`` seconds."""
    turns: dict[str, list[float]] = {way: [] for way in ways}
    for call in ways.values():
        call()
    for _ in range(3):
        for way, call in ways.items():
            count, start = 0, time.perf_counter()
            while (passed := time.perf_counter() - start) < least or not count:
                call()
                count += 1
            turns[way].append(1e3 * passed / count)
    return {way: statistics.median(times) for way, times in turns.items()}


def measure(dtype: torch.dtype, names: Sequence[str], least: float) -> list[Measured]:
    """Measures all calls, and prints each."""
    out: list[Measured] = []
    for name in names:
        network, shape = network_of(name, dtype)
        row = Work.of(network).row(shape[1] * shape[2])
        for rows in CALLS[name]:
            ways = ways_of(network, torch.randn(rows, *shape, dtype=dtype))
            alone = milliseconds(ways, least)
            with busy_process():
                busy = milliseconds(ways, least)
            out.append(Measured(f"{name}, {rows}", rows * row, alone, busy))
            cells = " | ".join(f"{s[w]:.0f}" if w in s else "" for s in (alone, busy) for w in (ONE, PARTS, LAYERS))
            print(f"| {out[-1].what} | {out[-1].work / 1e9:.2f} | {cells} |", flush=True)
    return out


def threshold(calls: list[Measured], way: str) -> float | None:
    """The work of one thread from which a way pays; None if it does not pay in the largest call."""
    found = None
    for one in sorted((c for c in calls if way in c.alone), key=lambda c: -c.work):
        if not one.pays(way):
            break
        found = one.work / 2
    if found is None:
        return None
    digits = 10 ** (math.floor(math.log10(found)) - 1)
    return math.ceil(found / digits) * digits


def _short(number: float) -> str:
    """A number as ``7.1e08``."""
    return f"{number:.1e}".replace("+", "")


def write(dtype: str, entry: thread_table.Least) -> None:
    """Puts an entry into the table's file; everything else in it stays."""
    path = Path(thread_table.__file__)
    head, _, rest = path.read_text().partition("CPU: dict[str, Least] = {\n")
    _, _, tail = rest.partition("}\n")
    lines = [f'    "{name}": Least(part={_short(e.part)}, layer={_short(e.layer)}),\n' for name, e in
             {**thread_table.CPU, dtype: entry}.items()]  # fmt: skip
    write_whole(path, f"{head}CPU: dict[str, Least] = {{\n{''.join(lines)}}}\n{tail}".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=tuple(thread_table.CPU), default="float32")
    parser.add_argument("--networks", nargs="+", choices=tuple(CALLS), default=list(CALLS))
    parser.add_argument("--seconds", type=float, default=0.2, help="of a turn")
    parser.add_argument("--write", action="store_true", help="write the thresholds into the table")
    args = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two cores are needed")
    print(f"python {' '.join(sys.argv)}\n{args.dtype}; {machine()}; milliseconds a call\n")
    sides = [f"{side}: {way}" for side in ("alone", "busy") for way in (ONE, PARTS, LAYERS)]
    print(f"| network, rows | GMAC | {' | '.join(sides)} |\n|{'---|' * 8}")
    torch.set_num_threads(2)
    with torch.no_grad():
        calls = measure(getattr(torch, args.dtype), args.networks, args.seconds)
    old = thread_table.CPU[args.dtype]
    part, layer = threshold(calls, PARTS), threshold(calls, LAYERS)
    whole = set(args.networks) == set(CALLS)
    print(f"\nfound: {part} for a part, {layer} for a thread in shared layers; the table has {tuple(old)}")
    if not whole:
        print("The second is not written: it needs the largest network.")
    new = thread_table.Least(part or old.part, layer if layer and whole else old.layer)
    if args.write:
        write(args.dtype, new)


if __name__ == "__main__":
    main()
