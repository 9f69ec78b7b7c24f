"""A MODEL of ComfyUI as a model of the library: what it is asked, what comes back, and its exact round trips."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from ddim_comfyui import conditions, work
from ddim_comfyui.model import ComfyModel
from ddim_comfyui.schedules import levels_of, sigmas_of, times_of
from refusals import refused
from stub_comfy import SAMPLINGS, LatentFormat, Patcher, VideoFormat, latents, prompt
from torch import Tensor

import ddim
from ddim import Call, Conditioning, Node, Pair, ReversibleSolver
from ddim.pipelines.interpolate import join


def wrapped(patcher: Patcher, *entries: Any, negative: Any = None, **settings: Any) -> ComfyModel:
    given = [conditions.conditioning_of(one, "positive") for one in entries or (prompt(1),)]
    prompts = {conditions.name_of(one): one for one in given}
    away = None if negative is None else conditions.conditioning_of(negative, "negative")
    return ComfyModel(patcher, patcher.ask, shape=(4, 8, 8), prompts=prompts, negative=away, **settings)


def silent(event: Any) -> None:
    pass


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SAMPLINGS)
@pytest.mark.parametrize("place", [0, 3, 8])
def test_the_pair_is_comfyuis_denoised_sample_and_the_noise_that_goes_with_it(kind: str, place: int) -> None:
    patcher = Patcher(kind)
    model = wrapped(patcher)
    grid = model.schedule.grid(10)
    node = grid[place]
    x0, eps = latents(1), latents(2)
    x = node.alpha * x0 + node.sigma * eps
    pair = model.guided(ddim.Guidance(), model.condition(None, 1))(x, node)
    sigma = node.sigma if kind == "flow" else node.sigma / node.alpha
    own = (1 - sigma) * x0 + sigma * eps if kind == "flow" else x0 + sigma * eps
    denoised = patcher.ask(own, torch.tensor([sigma]), prompt(1), "cond", None)
    assert isinstance(pair, Pair)
    torch.testing.assert_close(pair.x0, denoised, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(node.alpha * pair.x0 + node.sigma * pair.eps, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["eps", "v", "flow", "edm"])
def test_the_output_is_the_networks_own_and_its_input_is_the_librarys_x(kind: str) -> None:
    patcher = Patcher(kind)
    model = wrapped(patcher)
    node, x = model.schedule.grid(10)[4], latents(3)
    (output,) = model.ask(x, node, model.condition(None, 1).cond)
    inside, _, own, _ = patcher.seen[-1]
    torch.testing.assert_close(output, own, atol=1e-4, rtol=1e-4)
    assert model.schedule.prediction == kind
    torch.testing.assert_close(inside, x * model.schedule.input_scale(node), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["eps", "v", "flow", "edm"])
def test_where_there_is_no_noise_the_network_is_asked_at_the_least_level(kind: str) -> None:
    patcher = Patcher(kind)
    model = wrapped(patcher)
    (output,) = model.ask(latents(3), model.schedule.path.node(0), model.condition(None, 1).cond)
    _, sigma, own, _ = patcher.seen[-1]
    assert float(sigma) == pytest.approx(float(patcher.objects["model_sampling"].sigma_min), rel=1e-5)
    torch.testing.assert_close(output, own, atol=3e-3, rtol=3e-3)  # D = x - sigma_min * output has lost these digits


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_ddim_steps_are_comfyuis_euler_steps_on_the_same_sigmas(kind: str) -> None:
    patcher = Patcher(kind)
    model = wrapped(patcher)
    grid = model.schedule.grid(8)
    sigmas = sigmas_of(model.levels, list(grid))
    own = x = latents(5) * grid[0].sigma + latents(4) * grid[0].alpha
    own = own if kind == "flow" else own / grid[0].alpha
    for now, then in pairwise(sigmas):  # Euler of k-diffusion
        denoised = patcher.ask(own, now[None], prompt(1), "cond", None)
        own = own + (own - denoised) / now * (then - now)
    denoise = model.guided(ddim.Guidance(), model.condition(None, 1))
    mine = ddim.solve(denoise, ddim.make_solver("ddim"), {"x": x}, grid)["x"]
    torch.testing.assert_close(mine, own, atol=1e-3, rtol=1e-3)


def test_guidance_asks_each_branch_in_a_call_of_its_own_and_combines_as_comfyui_does() -> None:
    patcher = Patcher("eps")
    model = wrapped(patcher, negative=prompt(2))
    node, x = model.schedule.grid(10)[4], latents(3)
    pair = model.guided(ddim.Guidance(5.0), model.condition(None, 1))(x, node)
    assert [branch for *_, branch in patcher.seen] == ["uncond", "cond"]
    own, sigma = x / node.alpha, torch.tensor([node.ratio])
    cond, uncond = (patcher.ask(own, sigma, prompt(k), "cond", None) for k in (1, 2))
    torch.testing.assert_close(pair.x0, uncond + 5 * (cond - uncond), atol=1e-3, rtol=1e-3)


# --- noise levels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_sigmas_of_a_grid_are_read_back_as_its_nodes(kind: str) -> None:
    levels = levels_of(SAMPLINGS[kind]())
    grid = levels.schedule.grid(12)
    again = times_of(levels.schedule.path, sigmas_of(levels, list(grid)))
    assert again == pytest.approx([node.t for node in grid][:-1], rel=1e-5, abs=1e-6)
    if kind in ("eps", "v"):
        assert all(t == int(t) for t in again)


def test_a_table_is_comfyuis_and_its_shift_is_the_flow_models() -> None:
    sampling = SAMPLINGS["eps"]()
    path = levels_of(sampling).schedule.path
    ratios = [path.node(t).ratio for t in (1, 500, 1000)]
    assert ratios == pytest.approx([float(sampling.sigmas[k]) for k in (0, 499, 999)], rel=1e-6)
    assert levels_of(SAMPLINGS["flow"]()).schedule.shift.options == {"rule": "static", "value": 3.0}


@pytest.mark.parametrize(
    ("sigmas", "names"),
    [([0.0, 1.0, 2.0], ("0", "2")), ([2.0, 1.0, 0.5], ("0.5",)), ([2.0, 1.0, 1.0, 0.0], ()), ([2.0], ("1",))],
)
def test_levels_that_no_sampler_takes_are_refused(sigmas: list[float], names: tuple[str, ...]) -> None:
    path = levels_of(SAMPLINGS["eps"]()).schedule.path
    with refused("sigmas", *names):
        times_of(path, torch.tensor(sigmas))


def test_a_model_without_a_gaussian_path_is_refused() -> None:
    class IMG_TO_IMG:
        pass

    class ModelSampling(IMG_TO_IMG):
        pass

    with refused("model", "IMG_TO_IMG"):
        levels_of(ModelSampling())


# --- conditions -------------------------------------------------------------------------------------------------------


def _back(cond: Conditioning) -> Any:
    ((rows, entries),) = list(conditions.entries_of(cond, torch.device("cpu")))
    assert rows == list(range(cond.rows or 0))
    return entries[0]


def test_a_conditioning_comes_back_as_it_was() -> None:
    about = {
        "pooled_output": torch.ones(1, 6),
        "guidance": 3.5,
        "width": 512,
        "flag": False,
        "level": 0.25,
        "reference_latents": [torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)],
        "strength": 1.0,
        "nothing": None,
    }
    text, back = _back(conditions.conditioning_of(prompt(1, **about), "positive"))
    assert torch.equal(text, prompt(1)[0][0])
    assert torch.equal(back.pop("pooled_output"), torch.ones(1, 6))
    two = back.pop("reference_latents")
    assert [float(one.mean()) for one in two] == [0.0, 1.0]
    assert back == {"guidance": 3.5, "width": 512, "flag": False, "level": 0.25}


def test_a_mask_of_tokens_stays_one_and_padding_for_a_batch_is_none() -> None:
    masked = prompt(1, attention_mask=torch.tensor([[1, 1, 0]]))
    _, about = _back(conditions.conditioning_of(masked, "positive"))
    assert about["attention_mask"].tolist() == [[1, 1, 0]]
    short, long = (conditions.conditioning_of(prompt(1, n), "positive") for n in (2, 5))
    parts = list(conditions.entries_of(Conditioning.cat([short, long, short]), torch.device("cpu")))
    assert [(rows, entries[0][0].shape[1]) for rows, entries in parts] == [([0, 2], 2), ([1], 5)]
    assert all("attention_mask" not in entries[0][1] for _, entries in parts)


def test_rows_with_unequal_numbers_are_asked_apart_and_each_comes_back_in_its_place() -> None:
    patcher = Patcher("flow")
    one, other = prompt(1, guidance=1.0), prompt(2, guidance=3.5)
    model = wrapped(patcher, one, other)
    node, x = model.schedule.grid(10)[4], latents(3, 3)
    both = model.encode_prompt([list(model.prompts)[k] for k in (0, 1, 0)])
    (out,) = model.ask(x, node, both)
    assert [len(inside) for inside, *_ in patcher.seen] == [2, 1]
    for row, which in enumerate((0, 1, 0)):
        (alone,) = model.ask(x[row : row + 1], node, model.encode_prompt([list(model.prompts)[which]]))
        torch.testing.assert_close(out[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("key", ["area", "mask", "control", "start_percent"])
def test_what_a_code_cannot_store_is_refused_by_its_name(key: str) -> None:
    value = {"area": (8, 8, 0, 0), "mask": torch.ones(1, 8, 8), "control": object(), "start_percent": 0.2}[key]
    with refused("positive", repr(key)):
        conditions.conditioning_of(prompt(1, **{key: value}), "positive")


def test_several_conditions_in_one_and_unknown_objects_are_refused() -> None:
    with refused("negative", 2):
        conditions.conditioning_of(prompt(1) + prompt(2), "negative")
    with refused("positive", "'thing'", "object"):
        conditions.conditioning_of(prompt(1, thing=object()), "positive")


# --- the exact round trip ---------------------------------------------------------------------------------------------

EXACT = [name for name in ddim.inversion_names() if isinstance(ddim.make_inversion(name), ReversibleSolver)]


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_an_exact_method_reconstructs_every_bit_of_the_latents(kind: str, method: str, tmp_path: Any) -> None:
    model = wrapped(Patcher(kind), negative=prompt(2))
    given = latents(7, 2)
    made = work.invert(model, given, method=method, steps=6, guidance=1.5, sigmas=None, on_event=silent)
    made.code.save(tmp_path / "code.safetensors")
    again = ddim.LatentCode.load(tmp_path / "code.safetensors")
    assert torch.equal(ddim.reconstruct(model, again), made.latents)
    assert float((made.latents - given).abs().max()) < 2e-5  # the lattice, and the scaling of the latent format
    assert float((model.encode(made.latents) - made.noise.x).abs().mean()) > 0.1


def test_a_round_trip_that_asks_another_prompt_is_not_exact() -> None:
    patcher = Patcher("eps")
    made = work.invert(wrapped(patcher), latents(7), method="belm", steps=6, guidance=1, sigmas=None, on_event=silent)
    other = conditions.conditioning_of(prompt(9), "positive")
    changed = ddim.reconstruct(wrapped(patcher), _with_condition(made.code, other))
    assert not torch.equal(changed, made.latents)


def _with_condition(code: Any, cond: Conditioning) -> Any:
    from dataclasses import replace

    return replace(code, conditions=ddim.PromptConditioning(cond))


def test_codes_that_were_joined_know_their_conditions_by_their_prompts() -> None:
    patcher, made = Patcher("eps"), []
    for k, length in ((1, 2), (2, 5)):
        model = wrapped(patcher, prompt(k, length))
        settings = {"method": "belm", "steps": 5, "guidance": 1, "sigmas": None, "on_event": silent}
        made.append(work.invert(model, latents(k), **settings))
    joined = join([one.code for one in made])
    own = work.source_names(joined)
    assert list(own) == list(joined.prompts)
    both = ComfyModel(patcher, patcher.ask, shape=(4, 8, 8), prompts=own)
    assert torch.equal(ddim.reconstruct(both, joined), torch.cat([one.latents for one in made]))


def test_a_video_models_axis_of_frames_is_given_to_it_and_taken_away() -> None:
    patcher = Patcher("flow", VideoFormat())
    shapes: list[torch.Size] = []

    def ask(x: Tensor, *others: Any) -> Tensor:
        shapes.append(x.shape)
        return patcher.ask(x, *others)

    cond = conditions.conditioning_of(prompt(1), "positive")
    model = ComfyModel(patcher, ask, shape=(4, 8, 8), prompts={"a prompt": cond})
    samples = work.samples_of({"samples": latents(7)[:, :, None]})
    made = work.invert(model, samples, method="belm", steps=5, guidance=1, sigmas=None, on_event=silent)
    assert set(shapes) == {torch.Size([1, 4, 1, 8, 8])}
    back = ddim.reconstruct(model, made.code)
    assert torch.equal(back, made.latents)
    assert work.latent_of(back, model)["samples"].shape == (1, 4, 1, 8, 8)


@pytest.mark.parametrize("empty", [False, True], ids=["latent", "empty"])
@pytest.mark.parametrize("first", [0, 40])  # at the largest sigma ComfyUI scales the noise in another way
@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_a_sampler_that_gets_the_noise_starts_at_the_noisy_end(kind: str, first: int, empty: bool) -> None:
    patcher = Patcher(kind)
    model, given = wrapped(patcher), latents(7)
    sigmas = sigmas_of(model.levels, list(model.schedule.grid(200)))[first:]
    made = work.invert(model, given, method="ddim", steps=2, guidance=1, sigmas=sigmas, on_event=silent)
    latent = torch.zeros_like(given) if empty else given
    noise, sampling = made.noise.generate_noise({"samples": latent}), patcher.objects["model_sampling"]
    top = math.isclose(made.sigmas[0], sampling.sigma_max, rel_tol=1e-5)
    assert top == (first == 0)
    own = sampling.noise_scaling(made.sigmas[:1], noise, LatentFormat().process_in(latent), top)
    for now, then in pairwise(made.sigmas):
        own = own + (own - patcher.ask(own, now[None], prompt(1), "cond", None)) / now * (then - now)
    back = ddim.reconstruct(model, made.code)
    torch.testing.assert_close(LatentFormat().process_out(own), back, atol=1e-3, rtol=1e-3)


def test_a_latent_of_another_shape_gets_no_noise_and_one_with_frames_does() -> None:
    patcher = Patcher("flow")
    settings = {"method": "ddim", "steps": 4, "guidance": 1, "sigmas": None, "on_event": silent}
    made = work.invert(wrapped(patcher), latents(7), **settings)
    assert made.noise.generate_noise({"samples": torch.zeros(1, 4, 1, 8, 8)}).shape == (1, 4, 1, 8, 8)
    with refused("latent_image", (1, 4, 4, 8), (1, 4, 8, 8)):
        made.noise.generate_noise({"samples": torch.zeros(1, 4, 4, 8)})


# --- the model's facts ------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_weights_patches_and_levels_but_not_whether_patches_are_loaded() -> None:
    patcher = Patcher("eps")
    plain = wrapped(patcher).fingerprint
    assert plain == wrapped(Patcher("eps")).fingerprint
    assert plain != wrapped(Patcher("v")).fingerprint
    name = "diffusion_model.first.weight"
    lora = torch.full((8, 4, 3, 3), 0.1)
    patcher.patches = {name: [(1.0, ("diff", (lora,)), 1.0, None, None)]}
    with_lora = wrapped(patcher).fingerprint
    assert with_lora != plain
    weight = patcher.model.diffusion_model.first.weight
    patcher.backup = {name: type("Kept", (), {"weight": weight.detach().clone()})()}
    with torch.no_grad():
        weight += lora
    assert wrapped(patcher).fingerprint == with_lora
    patcher.patches[name][0] = (0.5, *patcher.patches[name][0][1:])
    assert wrapped(patcher).fingerprint not in (with_lora, plain)


def test_a_patch_of_guidance_is_refused_by_its_name() -> None:
    patcher = Patcher("eps")
    patcher.model_options["sampler_cfg_function"] = lambda args: args
    with refused("model", "sampler_cfg_function"):
        wrapped(patcher)


def test_what_the_network_is_told_at_the_ends_is_finite() -> None:
    levels = levels_of(SAMPLINGS["eps"]())
    at = levels.asked(Node(0.0, 1.0, 0.0))
    assert math.hypot(at.alpha, at.sigma) == pytest.approx(1)
    assert levels.asked(levels.schedule.grid(4)[0]) == levels.schedule.grid(4)[0]
    assert Call().branches == ("cond",)
