"""Damage everything that comes in, and see that nothing comes out but right results and sentences.

    python benchmarks/fuzz.py [--only lines|files|configs|codes|recipes] [--count N] [--case N] [--seed N] [--workers 2]

A case is a function of (seed, kind, number): ``--only files --case 17`` runs that one again, and says all of it. Each
runs in a process of its own, forked from one that has imported everything, in a fresh folder, with 20 s and 6 GiB.
The kinds are in ``fuzz_lines.py`` (command lines), ``fuzz_files.py`` (pictures) and ``fuzz_models.py`` (what lies in a
model's folder, latent codes, recipes); each says by which check a result is nonsense. POSIX only; no network.

Prints what became of the cases, and the failures by cause with a case of each; exits with 1 if there are any.
"""

import argparse
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

COUNTS = {"lines": 600, "files": 2000, "configs": 300, "codes": 100, "recipes": 100}
HOMES = {"lines": "fuzz_lines", "files": "fuzz_files"}  # the module of a kind; the rest is in fuzz_models
MEMORY = 6 * 2**30
OFFLINE = {
    **{"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""},
    **{"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "COLUMNS": "160"},
}


class Fault(Exception):
    """What must not be: a short name of its kind, and what was seen."""

    def __init__(self, kind: str, seen: str) -> None:
        super().__init__(f"{kind}: {seen}")


class Case:
    """One case: its chance, the folder it runs in, and in words what was damaged."""

    def __init__(self, kind: str, number: int, seed: int, folder: Path) -> None:
        self.chance = random.Random(f"{seed}/{kind}/{number}")
        self.kind, self.number, self.folder = kind, number, folder

    def tell(self, damage: str) -> None:
        """What was damaged, in words; kept also if the case hangs."""
        plain = damage.encode("utf-8", "backslashreplace").decode()
        (self.folder / "said").write_text(printable(plain), encoding="utf-8")


def printable(text: str) -> str:
    """A text on one line, with nothing in it that a terminal would obey."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def sentence_fault(text: str) -> str | None:
    """What keeps a text from being a sentence for people, if anything."""
    leaks = ("Traceback", "Unexpected", " object at 0x", "<class '")
    if not text.strip() or "\n" in text:
        return "it is not one line"
    if found := next((leak for leak in leaks if leak in text), None):
        return f"it says {found!r}"
    if len(text) > 2000:
        return "it is longer than 2000 letters"
    return None if re.search(r"(?<![.:;,])[.?!]$|[)\]]$", text) else "it does not end in one full stop"


def place(error: BaseException) -> str:
    """The last line of the library that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/ddim/" in f.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].name}" if ours else "?"


def verdict(module: ModuleType, material: Any, case: Case) -> tuple[bool, str]:
    """Whether all is well, and what became of it: one word, or the failure."""
    from ddim._utils.errors import DDIMError

    try:
        return True, module.run(case, material)
    except Fault as fault:
        return False, str(fault)
    except DDIMError as error:
        wrong = sentence_fault(str(error))
        return (
            wrong is None,
            "refused" if wrong is None else f"bad sentence: {wrong}: {str(error)[:400]} [{place(error)}]",
        )
    except BaseException as error:
        return False, f"raw error: {type(error).__name__}: {' '.join(str(error).split())[:300]} [{place(error)}]"


def in_child(module: ModuleType, material: Any, case: Case, limit: float) -> None:
    """Runs a case in this process, which ends with it; past the limit, with the place it hung at on record."""
    os.setsid()
    faulthandler.dump_traceback_later(limit, exit=True, file=os.open(case.folder / "hang", os.O_WRONLY | os.O_CREAT))
    for fd, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(case.folder / name, os.O_RDWR | os.O_CREAT), fd)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    (case.folder / "here").mkdir()
    os.chdir(case.folder / "here")
    warnings.simplefilter("ignore")
    fine, what = verdict(module, material, case)
    (case.folder / "verdict").write_text(json.dumps({"fine": fine, "what": printable(what)}))
    os._exit(0)


def judged(case: Case, status: int) -> dict[str, Any]:
    """What a case's process left: its verdict, or where it hung or broke down."""
    file, words = case.folder / "verdict", case.folder / "said"
    said = words.read_text(encoding="utf-8") if words.exists() else "before anything was damaged"
    if file.exists():
        return {"said": said, **json.loads(file.read_text())}
    hung = (case.folder / "hang").read_text()
    frames = re.findall(r'File ".*/(ddim/[^"]+)", line (\d+)', hung)
    where = ":".join(frames[0]) if frames else (hung.splitlines() or ["?"])[-1].strip()
    code = os.waitstatus_to_exitcode(status)
    what = f"hang: {where}" if hung else f"crash: exit {code}" if code >= 0 else f"crash: {signal.Signals(-code).name}"
    return {"fine": False, "what": what, "said": said}


def run_cases(cases: list[Case], homes: dict[str, tuple[ModuleType, Any]], workers: int, limit: float) -> list[Any]:
    """All cases, so many processes at a time; (case, verdict) in the order in which they ended."""
    waiting, running, done = cases[::-1], {}, []
    while waiting or running:
        if waiting and len(running) < workers:
            case = waiting.pop()
            case.folder.mkdir()
            pid = os.fork()
            if not pid:
                in_child(*homes[case.kind], case, limit)
            running[pid] = case
            continue
        pid, status = os.wait()
        case = running.pop(pid)
        done.append((case, judged(case, status)))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what a hung case had started
        shutil.rmtree(case.folder, ignore_errors=True)
    return done


def cause(case: Case, what: str) -> str:
    """Failures that read the same but for numbers and names have one cause."""
    short = re.sub(r"/[\w./-]+/", "", re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", what))
    return f"{case.kind}: " + re.sub(r"-?\d[\d.e+]*", "N", short)[:160]


def report(done: list[tuple[Case, dict[str, Any]]], seconds: float) -> int:
    """Counts and causes on stdout; how many failed."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    causes: dict[str, list[tuple[Case, dict[str, Any]]]] = defaultdict(list)
    for case, told in sorted(done, key=lambda pair: pair[0].number):
        counts[case.kind][told["what"] if told["fine"] else "FAILED"] += 1
        if not told["fine"]:
            causes[cause(case, told["what"])].append((case, told))
    for kind, found in counts.items():
        print(f"{kind}: {sum(found.values())} cases: " + ", ".join(f"{n} {what}" for what, n in found.most_common()))
    for several in sorted(causes.values(), key=len, reverse=True):
        case, told = several[0]
        print(f"\n{len(several)} x {case.kind} (--case {', '.join(str(c.number) for c, _ in several[:8])})")
        print(f"    {told['said']}\n    {told['what']}")
    failed = sum(map(len, causes.values()))
    print(f"\n{len(done)} cases in {seconds:.0f} s: {failed} failed, of {len(causes)} causes")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=COUNTS, action="append", help="a kind; repeatable")
    parser.add_argument("--count", type=int, help="cases of each kind, instead of the full size")
    parser.add_argument("--case", type=int, action="append", help="these numbers alone; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds until a case counts as hung")
    options = parser.parse_args()

    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        root = Path(temporary).resolve()
        os.environ.update(OFFLINE | {"HF_HOME": str(root / "hf"), "TORCH_HOME": str(root / "torch")})
        sys.path[1:1] = [str(Path(__file__).parents[1] / "tests" / "helpers")]
        sys.modules.setdefault("fuzz", sys.modules["__main__"])  # what the kinds import is this very module
        homes, cases = {}, []
        for kind in options.only or COUNTS:
            module = importlib.import_module(HOMES.get(kind, "fuzz_models"))
            (root / kind).mkdir()
            homes[kind] = module, module.prepare(kind, root / kind)
            numbers = options.case or range(options.count or COUNTS[kind])
            cases += [Case(kind, k, options.seed, root / f"{kind}-{k}") for k in numbers]
        gc.collect()
        gc.freeze()  # children then share these pages
        done = run_cases(cases, homes, options.workers, options.limit)
        if options.case:
            for case, told in done:
                print(f"{case.kind} {case.number}: {told['said']}\n    {told['what']}")
            print()
    return 1 if report(done, time.perf_counter() - began) else 0


if __name__ == "__main__":
    sys.exit(main())
