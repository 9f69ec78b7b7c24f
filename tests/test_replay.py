"""Coming forward with what a code keeps: embeddings, noise maps, pivots."""

from typing import Any

import pytest
import torch
from oracles import arc, conditional, gaussian, noise_like
from torch import Tensor

import ddim
from ddim._utils.errors import DDIMError
from ddim.core.denoiser import bound
from ddim.core.guidance import Guidance, classifier_free
from ddim.core.prediction import Pair
from ddim.inversion.replay import KeptNoise, PinnedSolver, replay, with_nulls

DATA = conditional(gaussian(2, 3))
GRID, X = arc(6), noise_like((3, 2, 3))
WORDS, NULL = noise_like((3, 4, 6), seed=1), noise_like((3, 4, 6), seed=2)
GUIDED = bound(classifier_free(DATA, Guidance(3.0)), {"words": WORDS, "null": NULL})
DDIM = ddim.make_solver("ddim")


def test_with_nothing_kept_it_is_solve():
    assert torch.equal(replay(GUIDED, DDIM, {"x": X}, GRID, {})["x"], ddim.solve(GUIDED, DDIM, {"x": X}, GRID)["x"])


def test_every_step_has_its_own_null():
    nulls = noise_like((3, 6, 4, 6), seed=3)
    asked: list[tuple[float, Tensor]] = []

    def listen(x: Tensor, node: ddim.Node, cond: Any = None) -> Pair:
        asked.append((node.t, cond["null"]))
        return Pair(x, x)

    replay(listen, DDIM, {"x": X}, GRID, {"null": nulls})
    assert [t for t, _ in asked] == [GRID[i].t for i in range(6)]
    for i, (_, null) in enumerate(asked):
        assert torch.equal(null, nulls[:, i])


def test_the_same_null_at_every_step_is_that_null():
    other = noise_like((3, 4, 6), seed=3)
    kept = replay(GUIDED, DDIM, {"x": X}, GRID, {"null": other[:, None].expand(-1, 6, -1, -1)})["x"]
    plain = bound(classifier_free(DATA, Guidance(3.0)), {"words": WORDS, "null": other})
    assert torch.equal(kept, ddim.solve(plain, DDIM, {"x": X}, GRID)["x"])
    assert not torch.allclose(kept, ddim.solve(GUIDED, DDIM, {"x": X}, GRID)["x"])


def test_between_nodes_the_noisier_one_s_null_is_taken():
    nulls = torch.arange(6.0).view(1, 6, 1, 1)
    seen: list[float] = []

    def listen(x: Tensor, node: ddim.Node, cond: Any = None) -> Pair:
        seen.append(float(cond["null"]))
        return Pair(x, x)

    denoise = with_nulls(listen, GRID, nulls)
    for t in (GRID[0].t + 1, GRID[0].t, (GRID[2].t + GRID[3].t) / 2, GRID[3].t, GRID[6].t):
        denoise(X, ddim.Node(t, 0.8, 0.6))
    assert seen == [0, 0, 2, 3, 5]


def test_noise_maps_are_the_noise():
    maps, solver = noise_like((3, 6, 2, 3), seed=4), ddim.make_solver("ddim", {"eta": 1.0})
    drawn = iter(maps.unbind(1))
    want = ddim.solve(GUIDED, solver, {"x": X}, GRID, noise=lambda like: next(drawn))["x"]
    assert torch.equal(replay(GUIDED, solver, {"x": X}, GRID, {"noise": maps})["x"], want)


def test_too_few_noise_maps_say_so():
    with pytest.raises(DDIMError, match="keeps 5 noise maps; its solver asked for more"):
        replay(GUIDED, ddim.make_solver("ddim", {"eta": 1.0}), {"x": X}, GRID, {"noise": noise_like((3, 5, 2, 3))})
    assert KeptNoise(torch.zeros(1, 1, 2, dtype=torch.float64))(torch.zeros(1, 2)).dtype == torch.float32


def test_each_step_ends_on_the_pivot_and_the_last_on_the_end():
    pivot, end = noise_like((3, 6, 2, 3), seed=5), noise_like((3, 1, 2, 3), seed=6)
    path: list[Tensor] = []
    replay(GUIDED, DDIM, {"x": X}, GRID, {"pivot": pivot, "end": end}, on_step=lambda i, state: path.append(state["x"]))
    for i in range(5):
        assert torch.equal(path[i], pivot[:, i])
    assert torch.equal(path[5], end[:, 0])


def test_only_the_rows_that_are_held_are_put_back():
    pivot = noise_like((1, 6, 2, 3), seed=5)
    state = ddim.solve(GUIDED, PinnedSolver(DDIM, {"pivot": pivot}, rows=[1]), {"x": X}, GRID)["x"]
    free = ddim.solve(GUIDED, DDIM, {"x": X}, GRID)["x"]
    assert torch.equal(state[1], pivot[0, -1])
    assert torch.equal(state[[0, 2]], free[[0, 2]])


def test_a_held_solver_is_the_solver_otherwise():
    held = PinnedSolver(ddim.make_solver("ddim", {"eta": 0.5}), {})
    assert (held.name, held.nfe, held.stochastic) == ("ddim", 1, True)
    assert torch.equal(held.read(held.init(X, GRID)), X)


def test_holding_does_not_write_into_the_state_before():
    before = X.clone()
    replay(GUIDED, DDIM, {"x": X}, GRID, {"pivot": noise_like((3, 6, 2, 3), seed=5)})
    assert torch.equal(X, before)
