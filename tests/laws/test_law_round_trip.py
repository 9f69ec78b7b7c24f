"""Law 2: invert, then replay, returns the image within the bound that the method states, in each dtype."""

import math
import warnings

import pytest
import torch
from oracles import arc, gaussian, mixture, noise_like

import ddim
from ddim.core.contracts import State
from ddim.core.schedule import Schedule, StaticShift
from ddim.inversion import INVERSIONS, make_inversion
from ddim.inversion.replay import state_of
from ddim.solvers import REVERSIBLE
from ddim.solvers.lattice import LatticeState, ReversibleSolver

PROBLEMS = {"gaussian": gaussian(2, 4), "mixture": mixture(2, 4)}
PLAIN = [n for n, m in INVERSIONS.items() if not m.needs and not m.keeps]  # the others: test_law_guided
APPROXIMATE = [name for name in PLAIN if not INVERSIONS[name].exact]
PATH = ddim.ddpm_linear()
FLOW = Schedule(ddim.RectifiedFlow(), "flow", shift=StaticShift(3.0))
MAKE_GRID = {"ddpm": lambda steps: ddim.make_grid(PATH, steps), "flow": FLOW.grid}
STEPS = 50

paths = pytest.mark.parametrize("path", MAKE_GRID)
methods = pytest.mark.parametrize("name", PLAIN)
reversible = pytest.mark.parametrize("name", REVERSIBLE)
problems = pytest.mark.parametrize("problem", PROBLEMS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def images(problem: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return PROBLEMS[problem].draw(5).to(dtype)


def code_of(name: str, problem: str, x0: torch.Tensor, grid: ddim.Grid, **options) -> ddim.LatentCode:
    inversion = make_inversion(name, options)
    solver = inversion.solver()
    state = inversion.invert(PROBLEMS[problem], x0, grid).state
    dtype = str(x0.dtype).removeprefix("torch.")
    return ddim.LatentCode(state, grid, inversion.name, solver.name, solver.options, dtype=dtype)


def replay(code: ddim.LatentCode, problem: str, state=None) -> torch.Tensor:
    solver = ddim.make_solver(code.solver, code.options)
    kept, dtype = code.state if state is None else state, getattr(torch, code.dtype)
    begin = state_of(solver, kept, code.grid, torch.device("cpu"), dtype)
    return solver.read(ddim.solve(PROBLEMS[problem], solver, begin, code.grid))


def decibels(error: torch.Tensor) -> float:
    """Peak signal-to-noise ratio for a range of 2, that of x0 in [-1, 1]."""
    return 10 * math.log10(4 / max(float(error.double().square().mean()), 1e-300))


@pytest.mark.parametrize(
    ("name", "options", "steps", "useless"),
    [
        *(("edict", {}, 220, True), ("edict", {"p": 0.8}, 60, True), ("bdia", {"gamma": 0.7}, 60, True)),
        *(
            ("rex", {}, 1, True),
            ("reversible-heun", {}, 1, True),
            ("rex", {}, 300, False),
            ("reversible-heun", {}, 300, False),
        ),
        *((name, {}, 50, False) for name in REVERSIBLE),
    ],
)
def test_a_code_that_comes_back_but_is_no_latent_is_told(name, options, steps, useless):
    grid, x0 = ddim.make_grid(PATH, steps), images("mixture", torch.float32)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        code = code_of(name, "mixture", x0, grid, **options)
    assert bool(told) is useless
    assert torch.equal(replay(code, "mixture"), images("mixture", torch.float32))
    if told:
        assert told[0].category is ddim.DDIMWarning
        assert ddim.make_solver(name).remedy in str(told[0].message)


@dtypes
@problems
@paths
@methods
def test_round_trip_in_decibels(name, path, problem, dtype, record_property):
    """The least a user may count on at 50 steps: exact methods to the lattice's points, the others to 3 %.

    What a class states is for 20 steps under guidance (test_law_guided), and so is no more than what is reached here.
    """
    least = {True: {torch.float32: 150, torch.float64: 220}, False: {torch.float32: 30, torch.float64: 30}}
    x0, grid, method = images(problem, dtype), MAKE_GRID[path](STEPS), make_inversion(name)
    back = replay(code_of(name, problem, x0, grid), problem)
    quality = decibels(back - x0)
    record_property("psnr_db", quality)
    print(f"round trip {name:6} {path:5} {problem:9} {dtype!s:14} {quality:6.1f} dB")
    assert quality > least[method.exact][dtype]
    if method.floor_db == math.inf:
        solver = method.solver()
        assert torch.equal(back, solver.read(solver.on_lattice(dict.fromkeys(solver.keys, x0), grid, grid.steps)))
    else:
        assert quality > method.floor_db


@problems
@paths
@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximate_methods_close_in_as_steps_grow(name, path, problem):
    x0 = images(problem)
    few, many = (
        (replay(code_of(name, problem, x0, MAKE_GRID[path](steps)), problem) - x0).abs().max() for steps in (50, 200)
    )
    assert many < few / 3  # first order or better: four times the steps, a quarter of the error or less


@dtypes
@paths
@methods
def test_after_save_and_load_the_replay_is_the_same_bit_for_bit(name, path, dtype, tmp_path):
    x0 = images("mixture", dtype)
    code = code_of(name, "mixture", x0, MAKE_GRID[path](20))
    loaded = ddim.LatentCode.load(code.save(tmp_path / "a.code"))
    assert torch.equal(replay(loaded, "mixture"), replay(code, "mixture"))
    assert loaded.grid.nodes == code.grid.nodes
    for key, value in code.state.items():
        assert torch.equal(loaded.state[key], value)
        assert loaded.state[key].dtype == (torch.int64 if name in REVERSIBLE else dtype)


@reversible
def test_the_latent_alone_does_not_come_back(name):
    # exactness belongs to the whole state: this is what a library that keeps x_T alone does
    x0 = images("mixture")
    code = code_of(name, "mixture", x0, ddim.make_grid(PATH, STEPS))
    if len(code.state) == 1:
        pytest.skip(f"the state of {name} is x alone")
    solver = ddim.make_solver(name)
    whole = (replay(code, "mixture") - x0).abs().max()
    lone = (replay(code, "mixture", dict.fromkeys(solver.keys, code.x)) - x0).abs().max()
    print(f"x alone {name:6} {float(lone):.1e}, whole state {float(whole):.1e}")
    assert lone > 1e-4
    assert whole < 1e-11


@reversible
def test_every_tensor_of_the_state_matters(name):
    x0 = images("mixture")
    code = code_of(name, "mixture", x0, ddim.make_grid(PATH, STEPS))
    for key in code.state:
        damaged = {**code.floats, key: code.floats[key] + 0.01}
        assert (replay(code, "mixture", damaged) - x0).abs().max() > 1e-4, key


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@reversible
@pytest.mark.parametrize("steps", [2, 3, 8])
def test_unstep_undoes_step(name, steps):
    solver, grid = ddim.make_solver(name), arc(steps)
    state = solver.init(noise_like((3, 2, 4)), grid)
    for i in range(steps):
        before, state = state, solver.step(PROBLEMS["mixture"], state, grid, i, None)
        if i >= solver.first(grid):
            assert same(solver.unstep(PROBLEMS["mixture"], state, grid, i), before), i


@reversible
@pytest.mark.parametrize("steps", [2, 3, 8])
def test_step_undoes_unstep(name, steps):
    solver, grid = ddim.make_solver(name), arc(steps)
    state = solver.from_image(PROBLEMS["mixture"], images("mixture"), grid)
    for i in reversed(range(solver.first(grid), steps)):
        earlier = solver.unstep(PROBLEMS["mixture"], state, grid, i)
        assert same(solver.step(PROBLEMS["mixture"], earlier, grid, i, None), state), i
        state = earlier


@reversible
def test_from_image_keeps_the_image_to_its_nearest_point(name):
    x0, solver = images("gaussian"), ddim.make_solver(name)
    lifted = solver.read(solver.from_image(PROBLEMS["gaussian"], x0, arc(4)))
    assert (lifted - x0).abs().max() < 2.0**-35


@reversible
def test_a_grid_without_a_lift_is_refused(name):
    solver = ddim.make_solver(name)
    least = solver.first(arc(1)) + 1
    assert solver.from_image(PROBLEMS["gaussian"], images("gaussian"), arc(least)).keys() == set(solver.keys)
    if least > 1:
        with pytest.raises(ddim.InputError) as caught:
            solver.from_image(PROBLEMS["gaussian"], images("gaussian"), arc(least - 1))
        assert caught.value.parameter == "steps"


def enlargement(solver: ReversibleSolver, grid: ddim.Grid, problem: str) -> float:
    """The most that a small disturbance of the data end's state grows on the way back, measured."""
    oracle, size = PROBLEMS[problem], 1e-6
    lifted = solver.from_image(oracle, images(problem), grid)
    entries = {key: lifted.entry(key) for key in lifted}
    kick = size * noise_like(tuple(entries["x"].shape))

    def back(start: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        state = ddim.solve_back(oracle, solver, solver.on_lattice(start, grid, grid.steps), grid)
        assert isinstance(state, LatticeState)
        return {key: state.entry(key) for key in state}

    plain, worst = back(entries), 0.0
    for key in entries:
        kicked = back({**entries, key: entries[key] + kick})
        worst = max(worst, *(float((kicked[k] - plain[k]).norm() / kick.norm()) for k in plain))
    return worst


@problems
@pytest.mark.parametrize("spacing", ["arc", *ddim.SPACINGS, "flow"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in REVERSIBLE),
        *(("bdia", {"gamma": 0.96}), ("bdia", {"gamma": 0.7})),
        *(("rex", {"tableau": "euler"}), ("rex", {"tableau": "rk4"}), ("rex", {"zeta": 0.8})),
    ],
)
def test_amplification_bounds_what_a_disturbance_does(name, options, spacing, problem):
    solver = ddim.make_solver(name, options)
    made = {"arc": arc, "flow": FLOW.grid}
    grid = made[spacing](STEPS) if spacing in made else ddim.make_grid(PATH, STEPS, spacing)
    assert enlargement(solver, grid, problem) < 3 * solver.amplification(grid)


@pytest.mark.parametrize("gamma", [0.5, 0.7, 0.96])
def test_amplification_of_bdia_below_one_is_real(gamma):
    solver = ddim.make_solver("bdia", {"gamma": gamma})
    assert enlargement(solver, arc(20), "mixture") > 0.1 * gamma**-20


@pytest.mark.parametrize("zeta", [0.5, 0.8])
def test_amplification_of_rex_below_one_is_real(zeta):
    solver = ddim.make_solver("rex", {"zeta": zeta})
    assert enlargement(solver, arc(20), "mixture") > 0.03 * zeta**-20


@pytest.mark.parametrize(("name", "options"), [("bdia", {"gamma": 0.5}), ("edict", {"p": 0.5}), ("rex", {"zeta": 0.5})])
def test_amplification_beyond_floats_is_infinite(name, options):
    assert ddim.make_solver(name, options).amplification(arc(1100)) == math.inf


def test_scales_that_no_lattice_holds_are_refused():
    grid = ddim.make_grid(PATH, 1000)
    with pytest.raises(ddim.InputError) as caught:
        code_of("bdia", "mixture", images("mixture", torch.float32), grid, gamma=0.5)
    assert caught.value.parameter == "steps"
    assert "gamma" in str(caught.value)


def test_exact_methods_keep_what_naive_inversion_loses():
    # the ranking of every published comparison (Table 2 of Wang et al. 2024, arXiv 2410.07273)
    x0, grid = images("mixture"), ddim.make_grid(PATH, STEPS)
    naive = decibels(replay(code_of("ddim", "mixture", x0, grid), "mixture") - x0)
    for name in REVERSIBLE:
        assert decibels(replay(code_of(name, "mixture", x0, grid), "mixture") - x0) > naive + 100
