"""FlowAlign against the paper's algorithm, written out."""

import pytest
from refusals import refused
from written_out import BOTH, OTHER, SOURCE, TARGET, Written, assert_same, written

import ddim


@pytest.fixture(params=BOTH, scope="module")
def tiny(request: pytest.FixtureRequest) -> Written:
    return written(request.param)


def test_flow_align_is_the_papers_algorithm(tiny: Written):
    steps, omega, zeta = 4, 5.0, 0.2
    settings = {"steps": steps, "guidance": omega, "options": {"zeta": zeta}, "seed": 3}
    source, ours = tiny.edited("flow-align", **settings)
    _, other = tiny.edited("flow-align", OTHER, **settings)
    grid = tiny.model.schedule.grid(steps, None, tuple(source.shape[2:]))
    noises = tiny.noise(3, steps, source)
    x = x0 = source
    for i in range(steps):
        node, after, eps = grid[i], grid[i + 1], noises[steps - 1 - i]
        scale, width = node.alpha + node.sigma, node.sigma / (node.alpha + node.sigma)
        width -= after.sigma / (after.alpha + after.sigma)
        q = node.alpha * x0 + node.sigma * eps
        p = q + scale * (x - x0)
        p_source, p_target = tiny.predict(p, node, SOURCE), tiny.predict(p, node, TARGET)
        q_source = tiny.predict(q, node, SOURCE)
        v_p, v_q = (
            (p_source[1] - p_source[0]) + omega * ((p_target[1] - p_target[0]) - (p_source[1] - p_source[0])),
            q_source[1] - q_source[0],
        )
        # On the straight path x0 = z - time * v, where z is the sample divided by its scale.
        time = node.sigma / scale
        x = x - width * (v_p - v_q) + zeta * ((q / scale - time * v_q) - (p / scale - time * v_p))
    assert_same(ours, x, source, other)


def test_guidance_leads_away_from_the_source_and_zeta_pulls_to_it(tiny: Written):
    def distance(**settings) -> float:
        source, found = tiny.edited("flow-align", steps=4, **settings)
        return float((found - source).square().mean())

    assert distance(guidance=2.0) < distance(guidance=6.0)
    assert distance(guidance=2.0, options={"zeta": 0.3}) < distance(guidance=2.0, options={"zeta": 0.0})


def test_settings_of_flow_align_that_are_wrong_are_refused(tiny: Written):
    for wrong in (-0.1, float("nan"), "much"):
        with refused("zeta", str(wrong)):
            ddim.make_editor("flow-align", {"zeta": wrong})
    with refused("negative", "'grey'"):
        tiny.edited("flow-align", negative="grey")
