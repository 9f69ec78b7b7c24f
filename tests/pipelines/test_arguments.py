"""What a verb is given and cannot use is one sentence, before any work: the wrong kind of thing, or no say here."""

import math
from fractions import Fraction

import numpy as np
import pytest
import tiny
import tiny_text
import torch

import ddim
from ddim.core.conditioning import PromptConditioning
from ddim.core.contracts import InversionProblem
from ddim.core.denoiser import from_network
from ddim.inversion import INVERSIONS, make_inversion
from ddim.models.base import Model
from ddim.solvers.heun import Heun


def fails(*words: object, code: int) -> str:
    """As the commands' own tests have it; only those that need a command import it."""
    from commands import fails

    return fails(*words, code=code)


PICTURES = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def text():
    return tiny_text.model()


@pytest.fixture(scope="module")
def conditional():
    return tiny.model(classes=3)


@pytest.fixture(scope="module")
def code(model):
    return ddim.invert(model, PICTURES, steps=2)


def refused(parameter, call, *arguments, **options) -> ddim.InputError:
    with pytest.raises(ddim.InputError) as caught:
        call(*arguments, **options)
    assert caught.value.parameter == parameter
    return caught.value


# --- no say here ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [7.5, 1.0, 0.0, ddim.Guidance(3.0)], ids=str)
def test_guidance_of_a_model_without_conditions(model, guidance):
    assert "takes none" in str(refused("guidance", ddim.sample, model, 1, steps=2, guidance=guidance))
    refused("guidance", ddim.invert, model, PICTURES, steps=2, guidance=guidance)


@pytest.mark.parametrize("guidance", [7.5, 1.0, ddim.Guidance(3.0)], ids=str)
def test_guidance_of_classes_without_one_that_stands_for_none(guidance):
    schedule = tiny.model().schedule
    model = Model.from_network(lambda x, t, labels: x, schedule, shape=(1, 8, 8), labels=3)
    assert "null class" in str(refused("guidance", ddim.sample, model, 1, steps=2, guidance=guidance, labels=1))
    refused("guidance", ddim.invert, model, PICTURES, steps=2, guidance=guidance, labels=1)
    assert len(ddim.sample(model, 1, steps=2, labels=1)) == 1


def test_an_embedded_guidance_that_no_network_is_told(text, conditional):
    told = ddim.Guidance(3.0, embedded=3.5)
    refused("embedded", ddim.sample, text, 1, steps=2, prompt="a cat", guidance=told)
    refused("embedded", ddim.sample, conditional, 1, steps=2, labels=1, guidance=told)


def test_guidance_by_default_is_not_given(model, text):
    assert len(ddim.sample(model, 1, steps=2)) == 1
    drawn = ddim.sample(text, 1, steps=2, prompt="a cat")
    assert torch.equal(drawn, ddim.sample(text, 1, steps=2, prompt="a cat", guidance=7.5))
    assert ddim.invert(text, tiny_text.pictures(), steps=2, prompt="a cat").guidance["weight"] == 1.0


def test_the_weight_of_the_way_back_of_a_model_without_text(model):
    refused("inversion_guidance", ddim.invert, model, PICTURES, steps=2, inversion_guidance=1.0)


def test_words_of_a_model_without_text(model):
    refused("negative", ddim.sample, model, 1, steps=2, negative="a dog")
    refused("negative", ddim.invert, model, PICTURES, steps=2, negative="a dog")
    refused("prompt", ddim.sample, model, 1, steps=2, prompt="a dog")


def test_a_negative_prompt_at_weight_one(text):
    refused("negative", ddim.sample, text, 1, steps=2, prompt="a cat", negative="a dog", guidance=1.0)
    # invert keeps it for an edit under another weight
    assert ddim.invert(text, tiny_text.pictures(), steps=2, prompt="a cat", negative="a dog").negative == "a dog"


def test_a_classifiers_weight_without_one(model):
    refused("classifier_weight", ddim.sample, model, 1, steps=2, classifier_weight=1.0)


@pytest.mark.parametrize("flags", [["--guidance", "3"], ["--inversion-guidance", "1"], ["--negative", "a dog"]])
def test_the_commands_say_so_too(tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    ddim.save_image(torch.rand(1, 32, 32), "a.png")
    assert flags[0] in fails("invert", "a.png", "--steps", "2", *flags, code=2)


def test_settings_of_the_way_back_for_an_interpolation_of_codes(tmp_path, model, code):
    files = [code[k].save(tmp_path / f"{k}.code.safetensors") for k in (0, 1)]
    for flags in (["--guidance", "3"], ["--prompt", "a"], ["--option", "gamma=0.9"], ["--spacing", "leading"]):
        assert flags[0] in fails("interpolate", *files, *flags, code=2)


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels", [0.0, math.nan, False, True, 3, -1, "1", [0.0], [True], "12", [None], 1.5, {}, object()]
)
def test_labels_that_are_no_classes(conditional, labels):
    refused("labels", ddim.sample, conditional, 1, steps=2, labels=labels)
    refused("labels", ddim.invert, conditional, PICTURES[:1], steps=2, labels=labels)


@pytest.mark.parametrize("labels", [1, [1], np.int64(1), np.array([1]), torch.tensor(1), torch.tensor([1]), (1,)])
def test_labels_of_every_whole_kind(conditional, labels):
    assert torch.equal(
        ddim.sample(conditional, 1, steps=2, labels=labels), ddim.sample(conditional, 1, steps=2, labels=1)
    )


# --- kinds ----------------------------------------------------------------------------------------------------------

NO_MODEL = [tiny.unet(), lambda x, node, cond=None: x, "fashion", None, torch.zeros(1)]


@pytest.mark.parametrize("wrong", NO_MODEL, ids=lambda v: type(v).__name__)
def test_what_is_no_model(wrong, code):
    for call, arguments in [
        (ddim.sample, ()),
        (ddim.invert, (PICTURES,)),
        (ddim.reconstruct, (code,)),
        (ddim.interpolate, (code,)),
        (ddim.interpolate_grid, (code, code)),
        (ddim.edit, (PICTURES, "a dog")),
    ]:
        refused("model", call, wrong, *arguments)


@pytest.mark.parametrize("wrong", [tiny.unet(), tiny.model(), None, 3, torch.zeros(1)], ids=lambda v: type(v).__name__)
def test_what_load_does_not_take(wrong):
    refused("model", ddim.load, wrong)


@pytest.mark.parametrize("wrong", [PICTURES, "a.code.safetensors", None, [1]], ids=lambda v: type(v).__name__)
def test_what_is_no_code(model, code, wrong):
    refused("code", ddim.reconstruct, model, wrong)
    refused("codes", ddim.interpolate, model, code, wrong)
    refused("codes", ddim.interpolate_grid, model, code, code, code, wrong)


def test_codes_in_a_list(model, code):
    refused("codes", ddim.interpolate, model, [code, code])


@pytest.mark.parametrize("wrong", [None, 5, ["ddim"], Heun(), ddim.SOLVERS["bdia"], lambda x: x])
def test_what_is_no_method(model, wrong):
    refused("method", ddim.invert, model, PICTURES, steps=2, method=wrong)


@pytest.mark.parametrize("wrong", [None, 5, ["ddim"]])
def test_what_is_no_methods_name(wrong):
    refused("method", make_inversion, wrong)


@pytest.mark.parametrize("name", [name for name, method in INVERSIONS.items() if method.needs])
def test_a_method_that_needs_conditions_asked_with_a_bare_denoiser(model, name):
    grid = ddim.make_grid(model.schedule.path, 2)
    denoise = model.guided(ddim.Guidance(), PromptConditioning())
    refused("method", make_inversion(name).invert, denoise, PICTURES, grid)


def test_a_method_that_draws_asked_without_a_seed(model):
    grid = ddim.make_grid(model.schedule.path, 3)
    problem = InversionProblem(model)
    refused("seed", make_inversion("edit-friendly").invert, problem, PICTURES, grid)


@pytest.mark.parametrize("wrong", [ddim.load, 5, None])
def test_what_is_no_picture(model, code, wrong):
    refused("images", ddim.invert, model, wrong, steps=2)


def test_a_code_where_pictures_belong(model, code):
    refused("images", ddim.invert, model, code, steps=2)


# --- a bare network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "t", "x_dtype", "dtype", "label"),
    [
        (ddim.ddpm_linear(), 300, torch.float32, torch.int64, 299),
        (ddim.ddpm_linear(), 300.5, torch.float32, torch.float32, 299.5),
        (ddim.ddpm_linear(), 300.5, torch.bfloat16, torch.float32, 299.5),
        (ddim.ddpm_linear(), 300.5, torch.float64, torch.float64, 299.5),
        (ddim.RectifiedFlow(), 0.5, torch.float32, torch.float32, 500),
    ],
)
def test_a_network_is_told_a_label_each(path, t, x_dtype, dtype, label):
    told = []

    def network(x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        told.append(label)
        return torch.zeros_like(x)

    from_network(network, path, "flow")(torch.zeros(3, 1, 2, 2, dtype=x_dtype), path.node(t))
    assert told[0].dtype == dtype
    assert told[0].tolist() == [label] * 3


def test_a_network_that_looks_its_labels_up_works_as_written():
    table = torch.nn.Embedding(1000, 1)

    def network(x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return x * table(label)[:, :, None, None]

    path = ddim.ddpm_linear()
    grid, solver = ddim.make_grid(path, 5), ddim.make_solver("ddim")
    with torch.no_grad():
        end = ddim.solve(from_network(network, path, "eps"), solver, {"x": torch.zeros(2, 1, 4, 4)}, grid)
    assert end["x"].shape == (2, 1, 4, 4)


def test_the_labels_dtype_is_a_choice():
    path, told = ddim.ddpm_linear(), []
    network = lambda x, label: (told.append(label.dtype), x)[1]  # noqa: E731
    from_network(network, path, "eps", timestep_dtype=torch.float64)(torch.zeros(1, 2), path.node(3))
    assert told == [torch.float64]
    refused(
        "timestep_dtype",
        from_network(network, path, "eps", timestep_dtype=torch.int64),
        torch.zeros(1, 2),
        path.node(3.5),
    )


@pytest.mark.parametrize("prediction", ["edm", "edm_v"])
def test_a_network_of_edm_needs_a_schedule(prediction):
    """It takes a scaled x and another timestep, which ``from_network`` of a path alone does not know."""
    error = refused("prediction", from_network, lambda x, label: x, ddim.VEPath(), prediction)
    assert repr(prediction) in error.message
    assert "Model.from_network" in error.message


@pytest.mark.parametrize("prediction", ["epsilon", ["eps"], None])
def test_a_prediction_that_there_is_not(prediction):
    with pytest.raises(ddim.UnknownName):
        from_network(lambda x, label: x, ddim.ddpm_linear(), prediction)


def test_a_fraction_is_no_number_of_pictures(model):
    refused("count", ddim.sample, model, Fraction(3, 2), steps=2)


# --- no signal ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [name for name in INVERSIONS if not INVERSIONS[name].needs])
def test_a_network_that_says_nothing_at_the_first_node_is_not_asked(method, monkeypatch):
    """It predicts eps, and where alpha = 0 the image cannot be computed from eps."""
    model = tiny.model(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    monkeypatch.setattr(model, "forward", None)
    error = refused("spacing", ddim.invert, model, PICTURES, steps=3, method=method)
    assert "t = 1000" in str(error)
    refused("spacing", ddim.sample, model, 1, steps=3)


def test_a_network_of_eps_is_asked_where_a_little_signal_is_left():
    model = tiny.model(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    assert torch.isfinite(ddim.sample(model, 1, steps=3, spacing="leading")).all()
