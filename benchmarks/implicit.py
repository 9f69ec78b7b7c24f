"""How well the inversions that solve the implicit step do so: PSNR of a round trip, calls, and the latent's spread.

    python benchmarks/implicit.py --model emoji --images 4

Bundled held-out pictures go to noise and back at w = 1. The PSNR is against the autoencoder's own picture, so that only
the inversion counts. The calls are those of the inversion, for each picture; of ``spd`` all but one a step need their
gradient as well.
"""

import argparse
import time
from pathlib import Path

from common import decibels

import ddim
from ddim.data.images import read_images
from ddim.evaluation.method_spec import MethodSpec
from ddim.evaluation.tables import machine
from ddim.models.counted import Counted

METHODS = (
    *("ddim", "ddim iterations=2", "ddim iterations=10", "renoise", "renoise iterations=9 average=2"),
    *("renoise iterations=9 average=2 near=0.25", "renoise regularize=4"),
    *(f"renoise iterations=9 average=2 eta=1 {more}" for more in ("noise=independent", "", "correct=true")),
    "renoise iterations=9 average=2 near=0.25 eta=1 correct=true regularize=4",
    *("spd", "spd lr=0.01"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="a bundled text model")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="'NAME KEY=VALUE ...'")
    args = parser.parse_args()
    model = Counted(ddim.load(args.model))
    files = ddim.bundled_test_images(args.model)[: args.images]
    pictures = read_images(files, model.picture)
    prompts = [Path(file).stem.replace("_", " ").replace("-", " ") for file in files]
    kept = model.decode(model.encode(pictures))
    print(f"{args.model}, {len(files)} pictures, S = {args.steps}; {machine()}")
    print(f"{'method':68} {'PSNR dB':>8} {'calls':>6} {'std x_T':>8} {'seconds':>8}", flush=True)
    for spec in map(MethodSpec.parse, args.methods):
        model.calls(1)
        start = time.perf_counter()
        code = ddim.invert(
            model, pictures, steps=args.steps, method=spec.method, options=dict(spec.options), prompt=prompts
        )
        seconds, calls = time.perf_counter() - start, model.calls(len(files))
        psnr = float(decibels(ddim.reconstruct(model, code), kept).mean())
        print(f"{spec.title:68} {psnr:8.1f} {calls:6g} {float(code.x.std()):8.2f} {seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main()
