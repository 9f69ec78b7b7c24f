"""Networks of tiny models in float64, called directly, for tests that write the algorithm of a paper out."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tiny_flow
import tiny_text
import torch
from torch import Tensor

import ddim
from ddim.core.path import Node
from ddim.models.base import Model
from ddim.models.sd import StableDiffusion

SOURCE, TARGET, OTHER = "a cat on a mat", "a dog on a mat", "a red face"
BOTH = ("sd", "sd v", "sd3")
ALPHA_BAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
"""The table of Stable Diffusion by timestep; diffusers has it in float32."""


@dataclass(frozen=True)
class Written:
    """A model of ours, and its network as a plain function.

    Attributes:
        model: the model.
        predict: ``(x [1, ...], node, prompt)`` -> the predicted (x0, eps).
        images: a picture, [1, 3, H, W].
    """

    model: Model
    predict: Callable[[Tensor, Node, str], tuple[Tensor, Tensor]]
    images: Tensor

    def guided(self, x: Tensor, node: Node, prompt: str, weight: float, away: str = "") -> tuple[Tensor, Tensor]:
        """The prediction with classifier-free guidance away from another prompt."""
        cond, uncond = self.predict(x, node, prompt), self.predict(x, node, away)
        x0, eps = (u + weight * (c - u) for c, u in zip(cond, uncond, strict=True))
        return x0, eps

    def velocity(self, x: Tensor, node: Node, prompt: str, weight: float = 1.0, away: str = "") -> Tensor:
        """The velocity eps - x0 with guidance."""
        x0, eps = self.guided(x, node, prompt, weight, away)
        return eps - x0

    def noise(self, seed: int, count: int, like: Tensor) -> list[Tensor]:
        """The noises that a seed draws, in their order, as float64 of float32 numbers."""
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(like.shape[1:], generator=generator).to(like)[None] for _ in range(count)]

    def noised(self, source: Tensor, steps: int, seed: int, shift: float = 0.0) -> tuple[list[Tensor], ddim.Grid]:
        """The independent noised images of all nodes, with the noise of an earlier time, and at the end the image."""
        grid, noises = self.model.schedule.grid(steps, None, tuple(source.shape[2:])), self.noise(seed, steps, source)
        path, out = self.model.schedule.path, []
        for i in range(steps):
            level = path.node(max(grid[i].t - shift * (1000 if path.discrete else 1), 0))
            out.append(level.alpha * source + level.sigma * noises[steps - 1 - i])
        return [*out, source], grid

    def edited(self, method: str, target: Any = TARGET, **settings: Any) -> tuple[Tensor, Tensor]:
        """What ``ddim.edit`` makes of the picture: the latents of the source and of the edit, [1, ...] each."""
        seen: list[Tensor] = []
        decode = self.model.decode
        try:
            self.model.decode = lambda z: seen.append(z) or decode(z)  # type: ignore[method-assign]
            settings.setdefault("source_prompt", SOURCE)
            ddim.edit(self.model, self.images, target, method=method, **settings)
        finally:
            del self.model.decode
        return seen[0][:1], seen[0][1:2]


def written(name: str) -> Written:
    """Makes a tiny model of ``BOTH`` in float64."""
    if name == "sd3":
        family = tiny_flow.FAMILIES["sd3"]
        pipeline = family.pipeline().to(torch.float64)
        model: Model = family.load(pipeline)
        texts: dict[str, Any] = {}

        def flow(x: Tensor, node: Node, prompt: str) -> tuple[Tensor, Tensor]:
            if prompt not in texts:
                texts[prompt] = pipeline.encode_prompt(prompt, prompt, prompt, do_classifier_free_guidance=False)
            words, _, pooled, _ = texts[prompt]
            time = torch.tensor([1000 * node.sigma], dtype=torch.float64)
            with torch.no_grad():
                v = pipeline.transformer(x, words.double(), pooled.double(), time).sample
            return x - node.sigma * v, x + (1 - node.sigma) * v

        return Written(model, flow, tiny_text.pictures(height=32, width=32).double())
    pipeline = tiny_text.pipeline("v_prediction" if name == "sd v" else "epsilon").to(torch.float64)
    model = StableDiffusion("tiny-text", pipeline, dtype=torch.float64)

    def table(x: Tensor, node: Node, prompt: str) -> tuple[Tensor, Tensor]:
        words = pipeline.encode_prompt(prompt, "cpu", 1, False)[0].double()
        bar = ALPHA_BAR[int(node.t)]
        alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
        with torch.no_grad():
            out = pipeline.unet(x, int(node.t), encoder_hidden_states=words).sample
        if name == "sd v":
            return alpha * x - sigma * out, sigma * x + alpha * out
        return (x - sigma * out) / alpha, out

    return Written(model, table, tiny_text.pictures().double())


def ddpm_mean(x0: Tensor, eps: Tensor, t: Node, s: Node) -> Tensor:
    """The mean of DDPM's step: of the posterior with the predicted image in place of the true one."""
    std = s.sigma * math.sqrt(1 - (t.alpha * s.sigma / (s.alpha * t.sigma)) ** 2)
    return s.alpha * x0 + math.sqrt(max(s.sigma**2 - std**2, 0)) * eps


def assert_same(ours: Tensor, theirs: Tensor, source: Tensor, other: Tensor) -> None:
    """Checks that two results agree to 1e-6 of the edit's size, and that another prompt changes ours a thousandfold."""
    size = float((ours - source).abs().max())
    assert size > 1e-3
    assert float((ours - theirs).abs().max()) < 1e-6 * size
    assert float((ours - other).abs().max()) > 1e-3 * size
