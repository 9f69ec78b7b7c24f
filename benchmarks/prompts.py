"""Draws 100 prompts chosen by chance among those of a recipe, for a person to count.

    python benchmarks/prompts.py recipes/emoji.toml --model emoji --out runs/prompts.png

A tenth of the prompts is from the recipe's further sources (photographs of clothes for `emoji`), the rest from its
first, held-out pairs of style and word among them (marked * in the list). Writes the sheet, each picture above its
prompt, and the list beside it as CSV. As a second opinion, the list also has the rank of the right picture in its style
by ``ddim.evaluation.metrics.retrieval``; the shares of rank 1 and of ranks 1 to 5 are printed.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
from common import open_text_model
from PIL import Image, ImageDraw, ImageFont

import ddim
from ddim.data.sources import open_source
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/prompts.png"))
    args = parser.parse_args()
    model, config = open_text_model(args.model), load_config(args.recipe)
    pictures = recipe_images(config)
    known = {p.prompt: p for p in pictures}
    others: set[str] = set()
    for source in config.data.sources[1:]:
        part = open_source(source, config.data)
        others |= {part.prompt(row) for row in range(len(part))}
    chance = np.random.default_rng(args.seed)
    more = min(args.count // 10, len(others))
    prompts = chance.permutation(sorted(known))[: args.count - more].tolist()
    prompts += chance.permutation(sorted(others))[:more].tolist()
    began = time.perf_counter()
    drawn = ddim.sample(
        model, len(prompts), prompt=prompts, steps=args.steps, guidance=args.guidance, seed=args.seed, batch=10
    ).cpu()
    seconds = (time.perf_counter() - began) / len(prompts)
    styles = galleries(pictures)
    ranks = [
        styles[known[prompt].style].rank(image[None], [known[prompt].word])[0] if prompt in known else None
        for prompt, image in zip(prompts, drawn, strict=True)
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    captioned([ddim.to_pil(image) for image in drawn], prompts).save(args.out)
    with args.out.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["number", "prompt", "held_out", "rank"])
        for k, (prompt, rank) in enumerate(zip(prompts, ranks, strict=True)):
            writer.writerow([k, prompt, "*" if prompt in known and known[prompt].held else "", rank or ""])
    told = [rank for rank in ranks if rank]
    first, five = (sum(rank <= n for rank in told) / len(told) for n in (1, 5))
    print(f"{args.out}: w = {args.guidance:g}, S = {args.steps}, seed {args.seed}; {machine()}")
    print(f"of {len(told)} drawings nearest to the right picture {first:.0%}, among the five nearest {five:.0%}")
    print(f"{seconds:.2f} s a picture")


if __name__ == "__main__":
    main()
