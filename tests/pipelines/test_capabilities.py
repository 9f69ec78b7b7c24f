"""What works on a model is told by the checks that refuse it, before any work."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import tiny
import tiny_flow
import tiny_text
import torch
from refusals import refused

import ddim
from ddim._utils.errors import InputError
from ddim.models.base import Model
from ddim.pipelines.capabilities import CONTROLS, capabilities


def whole_timesteps() -> Model:
    schedule = ddim.Schedule(ddim.ddpm_linear(), "eps")
    return Model.from_network(lambda x, t: 0 * x, schedule, shape=(1, 8, 8), timestep_dtype=torch.int64)


FAMILIES = tiny_flow.FAMILIES
MADE: dict[str, Callable[[], Model]] = {
    "unconditional": tiny.model,
    "x0": lambda: tiny.model(prediction_type="sample"),
    "classes": lambda: tiny.model(classes=3),
    "whole timesteps": whole_timesteps,
    "text": tiny_text.model,
    **{name: FAMILIES[name].model for name in FAMILIES},
}
models = pytest.mark.parametrize("name", MADE)
few = pytest.mark.parametrize(
    "name", [name for name in MADE if name not in FAMILIES or name in ("sd3", "flux schnell")]
)
pytestmark = pytest.mark.filterwarnings("ignore::ddim._utils.errors.DDIMWarning")  # of codes of random networks


@cache
def model_of(name: str) -> Model:
    return MADE[name]()


SKIP = ddim.SkipLayers((0,), interval=(0.0, 1.0))
GUIDED = {"null-text", "negative-prompt", "prox-npi", "spd"}
NO: dict[str, dict[str, set[str]]] = {
    "unconditional": {"solvers": set(), "inversions": GUIDED, "controls": set(CONTROLS)},
    "x0": {"solvers": {"rex", "reversible-heun"}, "inversions": {*GUIDED, "rex", "reversible-heun"}},
    "classes": {
        "inversions": {"null-text"},
        "controls": {"prompt", "attention", "features", "negative", "embedded", "skip"},
    },
    "whole timesteps": {
        "solvers": {"rex", "midpoint", "fireflow"},
        "inversions": {*GUIDED, "rex", "rf-solver", "fireflow"},
    },
    "text": {"solvers": set(), "inversions": set(), "controls": {"class", "embedded", "skip"}},
    "sd3": {"solvers": set(), "inversions": set()},
    "flux dev": {"solvers": set(), "inversions": GUIDED},
    "flux schnell": {"solvers": set(), "inversions": GUIDED},
    "qwen-image": {
        "solvers": set(),
        "inversions": set(),
        "controls": {"class", "features", "rescale", "embedded", "skip"},
    },
}


@pytest.mark.parametrize("name", NO)
def test_what_does_not_work(name: str):
    table = capabilities(model_of(name))
    for kind, expected in NO[name].items():
        assert {method for method, reason in table[kind].items() if reason} == expected, kind


def test_distilled_guidance_takes_a_scale_and_the_fully_distilled_takes_nothing():
    controls = {name: capabilities(model_of(name))["controls"] for name in ("flux dev", "flux schnell")}
    assert [controls["flux dev"][key] for key in ("guidance", "negative", "embedded")] == [None] * 3
    assert all(controls["flux schnell"][key] for key in ("guidance", "negative", "embedded"))


@models
def test_a_reason_is_one_sentence(name: str):
    for reasons in capabilities(model_of(name)).values():
        for reason in reasons.values():
            assert reason is None or (reason.endswith(".") and "\n" not in reason and ". " not in reason)


def told(work: Callable[[], Any]) -> str | None:
    """The sentence that refuses a piece of work; None if it is done."""
    try:
        work()
    except InputError as error:
        return error.message
    return None


def conditions(model: Model, **more: Any) -> dict[str, Any]:
    if model.text:
        return {"prompt": "a cat", **more}
    return {"labels": 1} if model.classes else {}


@few
def test_the_table_is_what_the_pipelines_do(name: str):
    model = model_of(name)
    table, picture = capabilities(model), torch.rand(1, *model.picture, generator=torch.Generator().manual_seed(0))
    weight = {} if table["controls"]["guidance"] else {"guidance": 3.0}
    for solver, reason in table["solvers"].items():
        given = {**conditions(model), **weight}
        assert told(lambda s=solver, g=given: ddim.sample(model, 1, steps=3, solver=s, **g)) == reason, solver
    for method, reason in table["inversions"].items():
        given = {**conditions(model), **weight, **({"options": {"inner": 1}} if method == "null-text" else {})}
        assert told(lambda m=method, g=given: ddim.invert(model, picture, steps=3, method=m, **g)) == reason, method


@models
def test_controls_are_what_the_pipelines_do(name: str, monkeypatch: pytest.MonkeyPatch):
    """What works is done, and what does not is refused with the reason of the table, before any work."""
    model = model_of(name)
    controls, given = capabilities(model)["controls"], conditions(model)
    picture = torch.rand(1, *model.picture, generator=torch.Generator().manual_seed(0))

    def edit(*prompt: str, attention: str | None = None, **more: Any) -> ddim.Edited:
        return ddim.edit(model, picture, *prompt, steps=2, attention=attention, **more)  # type: ignore[arg-type]

    words = {"source_prompt": "a cat", "attention": "none"}
    acts: dict[str, Callable[[], Any]] = {
        "prompt": lambda: edit("a dog", **words) if model.text else edit("a dog"),
        "class": lambda: edit(labels=0, **({"source_labels": 1} if model.classes else {})),
        "attention": lambda: edit("a dog", **({"source_prompt": "a cat"} if model.text else {})),
        "features": lambda: edit(
            "a dog", attention="plug-and-play", **({"source_prompt": "a cat"} if model.text else {})
        ),
        "guidance": lambda: ddim.sample(model, 1, steps=2, guidance=2.0, **given),
        "rescale": lambda: ddim.sample(model, 1, steps=2, guidance=ddim.Guidance(2.0, rescale=0.5), **given),
        "negative": lambda: ddim.sample(
            model, 1, steps=2, negative="grey", **given, **({"guidance": 2.0} if not controls["guidance"] else {})
        ),
        "embedded": lambda: ddim.sample(model, 1, steps=2, guidance=ddim.Guidance(embedded=1.0), **given),
        "skip": lambda: ddim.sample(model, 1, steps=2, guidance=ddim.Guidance(2.0, skip=SKIP), **given),
    }
    assert acts.keys() == controls.keys()
    for control, act in acts.items():
        reason = controls[control]
        with monkeypatch.context() as patch:
            for work in ("forward", "encode", "encode_prompt") if reason else ():
                patch.setattr(model, work, nothing)
            refusal = told(act)
        assert (reason is None) == (refusal is None), (control, refusal)
        if control not in ("embedded", "skip") or model.text:  # a model without conditions refuses all guidance
            assert refusal == reason, control


ASKED: dict[str, dict[str, Any]] = {
    "guidance": {"guidance": 2.0},
    "rescale": {"guidance": ddim.Guidance(2.0, rescale=0.5)},
    "negative": {"negative": "grey"},
    "embedded": {"guidance": ddim.Guidance(embedded=1.0)},
    "skip": {"guidance": ddim.Guidance(2.0, skip=SKIP)},
}
"""Controls of guidance -> the arguments of a verb that ask for it."""


@pytest.mark.parametrize("name", ["text", *FAMILIES])
def test_every_verb_refuses_with_the_reason_of_the_table(name: str, monkeypatch: pytest.MonkeyPatch):
    model = model_of(name)
    picture = torch.rand(1, *model.picture)
    code = ddim.invert(model, picture, steps=2, prompt="a cat")
    for work in ("forward", "encode", "encode_prompt", "condition"):
        monkeypatch.setattr(model, work, nothing)
    monkeypatch.setattr("ddim.pipelines.invert.read_pictures", nothing)
    monkeypatch.setattr("ddim.pipelines.edit_source.read_pictures", nothing)
    for control, asked in ASKED.items():
        reason = capabilities(model)["controls"][control]
        if reason is None:
            continue
        verbs: dict[str, Callable[[], Any]] = {
            "sample": lambda more=asked: ddim.sample(model, 1, steps=2, prompt="a cat", **more),
            "invert": lambda more=asked: ddim.invert(model, picture, steps=2, prompt="a cat", **more),
            "edit": lambda more=asked: ddim.edit(model, picture, "a dog", source_prompt="a cat", **more),
        }
        if control != "negative":  # a code has its own
            verbs["edit a code"] = lambda more=asked: ddim.edit(model, code, "a dog", **more)
        assert {verb: told(act) for verb, act in verbs.items()} == dict.fromkeys(verbs, reason), control


FORMS = (
    *("sd3", "flux dev", "flux schnell", "flux kontext", "flux2 klein", "flux2 base"),
    *("chroma", "qwen-image", "z-image", "lumina2", "sana"),
)
"""A column of the table each."""
EVERY_STEP: dict[str, Any] = {"cross_steps": (0.0, 1.0), "blend_start": 0.5}
AT_THE_IMAGE: dict[str, Any] = {"self_steps": (0.0, 1.0), "value_steps": (0.0, 1.0)}
"""Further settings, where a layer that can be controlled looks at the image."""


@pytest.mark.parametrize("method", ddim.INVERSIONS)
@pytest.mark.parametrize("name", FORMS)
def test_every_method_edits_with_every_control_that_works(name: str, method: str):
    """All controls of the table that work, in one edit; the source beside the target comes back as without them."""
    model = model_of(name)
    table = capabilities(model)
    if table["inversions"][method]:
        pytest.skip("it is refused, as another test shows")
    works = {control: reason is None for control, reason in table["controls"].items()}
    guidance = ddim.Guidance(
        3.0 if works["guidance"] else 1.0,
        rescale=0.5 if works["rescale"] else 0.0,
        interval=(0.1, 1.0) if works["guidance"] else (0.0, 1.0),
        embedded=2.0 if works["embedded"] else None,
        skip=SKIP if works["skip"] else None,
    )
    words: dict[str, Any] = {"weights": {"zebra": 2.0}, "blend": "cat/zebra"} if works["attention"] else {}
    looks = works["attention"] and any(site.picture for site in model.attention_sites())
    every = {**EVERY_STEP, **(AT_THE_IMAGE if looks else {})}
    edited = ddim.edit(
        model,
        torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)),
        "a zebra",
        source_prompt="a cat",
        # an object, because the name may be that of an editor
        method=ddim.make_inversion(method, {"inner": 1} if method == "null-text" else None),
        steps=3,
        guidance=guidance,
        negative="grey" if works["negative"] else None,
        attention=ddim.AttentionEdit(**every) if works["attention"] else "none",
        **words,
    )
    assert torch.isfinite(edited.edits).all()
    assert float((edited.edits[:, 0] - edited.reconstruction).abs().max()) > 1e-4
    assert float((edited.reconstruction - ddim.reconstruct(model, edited.code)).abs().max()) < 1e-3


def nothing(*_: Any, **__: Any) -> None:
    raise AssertionError("some work was done")


@few
@pytest.mark.parametrize("method", ["null-text", "negative-prompt", "rex", "reversible-heun"])
def test_refused_methods_do_no_work(name: str, method: str, monkeypatch: pytest.MonkeyPatch):
    model = model_of(name)
    reason = capabilities(model)["inversions"][method]
    if reason is None:
        pytest.skip("it works")
    for work in ("forward", "encode", "encode_prompt", "condition"):
        monkeypatch.setattr(model, work, nothing)
    monkeypatch.setattr("ddim.pipelines.invert.read_pictures", nothing)
    monkeypatch.setattr("ddim.pipelines.edit_source.read_pictures", nothing)
    with refused("method", repr(method)):
        ddim.invert(model, "no-such-file.png", method=method, **conditions(model))
    if model.text:
        with refused("method", repr(method)):
            ddim.edit(model, "no-such-file.png", "a dog", source_prompt="a cat", method=method)


def test_null_text_at_weight_one_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch):
    model = tiny_text.model()
    monkeypatch.setattr(model, "encode_prompt", nothing)
    monkeypatch.setattr("ddim.pipelines.invert.read_pictures", nothing)
    with refused("guidance", 1, "'null-text'"):
        ddim.invert(model, "no-such-file.png", method="null-text", prompt="a cat")


@pytest.mark.parametrize(
    ("guidance", "parameter", "value"),
    [
        (ddim.Guidance(1.0, rescale=0.7), "rescale", 0.7),
        (ddim.Guidance(1.0, interval=(0.2, 0.8)), "interval", "(0.2, 0.8)"),
    ],
)
def test_settings_of_guidance_without_effect_are_refused(guidance: ddim.Guidance, parameter: str, value: object):
    with refused(parameter, value):
        ddim.sample(tiny_text.model(), 1, steps=1, prompt="a cat", guidance=guidance)
    with refused(parameter, value):
        ddim.sample(model_of("flux schnell"), 1, steps=1, prompt="a cat", guidance=guidance)
    model = tiny_text.model()
    picture = torch.rand(1, *model.picture)
    code = ddim.invert(model, picture, steps=1, prompt="a cat", guidance=2.0)
    for source in ({"source": picture, "source_prompt": "a cat"}, {"source": code}):
        with refused(parameter, value):
            ddim.edit(model, prompt="a dog", guidance=guidance, **source)  # type: ignore[arg-type]


def test_a_code_may_keep_its_settings_of_guidance_at_weight_one():
    """They act again at another weight; only those that were asked for are refused."""
    model = tiny_text.model()
    own = ddim.Guidance(2.0, rescale=0.7, interval=(0.2, 0.8))
    code = ddim.invert(model, torch.rand(1, *model.picture), steps=2, prompt="a cat", guidance=own)
    ddim.edit(model, code, "a dog", guidance=own.at(1.0))
    with refused("rescale", 0.5):
        ddim.edit(model, code, "a dog", guidance=ddim.Guidance(1.0, rescale=0.5, interval=(0.2, 0.8)))


def test_a_negative_prompt_without_effect_is_refused_of_an_edit():
    model = tiny_text.model()
    picture = torch.rand(1, *model.picture)
    with refused("negative", "'grey'"):
        ddim.edit(model, picture, "a dog", source_prompt="a cat", guidance=1.0, negative="grey")
