"""Every solver and every inversion on every tiny pipeline of rectified flow: what works does, the rest is refused."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from bits import inverted, returned, rows, same
from refusals import refused
from tiny_flow import FAMILIES
from torch import Tensor

import ddim
from ddim.inversion import INVERSIONS, make_inversion
from ddim.models.base import Model
from ddim.pipelines.capabilities import capabilities
from ddim.solvers import REVERSIBLE, SOLVERS

STEPS = 3
pytestmark = pytest.mark.filterwarnings("ignore::ddim._utils.errors.DDIMWarning")  # of codes of random networks
FULL = [name for name in FAMILIES if name.count(" ") < 2]
"""One form of each family; the others differ in what they condition on, and share all that is tested here."""
families = pytest.mark.parametrize("family", FULL)
PROMPTS = ["a cat", "two red dogs"]


@cache
def model_of(family: str, dtype: torch.dtype = torch.float32) -> Model:
    known = FAMILIES[family]
    return known.load(known.pipeline().to(dtype))


@cache
def pictures(family: str, count: int = 2) -> Tensor:
    return torch.rand(count, *model_of(family).picture, generator=torch.Generator().manual_seed(1))


def weight_of(model: Model) -> float:
    """A weight at which every method has something to do, if the family takes one."""
    return 5.0 if "cfg" in model.info.guidance_kinds else 1.0


@families
@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_samples(family, name):
    model = model_of(family)
    settings: dict[str, Any] = {"steps": STEPS, "prompt": PROMPTS[0], "guidance": weight_of(model)}
    a, b = (ddim.sample(model, 1, solver=name, seed=seed, **settings) for seed in (0, 1))
    assert torch.isfinite(a).all()
    assert not torch.equal(a, b)
    other = ddim.sample(model, 1, solver=name, seed=0, **{**settings, "prompt": "an old house on mars"})
    assert not torch.equal(a, other)


@families
def test_noise_is_drawn_where_a_solver_says_so(family):
    model = model_of(family)
    settings: dict[str, Any] = {"steps": STEPS, "prompt": PROMPTS[0], "guidance": 1.0}
    still, moved = (ddim.sample(model, 1, eta=eta, **settings) for eta in (0.0, 1.0))
    assert not torch.equal(still, moved)


@families
@pytest.mark.parametrize("name", INVERSIONS)
def test_every_inversion_comes_back_and_edits_or_is_refused(family, name, monkeypatch):
    model = model_of(family)
    reason = capabilities(model)["inversions"][name]
    settings: dict[str, Any] = {"steps": STEPS, "method": name, "guidance": weight_of(model)}
    if reason:
        for work in ("forward", "encode", "encode_prompt"):
            monkeypatch.setattr(model, work, _never)
        for work in (
            lambda: ddim.invert(model, pictures(family), prompt=PROMPTS, **settings),
            lambda: ddim.edit(model, pictures(family), "a dog", source_prompt=PROMPTS, attention="none", **settings),
        ):
            with refused("method", f"{name!r}") as caught:
                work()
            assert reason in str(caught.value)
        return
    code = ddim.invert(model, pictures(family), prompt=PROMPTS, **settings)
    method = make_inversion(name)
    assert torch.isfinite(ddim.reconstruct(model, code)).all()
    if method.floor_db == math.inf:
        x0 = model.encode(pictures(family))
        back = ddim.reconstruct(model, code)
        assert (back - model.decode(x0)).abs().max() < 1e-5
    edited = ddim.edit(model, code, "two green birds", attention="none")
    assert torch.isfinite(edited.edits).all()
    assert not torch.equal(edited.edits[:, 0], edited.reconstruction)


def _never(*_: Any, **__: Any) -> None:
    raise AssertionError("some work was done")


def error_of(family: str, **settings: Any) -> float:
    """The mean squared error of a round trip, beside the autoencoder's own."""
    model, one = model_of(family), pictures(family, 1)
    code = ddim.invert(model, one, prompt="a cat", **settings)
    return float((ddim.reconstruct(model, code) - model.decode(model.encode(one))).square().mean())


@families
@pytest.mark.parametrize("name", ["ddim", "heun", "negative-prompt"])
def test_an_approximate_inversion_comes_nearer_with_more_steps(family, name):
    model = model_of(family)
    if capabilities(model)["inversions"][name]:
        pytest.skip("refused")
    weight = weight_of(model) if INVERSIONS[name].needs else 1.0
    few, many = (error_of(family, steps=steps, method=name, guidance=weight) for steps in (5, 40))
    print(f"{family:20} {name:16} {few:.1e} {many:.1e}")
    assert many < few / 3


@families
def test_tuning_the_empty_embedding_brings_a_step_nearer_to_the_pivot(family):
    """The loss of the first step, which begins at the same sample whatever the number of updates is."""
    model, losses = model_of(family), list[float]()
    if capabilities(model)["inversions"]["null-text"]:
        pytest.skip("refused")
    for inner in (1, 4, 16):
        own: list[float] = []
        ddim.invert(
            model,
            pictures(family, 1),
            steps=3,
            method="null-text",
            options={"inner": inner, "stop": 0.0, "rise": 0.0},
            prompt="a cat",
            guidance=5.0,
            on_event=lambda event, own=own: own.append(event.loss) if isinstance(event, ddim.LossEvent) else None,
        )
        losses.append(own[0])
    print(family, losses)
    assert losses[2] < losses[1] < losses[0]


# A solver's lifts do not know the network: each solver on one guided family and on one without, and each family by one.
BIT_ROWS = [
    *((family, name) for family in ("sd3", "flux dev") for name in REVERSIBLE),
    *((family, "bdia") for family in FULL if family not in ("sd3", "flux dev")),
]


@pytest.mark.parametrize("weight", [1.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("family", "name"), BIT_ROWS)
def test_the_bit_law(family, name, dtype, weight, tmp_path: Path):
    """The integers at the data end, from a saved code: all images, one alone, and in another batch."""
    model = model_of(family, dtype)
    if weight != 1 and "cfg" not in model.info.guidance_kinds:
        pytest.skip("this family takes no weight but 1")
    settings: dict[str, Any] = {"steps": STEPS, "method": name, "guidance": weight, "prompt": PROMPTS}
    code, begun = inverted(model, pictures(family), **settings)
    loaded = ddim.LatentCode.load(code.save(tmp_path / "a.code"))
    assert same(returned(model, loaded, strict=True)[1], begun)
    assert same(returned(model, loaded[1], batch=1)[1], rows(begun, [1]))
    assert same(returned(model, loaded.take([1, 0]), batch=1)[1], rows(begun, [1, 0]))
    if weight != 1:
        weaker = replace(code, guidance={**code.guidance, "weight": weight - 1e-2})
        assert not same(returned(model, weaker)[1], begun)
