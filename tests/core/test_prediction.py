import pytest
import torch
from oracles import noise_like
from refusals import refused, unknown

import ddim
from ddim.core.denoiser import corrected
from ddim.core.prediction import PREDICTIONS, clip, dynamic_threshold, prediction_of

NODE = ddim.ddpm_linear().node(600)
X0, EPS = noise_like((4, 3, 2), 1), noise_like((4, 3, 2), 2)
X = NODE.alpha * X0 + NODE.sigma * EPS
kinds = pytest.mark.parametrize("kind", PREDICTIONS)


def explains(pair: ddim.Pair, x: torch.Tensor = X, node: ddim.Node = NODE) -> bool:
    return torch.allclose(node.alpha * pair.x0 + node.sigma * pair.eps, x, rtol=0, atol=1e-12)


@kinds
@pytest.mark.parametrize(
    "node", [NODE, ddim.RectifiedFlow().node(0.3), ddim.VEPath().node(7.0)], ids=["vp", "flow", "ve"]
)
def test_every_prediction_goes_there_and_back(kind, node):
    x = node.alpha * X0 + node.sigma * EPS
    output = ddim.from_pair(kind, ddim.Pair(X0, EPS), node.alpha, node.sigma)
    pair = ddim.to_pair(kind, output, x, node)
    assert torch.allclose(pair.x0, X0, rtol=0, atol=1e-11)
    assert torch.allclose(pair.eps, EPS, rtol=0, atol=1e-11)


@kinds
def test_any_output_gives_a_pair_that_explains_x(kind):
    assert explains(ddim.to_pair(kind, X.sin(), X, NODE))


def test_eps_and_x0_are_what_the_network_said():
    output = X.cos()
    assert ddim.to_pair("eps", output, X, NODE).eps is output
    assert ddim.to_pair("x0", output, X, NODE).x0 is output


def test_v_is_salimans_and_hos_definition():
    # v = alpha eps - sigma x0, so x0 = alpha x - sigma v and eps = sigma x + alpha v (arXiv 2202.00512, appendix D)
    v = ddim.from_pair("v", ddim.Pair(X0, EPS), NODE.alpha, NODE.sigma)
    assert torch.allclose(v, NODE.alpha * EPS - NODE.sigma * X0)
    pair = ddim.to_pair("v", v, X, NODE)
    assert torch.allclose(pair.x0, NODE.alpha * X - NODE.sigma * v)
    assert torch.allclose(pair.eps, NODE.sigma * X + NODE.alpha * v)


def test_flow_is_the_velocity_of_the_straight_path():
    # x = (1 - t) x0 + t eps, so dx/dt = eps - x0
    node = ddim.RectifiedFlow().node(0.4)
    flow = ddim.from_pair("flow", ddim.Pair(X0, EPS), node.alpha, node.sigma)
    assert torch.allclose(flow, EPS - X0)
    x = node.alpha * X0 + node.sigma * EPS
    assert torch.allclose(ddim.to_pair("flow", flow, x, node).x0, x - 0.4 * flow)


def test_a_score_is_minus_eps_by_sigma():
    node = ddim.VEPath().node(7.0)
    score = ddim.from_pair("score", ddim.Pair(X0, EPS), node.alpha, node.sigma)
    assert torch.allclose(score, -EPS / 7.0)
    assert torch.equal(ddim.to_pair("score", score, X0 + 7 * EPS, node).eps, -7.0 * score)
    # without noise, the limit of -sigma grad log p(x)
    assert not ddim.to_pair("score", score, X0, ddim.Node(0, 1.0, 0.0)).eps.any()
    with refused("prediction", "'score'"):
        ddim.from_pair("score", ddim.Pair(X0, EPS), 1.0, 0.0)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_is_karras_table_1(sigma_data):
    """D(x; sigma) = c_skip x + c_out F, with c_skip and c_out as printed (arXiv 2206.00364)."""
    node, output = ddim.VEPath().node(7.0), X.sin()
    x = node.alpha * X0 + node.sigma * EPS
    total = node.sigma**2 + sigma_data**2
    for kind, sign in (("edm", 1), ("edm_v", -1)):
        pair = ddim.to_pair(kind, output, x, node, sigma_data=sigma_data)
        c_skip, c_out = sigma_data**2 / total, sign * node.sigma * sigma_data / total**0.5
        assert torch.allclose(pair.x0, c_skip * x + c_out * output)
        back = ddim.from_pair(kind, pair, node.alpha, node.sigma, sigma_data=sigma_data)
        assert torch.allclose(back, output)


def test_edm_v_with_data_of_deviation_1_is_v():
    v = ddim.from_pair("v", ddim.Pair(X0, EPS), NODE.alpha, NODE.sigma)
    edm = ddim.from_pair("edm_v", ddim.Pair(X0, EPS), NODE.alpha, NODE.sigma, sigma_data=1.0)
    assert torch.allclose(edm, v)


def test_training_targets_take_a_node_a_sample():
    alpha, sigma = (torch.rand(4, 1, 1, dtype=torch.float64) for _ in range(2))
    v = ddim.from_pair("v", ddim.Pair(X0, EPS), alpha, sigma)
    assert torch.allclose(v[2], alpha[2] * EPS[2] - sigma[2] * X0[2])


@pytest.mark.parametrize(
    ("kind", "node"),
    [
        ("eps", ddim.Node(1000, 0.0, 1.0)),
        ("score", ddim.Node(1000, 0.0, 1.0)),
        ("x0", ddim.Node(0, 1.0, 0.0)),
    ],
)
def test_a_prediction_that_says_nothing_is_refused(kind, node):
    with refused("prediction", repr(kind), f"{node.t:g}"):
        ddim.to_pair(kind, X, X, node)


@pytest.mark.parametrize("kind", ["x0", "v", "flow", "edm", "edm_v"])
def test_zero_signal_is_no_obstacle_to_the_others(kind):
    pair = ddim.to_pair(kind, X.sin(), X, ddim.Node(1000, 0.0, 1.0))
    assert torch.allclose(pair.eps, X)


@pytest.mark.parametrize("kind", ["eps", "v", "flow", "score", "edm", "edm_v"])
def test_zero_noise_is_no_obstacle_to_the_others(kind):
    assert torch.allclose(ddim.to_pair(kind, X.sin(), X, ddim.Node(0, 1.0, 0.0)).x0, X)


@kinds
def test_the_dtype_is_the_networks(kind):
    assert ddim.to_pair(kind, X.float(), X.float(), NODE).x0.dtype == torch.float32


def test_an_unknown_prediction_names_the_nearest():
    with unknown("prediction", "flows", nearest="flow"):
        ddim.to_pair("flows", X, X, NODE)
    with unknown("prediction_type", "v-prediction", nearest="v_prediction"):
        prediction_of("v-prediction")


def test_diffusers_names():
    names = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
    assert {k: prediction_of(k) for k in names} == names


# --- corrections ----------------------------------------------------------------------------------------------------


def test_clip_bounds_x0_and_derives_eps_anew():
    pair = clip(ddim.Pair(X0, EPS), X, NODE, 0.5)
    assert torch.equal(pair.x0, X0.clamp(-0.5, 0.5))
    assert explains(pair)


def test_clip_leaves_what_fits_alone():
    pair = clip(ddim.Pair(X0, EPS), X, NODE, 100.0)
    assert torch.equal(pair.x0, X0)
    assert torch.allclose(pair.eps, EPS, rtol=0, atol=1e-12)


def test_clip_without_noise_keeps_eps():
    pair = clip(ddim.Pair(X0, EPS), X0, ddim.Node(0, 1.0, 0.0))
    assert torch.equal(pair.eps, EPS)


def test_dynamic_threshold_is_saharias_formula_a_sample_at_a_time():
    pair = dynamic_threshold(ddim.Pair(3 * X0, EPS), X, NODE, 0.8)
    for k in range(4):
        s = max(float(torch.quantile((3 * X0[k]).abs(), 0.8)), 1.0)
        assert torch.allclose(pair.x0[k], (3 * X0[k]).clamp(-s, s) / s, rtol=0, atol=1e-12)
    assert explains(pair)
    assert pair.x0.abs().max() <= 1 + 1e-12


def test_dynamic_threshold_leaves_what_fits_alone():
    small = 0.1 * X0
    assert torch.allclose(dynamic_threshold(ddim.Pair(small, EPS), X, NODE).x0, small, rtol=0, atol=1e-15)


@pytest.mark.parametrize("percentile", [0.0, 1.1, -1.0, float("nan")])
def test_a_percentile_out_of_range_is_refused(percentile):
    with refused("percentile", f"{percentile:g}"):
        dynamic_threshold(ddim.Pair(X0, EPS), X, NODE, percentile)


def test_a_corrected_denoiser_passes_its_pairs_through():
    denoise = corrected(lambda x, node: ddim.Pair(2 * x, x), lambda pair, x, node: ddim.Pair(pair.x0 + 1, x))
    assert torch.equal(denoise(X, NODE).x0, 2 * X + 1)
