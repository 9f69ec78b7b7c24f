"""What ddim.sample costs beyond its network calls, and against diffusers' DDIMPipeline, in one run.

    python benchmarks/overhead.py [--model fashion] [--batch 16] [--steps 50] [--rounds 7]

All are timed in turns, round by round, so that a machine that slows down slows all of them; a ratio is the median of
the rounds' ratios. Everything runs in float32. The pipeline is timed twice: as diffusers loads it from the folder, and
around ddim's own network object, which is in channels-last layout; the latter compares the loops alone.
"""

import argparse
import statistics
import time

import torch

import ddim
from ddim.evaluation.tables import machine
from ddim.walks import grid_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    from diffusers import DDIMPipeline, DDIMScheduler

    model = ddim.load(args.model)
    scheduler = DDIMScheduler(timestep_spacing=model.spacing, clip_sample=False)
    pipeline = DDIMPipeline(model.network, scheduler)
    loaded = DDIMPipeline.from_pretrained(str(ddim.bundled_models().get(args.model, args.model)))
    for each in (pipeline, loaded):
        each.set_progress_bar_config(disable=True)
    labels = [torch.tensor(int(model.path.label(n.t))) for n in list(grid_for(model, args.steps, None))[:-1]]
    x = torch.randn(args.batch, *model.shape)

    def bare() -> None:
        with torch.no_grad():
            for label in labels:
                model.network(x, label, return_dict=False)

    def ours() -> None:
        ddim.sample(model, args.batch, steps=args.steps, batch=args.batch)

    def theirs(which: DDIMPipeline) -> None:
        generator = torch.Generator().manual_seed(0)
        which(args.batch, generator=generator, num_inference_steps=args.steps, output_type="np")

    runs = {
        "network calls": bare,
        "ddim.sample": ours,
        "DDIMPipeline": lambda: theirs(loaded),
        "DDIMPipeline, our network": lambda: theirs(pipeline),
    }
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    print(f"{args.model}, batch {args.batch}, S = {args.steps}, {args.rounds} rounds; {machine()}")
    for name, seconds in times.items():
        print(f"{name:26s} median {statistics.median(seconds):.3f} s, {min(seconds):.3f} to {max(seconds):.3f} s")
    for other in ("network calls", "DDIMPipeline", "DDIMPipeline, our network"):
        ratios = [a / b for a, b in zip(times["ddim.sample"], times[other], strict=True)]
        print(f"ddim.sample / {other}: {statistics.median(ratios):.3f} (rounds {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
