"""The section ``exact`` of benchmarks/gpu.py: does every reversible solver return its integers, on this device?

A row for each bundled model, precision, weight and solver. Three pictures are inverted in one call and saved. What is
loaded comes back as a whole and alone, and in a second process; another inversion of the first picture alone comes back
too. Integers at the data end are compared with those that the solver made of the pictures, and images with the decoded
ones. What would make that trivially true stands beside it: the spread of the code against noise, and the part of the
integers that another prompt changes (for a model without prompts: that one integer of the code changes).
"""

import json
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from gpu_bench import Bench
from torch import Tensor

import ddim
from ddim.core.tf32 import with_tf32
from ddim.data.images import read_images
from ddim.inversion.calls import recorded_calls
from ddim.models.counted import Counted
from ddim.solvers import REVERSIBLE
from ddim.solvers.lattice import ReversibleSolver

PRECISIONS = {
    "float32, TF32": ("float32", True),
    "bfloat16": ("bfloat16", True),
    "float16": ("float16", True),
    "float32, IEEE": ("float32", False),
}
PROMPT, OTHER = "noto dog face", "twemoji rabbit face"
WEIGHTS = {"fashion": (1.0,), "emoji": (1.0, 7.5)}
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "bdia": ({"gamma": 0.96},),
    "rex": ({"tableau": "euler"}, {"tableau": "rk4"}),
}
"""Options of solvers that are measured besides the defaults."""
COLUMNS = ("integers", "pictures", "alone", "another batch", "second process")
Integers = Mapping[str, Tensor]


def solvers() -> dict[str, ReversibleSolver]:
    """Every reversible solver of the registry with its defaults, and the variants that ``VARIANTS`` names."""
    found: dict[str, ReversibleSolver] = {}
    for name in REVERSIBLE:
        for options in ({}, *VARIANTS.get(name, ())):
            said = " ".join([name, *(f"{k}={v}" for k, v in options.items())])
            made = ddim.make_solver(name, options)
            assert isinstance(made, ReversibleSolver)
            found[said] = made
    return found


@contextmanager
def begun_with(into: list[Integers]) -> Iterator[None]:
    """Keeps the integers that ``from_image`` makes in the block."""
    from_image = ReversibleSolver.from_image

    def watched(self: ReversibleSolver, *args: Any) -> Any:
        into.append(from_image(self, *args))
        return into[-1]

    with mock.patch.object(ReversibleSolver, "from_image", watched):
        yield


def inverted(model: ddim.Model, images: Tensor, **settings: Any) -> tuple[ddim.LatentCode, Integers]:
    """The code of images, and their integers at the data end."""
    begun: list[Integers] = []
    with begun_with(begun):
        code = ddim.invert(model, images, **settings)
    return code, {key: torch.cat([part[key] for part in begun]).cpu() for key in begun[0]}


def returned(model: ddim.Model, code: ddim.LatentCode, strict: bool = True) -> tuple[Integers, Tensor]:
    """The integers at the data end of a code that is sampled, and its images."""
    module = import_module("ddim.pipelines.reconstruct")
    ended: list[Integers] = []
    replay = module.replay

    def watched(*args: Any, **options: Any) -> Any:
        ended.append(replay(*args, **options))
        return ended[-1]

    with mock.patch.object(module, "replay", watched):
        images = ddim.reconstruct(model, code, strict=strict)
    placed: dict[int, Integers] = {}
    for call, end in zip(recorded_calls(code.calls), ended, strict=True):
        placed |= {image: {key: value[row].cpu() for key, value in end.items()} for row, image in call.own}
    return {key: torch.stack([placed[k][key] for k in range(len(code))]) for key in ended[0]}, images.cpu()


def equal(a: Integers, b: Integers, rows: slice = slice(None)) -> bool:
    """Whether two states are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key][rows]) for key in a)


def decoded(model: ddim.Model, code: ddim.LatentCode, integers: Integers) -> Tensor:
    """The images of integers at the data end."""
    solver = ddim.make_solver(code.solver, code.options)
    assert isinstance(solver, ReversibleSolver)
    on_device = {key: value.to(model.device) for key, value in integers.items()}
    return model.decode(solver.read(solver.on_lattice(on_device, code.grid, code.grid.steps, model.state_dtype))).cpu()


def measured(model: ddim.Model, images: Tensor, solver: ReversibleSolver, weight: float, steps: int, file: Path) -> Any:
    """One row without its names; the code and its integers at the data end lie beside ``file`` then."""
    told: dict[str, Any] = {"prompt": PROMPT, "guidance": weight} if model.text else {}
    settings = {"steps": steps, "method": solver, **told}
    counted = Counted(model)
    code, truth = inverted(counted, images, batch=len(images), **settings)
    calls = counted.calls(len(images))
    torch.save(dict(truth), file.with_suffix(".pt"))
    loaded = ddim.LatentCode.load(code.save(file))
    back, pictures = returned(model, loaded)
    alone, _ = returned(model, loaded[1])
    single, its_truth = inverted(model, images[:1], batch=1, **settings)
    node = code.grid[solver.first(code.grid)]
    return {
        "calls": calls,
        "integers": equal(back, truth),
        "pictures": bool(torch.equal(pictures, decoded(model, code, truth))),
        "alone": equal(alone, truth, slice(1, 2)),
        "another batch": equal(returned(model, single)[0], its_truth),
        "spread of the code": float(code.x.double().square().mean().sqrt()) / math.hypot(node.alpha, node.sigma),
        "another condition changes": changed(model, loaded, truth),
    }


def changed(model: ddim.Model, code: ddim.LatentCode, truth: Integers) -> float:
    """The part of the integers at the data end that another prompt, or one other integer of the code, changes."""
    if model.text:
        other = replace(code, conditions=model.condition(None, len(code), [OTHER] * len(code)))
    else:
        first = torch.arange(code.state["x"][0].numel()).view_as(code.state["x"][0]) == 0
        other = replace(code, state={key: v.cpu() + first * 2**30 for key, v in code.state.items()})
    back, _ = returned(model, other, strict=False)
    return float(torch.stack([(back[key] != truth[key]).double().mean() for key in back]).mean())


def exact(bench: Bench) -> None:
    """Every combination, as far as the time reaches; then all saved codes in a second process."""
    steps, count = (4, 2) if bench.tiny else (20, 3)
    combinations = list(product(PRECISIONS, WEIGHTS))[: 2 if bench.tiny else None]
    rows: list[dict[str, Any]] = []
    total = 0
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", ddim.DDIMWarning)  # a code of little spread is exact too; its spread is shown
        for how, name in combinations:
            dtype, tf32 = PRECISIONS[how]
            with with_tf32(tf32):
                model = ddim.load(name, device=bench.device, dtype=dtype)
                images = read_images(ddim.bundled_test_images(name)[:count], model.picture)
                pairs = list(product(solvers().items(), WEIGHTS[name]))
                for (said, solver), weight in pairs[-1:] if bench.tiny and model.text else pairs:
                    total += 1
                    if not bench.more(0 if bench.tiny else 20 + 0.4 * len(rows)):  # for the second process
                        continue
                    about = {"model": name, "precision": how, "w": weight, "solver": said, "S": steps, "rows": count}
                    file = Path(folder) / f"{len(rows):04d}.safetensors"
                    try:
                        found = measured(model, images, solver, weight, steps, file)
                    except Exception as error:
                        found = {**dict.fromkeys(COLUMNS, False), "error": f"{type(error).__name__}: {error}"[:200]}
                    rows.append({**about, **found})
                    bench.say(f"exact: {rows[-1]}")
        again = second_process(Path(folder), rows, bench)
    for k, row in enumerate(rows):
        row["second process"] = again.get(k, False)
    summary(bench, rows, total)


def second_process(folder: Path, rows: list[dict[str, Any]], bench: Bench) -> dict[int, bool]:
    """Which codes of the folder another process brings back: number of the row -> whether."""
    about = [{key: row[key] for key in ("model", "precision")} for row in rows]
    (folder / "rows.json").write_text(json.dumps(about))
    command = [sys.executable, __file__, str(folder), str(bench.device)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        bench.note(f"exact: the second process failed: {done.stderr.strip()[-300:]}")
        return {}
    return {int(k): v for k, v in json.loads(done.stdout.splitlines()[-1]).items()}


def read_all(folder: Path, device: str) -> dict[int, bool]:
    """In the second process: every code of the folder comes back."""
    rows = json.loads((folder / "rows.json").read_text())
    models: dict[tuple[str, str], ddim.Model] = {}
    found: dict[int, bool] = {}
    warnings.simplefilter("ignore", ddim.DDIMWarning)
    for k, row in enumerate(rows):
        file = folder / f"{k:04d}.safetensors"
        if not file.is_file():
            continue
        dtype, tf32 = PRECISIONS[row["precision"]]
        with with_tf32(tf32):
            key = (row["model"], dtype)
            models.setdefault(key, ddim.load(row["model"], device=device, dtype=dtype))
            back, _ = returned(models[key], ddim.LatentCode.load(file))
        found[k] = equal(back, torch.load(file.with_suffix(".pt"), weights_only=True))
    return found


def summary(bench: Bench, rows: list[dict[str, Any]], total: int) -> None:
    """A line for each model and precision with counts; each failure in a table of its own."""
    for how, name in product(PRECISIONS, WEIGHTS):
        own = [row for row in rows if (row["precision"], row["model"]) == (how, name)]
        if not own:
            continue
        spreads = [row["spread of the code"] for row in own if "spread of the code" in row]
        moved = [row["another condition changes"] for row in own if "another condition changes" in row]
        bench.row(
            "exact",
            model=name,
            precision=how,
            w=", ".join(f"{w:g}" for w in dict.fromkeys(row["w"] for row in own)),
            solvers=", ".join(dict.fromkeys(row["solver"] for row in own)),
            S=own[0]["S"],
            rows=own[0]["rows"],
            evaluations=", ".join(dict.fromkeys(str(row["calls"]) for row in own if "calls" in row)),
            **{column: f"{sum(row[column] for row in own)} of {len(own)}" for column in COLUMNS},
            **{"spread of the code": f"{min(spreads):.2g} to {max(spreads):.2g}" if spreads else "–"},
            **{"another condition changes": f"at least {min(moved):.0%}" if moved else "–"},
        )
    for row in rows:
        if not all(row[column] for column in COLUMNS):
            bench.row("exact, failures", **row)
    if len(rows) < total:
        bench.note(f"exact: {len(rows)} of {total} combinations were measured; the time was used up.")


if __name__ == "__main__":
    print(json.dumps(read_all(Path(sys.argv[1]), sys.argv[2])))
