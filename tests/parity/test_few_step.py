"""Law 5 for models that are distilled to a few steps: diffusers' own pipelines and schedulers as witnesses.

Tiny random Stable Diffusion and SDXL with the schedulers of such models: LCM (also with the guidance scale as an input
of the U-Net), TCD, Euler and Euler ancestral with ``trailing`` (Turbo, Lightning), DDIM with ``trailing`` (Hyper-SD).
Both sides get the same latents and the same noise of the steps. They agree to 1e-5 of the largest value, and each row
also measures what other noise, another prompt and another guidance change.
"""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from oracles import noise_like
from tiny_few_step import FEW_STEP
from torch import Tensor

import ddim
from ddim import Guidance
from ddim.core.noise import SeededNoise
from ddim.models.base import Model

pytestmark = pytest.mark.filterwarnings("ignore::ddim._utils.errors.DDIMWarning")  # of what is only likely
AGREE = 1e-5


def stated(names: dict[str, Any]) -> str:
    return " ".join(f"{k} {v:g}" for k, v in names.items())


class Recorded:
    """diffusers' source of noise, which gives the numbers of ours."""

    def __init__(self, seed: int) -> None:
        self.noise = SeededNoise([seed])

    def __call__(self, shape: Any, **_: Any) -> Tensor:
        return self.noise(torch.empty(tuple(shape)))


@pytest.fixture
def same_noise(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the seed of the noise that diffusers' schedulers draw."""

    def seeded(seed: int) -> None:
        for name in ("scheduling_lcm", "scheduling_tcd", "scheduling_euler_ancestral_discrete"):
            module = getattr(diffusers.schedulers, name)
            monkeypatch.setattr(module, "randn_tensor", Recorded(seed))

    return seeded


def steps_of(row: str) -> tuple[int, ...]:
    return (1,) if "one step" in row else (1, 2, 4, 8)


def ours(model: Model, x: Tensor, prompt: str, solver: str, options: Any, steps: int, seed: int, w: float) -> Tensor:
    scaled = {"embedded": w} if model.info.embedded is not None else {"weight": w}
    grid, made = model.schedule.grid(steps), ddim.make_solver(solver, options)
    denoise = model.guided(Guidance(**scaled), model.condition(None, 1, prompt))
    state = {"x": x * model.schedule.prior_std(grid)}
    return ddim.solve(denoise, made, state, grid, noise=SeededNoise([seed]))["x"]


def theirs(pipeline: Any, x: Tensor, prompt: str, steps: int, w: float, **options: Any) -> Tensor:
    settings = {"output_type": "latent", "num_inference_steps": steps, "latents": x.clone(), "guidance_scale": w}
    return pipeline(prompt, **settings, **options).images


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


@pytest.mark.parametrize("row", FEW_STEP)
def test_latents_are_those_of_the_pipeline(row, same_noise):
    make, solver, options, told = FEW_STEP[row]
    pipeline = make()
    model = ddim.load(pipeline)
    x = noise_like((1, *model.shape)).float()
    distilled = model.info.embedded is not None
    for steps in steps_of(row):
        for w in (8.5, 2.0) if distilled else (1.0, 3.0):
            same_noise(5)
            b = theirs(pipeline, x, "a cat", steps, w, **told)
            a = ours(model, x, "a cat", solver, options, steps, 5, w)
            moved = {
                "prompt": ours(model, x, "a dog on mars", solver, options, steps, 5, w),
                "guidance": ours(model, x, "a cat", solver, options, steps, 5, w + 2),
            }
            if ddim.make_solver(solver, options).stochastic and steps > 1:
                moved["noise"] = ours(model, x, "a cat", solver, options, steps, 6, w)
            change = {what: apart(value, a) for what, value in moved.items()}
            print(f"{row:30} S {steps} w {w:g} {apart(a, b):.1e} ", stated(change))
            assert torch.isfinite(a).all()
            assert apart(a, b) <= AGREE, (row, steps, w)
            assert min(change.values()) >= 1000 * AGREE, (row, steps, w, change)
