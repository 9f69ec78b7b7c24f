"""Null-text inversion against a plain reading of its authors' loop: the same network and pictures, in one run.

    python benchmarks/null_text.py --model runs/emoji/model --recipe recipes/emoji.toml --images 8

The plain reading has the paper's constants and the authors' order of work: one image at a time; the prompt's prediction
once a step; up to ten times a prediction under the null embedding, its gradient and an update by torch's Adam, after
which the loss decides; then both predictions again, to advance. The way forward is not timed. Methods take turns
picture by picture, so that a machine that slows down slows all; then all pictures go in one batch. MB: on CUDA the peak
of what was allocated; on a CPU how far the process's peak memory rose, which shows only the methods that need more than
those before them (--only runs one method alone).
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import TINY, Calls, decibels, held_out_pictures, open_text_model
from torch import Tensor

import ddim
from ddim.core.prediction import to_pair
from ddim.evaluation.tables import machine
from ddim.pipelines.common import grid_for

VARIANTS = {
    "null-text": {},
    "null-text, from the prompt": {"start": "prompt"},
    "null-text, global": {"scope": "global"},
}
PLAIN = "plain reading"


def plain_reading(model, picture: Tensor, prompt: str, steps: int, weight: float) -> ddim.LatentCode:
    """Mokady et al. 2023, Algorithm 1, as its code does it, one image; as a code, so that all come back alike."""
    grid, conditions = grid_for(model, steps, None), model.condition(None, 1, prompt)
    words, null = conditions.cond.tensors["text"], conditions.uncond.tensors["text"]

    def eps(x: Tensor, i: int, embedding: Tensor) -> Tensor:
        (output,) = model.ask(x, grid[i], conditions.cond.replace(text=embedding))
        return to_pair(model.schedule.prediction, output, x, grid[i]).eps

    def move(x: Tensor, noise: Tensor, a: int, b: int) -> Tensor:
        s, t = grid[a], grid[b]
        return t.alpha * (x - s.sigma * noise) / s.alpha + t.sigma * noise

    with torch.no_grad():
        pivot = [model.encode(picture)]
        for i in range(steps - 1, -1, -1):
            pivot.append(move(pivot[-1], eps(pivot[-1], i, words), i + 1, i))
    pivot, x, nulls = pivot[::-1], pivot[-1], []
    for i in range(steps):
        null = null.clone().detach().requires_grad_(True)
        adam = torch.optim.Adam([null], lr=1e-2 * (1.0 - i / 100.0))
        with torch.no_grad():
            eps_words = eps(x, i, words)
        for _ in range(10):
            eps_null = eps(x, i, null)
            loss = torch.nn.functional.mse_loss(
                move(x, eps_null + weight * (eps_words - eps_null), i, i + 1), pivot[i + 1]
            )
            adam.zero_grad()
            loss.backward()
            adam.step()
            if loss.item() < 1e-5 + i * 2e-5:
                break
        nulls.append(null.detach())
        with torch.no_grad():
            eps_null, eps_words = eps(x, i, null), eps(x, i, words)
            x = move(x, eps_null + weight * (eps_words - eps_null), i, i + 1)
    return ddim.LatentCode(
        {"x": pivot[0]},
        grid,
        "null-text",
        "ddim",
        model=model.name,
        fingerprint=model.fingerprint,
        conditions=conditions,
        extras={"uncond_text": torch.stack(nulls, dim=1)},
        guidance={"weight": weight},
    )


class Memory:
    """Peak megabytes since it was made."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        self.before = self.now()

    def now(self) -> float:
        if self.cuda:
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    def risen(self) -> float:
        return self.now() - (0 if self.cuda else self.before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TINY, help="a folder or a name; 'tiny' is random")
    parser.add_argument("--recipe", type=Path, help="whose held-out pictures are taken; left out, smooth noise")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", help="one method's name, for its memory")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = open_text_model(args.model)
    pictures, prompts = held_out_pictures(args.recipe, args.images, model.picture)
    calls = Calls(model.network)

    def ours(options: dict) -> Callable[[Tensor, list[str]], ddim.LatentCode]:
        settings = {"method": "null-text", "options": options, "steps": args.steps, "guidance": args.guidance}
        return lambda some, said: ddim.invert(model, some, prompt=said, **settings)

    def plain(some: Tensor, said: list[str]) -> ddim.LatentCode:
        return plain_reading(model, some, said[0], args.steps, args.guidance)

    methods = {PLAIN: plain} | {name: ours(options) for name, options in VARIANTS.items()}
    batched = {f"{name}, in one batch": methods[name] for name in VARIANTS}
    if args.only:
        methods, batched = ({k: v for k, v in some.items() if k == args.only} for some in (methods, batched))
        if not methods and not batched:
            parser.error(f"--only {args.only!r} is no method")
    found: dict[str, dict[str, list[float]]] = {}

    def measure(name: str, run: Callable, some: Tensor, said: list[str]) -> None:
        row = found.setdefault(name, {"db": [], "calls": [], "gradients": [], "seconds": [], "mb": []})
        calls.take()
        memory, start = Memory(model.device), time.perf_counter()
        code = run(some, said)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        row["seconds"].append(time.perf_counter() - start)
        row["mb"].append(memory.risen())
        for key, count in zip(("calls", "gradients"), calls.take(), strict=True):
            row[key].append(count)
        row["db"] += decibels(ddim.reconstruct(model, code).cpu(), some).tolist()

    model.decode(model.encode(pictures[:1]))  # what loads at the first call is no one's
    for k in range(args.images):
        for name, run in methods.items():
            measure(name, run, pictures[k : k + 1], prompts[k : k + 1])
        print(f"picture {k + 1} of {args.images}", flush=True)
    for name, run in batched.items():
        measure(name, run, pictures, prompts)
    floor = decibels(model.decode(model.encode(pictures)).cpu(), pictures)
    print(f"{args.model}, {args.images} pictures, S = {args.steps}, w = {args.guidance:g}; {machine()}")
    print(f"{'':40s} PSNR dB  calls  with gradient  seconds  MB   (calls and seconds an image)")
    print(f"{'autoencoder':40s} {float(floor.mean()):7.2f}")
    for name, row in found.items():
        n = args.images
        print(
            f"{name:40s} {sum(row['db']) / n:7.2f} {sum(row['calls']) / n:6.0f} {sum(row['gradients']) / n:14.0f} "
            f"{sum(row['seconds']) / n:8.2f} {max(row['mb']):4.0f}"
        )
    if PLAIN in found:
        for name, row in found.items():
            ratio = sum(found[PLAIN]["seconds"]) / sum(row["seconds"])
            near = sum(row["db"]) / args.images - sum(found[PLAIN]["db"]) / args.images
            print(f"{name:40s} {ratio:5.2f} times as fast, {near:+.2f} dB")


if __name__ == "__main__":
    main()
