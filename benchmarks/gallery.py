"""How well the embedding of the edit benchmark knows drawings again, beside plain pixels.

python benchmarks/gallery.py recipes/emoji.toml

Every picture of the recipe's first source is blurred, shifted by two pixels, dimmed and given noise, and looked for in
its own style; and every picture of a style is looked for by its name in another style.
"""

import sys
from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional as F

from ddim.evaluation.eval_images import recipe_images
from ddim.evaluation.metrics import retrieval
from ddim.training import load_config

PARTS = {
    "pixels": lambda images: [images.flatten(1)],
    "colours": lambda images: [retrieval.colours(images)],
    "gradients": lambda images: [retrieval.directions(images)],
    "both": retrieval.colours_and_directions,
}


def disturbed(images: Tensor) -> Tensor:
    """What an edit's picture may suffer without being another."""
    noise = 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return (blurred.roll((2, -2), (2, 3)) * 0.85 + 0.1 + noise).clamp(0, 1)


def main(recipe: str) -> None:
    pictures = recipe_images(load_config(recipe))
    styles = sorted({p.style for p in pictures})
    of = {s: [p for p in pictures if p.style == s] for s in styles}
    pixels = {s: torch.stack([p.pixels for p in of[s]]) for s in styles}
    names = {s: [p.word for p in of[s]] for s in styles}
    print(f"{len(pictures)} pictures, {len(styles)} styles; share found first")
    for label, parts in PARTS.items():
        galleries = {s: retrieval.Gallery(pixels[s], names[s], parts=parts) for s in styles}
        again = [rank for s in styles for rank in galleries[s].rank(disturbed(pixels[s]), names[s])]
        across = []
        for a, b in permutations(styles, 2):
            shared = [k for k, name in enumerate(names[a]) if name in set(names[b])]
            across += galleries[b].rank(pixels[a][shared], [names[a][k] for k in shared])
        shares = [sum(rank == 1 for rank in ranks) / len(ranks) for ranks in (again, across)]
        print(f"{label:10s} disturbed, own style {shares[0]:.1%}   same name, another style {shares[1]:.1%}")


if __name__ == "__main__":
    main(sys.argv[1])
