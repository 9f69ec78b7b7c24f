"""Measures from which work on another thread pays, and writes the table that chooses the threads of a call.

    python benchmarks/engine.py --dtype float32            # prints the measurements and the two thresholds
    python benchmarks/engine.py --dtype float32 --write    # and writes them into models/engine/thread_table.py

One network call on one thread is compared with two threads, in two ways: the rows in two parts, and all layers shared.
The networks are random U-Nets of rising width; the work is the estimate of ``Work``. Calls take turns, alone and beside
a process that keeps one core busy; a time is the mean of the turns, because a wait in every tenth call counts too.

A way pays from the least work on where two threads take at most 0.9 of the time of one when alone, and at most 1.3 of
it beside the busy process, there and in all larger calls. The table has the work of one of the two threads, rounded up
to two digits. Where no call qualifies, the old entry stays.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddim._utils.files import write_whole
from ddim.evaluation.tables import machine
from ddim.models.engine import thread_table
from ddim.models.engine.optimize import optimize_network
from ddim.models.engine.threads import Plan, _pool
from ddim.models.engine.work import Work

SHAPES = {
    "small": ((32, 64, 128), 32, (4, 8, 16, 32)),
    "middle": ((64, 128, 256), 32, (2, 4, 8, 16)),
    "wide": ((128, 256, 256), 32, (1, 2, 4, 8)),
    "large": ((128, 256, 512), 64, (1, 2, 4)),
}
"""Name -> channels by level, side of the images, rows of the calls."""
ONE, PARTS, LAYERS = "one thread", "two parts", "shared layers"
GAIN, LOSS = 0.9, 1.3


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
        return self.alone[way] <= GAIN * self.alone[ONE] and self.busy[way] <= LOSS * self.busy[ONE]


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


def network_of(channels: tuple[int, ...], side: int, dtype: torch.dtype) -> Any:
    """A random U-Net, as ``ddim.load`` makes it quick."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    torch.manual_seed(0)
    down, up = ("DownBlock2D",) * len(channels), ("UpBlock2D",) * len(channels)
    network: Any = UNet2DModel(side, block_out_channels=channels, down_block_types=down, up_block_types=up)
    network.eval().requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)
    optimize_network(network)
    return network


def call(network: Any, x: torch.Tensor, way: str) -> None:
    """One call in one of the ways."""
    t = torch.tensor(500)
    if way == PARTS:
        list(_pool(Plan(2, 1)).map(lambda rows: network(rows, t, return_dict=False), x.tensor_split(2)))
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1 if way == ONE else 2)
    network(x, t, return_dict=False)
    torch.set_num_threads(before)


def milliseconds(network: Any, x: torch.Tensor, ways: list[str], least: float) -> dict[str, float]:
    """The mean time of a call in each way; the ways take turns of ``least`` seconds each."""
    out = {}
    for way in ways:
        call(network, x, way)
        times, end = [], time.perf_counter() + least
        while time.perf_counter() < end or len(times) < 3:
            start = time.perf_counter()
            call(network, x, way)
            times.append(time.perf_counter() - start)
        out[way] = 1e3 * statistics.mean(times)
    return out


def measure(dtype: torch.dtype, names: list[str], least: float) -> list[Measured]:
    """Measures all calls, and prints each."""
    out = []
    for name in names:
        channels, side, counts = SHAPES[name]
        network = network_of(channels, side, dtype)
        for rows in counts:
            x = torch.randn(rows, 3, side, side, dtype=dtype)
            ways = [ONE, LAYERS] if rows == 1 else [ONE, PARTS, LAYERS]
            alone = milliseconds(network, x, ways, least)
            with busy_process():
                busy = milliseconds(network, x, ways, least)
            out.append(Measured(f"{name}, {rows}", rows * Work.of(network).row(side * side), alone, busy))
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


def write(dtype: str, entry: thread_table.Least) -> None:
    """Puts an entry into the table's file; everything else in it stays."""
    path = Path(thread_table.__file__)
    head, _, rest = path.read_text().partition("CPU: dict[str, Least] = {\n")
    _, _, tail = rest.partition("}\n")
    lines = [f'    "{name}": Least(part={e.part:.1e}, layer={e.layer:.1e}),\n' for name, e in
             {**thread_table.CPU, dtype: entry}.items()]  # fmt: skip
    write_whole(path, f"{head}CPU: dict[str, Least] = {{\n{''.join(lines)}}}\n{tail}".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=tuple(thread_table.CPU), default="float32")
    parser.add_argument("--networks", nargs="+", choices=tuple(SHAPES), default=list(SHAPES))
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn")
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
    new = thread_table.Least(*(threshold(calls, way) or kept for way, kept in ((PARTS, old.part), (LAYERS, old.layer))))
    print(f"\nfound: {[threshold(calls, way) for way in (PARTS, LAYERS)]}; the table has {tuple(old)}")
    if args.write:
        write(args.dtype, new)


if __name__ == "__main__":
    main()
