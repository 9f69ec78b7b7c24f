"""The oracles themselves: a law that is measured against a wrong truth proves nothing."""

import math

import pytest
import torch
from oracles import Gaussian, Mixture, arc, fitted_order, gaussian, mixture, noise_like, straight

import ddim

SHAPES = [(3,), (2, 4, 4)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
NODES = [ddim.ddpm_linear().node(t) for t in (1, 300, 1000)] + [ddim.Node(1.0, 0.0, 1.0), ddim.Node(0.0, 1.0, 0.0)]


@shapes
@pytest.mark.parametrize("oracle", [gaussian, mixture])
@pytest.mark.parametrize("node", NODES, ids=lambda n: f"t={n.t:g}")
def test_the_pair_explains_x(oracle, shape, node):
    x = noise_like((5, *shape))
    pair = oracle(*shape)(x, node)
    assert pair.x0.shape == pair.eps.shape == x.shape
    assert torch.allclose(node.alpha * pair.x0 + node.sigma * pair.eps, x, rtol=0, atol=1e-12)


@shapes
def test_a_mixture_of_one_is_a_gaussian(shape):
    one, scale = gaussian(*shape), 0.7
    single = Mixture(torch.ones(1, dtype=torch.float64), one.mean[None], torch.tensor([scale], dtype=torch.float64))
    same, x, node = Gaussian(one.mean, torch.full_like(one.mean, scale)), noise_like((4, *shape)), NODES[1]
    assert torch.allclose(single(x, node).x0, same(x, node).x0, rtol=0, atol=1e-12)
    ends = arc(1)[0], arc(1)[1]
    assert torch.allclose(single.endpoint(x, *ends), same.endpoint(x, *ends), rtol=0, atol=1e-10)


def test_the_reference_endpoint_has_converged():
    x, ends = noise_like((4, 3)), arc(1).nodes
    finer = mixture(3).endpoint(x, *ends, steps=1600)
    assert torch.allclose(mixture(3).endpoint(x, *ends), finer, rtol=0, atol=1e-10)
    coarse = [mixture(3).endpoint(x, *ends, steps=k) for k in (20, 40, 80)]
    errors = [float((c - finer).abs().max()) for c in coarse]
    assert fitted_order([20, 40, 80], errors) == pytest.approx(4, abs=0.3)


def test_x0_is_the_mean_of_what_the_sample_may_have_been():
    """E[x0 | x] by weighing many draws of the data, for one x of the mixture."""
    data, node, x = mixture(2), NODES[1], torch.tensor([[0.4, -0.3]], dtype=torch.float64)
    draws = data.draw(200_000)
    log_weight = -(x - node.alpha * draws).square().sum(1) / (2 * node.sigma**2)
    weight = torch.softmax(log_weight, 0)
    assert torch.allclose(data(x, node).x0[0], weight @ draws, rtol=0, atol=0.01)


def test_the_gaussian_endpoint_keeps_deviations():
    data, (t, s) = gaussian(3), arc(1).nodes
    x = t.alpha * data.mean + 2 * data.spread(t)
    assert torch.allclose(data.endpoint(x[None], t, s)[0], s.alpha * data.mean + 2 * data.spread(s))


def test_fitted_order_of_a_power():
    assert fitted_order([10, 20, 40], [3 / n**1.7 for n in (10, 20, 40)]) == pytest.approx(1.7)


def test_the_arc_preserves_variance():
    assert all(math.isclose(n.alpha**2 + n.sigma**2, 1) for n in arc(7))


@pytest.mark.parametrize("grid", [arc(4), straight(4)], ids=lambda g: g.spacing)
def test_the_grids_of_the_laws_know_a_node_between_two_of_theirs(grid):
    for i in range(4):
        t, node, s = grid[i], grid.between(i, 0.5), grid[i + 1]
        assert s.t < node.t < t.t
        assert grid.path is not None
        on_path = grid.path.node(node.t)
        assert (node.alpha, node.sigma) == (on_path.alpha, on_path.sigma)
        assert grid.path.node(t.t) == pytest.approx(t, abs=1e-12)
