"""Law 5 for the families on rectified flow: each one's own diffusers pipeline as a witness, tiny and random.

The same latents go through both, and agree to 1e-5 of their largest value in float32. Each row also measures what
another prompt, another negative prompt and another guidance change, and each change is at least 1,000 times the
tolerance, so that the agreement says something.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import noise_like
from tiny_flow import FAMILIES, STEPS, Family
from torch import Tensor

import ddim
from ddim import Guidance
from ddim.models.base import Model

AGREE = 1e-5
PROMPTS = ["a cat", "two red dogs", "an old house"]
every_family = pytest.mark.parametrize("name", FAMILIES)


def noise(model: Model, count: int, size: tuple[int, int] | None = None) -> Tensor:
    height, width = size or model.picture[1:]
    return noise_like((count, model.shape[0], height // model.downscaling, width // model.downscaling)).float()


def ours(model: Model, x: Tensor, prompts: list[str], guidance: Guidance, negative: str | None = None) -> Tensor:
    """Our loop, to latents."""
    size = (x.shape[2] * model.downscaling, x.shape[3] * model.downscaling)
    grid = model.schedule.grid(STEPS, image_size=(x.shape[2], x.shape[3]))
    both = model.condition(None, len(x), prompts, negative, size)
    return ddim.solve(model.guided(guidance.on(grid), both), ddim.make_solver("ddim"), {"x": x}, grid)["x"]


def apart(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


def rows(family: Family) -> dict[str, dict[str, Any]]:
    """Row -> its arguments."""
    made: dict[str, dict[str, Any]] = {}
    for name, (guidance, options) in family.guidances.items():
        made[name] = {"guidance": guidance, "options": options, "count": 1}
    guided = next(iter(family.guidances.values()))
    made["non-square"] = {"guidance": guided[0], "options": guided[1], "count": 1, "size": family.size}
    made["three prompts"] = {"guidance": guided[0], "options": guided[1], "count": 3}
    if family.negative:
        made["negative"] = {"guidance": guided[0], "options": guided[1], "count": 2, "negative": "dull grey"}
    return made


@every_family
def test_latents_are_those_of_the_pipeline(name):
    family = FAMILIES[name]
    pipeline = family.pipeline()
    model = family.load(pipeline)
    for row, about in rows(family).items():
        prompts, negative = PROMPTS[: about["count"]], about.get("negative")
        x = noise(model, about["count"], about.get("size"))
        guidance: Guidance = about["guidance"]
        a = ours(model, x, prompts, guidance, negative)
        b = family.draw(pipeline, x, prompts, negative, **about["options"])
        moved = {"prompt": ours(model, x, [f"{p} on mars" for p in prompts], guidance, negative)}
        if guidance.weight != 1:
            moved["guidance"] = ours(model, x, prompts, guidance.at(guidance.weight + 2), negative)
            if family.negative:
                moved["negative"] = ours(model, x, prompts, guidance, "bright")
        if guidance.skip is not None:
            moved["skip"] = ours(model, x, prompts, replace(guidance, skip=None), negative)
            later = replace(guidance.skip, interval=(0.3, 0.6))  # one step less
            moved["skipped steps"] = ours(model, x, prompts, replace(guidance, skip=later), negative)
        if guidance.embedded is not None:
            moved["embedded"] = ours(model, x, prompts, replace(guidance, embedded=guidance.embedded + 3), negative)
        if family.settings:
            plain = ddim.load(pipeline)
            moved["settings"] = ours(plain, x, prompts, guidance, negative)
        change = {what: apart(value, a) for what, value in moved.items()}
        print(f"{name:16} {row:14} {apart(a, b):.1e}", *(f"{what} {value:.1e}" for what, value in change.items()))
        assert torch.isfinite(a).all()
        assert apart(a, b) <= AGREE, row
        assert min(change.values()) >= 1000 * AGREE, (row, change)
