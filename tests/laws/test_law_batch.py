"""Law 3: a batch is its items one by one, the same seed gives the same bits, and eta = 0 draws nothing."""

import pytest
import tiny
import torch
from oracles import arc, gaussian, mixture, noise_like
from refusals import refused

import ddim
from ddim.core.noise import SeededNoise
from ddim.inversion import INVERSIONS, make_inversion

SHAPES = [(3, 3), (4, 4, 4, 4), (3, 1, 4, 5)]  # [N, ...]: the first two with a batch as large as every width
ORACLES = {"gaussian": gaussian, "mixture": mixture}
solvers = pytest.mark.parametrize("name", ddim.SOLVERS)
PLAIN = [n for n, m in INVERSIONS.items() if not m.needs and not m.keeps]  # the others: test_law_guided
methods = pytest.mark.parametrize("name", PLAIN)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
oracles = pytest.mark.parametrize("oracle", ORACLES)
ROUNDING = 1e-12  # vectorised exp differs in its last bit with the length of what it works on
NETWORK = 1e-9  # float64 convolutions sum in another order for another batch


def with_eta() -> list:
    return [*((name, {}) for name in ddim.SOLVERS), ("ddim", {"eta": 0.5}), ("ddim", {"eta": 1.0})]


@shapes
@oracles
@pytest.mark.parametrize(("name", "options"), with_eta(), ids=str)
def test_solving_a_batch_is_solving_its_items(name, options, shape, oracle):
    solver, problem, grid = ddim.make_solver(name, options), ORACLES[oracle](*shape[1:]), arc(6)

    def run(x: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        return solver.read(ddim.solve(problem, solver, solver.init(x, grid), grid, noise=SeededNoise(seeds)))

    x = noise_like(shape)
    together = run(x, list(range(len(x))))
    for k in range(len(x)):
        assert torch.allclose(run(x[k : k + 1], [k]), together[k : k + 1], rtol=0, atol=ROUNDING)


@shapes
@oracles
@methods
def test_inverting_a_batch_is_inverting_its_items(name, shape, oracle):
    inversion, problem, grid = make_inversion(name), ORACLES[oracle](*shape[1:]), arc(6)
    x = noise_like(shape)
    together = inversion.invert(problem, x, grid).state
    for k in range(len(x)):
        alone = inversion.invert(problem, x[k : k + 1], grid).state
        for key in together:
            assert torch.allclose(alone[key], together[key][k : k + 1], rtol=0, atol=ROUNDING), key


@pytest.mark.parametrize("count", [3, 8])  # 3 input channels, 8 the first width of the network
@solvers
def test_sampling_in_batches_is_sampling_at_once(name, count):
    model = tiny.model(channels=3, dtype=torch.float64)
    at_once = ddim.sample(model, count, steps=3, solver=name, seed=11)
    in_parts = ddim.sample(model, count, steps=3, solver=name, seed=11, batch=2)
    assert torch.allclose(in_parts, at_once, rtol=0, atol=NETWORK)


@methods
def test_inverting_in_batches_is_inverting_at_once(name):
    model, pictures = tiny.model(channels=3, dtype=torch.float64), torch.rand(3, 3, 8, 8)
    at_once = ddim.invert(model, pictures, steps=3, method=name)
    in_parts = ddim.invert(model, pictures, steps=3, method=name, batch=2)
    for key in at_once.state:
        assert torch.allclose(in_parts.state[key], at_once.state[key], rtol=0, atol=NETWORK), key
    back = ddim.reconstruct(model, at_once, batch=2)
    assert torch.allclose(back, ddim.reconstruct(model, at_once), rtol=0, atol=NETWORK)


def test_sampling_in_batches_with_eta_and_labels():
    model, labels = tiny.model(classes=5, dtype=torch.float64), [0, 1, 2, 3, 4]
    at_once = ddim.sample(model, 5, steps=3, eta=1.0, labels=labels)
    in_parts = ddim.sample(model, 5, steps=3, eta=1.0, labels=labels, batch=2)
    assert torch.allclose(in_parts, at_once, rtol=0, atol=NETWORK)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_kth_image_has_the_seed_plus_k(eta):
    model = tiny.model(dtype=torch.float64)
    many = ddim.sample(model, 3, steps=3, seed=20, eta=eta)
    lone = ddim.sample(model, 1, steps=3, seed=22, eta=eta)
    assert torch.allclose(many[2:], lone, rtol=0, atol=NETWORK)


@pytest.mark.parametrize(("name", "options"), with_eta(), ids=str)
def test_the_same_seed_gives_the_same_bits(name, options):
    model, eta = tiny.model(), options.get("eta", 0.0)
    assert torch.equal(
        ddim.sample(model, 3, steps=3, solver=name, eta=eta, seed=5),
        ddim.sample(model, 3, steps=3, solver=name, eta=eta, seed=5),
    )


def test_another_seed_gives_another_image():
    model = tiny.model()
    assert not torch.equal(ddim.sample(model, 1, steps=2, seed=1), ddim.sample(model, 1, steps=2, seed=2))


def test_sampling_leaves_the_global_generator_alone():
    model = tiny.model()
    before = torch.get_rng_state()
    ddim.sample(model, 2, steps=2, eta=1.0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", [n for n in ddim.SOLVERS if not ddim.make_solver(n).stochastic])
def test_deterministic_solvers_draw_nothing(name):
    def no_noise(like: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a deterministic solver asked for noise")

    solver, grid, problem = ddim.make_solver(name), arc(5), gaussian(3)
    x = noise_like((2, 3))
    with_source = solver.read(ddim.solve(problem, solver, solver.init(x, grid), grid, noise=no_noise))
    without = solver.read(ddim.solve(problem, solver, solver.init(x, grid), grid))
    assert torch.equal(with_source, without)


@pytest.mark.parametrize(("name", "options"), [("ddim", {"eta": 0.5}), ("ddpm", {})])
def test_a_stochastic_solver_without_a_source_of_noise_says_so(name, options):
    solver, grid = ddim.make_solver(name, options), arc(5)
    with refused(None, "noise", kind=ValueError):
        ddim.solve(gaussian(3), solver, solver.init(noise_like((2, 3)), grid), grid)
