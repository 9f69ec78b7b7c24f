"""Table 2 of Song et al. 2021 on Fashion-MNIST: invert S steps, come forward S steps, mean squared error on [0, 1].

    python benchmarks/reconstruction.py --data DIR --images 1000 --steps 10 20 50 100 --methods ddim heun belm
    python benchmarks/reconstruction.py --data DIR --images 16 --steps 50 --dtype float64 --methods edict bdia belm

Results are appended to a CSV, one row a (method, S, dtype, images) in which nothing already there is done again; so
two processes with other methods may share it. The table is printed at the end.
"""

import argparse
import csv
import math
import time
from pathlib import Path

import torch
from common import fashion_test_images

import ddim
from ddim.evaluation.tables import machine
from ddim.inversion import make_inversion

NAMES = {"fixed-point-5": ("ddim", {"iterations": 5}), "ddim-source": ("ddim", {"label": "source"})}
FIELDS = ["method", "steps", "dtype", "images", "spacing", "mse", "mse_sem", "psnr", "worst_psnr", "nfe", "seconds"]


def measure(model, images: torch.Tensor, method: str, steps: int, spacing: str | None, batch: int) -> dict:
    """One cell: errors over all images, network calls an image both ways."""
    name, options = NAMES.get(method, (method, {}))
    calls = 0

    def count(module, inputs, output) -> None:
        nonlocal calls
        calls += len(inputs[0])

    hook = model.network.register_forward_hook(count)
    start = time.perf_counter()
    code = ddim.invert(model, images, steps=steps, method=name, options=options, spacing=spacing, batch=batch)
    # decode() cuts to [0, 1], where the images lie: nothing the error could hide behind
    back = ddim.reconstruct(model, code, batch=batch)
    seconds = time.perf_counter() - start
    hook.remove()
    errors = (back.double() - images.double()).square().flatten(1).mean(1)
    mse = float(errors.mean())
    return {
        "spacing": code.grid.spacing,
        "mse": f"{mse:.4g}",
        "mse_sem": f"{float(errors.std()) / math.sqrt(len(errors)):.2g}" if len(errors) > 1 else "",
        "psnr": f"{-10 * math.log10(max(mse, 1e-40)):.2f}",
        "worst_psnr": f"{-10 * math.log10(max(float(errors.max()), 1e-40)):.2f}",
        "nfe": f"{calls / len(images):.0f}",
        "seconds": f"{seconds:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of Fashion-MNIST's idx files")
    parser.add_argument("--model", default="fashion")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50, 100, 200, 500, 1000])
    parser.add_argument("--methods", nargs="+", default=["ddim", "heun", "fixed-point-5", "edict", "bdia", "belm"])
    parser.add_argument("--spacing", default=None)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("runs/reconstruction.csv"))
    args = parser.parse_args()
    for method in args.methods:
        make_inversion(*NAMES.get(method, (method, {})))
    model = ddim.load(args.model, dtype=args.dtype)
    images = fashion_test_images(args.data, args.images).to(model.state_dtype)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print(machine())
    for steps in args.steps:
        for method in args.methods:
            key = {"method": method, "steps": str(steps), "dtype": args.dtype, "images": str(args.images)}
            rows = list(csv.DictReader(args.out.open())) if args.out.exists() else []
            done = [r for r in rows if all(r[k] == v for k, v in key.items())]
            row = done[0] if done else key | measure(model, images, method, steps, args.spacing, args.batch)
            if not done:
                with args.out.open("a", newline="") as f:
                    writer = csv.DictWriter(f, FIELDS)
                    if f.tell() == 0:
                        writer.writeheader()
                    writer.writerow(row)
            print("  ".join(f"{k}={row[k]}" for k in FIELDS), flush=True)


if __name__ == "__main__":
    main()
