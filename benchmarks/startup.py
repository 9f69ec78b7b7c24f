"""How long ``import ddim`` and ``ddim --help`` take: median of some warm runs of a fresh process.

    python benchmarks/startup.py [--rounds 5]

The time of an empty interpreter is printed beside them; it is part of both.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from ddim.evaluation.tables import machine


def median_seconds(command: list[str], rounds: int) -> float:
    """Median wall time of a command, after one run to warm the file cache."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"median of {rounds}; {machine()}")
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import ddim'": [sys.executable, "-c", "import ddim"],
        "ddim --help": [str(Path(sys.executable).with_name("ddim")), "--help"],
    }
    for name, command in commands.items():
        print(f"{name:26s} {median_seconds(command, rounds):.3f} s")


if __name__ == "__main__":
    main()
