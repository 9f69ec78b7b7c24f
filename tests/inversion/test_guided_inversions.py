"""Null-text, negative-prompt, direct, edit-friendly inversion: their formulas, their thrift, Ctrl-C and bad input."""

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import tiny
import tiny_text
import torch
from oracles import Conditional, conditional, gaussian, noise_like, prompts
from refusals import not_finite, refused, unknown
from torch import Tensor

import ddim
from ddim._utils.errors import InputError
from ddim.core.conditioning import Conditioning, PromptConditioning
from ddim.core.contracts import InversionInterrupted, InversionProblem
from ddim.core.denoiser import Call
from ddim.core.guidance import Guidance, guided
from ddim.core.noise import SeededNoise
from ddim.core.process import eta_std
from ddim.inversion import INVERSIONS, make_inversion, null_text
from ddim.inversion.base import pivot_of
from ddim.inversion.edit_friendly import EditFriendly
from ddim.inversion.negative_prompt import along_arc
from ddim.inversion.null_text import NullText
from ddim.inversion.replay import prompts_of, replay
from ddim.inversion.tuning import GuidedStep
from ddim.pipelines.events import CodeEvent, LossEvent, StepEvent

DATA = conditional(gaussian(2, 3), words=8)  # more numbers than pixels, so that any pivot can be landed on
GRID = ddim.make_grid(ddim.ddpm_linear(), 12)
PROMPTS = ["a cat", "a dog", "a red mat"]


class Counted(Conditional):
    """The oracle, with images asked for under each branch; optionally Ctrl-C at one call."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__(DATA.base, DATA.lead)
        for name, value in (("branches", []), ("stop_at", stop_at)):
            object.__setattr__(self, name, value)
        self.branches: list[tuple[str, int]]
        self.stop_at: int | None

    def forward(self, x: Tensor, node: ddim.Node, cond: Conditioning, call: Call) -> Tensor:
        self.branches.append(("+".join(call.branches), len(x)))
        if len(self.branches) == self.stop_at:
            raise KeyboardInterrupt
        return super().forward(x, node, cond, call)

    def count(self, branch: str) -> int:
        return sum(n for name, n in self.branches if name == branch)


def cond(count: int = 3, dtype: torch.dtype = torch.float64) -> PromptConditioning:
    return prompts(
        noise_like((count, 4, 8), seed=5).to(dtype), noise_like((1, 4, 8), seed=6).to(dtype).repeat(count, 1, 1)
    )


def text(both: PromptConditioning) -> Tensor:
    return both.cond.tensors["text"]


def opposite(both: PromptConditioning) -> Tensor:
    assert both.uncond is not None
    return both.uncond.tensors["text"]


def scene(count: int = 3, weight: float = 7.5, network: Any = DATA, **changed: Any) -> InversionProblem:
    return replace(
        InversionProblem(network, cond(count), Guidance(weight), 1.0, noise=SeededNoise(range(count))), **changed
    )


def images(count: int = 3) -> Tensor:
    return DATA.base.draw(count) + DATA.move(text(cond(count)))


def tensors(result: Any) -> dict[str, Tensor]:
    """All of a code's, or of what an inversion found, by group and name."""
    both = result.conditions if isinstance(result, ddim.LatentCode) else result.prompts
    groups = {"state": result.state, "cond": both.cond.tensors, "extras": result.extras, "calls": result.calls}
    groups["uncond"] = {} if both.uncond is None else both.uncond.tensors
    return {f"{group}.{key}": value for group, named in groups.items() for key, value in named.items()}


def same(a: Any, b: Any) -> bool:
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- null-text -------------------------------------------------------------------------------------------------------


def plain_reading(at: InversionProblem, x0: Tensor, inner: int, lr: float = 1e-2) -> tuple[Tensor, list[float]]:
    """Algorithm 1 with torch's own Adam, one image, without early stop; and the loss after each step."""
    pivot, w = pivot_of(at, x0, GRID), at.guidance.weight
    x, null, nulls, losses = pivot[:, 0], opposite(at.prompts).clone(), [], []

    def step(i: int) -> Tensor:
        t, s = GRID[i], GRID[i + 1]
        uncond, cond = (DATA.pair(x, t, Conditioning({"text": e})).eps for e in (null, text(at.prompts)))
        eps = uncond + w * (cond - uncond)
        return s.alpha * (x - t.sigma * eps) / t.alpha + s.sigma * eps

    for i in range(GRID.steps):
        null = null.clone().requires_grad_()
        adam = torch.optim.Adam([null], lr=lr * (1 - i / 100))
        for _ in range(inner):
            adam.zero_grad()
            torch.nn.functional.mse_loss(step(i), pivot[:, i + 1]).backward()
            adam.step()
        null = null.detach()
        x = step(i)
        nulls.append(null)
        losses.append(float((x - pivot[:, i + 1]).square().mean()))
    return torch.stack(nulls, dim=1), losses


def test_null_text_is_the_paper_s_loop():
    heard: list[tuple[int, float]] = []
    at = scene(1, on_loss=lambda i, loss: heard.append((i, loss)))
    nulls, losses = plain_reading(at, images(1), inner=3)
    found = NullText(inner=3, stop=0, rise=0).invert(at, images(1), GRID)
    assert torch.allclose(found.extras["uncond_text"], nulls, rtol=0, atol=1e-9)
    assert [i for i, _ in heard] == list(range(GRID.steps))
    assert [loss for _, loss in heard] == pytest.approx(losses, rel=1e-6)


def test_null_text_keeps_the_last_embedding_as_the_paper_does():
    """With a rate that overshoots the last is not the best met; Algorithm 1 keeps it all the same."""
    at, met = scene(1), list[float]()
    rate = 3.0
    nulls, _ = plain_reading(at, images(1), inner=3, lr=rate)
    found = NullText(inner=3, lr=rate, stop=0, rise=0).invert(at, images(1), GRID)
    assert torch.allclose(found.extras["uncond_text"], nulls, rtol=0, atol=1e-6)
    pivot = pivot_of(at, images(1), GRID)
    step = GuidedStep(at, pivot[:, 0], GRID[0], GRID[1], pivot[:, 1])
    for null in (opposite(at.prompts), nulls[:, 0]):
        met.append(float(step(null, torch.tensor([0]), need_gradient=False)[1]))
    assert met[1] > met[0]  # the first one had been better


def test_enough_inner_updates_land_on_the_pivot():
    found = NullText(inner=300, lr=0.05, stop=1e-6, rise=0).invert(scene(), images(), GRID)
    denoise = guided(DATA, scene().guidance, prompts_of(found.prompts, GRID, found.extras))
    back = replay(denoise, ddim.make_solver("ddim"), found.state, GRID, found.extras)["x"]
    assert (back - images()).square().mean() < 2e-6
    untuned = ddim.solve(scene().denoiser(), ddim.make_solver("ddim"), found.state, GRID)["x"]
    assert (untuned - images()).square().mean() > 1e-2


def test_no_network_call_is_needless():
    pivot, steps = 3 * GRID.steps, 3 * GRID.steps
    near = Counted()
    NullText(stop=1e9).invert(scene(network=near), images(), GRID)  # whatever it is, it is near enough
    assert (near.count("cond"), near.count("uncond")) == (pivot + steps, steps)
    prompt = Counted()
    NullText(stop=1e9, start="prompt").invert(scene(network=prompt), images(), GRID)
    assert (prompt.count("cond"), prompt.count("uncond")) == (pivot + steps, 0)
    far = Counted()
    NullText(stop=0, rise=0, inner=4).invert(scene(network=far), images(), GRID)
    assert (far.count("cond"), far.count("uncond")) == (pivot + steps, steps * 5)
    assert len(far.branches) <= NullText(inner=4).nfe * GRID.steps
    for counted in (near, prompt, far):  # never both in one: the prompt's branch is asked for once a step
        assert {branch for branch, _ in counted.branches} <= {"cond", "uncond"}


def test_an_image_that_is_near_enough_is_neither_asked_for_nor_changed():
    counted = Counted()
    at, pivot = scene(2, network=counted), pivot_of(scene(2), images(2), GRID)
    step = GuidedStep(at, pivot[:, 8], GRID[8], GRID[9], pivot[:, 9])
    null = torch.stack([text(at.prompts)[0], opposite(at.prompts)[1]])  # with its own text the first lands by itself
    by_itself = step.without_call(null)[1]
    assert by_itself[0] < by_itself[1] == torch.inf
    method = NullText(stop=float(by_itself[0]) * 1.001, rise=0, inner=3)
    tuned, _, loss = method._tune(step, null, 8, GRID.steps)
    assert torch.equal(tuned[0], null[0])
    assert loss[0] == by_itself[0]
    assert not torch.equal(tuned[1], null[1])
    assert counted.count("uncond") == 4


@pytest.mark.parametrize("scope", ["step", "global"])
def test_a_whole_batch_that_learns_late_of_its_end_tunes_the_same(scope: str, monkeypatch: pytest.MonkeyPatch):
    """What a GPU does, for the sake of its graphs: all rows stay in the batch, and the flag is read one update late."""
    method = NullText(inner=6, lr=0.05, stop=0.02, rise=0, scope=scope)
    near, whole = Counted(), Counted()
    few = method.invert(scene(network=near), images(), GRID)

    class OneLate:
        def __init__(self) -> None:
            self.before = True

        def __call__(self, flag: Tensor) -> bool:
            before, self.before = self.before, bool(flag)
            return before

    monkeypatch.setattr(null_text, "rows_to_compute", lambda rows: torch.arange(len(rows)))
    monkeypatch.setattr(null_text, "LateFlag", OneLate)
    many = method.invert(scene(network=whole), images(), GRID)
    assert whole.count("uncond") > near.count("uncond")  # some images stopped before others
    one, other = (run.extras["uncond_text"] if scope == "step" else opposite(run.prompts) for run in (few, many))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert not torch.equal(other[0], other[1])


def test_the_rate_and_the_threshold_are_the_paper_s_and_stay_above_zero():
    method = NullText()
    assert [method.rate(i, 50) for i in (0, 49)] == pytest.approx([1e-2, 1e-2 * 0.51])
    assert [method.enough(i, 50) for i in (0, 49)] == pytest.approx([1e-5, 1e-5 + 49 * 2e-5])
    assert method.rate(100, 101) > 0
    assert method.rate(999, 1000) > 0
    assert method.enough(999, 1000) < method.enough(99, 100) + 1e-4


def test_outside_the_interval_nothing_is_tuned():
    at = replace(scene(), guidance=Guidance(7.5, interval=(0.0, 0.5)))
    nulls = NullText().invert(at, images(), GRID).extras["uncond_text"]
    outside = [i for i in range(GRID.steps) if GRID[i].t > 500]
    assert outside
    assert torch.equal(nulls[:, outside], opposite(at.prompts)[:, None].expand(-1, len(outside), -1, -1))
    assert not torch.equal(nulls[:, -1], opposite(at.prompts))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scope", ["step", "global"])
def test_the_embedding_is_float32_whatever_the_network_computes_in(dtype, scope):
    class Half(Conditional):
        def forward(self, x: Tensor, node: ddim.Node, cond: Conditioning, call: Call) -> Tensor:
            rounded = Conditioning({"text": cond.tensors["text"].to(dtype)})
            return super().forward(x.to(dtype), node, rounded, call).to(x.dtype)

    at = replace(scene(network=Half(DATA.base, DATA.lead)), prompts=cond(dtype=torch.float32))
    found = NullText(scope=scope, inner=5).invert(at, images().float(), GRID)
    null = found.extras["uncond_text"] if scope == "step" else opposite(found.prompts)
    assert null.dtype == torch.float32
    assert torch.isfinite(null).all()
    moved = null - (opposite(at.prompts)[:, None] if scope == "step" else opposite(at.prompts))
    assert 0 < moved.abs().max() < 5


def test_global_lowers_the_sum_of_the_distances():
    """Measured here, not heard: what the tuned embedding leaves of the distances that the untuned one has."""
    heard: list[float] = []
    found = NullText(scope="global").invert(scene(on_loss=lambda q, loss: heard.append(loss)), images(), GRID)
    pivot = pivot_of(scene(), images(), GRID)

    def left(null: Tensor) -> Tensor:
        """The sum over the steps of the squared distances to the pivot, each from the pivot's own node, [N]."""
        denoise = replace(scene(), prompts=prompts(text(cond()), null)).denoiser()
        out = torch.zeros(len(pivot)).double()
        for i in range(GRID.steps):
            at = ddim.make_solver("ddim").step(denoise, {"x": pivot[:, i]}, GRID, i, None)["x"]
            out += (at - pivot[:, i + 1]).square().flatten(1).mean(1)
        return out

    assert bool((left(opposite(found.prompts)) < left(opposite(cond())) / 2).all())
    assert heard[-1] < heard[0] / 2
    assert found.extras == {}
    assert opposite(found.prompts).shape == opposite(cond()).shape


def test_null_text_names_the_step_that_is_no_number():
    class Broken(Conditional):
        def forward(self, x: Tensor, node: ddim.Node, cond: Conditioning, call: Call) -> Tensor:
            said = super().forward(x, node, cond, call)
            return said * float("nan") if call.branches == ("uncond",) and node.t < 500 else said

    with not_finite(8, 12):
        NullText().invert(scene(network=Broken(DATA.base, DATA.lead)), images(), GRID)


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["step", "global"])
@pytest.mark.parametrize("call", [13, 40, 71, 90])
def test_an_inversion_goes_on_from_any_call_as_if_nothing_had_happened(scope, call):
    method, x0 = NullText(scope=scope, inner=6), images()
    whole = method.invert(scene(), x0, GRID)
    with pytest.raises(InversionInterrupted) as stop:
        method.invert(scene(network=Counted(call)), x0, GRID)
    again = Counted()
    rest = method.invert(scene(network=again, resume=stop.value.kept), x0, GRID)
    assert same(rest, whole)
    # the pivot is not sought again, and of the steps that are done nothing is asked
    assert again.count("cond") == 3 * (GRID.steps - stop.value.steps if scope == "step" else GRID.steps)


def test_ctrl_c_before_the_pivot_is_there_has_nothing_to_keep():
    with pytest.raises(KeyboardInterrupt) as stop:
        NullText().invert(scene(network=Counted(5)), images(), GRID)
    assert not isinstance(stop.value, InversionInterrupted)


OPTIONS = {"inner": 2, "start": "empty"}


def interrupted(at: int, options: dict[str, Any] | None = None, **changed: Any) -> ddim.LatentCode:
    """What ``ddim.invert`` keeps of three images in batches of two when Ctrl-C comes at the at-th step."""
    told = 0

    def stop_there(event: object) -> None:
        nonlocal told
        told += isinstance(event, LossEvent)
        if told == at:
            raise KeyboardInterrupt

    with pytest.raises(ddim.Interrupted) as stop:
        invert(on_event=stop_there, options=options or OPTIONS, **changed)
    return stop.value.partial


def invert(**changed: Any) -> ddim.LatentCode:
    settings = {"method": "null-text", "options": OPTIONS, "steps": 4, "guidance": 3.0, "batch": 2, "prompt": PROMPTS}
    return ddim.invert(tiny_text.model(), changed.pop("images", tiny_text.pictures(3)), **(settings | changed))


@pytest.mark.parametrize("options", [OPTIONS, {"inner": 4, "scope": "global"}], ids=["step", "global"])
@pytest.mark.parametrize("at", [2, 6])
def test_an_interrupted_invert_resumes_bit_for_bit(at, options, tmp_path):
    whole = invert(options=options)
    partial = ddim.LatentCode.load(interrupted(at, options).save(tmp_path / "a.partial"))
    assert len(partial) == (2 if at == 2 else 3)
    done: list[tuple[int, int]] = []
    batches: list[int] = []

    def hear(event: object) -> None:
        if isinstance(event, StepEvent):
            done.append((event.done, event.total))
        if isinstance(event, CodeEvent):
            batches.append(event.first)

    rest = invert(options=options, resume=partial, batch=1, on_event=hear)
    assert done[0][0] == at + 1
    assert done[-1] == (8, 8)
    assert batches == [0, 2]  # what was done before is told too
    assert rest.prompts == whole.prompts
    assert rest.settings == whole.settings
    assert same(rest, whole)


def test_an_interrupted_invert_resumes_twice():
    once = interrupted(2)
    twice = interrupted(3, resume=once)
    assert twice.settings["partial"] == {"images": 3, "done": 2, "steps": 1, "batch": 2}
    assert torch.equal(invert(resume=twice).extras["uncond_text"], invert().extras["uncond_text"])


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        ({"guidance": 4.0}, refused("resume", "guidance", 3.0, 4.0)),
        ({"options": {"inner": 3}}, refused("resume", "settings", "'inner': 2", "'inner': 3")),
        ({"steps": 5}, refused("resume", "grid")),
        ({"method": "direct", "options": None}, refused("resume", "method", "null-text", "direct")),
        ({"prompt": "a cat"}, refused("resume", "prompts", "'a cat'", "'a dog'")),
        ({"images": tiny_text.pictures(3, seed=1)}, refused("resume", "images")),
        ({"images": tiny_text.pictures(2), "prompt": PROMPTS[:2]}, refused("resume", 3, 2)),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_resuming_with_something_else_says_what(changed, refusal):
    with refusal:
        invert(resume=interrupted(2), **changed)


def test_a_whole_code_is_nothing_to_resume_and_a_part_nothing_to_reconstruct():
    with refused("resume"):
        invert(resume=invert())
    with refused("code", 0, 3, 2, 4):
        ddim.reconstruct(tiny_text.model(), interrupted(2))


# --- negative-prompt and direct --------------------------------------------------------------------------------------


def test_with_the_prompt_as_its_own_opposite_the_weight_has_no_say():
    found = make_inversion("negative-prompt").invert(scene(), images(), GRID)
    ends = [
        ddim.solve(
            replace(scene(weight=w), prompts=found.prompts).denoiser(), ddim.make_solver("ddim"), found.state, GRID
        )["x"]
        for w in (1.0, 7.5, 20.0)
    ]
    for end in ends[1:]:
        assert torch.allclose(end, ends[0], rtol=0, atol=1e-9)


def test_toward_empty_is_an_arc_from_the_prompt_to_the_negative():
    a, b = text(cond()), opposite(cond())
    assert torch.equal(along_arc(a, b, 0), a)
    assert torch.equal(along_arc(a, b, 1), b)
    right = along_arc(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 1 / 3)
    assert torch.allclose(right, torch.tensor([[3**0.5 / 2, 0.5]]))
    assert torch.allclose(along_arc(a, a * 2, 0.25), a * 1.25)  # no angle between them: a straight line
    found = make_inversion("negative-prompt", {"toward_empty": 0.4}).invert(scene(), images(), GRID)
    assert torch.equal(opposite(found.prompts), along_arc(a, b, 0.4))


def test_direct_keeps_every_node_of_the_pivot():
    found = make_inversion("direct").invert(scene(), images(), GRID)
    pivot = pivot_of(scene(), images(), GRID)
    assert torch.equal(found.state["x"], pivot[:, 0])
    assert torch.equal(found.extras["pivot"], pivot[:, 1:])
    assert torch.equal(pivot[:, -1], images())
    x, t, s = pivot[:, 4], GRID[3], GRID[4]  # plain DDIM inversion at weight 1, asked at the destination
    eps = DATA.pair(x, t, cond().cond).eps
    assert torch.allclose(pivot[:, 3], t.alpha / s.alpha * (x - s.sigma * eps) + t.sigma * eps)


@pytest.mark.parametrize("name", [n for n, m in INVERSIONS.items() if m.exact and m.keeps and not m.needs])
def test_models_without_text_take_it_too(name):
    model, pictures = tiny.model(), torch.rand(3, 1, 8, 8)
    done: list[tuple[int, int]] = []

    def hear(event: object) -> None:
        if isinstance(event, StepEvent):
            done.append((event.done, event.total))

    code = ddim.invert(model, pictures, steps=5, method=name, batch=2, on_event=hear)
    assert torch.allclose(ddim.reconstruct(model, code), pictures, atol=1e-6)
    assert done[-1][0] <= done[-1][1] == 10


# --- edit-friendly ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_noise_maps_are_what_the_posterior_lacks_with_eta_squared(eta):
    at, x0 = scene(inversion_guidance=3.5), images()
    found = EditFriendly(eta, skip=4).invert(at, x0, GRID)
    nodes, noise = GRID.nodes[4:], SeededNoise(range(3))
    assert found.grid.nodes == nodes
    noised = [node.alpha * x0 + node.sigma * noise(x0) for node in nodes[-2::-1]][::-1]  # each from its own noise
    assert torch.equal(found.state["x"], noised[0])
    x = noised[0]
    for i, (t, s) in enumerate(pairwise(nodes[:-1])):
        pair, std = at.denoiser(3.5)(x, t), eta_std(eta, t, s)
        mean = s.alpha * pair.x0 + (s.sigma**2 - std**2) ** 0.5 * pair.eps
        x = mean + std * found.extras["noise"][:, i]
        assert torch.allclose(x, noised[i + 1], rtol=0, atol=1e-12)
    assert not found.extras["noise"][:, -1].any()
    assert torch.equal(found.extras["end"][:, 0], x0)


def test_a_seed_gives_the_same_noise_to_the_nodes_that_two_skips_share():
    few, many = (EditFriendly(skip=k).invert(scene(), images(), GRID) for k in (0, 5))
    assert torch.allclose(few.extras["noise"][:, 5:], many.extras["noise"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("path", "start", "told", "given"),
    [
        # TurboEdit's grid of 4 steps, in timesteps: those of the network, and those of the noise
        (ddim.TablePath(ddim.scaled_linear_alpha_bar(), "first"), 0, (799, 599, 399, 199), (599, 399, 199, 0)),
        (ddim.TablePath(ddim.scaled_linear_alpha_bar()), 1, (799, 599, 399, 199), (599, 399, 199, 0)),
        (ddim.TablePath(ddim.scaled_linear_alpha_bar(), "first"), 0, (799, 499, 199), (599, 299, 0)),
        (ddim.RectifiedFlow(), 0, (0.8, 0.5, 0.1), (0.6, 0.3, 0.0)),
    ],
)
def test_shifted_noise_is_that_of_an_earlier_time_and_comes_back_all_the_same(path, start, told, given):
    grid = ddim.make_grid(path, len(told), [t + start for t in told])
    assert [path.timestep(node.t) for node in grid.nodes[:-1]] == pytest.approx(
        [path.timestep(t + start) for t in told]
    )
    oracle, x0, noise = gaussian(2, 3), gaussian(2, 3).draw(3), SeededNoise(range(3))
    problem = InversionProblem.of(oracle, SeededNoise(range(3)))
    method = EditFriendly(skip=0, noise_shift=0.2)
    found = method.invert(problem, x0, grid)
    levels = [path.node(t + start) for t in given]
    noised = [node.alpha * x0 + node.sigma * noise(x0) for node in levels[::-1]][::-1]
    assert torch.allclose(found.state["x"], noised[0], rtol=0, atol=1e-12)
    x = found.state["x"]
    for i in range(grid.steps - 1):
        mean, std = method.solver().moments(oracle, x, grid, i)  # the network is told the time of the grid
        x = mean + std * found.extras["noise"][:, i]
        assert torch.allclose(x, noised[i + 1], rtol=0, atol=1e-10)
    back = replay(oracle, method.solver(), found.state, found.grid, found.extras)
    assert torch.equal(back["x"], x0)


def test_shifted_noise_needs_a_path():
    grid = ddim.Grid(GRID.nodes)
    with refused("noise_shift", 0.2):
        EditFriendly(noise_shift=0.2).invert(scene(), images(), grid)
    EditFriendly().invert(scene(), images(), grid)


@pytest.mark.parametrize(("skip", "steps", "left"), [(0, 50, 50), (0.36, 50, 32), (0.5, 9, 5), (7, 50, 43), (1, 2, 1)])
def test_skip_is_a_fraction_or_steps(skip, steps, left):
    assert steps - EditFriendly(skip=skip).begin(ddim.make_grid(ddim.ddpm_linear(), steps)) == left


# --- every method through the verbs, and bad input --------------------------------------------------------------------


def test_the_way_back_has_the_weight_that_the_method_wants():
    model, picture = tiny_text.model(), tiny_text.pictures(1)

    def back(method: str, **options: Any) -> float:
        code = ddim.invert(model, picture, steps=2, method=method, prompt="a cat", guidance=3.0, **options)
        return code.settings["inversion_guidance"]

    own = {name: method.inversion_guidance for name, method in INVERSIONS.items()}
    fixed = ("null-text", "negative-prompt", "prox-npi", "spd", "direct", "direct-edit")
    assert own == {**dict.fromkeys(INVERSIONS), **dict.fromkeys(fixed, 1.0)}
    for name, method in INVERSIONS.items():
        free = method.inversion_guidance is None
        assert back(name) == (3.0 if free and method.exact else 1.0), name
        if free:
            assert back(name, inversion_guidance=2.0) == 2.0, name
    with refused("inversion_guidance", 2, "'direct'", 1):
        back("direct", inversion_guidance=2.0)


@pytest.mark.parametrize("method", ["direct", "edit-friendly"])
def test_exact_whatever_the_guidance_down_to_the_autoencoder(method):
    model, pictures = tiny_text.model(), tiny_text.pictures(2)
    code = ddim.invert(model, pictures, steps=4, method=method, prompt=PROMPTS[:2], guidance=7.5)
    assert torch.equal(ddim.reconstruct(model, code), model.decode(model.encode(pictures)))


@pytest.mark.parametrize(
    ("method", "options", "refusal"),
    [
        ("null-text", {"inner": 0}, refused("inner", 0)),
        ("null-text", {"lr": 0.0}, refused("lr", 0)),
        ("null-text", {"stop": -1.0}, refused("stop", -1)),
        ("null-text", {"start": "promt"}, unknown("start", "promt", nearest="prompt")),
        ("null-text", {"scope": "all"}, unknown("scope", "all", "global", "step")),
        ("negative-prompt", {"toward_empty": 1.5}, refused("toward_empty", 1.5)),
        ("edit-friendly", {"eta": 0.0}, refused("eta", 0)),
        ("edit-friendly", {"skip": 2.5}, refused("skip", 2.5)),
        ("edit-friendly", {"noise_shift": 1.0}, refused("noise_shift", 1)),
        ("edit-friendly", {"noise_shift": -0.1}, refused("noise_shift", -0.1)),
        ("direct", {"eta": 1}, refused("eta", "'direct'")),
    ],
)
def test_bad_options(method, options, refusal):
    with refusal:
        make_inversion(method, options)


def test_nothing_to_tune_at_weight_one():
    with refused("guidance", 1, "'null-text'"):
        invert(guidance=1.0)


@pytest.mark.parametrize("method", [name for name, method in INVERSIONS.items() if method.needs])
def test_a_model_without_conditions(method):
    with refused("method", repr(method)):
        ddim.invert(tiny.model(), torch.rand(1, 1, 8, 8), steps=2, method=method)


@pytest.mark.parametrize(("method", "options"), [("null-text", {}), ("negative-prompt", {"toward_empty": 0.5})])
def test_a_model_of_classes_where_text_is_needed(method, options):
    with refused("method", repr(method)):
        ddim.invert(
            tiny.model(classes=3), torch.rand(1, 1, 8, 8), steps=2, method=method, options=options, labels=1, guidance=3
        )


@pytest.mark.parametrize(("skip", "steps"), [(12, 12), (0.9, 1), (0.9, 2), (0.999, 12), (3, 2)])
def test_a_skip_that_leaves_no_step_is_told_of_one_that_does(skip, steps):
    grid = ddim.make_grid(ddim.ddpm_linear(), steps)
    with pytest.raises(InputError) as caught:
        EditFriendly(skip=skip).invert(scene(), images(), grid)
    assert caught.value.parameter == "skip"
    most = float(re.search(r"use (?:0 to )?(\S+?),", caught.value.message)[1])
    assert EditFriendly(skip=most).begin(grid) == steps - 1  # what the sentence offers is taken


def test_ctrl_c_before_a_resumed_batch_goes_on_keeps_what_it_held(monkeypatch):
    """The autoencoder is at work: the method has not had its state in hand yet."""
    for at, parts in ((6, 2), (2, 0)):  # with a batch that is done, and without
        partial, whole = interrupted(at), invert()

        def stopping(self: Any, images: Tensor) -> Tensor:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(type(tiny_text.model()), "encode", stopping)
            with pytest.raises(ddim.Interrupted) as stop:
                invert(resume=partial)
        again = stop.value.partial
        assert again.settings["partial"] == partial.settings["partial"]
        assert again.settings["partial"]["done"] == parts
        assert same(again, partial)
        assert torch.equal(invert(resume=again).extras["uncond_text"], whole.extras["uncond_text"])
