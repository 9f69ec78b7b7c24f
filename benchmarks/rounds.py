"""What the speed benchmarks share: their networks as folders, runs taken in turns, and peaks of memory."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from common import TINY

from ddim.evaluation.tables import machine

CIFAR = "cifar"
"""A random network of the shape of google/ddpm-cifar10-32, 35.7 million parameters."""
TINY_TEXT = "tiny-text"
NETWORKS = ("fashion", "emoji", CIFAR)


@dataclass(frozen=True)
class Network:
    """A network as a folder in the diffusers format.

    Attributes:
        name: as it was asked for.
        folder: what ``ddim.load`` and diffusers open.
        text: whether it is a StableDiffusionPipeline, and not a DDIMPipeline.
    """

    name: str
    folder: Path
    text: bool

    def prompts(self, count: int) -> list[str]:
        """What it is to draw."""
        some = ("noto cat face", "twemoji red apple", "openmoji rocket", "fluent dog face")
        return [some[k % 4] for k in range(count)]


@contextmanager
def opened(name: str) -> Iterator[Network]:
    """A carried model, a folder, or a random network: ``cifar``, or ``tiny`` and ``tiny-text`` of the tests."""
    import ddim

    with tempfile.TemporaryDirectory() as made:
        folder = Path(ddim.bundled_models().get(name, name))
        if name in (TINY, TINY_TEXT):
            sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))
        if name == TINY:
            import tiny

            folder = tiny.pipeline_folder(Path(made))
        elif name == TINY_TEXT:
            import tiny_text

            folder = Path(made)
            tiny_text.pipeline().save_pretrained(folder)
        elif name == CIFAR:
            folder = _cifar(Path(made))
        yield Network(name, folder, (folder / "text_encoder").is_dir())


def _cifar(folder: Path) -> Path:
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,  # type: ignore[arg-type]
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
    )
    assert sum(p.numel() for p in network.parameters()) == 35_746_307
    DDIMPipeline(network, DDIMScheduler()).save_pretrained(folder)
    return folder


def in_turns(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round, after one that is not counted: a machine that slows down slows all.

    A run that returns a float has taken its own time.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            own = run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(own if isinstance(own, float) else time.perf_counter() - start)
    return times


def ratios(times: Mapping[str, Sequence[float]], name: str, other: str) -> str:
    """How many times as fast ``name`` is as ``other``: the median of the rounds' ratios, and their range."""
    each = [b / a for a, b in zip(times[name], times[other], strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def peaks(network: Network, names: Sequence[str], args: argparse.Namespace) -> dict[str, str]:
    """Peak memory of a process that makes one run once, run by run, for a column of the table; "" unless it is asked
    for. The processes are this script with ``--only NAME``, on the same folder."""
    if not args.memory:
        return dict.fromkeys(names, "")
    found = {}
    for name in names:
        command = [sys.executable, *sys.argv, "--network", str(network.folder), "--only", name]
        last = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        found[name] = f", {last.removeprefix('peak ')}"
    return found


def only(run: Callable[[], object]) -> None:
    """Makes one run once and prints the peak memory of this process, the libraries' own included.

    Read from /proc: what getrusage says of a process begins with the peak of the one that started it.
    """
    run()
    said = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(f"peak {int(said.split()[1]) // 2**10} MB")


def arguments(about: str | None, batch: int, rounds: int = 5) -> argparse.ArgumentParser:
    """What every speed benchmark is told."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="fashion", help=f"{', '.join(NETWORKS)}, {TINY}, {TINY_TEXT} or a folder")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--memory", action="store_true", help="also each run's peak memory, in a process of its own")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser


def headline(args: argparse.Namespace, what: str) -> str:
    """The line over a table: the command, what was done, the machine."""
    return f"python {' '.join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]])}\n{what}; {machine()}"
