"""What the benchmarks share: the machine in words, pictures, and a model with text."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim.evaluation.eval_images import recipe_images
from ddim.evaluation.metrics import psnr
from ddim.training import load_config

TINY = "tiny"
"""In place of a model's name: random weights, a few thousand of them, to try a benchmark; its numbers mean nothing."""


def open_text_model(name: str) -> Any:
    """A model with text by name or folder, or the tests' tiny random one."""
    if name != TINY:
        import ddim

        return ddim.load(name)
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))
    import tiny_text

    return tiny_text.model()


def held_out_pictures(recipe: Path | None, count: int, shape: tuple[int, ...]) -> tuple[Tensor, list[str]]:
    """``count`` pictures that a recipe holds out, spread over all, [count, C, H, W] in [0, 1], and their prompts.

    Args:
        recipe: of a text-to-image model; None draws smooth noise instead.
        count: how many; all there are, where there are fewer.
        shape: (C, H, W) of the model's pictures.
    """
    if recipe is None:
        noise = torch.rand(count, shape[0], shape[1] // 8, shape[2] // 8, generator=torch.Generator().manual_seed(0))
        smooth = torch.nn.functional.interpolate(noise, shape[1:], mode="bilinear").clamp(0, 1)
        return smooth, [("a cat", "a dog on a mat", "a red hat")[k % 3] for k in range(count)]
    held = [p for p in recipe_images(load_config(recipe)) if p.held]
    chosen = held[:: max(1, len(held) // count)][:count]
    return torch.stack([p.pixels for p in chosen]), [p.prompt for p in chosen]


def decibels(images: Tensor, others: Tensor) -> Tensor:
    """PSNR of each image, [N], at most 200 dB: a mean over images has to be finite."""
    return psnr(images, others).clamp(max=200)


class Calls:
    """Counts the images that a network is asked for, and those of them whose gradient is taken."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.images = self.with_gradient = 0
        self.hook = network.register_forward_hook(self._count)

    def _count(self, module: torch.nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        self.images += len(inputs[0])
        self.with_gradient += len(inputs[0]) * output[0].requires_grad

    def take(self) -> tuple[int, int]:
        """Both counts since the last time."""
        counted, self.images, self.with_gradient = (self.images, self.with_gradient), 0, 0
        return counted
