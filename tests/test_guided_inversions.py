"""Null-text, negative-prompt, direct, edit-friendly inversion: their formulas, their thrift, Ctrl-C and bad input."""

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import tiny
import tiny_text
import torch
from oracles import conditional, gaussian, noise_like
from torch import Tensor

import ddim
from ddim._utils.errors import InputError
from ddim.core.guidance import Guidance
from ddim.core.noise import SeededNoise
from ddim.core.prediction import Pair
from ddim.core.process import eta_std
from ddim.inversion import make_inversion
from ddim.inversion.base import InversionInterrupted, InversionProblem, pivot_of
from ddim.inversion.edit_friendly import EditFriendly
from ddim.inversion.negative_prompt import along_arc
from ddim.inversion.null_text import NullText
from ddim.inversion.replay import replay
from ddim.inversion.tuning import Landing

DATA = conditional(gaussian(2, 3), words=8)  # more words than pixels, so that any pivot can be landed on
GRID = ddim.make_grid(ddim.ddpm_linear(), 12)
PROMPTS = ["a cat", "a dog", "a red mat"]


class Counted:
    """The oracle, with images asked for under each half; optionally Ctrl-C at one call."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.halves: list[tuple[str, int]] = []
        self.stop_at = stop_at

    def __call__(self, x: Tensor, node: ddim.Node, cond: Any = None) -> Pair:
        self.halves.append((cond.get("half", "plain"), len(x)))
        if len(self.halves) == self.stop_at:
            raise KeyboardInterrupt
        return DATA(x, node, cond)

    def count(self, half: str) -> int:
        return sum(n for name, n in self.halves if name == half)


def cond(count: int = 3, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {
        "words": noise_like((count, 4, 8), seed=5).to(dtype),
        "null": noise_like((1, 4, 8), seed=6).to(dtype).repeat(count, 1, 1),
    }


def scene(count: int = 3, weight: float = 7.5, denoise: Any = DATA, **changed: Any) -> InversionProblem:
    return replace(
        InversionProblem(denoise, cond(count), Guidance(weight), 1.0, noise=SeededNoise(range(count))), **changed
    )


def images(count: int = 3) -> Tensor:
    return DATA.base.draw(count) + DATA.move(cond(count)["words"])


# --- null-text -------------------------------------------------------------------------------------------------------


def plain_reading(at: InversionProblem, x0: Tensor, inner: int, lr: float = 1e-2) -> tuple[Tensor, list[float]]:
    """Algorithm 1 with torch's own Adam, one image, without early stop; and the loss after each step."""
    pivot, w = pivot_of(at, x0, GRID), at.guidance.weight
    x, null, nulls, losses = pivot[:, 0], at.cond["null"].clone(), [], []

    def step(i: int) -> Tensor:
        t, s = GRID[i], GRID[i + 1]
        eps_null, eps_words = (DATA(x, t, {"words": e}).eps for e in (null, at.cond["words"]))
        eps = eps_null + w * (eps_words - eps_null)
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
    at = scene(1, tell=lambda i, loss: heard.append((i, loss)))
    nulls, losses = plain_reading(at, images(1), inner=3)
    walked = NullText(inner=3, stop=0, rise=0).walk(at, images(1), GRID)
    assert torch.allclose(walked.extras["null"], nulls, rtol=0, atol=1e-9)
    assert [i for i, _ in heard] == list(range(GRID.steps))
    assert [loss for _, loss in heard] == pytest.approx(losses, rel=1e-6)


def test_null_text_keeps_the_last_embedding_as_the_paper_does():
    """With a rate that overshoots the last is not the best met; Algorithm 1 keeps it all the same."""
    at, met = scene(1), list[float]()
    rate = 3.0
    nulls, _ = plain_reading(at, images(1), inner=3, lr=rate)
    walked = NullText(inner=3, lr=rate, stop=0, rise=0).walk(at, images(1), GRID)
    assert torch.allclose(walked.extras["null"], nulls, rtol=0, atol=1e-6)
    pivot = pivot_of(at, images(1), GRID)
    landing = Landing(at, pivot[:, 0], GRID[0], GRID[1], pivot[:, 1])
    for null in (at.cond["null"], nulls[:, 0]):
        met.append(float(landing(null, torch.tensor([0]), need_gradient=False)[1]))
    assert met[1] > met[0]  # the first one had been better


def test_enough_inner_updates_land_on_the_pivot():
    walked = NullText(inner=300, lr=0.05, stop=1e-6, rise=0).walk(scene(), images(), GRID)
    denoise = replace(scene(), cond=dict(walked.cond)).guided()
    back = replay(denoise, ddim.make_solver("ddim"), walked.state, GRID, walked.extras)["x"]
    assert (back - images()).square().mean() < 2e-6
    untuned = ddim.solve(scene().guided(), ddim.make_solver("ddim"), walked.state, GRID)["x"]
    assert (untuned - images()).square().mean() > 1e-2


def test_no_network_call_is_needless():
    near = Counted()
    NullText(stop=1e9).walk(scene(denoise=near), images(), GRID)  # whatever it is, it is near enough
    assert (near.count("words"), near.count("null")) == (3 * GRID.steps, 3 * GRID.steps)
    prompt = Counted()
    NullText(stop=1e9, start="prompt").walk(scene(denoise=prompt), images(), GRID)
    assert (prompt.count("words"), prompt.count("null")) == (3 * GRID.steps, 0)
    far = Counted()
    NullText(stop=0, rise=0, inner=4).walk(scene(denoise=far), images(), GRID)
    assert (far.count("words"), far.count("null")) == (3 * GRID.steps, 3 * GRID.steps * 5)
    assert far.count("plain") == 3 * GRID.steps  # the pivot
    assert len(far.halves) <= NullText(inner=4).nfe * GRID.steps


def test_an_image_that_is_near_enough_is_neither_asked_for_nor_changed():
    counted = Counted()
    at, pivot = scene(2, denoise=counted), pivot_of(scene(2), images(2), GRID)
    landing = Landing(at, pivot[:, 8], GRID[8], GRID[9], pivot[:, 9])
    null = torch.stack([at.cond["words"][0], at.cond["null"][1]])  # with its own words the first lands by itself
    by_itself = landing.unasked(null)[1]
    assert by_itself[0] < by_itself[1] == torch.inf
    method = NullText(stop=float(by_itself[0]) * 1.001, rise=0, inner=3)
    tuned, _, loss = method._tune(landing, null, 8, GRID.steps)
    assert torch.equal(tuned[0], null[0])
    assert loss[0] == by_itself[0]
    assert not torch.equal(tuned[1], null[1])
    assert counted.count("null") == 4


def test_the_rate_and_the_threshold_are_the_paper_s_and_stay_above_zero():
    method = NullText()
    assert [method.rate(i, 50) for i in (0, 49)] == pytest.approx([1e-2, 1e-2 * 0.51])
    assert [method.enough(i, 50) for i in (0, 49)] == pytest.approx([1e-5, 1e-5 + 49 * 2e-5])
    assert method.rate(100, 101) > 0
    assert method.rate(999, 1000) > 0
    assert method.enough(999, 1000) < method.enough(99, 100) + 1e-4


def test_outside_the_interval_nothing_is_tuned():
    at = replace(scene(), guidance=Guidance(7.5, interval=(0.0, 0.5)))
    nulls = NullText().walk(at, images(), GRID).extras["null"]
    outside = [i for i in range(GRID.steps) if GRID[i].t > 500]
    assert outside
    assert torch.equal(nulls[:, outside], at.cond["null"][:, None].expand(-1, len(outside), -1, -1))
    assert not torch.equal(nulls[:, -1], at.cond["null"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scope", ["step", "global"])
def test_the_embedding_is_float32_whatever_the_network_computes_in(dtype, scope):
    def half(x: Tensor, node: ddim.Node, given: Any = None) -> Pair:
        eps = DATA(x.to(dtype), node, {"words": given["words"].to(dtype)}).eps.to(x.dtype)
        return Pair((x - node.sigma * eps) / node.alpha, eps)

    at = replace(scene(), denoise=half, cond=cond(dtype=torch.float32))
    walked = NullText(scope=scope, inner=5).walk(at, images().float(), GRID)
    null = walked.extras["null"] if scope == "step" else walked.cond["null"]
    assert null.dtype == torch.float32
    assert torch.isfinite(null).all()
    moved = null - (at.cond["null"][:, None] if scope == "step" else at.cond["null"])
    assert 0 < moved.abs().max() < 5


def test_global_lowers_the_sum_of_the_distances():
    """Measured here, not heard: what the tuned embedding leaves of the distances that the untuned one has."""
    heard: list[float] = []
    walked = NullText(scope="global").walk(scene(tell=lambda q, loss: heard.append(loss)), images(), GRID)
    pivot = pivot_of(scene(), images(), GRID)

    def left(null: Tensor) -> Tensor:
        """The sum over the steps of the squared distances to the pivot, each from the pivot's own node, [N]."""
        denoise, out = replace(scene(), cond={**cond(), "null": null}).guided(), torch.zeros(len(pivot)).double()
        for i in range(GRID.steps):
            at = ddim.make_solver("ddim").step(denoise, {"x": pivot[:, i]}, GRID, i, None)["x"]
            out += (at - pivot[:, i + 1]).square().flatten(1).mean(1)
        return out

    assert bool((left(walked.cond["null"]) < left(cond()["null"]) / 2).all())
    assert heard[-1] < heard[0] / 2
    assert walked.extras == {}
    assert walked.cond["null"].shape == cond()["null"].shape


def test_null_text_names_the_step_that_is_no_number():
    def broken(x: Tensor, node: ddim.Node, given: Any = None) -> Pair:
        pair = DATA(x, node, given)
        return Pair(pair.x0, pair.eps * float("nan")) if given.get("half") == "null" and node.t < 500 else pair

    with pytest.raises(
        ddim.DDIMError, match=r"no longer finite after the step from t = \d+ to t = \d+ \(step 8 of 12\)"
    ):
        NullText().walk(scene(denoise=broken), images(), GRID)


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["step", "global"])
@pytest.mark.parametrize("call", [13, 40, 71, 90])
def test_a_walk_goes_on_from_any_call_as_if_nothing_had_happened(scope, call):
    method, x0 = NullText(scope=scope, inner=6), images()
    whole = method.walk(scene(), x0, GRID)
    with pytest.raises(InversionInterrupted) as stop:
        method.walk(scene(denoise=Counted(call)), x0, GRID)
    again = Counted()
    rest = method.walk(scene(denoise=again, resume=stop.value.kept), x0, GRID)
    for key in ("state", "cond", "extras"):
        for name, value in getattr(whole, key).items():
            assert torch.equal(getattr(rest, key)[name], value), name
    assert again.count("plain") == 0  # the pivot is not walked again


def test_ctrl_c_before_the_pivot_is_there_has_nothing_to_keep():
    with pytest.raises(KeyboardInterrupt) as stop:
        NullText().walk(scene(denoise=Counted(5)), images(), GRID)
    assert not isinstance(stop.value, InversionInterrupted)


OPTIONS = {"inner": 2, "start": "empty"}


def interrupted(at: int, options: dict[str, Any] | None = None, **changed: Any) -> ddim.LatentCode:
    """What ``ddim.invert`` keeps of three images in batches of two when Ctrl-C comes at the at-th step."""
    told = 0

    def tell(step: int, loss: float) -> None:
        nonlocal told
        told += 1
        if told == at:
            raise KeyboardInterrupt

    with pytest.raises(ddim.Interrupted) as stop:
        invert(tell=tell, options=options or OPTIONS, **changed)
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
    rest = invert(options=options, resume=partial, batch=1, progress=lambda *now: done.append(now))
    assert done[0][0] == at + 1
    assert done[-1] == (8, 8)
    assert rest.prompts == whole.prompts
    assert rest.settings == whole.settings
    for group in ("state", "cond", "extras"):
        assert getattr(rest, group).keys() == getattr(whole, group).keys()
        for key, value in getattr(whole, group).items():
            assert torch.equal(getattr(rest, group)[key], value), key


def test_an_interrupted_invert_resumes_twice():
    once = interrupted(2)
    twice = interrupted(3, resume=once)
    assert twice.settings["partial"] == {"images": 3, "done": 2, "steps": 1, "batch": 2}
    assert torch.equal(invert(resume=twice).extras["null"], invert().extras["null"])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"guidance": 4.0}, "another guidance"),
        ({"options": {"inner": 3}}, "another settings"),
        ({"steps": 5}, "another grid"),
        ({"method": "direct", "options": None}, "another method"),
        ({"prompt": "a cat"}, "another prompts"),
        ({"images": tiny_text.pictures(3, seed=1)}, "other images"),
        ({"images": tiny_text.pictures(2), "prompt": PROMPTS[:2]}, "begun with 3 images, but 2"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_resuming_with_something_else_says_what(changed, sentence):
    with pytest.raises(InputError, match=sentence):
        invert(resume=interrupted(2), **changed)


def test_a_whole_code_is_nothing_to_resume_and_a_part_nothing_to_reconstruct():
    with pytest.raises(InputError, match="whole one"):
        invert(resume=invert())
    with pytest.raises(InputError, match=r"interrupted run \(0 of 3 images done, then step 2 of 4\)"):
        ddim.reconstruct(tiny_text.model(), interrupted(2))


# --- negative-prompt and direct --------------------------------------------------------------------------------------


def test_with_the_prompt_as_its_own_opposite_the_weight_has_no_say():
    walked = make_inversion("negative-prompt").walk(scene(), images(), GRID)
    ends = [
        ddim.solve(replace(scene(weight=w), cond=walked.cond).guided(), ddim.make_solver("ddim"), walked.state, GRID)[
            "x"
        ]
        for w in (1.0, 7.5, 20.0)
    ]
    for end in ends[1:]:
        assert torch.allclose(end, ends[0], rtol=0, atol=1e-9)


def test_toward_empty_is_an_arc_from_the_prompt_to_the_negative():
    a, b = cond()["words"], cond()["null"]
    assert torch.equal(along_arc(a, b, 0), a)
    assert torch.equal(along_arc(a, b, 1), b)
    right = along_arc(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 1 / 3)
    assert torch.allclose(right, torch.tensor([[3**0.5 / 2, 0.5]]))
    assert torch.allclose(along_arc(a, a * 2, 0.25), a * 1.25)  # no angle between them: a straight line
    walked = make_inversion("negative-prompt", {"toward_empty": 0.4}).walk(scene(), images(), GRID)
    assert torch.equal(walked.cond["null"], along_arc(a, b, 0.4))


def test_direct_keeps_every_node_of_the_pivot():
    walked = make_inversion("direct").walk(scene(), images(), GRID)
    pivot = pivot_of(scene(), images(), GRID)
    assert torch.equal(walked.state["x"], pivot[:, 0])
    assert torch.equal(walked.extras["pivot"], pivot[:, 1:])
    assert torch.equal(pivot[:, -1], images())
    x, t, s = pivot[:, 4], GRID[3], GRID[4]  # plain DDIM inversion at weight 1, asked at the destination
    eps = DATA(x, t, cond()).eps
    assert torch.allclose(pivot[:, 3], t.alpha / s.alpha * (x - s.sigma * eps) + t.sigma * eps)


@pytest.mark.parametrize("name", ["direct", "edit-friendly"])
def test_models_without_text_take_it_too(name):
    model, pictures = tiny.model(), torch.rand(3, 1, 8, 8)
    done: list[tuple[int, int]] = []
    code = ddim.invert(model, pictures, steps=5, method=name, batch=2, progress=lambda *now: done.append(now))
    assert torch.allclose(ddim.reconstruct(model, code), pictures, atol=1e-6)
    assert done[-1][0] <= done[-1][1] == 10


# --- edit-friendly ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_noise_maps_are_what_the_posterior_lacks_with_eta_squared(eta):
    at, x0 = scene(back=3.5), images()
    walked = EditFriendly(eta, skip=4).walk(at, x0, GRID)
    nodes, noise = GRID.nodes[4:], SeededNoise(range(3))
    assert walked.grid.nodes == nodes
    noised = [node.alpha * x0 + node.sigma * noise(x0) for node in nodes[-2::-1]][::-1]  # each from its own noise
    assert torch.equal(walked.state["x"], noised[0])
    x = noised[0]
    for i, (t, s) in enumerate(pairwise(nodes[:-1])):
        pair, std = at.guided(3.5)(x, t), eta_std(eta, t, s)
        mean = s.alpha * pair.x0 + (s.sigma**2 - std**2) ** 0.5 * pair.eps
        x = mean + std * walked.extras["noise"][:, i]
        assert torch.allclose(x, noised[i + 1], rtol=0, atol=1e-12)
    assert not walked.extras["noise"][:, -1].any()
    assert torch.equal(walked.extras["end"][:, 0], x0)


def test_a_seed_gives_the_same_noise_to_the_nodes_that_two_skips_share():
    few, many = (EditFriendly(skip=k).walk(scene(), images(), GRID) for k in (0, 5))
    assert torch.allclose(few.extras["noise"][:, 5:], many.extras["noise"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("skip", "steps", "left"), [(0, 50, 50), (0.36, 50, 32), (0.5, 9, 5), (7, 50, 43), (1, 2, 1)])
def test_skip_is_a_fraction_or_steps(skip, steps, left):
    assert steps - EditFriendly(skip=skip).first(ddim.make_grid(ddim.ddpm_linear(), steps)) == left


# --- every method through the verbs, and bad input --------------------------------------------------------------------


def test_the_way_back_has_the_weight_that_the_method_wants():
    model, picture = tiny_text.model(), tiny_text.pictures(1)

    def back(method: str, **options: Any) -> float:
        code = ddim.invert(model, picture, steps=2, method=method, prompt="a cat", guidance=3.0, **options)
        return code.settings["back"]

    assert [back(m) for m in ("ddim", "heun", "null-text", "negative-prompt", "direct")] == [1.0] * 5
    assert [back(m) for m in ("edict", "bdia", "belm", "edit-friendly")] == [3.0] * 4
    assert [back(m, back=2.0) for m in ("ddim", "belm", "edit-friendly")] == [2.0] * 3
    with pytest.raises(InputError, match="back: 2 does not go with 'direct', whose way back has weight 1"):
        back("direct", back=2.0)


@pytest.mark.parametrize("method", ["direct", "edit-friendly"])
def test_exact_whatever_the_guidance_down_to_the_autoencoder(method):
    model, pictures = tiny_text.model(), tiny_text.pictures(2)
    code = ddim.invert(model, pictures, steps=4, method=method, prompt=PROMPTS[:2], guidance=7.5)
    assert torch.equal(ddim.reconstruct(model, code), model.decode(model.encode(pictures)))


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("null-text", {"inner": 0}, "inner: 0"),
        ("null-text", {"lr": 0.0}, "lr: 0"),
        ("null-text", {"stop": -1.0}, "stop: -1"),
        ("null-text", {"start": "promt"}, "Did you mean 'prompt'"),
        ("null-text", {"scope": "all"}, "Unknown scope 'all'"),
        ("negative-prompt", {"toward_empty": 1.5}, r"toward_empty: 1.5 lies outside \[0, 1\]"),
        ("edit-friendly", {"eta": 0.0}, "without noise there are no noise maps"),
        ("edit-friendly", {"skip": 2.5}, "neither a fraction below 1 nor a whole number"),
        ("direct", {"eta": 1}, "takes no options"),
    ],
)
def test_bad_options(method, options, sentence):
    with pytest.raises(InputError, match=sentence):
        make_inversion(method, options)


def test_nothing_to_tune_at_weight_one():
    with pytest.raises(InputError, match=r"guidance: 1 leaves 'null-text' nothing to tune"):
        invert(guidance=1.0)


@pytest.mark.parametrize("method", ["null-text", "negative-prompt"])
def test_a_model_without_text(method):
    with pytest.raises(InputError, match=f"method: '{method}' works on a prompt"):
        ddim.invert(tiny.model(), torch.rand(1, 1, 8, 8), steps=2, method=method)


@pytest.mark.parametrize(("skip", "steps"), [(12, 12), (0.9, 1), (0.9, 2), (0.999, 12), (3, 2)])
def test_a_skip_that_leaves_no_step_is_told_of_one_that_does(skip, steps):
    grid = ddim.make_grid(ddim.ddpm_linear(), steps)
    with pytest.raises(InputError) as caught:
        EditFriendly(skip=skip).walk(scene(), images(), grid)
    assert caught.value.parameter == "skip"
    most = float(re.search(r"use (?:0 to )?(\S+?),", caught.value.message)[1])
    assert EditFriendly(skip=most).first(grid) == steps - 1  # what the sentence offers is taken


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
        for group in ("state", "cond", "extras"):
            assert getattr(again, group).keys() == getattr(partial, group).keys()
            for key, value in getattr(partial, group).items():
                assert torch.equal(getattr(again, group)[key], value), key
        assert torch.equal(invert(resume=again).extras["null"], whole.extras["null"])
