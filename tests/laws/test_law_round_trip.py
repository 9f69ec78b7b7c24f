"""Law 2: invert, then replay, returns the image within the bound that the method states, in each dtype."""

import math
import warnings

import pytest
import torch
from oracles import arc, gaussian, mixture, noise_like

import ddim
from ddim.errors import DDIMError
from ddim.inversion import GUIDED, make_inversion
from ddim.solvers import Reversible

PROBLEMS = {"gaussian": gaussian(2, 4), "mixture": mixture(2, 4)}
REVERSIBLE = [name for name in ddim.SOLVERS if isinstance(ddim.make_solver(name), Reversible)]
PLAIN = [name for name in ddim.inversion_names() if name not in GUIDED]  # the others: test_law_guided
APPROXIMATE = [name for name in PLAIN if not make_inversion(name).exact]
PATH = ddim.ddpm_linear()
STEPS = 50
ROUNDINGS = 20  # roundings of one step, with their cancellations

methods = pytest.mark.parametrize("name", PLAIN)
reversible = pytest.mark.parametrize("name", REVERSIBLE)
problems = pytest.mark.parametrize("problem", PROBLEMS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def images(problem: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return PROBLEMS[problem].draw(5).to(dtype)


def code_of(name: str, problem: str, x0: torch.Tensor, grid: ddim.Grid, **options) -> ddim.LatentCode:
    inversion = make_inversion(name, options)
    solver = inversion.solver()
    state = inversion.invert(PROBLEMS[problem], x0, grid)
    return ddim.LatentCode(state, grid, inversion.name, solver.name, dict(vars(solver)))


def replay(code: ddim.LatentCode, problem: str, state=None) -> torch.Tensor:
    solver = ddim.make_solver(code.solver, code.options)
    return solver.read(ddim.solve(PROBLEMS[problem], solver, code.state if state is None else state, code.grid))


def decibels(error: torch.Tensor) -> float:
    """Peak signal-to-noise ratio for a range of 2, that of x0 in [-1, 1]."""
    return 10 * math.log10(4 / max(float(error.double().square().mean()), 1e-300))


def exact_bound(solver: Reversible, grid: ddim.Grid, dtype: torch.dtype) -> float:
    """Rounding, once a step, enlarged by what the solver states and by the division through the smallest alpha."""
    return ROUNDINGS * grid.steps * solver.growth(grid) * torch.finfo(dtype).eps / grid[0].alpha


@dtypes
@problems
@reversible
@pytest.mark.parametrize("spacing", ddim.SPACINGS)
def test_exact_methods_return_the_image_within_rounding_times_growth(name, problem, dtype, spacing):
    grid = ddim.make_grid(PATH, STEPS, spacing)
    x0 = images(problem, dtype)
    error = (replay(code_of(name, problem, x0, grid), problem) - x0).abs().max()
    assert float(error) <= exact_bound(ddim.make_solver(name), grid, dtype)


@dtypes
@pytest.mark.parametrize(
    ("name", "options", "steps", "lost"),
    [
        *(("edict", {"p": 0.7}, 50, True), ("edict", {}, 300, True), ("bdia", {"gamma": 0.7}, 60, True)),
        *((name, {}, 50, False) for name in REVERSIBLE),
        *(("edict", {}, 220, True), ("edict", {"p": 0.77}, 50, False)),
    ],
)
def test_a_code_too_large_for_its_dtype_is_told(name, options, steps, lost, dtype):
    grid, x0 = ddim.make_grid(PATH, steps), images("mixture", dtype)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        code = code_of(name, "mixture", x0, grid, **options)
    assert bool(told) is (lost and dtype == torch.float32)
    quality = decibels(replay(code, "mixture") - x0)
    assert quality < 70 if told else quality > 70
    if told:
        sentence = f"The code of {name} in {steps} steps is so large that float32 rounds parts of the picture away"
        assert str(told[0].message).startswith(sentence)
        assert told[0].category is ddim.DDIMWarning


@dtypes
@problems
@methods
def test_round_trip_in_decibels(name, problem, dtype, record_property):
    """The least a user may count on at 50 trailing steps: exact methods to rounding, the others to 3 %."""
    least = {True: {torch.float32: 90, torch.float64: 250}, False: {torch.float32: 30, torch.float64: 30}}
    x0 = images(problem, dtype)
    quality = decibels(replay(code_of(name, problem, x0, ddim.make_grid(PATH, STEPS)), problem) - x0)
    record_property("psnr_db", quality)
    print(f"round trip {name:6} {problem:9} {dtype!s:14} {quality:6.1f} dB")
    assert quality > least[make_inversion(name).exact][dtype]


@problems
@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_methods_close_in_as_steps_grow(name, problem):
    x0 = images(problem)
    few, many = (
        (replay(code_of(name, problem, x0, ddim.make_grid(PATH, steps)), problem) - x0).abs().max()
        for steps in (50, 200)
    )
    assert many < few / 3  # first order or better: four times the steps, a quarter of the error or less


@dtypes
@methods
def test_after_save_and_load_the_replay_is_the_same_bit_for_bit(name, dtype, tmp_path):
    x0 = images("mixture", dtype)
    code = code_of(name, "mixture", x0, ddim.make_grid(PATH, 20))
    loaded = ddim.LatentCode.load(code.save(tmp_path / "a.code"))
    assert torch.equal(replay(loaded, "mixture"), replay(code, "mixture"))
    assert loaded.grid.nodes == code.grid.nodes
    for key, value in code.state.items():
        assert torch.equal(loaded.state[key], value)
        assert loaded.state[key].dtype == dtype


@reversible
def test_the_latent_alone_does_not_come_back(name):
    # exactness belongs to the whole state: this is what a library that keeps x_T alone does
    x0 = images("mixture")
    code = code_of(name, "mixture", x0, ddim.make_grid(PATH, STEPS))
    if len(code.state) == 1:
        pytest.skip(f"the state of {name} is x alone")
    solver = ddim.make_solver(name)
    whole = (replay(code, "mixture") - x0).abs().max()
    lone = (replay(code, "mixture", solver.init(code.x, code.grid)) - x0).abs().max()
    print(f"x alone {name:6} {float(lone):.1e}, whole state {float(whole):.1e}")
    assert lone > 1e-4
    assert whole < 1e-11


@reversible
def test_every_tensor_of_the_state_matters(name):
    x0 = images("mixture")
    code = code_of(name, "mixture", x0, ddim.make_grid(PATH, STEPS))
    for key in code.state:
        damaged = {**code.state, key: code.state[key] + 0.01}
        assert (replay(code, "mixture", damaged) - x0).abs().max() > 1e-4, key


def walk(solver: Reversible, grid: ddim.Grid) -> list:
    """The states at every node, forwards from noise."""
    states = [solver.init(noise_like((3, 2, 4)), grid)]
    for i in range(grid.steps):
        states.append(solver.step(PROBLEMS["mixture"], states[-1], grid, i, None))
    return states


@reversible
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_unstep_undoes_step(name, steps):
    solver, grid = ddim.make_solver(name), arc(steps)
    states = walk(solver, grid)
    for i in range(steps):
        back = solver.unstep(PROBLEMS["mixture"], states[i + 1], grid, i)
        assert torch.allclose(solver.read(back), solver.read(states[i]), rtol=0, atol=1e-12)
        for key in back.keys() & states[i].keys():
            assert torch.allclose(back[key], states[i][key], rtol=0, atol=1e-12), (i, key)


@reversible
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_step_undoes_unstep(name, steps):
    solver, grid = ddim.make_solver(name), arc(steps)
    state = solver.lift(PROBLEMS["mixture"], images("mixture"), grid)
    for i in reversed(range(steps)):
        earlier = solver.unstep(PROBLEMS["mixture"], state, grid, i)
        again = solver.step(PROBLEMS["mixture"], earlier, grid, i, None)
        assert again.keys() == state.keys()
        for key in state:
            assert torch.allclose(again[key], state[key], rtol=0, atol=1e-12), (i, key)
        state = earlier


@reversible
def test_lift_keeps_the_image(name):
    x0 = images("gaussian")
    solver = ddim.make_solver(name)
    assert torch.equal(solver.read(solver.lift(PROBLEMS["gaussian"], x0, arc(4))), x0)


def enlargement(solver: Reversible, grid: ddim.Grid, problem: str) -> float:
    """The most that a small disturbance of the data end's state grows on the way back, measured."""
    oracle, size = PROBLEMS[problem], 1e-9
    state = solver.lift(oracle, images(problem), grid)
    kick = size * noise_like(tuple(state["x"].shape))
    plain = ddim.solve_back(oracle, solver, state, grid)
    worst = 0.0
    for key in state:
        kicked = ddim.solve_back(oracle, solver, {**state, key: state[key] + kick}, grid)
        worst = max(worst, *(float((kicked[k] - plain[k]).norm() / kick.norm()) for k in plain))
    return worst


@problems
@pytest.mark.parametrize("spacing", ["arc", *ddim.SPACINGS])
@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in REVERSIBLE), ("bdia", {"gamma": 0.96}), ("bdia", {"gamma": 0.7})]
)
def test_growth_bounds_what_a_disturbance_does(name, options, spacing, problem):
    solver = ddim.make_solver(name, options)
    grid = arc(STEPS) if spacing == "arc" else ddim.make_grid(PATH, STEPS, spacing)
    assert enlargement(solver, grid, problem) < 3 * solver.growth(grid)


@pytest.mark.parametrize("gamma", [0.5, 0.7, 0.96])
def test_growth_of_bdia_below_one_is_real(gamma):
    solver = ddim.make_solver("bdia", {"gamma": gamma})
    assert enlargement(solver, arc(20), "mixture") > 0.1 * gamma**-20


@pytest.mark.parametrize(("name", "options"), [("bdia", {"gamma": 0.5}), ("edict", {"p": 0.5})])
def test_growth_beyond_floats_is_infinite(name, options):
    assert ddim.make_solver(name, options).growth(arc(1100)) == math.inf


def test_a_method_that_diverges_says_at_which_step():
    grid = ddim.make_grid(PATH, 1000)
    with pytest.raises(DDIMError, match=r"no longer finite after the step from t = \d+ to t = \d+"):
        code_of("bdia", "mixture", images("mixture", torch.float32), grid, gamma=0.5)


def test_exact_methods_keep_what_naive_inversion_loses():
    # the ranking of every published comparison (Table 2 of Wang et al. 2024, arXiv 2410.07273)
    x0, grid = images("mixture"), ddim.make_grid(PATH, STEPS)
    naive = decibels(replay(code_of("ddim", "mixture", x0, grid), "mixture") - x0)
    for name in REVERSIBLE:
        assert decibels(replay(code_of(name, "mixture", x0, grid), "mixture") - x0) > naive + 100
