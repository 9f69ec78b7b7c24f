"""Exactness and speed on a GPU, in minutes: one script that needs only torch, transformers, diffusers and accelerate.

    PYTHONPATH=src python benchmarks/gpu.py --minutes 8 --json gpu.json
    python benchmarks/gpu.py --device cpu --tiny            # tries the script; its figures mean nothing

It needs no network, no data and no weights: networks of the shapes of Stable Diffusion 1.5 and SDXL get random weights
on the device, scaled so that another prompt changes what they answer. A section that fails leaves the others alone, and
what the time does not reach is named under the tables.

exact      every reversible solver x precision x weight on the bundled models: equal integers, also in another process
sampling   ddim.sample compared to diffusers' pipeline and to the network alone: SD 1.5 at 1 and 8 images, then SDXL
edit       ddim.edit compared to prompt-to-prompt's order of work
null-text  null-text inversion compared to its authors' loop, at equal updates, in seconds and memory
memory     peak memory of sampling, each side alone
training   a training step compared to diffusers' example
layouts    the U-Net's call, eager and as a CUDA graph, contiguous and channels last
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for a GPU must not touch it before a fork

import torch
from gpu_bench import Bench
from gpu_edit import edit
from gpu_exact import exact
from gpu_models import imported
from gpu_null_text import null_text
from gpu_sampling import layouts, memory, sampling
from gpu_training import training

SECTIONS: dict[str, tuple[tuple[str, float, Callable[[Bench], None]], ...]] = {
    "sampling": (("sampling, SD 1.5", 0.3, sampling), ("sampling, SDXL", 0.3, lambda b: sampling(b, large=True))),
    "null-text": (("null-text", 0.4, null_text),),
    "edit": (("edit", 0.4, edit),),
    "exact": (("exact", 0.6, exact),),
    "training": (("training", 0.5, training),),
    "memory": (("memory", 0.5, memory),),
    "layouts": (("layouts", 1.0, layouts),),
}
"""Name for --only -> its parts, each with the share of the remaining time that it may use at most."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="after the imports; then nothing new is begun")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="networks of a few thousand weights, to try the script")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"some of {','.join(SECTIONS)}, in this order")
    parser.add_argument("--json", type=Path, help="a file for all rows; the tables go beside it, as .md")
    args = parser.parse_args()
    chosen = args.only.split(",")
    if unknown := [name for name in chosen if name not in SECTIONS]:
        parser.error(f"--only {unknown[0]!r} is no section; use some of {','.join(SECTIONS)}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device; use --device cpu --tiny to try the script")
    imported()
    bench = Bench(torch.device(args.device), args.tiny, 60 * args.minutes)
    if not bench.cuda:
        bench.note("without CUDA: no graphs, no peak memory; figures of tiny networks mean nothing.")
    for name in chosen:
        for title, share, run in SECTIONS[name]:
            bench.section(title, share, run)
            if args.json:
                bench.write(args.json)
    print(f"\n{bench.report()}", flush=True)


if __name__ == "__main__":
    main()
