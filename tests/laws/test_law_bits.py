"""The bit law: what a reversible solver undoes, it makes again to the bit, and what keeps that from being trivial."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import pytest
import tiny
import tiny_text
import torch
from oracles import mixture, noise_like

import ddim
from ddim._utils.errors import NotFinite
from ddim.inversion import make_inversion
from ddim.solvers import LatticeState, Lift, ReversibleSolver

REVERSIBLE = [name for name in ddim.SOLVERS if isinstance(ddim.make_solver(name), ReversibleSolver)]
reversible = pytest.mark.parametrize("name", REVERSIBLE)
DATA = mixture(2, 4)
PATHS = {
    "linear": ddim.ddpm_linear(),
    "cosine": ddim.TablePath(ddim.cosine_alpha_bar()),
    "zero-snr": ddim.TablePath(ddim.zero_terminal_snr(ddim.linear_alpha_bar())),
    "ve": ddim.VEPath(),
    "flow": ddim.RectifiedFlow(),
}


def start_of(name: str, x0: torch.Tensor, grid: ddim.Grid) -> tuple[ReversibleSolver, LatticeState]:
    solver = ddim.make_solver(name)
    state = solver.from_image(DATA, x0, grid)
    return solver, state


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@reversible
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("steps", [5, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_integers_at_the_data_end_come_back(name, path, steps, dtype):
    if (name, path) == ("edict", "ve"):
        steps = min(steps, 100)  # its numbers outgrow the lattice beyond: sigma = 50 times p^-2S
    grid = ddim.make_grid(PATHS[path], steps, "trailing")
    solver, state = start_of(name, DATA.draw(5).to(dtype), grid)
    code = ddim.solve_back(DATA, solver, state, grid)
    assert not same(code, state)
    assert same(ddim.solve(DATA, solver, code, grid), state)


@reversible
@pytest.mark.parametrize("path", PATHS)
def test_without_the_lattice_the_same_lifts_give_the_same_latent(name, path):
    """Float64 as a witness: what the lattice rounds away is no part of the method."""
    grid = ddim.make_grid(PATHS[path], 20, "trailing")
    solver, state = start_of(name, DATA.draw(5), grid)
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


@reversible
def test_a_network_that_answers_nan_is_found_before_it_is_rounded(name):
    grid = ddim.make_grid(PATHS["linear"], 6, "trailing")
    solver, state = start_of(name, DATA.draw(3), grid)

    def broken(x: torch.Tensor, node: ddim.Node, cond: object = None) -> ddim.Pair:
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


@pytest.mark.parametrize(
    ("name", "dtype", "guidance", "count"),
    list(itertools.product(REVERSIBLE, [torch.float32, torch.bfloat16], [1.0, 7.5], [1, 3])),
)
def test_pictures_of_a_text_model_come_back_to_the_bit(name, dtype, guidance, count, tmp_path):
    model = tiny_text.model(dtype=dtype)
    pictures = torch.rand(count, *model.picture, generator=torch.Generator().manual_seed(count))
    settings = {"steps": 5, "method": name, "prompt": "a cat", "guidance": guidance}
    code = ddim.invert(model, pictures, **settings)
    loaded = ddim.LatentCode.load(code.save(tmp_path / "code"))
    assert same(loaded.state, code.state)
    solver = make_inversion(name).solver()
    x0 = model.encode(pictures)
    snapped = solver.read(solver.on_lattice(dict.fromkeys(solver.keys, x0), code.grid, code.grid.steps))
    assert torch.equal(ddim.reconstruct(model, loaded), model.decode(snapped))


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
