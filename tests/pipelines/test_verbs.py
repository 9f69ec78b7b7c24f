"""What a user calls, on a tiny network, with good input and with every bad one."""

from dataclasses import replace

import pytest
import tiny
import torch
from oracles import noise_like
from refusals import not_finite, refused, unknown, warned

import ddim
from ddim.core.conditioning import PromptConditioning
from ddim.core.guidance import Guidance
from ddim.core.noise import SeededNoise
from ddim.inversion import INVERSIONS
from ddim.inversion.ddim import DDIMInversion
from ddim.models.pixel import PixelModel
from ddim.pipelines.events import CodeEvent, ImagesEvent, StepEvent
from ddim.solvers import REVERSIBLE
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
    with refused("options"):
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
    with refused("options"):
        ddim.sample(model, 1, steps=2, solver=solver, options={"gamma": 0.5})
    with refused("eta", 0.5, "'ddim'", repr(solver.name)):
        ddim.sample(model, 1, steps=2, solver=solver, eta=0.5)


@pytest.mark.parametrize("wrong", [DDIMInversion(), BDIA, 3])
def test_what_is_no_solver(model, wrong):
    with refused("solver", type(wrong).__name__):
        ddim.sample(model, 1, steps=2, solver=wrong)


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
    with warned("'tiny'", "'other'"):
        assert ddim.reconstruct(other, code).shape == pictures.shape


def test_a_code_of_another_shape_is_refused(model, pictures):
    code = ddim.invert(model, pictures, steps=3)
    with refused("code", (1, 8, 8), (3, 8, 8)):
        ddim.reconstruct(tiny.model(channels=3), code)


def test_a_code_of_an_unknown_solver_is_refused(model, pictures):
    code = ddim.invert(model, pictures, steps=3)
    with unknown("solver", "ddym", nearest="ddpm"):
        ddim.reconstruct(model, replace(code, solver="ddym"))
    with refused("code", "y", "'edict'"):
        ddim.reconstruct(model, replace(code, solver="edict", options={}))
    with refused("code", "'ddim'", "noise"):
        ddim.reconstruct(model, replace(code, options={"eta": 0.5}))


def test_a_code_in_another_dtype_warns(pictures):
    code = ddim.invert(tiny.model(), pictures, steps=3)
    with warned("bfloat16", "float32"):
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


@pytest.mark.parametrize("method", ["heun", *REVERSIBLE])
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


ASKING = [name for name, kind in REVERSIBLE.items() if kind.asks_data]


@pytest.mark.filterwarnings("ignore:The code of:ddim.DDIMWarning")  # of a random network, no latent
@pytest.mark.parametrize("name", ASKING)
def test_a_solver_that_asks_at_the_data_is_refused_for_predicted_x0_before_any_work(pictures, name):
    model, calls = tiny.model(prediction_type="sample"), []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    with refused("solver", repr(name), "'tiny'", "x0"):
        ddim.sample(model, 1, steps=3, solver=name)
    with refused("method", repr(name), "'tiny'", "x0"):
        ddim.invert(model, pictures, steps=3, method=name)
    code = ddim.invert(tiny.model(), pictures, steps=3, method=name)
    with refused("code", repr(name), "'tiny'", "x0"), warned("'tiny'"):
        ddim.reconstruct(model, code)
    assert not calls
    noisy = tiny.model(prediction_type="sample", _class_name="DDIMScheduler", set_alpha_to_one=False)
    assert noisy.schedule.path.node(0).sigma > 0  # so that its data says something
    assert ddim.reconstruct(noisy, ddim.invert(noisy, pictures, steps=3, method=name)).shape == pictures.shape


def test_an_unknown_way_between(model, pictures):
    with unknown("through", "stat", nearest="state"):
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
    with refused("codes", "labels"):
        ddim.interpolate(conditional, other, frames=5)


def test_codes_that_do_not_belong_together(model, pictures):
    code = ddim.invert(model, pictures[:1], steps=3)
    others = [
        (("'ddim'", "'heun'"), ddim.invert(model, pictures[:1], steps=3, method="heun")),
        ((3, 4), ddim.invert(model, pictures[:1], steps=4)),
        (("leading", "trailing"), ddim.invert(model, pictures[:1], steps=3, spacing="trailing")),
        ((code.fingerprint[:12],), ddim.invert(tiny.model(), pictures[:1], steps=3)),
    ]
    for named, other in others:
        with refused("codes", *named):
            ddim.interpolate(model, code, other)
    a, b = (ddim.invert(model, pictures[:1], steps=3, method="bdia", options={"gamma": g}) for g in (1.0, 0.9))
    with refused("codes", "gamma", 1.0, 0.9):
        ddim.interpolate(model, a, b)


def test_too_few_codes(model, pictures):
    code = ddim.invert(model, pictures[:1], steps=3)
    with refused("codes"):
        ddim.interpolate(model, code)
    with refused("codes"):
        ddim.interpolate(model)
    with refused("corners", 1):
        ddim.interpolate_grid(model, code)
    with refused("frames", 1):
        ddim.interpolate(model, code, code, frames=1)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ({"steps": 0}, refused("steps", 0, 1, 1000)),
        ({"steps": 1001}, refused("steps", 1001, 1000)),
        ({"steps": 2.5}, refused("steps", 2.5, 1000)),
        ({"eta": -0.1}, refused("eta", -0.1)),
        ({"eta": 1.5}, refused("eta", 1.5)),
        ({"eta": float("nan")}, refused("eta", "nan")),
        ({"solver": "dimm"}, unknown("solver", "dimm", nearest="ddim")),
        ({"solver": "dpm++"}, unknown("solver", "dpm++", nearest="dpm++2m")),
        ({"solver": "zzz"}, unknown("solver", "zzz", *ddim.SOLVERS)),
        ({"spacing": "karass"}, unknown("spacing", "karass", nearest="karras")),
        ({"spacing": [2000]}, refused("t", 2000, 1000)),
        ({"solver": "bdia", "options": {"gama": 1}}, unknown("options", "gama", "'bdia'", nearest="gamma")),
        ({"solver": "bdia", "options": {"gamma": 0}}, refused("gamma", 0)),
        ({"solver": "bdia", "options": {"gamma": "high"}}, refused("gamma", "'high'", "'bdia'")),
        ({"solver": "edict", "options": {"p": 1.2}}, refused("p", 1.2)),
        ({"solver": "heun", "options": {"rho": 1}}, refused("rho", "'heun'")),
        ({"options": {"eta": 2.0}}, refused("eta", 2)),
        ({"eta": 0.5, "options": {"eta": 0.5}}, refused("eta", 0.5)),
        ({"count": 0}, refused("count", 0)),
        ({"count": 1.5}, refused("count", 1.5)),
        ({"count": True}, refused("count", True)),
        ({"batch": 0}, refused("batch", 0)),
        ({"batch": 2.0}, refused("batch", 2.0)),
        ({"seed": -1}, refused("seed", -1)),
        ({"seed": 0.5}, refused("seed", 0.5)),
        ({"labels": [0]}, refused("labels", "'tiny'")),
        ({"clip_x0": 1.0, "threshold": 0.9}, refused("clip_x0", "threshold")),
        ({"clip_x0": 0.0}, refused("clip_x0", 0.0)),
        ({"clip_x0": -1.0}, refused("clip_x0", -1.0)),
        ({"threshold": 1.5}, refused("threshold", 1.5)),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_used(model, arguments, refusal):
    with refusal:
        ddim.sample(model, **{"count": 1, "steps": 2} | arguments)


@pytest.mark.parametrize("solver", [n for n in ddim.SOLVERS if n != "ddim"])
def test_eta_goes_with_ddim_only(model, solver):
    why = "gamma" if solver == "tcd" else "noise" if ddim.make_solver(solver).stochastic else "deterministic"
    with refused("eta", 0.5, "'ddim'", repr(solver), why):
        ddim.sample(model, 1, steps=2, solver=solver, eta=0.5)


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        ({"method": "bdai"}, unknown("method", "bdai", nearest="bdia")),
        ({"method": "ddpm"}, refused("method", "'ddpm'", *ddim.inversion_names())),
        ({"method": "dpm++2m"}, refused("method", "'dpm++2m'")),
        ({"method": "edict", "options": {"q": 1}}, unknown("options", "q", "'edict'", "p")),
        ({"method": "rex", "options": {"tableau": "rk5"}}, unknown("tableau", "rk5", nearest="rk4")),
        ({"method": "rex", "options": {"zeta": 0}}, refused("zeta", 0, 0.999)),
        ({"method": "rex", "options": {"zeta": 1.1}}, refused("zeta", 1.1)),
        ({"steps": 0}, refused("steps", 0)),
        ({"batch": -1}, refused("batch", -1)),
        ({"spacing": "even"}, unknown("spacing", "even")),
        ({"labels": [1]}, refused("labels", "'tiny'")),
    ],
    ids=str,
)
def test_an_inversion_that_cannot_be(model, pictures, arguments, refusal):
    with refusal:
        ddim.invert(model, pictures, **{"steps": 2} | arguments)


def test_a_picture_that_does_not_fit(model):
    with refused("images", (1, 9, 9), (1, 8, 8)):
        ddim.invert(model, torch.rand(1, 9, 9), steps=2)
    assert ddim.invert(model, torch.rand(3, 9, 9), steps=2, resize=True).x.shape == (1, 1, 8, 8)


def test_nan_from_the_network_names_the_step():
    network = tiny.unet()
    network.register_forward_hook(lambda m, args, out: (out[0] * (float("nan") if args[1] < 400 else 1),))
    with not_finite(7, 301, 201):
        ddim.sample(PixelModel("tiny", network, {}), 1, steps=10)


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
