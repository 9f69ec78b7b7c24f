"""SPDInv: the loss and its gradient, what it converges to, how each image stops by itself, and Ctrl-C."""

from dataclasses import replace
from typing import Any

import pytest
import tiny
import tiny_text
import torch
from oracles import Conditional, arc, conditional, gaussian, mixture, noise_like, prompts, straight
from refusals import not_finite, refused
from torch import Tensor

import ddim
from ddim.core.conditioning import Conditioning
from ddim.core.contracts import InversionInterrupted, InversionProblem
from ddim.core.denoiser import Call
from ddim.core.guidance import Guidance
from ddim.inversion import make_inversion
from ddim.inversion.spd import SPDInversion
from ddim.pipelines.events import LossEvent, StepEvent

DATA = conditional(mixture(2, 3), words=6)
GRID = ddim.make_grid(ddim.ddpm_linear(), 6)
BOTH = prompts(noise_like((3, 4, 6), seed=5), noise_like((1, 4, 6), seed=6).repeat(3, 1, 1))


class Counted(Conditional):
    """The oracle, with the rows of each call; optionally Ctrl-C at one call, or NaN below a time."""

    def __init__(self, stop_at: int | None = None, nan_above: float = 2000.0) -> None:
        super().__init__(DATA.base, DATA.lead)
        for name, value in (("rows", []), ("stop_at", stop_at), ("nan_above", nan_above)):
            object.__setattr__(self, name, value)
        self.rows: list[int]
        self.stop_at: int | None
        self.nan_above: float

    def forward(self, x: Tensor, node: ddim.Node, cond: Conditioning, call: Call) -> Tensor:
        self.rows.append(len(x))
        if len(self.rows) == self.stop_at:
            raise KeyboardInterrupt
        return super().forward(x, node, cond, call) * (float("nan") if node.t > self.nan_above else 1.0)


def scene(network: Any = DATA, **changed: Any) -> InversionProblem:
    return replace(InversionProblem(network, BOTH, Guidance(3.0)), **changed)


def images() -> Tensor:
    return DATA.base.draw(3) + DATA.move(BOTH.cond.tensors["text"])


@pytest.mark.parametrize("grid", [arc(1), straight(1)], ids=["arc", "flow"])
def test_the_first_update_goes_down_the_gradient_of_the_fixed_point_s_residual(grid):
    """On a Gaussian f is affine, f(x) = a x + b in each element; Adam's first update is lr times a sign."""
    data = gaussian(2, 3)
    x, (t, s) = data.draw(4), grid
    spread2 = t.alpha**2 * data.scale**2 + t.sigma**2
    if grid[0].alpha + grid[0].sigma == 1:
        slope = (t.sigma - t.alpha * data.scale**2) / spread2  # of the velocity eps - x0, as a function of x
        shift = -slope * t.alpha * data.mean - data.mean
        a, b = (t.sigma - s.sigma) * slope, x + (t.sigma - s.sigma) * shift
    else:
        part = t.sigma - t.alpha / s.alpha * s.sigma
        a, b = part * t.sigma / spread2, t.alpha / s.alpha * x - part * t.sigma / spread2 * t.alpha * data.mean
    guess = a * x + b
    residual = a * guess + b - guess
    heard: list[float] = []
    problem = replace(InversionProblem.of(data), on_loss=lambda _, loss: heard.append(loss))
    found = SPDInversion(1, 0.01, 0.0, source_uncond=False).invert(problem, x, grid)
    descent = guess - 0.01 * torch.sign((a - 1) * residual)
    assert torch.allclose(found.state["x"], descent, rtol=0, atol=1e-6)
    assert heard == pytest.approx([float(residual.square().mean())])


def test_the_search_is_the_paper_s_loop():
    """With torch's own Adam, and the gradient of the residual through the prediction, on one step of a mixture."""
    data, grid = mixture(2, 3), arc(1)
    x, (t, s) = data.draw(4), grid

    def back(guess: Tensor) -> Tensor:
        eps = data(guess, t).eps
        return t.alpha / s.alpha * (x - s.sigma * eps) + t.sigma * eps

    guess = back(x).requires_grad_()
    adam = torch.optim.Adam([guess], lr=0.02)
    for _ in range(6):
        adam.zero_grad()
        (back(guess) - guess).square().flatten(1).mean(1).sum().backward()
        adam.step()
    found = SPDInversion(6, 0.02, 0.0, source_uncond=False).invert(data, x, grid).state["x"]
    assert torch.allclose(found, guess.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", [arc(6), straight(6)], ids=["arc", "flow"])
def test_with_time_it_finds_what_the_fixed_point_iteration_finds(grid):
    data, x0 = mixture(2, 3), mixture(2, 3).draw(3)
    exact = make_inversion("ddim", {"iterations": 100}).invert(data, x0, grid).state["x"]
    plain = make_inversion("ddim").invert(data, x0, grid).state["x"]
    found = SPDInversion(1500, 1e-3, 1e-13, source_uncond=False).invert(data, x0, grid).state["x"]
    assert (found - exact).abs().max() < 1e-4
    assert (plain - exact).abs().max() > 1e-2


def test_each_image_stops_by_itself():
    """With a tolerance that some images meet, these have the bits of a run of their own, and cost no more calls."""
    network, method = Counted(), SPDInversion(20, 5e-3, 2e-4)
    together = method.invert(scene(network), images(), GRID)
    spent = 0
    for k in range(3):
        alone = Counted()
        one = scene(alone, prompts=BOTH[[k]])
        assert torch.allclose(method.invert(one, images()[k : k + 1], GRID).state["x"][0], together.state["x"][k])
        spent += sum(alone.rows)
    assert sum(network.rows) == spent
    assert 3 * GRID.steps * 2 <= spent < 3 * GRID.steps * method.nfe


def test_no_more_calls_than_it_states_and_weights_without_gradients():
    network = Counted()
    SPDInversion(3, stop=0.0).invert(scene(network), images(), GRID)
    assert network.rows == [3] * (SPDInversion(3).nfe * GRID.steps)
    model = tiny_text.model()
    code = ddim.invert(model, tiny_text.pictures(2), steps=3, method="spd", options={"inner": 2}, prompt="a cat")
    assert all(p.grad is None for p in model.network.parameters())
    assert not code.state["x"].requires_grad


def test_the_source_prompt_is_the_unconditional_one_unless_it_is_not_wanted():
    mine, theirs = (SPDInversion(2, source_uncond=on).invert(scene(), images(), GRID) for on in (True, False))
    assert torch.equal(mine.state["x"], theirs.state["x"])
    assert mine.prompts.uncond is not None
    assert theirs.prompts.uncond is not None
    assert BOTH.uncond is not None
    assert torch.equal(mine.prompts.uncond.tensors["text"], BOTH.cond.tensors["text"])
    assert torch.equal(theirs.prompts.uncond.tensors["text"], BOTH.uncond.tensors["text"])


def test_a_model_without_conditions_needs_the_option():
    model, pictures = tiny.model(), torch.rand(2, 1, 8, 8)
    with refused("method", "'spd'", "source_uncond = false"):
        ddim.invert(model, pictures, steps=2, method="spd")
    code = ddim.invert(model, pictures, steps=2, method="spd", options={"source_uncond": False, "inner": 2})
    assert torch.isfinite(ddim.reconstruct(model, code)).all()


@pytest.mark.parametrize("call", [7, 12, 25])
def test_an_inversion_goes_on_from_any_call_as_if_nothing_had_happened(call):
    method = SPDInversion(4, stop=0.0)
    whole = method.invert(scene(), images(), GRID)
    with pytest.raises(InversionInterrupted) as stop:
        method.invert(scene(Counted(call)), images(), GRID)
    assert stop.value.steps == (call - 1) // 5
    again = Counted()
    rest = method.invert(scene(again, resume=stop.value.kept), images(), GRID)
    assert torch.equal(rest.state["x"], whole.state["x"])
    assert len(again.rows) == 5 * (GRID.steps - stop.value.steps)


def test_ctrl_c_in_the_first_step_has_nothing_to_keep():
    with pytest.raises(KeyboardInterrupt) as stop:
        SPDInversion(4).invert(scene(Counted(2)), images(), GRID)
    assert not isinstance(stop.value, InversionInterrupted)


def test_an_interrupted_invert_resumes_bit_for_bit(tmp_path):
    settings: dict[str, Any] = {
        **{"method": "spd", "options": {"inner": 2, "stop": 0.0}, "steps": 4, "batch": 2},
        **{"prompt": ["a cat", "a dog", "a red mat"], "guidance": 3.0},
    }
    model, pictures, heard = tiny_text.model(), tiny_text.pictures(3), 0

    def stop_there(event: object) -> None:
        nonlocal heard
        heard += isinstance(event, LossEvent)
        if heard == 6:
            raise KeyboardInterrupt

    whole = ddim.invert(model, pictures, **settings)
    with pytest.raises(ddim.Interrupted) as stop:
        ddim.invert(model, pictures, on_event=stop_there, **settings)
    partial = ddim.LatentCode.load(stop.value.partial.save(tmp_path / "a.partial"))
    assert len(partial) == 3
    done: list[tuple[int, int]] = []
    rest = ddim.invert(
        model,
        pictures,
        resume=partial,
        on_event=lambda e: done.append((e.done, e.total)) if isinstance(e, StepEvent) else None,
        **settings,
    )
    assert (done[0][0], done[-1]) == (7, (8, 8))
    assert torch.equal(rest.state["x"], whole.state["x"])
    with refused("resume", "images"):
        ddim.invert(model, tiny_text.pictures(3, seed=1), resume=partial, **settings)


def test_it_names_the_step_that_is_no_number():
    with not_finite(4, 6):
        SPDInversion(2).invert(scene(Counted(nan_above=600)), images(), GRID)


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"inner": 0}, refused("inner", 0)),
        ({"lr": 0.0}, refused("lr", 0)),
        ({"lr": float("inf")}, refused("lr", "inf")),
        ({"stop": -1.0}, refused("stop", -1)),
        ({"stop": float("nan")}, refused("stop", "nan")),
    ],
    ids=str,
)
def test_bad_options(options, refusal):
    with refusal:
        make_inversion("spd", options)
