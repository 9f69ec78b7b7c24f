"""Coming forward with what a code keeps: embeddings, noise maps, pivots."""

import torch
from oracles import arc, conditional, gaussian, noise_like, prompts
from refusals import failed
from torch import Tensor

import ddim
from ddim.core.conditioning import Conditioning, PromptConditioning
from ddim.core.denoiser import Call
from ddim.core.guidance import Guidance, guided
from ddim.inversion import INVERSIONS
from ddim.inversion.extras import EXTRAS, acting, image_of, pinned, shared
from ddim.inversion.replay import PinnedSolver, StoredNoise, prompts_of, replay

DATA = conditional(gaussian(2, 3))
GRID, X = arc(6), noise_like((3, 2, 3))
BOTH = prompts(noise_like((3, 4, 6), seed=1), noise_like((3, 4, 6), seed=2))
GUIDED = guided(DATA, Guidance(3.0), BOTH)
DDIM = ddim.make_solver("ddim")


def test_with_nothing_kept_it_is_solve():
    assert torch.equal(replay(GUIDED, DDIM, {"x": X}, GRID, {})["x"], ddim.solve(GUIDED, DDIM, {"x": X}, GRID)["x"])


class Listens(type(DATA)):
    """The oracle, with the unconditional text that it was asked with, and when."""

    def __init__(self) -> None:
        super().__init__(DATA.base, DATA.lead)
        object.__setattr__(self, "asked", [])
        self.asked: list[tuple[float, Tensor]]

    def forward(self, x: Tensor, node: ddim.Node, cond: Conditioning, call: Call) -> Tensor:
        if call.branches == ("uncond",):
            self.asked.append((node.t, cond.tensors["text"]))
        return super().forward(x, node, cond, call)


def test_every_step_has_its_own_unconditional_text():
    texts, network = noise_like((3, 6, 4, 6), seed=3), Listens()
    extras = {"uncond_text": texts}
    denoise = guided(network, Guidance(3.0, batched_cfg=False), prompts_of(BOTH, GRID, extras))
    replay(denoise, DDIM, {"x": X}, GRID, extras)
    assert [t for t, _ in network.asked] == [GRID[i].t for i in range(6)]
    for i, (_, text) in enumerate(network.asked):
        assert torch.equal(text, texts[:, i])


def test_the_same_text_at_every_step_is_that_text():
    other = noise_like((3, 4, 6), seed=3)
    extras = {"uncond_text": other[:, None].expand(-1, 6, -1, -1)}
    kept = replay(guided(DATA, Guidance(3.0), prompts_of(BOTH, GRID, extras)), DDIM, {"x": X}, GRID, extras)["x"]
    plain = guided(DATA, Guidance(3.0), PromptConditioning(BOTH.cond, Conditioning({"text": other})))
    assert torch.equal(kept, ddim.solve(plain, DDIM, {"x": X}, GRID)["x"])
    assert not torch.allclose(kept, ddim.solve(GUIDED, DDIM, {"x": X}, GRID)["x"])


def test_between_nodes_the_noisier_one_s_text_is_taken():
    texts = torch.arange(6.0).view(1, 6, 1, 1)
    at = prompts_of(prompts(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)), GRID, {"uncond_text": texts})
    assert callable(at)
    times = (GRID[0].t + 1, GRID[0].t, (GRID[2].t + GRID[3].t) / 2, GRID[3].t, GRID[6].t)
    both = [at(ddim.Node(t, 0.8, 0.6)) for t in times]
    assert [float(b.uncond.tensors["text"]) for b in both if b.uncond is not None] == [0, 0, 2, 3, 5]
    assert all(float(b.cond.tensors["text"]) == 0 for b in both)


def test_without_tuned_text_the_conditions_are_what_they_were():
    assert prompts_of(BOTH, GRID, {"pivot": X}) is BOTH


def test_noise_maps_are_the_noise():
    maps, solver = noise_like((3, 6, 2, 3), seed=4), ddim.make_solver("ddim", {"eta": 1.0})
    drawn = iter(maps.unbind(1))
    want = ddim.solve(GUIDED, solver, {"x": X}, GRID, noise=lambda like: next(drawn))["x"]
    assert torch.equal(replay(GUIDED, solver, {"x": X}, GRID, {"noise": maps})["x"], want)


def test_too_few_noise_maps_say_so():
    with failed(None, 5):
        replay(GUIDED, ddim.make_solver("ddim", {"eta": 1.0}), {"x": X}, GRID, {"noise": noise_like((3, 5, 2, 3))})
    assert StoredNoise(torch.zeros(1, 1, 2, dtype=torch.float64))(torch.zeros(1, 2)).dtype == torch.float32


def test_each_step_ends_on_the_pivot_and_the_last_on_the_end():
    pivot, end = noise_like((3, 6, 2, 3), seed=5), noise_like((3, 1, 2, 3), seed=6)
    path: list[Tensor] = []
    replay(GUIDED, DDIM, {"x": X}, GRID, {"pivot": pivot, "end": end}, on_step=lambda i, state: path.append(state["x"]))
    for i in range(5):
        assert torch.equal(path[i], pivot[:, i])
    assert torch.equal(path[5], end[:, 0])


def test_only_the_rows_that_are_held_are_put_back():
    pivot = noise_like((1, 6, 2, 3), seed=5)
    state = ddim.solve(GUIDED, PinnedSolver(DDIM, {"pivot": pivot}, rows=slice(1, 2)), {"x": X}, GRID)["x"]
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


def test_the_image_of_a_code_is_where_a_stored_tensor_ends():
    path, end = noise_like((3, 6, 2, 3), seed=5), noise_like((3, 1, 2, 3), seed=6)
    for name in ("pivot", "asked", "trajectory"):
        assert torch.equal(image_of({name: path, "noise": path + 1}), path[:, -1])
    for name in ("end", "source"):
        assert torch.equal(image_of({name: end, "noise": path}), end[:, 0])
    assert image_of({"noise": path}) is None


def test_what_sampling_does_with_a_stored_tensor_is_listed():
    assert [name for name, extra in EXTRAS.items() if extra.pins] == ["pivot", "asked", "end"]
    kept = dict.fromkeys(EXTRAS, X)
    assert not {"trajectory", "source"} & set(acting(kept))
    assert set(shared(kept)) == {"uncond_text", "uncond_pooled", "noise", "anchor"}
    assert set(shared({"mine": X})) == {"mine"}  # of a method of one's own
    assert not pinned(["noise", "source", "mine"])
    assert all(set(method.keeps) <= set(EXTRAS) for method in INVERSIONS.values())
