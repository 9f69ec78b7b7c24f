"""``ddim batch`` on one worker and on two: pictures a second, their ratio, and the peak memory, all in one run.

    python benchmarks/batch.py [--images 2000] [--workers 1 2] [--method bdia] [--steps 20] [--batch 16]

The pictures of ``emoji`` that the package carries are repeated to ``--images`` files, each with other lowest bits, and
inverted and reconstructed with one thread a worker: first in this process, without Ray, then on Ray with each number
of workers. Loading the model, reading, and writing are counted; the start of Ray is listed apart. The outputs must be
equal, row for row. Memory is that of all processes of the run: the sum of their proportional shares (PSS).
"""

import argparse
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import ddim
from ddim._utils.cores import usable_cores
from ddim.batch import Columns, Output, Spread, Work, run_batch


def write_pictures(folder: Path, count: int, model: str) -> Path:
    """Writes ``count`` different pictures with a caption each."""
    known = ddim.bundled_test_images(model)
    folder.mkdir()
    for k in range(count):
        with Image.open(known[k % len(known)]) as image:
            pixels = np.array(image.convert("RGB"))
        bits = np.random.default_rng(k).integers(0, 2, pixels.shape, dtype=np.uint8)
        Image.fromarray(pixels ^ bits).save(folder / f"{k:06d}.png")
        words = known[k % len(known)].stem.replace("fluent-3d", "fluent").replace("_", " ").replace("-", " ")
        (folder / f"{k:06d}.txt").write_text(words)
    return folder


def processes_below(pid: int) -> list[int]:
    """A process and all that it started, at any depth."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, waiting = list[int](), [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], [])
    return found


def shared_mebibytes() -> float:
    """The memory of this process and of all below it, each page counted once."""
    total = 0
    for pid in processes_below(os.getpid()):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


@contextmanager
def peak(seconds: float = 5.0) -> Iterator[list[tuple[float, float]]]:
    """Takes the memory now and then (it costs time); yields the list of (seconds since the beginning, MiB)."""
    taken, over, began = list[tuple[float, float]](), threading.Event(), time.perf_counter()

    def take() -> None:
        while not over.wait(seconds):
            taken.append((time.perf_counter() - began, shared_mebibytes()))

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        over.set()
        thread.join()


def measured(work: Work, out: Path, spread: Spread) -> dict[str, Any]:
    """One run: its seconds, those until the first batch, and its memory."""
    began, first = time.perf_counter(), list[float]()

    def note(at: Any) -> None:
        if at.done is not None and not first:
            first.append(time.perf_counter() - began)

    with peak() as taken:
        summary = run_batch(work, out, spread, on_event=note)
    seconds = time.perf_counter() - began
    half = [size for at, size in taken if at > seconds / 2] or [0.0]
    early = [size for at, size in taken if first and first[0] < at <= seconds / 2] or half
    return {
        "items": summary.plan.count,
        "seconds": seconds,
        "first": first[0],
        "peak": max((size for _, size in taken), default=0.0),
        "early": max(early),
        "late": max(half),
        "errors": len(summary.errors),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2], help="on Ray; none leaves Ray out")
    parser.add_argument("--method", default="bdia")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only-ray", action="store_true", help="leave out the run in this process")
    options = parser.parse_args()
    print("python benchmarks/batch.py", *sys.argv[1:])
    print(f"{platform.processor() or platform.machine()}, {usable_cores()} cores, load {os.getloadavg()[0]:.1f}\n")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        pictures = write_pictures(root / "pictures", options.images, options.model)
        work = Work(
            "invert",
            Columns(str(pictures), prompt="{text}"),
            options.model,
            {"device": "cpu"},
            {"method": options.method, "steps": options.steps},
            batch=options.batch,
        )
        runs = {} if options.only_ray else {"here": Spread()}
        runs |= {f"Ray, {n}": Spread("local", n) for n in options.workers}
        rates: dict[str, float] = {}
        print("workers   seconds  to the first batch  items/s  after it  peak MiB  1st half  2nd half  errors")
        for name, spread in runs.items():
            found = measured(work, root / name, spread)
            rest = found["items"] - options.batch
            rates[name] = rest / max(found["seconds"] - found["first"], 1e-9)
            print(
                f"{name:9} {found['seconds']:7.1f} {found['first']:19.1f} {found['items'] / found['seconds']:8.2f}"
                f" {rates[name]:9.2f} {found['peak']:9.0f} {found['early']:9.0f} {found['late']:9.0f}"
                f" {found['errors']:7}",
                flush=True,
            )
        equal = True
        one, *others = (list(Output(root / name).rows()) for name in runs)
        if others:
            equal = all(one == other for other in others)
            print("\nall outputs are equal, row for row" if equal else "\nDIFFERENT ROWS")
        size = sum(file.stat().st_size for file in (root / next(iter(runs)) / "parts").iterdir())
        print(f"{size / options.images:,.0f} bytes of output for each picture")
        by_workers = [(name, rates[name]) for name in runs if name != "here"]
        for name, rate in by_workers[1:]:
            print(f"{name} workers: {rate / by_workers[0][1]:.2f} times {by_workers[0][0]}, after the first batch")

    return not equal


if __name__ == "__main__":
    sys.exit(main())
