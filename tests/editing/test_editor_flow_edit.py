"""FlowEdit against Algorithm 1 of the paper, written out, with several draws and with sampled steps."""

import pytest
import torch
from refusals import refused
from written_out import BOTH, OTHER, SOURCE, TARGET, Written, assert_same, written

import ddim

STEPS, SEED, MANY = 4, 3, 2


@pytest.fixture(params=BOTH, scope="module")
def tiny(request: pytest.FixtureRequest) -> Written:
    return written(request.param)


@pytest.mark.parametrize("sampled", [0, 2])
def test_flow_edit_is_algorithm_1(tiny: Written, sampled: int):
    """On rectified flow z_target = z_source + z - x0; other paths are that path after division by alpha + sigma."""
    options = {"draws_per_step": MANY, "sampled": sampled, "source_guidance": 1.5}
    settings = {"steps": STEPS, "guidance": 3.0, "options": options, "seed": SEED, "strength": 0.75}
    source, ours = tiny.edited("flow-edit", **settings)
    _, other = tiny.edited("flow-edit", OTHER, **settings)
    grid, noises = tiny.model.schedule.grid(STEPS, None, tuple(source.shape[2:])), tiny.noise(SEED, 8, source)
    edit, begin = source, 1  # the strength leaves out the first of four steps
    for i in range(begin, STEPS - sampled):
        t, s = grid[i], grid[i + 1]
        slopes = []
        for k in range(MANY):
            z_source = t.alpha * source + t.sigma * noises[(STEPS - 1 - i) * MANY + k]
            z_target = z_source + (t.alpha + t.sigma) * (edit - source)
            slopes.append(tiny.velocity(z_target, t, TARGET, 3.0) - tiny.velocity(z_source, t, SOURCE, 1.5))
        width = s.sigma / (s.alpha + s.sigma) - t.sigma / (t.alpha + t.sigma)
        edit = edit + width * torch.stack(slopes).mean(0)
    if sampled:
        t = grid[STEPS - sampled]
        z = t.alpha * source + t.sigma * noises[(sampled - 1) * MANY] + (t.alpha + t.sigma) * (edit - source)
        for i in range(STEPS - sampled, STEPS):
            x0, eps = tiny.guided(z, grid[i], TARGET, 3.0)
            z = grid[i + 1].alpha * x0 + grid[i + 1].sigma * eps
        edit = z
    assert_same(ours, edit, source, other)


def test_settings_of_flow_edit_that_are_wrong_are_refused():
    for name, wrong in {"draws_per_step": 0, "sampled": -1, "source_guidance": "much"}.items():
        with refused(name, str(wrong)):
            ddim.make_editor("flow-edit", {name: wrong})
