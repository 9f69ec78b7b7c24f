"""The section ``training`` of benchmarks/gpu.py: a step of ddim.train against that of diffusers' example."""

import statistics
import tempfile
from pathlib import Path

from gpu_bench import Bench, median_ratio
from rounds import CIFAR, TINY, in_turns, opened
from training_step import OURS, PLAIN, options_of, ours, plain, random_pictures


def training(bench: Bench) -> None:
    """The network of CIFAR's shape, and ``fashion``'s; a batch of 128."""
    batch, steps, rounds = (4, 3, 1) if bench.tiny else (128, 20, 2)
    for name in (TINY,) if bench.tiny else (CIFAR, "fashion"):
        with opened(name) as network, tempfile.TemporaryDirectory() as folder:
            options = options_of(network)
            images = random_pictures(Path(folder), 2 * batch, options)
            for dtype in ("float32", "bfloat16"):
                if not bench.more():
                    bench.note(f"training: {name} in {dtype} was skipped; the time was used up.")
                    return
                device = bench.device.type
                times = in_turns(
                    {
                        PLAIN: plain(options, images, batch, steps, dtype, device),
                        OURS: ours(options, Path(folder), batch, steps, dtype, device),
                    },
                    rounds,
                )
                bench.row(
                    "training",
                    network=name,
                    batch=batch,
                    dtype=dtype,
                    TF32="as torch comes",
                    steps=steps - 1,
                    **{f"{who}, ms a step": 1e3 * statistics.median(some) for who, some in times.items()},
                    ratio=median_ratio(times, OURS, PLAIN),
                )
