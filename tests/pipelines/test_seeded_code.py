"""``ddim.seeded_code``: the code of images from noise draws what ``sample`` draws, and serves every other verb."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny_text
import torch
from refusals import refused
from tiny_few_step import FEW_STEP
from tiny_flow import FAMILIES

import ddim
from ddim.models.base import Model
from ddim.solvers import REVERSIBLE, SOLVERS
from ddim.solvers.ddim import DDIM

pytestmark = pytest.mark.filterwarnings("ignore::ddim._utils.errors.DDIMWarning")  # of codes of random networks
ONE_WAY = [name for name in SOLVERS if name not in REVERSIBLE]


@cache
def model_of(kind: str) -> Model:
    if kind == "fashion-classes":
        return ddim.load(kind)
    return FAMILIES[kind].model() if kind in FAMILIES else ddim.load(FEW_STEP[kind][0]())


def told(kind: str) -> dict[str, Any]:
    return {"labels": [1, 2]} if kind == "fashion-classes" else {"prompt": ["a cat", "a dog"]}


@pytest.mark.parametrize("kind", ["fashion-classes", "sdxl lcm", "sdxl tcd", "flux dev", "sd3"])
@pytest.mark.parametrize("solver", ONE_WAY)
def test_it_draws_what_sample_draws(kind, solver, tmp_path: Path):
    model = model_of(kind)
    settings: dict[str, Any] = {"steps": 3, "seed": 7, "solver": solver, **told(kind)}
    code = ddim.seeded_code(model, 2, **settings)
    code.save(tmp_path / "x.code.safetensors")
    loaded = ddim.LatentCode.load(tmp_path / "x.code.safetensors")
    sampled = ddim.sample(model, 2, **settings)
    assert torch.equal(ddim.reconstruct(model, loaded), sampled)
    # each image by itself is the same but for the last bits of a network that sees one row
    torch.testing.assert_close(ddim.reconstruct(model, loaded[1]), sampled[1:], rtol=0, atol=1e-4)
    other = ddim.reconstruct(model, ddim.seeded_code(model, 2, **{**settings, "seed": 8}))
    assert not torch.allclose(other, sampled, atol=1e-2)
    assert ("noise" in code.extras) == ddim.make_solver(solver).stochastic


def test_eta_guidance_and_negative_prompts_are_kept():
    model = ddim.load(tiny_text.pipeline())
    settings: dict[str, Any] = {
        "steps": 4,
        "eta": 0.5,
        "guidance": 3.0,
        "negative": "hat",
        "prompt": "a cat",
        "seed": 3,
    }
    code = ddim.seeded_code(model, 2, **settings)
    assert torch.equal(ddim.reconstruct(model, code), ddim.sample(model, 2, **settings))
    assert code.guidance["weight"] == 3
    assert code.negative == "hat"
    assert code.method == "sample"


def test_the_embedded_scale_is_kept():
    model = model_of("flux dev")
    guidance = ddim.Guidance(embedded=1.5)
    code = ddim.seeded_code(model, 1, steps=3, prompt="a cat", guidance=guidance)
    drawn = ddim.sample(model, 1, steps=3, prompt="a cat", guidance=guidance)
    assert torch.equal(ddim.reconstruct(model, code), drawn)
    assert not torch.equal(drawn, ddim.sample(model, 1, steps=3, prompt="a cat"))


@pytest.mark.parametrize("kind", ["sdxl lcm", "sdxl turbo"])
def test_edits_of_it_begin_from_the_same_noise(kind):
    model = model_of(kind)
    eta = 0.0 if "lcm" in kind else 1.0
    code = ddim.seeded_code(model, 2, prompt="a cat", eta=eta)
    edited = ddim.edit(model, code, ["a cat", "a red dog"], attention="none")
    sampled = ddim.sample(model, 2, prompt="a cat", eta=eta)
    torch.testing.assert_close(edited.reconstruction, sampled, rtol=0, atol=1e-4)
    torch.testing.assert_close(edited.edits[:, 0], sampled, rtol=0, atol=1e-4)
    target = ddim.sample(model, 2, prompt="a red dog", eta=eta)
    torch.testing.assert_close(edited.edits[:, 1], target, rtol=0, atol=1e-4)
    assert (target - sampled).abs().max() > 1e-2


def test_images_between_two_seeds_begin_and_end_at_the_images():
    model = ddim.load("fashion")
    codes = [ddim.seeded_code(model, 1, steps=5, seed=seed) for seed in (1, 2)]
    frames = ddim.interpolate(model, *codes, frames=3)
    ends = torch.cat([ddim.sample(model, 1, steps=5, seed=seed) for seed in (1, 2)])
    torch.testing.assert_close(frames[[0, 2]], ends, rtol=0, atol=1e-4)
    assert (frames[1] - ends).abs().amax((1, 2, 3)).min() > 0.1
    noisy = [ddim.seeded_code(model, 1, steps=5, seed=seed, eta=1.0) for seed in (1, 2)]
    with refused("through", "a noise map"):
        ddim.interpolate(model, *noisy, frames=3, through="state")


@pytest.mark.parametrize("solver", REVERSIBLE)
def test_codes_of_reversible_solvers_are_made_from_images(solver):
    with refused("solver", solver):
        ddim.seeded_code(ddim.load("fashion"), solver=solver)


def test_a_solver_without_a_boundary_is_kept(tmp_path: Path):
    model = ddim.load(tiny_text.pipeline())
    settings: dict[str, Any] = {"steps": 4, "solver": ddim.LCM(None), "prompt": "a cat", "guidance": 1}
    code = ddim.LatentCode.load(ddim.seeded_code(model, 2, **settings).save(tmp_path / "x.code.safetensors"))
    assert code.options == {"scaling": None}
    assert torch.equal(ddim.reconstruct(model, code), ddim.sample(model, 2, **settings))


@dataclass(frozen=True)
class Far(DDIM):
    """A solver with an option that may be any value."""

    reach: object = 1.0
    name: ClassVar[str] = "far"


def test_a_code_that_no_file_could_hold_is_refused_before_it_is_made():
    model = ddim.load("fashion")
    with refused("solver", "'far'"):
        ddim.seeded_code(model, solver=Far())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SOLVERS, "_added", {"far": Far})
        assert ddim.seeded_code(model, solver=Far()).options["reach"] == 1.0
        for value in (math.inf, math.nan, torch.ones(2), [1.0]):
            with refused("solver", "reach"):
                ddim.seeded_code(model, solver=Far(reach=value))


def test_the_options_of_a_model_s_own_solver_are_those_of_its_scheduler():
    """By default and by its name, unless they are given."""
    model = model_of("sd lcm, another boundary")
    run: dict[str, Any] = {"prompt": "a cat", "steps": 4}
    own = ddim.sample(model, 1, **run)
    assert torch.equal(own, ddim.sample(model, 1, solver="lcm", **run))
    assert torch.equal(own, ddim.sample(model, 1, solver=ddim.LCM(5e-4), **run))
    assert ddim.seeded_code(model, 1, **run).options == {"scaling": 5e-4}
    assert model.describe()["solver_options"] == {"scaling": 5e-4}
    usual = ddim.sample(model, 1, options={"scaling": 10.0}, **run)
    assert torch.equal(usual, ddim.sample(model, 1, solver=ddim.LCM(), **run))
    assert (usual - own).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("solver", "said"), [("tcd", "gamma=0.5"), ("lcm", "no such option"), ("ddpm", "sigma-hat"), ("heun", "'heun'")]
)
def test_the_noise_of_another_solver_is_not_eta(solver, said):
    with refused("eta", "0.5", repr(solver)) as caught:
        ddim.sample(ddim.load("fashion"), 1, solver=solver, eta=0.5)
    assert said in caught.value.message


def test_wrong_arguments_are_those_of_sample():
    model = ddim.load("fashion")
    for parameter, settings in (
        ("steps", {"steps": 0}),
        ("prompt", {"prompt": "a cat"}),
        ("seed", {"seed": -1}),
        ("eta", {"eta": 2}),
        ("guidance", {"guidance": 3.0}),
    ):
        with refused(parameter):
            ddim.seeded_code(model, **settings)
    with refused("count", 0):
        ddim.seeded_code(model, 0)
