"""A grid knows its path: nodes within its steps, remembered, in both directions and from a file."""

import copy
import math
import pickle

import pytest

import ddim
from ddim.core.grid import grid_at

PATHS = {
    "ddpm": ddim.ddpm_linear(),
    "stable-diffusion": ddim.TablePath(ddim.scaled_linear_alpha_bar(), "first"),
    "cosine": ddim.TablePath(ddim.cosine_alpha_bar()),
    "zero-terminal-snr": ddim.TablePath(ddim.zero_terminal_snr(ddim.scaled_linear_alpha_bar())),
    "ve": ddim.VEPath(),
    "rectified-flow": ddim.RectifiedFlow(),
}
every_path = pytest.mark.parametrize("path", PATHS)
every_spacing = pytest.mark.parametrize("spacing", ddim.SPACINGS)


def coordinate(path: str, node: ddim.Node) -> float:
    return node.sigma if path == "rectified-flow" else node.ratio


@every_spacing
@every_path
def test_a_node_within_a_step_lies_at_its_part_of_the_coordinate(path, spacing):
    grid = ddim.make_grid(PATHS[path], 7, spacing)
    for i in range(7):
        begin, end = coordinate(path, grid[i]), coordinate(path, grid[i + 1])
        for part in (0.1, 0.5, 2 / 3):
            node = grid.between(i, part)
            assert grid[i + 1].t < node.t < grid[i].t
            assert node == PATHS[path].node(node.t)
            if math.isfinite(begin):
                assert coordinate(path, node) == pytest.approx(begin + part * (end - begin), rel=1e-8)


@pytest.mark.parametrize("steps", [1, 5])
def test_a_step_from_alpha_0_is_parted_as_rectified_flow_is(steps):
    table = ddim.make_grid(PATHS["zero-terminal-snr"], steps)
    assert table[0].alpha == 0
    node = table.between(0, 0.25)
    end = table[1].sigma / (table[1].alpha + table[1].sigma)
    assert node.sigma / (node.alpha + node.sigma) == pytest.approx(1 + 0.25 * (end - 1))
    back = table.reversed()
    assert back.between(steps - 1, 0.75) == node


@every_path
def test_the_ends_of_a_step_are_its_own_nodes(path):
    for grid in (ddim.make_grid(PATHS[path], 3), ddim.Grid(ddim.make_grid(PATHS[path], 3).nodes)):
        for i in range(3):
            assert grid.between(i, 0) is grid[i]
            assert grid.between(i, 1) is grid[i + 1]
        assert not grid.inner


@every_path
def test_a_node_is_remembered(path):
    grid = ddim.make_grid(PATHS[path], 3)
    assert grid.inner == {}
    node = grid.between(1, 0.5)
    assert grid.between(1, 0.5) is node
    assert grid.inner == {(1, 0.5): node}
    assert ddim.make_grid(PATHS[path], 3).inner == {}


@every_path
def test_a_reversed_grid_has_the_same_nodes_within_its_steps(path):
    grid = ddim.make_grid(PATHS[path], 5)
    back = grid.reversed()
    for i in range(5):
        for part in (0.25, 0.5):
            assert back.between(i, part) is grid.between(4 - i, 1 - part)
        assert back.between(i, 0) is back[i]
        assert back.between(i, 1) is back[i + 1]
    assert back.reversed() is grid
    assert len(grid.inner) == len(back.inner) == 10


def test_nodes_that_were_given_are_returned_without_a_path():
    made = ddim.make_grid(PATHS["ddpm"], 4)
    made.between(2, 0.5)
    other = ddim.Node(1.0, 2.0, 3.0)  # nowhere near: what is stored is what is replayed
    read = ddim.Grid(made.nodes, made.spacing, inner={**made.inner, (0, 0.5): other})
    assert read.between(2, 0.5) == made.between(2, 0.5)
    assert read.between(0, 0.5) is other
    assert read.reversed().between(3, 0.5) is other
    for grid, i in ((read, 1), (read.reversed(), 2)):
        with pytest.raises(ddim.InputError) as caught:
            grid.between(i, 0.5)
        assert caught.value.parameter == "grid"


def test_what_is_given_is_not_written_to():
    mine: dict = {}
    ddim.Grid(ddim.make_grid(PATHS["ddpm"], 2).nodes, path=PATHS["ddpm"], inner=mine).between(0, 0.5)
    assert mine == {}


@pytest.mark.parametrize("i", [-1, 3, 1.5, True, "0"])
def test_a_step_that_is_not_there(i):
    grid = ddim.make_grid(PATHS["ddpm"], 3)
    for ask in (lambda: grid.between(i, 0.5), lambda: ddim.Grid(grid.nodes, inner={(i, 0.5): grid[0]})):
        with pytest.raises(ddim.InputError) as caught:
            ask()
        assert caught.value.parameter == "i"


@pytest.mark.parametrize("part", [-0.1, 1.1, math.nan, math.inf, None, "half", True])
def test_a_part_that_is_none(part):
    grid = ddim.make_grid(PATHS["ddpm"], 3)
    for ask in (lambda: grid.between(0, part), lambda: grid.reversed().between(0, part)):
        with pytest.raises(ddim.InputError) as caught:
            ask()
        assert caught.value.parameter == "part"


def test_two_grids_are_equal_without_regard_to_path_and_inner_nodes():
    one, other = ddim.make_grid(PATHS["ddpm"], 3), ddim.make_grid(ddim.ddpm_linear(), 3)
    one.between(0, 0.5)
    assert one == other == ddim.Grid(one.nodes, one.spacing)
    assert hash(one) == hash(other)
    assert "path" not in repr(one)
    assert one != one.reversed()


@every_spacing
@every_path
def test_every_spacing_knows_its_path(path, spacing):
    assert ddim.make_grid(PATHS[path], 3, spacing).path is PATHS[path]
    assert ddim.make_grid(PATHS[path], spacing=[PATHS[path].t_max]).path is PATHS[path]
    assert grid_at(PATHS[path], [PATHS[path].t_max], "mine").spacing == "mine"


@every_path
def test_the_rest_of_a_grid(path):
    grid = ddim.make_grid(PATHS[path], 5)
    kept, dropped = grid.between(3, 0.5), grid.between(1, 0.5)
    rest = grid.rest(2)
    assert (rest.nodes, rest.spacing, rest.path) == (grid.nodes[2:], grid.spacing, grid.path)
    assert rest.between(1, 0.5) is kept
    assert dropped not in rest.inner.values()
    back = grid.reversed()
    assert back.rest(1).nodes == back.nodes[1:]
    assert back.rest(1).between(0, 0.5) is kept
    assert back.rest(1).reversed().nodes == grid.nodes[:-1]
    for whole in (grid, back):
        with pytest.raises(ddim.InputError):
            whole.rest(5)


@every_path
def test_a_grid_can_be_copied(path):
    grid = ddim.make_grid(PATHS[path], 3)
    node = grid.between(0, 0.5)
    for made in (copy.deepcopy(grid), pickle.loads(pickle.dumps(grid))):
        assert made == grid
        assert made.inner == {(0, 0.5): node}
        assert made.between(1, 0.5) == grid.between(1, 0.5)
        assert made.reversed().between(1, 0.5) == grid.between(1, 0.5)
