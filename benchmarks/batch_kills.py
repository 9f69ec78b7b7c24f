"""``ddim batch`` on Ray, with workers and drivers that are killed at random moments.

    python benchmarks/batch_kills.py [--images 200] [--workers 2] [--steps 4] [--batch 4] [--kills 5] [--seed 7]

``ddim batch invert`` runs in this process without Ray, unbroken; then as a command on Ray, where first ``--kills``
workers and then ``--kills`` drivers get a SIGKILL, each at a random moment after the run has begun to store batches.
After a driver was killed, the same command goes on. At the end the rows must be those of the unbroken run, no file may
be left over, and no batch that was stored before a kill may have been written again. A line for each kill; exits with 1
if anything is otherwise.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from batch import processes_below, write_pictures

from ddim.batch import Columns, Output, Work, run_batch


def is_worker(pid: int) -> bool:
    """Whether a process is one of Ray's with a model."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::MapWorker")
    except OSError:
        return False


def stored(out: Path) -> dict[str, int]:
    """The time of each part."""
    return {file.name: file.stat().st_mtime_ns for file in (out / "parts").glob("part-*.parquet")}


class Driver:
    """The command on Ray.

    Args:
        command: what is run.
        out: where it writes.
    """

    def __init__(self, command: Sequence[str], out: Path) -> None:
        self.out, self.before = out, len(stored(out))
        self.log = (out.parent / "log").open("ab")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, start_new_session=True)

    def wait_for(self, more: int) -> bool:
        """Waits until so many more batches are stored; False if the command ends before."""
        while self.process.poll() is None:
            if len(stored(self.out)) >= self.before + more:
                return True
            time.sleep(0.02)
        return False

    def kill_worker(self, chance: random.Random) -> bool:
        """Kills one of the workers; False if there is none."""
        if workers := [pid for pid in processes_below(self.process.pid) if is_worker(pid)]:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(workers), signal.SIGKILL)
        return bool(workers)

    def kill(self) -> tuple[float, int]:
        """Kills the driver. Returns the seconds until all its processes are gone, and how many stayed for a minute."""
        family = processes_below(self.process.pid)[1:]
        self.process.kill()
        self.process.wait()
        began = time.monotonic()
        while (left := [pid for pid in family if Path(f"/proc/{pid}").exists()]) and time.monotonic() - began < 60:
            time.sleep(0.1)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return time.monotonic() - began, len(left)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    print("python benchmarks/batch_kills.py", *sys.argv[1:])
    chance, faults = random.Random(options.seed), list[str]()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        pictures, whole, out = write_pictures(root / "pictures", options.images, "emoji"), root / "whole", root / "out"
        settings = {"method": "bdia", "steps": options.steps}
        columns = Columns(str(pictures), prompt="{text}")
        summary = run_batch(Work("invert", columns, "emoji", {"device": "cpu"}, settings, batch=options.batch), whole)
        batches = summary.plan.batches
        command = [sys.executable, "-m", "ddim", "batch", "invert", "--data", pictures, "--prompt", "{text}"]
        command += ["--method", "bdia", "--steps", options.steps, "--batch", options.batch, "--device", "cpu"]
        command = [*map(str, command), "--out", str(out), "--ray", "local", "--workers", str(options.workers)]

        def checked(before: dict[str, int], what: str) -> None:
            now = stored(out)
            faults.extend(f"{what}: {name} was written again" for name, at in before.items() if now.get(name) != at)

        driver = Driver(command, out)
        for k in range(options.kills):
            if not driver.wait_for(1 + k * 2):
                faults.append(f"the run ended before worker {k + 1} could be killed")
                break
            time.sleep(chance.uniform(0, 1))
            before = stored(out)
            if driver.kill_worker(chance):
                print(f"worker {k + 1} killed with {len(before):3} of {batches} batches stored", flush=True)
            else:
                faults.append("no worker was found")
            driver.wait_for(len(before) - driver.before + 2)
            checked(before, f"worker {k + 1}")
        for k in range(options.kills):
            if not driver.wait_for(1):
                faults.append(f"the run ended before driver {k + 1} could be killed")
                break
            time.sleep(chance.uniform(0, 2))
            before = stored(out)
            seconds, left = driver.kill()
            gone = f"all of Ray was gone after {seconds:.1f} s" if not left else f"{left} helpers of Ray stayed"
            print(f"driver {k + 1} killed with {len(before):3} of {batches} batches stored; {gone}", flush=True)
            driver = Driver(command, out)
            driver.wait_for(2)
            checked(before, f"driver {k + 1}")
        if status := driver.process.wait():
            faults.append(f"the last run ended with {status}: {(root / 'log').read_text()[-500:]}")
        if list(Output(out).rows()) != list(Output(whole).rows()):
            faults.append("the rows differ")
        names = [sorted(str(file.relative_to(folder)) for file in folder.rglob("*")) for folder in (out, whole)]
        if names[0] != names[1]:
            faults.append(f"the files differ: {set(names[0]) ^ set(names[1])}")
        rows = len(list(Output(out).rows()))
    for fault in faults:
        print(fault)
    print(f"{rows} rows, DIFFERENT" if faults else f"{rows} rows, equal to those of the unbroken run")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
