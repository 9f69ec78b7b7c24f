"""Commands beside a process that keeps one core busy, and on one core: seconds, and whether the pictures are the same.

    python benchmarks/busy.py --steps 20 --commands edit sample

Each command runs in a fresh process, as it comes and with OMP_NUM_THREADS=1, in three surroundings: alone, beside a
process that does nothing but keep one core busy, and with an affinity of one core. The seconds are those of the whole
process, start included; the smallest of the rounds. "times one thread" compares with OMP_NUM_THREADS=1 in the same
surroundings. "same" says whether every file is equal to that of the first run alone: pictures number by number, codes
tensor by tensor.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from ddim.evaluation.tables import machine

ALONE, BUSY, ONE_CORE = "alone", "beside a busy process", "on one core"
CHOSEN = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables that are removed for "as it comes"."""
FACE, BOOT = "emoji/test_images/noto_slightly-smiling-face.png", "fashion/test_images"


def commands(pictures: Path) -> dict[str, list[str]]:
    """The commands by name, without the steps and the output."""
    face, prompt = str(pictures / FACE), "noto slightly smiling face"
    boot = str(min((pictures / BOOT).glob("*.png")))
    return {
        "edit": ["edit", face, "--from", prompt, "--to", f"{prompt} with sunglasses"],
        "edit-exact": ["edit", face, "--from", prompt, "--to", f"{prompt} with sunglasses", "--method", "bdia"],
        "sample": ["sample", "--model", "emoji", "--prompt", "noto cat face"],
        "sample-one": ["sample", "--model", "emoji", "--prompt", "noto cat face", "-n", "1"],
        "sample-fashion": ["sample", "--model", "fashion", "-n", "64"],
        "invert": ["invert", face, "--model", "emoji", "--prompt", prompt, "--method", "bdia"],
        "invert-fashion": ["invert", boot, "--model", "fashion", "--method", "bdia"],
    }


@contextmanager
def surroundings(which: str) -> Iterator[list[str]]:
    """Makes one of the three, and yields what comes before a command line in it."""
    cores = sorted(os.sched_getaffinity(0))
    if which == ONE_CORE:
        yield ["taskset", "-c", str(cores[0])]
        return
    if which == ALONE:
        yield []
        return
    spin = f"import os; os.sched_setaffinity(0, {{{cores[-1]}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", spin])
    try:
        time.sleep(0.5)
        yield []
    finally:
        process.kill()
        process.wait()


def seconds(before: list[str], command: list[str], steps: int, threads: str | None, out: Path) -> float:
    """Runs a command in a fresh process and folder, and returns the seconds that it takes."""
    environment = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    environment |= {"HF_HUB_OFFLINE": "1", **({"OMP_NUM_THREADS": threads} if threads else {})}
    out.mkdir(parents=True)
    line = [*before, sys.executable, "-m", "ddim", *command, "--steps", str(steps), "--quiet"]
    start = time.perf_counter()
    subprocess.run(line, check=True, env=environment, cwd=out, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def numbers(folder: Path) -> dict[str, np.ndarray]:
    """The numbers in the pictures and codes that a command wrote."""
    found = {str(p.relative_to(folder)): np.asarray(Image.open(p)) for p in sorted(folder.rglob("*.png"))}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= {f"{path.name} {name}": value for name, value in load_file(path).items()}
    return found


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Whether both have the same numbers under the same names, and any at all."""
    return bool(a) and a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def main() -> None:
    import ddim

    every = commands(Path(ddim.__file__).parent / "models" / "bundled")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", choices=every, default=["edit", "sample", "invert"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--where", nargs="+", choices=(ALONE, BUSY, ONE_CORE), default=[ALONE, BUSY, ONE_CORE])
    args = parser.parse_args()
    print(f"python {' '.join(sys.argv)}\n{machine()}\n", flush=True)
    print("| command | surroundings | as it comes, s | one thread, s | times one thread | same |")
    print("|---|---|---|---|---|---|")
    for name in args.commands:
        first: dict[str, np.ndarray] | None = None
        for where in args.where:
            best, same = {"": float("inf"), "1": float("inf")}, True
            for _ in range(args.rounds):
                for threads in best:
                    with tempfile.TemporaryDirectory() as folder, surroundings(where) as before:
                        out = Path(folder) / "out"
                        best[threads] = min(best[threads], seconds(before, every[name], args.steps, threads, out))
                        if threads == "":
                            first = numbers(out) if first is None else first
                            same &= equal(first, numbers(out))
            both = f"{best['']:.1f} | {best['1']:.1f} | {best[''] / best['1']:.2f}"
            print(f"| {name} | {where} | {both} | {'yes' if same else 'no'} |", flush=True)


if __name__ == "__main__":
    main()
