"""What a user calls, on a tiny network, with good input and with every bad one."""

from dataclasses import replace

import pytest
import tiny
import torch
from oracles import noise_like

import ddim
from ddim._utils.errors import DDIMError, DDIMWarning
from ddim.core.conditioning import PromptConditioning
from ddim.core.guidance import Guidance
from ddim.core.noise import SeededNoise
from ddim.inversion import INVERSIONS
from ddim.inversion.ddim import DDIMInversion
from ddim.models.pixel import PixelModel
from ddim.pipelines.events import CodeEvent, ImagesEvent, StepEvent
from ddim.solvers.bdia import BDIA
from ddim.solvers.heun import Heun

METHODS = [name for name, method in INVERSIONS.items() if not method.needs]  # the others need a condition
EXACT = [name for name in METHODS if INVERSIONS[name].exact]


@pytest.fixture(scope="module")
def model():
    # a random v network moves a picture gently; a random eps network saturates every pixel
    return tiny.model(prediction_type="v_prediction")


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(4))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(1 / (a - b).double().square().mean().clamp(min=1e-30)))


def steps_into(seen: list):
    """A listener that keeps the steps done and in all."""
    return lambda event: seen.append((event.done, event.total)) if isinstance(event, StepEvent) else None


# --- sample ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ddim.SOLVERS)
@pytest.mark.parametrize("spacing", ddim.SPACINGS)
def test_every_solver_on_every_spacing(model, solver, spacing):
    out = ddim.sample(model, 2, steps=4, solver=solver, spacing=spacing)
    assert out.shape == (2, 1, 8, 8)
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1


@pytest.mark.parametrize(("eta", "solver"), [(0.0, "ddim"), (1.0, "ddim"), (0.0, "ddpm")])
def test_a_single_step(model, eta, solver):
    assert ddim.sample(model, 1, steps=1, eta=eta, solver=solver).isfinite().all()


@pytest.mark.parametrize("spacing", ddim.SPACINGS)
def test_all_steps_of_a_short_table(spacing):
    assert ddim.sample(tiny.model(num_train_timesteps=20), 1, steps=20, spacing=spacing).isfinite().all()


def test_an_explicit_list_of_t(model):
    listed = ddim.sample(model, 1, spacing=[1000, 500, 250])
    assert torch.equal(listed, ddim.sample(model, 1, spacing=[250, 500, 1000]))
    assert not torch.equal(listed, ddim.sample(model, 1, steps=3, spacing="trailing"))


def test_options_reach_the_solver(model):
    one, other = (ddim.sample(model, 1, steps=5, solver="bdia", options={"gamma": g}) for g in (1.0, 0.5))
    assert not torch.equal(one, other)
    assert torch.equal(one, ddim.sample(model, 1, steps=5, solver="bdia"))
    assert torch.equal(
        one, ddim.sample(model, 1, steps=5, solver="bdia", options={"gamma": "1"})
    )  # from a command line


@pytest.mark.parametrize("correction", [{"clip_x0": 1.0}, {"threshold": 0.9}])
def test_corrections_change_the_picture(model, correction):
    plain, corrected = ddim.sample(model, 2, steps=5), ddim.sample(model, 2, steps=5, **correction)
    assert not torch.equal(plain, corrected)


def test_progress_counts_every_step_of_every_batch(model):
    seen = []
    ddim.sample(model, 5, steps=3, batch=2, on_event=steps_into(seen))
    assert seen == [(k, 9) for k in range(1, 10)]


def test_variance_exploding_noise_starts_at_sigma_max():
    model = tiny.model(dtype=torch.float64)
    model.schedule = replace(model.schedule, path=ddim.VEPath())
    starts = []
    forward = model.forward
    model.forward = lambda x, *told: starts.append(x) or forward(x, *told)
    ddim.sample(model, 1, steps=2, spacing="karras", seed=3)
    assert torch.allclose(starts[0], 80 * torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(3)).double())


# --- invert and reconstruct -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_invert_then_reconstruct(model, pictures, method):
    code = ddim.invert(model, pictures, steps=10, method=method)
    back = ddim.reconstruct(model, code)
    assert back.shape == pictures.shape
    if method in EXACT:
        assert psnr(back, pictures) > 60


@pytest.mark.parametrize("method", METHODS)
def test_after_save_and_load_the_pictures_are_the_same_bits(model, pictures, method, tmp_path):
    code = ddim.invert(model, pictures, steps=5, method=method)
    loaded = ddim.LatentCode.load(code.save(tmp_path / "a.code"))
    assert torch.equal(ddim.reconstruct(model, loaded), ddim.reconstruct(model, code))


@pytest.mark.parametrize("method", EXACT)
def test_in_float64_what_comes_back_is_the_picture(pictures, method):
    model = tiny.model(dtype=torch.float64)
    back = ddim.reconstruct(model, ddim.invert(model, pictures.double(), steps=10, method=method))
    assert (back - pictures).abs().max() < 1e-9


def test_inverting_a_sample_finds_the_noise_it_came_from():
    model = tiny.model(prediction_type="v_prediction", dtype=torch.float64)
    noise = SeededNoise([9])(torch.empty(1, 1, 8, 8, dtype=torch.float64))
    grid = ddim.make_grid(model.schedule.path, 20)
    solver, denoise = ddim.make_solver("ddim"), model.guided(Guidance(), PromptConditioning())
    x0 = ddim.solve(denoise, solver, {"x": noise}, grid)["x"]
    state = ddim.make_inversion("ddim", {"iterations": 30}).invert(denoise, x0, grid).state
    with torch.no_grad():
        assert torch.allclose(state["x"], noise, rtol=0, atol=1e-6)


def test_a_code_keeps_what_made_it(model, pictures):
    code = ddim.invert(model, pictures, steps=5, method="edict", options={"p": 0.9}, spacing="karras")
    assert (code.method, code.solver, dict(code.options)) == ("edict", "edict", {"p": 0.9})
    assert dict(code.settings) == {"p": 0.9}
    assert ddim.invert(model, pictures, steps=2, options={"iterations": 2}).settings["iterations"] == 2
    assert (code.grid.steps, code.grid.spacing) == (5, "karras")
    assert (code.model, code.fingerprint) == ("tiny", model.fingerprint)
    assert len(code) == 2


def test_an_inversion_object_is_a_method(model, pictures):
    by_name = ddim.invert(model, pictures, steps=4, method="ddim", options={"iterations": 3})
    by_object = ddim.invert(model, pictures, steps=4, method=ddim.make_inversion("ddim", {"iterations": 3}))
    assert torch.equal(by_name.x, by_object.x)
    with pytest.raises(ddim.InputError, match="an inversion object has its own"):
        ddim.invert(model, pictures, method=ddim.make_inversion("ddim"), options={"iterations": 3})


def test_a_solver_object_is_a_solver_and_a_reversible_one_a_method_too(model, pictures):
    named = {"solver": "bdia", "options": {"gamma": 0.96}}
    assert torch.equal(ddim.sample(model, 2, steps=4, solver=BDIA(0.96)), ddim.sample(model, 2, steps=4, **named))
    assert torch.equal(ddim.sample(model, 2, steps=4, solver=Heun()), ddim.sample(model, 2, steps=4, solver="heun"))
    by_object = ddim.invert(model, pictures, steps=4, method=BDIA(0.96))
    by_name = ddim.invert(model, pictures, steps=4, method="bdia", options={"gamma": 0.96})
    assert torch.equal(by_object.state["x"], by_name.state["x"])
    assert (by_object.method, by_object.solver, dict(by_object.options)) == ("bdia", "bdia", {"gamma": 0.96})
    assert torch.equal(ddim.reconstruct(model, by_object), ddim.reconstruct(model, by_name))
    assert ddim.make_solver(BDIA(0.5)) == BDIA(0.5)
    assert ddim.make_inversion(DDIMInversion(2)) == DDIMInversion(2)


@pytest.mark.parametrize("solver", [BDIA(0.96), Heun()])
def test_options_beside_a_solver_object_are_refused(model, solver):
    with pytest.raises(ddim.InputError, match="a solver object has its own") as caught:
        ddim.sample(model, 1, steps=2, solver=solver, options={"gamma": 0.5})
    assert caught.value.parameter == "options"
    with pytest.raises(ddim.InputError, match="goes with the solver 'ddim' only") as caught:
        ddim.sample(model, 1, steps=2, solver=solver, eta=0.5)
    assert caught.value.parameter == "eta"


@pytest.mark.parametrize("wrong", [DDIMInversion(), BDIA, None, 3])
def test_what_is_no_solver(model, wrong):
    with pytest.raises(ddim.InputError, match="neither a solver nor the name of one") as caught:
        ddim.sample(model, 1, steps=2, solver=wrong)
    assert caught.value.parameter == "solver"


def test_batches_are_told_as_they_are_done(model, pictures):
    images, codes = [], []

    def hear(event: object) -> None:
        if isinstance(event, ImagesEvent):
            images.append((event.first, event.images))
        if isinstance(event, CodeEvent):
            codes.append((event.first, event.code))

    drawn = ddim.sample(model, 3, steps=2, batch=2, on_event=hear)
    assert [first for first, _ in images] == [0, 2]
    assert torch.equal(torch.cat([part for _, part in images]), drawn)
    images.clear()
    code = ddim.invert(model, torch.cat([pictures, pictures[:1]]), steps=2, method="bdia", batch=2, on_event=hear)
    assert [(first, len(part)) for first, part in codes] == [(0, 2), (2, 1)]
    assert all(torch.equal(part.state["x"], code.state["x"][first:][: len(part)]) for first, part in codes)
    back = ddim.reconstruct(model, code[::-1], on_event=hear)
    assert {first + k for first, part in images for k in range(len(part))} == {0, 1, 2}
    for first, part in images:
        assert torch.equal(part, back[first : first + len(part)])


def test_one_image_of_a_code_comes_back_alone(model, pictures):
    code = ddim.invert(model, pictures, steps=5, method="bdia")
    assert torch.equal(ddim.reconstruct(model, code[1]), ddim.reconstruct(model, code)[1:])  # it keeps its company
    plain = ddim.invert(model, pictures, steps=5)
    assert torch.allclose(ddim.reconstruct(model, plain[1]), ddim.reconstruct(model, plain)[1:], rtol=0, atol=1e-5)


def test_labels_travel_with_the_code():
    conditional = tiny.model(classes=3)
    picture = torch.rand(1, 1, 8, 8)
    code = ddim.invert(conditional, picture, steps=5, method="bdia", labels=[2])
    assert code.conditions.cond.tensors["labels"].tolist() == [2]
    assert psnr(ddim.reconstruct(conditional, code), picture) > 60


def test_a_code_of_another_model_warns_and_still_comes_back(model, pictures):
    code = ddim.invert(model, pictures, steps=3)
    other = tiny.model()
    other.info = replace(other.info, name="other")
    with pytest.warns(DDIMWarning, match="made by the model 'tiny'.* not by 'other'"):
        assert ddim.reconstruct(other, code).shape == pictures.shape


def test_a_code_of_another_shape_is_refused(model, pictures):
    code = ddim.invert(model, pictures, steps=3)
    with pytest.raises(ddim.InputError, match="code: it is of shape"):
        ddim.reconstruct(tiny.model(channels=3), code)


def test_a_code_of_an_unknown_solver_is_refused(model, pictures):
    code = ddim.invert(model, pictures, steps=3)
    with pytest.raises(ddim.InputError, match=r"Unknown solver 'ddym'\. Did you mean"):
        ddim.reconstruct(model, replace(code, solver="ddym"))
    with pytest.raises(ddim.InputError, match="lacks y"):
        ddim.reconstruct(model, replace(code, solver="edict", options={}))
    with pytest.raises(ddim.InputError, match="draws noise"):
        ddim.reconstruct(model, replace(code, options={"eta": 0.5}))


def test_a_code_in_another_dtype_warns(pictures):
    code = ddim.invert(tiny.model(), pictures, steps=3)
    with pytest.warns(ddim.DDIMWarning, match=r"made in bfloat16, but the model .* computes in float32"):
        ddim.reconstruct(tiny.model(), replace(code, dtype="bfloat16"))


# --- interpolate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_ends_of_an_interpolation_are_the_reconstructions(model, pictures, method):
    code = ddim.invert(model, pictures, steps=4, method=method)
    frames = ddim.interpolate(model, code, frames=4)
    assert frames.shape == (4, 1, 8, 8)
    back = ddim.reconstruct(model, code)
    assert torch.allclose(frames[[0, -1]], back, rtol=0, atol=1e-5)  # another batch, another last bit
    if method == "ddim":
        assert not torch.allclose(frames[1], back[0], atol=1e-3)


@pytest.mark.parametrize("method", ["heun", "edict", "bdia", "belm"])
def test_between_codes_of_any_method_lie_arcs_of_plain_latents(model, pictures, method):
    """The state of another method holds what its own way forward needs; mixed, it leaves what the model has seen."""
    code = ddim.invert(model, pictures, steps=4, method=method)
    frames = ddim.interpolate(model, code, frames=5)
    plain = ddim.invert(model, ddim.reconstruct(model, code), steps=4)
    assert torch.allclose(frames[1:-1], ddim.interpolate(model, plain, frames=5)[1:-1], rtol=0, atol=1e-4)
    mixed = ddim.interpolate(model, code, frames=5, through="state")
    assert torch.allclose(mixed[[0, -1]], frames[[0, -1]], rtol=0, atol=1e-4)
    assert not torch.allclose(mixed[1:-1], frames[1:-1], rtol=0, atol=1e-3)


def test_an_interpolation_counts_every_step_of_its_walks(model, pictures):
    seen = []
    code = ddim.invert(model, pictures, steps=4, method="bdia")
    ddim.interpolate(model, code, frames=5, on_event=steps_into(seen))
    assert seen == [(k, 11) for k in range(1, 12)]  # the code lies past the first step: 3 + 4 + 4


def test_an_unknown_way_between(model, pictures):
    with pytest.raises(ddim.InputError, match=r"Unknown through 'stat'\. Did you mean 'state'"):
        ddim.interpolate(model, ddim.invert(model, pictures, steps=2), through="stat")


def test_codes_may_come_one_by_one(model, pictures):
    code = ddim.invert(model, pictures, steps=4)
    apart = ddim.interpolate(model, code[0], code[1], frames=3)
    assert torch.equal(apart, ddim.interpolate(model, code, frames=3))


def test_a_grid_of_four(model):
    code = ddim.invert(model, torch.rand(4, 1, 8, 8), steps=3)
    out = ddim.interpolate_grid(model, code, rows=3, columns=4)
    assert out.shape == (12, 1, 8, 8)
    corners = out[[0, 3, 8, 11]]
    assert torch.allclose(corners, ddim.reconstruct(model, code), rtol=0, atol=1e-5)


def test_labels_of_an_interpolation():
    conditional = tiny.model(classes=3)
    same, other = (ddim.invert(conditional, torch.rand(2, 1, 8, 8), steps=3, labels=k) for k in ([1, 1], [0, 1]))
    assert ddim.interpolate(conditional, same, frames=5).shape == (5, 1, 8, 8)
    with pytest.raises(ddim.InputError, match="different labels"):
        ddim.interpolate(conditional, other, frames=5)


def test_codes_that_do_not_belong_together(model, pictures):
    code = ddim.invert(model, pictures[:1], steps=3)
    others = {
        "methods": ddim.invert(model, pictures[:1], steps=3, method="heun"),
        "one has 3 leading steps, the other 4 leading": ddim.invert(model, pictures[:1], steps=4),
        "3 leading steps, the other 3 trailing": ddim.invert(model, pictures[:1], steps=3, spacing="trailing"),
        "fingerprints": ddim.invert(tiny.model(), pictures[:1], steps=3),
    }
    for says, other in others.items():
        with pytest.raises(ddim.InputError, match=says):
            ddim.interpolate(model, code, other)
    a, b = (ddim.invert(model, pictures[:1], steps=3, method="bdia", options={"gamma": g}) for g in (1.0, 0.9))
    with pytest.raises(ddim.InputError, match=r"their options are .*gamma': 1.0.* and .*gamma': 0.9"):
        ddim.interpolate(model, a, b)


def test_too_few_codes(model, pictures):
    code = ddim.invert(model, pictures[:1], steps=3)
    with pytest.raises(ddim.InputError, match="at least two"):
        ddim.interpolate(model, code)
    with pytest.raises(ddim.InputError, match="at least two"):
        ddim.interpolate(model)
    with pytest.raises(ddim.InputError, match="four corners; 1 were given"):
        ddim.interpolate_grid(model, code)
    with pytest.raises(ddim.InputError, match="frames: 1"):
        ddim.interpolate(model, code, code, frames=1)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"steps": 0}, "steps: 0 does not fit this model; use a whole number from 1 to 1000"),
        ({"steps": 1001}, "steps: 1001 does not fit"),
        ({"steps": 2.5}, "steps: 2.5 does not fit"),
        ({"eta": -0.1}, r"eta: -0.1 lies outside \[0, 1\]"),
        ({"eta": 1.5}, r"eta: 1.5 lies outside"),
        ({"eta": float("nan")}, "eta: nan lies outside"),
        ({"solver": "dimm"}, "Unknown solver 'dimm'. Did you mean 'ddim'"),
        ({"solver": "dpm++"}, r"Did you mean 'dpm\+\+2m'"),
        ({"solver": "zzz"}, "Unknown solver 'zzz'. Known: adams-bashforth, bdia, belm"),
        ({"spacing": "karass"}, "Did you mean 'karras'"),
        ({"spacing": [2000]}, "t: 2000 cannot be a step's start"),
        ({"solver": "bdia", "options": {"gama": 1}}, "Unknown option of 'bdia' 'gama'. Did you mean 'gamma'"),
        ({"solver": "bdia", "options": {"gamma": 0}}, r"gamma: 0 lies outside \(0, 1\]"),
        ({"solver": "bdia", "options": {"gamma": "high"}}, "gamma: 'high' of 'bdia' is not a number"),
        ({"solver": "edict", "options": {"p": 1.2}}, r"p: 1.2 lies outside \(0, 1\]"),
        ({"solver": "heun", "options": {"rho": 1}}, "'heun' takes no options, but 'rho' was given"),
        ({"options": {"eta": 2.0}}, "eta: 2 lies outside"),
        ({"eta": 0.5, "options": {"eta": 0.5}}, "eta: it is given twice"),
        ({"count": 0}, "count: 0 is not a number of images"),
        ({"count": 1.5}, "count: 1.5 is not"),
        ({"count": True}, "count: True is not"),
        ({"batch": 0}, "batch: 0 is not a number of images"),
        ({"batch": 2.0}, "batch: 2.0 is not a number of images"),
        ({"seed": -1}, "seed: -1 is not a whole number"),
        ({"seed": 0.5}, "seed: 0.5 is not a whole number"),
        ({"labels": [0]}, "is unconditional; it takes no class labels"),
        ({"clip_x0": 1.0, "threshold": 0.9}, "clip_x0: it does not go with threshold"),
        ({"clip_x0": 0.0}, "clip_x0: 0"),
        ({"clip_x0": -1.0}, "clip_x0: -1"),
        ({"threshold": 1.5}, r"threshold: 1\.5 lies outside"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_used(model, arguments, says):
    with pytest.raises(ddim.InputError, match=says):
        ddim.sample(model, **{"count": 1, "steps": 2} | arguments)


@pytest.mark.parametrize("solver", [n for n in ddim.SOLVERS if n != "ddim"])
def test_eta_goes_with_ddim_only(model, solver):
    why = "always draws" if ddim.make_solver(solver).stochastic else "is deterministic"
    with pytest.raises(ddim.InputError, match=f"goes with the solver 'ddim' only.*{why}"):
        ddim.sample(model, 1, steps=2, solver=solver, eta=0.5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"method": "bdai"}, "Unknown method 'bdai'. Did you mean 'bdia'"),
        (
            {"method": "ddpm"},
            "method: 'ddpm' cannot be inverted; use one of: ddim, heun, null-text, negative-prompt, direct",
        ),
        ({"method": "dpm++2m"}, "cannot be inverted"),
        ({"method": "edict", "options": {"q": 1}}, "Did you mean 'p'|Known: p"),
        ({"steps": 0}, "steps: 0 does not fit"),
        ({"batch": -1}, "batch: -1"),
        ({"spacing": "even"}, "Unknown spacing 'even'"),
        ({"labels": [1]}, "is unconditional"),
    ],
    ids=str,
)
def test_an_inversion_that_cannot_be(model, pictures, arguments, says):
    with pytest.raises(ddim.InputError, match=says):
        ddim.invert(model, pictures, **{"steps": 2} | arguments)


def test_a_picture_that_does_not_fit(model):
    with pytest.raises(ddim.InputError, match=r"the model takes \(1, 8, 8\)"):
        ddim.invert(model, torch.rand(1, 9, 9), steps=2)
    assert ddim.invert(model, torch.rand(3, 9, 9), steps=2, resize=True).x.shape == (1, 1, 8, 8)


def test_nan_from_the_network_names_the_step():
    network = tiny.unet()
    network.register_forward_hook(lambda m, args, out: (out[0] * (float("nan") if args[1] < 400 else 1),))
    with pytest.raises(DDIMError, match=r"from t = 301 to t = 201 \(step 7 of 10\): the network returned NaN"):
        ddim.sample(PixelModel("tiny", network, {}), 1, steps=10)


def test_eps_prediction_at_zero_signal_says_why():
    model = tiny.model(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ddim.InputError, match="prediction: 'eps' says nothing where no signal is left"):
        ddim.sample(model, 1, steps=5)


def test_oracles_are_models_denoisers_too():
    # a user's own Denoiser goes through the loop without any model
    from oracles import gaussian

    grid, solver = ddim.make_grid(ddim.RectifiedFlow(), 20), ddim.make_solver("heun")
    assert ddim.solve(gaussian(3), solver, solver.init(noise_like((2, 3)), grid), grid)["x"].isfinite().all()


@pytest.mark.parametrize(
    ("maker", "labels", "other"),
    [
        (tiny.model(classes=4), [3], tiny.model()),
        (tiny.model(), None, tiny.model(classes=4)),
        (tiny.model(classes=4), [3], tiny.model(classes=2)),
    ],
    ids=["labels and none", "none and labels", "a class too many"],
)
def test_a_code_of_another_condition_is_one_sentence(maker, labels, other):
    code = ddim.invert(maker, torch.zeros(1, 1, 8, 8), steps=2, labels=labels)
    for verb in (ddim.reconstruct, lambda model, code: ddim.interpolate(model, code, code)):
        with pytest.raises(ddim.InputError) as caught:
            verb(other, replace(code, fingerprint=""))
        assert caught.value.parameter == "code"
