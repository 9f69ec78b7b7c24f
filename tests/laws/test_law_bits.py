"""The bit law: what a reversible solver undoes, it makes again to the bit, and what keeps that from being trivial."""

import itertools
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import bits
import pytest
import tiny
import tiny_text
import torch
from bits import Integers, inverted, returned, rows, same, threads
from oracles import arc, gaussian, mixture, noise_like
from refusals import refused, warned

import ddim
from ddim._utils.errors import NotFinite
from ddim.core.conditioning import PromptConditioning
from ddim.core.denoiser import Layout
from ddim.data.images import read_images
from ddim.inversion import calls, make_inversion
from ddim.models.engine.thread_table import Least
from ddim.models.pixel import PixelModel
from ddim.pipelines.events import StepEvent
from ddim.pipelines.interpolate import join
from ddim.solvers import REVERSIBLE
from ddim.solvers.lattice import LatticeState, Lift, ReversibleSolver, _spacings

reversible = pytest.mark.parametrize("name", REVERSIBLE)
EVERY = [*((name, {}) for name in REVERSIBLE), ("rex", {"tableau": "euler"}), ("rex", {"tableau": "rk4"})]
every = pytest.mark.parametrize(("name", "options"), EVERY, ids=str)
DATA = mixture(2, 4)
PATHS = {
    "linear": ddim.ddpm_linear(),
    "cosine": ddim.TablePath(ddim.cosine_alpha_bar()),
    "zero-snr": ddim.TablePath(ddim.zero_terminal_snr(ddim.linear_alpha_bar())),
    "ve": ddim.VEPath(),
    "flow": ddim.RectifiedFlow(),
}


def start_of(name: str, x0: torch.Tensor, grid: ddim.Grid, **options: Any) -> tuple[ReversibleSolver, LatticeState]:
    solver = ddim.make_solver(name, options)
    state = solver.from_image(DATA, x0, grid)
    return solver, state


def grid_of(name: str, path: str, steps: int, spacing: str = "trailing") -> ddim.Grid:
    """A grid of at most so many steps, as far as the numbers of the solver fit the lattice."""
    grid = ddim.make_grid(PATHS[path], steps, spacing)
    outgrown = ddim.make_solver(name).amplification(grid) * grid[0].sigma > 1e12
    return ddim.make_grid(PATHS[path], min(steps, 100), spacing) if outgrown else grid


@every
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("steps", [5, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_integers_at_the_data_end_come_back(name, options, path, steps, dtype):
    grid = grid_of(name, path, steps)
    solver, state = start_of(name, DATA.draw(5).to(dtype), grid, **options)
    code = ddim.solve_back(DATA, solver, state, grid)
    assert not same(code, state)
    assert same(ddim.solve(DATA, solver, code, grid), state)
    # and it is no matter of course: the latent is far from the image, and one integer off does not come back
    assert (solver.read(code) - solver.read(state)).abs().max() > 0.1
    kicked = {**code, "x": code["x"] + (torch.arange(code["x"].numel()).view_as(code["x"]) == 0)}
    assert not same(ddim.solve(DATA, solver, code.with_integers(kicked), grid), state)


def in_halves(x: torch.Tensor, node: ddim.Node) -> ddim.Pair:
    """As a network in bfloat16: what goes in and what comes out has eight binary digits."""
    pair = DATA(x.to(torch.bfloat16).to(x.dtype), node)
    return ddim.Pair(*(value.to(torch.bfloat16).to(x.dtype) for value in pair))


def guided_strongly(x: torch.Tensor, node: ddim.Node) -> ddim.Pair:
    """Guidance of weight 7.5 from one distribution to another."""
    cond, uncond = DATA(x, node), gaussian(2, 4)(x, node)
    return ddim.Pair(*(u + 7.5 * (c - u) for c, u in zip(cond, uncond, strict=True)))


NETWORKS: dict[str, tuple[ddim.Denoiser, torch.dtype]] = {
    "float64": (DATA, torch.float64),
    "float32": (DATA, torch.float32),
    "bfloat16": (in_halves, torch.float32),
    "guided": (guided_strongly, torch.float32),
}


@every
@pytest.mark.parametrize("spacing", ddim.SPACINGS)
@pytest.mark.parametrize("path", PATHS)
def test_every_grid_and_every_network_comes_back(name, options, path, spacing):
    """Among them grids whose first node has no signal: all of rectified flow's and zero terminal SNR's but leading."""
    solver, grid = ddim.make_solver(name, options), ddim.make_grid(PATHS[path], 11, spacing)
    assert (grid[0].alpha == 0) is (path in ("zero-snr", "flow") and spacing != "leading")
    for network, (denoise, dtype) in NETWORKS.items():
        state = solver.from_image(denoise, DATA.draw(3).to(dtype), grid)
        code = ddim.solve_back(denoise, solver, state, grid)
        assert not same(code, state), network
        assert same(ddim.solve(denoise, solver, code, grid), state), network


@every
@pytest.mark.parametrize("path", ["zero-snr", "flow"])
def test_three_hundred_steps_come_back(name, options, path):
    grid = grid_of(name, path, 300)
    solver, state = start_of(name, DATA.draw(2), grid, **options)
    code = ddim.solve_back(DATA, solver, state, grid)
    assert grid.steps == (100 if name == "edict" else 300)
    assert same(ddim.solve(DATA, solver, code, grid), state)


RUNGE_KUTTA = [(name, options) for name, options in EVERY if name in ("rex", "reversible-heun")]


@pytest.mark.parametrize(("name", "options"), RUNGE_KUTTA, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_a_code_of_a_runge_kutta_method_is_as_wide_as_noise(name, options, path):
    solver = ddim.make_solver(name, options)
    low, high = solver.spread
    for spacing in ddim.SPACINGS:
        grid = ddim.make_grid(PATHS[path], 100, spacing)
        state = ddim.solve_back(DATA, solver, solver.from_image(DATA, DATA.draw(50), grid), grid)
        first = grid[solver.first(grid)]
        spread = float(solver.read(state).square().mean().sqrt()) / math.hypot(first.alpha, first.sigma)
        print(f"spread {name} {options} {path} {spacing} {spread:.2f}")
        # Quantiles of sigma / alpha: where it reaches thousands, hardly a node of ``beta`` is left for the image.
        if spacing == "beta" and grid[1].ratio > 1000:
            continue
        assert low < 0.6 < spread < 1.1 < high, spacing


@every
@pytest.mark.parametrize("path", PATHS)
def test_without_the_lattice_the_same_lifts_give_the_same_latent(name, options, path):
    """Float64 as a witness: what the lattice rounds away is no part of the method."""
    grid = ddim.make_grid(PATHS[path], 20, "trailing")
    solver, state = start_of(name, DATA.draw(5), grid, **options)
    entries = {key: state.entry(key) for key in state}
    for i in reversed(range(solver.first(grid), grid.steps)):
        state = solver.unstep(DATA, state, grid, i)
        turned = dict(zip(solver.rotate, (*solver.rotate[1:], *solver.rotate[:1]), strict=True))
        entries = {turned.get(key, key): value for key, value in entries.items()}
        for lift in reversed(solver.lifts(grid, i)):
            others = {key: value for key, value in entries.items() if key != lift.key}
            entries[lift.key] = (entries[lift.key] - lift.add(DATA, others)) / lift.scale
    for key in solver.keys:
        largest = float(entries[key].abs().max())
        assert (state.entry(key) - entries[key]).abs().max() <= 1e-6 * largest, key


# --- the call that two steps share -----------------------------------------------------------------------------------

REPEATING = [name for name, kind in REVERSIBLE.items() if kind.repeats]
repeating = pytest.mark.parametrize("name", REPEATING)


def counted(denoise: ddim.Denoiser) -> tuple[ddim.Denoiser, list[ddim.Node]]:
    """A denoiser, and the nodes that it was called at."""
    nodes: list[ddim.Node] = []

    def asked(x: torch.Tensor, node: ddim.Node) -> ddim.Pair:
        nodes.append(node)
        return denoise(x, node)

    return asked, nodes


def trip(denoise: ddim.Denoiser, solver: ReversibleSolver, grid: ddim.Grid, forget: bool) -> list[Integers]:
    """All states there and back; ``forget``: without what the step before has asked."""
    state = solver.from_image(denoise, DATA.draw(3), grid)
    states = [state]
    indices = list(range(solver.first(grid), grid.steps))
    for step, order in ((solver.unstep, indices[::-1]), (solver.step, indices)):
        for i in order:
            state = step(denoise, state.with_integers(dict(state)) if forget else state, grid, i)
            states.append(state)
    return states


@repeating
@pytest.mark.parametrize("path", PATHS)
def test_a_call_that_is_not_repeated_changes_nothing(name, path):
    solver, grid = ddim.make_solver(name), ddim.make_grid(PATHS[path], 7)
    (few, made), (many, repeated) = counted(DATA), counted(DATA)
    assert all(map(same, trip(few, solver, grid, False), trip(many, solver, grid, True)))
    steps = grid.steps - solver.first(grid)
    assert len(made) == 2 * steps * solver.nfe + 1  # the turn at the noise repeats a call too
    assert len(repeated) == 2 * len(made) - 2


@repeating
def test_another_denoiser_or_other_numbers_are_asked_again(name):
    solver, grid = ddim.make_solver(name), ddim.make_grid(PATHS["linear"], 7)
    first, nodes = counted(DATA)
    state = solver.unstep(first, solver.from_image(first, DATA.draw(3), grid), grid, 6)
    again = counted(in_halves)
    other = solver.unstep(again[0], state, grid, 5)
    assert len(again[1]) == 2
    assert same(other, solver.unstep(in_halves, state.with_integers(dict(state)), grid, 5))
    moved = state.with_integers({key: value + 2**35 for key, value in state.items()})
    solver.unstep(first, moved, grid, 5)
    assert len(nodes) == 2 + 2
    solver.unstep(first, state, grid, 5)
    assert len(nodes) == 2 + 2 + 1


@repeating
def test_the_result_of_an_inversion_does_not_keep_the_model(name):
    grid = ddim.make_grid(PATHS["linear"], 3)
    state = make_inversion(name).invert(DATA, DATA.draw(3), grid).state
    assert isinstance(state, LatticeState)
    assert state.answer is None


@reversible
def test_a_solver_says_whether_its_steps_share_a_call(name):
    """If it says no, no two calls in a row are the same; if yes, those that end one step and begin the next are."""
    solver, grid, asked = ddim.make_solver(name), ddim.make_grid(PATHS["linear"], 4), []

    def watched(x: torch.Tensor, node: ddim.Node) -> ddim.Pair:
        asked.append((x, node))
        return DATA(x, node)

    state = solver.from_image(DATA, DATA.draw(3), grid)
    for i in reversed(range(solver.first(grid), grid.steps)):
        state = solver.unstep(watched, state.with_integers(dict(state)), grid, i)
    shared = sum(a[1] == b[1] and torch.equal(a[0], b[0]) for a, b in itertools.pairwise(asked))
    assert shared == (grid.steps - solver.first(grid) - 1 if solver.repeats else 0)


@reversible
def test_equal_grids_of_other_paths_have_their_own_scales(name):
    """A grid compares by its nodes, but the coordinate of a step is that of its path."""
    flow = ddim.make_grid(PATHS["flow"], 6, "leading")
    bare, solver, x = ddim.Grid(flow.nodes, flow.spacing, arc(1).path), ddim.make_solver(name), noise_like((3, 2, 4))

    def sampled(grid: ddim.Grid) -> torch.Tensor:
        return solver.read(ddim.solve(DATA, solver, solver.init(x, grid), grid))

    assert bare == flow
    _spacings.cache_clear()
    alone = sampled(bare)
    _spacings.cache_clear()
    other = sampled(flow)
    assert torch.equal(sampled(bare), alone)
    assert torch.equal(other, alone) is (name in ("edict", "bdia"))  # whose formulas are of x / alpha


@reversible
def test_a_network_that_answers_nan_is_found_before_it_is_rounded(name):
    grid = ddim.make_grid(PATHS["linear"], 6, "trailing")
    solver, state = start_of(name, DATA.draw(3), grid)

    def broken(x: torch.Tensor, node: ddim.Node) -> ddim.Pair:
        pair = DATA(x, node)
        return ddim.Pair(pair.x0, pair.eps * float("nan")) if node.t > grid[3].t else pair

    with pytest.raises(NotFinite) as caught:
        ddim.solve_back(broken, solver, state, grid)
    assert caught.value.step in (3, 4)  # grid[3] is the noisy end of the third step back


@pytest.mark.parametrize(("name", "options"), [("edict", {"p": 0.3}), ("edict", {"p": 0.6}), ("bdia", {"gamma": 0.01})])
def test_numbers_that_leave_the_lattice_are_told_with_what_would_do(name, options):
    grid = ddim.make_grid(PATHS["linear"], 45, "trailing")
    with pytest.raises((NotFinite, ddim.InputError)) as caught:
        ddim.make_inversion(name, options).invert(DATA, DATA.draw(3), grid)
    assert next(iter(options)) in str(caught.value)


CASES = list(itertools.product(REVERSIBLE, [torch.float32, torch.bfloat16], [1.0, 7.5], [1, 3]))
TEXT_MODELS = {dtype: tiny_text.model(dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}


@dataclass(frozen=True)
class Trip:
    """An inversion here, and what another process made of its file."""

    pictures: torch.Tensor
    code: ddim.LatentCode
    begun: Integers
    images: torch.Tensor
    ended: Integers


@pytest.fixture(scope="module")
def trips(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Trip]:
    """Every case there, saved, and back in a process of its own, which has two threads."""
    folder = tmp_path_factory.mktemp("codes")
    made, out = {}, {}
    for k, (name, dtype, guidance, count) in enumerate(CASES):
        model = TEXT_MODELS[dtype]
        pictures = torch.rand(count, *model.picture, generator=torch.Generator().manual_seed(count))
        settings = {"steps": 5, "method": name, "prompt": "a cat", "guidance": guidance}
        made[k] = (pictures, *inverted(model, pictures, **settings))
        made[k][1].save(folder / f"{k}.code")
    return_elsewhere(folder)
    for k, case in enumerate(CASES):
        out[case] = Trip(*made[k], *torch.load(folder / f"{k}.back"))
    return out


def return_elsewhere(folder: Path) -> None:
    """A process of its own, with two threads, reads the codes of a folder and writes what comes back beside them."""
    here = Path(bits.__file__).parent
    path = os.pathsep.join([str(here), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "2"}
    ran = subprocess.run(
        [sys.executable, str(here / "bits.py"), str(folder)], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


def test_bundled_models_come_back_to_the_bit_in_another_process_and_in_parts(tmp_path):
    """Real networks: pictures inverted in batches of two and one by the Runge-Kutta solvers, saved, read elsewhere."""
    made = {}
    for model_name, dtype, settings in (
        ("fashion", torch.float32, {}),
        ("fashion", torch.bfloat16, {}),
        ("emoji", torch.float32, {"prompt": "noto dog face", "guidance": 7.5}),
    ):
        model = ddim.load(model_name, device="cpu", dtype=dtype)
        pictures = read_images(ddim.bundled_test_images(model_name)[:3], model.picture)
        for name, options in (("rex", {"tableau": "midpoint"}), ("reversible-heun", {})):
            key = f"{model_name} {dtype} {name} {options}"
            method = make_inversion(name, options)
            code, begun = inverted(model, pictures, steps=3, method=method, batch=2, **settings)
            code.save(tmp_path / f"{key}.code")
            made[key] = (code, begun)
            if dtype == torch.float32:
                one, alone = returned(model, code[2])
                assert same(alone, rows(begun, [2])), key
                assert one.shape == pictures[:1].shape
                far = float((code.x - model.encode(pictures)).abs().max())
                assert far > 0.5, key
    return_elsewhere(tmp_path)
    for key, (_, begun) in made.items():
        assert same(torch.load(tmp_path / f"{key}.back")[1], begun), key
    inner = {key for key, (code, _) in made.items() if code.grid.inner}
    assert inner == {key for key in made if " rex " in key}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pictures_of_a_text_model_come_back_to_the_bit_in_another_process(case, trips):
    name, dtype, guidance, count = case
    trip, model, solver = trips[case], TEXT_MODELS[dtype], make_inversion(name)
    assert same(trip.ended, trip.begun)
    x0, grid = model.encode(trip.pictures), trip.code.grid
    snapped = solver.read(solver.on_lattice(dict.fromkeys(solver.keys, x0), grid, grid.steps))
    image, ended = returned(model, trip.code)
    assert same(ended, trip.begun)
    assert torch.equal(image, model.decode(snapped))
    assert (trip.images - image).abs().max() < (1e-5 if dtype == torch.float32 else 0.05)  # the decoder, on two threads
    # what keeps it from being trivial
    assert (trip.code.x - x0).abs().max() > 0.1
    assert not same(returned(model, replace(trip.code, conditions=other_prompts(model, count)))[1], trip.begun)
    if guidance != 1:
        weaker = {**trip.code.guidance, "weight": guidance - 1e-3}
        assert not same(returned(model, replace(trip.code, guidance=weaker))[1], trip.begun)


def other_prompts(model, count: int) -> PromptConditioning:
    return model.condition(None, count, "a red dog")


# --- the company that a row was asked in -----------------------------------------------------------------------------

SEVERAL = ["a cat", "a dog", "a red mat", "a hat", ""]
WAYS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "text": (lambda: TEXT_MODELS[torch.float32], {"prompt": SEVERAL, "guidance": 7.5}),
    "text one branch at a time": (
        lambda: TEXT_MODELS[torch.float32],
        {"prompt": "a cat", "guidance": ddim.Guidance(7.5, batched_cfg=False)},
    ),
    "text unguided": (lambda: TEXT_MODELS[torch.float32], {"prompt": "a cat"}),
    "text bfloat16": (lambda: TEXT_MODELS[torch.bfloat16], {"prompt": SEVERAL, "guidance": 7.5}),
    "pixels": (lambda: tiny.model(channels=3), {}),
    "pixels bfloat16": (lambda: tiny.model(channels=3, dtype=torch.bfloat16), {}),
    "classes": (lambda: tiny.model(channels=3, classes=4), {"labels": [0, 1, 2, 0, 1], "guidance": 7.5}),
    "fashion": (lambda: ddim.load("fashion", device="cpu"), {}),
    "fashion bfloat16": (lambda: ddim.load("fashion", device="cpu", dtype="bfloat16"), {}),
}
ways = pytest.mark.parametrize("way", WAYS)
workers = pytest.mark.parametrize("workers", [1, 4])


def five(model) -> torch.Tensor:
    return torch.rand(5, *model.picture, generator=torch.Generator().manual_seed(5))


@workers
@ways
def test_parts_and_joined_codes_come_back_whatever_the_batch_and_the_threads(way, workers, tmp_path):
    """Made in batches of three and two on ``workers`` threads; read on one, in every other company."""
    model, settings = WAYS[way][0](), WAYS[way][1]
    with threads(workers):
        code, begun = inverted(model, five(model), steps=3, method="bdia", batch=3, **settings)
    assert code.calls["rows"].tolist() == [3, 3, 3, 2, 2]
    assert code.calls["place"].tolist() == [0, 1, 2, 0, 1]
    assert [code.machine[key] for key in ("workers", "threads", "min_rows")] == [workers, 1, 1]
    code = ddim.LatentCode.load(code.save(tmp_path / "a.code"))
    whole, ended = returned(model, code, batch=1, batched_cfg=False)
    assert same(ended, begun)
    for k in range(5):
        image, alone = returned(model, code[k], batch=2)
        assert same(alone, rows(begun, [k])), k
        if not model.text:  # whose decoder is a network too
            assert torch.equal(image[0], whole[k])
    joint = join([code[4], code[1:3], code[4], code[0]])
    with threads(2):
        assert same(returned(model, joint, batch=64)[1], rows(begun, [4, 1, 2, 4, 0]))
    assert same(returned(model, code[::-1])[1], rows(begun, [4, 3, 2, 1, 0]))
    assert same(returned(model, code.take([2, 2, 0]))[1], rows(begun, [2, 2, 0]))


@pytest.mark.parametrize("way", [way for way in WAYS if "bfloat16" not in way])
def test_without_its_calls_a_code_does_not_come_back_to_the_bit(way):
    """The witness of the test above: other company is other bits, in one of these companies at the least.

    In float32, that is: in bfloat16 these small networks answered the same in any company where this was written.
    """
    model, settings = WAYS[way][0](), WAYS[way][1]
    with threads(4):
        code, begun = inverted(model, five(model), steps=5, method="bdia", batch=5, **settings)
    assert same(returned(model, code)[1], begun)
    lost = []
    for count in (1, 2, 3):
        bare = replace(code[:count], calls=calls.call_record(count), machine={**code.machine, "workers": 1})
        lost.append(not same(returned(model, bare)[1], rows(begun, range(count))))
    assert any(lost)


@pytest.mark.parametrize("name", REVERSIBLE)
def test_batches_that_the_engine_cuts_by_itself_do_not_disturb_it(name):
    """Without a layout a large batch is cut by the threads there are; a code's own layout decides in its place."""
    model = tiny.model(channels=3)
    with threads(3):
        code, begun = inverted(model, five(model), steps=5, method=name)
    for count in (1, 2, 4):
        with threads(count):
            assert same(returned(model, code)[1], begun)
            assert same(returned(model, code[3])[1], rows(begun, [3]))


def test_the_least_rows_of_a_part_are_those_of_the_code(monkeypatch):
    """Five rows on four threads are two parts if a part has at least two rows, whatever it needs where it is read."""
    model, seen = tiny.model(channels=3), list[int]()
    with threads(4):
        monkeypatch.setattr("ddim.models.engine.threads.CPU", {"float32": Least(2 * model.row_work(), 1e18)})
        code, begun = inverted(model, five(model), steps=5, method="bdia")
    assert [code.machine[key] for key in ("workers", "threads", "min_rows")] == [4, 1, 2]
    model.network.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    assert same(returned(model, code)[1], begun)
    assert {*seen} == {2, 3}
    assert calls.layout_of({**code.machine, "min_rows": 3}) == Layout(4, 1, 3)


def test_codes_of_two_machines_are_interpolated_with_their_own_ends():
    model = tiny.model(channels=3)
    pictures, made = five(model), []
    for count, part in ((1, slice(0, 3)), (4, slice(3, 5))):
        with threads(count):
            made.append(ddim.invert(model, pictures[part], steps=5, method="bdia"))
    frames = ddim.interpolate(model, *made, frames=3)
    own = torch.cat([ddim.reconstruct(model, code) for code in made])
    assert torch.equal(frames[::2], own)


def test_a_run_that_goes_on_elsewhere_is_laid_out_as_it_began():
    model, pictures = tiny.model(channels=3), five(tiny.model(channels=3))
    settings = {"steps": 5, "method": "bdia", "batch": 2}

    def stop(event: object) -> None:
        if isinstance(event, StepEvent) and event.done == 10:
            raise KeyboardInterrupt

    with threads(4):
        whole, begun = inverted(model, pictures, **settings)
        with pytest.raises(ddim.Interrupted) as caught:
            ddim.invert(model, pictures, **settings, on_event=stop)
    partial = caught.value.partial
    assert len(partial) == 4
    rest = ddim.invert(model, pictures, **settings, resume=partial)
    assert same(rest.state, whole.state)
    assert same(rest.calls, whole.calls)
    assert rest.machine == whole.machine
    assert same(returned(model, rest)[1], begun)
    elsewhere = replace(partial, machine={**partial.machine, "device": "NVIDIA H100"})
    with refused("resume", "NVIDIA H100"):
        ddim.invert(model, pictures, **settings, resume=elsewhere)


@reversible
def test_a_network_that_answers_nan_in_a_pipeline_names_the_step(name):
    network = tiny.unet()
    network.register_forward_hook(lambda m, args, out: (out[0] * (float("nan") if args[1] > 300 else 1),))
    model = PixelModel("tiny", network, tiny.DDPM)
    with pytest.raises(NotFinite) as caught:
        ddim.invert(model, torch.rand(2, 1, 8, 8), steps=5, method=name)
    assert caught.value.step == 3  # the network is told 0, 200, 400 on the way back


# --- what cannot be rebuilt ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("was", "named"),
    [
        ({"device": "NVIDIA H100"}, "NVIDIA H100"),
        ({"torch": "1.0.0"}, "torch 1.0.0"),
        ({"tf32": True}, "TF32 True"),
    ],
)
@pytest.mark.parametrize(("dtype", "figure"), [(torch.float32, "31 dB"), (torch.bfloat16, " 4 dB")])
def test_another_machine_is_told_with_the_figure_and_refused_when_strict(was, named, dtype, figure):
    model = tiny.model(dtype=dtype)
    code = ddim.invert(model, torch.rand(1, 1, 8, 8), steps=3, method="bdia")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ddim.reconstruct(model, code, strict=True)
    other = replace(code, machine={**code.machine, **was})
    with warned(named) as told:
        ddim.reconstruct(model, other)
    figure = "18 dB" if "tf32" in was and dtype == torch.float32 else figure
    assert figure in str(told[0].message)
    with refused("strict", named):
        ddim.reconstruct(model, other, strict=True)


def test_strict_refuses_another_model_and_another_dtype():
    code = ddim.invert(tiny.model(), torch.rand(1, 1, 8, 8), steps=3, method="bdia")
    for model in (tiny.model(prediction_type="v_prediction"), tiny.model(dtype=torch.bfloat16)):
        with pytest.raises(ddim.InputError) as caught:
            ddim.reconstruct(model, code, strict=True)
        assert caught.value.parameter == "strict"


@pytest.mark.parametrize("machine", [{}, {"engine": "another"}])
def test_another_dtype_is_one_warning(machine):
    code = ddim.invert(tiny.model(dtype=torch.bfloat16), torch.rand(1, 1, 8, 8), steps=3, method="bdia")
    with pytest.warns(ddim.DDIMWarning) as told:
        ddim.reconstruct(tiny.model(), replace(code, machine={**code.machine, **machine}))
    assert len(told) == 1
    assert "bfloat16" in str(told[0].message)


@pytest.mark.parametrize("method", ["ddim", "heun", "direct", "edit-friendly"])
def test_codes_that_are_not_of_integers_keep_no_calls(method):
    code = ddim.invert(tiny.model(), torch.rand(2, 1, 8, 8), steps=3, method=method)
    assert (dict(code.calls), dict(code.machine)) == ({}, {})


@reversible
def test_pictures_of_a_pixel_model_come_back_to_the_bit(name):
    model = tiny.model(channels=3)
    pictures = torch.rand(3, *model.picture, generator=torch.Generator().manual_seed(0))
    code = ddim.invert(model, pictures, steps=5, method=name)
    back = ddim.reconstruct(model, code)
    solver = make_inversion(name).solver()
    x0 = model.encode(pictures)
    snapped = solver.read(solver.on_lattice(dict.fromkeys(solver.keys, x0), code.grid, code.grid.steps))
    assert torch.equal(back, model.decode(snapped))
    assert (back - pictures).abs().max() < 1e-6


def test_an_edit_leaves_its_exact_source_to_the_bit():
    model = tiny_text.model()
    code = ddim.invert(model, torch.rand(1, *model.picture), steps=4, method="bdia", prompt="a cat", guidance=3.0)
    mask = torch.zeros(model.picture[1:])
    mask[:16] = 1
    edited = ddim.edit(model, code, "a tiger", mask=mask)
    alone = ddim.edit(model, code, "a tiger", attention="none")
    assert torch.equal(edited.reconstruction, alone.reconstruction)
    assert not torch.equal(edited.edits[:, 0], edited.reconstruction)


def test_noise_enters_the_lattice_and_is_sampled_as_the_papers_say():
    """A lone x_T has no second value: the first steps are DDIM's, and what follows is on the lattice."""
    grid, x = ddim.make_grid(PATHS["linear"], 6, "trailing"), noise_like((3, 2, 4))
    for name in REVERSIBLE:
        solver = ddim.make_solver(name)
        state = solver.init(x, grid)
        for i in range(grid.steps):
            assert isinstance(state, LatticeState) is (i >= solver.first(grid))
            state = solver.step(DATA, state, grid, i, None)


@dataclass(frozen=True)
class ThreeNodes(ReversibleSolver):
    """Three entries that change places in a circle."""

    name: ClassVar[str] = "three"
    order: ClassVar[int] = 1
    nfe: ClassVar[int] = 1
    paper: ClassVar[str] = "these tests"
    keys: ClassVar[tuple[str, ...]] = ("x", "b", "c")
    rotate: ClassVar[tuple[str, ...]] = ("x", "b", "c")

    def first(self, grid: ddim.Grid) -> int:
        return 0

    def start(self, denoise, x0: torch.Tensor, grid: ddim.Grid) -> dict[str, torch.Tensor]:
        return {"x": x0, "b": 2 * x0, "c": 3 * x0}

    def lifts(self, grid: ddim.Grid, i: int) -> tuple[Lift, ...]:
        return (
            Lift("b", -0.9, lambda denoise, others: denoise(others["x"], grid[i]).eps + others["c"]),
            Lift("b", 1.1, lambda denoise, others: others["c"] * 0.5),
        )

    def amplification(self, grid: ddim.Grid) -> float:
        return 1.0


def test_any_number_of_entries_change_places_and_one_may_be_lifted_twice():
    grid, solver = ddim.make_grid(PATHS["linear"], 9, "trailing"), ThreeNodes()
    state = solver.from_image(DATA, DATA.draw(3), grid)
    code = ddim.solve_back(DATA, solver, state, grid)
    assert not same(code, state)
    assert same(ddim.solve(DATA, solver, code, grid), state)


def test_a_network_that_computes_another_way_is_told():
    """The same weights, loaded by us and as a live pipeline: other convolutions, and so other last bits."""
    import diffusers

    from ddim.models import bundled_models

    loaded = ddim.load("fashion")
    pipeline = diffusers.DDPMPipeline.from_pretrained(str(bundled_models()["fashion"]))
    pipeline.unet.eval()
    live = ddim.load(pipeline)
    assert loaded.fingerprint == live.fingerprint
    code = ddim.invert(loaded, torch.rand(1, *loaded.picture), steps=2, method="bdia")
    ddim.reconstruct(loaded, code, strict=True)
    with refused("strict", code.machine["engine"]):
        ddim.reconstruct(live, code, strict=True)


def test_a_network_in_one_piece_is_told_from_one_in_parts():
    model = tiny.model()
    code = ddim.invert(model, torch.rand(1, 1, 8, 8), steps=3, method="bdia")
    model.threads = False
    with warned(code.machine["engine"]):
        ddim.reconstruct(model, code)


def test_strict_refuses_what_comes_back_nearly_and_takes_what_is_put_on_its_pivot():
    model, picture = tiny.model(), torch.rand(1, 1, 8, 8)
    with refused("strict", "'ddim'"):
        ddim.reconstruct(model, ddim.invert(model, picture, steps=3), strict=True)
    for method in ("direct", "edit-friendly"):
        ddim.reconstruct(model, ddim.invert(model, picture, steps=3, method=method), strict=True)


def test_strict_refuses_an_exact_code_whose_ways_have_different_weights():
    model = tiny.model(classes=3)
    settings = {"steps": 3, "method": "bdia", "labels": 1, "guidance": 2.0}
    ddim.reconstruct(model, ddim.invert(model, torch.rand(1, 1, 8, 8), **settings), strict=True)
    code = ddim.invert(model, torch.rand(1, 1, 8, 8), **settings, inversion_guidance=1.0)
    with refused("strict", 1, 2):
        ddim.reconstruct(model, code, strict=True)


@reversible
def test_interval_and_rescale_are_of_both_ways(name):
    model, picture = tiny.model(classes=3), torch.rand(2, 1, 8, 8)
    model.network.class_embedding.weight.mul_(20)  # a random network hardly looks at its class
    plain, narrow = (ddim.Guidance(3.0, rescale=phi, interval=ends) for phi, ends in ((0, (0, 1)), (0.5, (0.2, 0.7))))
    codes = [inverted(model, picture, steps=6, method=name, labels=[0, 1], guidance=g) for g in (plain, narrow)]
    assert not torch.equal(codes[0][0].x, codes[1][0].x)
    for code, begun in codes:
        assert same(returned(model, code)[1], begun)


@reversible
def test_a_number_that_is_none_never_enters_the_lattice(name):
    """As an integer it would be -2^63, and come back equal."""
    grid, solver = ddim.make_grid(PATHS["zero-snr"], 5), ddim.make_solver(name)
    assert isinstance(solver, ReversibleSolver)
    nan = torch.full((1, 4), torch.nan)
    with pytest.raises(NotFinite):
        solver.on_lattice(dict.fromkeys(solver.keys, nan), grid, solver.first(grid))
