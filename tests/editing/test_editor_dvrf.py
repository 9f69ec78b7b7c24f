"""DVRF against the paper's formulas, written out, and its two special cases."""

import pytest
import torch
from refusals import refused
from written_out import BOTH, OTHER, SOURCE, TARGET, Written, assert_same, written

import ddim

STEPS, SEED = 4, 3


@pytest.fixture(params=BOTH, scope="module")
def tiny(request: pytest.FixtureRequest) -> Written:
    return written(request.param)


def test_dvrf_is_the_papers_algorithm(tiny: Written):
    eta, rate, many = 0.8, 0.6, 2
    options = {"eta": eta, "rate": rate, "draws_per_step": many, "source_guidance": 1.5}
    settings = {"steps": STEPS, "guidance": 3.0, "options": options, "seed": SEED}
    source, ours = tiny.edited("dvrf", **settings)
    _, other = tiny.edited("dvrf", OTHER, **settings)
    grid, noises = tiny.model.schedule.grid(STEPS, None, tuple(source.shape[2:])), tiny.noise(SEED, 8, source)
    x = source
    for i in range(STEPS):
        node, c, slopes = grid[i], eta * i / STEPS, []
        for k in range(many):
            eps = noises[(STEPS - 1 - i) * many + k]
            z_source = node.alpha * source + node.sigma * eps
            z_target = node.alpha * x + node.sigma * eps + c * node.sigma * (x - source)
            v = tiny.velocity(z_target, node, TARGET, 3.0) - tiny.velocity(z_source, node, SOURCE, 1.5)
            slopes.append(v + (1 - c) * (x - source))
        x = x - rate / STEPS * torch.stack(slopes).mean(0)
    assert_same(ours, x, source, other)


def test_with_a_constant_shift_and_the_rates_of_the_grid_it_is_flow_edit(tiny: Written):
    options = {"shift": "constant", "rates": "grid", "source_guidance": 1.5}
    settings = {"steps": STEPS, "guidance": 3.0, "seed": SEED}
    source, ours = tiny.edited("dvrf", options=options, **settings)
    _, theirs = tiny.edited("flow-edit", options={"source_guidance": 1.5}, strength=1.0, **settings)
    _, other = tiny.edited("dvrf", options={**options, "eta": 0.9}, **settings)
    assert_same(ours, theirs, source, other)


def test_without_a_shift_it_is_the_delta_denoising_score(tiny: Written):
    settings = {"steps": STEPS, "guidance": 3.0, "seed": SEED, "options": {"eta": 0.0, "source_guidance": 3.0}}
    if tiny.model.info.embedded is None and tiny.model.schedule.prediction == "flow":
        settings["strength"] = 0.75  # the first node of rectified flow has no signal, where the weight is infinite
    source, ours = tiny.edited("dvrf", **settings)
    _, other = tiny.edited("dvrf", OTHER, **settings)
    grid, noises = tiny.model.schedule.grid(STEPS, None, tuple(source.shape[2:])), tiny.noise(SEED, STEPS, source)
    x = source
    for i in range(round(STEPS * (1 - settings.get("strength", 1.0))), STEPS):
        node, eps = grid[i], noises[STEPS - 1 - i]
        _, ours_eps = tiny.guided(node.alpha * x + node.sigma * eps, node, TARGET, 3.0)
        _, source_eps = tiny.guided(node.alpha * source + node.sigma * eps, node, SOURCE, 3.0)
        x = x - (ours_eps - source_eps) * (node.alpha + node.sigma) / node.alpha / STEPS
    assert_same(ours, x, source, other)


def test_settings_of_dvrf_that_are_wrong_are_refused():
    for name, wrong in {"eta": -1.0, "rate": 0.0, "shift": "none", "rates": "fast", "draws_per_step": 0}.items():
        with refused(name, str(wrong)):
            ddim.make_editor("dvrf", {name: wrong})
