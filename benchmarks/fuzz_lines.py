"""Command lines: small ones that work, with options added: right values, limits, other types, absurdities.

A line must end with 0, and then all files that it names are there and whole and no option was NaN or infinite; or with
1 or 2 and one line ``Error: ...``, a sentence, with no file written or changed; or as the command-line library's own
usage error. Other libraries say nothing. Not drawn: ``--compile`` (minutes of C++), ``--debug`` (shows tracebacks),
NUL (no command line can hold one), and for options that ask for as much work as they say (``LABOUR``), large numbers.
"""

import csv
import io
import json
import re
import shlex
import shutil
import sys
import typing
from pathlib import Path
from typing import Any

import fuzz_material
from fuzz import Case, Fault, place, sentence_fault

SKIPPED = {"compile", "debug"}
LABOUR = {"count", "frames", "samples", "images", "limit", "words", "styles", "grid", "reference", "resamples", "scale"}
BASES: dict[str, list[str]] = {
    "sample": [
        "-m pixel -n 2 -S 2",
        "-m text -n 2 -S 2 --prompt 'a cat'",
        "-m classes -n 2 -S 2 --label 1",
        "-m pixel -n 1 -S 2 --classifier classifier --label 1",
    ],
    "invert": [
        "a.png -m pixel -S 2",
        "a.png b.png -m pixel -S 3 --method bdia",
        "colour.png -m text -S 2 --prompt 'a cat'",
        "colour.png -m text -S 2 --prompt 'a cat' -w 3 --method null-text -o inner=2",
    ],
    "reconstruct": ["pixel.code.safetensors", "text.code.safetensors", "pixel.code.safetensors --original a.png"],
    "interpolate": [
        "a.png b.png -m pixel -S 2 --frames 3",
        "pixel.code.safetensors second.code.safetensors --frames 3",
        "a.png b.png c.png d.png -m pixel -S 2 --grid 2x2",
    ],
    "edit": ["colour.png --from 'a cat' --to 'a dog' -m text -S 2", "text.code.safetensors --to 'a dog'"],
    "train": ["train.toml"],
    "models": ["", "fashion"],
    "demo": ["-m pixel --images pictures --editor ''"],  # no PNGs there: a whole one takes a minute
    "evaluate table1": ["-m pixel -S 2 --samples 8 --features features --data pictures --solver ddim --eta 0"],
    "evaluate table2": [
        "-m pixel -S 2 --data pictures --images 2",
        "-m text -S 2 --recipe edits.toml --images 2 --method ddim",
    ],
    "evaluate consistency": ["-m pixel -S 2 --reference 3 --samples 2 --features features"],
    "evaluate interpolation": ["-m pixel -S 2 --samples 4 --frames 3 --features features --data pictures"],
    "evaluate leaderboard": ["-m text --recipe edits.toml -S 2 --images 1 --words 1 --styles 0 --method direct"],
    "evaluate edits": ["edits.toml -m text -S 2 --words 1 --styles 0 --method ddim"],
    "evaluate pie-bench": ["-m text --data bench -S 2 --limit 1 --metrics mse --method ddim"],
    "evaluate fid": ["-m pixel --data pictures --split test -n 4 -S 2 --features features --resamples 20"],
}
REVERSIBLE = ("edict", "bdia", "belm", "rex", "reversible-heun")
VALID: dict[str, list[str]] = {
    "model": ["pixel", "text", "classes"],
    "steps": ["1", "2", "5", "20"],
    "solver": ["ddim", "ddpm", "heun", "adams-bashforth", "dpm++2m", "edict", "bdia", "belm", "rex", "reversible-heun"],
    "method": [
        "ddim",
        "heun",
        "null-text",
        "negative-prompt",
        "direct",
        "edit-friendly",
        "edict",
        "bdia",
        "belm",
        "rex",
        "reversible-heun",
    ],
    "option": ["gamma=0.5", "p=0.9", "tableau=rk4", "skip=0.4", "inner=1", "iterations=2"],
    "spacing": ["trailing", "linspace", "quadratic", "karras", "900,500,100", "900"],
    "attention": ["refine", "replace", "none"],
    "dtype": ["float64", "bfloat16", "float16"],
    "device": ["cpu", "cpu:0"],
    "label": ["0", "1", "2"],
    "classifier": ["classifier"],
    "features": ["features"],
    "data": ["pictures", "bench", "words.parquet"],
    "recipe": ["edits.toml", "train.toml"],
    "prompt": ["a cat", "a (red:2.0) hat", "", "a cat " * 30],
    "to": ["a dog", "a (tiger:2.0)", "a cat next to a red mirror"],
    "from_": ["a cat", "a (cat:2)", ""],
    "weight": ["dog=2", "cat=0"],
    "blend": ["cat/dog", "dog"],
    "mask": ["colour.png", "a.png"],
    "original": ["a.png", "b.png"],
    "cross": ["0.8", "0.2,0.8"],
    "self_": ["0.4", "0,1"],
    "interval": ["0.2,0.8", "0,1"],
    "size": ["32x32", "64x32", "48x48"],
    "grid": ["2x2", "1x3"],
    "scale": ["1", "3"],
    "through": ["ddim", "state"],
    "metrics": ["mse,psnr", "ssim"],
    "categories": ["0", "1,8"],
    "resume": ["pixel.code.safetensors"],
    "name": ["fashion", "emoji"],
}
PATHS = ["new", "new/deep/er", "x.png", "x.code.safetensors", "pixel", "a.png", "b.png", "text.txt", "broken.png"]
PATHS += ["missing", "missing.png", "text.txt/x", "/proc/x", "/dev/null/x", "", ".", "..", "~", "x" * 300, "é☃.png"]
PATHS += ["pixel.code.safetensors", "train.toml", "\udcff.png", "x.jpg", "[red]x", "locked.png"]
NUMBERS = [
    "0",
    "-1",
    "1",
    "2",
    "0.5",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1e308",
    "1e-320",
    "",
    "1,5",
    "None",
    "0x10",
]
HUGE = ["1000000", str(2**63), str(-(2**63)), "9" * 40]
TEXTS = ["", " ", "none", "é☃", "\udcff", "w" * 300, "[red]x[/red]", "../x", "-1", "nan", "{}", "%s", "a=b", "=", "1x"]
TEXTS += ["1x1", "0x0", "99999x99999", "0,0", "1,0", "-1,2", "nan,nan", ",", "0,0.5,1", "a/b", "/", "猫" * 90]


def prepare(kind: str, root: Path) -> Any:
    """The folder that every line finds copied under its feet, and the commands that there are."""
    import typer

    from ddim.cli.app import app

    fuzz_material.lines(root)
    commands: dict[str, Any] = {}

    def walk(command: Any, words: str) -> None:
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{words} {name}".strip())
        if not hasattr(command, "commands"):
            commands[words] = [p for p in command.params if p.name not in SKIPPED]

    walk(typer.main.get_command(app), "")
    return root, commands


def kind_of(option: Any) -> Any:
    """What an option's values are: int, float, str, Path or bool, be there several of them or none."""
    kind = option.type_descriptor.annotation
    while inner := [a for a in typing.get_args(kind) if a is not type(None)]:
        kind = inner[0]
    return kind


def value_for(option: Any, chance: Any) -> str:
    """A value: right, at a limit, of another type or absurd; now and then another option's."""
    kind, dice = kind_of(option), chance.random()
    if dice < 0.45 and option.name in VALID:
        return chance.choice(VALID[option.name])
    if dice < 0.1:
        return chance.choice(VALID[chance.choice(sorted(VALID))])
    if kind in (int, float):
        if dice < 0.45:
            return chance.choice(["1", "2", "3"] if kind is int else ["0", "0.5", "1", "3"])
        large = [] if option.name in LABOUR else HUGE
        return chance.choice([*NUMBERS, *large, "many", "2.5"])
    return chance.choice(PATHS if kind is Path or dice < 0.6 else [*TEXTS, *NUMBERS])


def line(commands: dict[str, Any], chance: Any) -> list[str]:
    """One command line."""
    name = chance.choice(sorted(commands))
    words = [*name.split(), *shlex.split(chance.choice(BASES.get(name, [""])))]
    options = [p for p in commands[name] if p.param_type_name == "option"]
    for option in chance.sample(options, min(len(options), chance.choice((0, 1, 1, 2, 2, 3, 4)))):
        flag = next(f for f in option.opts if f.startswith("--"))
        if kind_of(option) is bool:
            words.append(chance.choice([flag, *option.secondary_opts]))
        else:
            words.append(f"{flag}={value_for(option, chance)}")
    if chance.random() < 0.1:
        at = chance.randrange(len(name.split()), len(words) + 1)
        words[at : at + chance.choice((0, 1))] = [chance.choice([*PATHS, *TEXTS, "--stepps=3"])]
    return words


def files(folder: Path) -> dict[str, bytes]:
    """Every file beneath a folder, as bytes."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def incomplete(name: str, data: bytes) -> str | None:
    """Why a file that was left behind is not whole, if it is not."""
    import pyarrow.parquet
    from PIL import Image
    from safetensors.torch import load

    if ".tmp" in name or any(part.startswith(".") for part in Path(name).parts):
        return "a temporary file"
    try:
        if name.endswith(".png"):
            Image.open(io.BytesIO(data)).load()
        elif name.endswith(".json"):
            json.loads(data)
        elif name.endswith(".safetensors"):
            wrong = [key for key, tensor in load(data).items() if not bool(tensor.isfinite().all())]
            return f"{wrong[0]} is not finite" if wrong else None
        elif name.endswith(".parquet"):
            pyarrow.parquet.read_table(io.BytesIO(data))
        elif name.endswith(".csv"):
            list(csv.reader(io.StringIO(data.decode())))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def command(words: list[str]) -> tuple[int, BaseException | None]:
    """The console script itself, in this process: its exit code, and the error that it made a sentence of."""
    from ddim.cli import app, failure

    seen: list[BaseException] = []
    told = failure.code_and_sentence
    failure.code_and_sentence = lambda error, *rest: (seen.append(error), told(error, *rest))[1]
    sys.argv = ["ddim", *words]
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), "utf-8") for fd in (1, 2))
    code: Any = 0
    try:
        app.main()
    except SystemExit as ended:
        code = ended.code or 0
    sys.stdout.flush()
    sys.stderr.flush()
    return code, seen[-1] if seen else None


def said(case: Case, name: str) -> str:
    return (case.folder / name).read_bytes().decode("utf-8", "replace")


def run(case: Case, material: Any) -> str:
    """Runs one line and holds it to what the module says."""
    root, commands = material
    words = line(commands, case.chance)
    case.tell("ddim " + shlex.join(words))
    here = case.folder / "here"
    shutil.copytree(root, here, dirs_exist_ok=True)
    before = files(here)
    code, error = command(words)
    out, err, after = said(case, "stdout"), said(case, "stderr"), files(here)
    new = {name: data for name, data in after.items() if before.get(name) != data}
    for name, data in new.items():
        if why := incomplete(name, data):
            raise Fault("half-written", f"{name}: {why} (exit {code}: {err[-200:]})")
    lines = [text for text in err.splitlines() if text.strip() and not text.startswith("Warning: ")]
    if code == 0:
        numbers = {f for options in commands.values() for p in options if kind_of(p) in (int, float) for f in p.opts}
        return succeeded(out, lines, new, words, here, numbers)
    right = [[*name.split(), *shlex.split(base)] for name, bases in BASES.items() for base in bases if name != "demo"]
    if code and words in right:
        raise Fault("a line that is right is refused", err[-300:])
    if error is None and code == 2 and "Usage:" in err:
        return "usage"
    return failed(code, out, lines, new, error)


def failed(code: int, out: str, lines: list[str], new: dict[str, bytes], error: BaseException | None) -> str:
    where = f" [{type(error).__name__} at {place(error)}]" if error else ""
    if code not in (1, 2) or error is None:
        raise Fault("exit code", f"{code}: {' / '.join(lines)[:300]}")
    if len(lines) != 1 or not lines[0].startswith("Error: "):
        raise Fault("not one line", f"{' / '.join(lines)[:400]}{where}")
    if wrong := sentence_fault(lines[0]):
        raise Fault("raw error" if "Unexpected" in wrong else "bad sentence", f"{lines[0][:400]} ({wrong}){where}")
    if out or (new and code == 2):
        raise Fault("refused after work", f"{lines[0]} wrote {', '.join(new) or out[:100]}{where}")
    return "refused" if code == 2 else "failed in a sentence"


def succeeded(
    out: str, lines: list[str], new: dict[str, bytes], words: list[str], here: Path, numbers: set[str]
) -> str:
    if words[0] not in ("train", "evaluate") and lines:  # those tell their progress there
        raise Fault("other words on stderr", " / ".join(lines)[:400])
    none = (w for w in words if re.fullmatch(r"--.+=([-+]?inf|nan|1e999)", w) and w.partition("=")[0] in numbers)
    if none := next(none, None):
        raise Fault("nonsense", f"{none} was taken")
    if "--json" in words:
        told = json.loads(out)
        gone = [name for name in told.get("files", []) if not (here / name).exists()]
        if gone:
            raise Fault("a file is named and not there", gone[0])
    elif words[0] not in ("models", "methods") and not new:
        raise Fault("nothing was written", out[:200])
    return "done"
