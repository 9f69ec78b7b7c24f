"""FLUX.2 klein beyond parity: its latents, its shift, its text, references, codes, folders, and what is refused."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny_flux2
import tiny_sdxl
import torch
from bits import inverted, returned, same
from diffusers import FlowMatchEulerDiscreteScheduler
from oracles import noise_like
from recording import recorded
from refusals import refused, warned
from tiny_flow import FAMILIES, STEPS
from torch import Tensor

import ddim
from ddim import Flux2Shift, Guidance, StaticShift
from ddim.models.flux2 import Flux2Klein
from ddim.solvers import REVERSIBLE

PROMPTS = ["a cat", "two red dogs in a garden"]
FAR = 0.01
"""What a wrong number changes, at the least, in parts of the largest value."""
FORMS = ("flux2 klein", "flux2 base", "flux2 klein with a reference")


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference in parts of the largest value of ``b``."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture
def pipeline() -> Any:
    return FAMILIES["flux2 base"].pipeline()


@pytest.fixture
def base(pipeline) -> Flux2Klein:
    return ddim.load(pipeline)


@pytest.fixture(scope="module")
def klein() -> Flux2Klein:
    return FAMILIES["flux2 klein"].model()  # type: ignore[return-value]


@pytest.fixture
def seeing() -> Flux2Klein:
    """A model with a reference."""
    return FAMILIES["flux2 klein with a reference"].model()  # type: ignore[return-value]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    there = tmp_path_factory.mktemp("flux2") / "m"
    FAMILIES["flux2 klein"].pipeline().save_pretrained(there)
    return there


def changed(folder: Path, to: Path, **values: Any) -> Path:
    """The folder again, with other values in its index."""
    shutil.copytree(folder, to)
    index = json.loads((to / "model_index.json").read_text())
    (to / "model_index.json").write_text(json.dumps({**index, **values}))
    return to


def ours(model: Flux2Klein, x: Tensor, prompts: list[str]) -> Tensor:
    grid = model.schedule.grid(STEPS, image_size=model.shape[1:])
    both = model.condition(None, len(x), prompts)
    return ddim.solve(model.guided(Guidance(1.0), both), ddim.make_solver("ddim"), {"x": x}, grid)["x"]


# --- facts ------------------------------------------------------------------------------------------------------------


def test_what_a_model_says_of_itself(klein, base):
    assert isinstance(klein, Flux2Klein)
    assert (base.shape, base.picture, base.multiple) == ((4, 8, 8), (3, 16, 16), 4)
    assert (klein.info.guidance, klein.info.guidance_kinds) == (1.0, frozenset())
    assert (base.info.guidance, base.info.guidance_kinds) == (4.0, {"cfg"})
    assert (klein.info.steps, base.info.steps) == (4, 50)
    assert klein.info.embedded is base.info.embedded is None
    assert base.guidance_of(4.0) == Guidance(4.0)
    assert klein.guidance_of(1.0) == Guidance()
    with refused("guidance_scale", 4, repr(klein.name)):
        klein.guidance_of(4.0)


@pytest.mark.parametrize("guidance", [2.0, Guidance(4.0)], ids=str)
def test_a_distilled_model_takes_no_guidance_and_no_negative_prompt(klein, images, guidance):
    with refused("guidance", repr(klein.name)):
        ddim.sample(klein, 1, steps=2, prompt="a cat", guidance=guidance)
    with refused("guidance", repr(klein.name)):
        ddim.invert(klein, images, steps=2, prompt="a cat", guidance=guidance)
    with refused("negative", "'grey'", repr(klein.name)):
        ddim.sample(klein, 1, steps=2, prompt="a cat", negative="grey")
    assert klein.condition(None, 1, "a cat").uncond is None


def test_the_dynamic_shift_is_that_of_flux2(pipeline):
    assert ddim.load(pipeline).schedule.shift == Flux2Shift()
    for config, shift in (
        ({"shift": 3.0}, StaticShift(3.0)),
        ({"use_dynamic_shifting": True, "shift_terminal": 0.1}, Flux2Shift(terminal=0.1)),
    ):
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**config)
        model = ddim.load(pipeline)
        assert model.schedule.shift == shift
        x = noise_like((1, *model.shape)).float()
        theirs = FAMILIES["flux2 base"].draw(pipeline, x, PROMPTS[:1], None, guidance_scale=1.0)
        assert apart(ours(model, x, PROMPTS[:1]), theirs) <= 1e-5
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    with refused("model", "'linear'", "'exponential'"):
        ddim.load(pipeline)


# --- latents ----------------------------------------------------------------------------------------------------------


def test_each_number_of_a_token_has_its_own_statistics(pipeline, base):
    """By their definition: position (row, column) of channel c in a 2x2 block is number 4 c + 2 row + column."""
    x, norm, eps = noise_like((2, 4, 6, 8)).float(), pipeline.vae.bn, pipeline.vae.config.batch_norm_eps
    got = base.to_code(x)
    for c in range(4):
        for row in range(2):
            for column in range(2):
                k = 4 * c + 2 * row + column
                wanted = (x[:, c, row::2, column::2] - norm.running_mean[k]) / (norm.running_var[k] + eps).sqrt()
                assert torch.allclose(got[:, c, row::2, column::2], wanted, atol=1e-6)
    assert torch.allclose(base.from_code(got), x, atol=1e-6)


@pytest.mark.parametrize(("name", "value"), [("running_var", -1.0), ("running_mean", float("nan"))])
def test_statistics_that_are_none_are_refused(pipeline, name, value):
    getattr(pipeline.vae.bn, name)[3] = value
    with refused("model", "batch normalization"):
        ddim.load(pipeline)


# --- what the network is told -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_call_has_the_inputs_of_the_pipeline_to_the_bit(name, dtype):
    family = FAMILIES[name]
    pipeline = family.pipeline().to(dtype)
    model: Any = family.load(pipeline)
    x = noise_like((2, *model.shape)).to(dtype).float()
    off = {} if name == "flux2 klein" else {"guidance_scale": 1.0}
    theirs = recorded(pipeline.transformer, lambda: family.draw(pipeline, x, PROMPTS, None, **off))[0]
    mine = recorded(pipeline.transformer, lambda: ours(model, x, PROMPTS))[0]
    assert theirs["guidance"] is mine["guidance"] is None
    for key in ("timestep", "encoder_hidden_states"):
        assert theirs[key].dtype == mine[key].dtype, key
        assert torch.equal(theirs[key], mine[key]), key
    for key in ("txt_ids", "img_ids"):
        assert all(torch.equal(row, mine[key]) for row in theirs[key]), key
        assert theirs[key].dtype == mine[key].dtype, key
    width = x.shape[2] * x.shape[3] // 4
    assert torch.equal(theirs["hidden_states"][:, :width], mine["hidden_states"][:, :width])
    # A bfloat16 pipeline computes with the statistics in bfloat16, and we in float32.
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert apart(mine["hidden_states"].float(), theirs["hidden_states"].float()) <= tolerance
    assert ("reference" in name) == (mine["hidden_states"].shape[1] > width)


def test_words_are_found_inside_the_template_and_before_the_padding(base):
    tokens = base.tokens("a red cat")
    letters = base.tokenizer.convert_ids_to_tokens(tokens.row)
    assert tokens.length == 512
    assert "".join(letters[tokens.begin : tokens.end]).replace("Ġ", " ") == "a red cat"
    assert set(letters[tokens.stop :]) == {base.tokenizer.pad_token}
    assert tokens.row == tuple(
        base.tokenizer(
            "a red cat".join(base.template()), padding="max_length", truncation=True, max_length=512
        ).input_ids
    )


def test_a_tokenizer_may_pad_at_the_left(pipeline):
    right = ddim.load(pipeline).tokens("a red cat")
    pipeline.tokenizer.padding_side = "left"
    left = ddim.load(pipeline).tokens("a red cat")
    moved = 512 - (right.stop - right.first)
    assert left.ids == right.ids
    assert left.spans == tuple((a + moved, b + moved) for a, b in right.spans)
    assert [left.row[p] for p in left.places("red")] == [right.row[p] for p in right.places("red")]


def test_a_prompt_that_is_cut_warns(base):
    limit = base.info.prompt_tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error", ddim.DDIMWarning)
        base.encode_prompt(["x" * limit])
    with warned(600):
        base.encode_prompt(["x" * 600])


def test_the_unconditional_branch_of_the_base_model_is_the_empty_prompt(base):
    for negative, text in ((None, ""), ("", ""), ("grey", "grey")):
        uncond = base.condition(None, 1, "a cat", negative).uncond
        assert uncond is not None
        # both texts are encoded in one batch, which may change the last bits
        assert torch.allclose(uncond.tensors["text"], base.encode_prompt([text]).tensors["text"], atol=1e-4)


# --- references -------------------------------------------------------------------------------------------------------


def test_a_reference_is_a_condition_of_every_row(seeing):
    latents = seeing.encode(tiny_flux2.picture())
    both = seeing.condition(None, 2, PROMPTS)
    for branch in (both.cond, both.uncond):
        assert branch is not None
        assert torch.equal(branch.tensors["reference"], latents.repeat(2, 1, 1, 1))
    seeing.reference = None
    assert "reference" not in seeing.condition(None, 1, "a cat").cond


def test_a_code_keeps_its_reference(seeing, images, tmp_path):
    code, begun = inverted(seeing, images, steps=3, method="bdia", prompt=PROMPTS, guidance=2.0)
    code = ddim.LatentCode.load(code.save(tmp_path / "code"))
    back, target = ddim.reconstruct(seeing, code), ddim.edit(seeing, code, ["a dog"])
    for other in (None, tiny_flux2.picture(seed=1)):
        seeing.reference = other
        drawn, ended = returned(seeing, code, strict=True)
        assert same(ended, begun)
        assert torch.equal(drawn, back)
        assert torch.equal(ddim.edit(seeing, code, ["a dog"]).edits, target.edits)
    elsewhere = ddim.invert(seeing, images, steps=3, method="bdia", prompt=PROMPTS, guidance=2.0)
    assert apart(elsewhere.x, code.x) >= 1e-3
    with refused("reference", 2):
        seeing.reference = torch.rand(2, 3, 64, 64)


# --- few steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("method", REVERSIBLE)
def test_few_steps_come_back_to_the_bit(klein, images, steps, method):
    told = {"steps": steps, "method": method, "prompt": PROMPTS}
    if steps == 1 and method in ("bdia", "belm", "edict"):  # their first step is no list of lifts
        with refused("steps", 1, repr(method)):
            ddim.invert(klein, images, **told)
        return
    code, begun = inverted(klein, images, **told)
    assert same(returned(klein, code, strict=True)[1], begun)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_the_pipeline_it_was_saved_from(folder, klein):
    loaded, again = (ddim.load(folder, device="cpu") for _ in range(2))
    assert type(loaded) is Flux2Klein
    assert loaded.fingerprint == again.fingerprint == klein.fingerprint
    assert loaded.info.guidance_kinds == frozenset()
    settings = {"steps": 3, "prompt": "a cat", "size": (16, 24)}
    assert apart(ddim.sample(loaded, 1, **settings), ddim.sample(klein, 1, **settings)) <= 1e-5
    assert loaded.picture == (3, 256, 256)  # the default of the pipeline, with an autoencoder of two levels


def test_the_index_says_whether_it_is_distilled(folder, tmp_path):
    assert ddim.load(changed(folder, tmp_path / "b", is_distilled=False), device="cpu").info.guidance == 4.0
    without = changed(folder, tmp_path / "n")
    index = json.loads((without / "model_index.json").read_text())
    del index["is_distilled"]
    (without / "model_index.json").write_text(json.dumps(index))
    assert ddim.load(without, device="cpu").info.guidance_kinds == {"cfg"}
    with refused("model", "is_distilled", "'yes'"):
        ddim.load(changed(folder, tmp_path / "w", is_distilled="yes"), device="cpu")


def test_the_fingerprint_sees_the_statistics(pipeline, base):
    before = base.fingerprint
    pipeline.vae.bn.running_mean += 0.1
    assert base.fingerprint != before


def test_a_folder_in_bfloat16(folder):
    model = ddim.load(folder, device="cpu", dtype="bfloat16")
    assert bool(torch.isfinite(ddim.sample(model, 1, steps=3, prompt="a cat", size=(16, 24))).all())
    assert {p.dtype for part in model.networks().values() for p in part.parameters()} == {torch.bfloat16}


def test_a_folder_with_little_memory(folder, klein):
    model = ddim.load(folder, device="cpu", low_memory=True)
    settings = {"steps": 2, "prompt": "a cat", "size": (16, 16)}  # one tile of the autoencoder
    assert apart(ddim.sample(model, 2, **settings), ddim.sample(klein, 2, **settings)) <= 1e-5


def test_a_language_model_whose_head_is_its_embedding(pipeline, base, tmp_path):
    """As in the smaller of the published models: the file has no weight of the head."""
    pipeline.text_encoder = tiny_flux2.encoder(pipeline.tokenizer, tie_word_embeddings=True)
    live = ddim.load(pipeline)
    pipeline.save_pretrained(tmp_path / "m")
    assert ddim.load(tmp_path / "m", device="cpu").fingerprint == live.fingerprint


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("Flux2Pipeline", "Mistral 3"),
        ("Flux2KleinKVPipeline", "cache"),
        ("Flux2KleinInpaintPipeline", "mask"),
        ("Flux2ModularPipeline", "Modular"),
    ],
)
def test_other_pipelines_of_flux2_are_refused_by_name(folder, tmp_path, kind, why):
    with refused("model", kind, why, hint=True):
        ddim.load(changed(folder, tmp_path / "m", _class_name=kind), device="cpu")


@pytest.mark.parametrize(
    ("part", "make", "values"),
    [
        ("transformer", lambda p: tiny_flux2.transformer(in_channels=32), [32, 16]),
        ("transformer", lambda p: tiny_flux2.transformer(patch_size=2), [2]),
        ("text_encoder", lambda p: tiny_flux2.encoder(p.tokenizer, layers=20), [20, 27]),
        ("vae", lambda p: tiny_flux2.autoencoder(patch_size=(1, 1)), ["(1, 1)"]),
        ("scheduler", lambda p: tiny_sdxl.scheduler(), ["DDIMScheduler"]),
    ],
    ids=["channels", "patches", "layers", "normalization", "scheduler"],
)
def test_other_parts_are_refused(pipeline, part, make, values):
    setattr(pipeline, part, make(pipeline))
    with refused("model", *values):
        ddim.load(pipeline)


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (lambda p: tiny_flux2.encoder(p.tokenizer, 24), [72, 48]),
        (lambda p: tiny_flux2.encoder(range(9)), [13]),
    ],
    ids=["width", "vocabulary"],
)
def test_a_folder_whose_text_encoder_does_not_fit_is_refused(pipeline, tmp_path, make, values):
    pipeline.register_modules(text_encoder=make(pipeline))
    pipeline.save_pretrained(tmp_path / "m")
    with refused("model", *values):
        ddim.load(tmp_path / "m", device="cpu")
