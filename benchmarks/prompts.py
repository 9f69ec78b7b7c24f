"""Judges whether a text-to-image model draws what the prompt says.

    python benchmarks/prompts.py recipes/emoji.toml
    python benchmarks/prompts.py recipes/emoji-flow.toml --model emoji-flow --steps 28 --guidance 3

The rule is the same for every model. One image is drawn for each of 100 prompts chosen by chance among the trained ones
of the recipe's first source, and one for each of its held-out pairs of style and name, which the model has never met.
An image is right if, among all drawings of its style, the one of its prompt is the nearest by
``ddim.evaluation.metrics.retrieval``, whose features need no weights. For both groups the script prints

- the share of right images, with its 95 % interval (Wilson 1927),
- the share whose own drawing is among the five nearest,
- chance: the share that an image drawn at random from the style would reach,
- the autoencoder's own: the share of the right drawings themselves, encoded and decoded. No model with this
  autoencoder can be expected to do better.

It also writes a sheet for a person to count, each image above its prompt, with a tenth as many images of the recipe's
further sources (photographs of clothes for `emoji`), which have no rank; and the list beside it as CSV, where * marks
the held-out pairs.
"""

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import open_text_model
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import ddim
from ddim.data.sources import open_source
from ddim.evaluation.columns import share_interval
from ddim.evaluation.eval_images import galleries, recipe_images
from ddim.evaluation.tables import machine
from ddim.training import load_config

SIDE, CAPTION, COLUMNS = 128, 30, 10


def captioned(images: list[Image.Image], words: list[str]) -> Image.Image:
    """A sheet of pictures, each above its words on at most two lines."""
    rows = -(-len(images) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * (SIDE + 8), rows * (SIDE + CAPTION + 8)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for k, (image, text) in enumerate(zip(images, words, strict=True)):
        x, y = k % COLUMNS * (SIDE + 8) + 4, k // COLUMNS * (SIDE + CAPTION + 8) + 4
        page.paste(image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, y))
        lines, line = [], f"{k}"
        for word in text.split():
            if draw.textlength(f"{line} {word}", font) > SIDE:
                lines, line = [*lines, line], word
            else:
                line = f"{line} {word}"
        draw.text((x, y + SIDE + 1), "\n".join([*lines, line][:2]), fill="black", font=font, spacing=1)
    return page


def report(name: str, ranks: list[int], own: list[int], sizes: list[int]) -> str:
    """One line about a group of prompts.

    Args:
        name: what the group is called.
        ranks: the rank of the right drawing for each image.
        own: the same for the right drawings themselves, encoded and decoded.
        sizes: the number of drawings among which each was searched.
    """
    right, count = sum(rank == 1 for rank in ranks), len(ranks)
    _, low, high = share_interval(right, count)
    five = sum(rank <= 5 for rank in ranks) / count
    chance, best = sum(1 / size for size in sizes) / count, sum(rank == 1 for rank in own) / count
    return (
        f"{name}: {right} of {count} right = {right / count:.0%} (95 % interval {low:.0%} to {high:.0%}), "
        f"among the five nearest {five:.0%}, by chance {chance:.1%}, the autoencoder's own {best:.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--count", type=int, default=100, help="trained prompts; from 100 on, all held-out ones too")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/prompts.png"))
    args = parser.parse_args()
    model, config = open_text_model(args.model), load_config(args.recipe)
    pictures = recipe_images(config)
    chance = np.random.default_rng(args.seed)
    trained = sorted({p.prompt: p for p in pictures if not p.held}.items())
    held = sorted({p.prompt: p for p in pictures if p.held}.items())
    chosen = [trained[k][1] for k in chance.permutation(len(trained))[: args.count]]
    met = len(chosen)
    if args.count < 100:
        held = [held[k] for k in np.random.default_rng(args.seed).permutation(len(held))[: args.count]]
    chosen += [picture for _, picture in held]
    others = sorted(
        {
            part.prompt(row)
            for source in config.data.sources[1:]
            for part in [open_source(source, config.data)]
            for row in range(len(part))
        }
    )
    more = chance.permutation(others)[: args.count // 10].tolist() if others else []
    prompts = [p.prompt for p in chosen] + more
    began = time.perf_counter()
    drawn = ddim.sample(
        model, len(prompts), prompt=prompts, steps=args.steps, guidance=args.guidance, seed=args.seed, batch=10
    ).cpu()
    seconds = (time.perf_counter() - began) / len(prompts)
    styles = galleries(pictures)

    def ranks_of(images: Sequence[Tensor]) -> list[int]:
        pairs = zip(chosen, images, strict=True)
        return [styles[picture.style].rank(image[None], [picture.word])[0] for picture, image in pairs]

    ranks = ranks_of(list(drawn[: len(chosen)]))
    parts = torch.stack([p.pixels for p in chosen]).split(20)
    own = ranks_of([image for part in parts for image in model.decode(model.encode(part)).cpu()])
    sizes = [len(styles[p.style].names) for p in chosen]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    # 256 colours are enough to count by, and halve the file.
    captioned([ddim.to_pil(image) for image in drawn], prompts).quantize(256).save(args.out, optimize=True)
    with args.out.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["number", "prompt", "held_out", "rank", "rank_of_own"])
        for k, prompt in enumerate(prompts):
            told = [ranks[k], own[k]] if k < len(chosen) else ["", ""]
            writer.writerow([k, prompt, "*" if met <= k < len(chosen) else "", *told])
    print(f"{args.out}: {args.model}, w = {args.guidance:g}, S = {args.steps}, seed {args.seed}; {machine()}")
    print(report("trained", ranks[:met], own[:met], sizes[:met]))
    if len(chosen) > met:
        print(report("never met", ranks[met:], own[met:], sizes[met:]))
    print(f"{seconds:.2f} s an image")


if __name__ == "__main__":
    main()
