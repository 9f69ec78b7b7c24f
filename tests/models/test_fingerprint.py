"""A fingerprint tells apart models that give the same weights another timestep; usual models keep theirs."""

import hashlib
from typing import Any

import diffusers
import pytest
import tiny
import tiny_few_step
import tiny_flow
import torch
from refusals import warned

import ddim
from ddim.core.schedule import Clock, Schedule
from ddim.models.fingerprint import fingerprint

KARRAS = {"use_karras_sigmas": True}
V = {"prediction_type": "v_prediction"}


def pixel(**config: Any) -> Any:
    return diffusers.DDPMPipeline(tiny.unet(3), diffusers.EulerDiscreteScheduler(**V, **config))


def own(clock: Clock) -> ddim.Model:
    schedule = Schedule(ddim.RectifiedFlow(), "flow", clock=clock)
    return ddim.Model.from_network(torch.nn.Identity().eval(), schedule, shape=(3, 8, 8))


PAIRS = {
    "sd": (
        lambda: tiny_few_step.sd("DPMSolverMultistepScheduler", **KARRAS),
        lambda: tiny_few_step.sd("EulerDiscreteScheduler", **KARRAS),
        ("round", "path"),
    ),
    "sdxl": (
        lambda: tiny_few_step.xl("EulerDiscreteScheduler", **V, timestep_type="continuous"),
        lambda: tiny_few_step.xl("EulerDiscreteScheduler", **V),
        ("edm", "path"),
    ),
    "pixel": (lambda: pixel(timestep_type="continuous"), pixel, ("edm", "path")),
    "sana": (
        tiny_flow.FAMILIES["sana with dpm-solver"].pipeline,
        tiny_flow.FAMILIES["sana"].pipeline,
        ("floor", "path"),
    ),
}
"""Pipelines with the same weights -> two schedulers, and the clocks that they mean."""


@pytest.mark.parametrize("name", PAIRS)
def test_another_clock_is_another_model(name):
    made, other, clocks = PAIRS[name]
    one, two = ddim.load(made()), ddim.load(other())
    assert (one.schedule.clock, two.schedule.clock) == clocks
    assert one.fingerprint != two.fingerprint
    assert ddim.load(made()).fingerprint == one.fingerprint
    words = {"prompt": "a cat"} if one.text else {}
    code = ddim.invert(one, torch.rand(1, *one.picture), steps=2, method="bdia", guidance=1 if words else None, **words)
    with warned(one.fingerprint[:12], two.fingerprint[:12]):
        ddim.reconstruct(two, code)


def test_another_clock_of_an_own_network_is_another_model():
    assert len({own(clock).fingerprint for clock in ("path", "sigma", "signal", "floor")}) == 4


@pytest.mark.parametrize(
    ("prediction", "clock", "said"),
    [
        ("eps", "path", "eps"),
        ("v", "edm", "v edm"),
        ("v", "round", "v round"),
        ("edm", "edm", "edm 0.5"),
        ("edm_v", "edm", "edm_v 0.5"),
        ("edm", "path", "edm 0.5 path"),
    ],
)
def test_the_usual_clock_is_not_a_part_of_a_fingerprint(prediction, clock, said):
    """So that models with the usual clock have the fingerprint that their codes name."""
    assert Schedule(ddim.ddpm_linear(), prediction, clock=clock).predicts() == said


@pytest.mark.parametrize("name", ["sd3", "flux dev", "z-image", "lumina2", "sana"])
def test_the_clock_of_a_family_is_not_a_part_of_its_fingerprint(name):
    model: Any = tiny_flow.FAMILIES[name].model()
    parts = [fingerprint(part, model.schedule.path, "flow") for part in model.networks().values()]
    assert model.fingerprint == hashlib.sha256("".join(parts).encode()).hexdigest()
