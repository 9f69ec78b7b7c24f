"""Kill the command at random moments, run it again, and look at what lies there.

    python benchmarks/kills.py [--kills 100] [--seed 11] [--only NAME ...]

Kills (SIGKILL and SIGTERM in turn) fall on ``ddim invert`` of several pictures and into one code, ``edit``, null-text
with ``--resume``, ``sample --each``, ``train`` and ``evaluate table2``, on tiny models that are made here. After each
kill every file under its own name must load, nothing that was done before may be gone, and no more than the batch in
hand may be missing of what the network was asked for; after the run that completes, nothing may be left over, and every
result must be the one of an unbroken run. A line for each kind; exits with 1 if anything is otherwise. No GPU; about
two seconds a kill.

The runs are children of this process, so that nothing is imported anew. Training's bits, with kills aimed at the
writing of a checkpoint, are ``benchmarks/kill_resume.py``'s.
"""

import argparse
import gc
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))  # the tiny models are the tests'

RECIPE = """
[data]
path = {images}
size = 8
channels = 1
[model]
block_out_channels = [8, 8]
layers_per_block = 1
norm_num_groups = 4
down_block_types = ["DownBlock2D", "DownBlock2D"]
up_block_types = ["UpBlock2D", "UpBlock2D"]
add_attention = false
[train]
steps = {steps}
batch = 4
lr = 1e-3
threads = 1
device = "cpu"
[output]
folder = {folder}
checkpoint_every = 5
keep = 1000
sample_every = 0
tensorboard = false
"""

CALLS = multiprocessing.get_context("fork").Value("q", 0)
"""Network calls of the child at work."""


@dataclass
class Kind:
    """A command that is killed.

    Args:
        name: for the table.
        words: the command, given the folder that it writes into.
        again: the same command where a ``.partial`` lies in the folder; by default ``words``.

        each: network calls a result, where results are written one by one.

    Attributes:
        kills, inside, kept: how many there were, fell into the work, and found more results than before.
        wrong: a sentence for all that is otherwise than it should be.
    """

    name: str
    words: Callable[[Path], list[str]]
    again: Callable[[Path], list[str]] | None = None
    each: int = 0
    kills: int = 0
    inside: int = 0
    kept: int = 0
    wrong: list[str] = field(default_factory=list)


def start(words: Sequence[str], log: Path) -> Any:
    """The command in a child of this process, which speaks into ``log``."""

    def child() -> None:
        with log.open("wb") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        from ddim.cli.app import main as command
        from ddim.models.counted import Counted

        forward = Counted.forward

        def counted(self: Counted, *a: Any) -> Any:
            CALLS.value += 1
            return forward(self, *a)

        setattr(Counted, "forward", counted)  # noqa: B010
        sys.argv = ["ddim", *words]
        command()

    CALLS.value = 0

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


def ended(process: Any) -> int:
    """The exit code; minus the signal that ended it."""
    process.join(120)
    if process.is_alive():
        process.kill()
        process.join()
        return 999
    return process.exitcode


def is_left(path: Path) -> bool:
    """Whether a name is that of something unfinished."""
    return path.name.endswith((".tmp", ".partial")) or path.name.startswith((".ddim-", ".step-"))


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def results(folder: Path) -> list[Path]:
    """What lies there under its own name."""
    return [p for p in files(folder) if not any(is_left(Path(part)) for part in p.relative_to(folder).parts)]


def begun_in(folder: Path) -> int:
    """How many pictures the code holds that an interrupted run left, if any."""
    from ddim import LatentCode

    return sum(int(LatentCode.load(p).settings["partial"]["done"]) for p in folder.glob("*.partial"))


def pictures_in(path: Path) -> int:
    """How many pictures a result holds. A kill may come after the code of all of them, before the process ends."""
    from ddim import LatentCode

    return len(LatentCode.load(path)) if path.name.endswith(".code.safetensors") else 1


def broken(path: Path) -> str | None:
    """Why a file cannot be read, or None."""
    from PIL import Image
    from safetensors.torch import load_file

    from ddim import LatentCode

    try:
        if path.name.endswith((".code.safetensors", ".partial")):
            LatentCode.load(path)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".parquet":
            import pyarrow.parquet as pq

            pq.ParquetFile(path).read()
        elif path.suffix == ".json":
            json.loads(path.read_text())
    except Exception as error:
        return f"{path.name}: {error}"
    return None


def contents(folder: Path) -> dict[str, Any]:
    """What an unbroken run and a resumed one must share: all but clock times, and the parts that rows are kept in."""
    found: dict[str, Any] = {}
    for path in results(folder):
        name = str(path.relative_to(folder))
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.ParquetFile(path).read().to_pylist()
            found.setdefault("rows", []).extend(
                json.dumps({k: v for k, v in row.items() if k != "seconds"}, sort_keys=True) for row in rows
            )
        elif path.suffix in (".png", ".safetensors"):
            found[name] = path.read_bytes() if path.suffix == ".safetensors" else _pixels(path)
        else:
            found[name] = None  # texts name the folder and the time
    found["rows"] = sorted(found.get("rows", []))
    return found


def _pixels(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as image:
        return image.mode.encode() + image.tobytes()


def kill(kind: Kind, folder: Path, chance: random.Random, number: int, seconds: float, log: Path) -> None:
    """One kill of a run, anywhere between its first result and its end, and what it left."""
    partials = list(folder.glob("*.partial"))
    resumed = kind.again is not None and bool(partials)
    words = kind.again(folder) if kind.again is not None and resumed else kind.words(folder)
    before, begun = {p: p.stat().st_mtime_ns for p in results(folder)}, begun_in(folder)
    process = start(words, log)
    time.sleep(chance.uniform(0.05, 1.0) * seconds)
    with_what = signal.SIGTERM if number % 2 else signal.SIGKILL
    if process.is_alive():
        os.kill(process.pid, with_what)
    code = ended(process)
    kind.kills += 1
    if code != 0:
        kind.inside += 1
    if code not in (0, -with_what, 128 + with_what):
        kind.wrong.append(f"exit code {code} after {with_what.name}: {log.read_text()[-300:]}")
    if "Traceback" in log.read_text() or "Unexpected" in log.read_text():
        kind.wrong.append(f"{with_what.name}: {log.read_text()[-300:]}")
    for path in [*results(folder), *folder.glob("*.partial")]:
        if why := broken(path):
            kind.wrong.append(why)
    if kind.name != "edit":  # whose code goes when its picture is there
        kind.wrong += [f"{path.name} is gone" for path in before if not path.exists()]
    new = [p for p in results(folder) if p.stat().st_mtime_ns != before.get(p) and not broken(p)]
    done = begun_in(folder) - begun + sum(map(pictures_in, new))
    if kind.each and code != 0 and done < CALLS.value // kind.each - 1:
        kind.wrong.append(f"{CALLS.value} network calls, {kind.each} a result, and only {done} results")
    kind.kept += len(results(folder)) > len(before)


def finish(kind: Kind, folder: Path, whole: Path, log: Path) -> None:
    """The run that completes, against an unbroken one."""
    partials = list(folder.glob("*.partial"))
    words = kind.again(folder) if kind.again is not None and partials else kind.words(folder)
    if code := ended(start(words, log)):
        kind.wrong.append(f"the completing run ended with {code}: {log.read_text()[-300:]}")
        return
    kind.wrong += [f"{p.relative_to(folder)} is left" for p in files(folder) if p not in results(folder)]
    one, other = contents(whole), contents(folder)
    kind.wrong += [f"{name} differs" for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]


def kinds(root: Path, part: int) -> Iterator[Kind]:
    """The commands with their steps divided by ``part``, on models and pictures that are made in ``root``."""
    import tiny
    import tiny_text
    import torch

    from ddim.data.images import save_image

    def steps(count: int) -> str:
        return str(count // part)

    torch.set_num_threads(1)
    pixel, words = str(tiny.pipeline_folder(root / "pixel")), str(root / "words")
    tiny_text.pipeline().save_pretrained(words)
    for k in range(12):
        save_image(torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(k)), root / f"grey/{k:02d}.png")
        save_image(tiny_text.pictures(seed=k)[0], root / f"colour/{k:02d}.png")
    grey, colour = ([str(p) for p in sorted((root / name).iterdir())] for name in ("grey", "colour"))
    back = ["invert", *grey, "-m", pixel, "-S", steps(40), "--batch", "1", "--no-check", "--out"]
    tuned = ["invert", *colour[:3], "-m", words, "-p", "a cat", "-w", "5", "--method", "null-text", "-S", steps(20)]
    tuned += ["-o", "inner=3", "--batch", "1", "--no-check", "--together", "--out"]
    one = "all.code.safetensors"
    made = [
        "edit",
        colour[0],
        "-m",
        words,
        "--from",
        "a cat",
        "--to",
        "a dog",
        "--to",
        "a tiger",
        "-S",
        steps(60),
        "--each",
    ]
    drawn = ["sample", "-m", pixel, "-n", "12", "-S", steps(40), "--batch", "1", "--each", "--out"]
    table = ["evaluate", "table2", "-m", pixel, "--data", str(root / "grey"), "--images", "12", "--batch", "2"]
    table += ["--method", "ddim", "--method", "bdia", "-S", steps(20), "-S", steps(40), "--out"]

    def resumed(command: Sequence[str]) -> Callable[[Path], list[str]]:
        return lambda folder: [*command, str(folder / one), "--resume", str(folder / f"{one}.partial")]

    def recipe(folder: Path) -> list[str]:
        config = folder.with_suffix(".toml")
        values = {"images": json.dumps(str(root / "grey")), "folder": json.dumps(str(folder)), "steps": steps(120)}
        config.write_text(RECIPE.format(**values))
        return ["train", str(config), "--resume"]

    each = int(steps(40))
    yield Kind("invert", lambda folder: [*back, str(folder)], each=each)
    together = [*back[:-1], "--together", "--out"]
    yield Kind(
        "invert --together", lambda folder: [*together, str(folder / one)], resumed(together), each=int(steps(40))
    )
    yield Kind("null-text", lambda folder: [*tuned, str(folder / one)], resumed(tuned))
    yield Kind("edit", lambda folder: [*made, "--out", str(folder / "strip.png")])
    yield Kind("sample", lambda folder: [*drawn, str(folder / "sheet.png")], each=each)
    yield Kind("train", recipe)
    yield Kind("evaluate table2", lambda folder: [*table, str(folder)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in all, shared out among the kinds")
    parser.add_argument("--seed", type=int, default=11, help="of the random moments")
    parser.add_argument("--part", type=int, default=1, help="divides the steps of every command")
    parser.add_argument("--only", nargs="*", help="kinds, as the table names them")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        chosen = [kind for kind in kinds(root, options.part) if not options.only or kind.name in options.only]
        log = root / "log"
        print(f"{options.kills} kills, moments from seed {options.seed}; Python {sys.version.split()[0]}")
        print(f"{'command':18} kills  inside  kept more  wrong")
        number = 0
        gc.collect()
        gc.freeze()  # children then share these pages
        for k, kind in enumerate(chosen):
            name = kind.name.replace(" ", "-")
            whole, folder = root / f"{name}-whole", root / f"{name}-killed"
            whole.mkdir()
            began = time.perf_counter()
            if code := ended(start(kind.words(whole), log)):
                kind.wrong.append(f"the unbroken run ended with {code}: {log.read_text()[-300:]}")
            seconds = time.perf_counter() - began
            for _ in range(options.kills * (k + 1) // len(chosen) - options.kills * k // len(chosen)):
                folder.mkdir(exist_ok=True)
                kill(kind, folder, chance, number, seconds, log)
                number += 1
                if chance.random() < 0.5 or number % 5 == 0:  # else the next kill falls on what this one left
                    finish(kind, folder, whole, log)
                    shutil.rmtree(folder)
            if folder.exists():
                finish(kind, folder, whole, log)
            print(f"{kind.name:18} {kind.kills:5}  {kind.inside:6}  {kind.kept:9}  {len(kind.wrong):5}", flush=True)
            for line in kind.wrong:
                print(f"    {line}")
        return 1 if any(kind.wrong for kind in chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
