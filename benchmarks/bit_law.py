"""The bit law, measured over a whole product: do the integers at the data end come back, and in whose company?

    python benchmarks/bit_law.py --out runs/bit-law                   # fashion and emoji on this machine; resumable
    python benchmarks/bit_law.py --out runs/bit-law --device cuda     # the same on a GPU
    python benchmarks/bit_law.py --solvers rex reversible-heun        # of some solvers only

One row for each model, dtype, guidance weight, solver, number of steps and batch. Images are inverted, and the code is
written to a file. Another process reads it, comes forward in four companies, and compares integers with those that the
solver's ``start`` gave:

- same: the whole code, as it was made;
- alone: ``code[0]``, the other rows of its call filled with copies;
- threads: the whole code with another number of torch's threads;
- bare: ``code[0]`` without its record of calls. This one need not come back, and shows that the record is needed.

Beside it stands what would make the law trivially true: how far the code is from the image, its spread against the
noise's, and how many integers at the data end another condition changes (of a model without one, another code).
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ddim
from ddim.core.denoiser import PLAIN, Call
from ddim.core.solve import solve
from ddim.data.images import read_images
from ddim.evaluation.metrics import psnr
from ddim.evaluation.tables import machine, markdown
from ddim.inversion import calls
from ddim.inversion.replay import state_of

SOLVERS = ("bdia", "bdia gamma=0.96", "belm", "edict", "rex", "rex tableau=euler", "rex tableau=rk4", "reversible-heun")
PROMPT, OTHER = "noto dog face", "twemoji rabbit face"
COMPANIES = {"same": "bit for bit", "alone": "code[0] alone", "threads": "other threads"}


def made_by(solver: str) -> ddim.ReversibleSolver:
    """``bdia gamma=0.96`` as a solver."""
    name, *options = solver.split()
    made = ddim.make_solver(name, dict(option.split("=") for option in options))
    assert isinstance(made, ddim.ReversibleSolver)
    return made


def parameters(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every row's settings, the quick ones first."""
    for steps, model, dtype, batch, solver in product(args.steps, args.models, args.dtypes, args.batches, args.solvers):
        for weight in args.weights if model == "emoji" else [1.0]:
            yield {"model": model, "dtype": dtype, "w": weight, "solver": solver, "S": steps, "batch": batch}


def pictures(model: ddim.Model, count: int) -> Tensor:
    """Real pictures that the model was not trained on."""
    return read_images(ddim.bundled_test_images(model.name)[:count], model.picture)


def ends(model: ddim.Model, code: ddim.LatentCode, kept: bool = True) -> list[Tensor]:
    """The integers at the data end of every image, each after its own call (or, not kept, all in one call)."""
    solver, machine_then = made_by(_told(code)), code.machine if kept else {}
    layout = calls.layout_of(machine_then)
    guidance = ddim.Guidance.of(code.guidance, bool(machine_then.get("batched_cfg", True)))
    asked = calls.recorded_calls(code.calls) if kept else calls.batched_calls(len(code), len(code))
    out: dict[int, Tensor] = {}
    for call in asked:
        part = code.take(call.items)
        told = Call(layout=layout) if layout else PLAIN
        denoise = model.guided(guidance, part.conditions.to(model.device), call=told)
        state = state_of(solver, part.state, code.grid, model.device, model.state_dtype)
        end = solve(denoise, solver, state, code.grid)
        whole = torch.stack([end[key] for key in solver.keys])
        out |= {image: whole[:, row].cpu() for row, image in call.own}
    return [out[k] for k in range(len(code))]


def _told(code: ddim.LatentCode) -> str:
    usual = type(ddim.make_solver(code.solver))().options
    options = " ".join(f"{k}={v}" for k, v in code.options.items() if v != usual[k])
    return f"{code.solver} {options}".strip()


def measure(model: ddim.Model, row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A row's inversion; its code and its integers at the data end lie in ``folder`` then."""
    solver, images = made_by(row["solver"]), pictures(model, row["batch"])
    told = {"prompt": PROMPT, "guidance": row["w"]} if model.text else {}
    began = time.perf_counter()
    code = ddim.invert(model, images, steps=row["S"], method=solver, batch=row["batch"], **told)
    layout = calls.layout_of(code.machine)
    denoise = model.guided(ddim.Guidance.of(code.guidance), code.conditions, call=Call(layout=layout))
    with torch.no_grad():
        begun = solver.from_image(denoise, model.encode(images), code.grid)
    truth = torch.stack([begun[key] for key in solver.keys]).transpose(0, 1).contiguous().cpu()
    folder.mkdir()
    code.save(folder / "code.safetensors")
    torch.save(truth, folder / "truth.pt")
    node = code.grid[solver.first(code.grid)]
    spread = float(code.x.double().square().mean().sqrt()) / (node.alpha**2 + node.sigma**2) ** 0.5
    far = float(psnr(model.decode(code.x.to(model.device)).cpu(), images).mean())
    return {**row, "spread": spread, "far": far, "seconds": round(time.perf_counter() - began, 2)}


def brought_back(group: Sequence[dict[str, Any]], folder: Path, device: str) -> list[dict[str, Any]]:
    """The rows with what another process finds in the folders of their numbers."""
    first = group[0]
    command = [sys.executable, __file__, "--read", str(folder), "--model", first["model"], "--dtype", first["dtype"]]
    done = subprocess.run([*command, "--device", device], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [{**row, **found} for row, found in zip(group, json.loads(done.stdout.splitlines()[-1]), strict=True)]


def read_all(folder: Path, name: str, dtype: str, device: str) -> list[dict[str, Any]]:
    """What the other process finds in every folder."""
    model = ddim.load(name, dtype=dtype, device=device)
    return [read(model, one) for one in sorted(folder.iterdir())]


def read(model: ddim.Model, folder: Path) -> dict[str, Any]:
    """Which companies bring the same integers back."""
    torch.set_num_threads(1)
    code = ddim.LatentCode.load(folder / "code.safetensors")
    truth = torch.load(folder / "truth.pt", weights_only=True)

    def equal(found: Sequence[Tensor]) -> bool:
        return all(bool(torch.equal(a, b)) for a, b in zip(found, truth, strict=False))

    out: dict[str, Any] = {"same": equal(ends(model, code)), "alone": equal(ends(model, code[0]))}
    torch.set_num_threads(3)
    out["threads"] = equal(ends(model, code))
    solver = made_by(_told(code))
    bare = ends(model, code[0], kept=False)[0]
    images = [
        model.decode(solver.read(solver.on_lattice(state, code.grid, code.grid.steps)).to(model.device))
        for state in (dict(zip(solver.keys, x.unsqueeze(1), strict=True)) for x in (bare, truth[0]))
    ]
    out["bare"] = None if torch.equal(bare, truth[0]) else min(float(psnr(*images).mean()), 200.0)
    if model.text:
        other = model.condition(None, len(code), [OTHER] * len(code))
        changed = ends(model, replace(code, conditions=other))
    else:  # nothing but the image conditions it: a code of which one integer is another
        state = {k: v + (torch.arange(v[0].numel()).view_as(v[0]) == 0) * 2**30 for k, v in code.state.items()}
        changed = ends(model, replace(code, state=state))
    out["changed"] = float(torch.stack([a != b for a, b in zip(changed, truth, strict=True)]).double().mean())
    return out


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[k] for k in ("model", "dtype", "w", "solver", "S", "batch"))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each model, dtype, weight and solver, over every S and batch."""
    out = []
    for key in dict.fromkeys((row["model"], row["dtype"], row["w"], row["solver"]) for row in rows):
        own = [row for row in rows if (row["model"], row["dtype"], row["w"], row["solver"]) == key]
        bare = [row["bare"] for row in own if row["bare"] is not None]
        least = "bit for bit" if not bare else f"{min(bare):.0f} dB"
        out.append(
            {
                **dict(zip(("model", "dtype", "w", "solver"), (key[0], key[1], f"{key[2]:g}", key[3]), strict=True)),
                "S": ", ".join(map(str, sorted({row["S"] for row in own}))),
                **{f"{head}": f"{sum(row[k] for row in own)} of {len(own)}" for k, head in COMPANIES.items()},
                "alone, without the record": least,
                "spread of x_T": _range([row["spread"] for row in own], ".2g"),
                "x_T to image": f"{max(row['far'] for row in own):.1f} dB",
                "another condition changes": f"{min(row['changed'] for row in own):.0%}",
            }
        )
    return markdown(out, dict.fromkeys(out[0], ""))


def _range(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _typed(args: argparse.Namespace) -> str:
    """The options of the run that are not the default ones, as typed."""
    named = {"solvers": SOLVERS, "models": ["fashion", "emoji"], "dtypes": ["float32", "bfloat16", "float16"]}
    named |= {"weights": [1.0, 7.5], "steps": [5, 20, 50], "batches": [1, 3]}
    typed = {key: getattr(args, key) for key, usual in named.items() if list(getattr(args, key)) != list(usual)}
    return "".join(
        f" --{key} {shlex.join(format(v, 'g') if isinstance(v, float) else str(v) for v in values)}"
        for key, values in typed.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bit-law"), help="a folder; rows in it are not made again"
    )
    parser.add_argument("--models", nargs="+", default=["fashion", "emoji"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--weights", nargs="+", type=float, default=[1.0, 7.5])
    parser.add_argument("--steps", nargs="+", type=int, default=[5, 20, 50])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 3])
    parser.add_argument("--solvers", nargs="+", default=SOLVERS, help="such as bdia or 'rex tableau=rk4'")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        print(json.dumps(read_all(args.read, args.model, args.dtype, args.device)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "rows.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    known = {_key(row) for row in rows}
    wanted = [row for row in parameters(args) if _key(row) not in known]
    for (name, dtype, _), same in groupby(wanted, key=lambda row: (row["model"], row["dtype"], row["S"])):
        group, model = list(same), ddim.load(name, dtype=dtype, device=args.device)
        with tempfile.TemporaryDirectory() as folder:
            found = [measure(model, row, Path(folder) / f"{k:04d}") for k, row in enumerate(group)]
            found = brought_back(found, Path(folder), args.device)
        rows += found
        with kept.open("a") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in found)
        print(*found, sep="\n", flush=True)
    about = f"{machine()}; torch {torch.__version__}; {args.device}"
    (args.out / "bit-law.md").write_text(
        f"{table(rows)}\n\ncommand: python benchmarks/bit_law.py{_typed(args)}\n{about}\n"
    )
    with (args.out / "bit-law.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    bad = [row for row in rows if not (row["same"] and row["alone"] and row["threads"])]
    print(f"{len(rows)} rows, {len(bad)} without their bits\n{about}")


if __name__ == "__main__":
    main()
