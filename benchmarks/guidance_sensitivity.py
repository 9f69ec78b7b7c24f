"""How well the source comes back, by guidance weight and method: invert, replay, PSNR against the picture.

    python benchmarks/guidance_sensitivity.py --model runs/emoji/model --recipe recipes/emoji.toml \
        --images 100 --out runs/guidance_sensitivity.csv

Rows are appended to a CSV, one a (method, w, picture); what is there is not done again, so it may be interrupted and
run again, and two processes with other methods may share it. The table is printed at the end: the mean PSNR, and
seconds an image both ways at the last weight. The autoencoder alone, decode(encode(x)), is the floor. At w = 1
null-text has nothing to tune and is left out.
"""

import argparse
import csv
import time
from collections import defaultdict
from pathlib import Path

import torch
from common import TINY, Calls, decibels, held_out_pictures, open_text_model

import ddim
from ddim.evaluation.tables import machine

METHODS = {
    "ddim": ("ddim", {}),
    "null-text": ("null-text", {}),
    "null-text-global": ("null-text", {"scope": "global"}),
    "null-text-prompt": ("null-text", {"start": "prompt"}),
    "negative-prompt": ("negative-prompt", {}),
    "direct": ("direct", {}),
    "edit-friendly": ("edit-friendly", {}),
    "bdia": ("bdia", {}),
    "belm": ("belm", {}),
    "edict": ("edict", {}),
    "rex": ("rex", {}),
    "reversible-heun": ("reversible-heun", {}),
}
FLOOR = "autoencoder"
FIELDS = ["method", "guidance", "steps", "model", "image", "psnr", "floor", "calls", "seconds"]


def done_in(path: Path, key: dict[str, str]) -> dict[tuple[str, str, str], dict[str, str]]:
    """The rows of this model and number of steps, by method, weight and the picture's name."""
    rows = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
    return {(r["method"], r["guidance"], r["image"]): r for r in rows if all(r[k] == v for k, v in key.items())}


def batches(missing: list[int], size: int) -> list[list[int]]:
    """Pictures in batches without gaps, each within one batch of the whole: picture k then has seed k, whatever was
    done before."""
    out: list[list[int]] = []
    for k in missing:
        if out and out[-1][-1] == k - 1 and k % size:
            out[-1].append(k)
        else:
            out.append([k])
    return out


def append(path: Path, rows: list[dict]) -> None:
    with path.open("a", newline="") as f:
        writer = csv.DictWriter(f, FIELDS)
        if f.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TINY, help="a folder or a name; 'tiny' is random")
    parser.add_argument("--recipe", type=Path, help="whose held-out pictures are taken; left out, smooth noise")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1, 2, 3, 5, 7.5, 10])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/guidance_sensitivity.csv"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = open_text_model(args.model)
    pictures, prompts = held_out_pictures(args.recipe, args.images, model.picture)
    args.images = len(pictures)
    names = prompts if args.recipe else [str(k) for k in range(args.images)]  # who a picture is, whatever --images
    calls = Calls(model.network)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    key = {"steps": str(args.steps), "model": model.fingerprint[:12]}
    print(f"{args.model}, {args.images} pictures, S = {args.steps}; {machine()}", flush=True)
    floors = torch.cat([decibels(model.decode(model.encode(p)).cpu(), p) for p in pictures.split(args.batch)])
    for weight in args.guidance:
        for method in args.methods:
            name, options = METHODS[method]
            if name == "null-text" and weight == 1:
                continue
            done = done_in(args.out, key)
            missing = [k for k in range(args.images) if (method, f"{weight:g}", names[k]) not in done]
            for todo in batches(missing, args.batch):
                calls.take()
                start = time.perf_counter()
                try:
                    code = ddim.invert(
                        model,
                        pictures[todo],
                        steps=args.steps,
                        method=name,
                        options=options,
                        prompt=[prompts[k] for k in todo],
                        guidance=weight,
                        seed=todo[0],
                    )
                    psnr = decibels(ddim.reconstruct(model, code).cpu(), pictures[todo]).tolist()
                except ddim.DDIMError as error:  # a method that diverges is a result too
                    print(f"{method} w = {weight:g}: {error}", flush=True)
                    psnr = [float("-inf")] * len(todo)
                each = {"seconds": f"{(time.perf_counter() - start) / len(todo):.3f}"}
                each |= {"calls": f"{calls.take()[0] / len(todo):.0f}", "method": method, "guidance": f"{weight:g}"}
                rows = [
                    key | each | {"image": names[k], "psnr": f"{v:.3f}", "floor": f"{float(floors[k]):.3f}"}
                    for k, v in zip(todo, psnr, strict=True)
                ]
                append(args.out, rows)
            print(f"w = {weight:g} {method}", flush=True)
    table: dict[str, dict[str, list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for (method, weight, image), row in done_in(args.out, key).items():
        if image in names:
            table[method][weight].append(row)
    weights = [f"{w:g}" for w in args.guidance]
    print(f"{'PSNR, dB':18s}" + "".join(f"{'w = ' + w:>9s}" for w in weights) + "    calls  seconds an image")
    print(f"{FLOOR:18s}" + f"{float(floors.mean()):9.2f}" * len(weights))
    for method in args.methods:
        of = table[method]
        cells = [f"{sum(float(r['psnr']) for r in of[w]) / len(of[w]):9.2f}" if of[w] else " " * 9 for w in weights]
        last = of[weights[-1]] or [{"calls": "nan", "seconds": "nan"}]
        calls_each, seconds = (sum(float(r[k]) for r in last) / len(last) for k in ("calls", "seconds"))
        print(f"{method:18s}" + "".join(cells) + f"{calls_each:9.0f} {seconds:8.2f}")


if __name__ == "__main__":
    main()
