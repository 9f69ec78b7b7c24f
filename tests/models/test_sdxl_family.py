"""SDXL beyond parity: codes, edits, precision, live pipelines, folders, and what is refused by name."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_sdxl
import torch
from diffusers import UNet2DConditionModel
from oracles import noise_like
from refusals import failed, refused
from torch import Tensor
from unchanged import unchanged

import ddim
from ddim import Guidance, SizeIds
from ddim.core.conditioning import PromptConditioning
from ddim.core.contracts import InversionProblem
from ddim.core.solve import solve
from ddim.editing.plan import CROSS, SELF, AttentionEdit, AttentionPlan, AttentionSite
from ddim.inversion import make_inversion
from ddim.inversion.replay import prompts_of
from ddim.inversion.tuning import GuidedStep, null_of
from ddim.models.attention.unet import sites
from ddim.models.sdxl import StableDiffusionXL
from ddim.pipelines.events import LossEvent

EXACT = (
    ("bdia", 2.0),
    ("bdia", 7.5),
    ("belm", 2.0),
    ("edict", 2.0),
    ("edict", 7.5),
    ("rex", 7.5),
    ("reversible-heun", 7.5),
)
FAR = 0.01
"""What a wrong vector changes, at the least, in parts of the largest value."""


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference in parts of the largest value of ``b``."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture(scope="module")
def model() -> StableDiffusionXL:
    return tiny_sdxl.model()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return tiny_sdxl.pictures(2)


# --- codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "weight"), EXACT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_of_exact_methods_come_back_to_the_bit(images, method, weight, dtype, tmp_path):
    model = tiny_sdxl.model(dtype=dtype)
    code = ddim.invert(model, images, steps=5, method=method, prompt=["a cat", "a dog"], guidance=weight)
    code = ddim.LatentCode.load(code.save(tmp_path / "code"))
    assert {*code.conditions.cond.tensors} == {"text", "pooled", "size_ids"}
    solver: Any = make_inversion(method).solver()
    x0 = model.encode(images)
    snapped = solver.read(solver.on_lattice(dict.fromkeys(solver.keys, x0), code.grid, code.grid.steps))
    back = ddim.reconstruct(model, code)
    assert torch.equal(back, model.decode(snapped))
    assert torch.equal(ddim.reconstruct(model, code[1])[0], back[1])
    assert bool(torch.isfinite(back).all())


def test_other_methods_come_back_as_near_as_they_say(model, images):
    def back(method: str, weight: float = 5.0) -> Tensor:
        settings = {"prompt": "a cat", "guidance": weight, "inversion_guidance": 1.0}
        return ddim.reconstruct(model, ddim.invert(model, images, steps=5, method=method, **settings))

    assert apart(back("direct"), model.decode(model.encode(images))) <= 1e-5
    # equal branches, so that the weight has no say
    assert apart(back("negative-prompt"), back("ddim", 1.0)) <= 1e-3
    assert apart(back("ddim"), back("ddim", 1.0)) >= FAR


def test_null_text_comes_nearer_to_its_pivot_the_longer_it_tunes(model, images):
    def losses(inner: int) -> list[float]:
        found = list[float]()

        def note(event: object) -> None:
            if isinstance(event, LossEvent):
                found.append(event.loss)

        options = {"inner": inner, "stop": 0.0, "rise": 0.0, "lr": 0.05}
        settings = {"prompt": "a cat", "guidance": 2.0, "options": options}
        ddim.invert(model, images, steps=4, method="null-text", on_event=note, **settings)
        return found

    few, many = losses(1), losses(20)
    assert len(few) == len(many) == 4
    assert many[0] < 0.9 * few[0]


def test_negative_prompt_puts_words_and_pooled_embedding_in_place_of_none(model, images):
    code = ddim.invert(model, images, steps=4, method="negative-prompt", prompt=["a cat", "a dog"], guidance=5.0)
    cond, uncond = code.conditions.cond, code.conditions.uncond
    assert uncond is not None
    assert all(torch.equal(uncond.tensors[name], cond.tensors[name]) for name in ("text", "pooled", "size_ids"))


# --- edits ------------------------------------------------------------------------------------------------------------


def forward(model: StableDiffusionXL, code: ddim.LatentCode, both: PromptConditioning, weight: float) -> Tensor:
    """What a code of DDIM becomes under these conditions, by the core alone."""
    prompts = prompts_of(both, code.grid, code.extras)
    end = solve(model.guided(Guidance(weight), prompts), ddim.make_solver("ddim"), code.state, code.grid)
    return model.decode(end["x"])


def test_an_edit_swaps_words_and_pooled_embedding_of_the_targets(model, images):
    """The targets once kept the pooled embedding of the source's prompt."""
    code = ddim.invert(model, images[:1], steps=5, method="ddim", prompt="a cat", guidance=5.0, inversion_guidance=1)
    edited = ddim.edit(model, code, ["two dogs"], attention="none").edits[:, 0]
    target, uncond = model.condition(None, 1, "two dogs").cond, code.conditions.uncond
    assert uncond is not None
    assert apart(edited, forward(model, code, PromptConditioning(target, uncond), 5.0)) <= 1e-5
    kept = target.replace(pooled=code.conditions.cond.tensors["pooled"])
    assert apart(edited, forward(model, code, PromptConditioning(kept, uncond), 5.0)) >= FAR
    kept = target.replace(text=code.conditions.cond.tensors["text"])
    assert apart(edited, forward(model, code, PromptConditioning(kept, uncond), 5.0)) >= FAR


@pytest.mark.parametrize("negative", [None, "grey"])
def test_null_text_tunes_the_words_and_the_pooled_embedding(model, images, negative):
    options = {"inner": 3}
    settings = {"steps": 4, "method": "null-text", "prompt": "a cat", "guidance": 5.0, "negative": negative}
    code = ddim.invert(model, images[:1], options=options, **settings)
    both, uncond = model.condition(None, 1, "a cat", negative), code.conditions.uncond
    assert uncond is not None
    assert both.uncond is not None
    for name in ("text", "pooled"):
        assert code.extras[f"uncond_{name}"].shape == (1, 4, *both.cond.tensors[name].shape[1:])
        assert not torch.equal(code.extras[f"uncond_{name}"][:, 0], both.uncond.tensors[name])
        assert not torch.equal(code.extras[f"uncond_{name}"][:, 0], code.extras[f"uncond_{name}"][:, 3])
    edited = ddim.edit(model, code, ["two dogs"], attention="none").edits[:, 0]
    target = model.condition(None, 1, "two dogs").cond
    assert apart(edited, forward(model, code, PromptConditioning(target, uncond), 5.0)) <= 1e-5
    for name in ("text", "pooled"):
        lost = replace(code, extras={**code.extras, f"uncond_{name}": code.extras[f"uncond_{name}"] * 0})
        assert apart(edited, forward(model, lost, PromptConditioning(target, uncond), 5.0)) >= FAR / 10


def test_words_alone_do_not_make_the_branches_equal(model, images):
    """Equal words are not equal conditions: the pooled embeddings still tell the branches apart."""
    grid, both = model.schedule.grid(4), model.condition(None, 2, ["a cat", "a dog"])
    x, text = noise_like((2, 4, 16, 16)).float(), both.cond.tensors["text"]
    step = GuidedStep(InversionProblem(model, both, Guidance(5.0)), x, grid[0], grid[1], x)
    half, whole = null_of(both.uncond.replace(text=text)), null_of(both.cond)
    assert step.without_call(half)[1].isinf().all()
    near, _, _ = step(half, torch.arange(2), need_gradient=False)
    assert apart(step.without_call(half)[0], near) >= FAR
    assert step.without_call(whole)[1].isfinite().all()
    far, _, _ = step(whole, torch.arange(2), need_gradient=False)
    assert apart(step.without_call(whole)[0], far) <= 1e-5


@pytest.mark.parametrize("method", ["direct", "null-text", "belm"])
@pytest.mark.parametrize("attention", ["refine", "replace", "none"])
def test_edits_with_attention_control_and_blending(model, images, method, attention):
    options = {"inner": 2} if method == "null-text" else {}
    settings = {"steps": 5, "method": method, "guidance": 2.0, "options": options, "source_prompt": "a cat"}
    how = AttentionEdit(attention, blend_threshold=0.95)
    if method == "belm":  # its source has the guidance of the inversion, 1 by default
        settings["inversion_guidance"] = 2.0
    edited = ddim.edit(model, images[:1], ["a dog", "a cat"], attention=how, blend=["cat/dog", "cat"], **settings)
    assert edited.blend_mask is not None
    assert edited.edits.shape == (1, 2, 3, 32, 32)
    assert bool(torch.isfinite(edited.edits).all())
    assert apart(edited.edits[:, 0], edited.reconstruction) >= FAR
    if method == "belm":  # the target that is the source comes back as it, rounding aside
        assert apart(edited.edits[:, 1], edited.reconstruction) < FAR / 2
    plain = ddim.edit(model, edited.code, ["a dog", "a cat"], attention="none")
    assert apart(plain.edits[:, 0], edited.edits[:, 0]) >= 1e-4
    assert not any(type(p).__name__ == "ControlledAttention" for p in model.network.attn_processors.values())


def test_a_mask_keeps_what_lies_outside_it(model, images, monkeypatch):
    mask, decode, latents = torch.zeros(32, 32), model.decode, list[Tensor]()
    mask[:, :8] = 1
    monkeypatch.setattr(model, "decode", lambda x0: (latents.append(x0), decode(x0))[1])
    ddim.edit(model, images[:1], ["a dog"], source_prompt="a cat", steps=4, mask=mask)
    source, target = latents[-1]
    assert torch.equal(source[..., 4:], target[..., 4:])
    assert apart(source[..., :4], target[..., :4]) >= FAR


# --- attention sites --------------------------------------------------------------------------------------------------

REAL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""The published U-Net's config."""


def test_the_published_networks_maps_are_at_two_resolutions():
    """70 transformer blocks: 10 at half the latent's side and 60 at a quarter of it, none at the latent's own."""
    with torch.device("meta"):
        found = sites(UNet2DConditionModel(**REAL))
    cross = [site for site in found if site.words]
    assert (len(found), len(cross)) == (140, 70)
    assert [sum(site.level == level for site in cross) for level in range(3)] == [0, 10, 60]

    def plan(*size: int) -> AttentionPlan:
        return AttentionPlan(AttentionEdit(), found, (size[0], size[1]), torch.zeros(0), torch.zeros(0))

    assert (plan(128, 128).blend_size, plan(128, 128).self_positions) == ((32, 32), 32 * 32)
    assert (plan(64, 64).blend_size, plan(64, 64).self_positions) == ((16, 16), 16 * 16)
    assert (plan(104, 152).blend_size, plan(104, 152).self_positions) == ((26, 38), 26 * 38)


def test_self_maps_of_one_resolution_are_taken_over():
    one = (AttentionSite("a", CROSS, 1), AttentionSite("b", SELF, 1))
    plan = AttentionPlan(AttentionEdit(), one, (16, 16), torch.zeros(0), torch.zeros(0))
    assert plan.self_positions == 64
    assert AttentionPlan(AttentionEdit(), one[:1], (16, 16), torch.zeros(0), torch.zeros(0)).self_positions == 0


def test_the_tiny_networks_maps(model):
    found = model.attention_sites()
    assert {site.size((16, 16)) for site in found} == {(8, 8), (4, 4)}
    plan = AttentionPlan(AttentionEdit(), found, (16, 16), torch.zeros(0), torch.zeros(0))
    assert (plan.blend_size, plan.self_positions) == ((8, 8), 16)


# --- size ids ---------------------------------------------------------------------------------------------------------


def test_size_ids_follow_the_picture_unless_they_are_set():
    model = tiny_sdxl.model()
    assert model.encode_prompt(["a"], (48, 32)).tensors["size_ids"].tolist() == [[48, 32, 0, 0, 48, 32]]
    model.size_ids = SizeIds(original=(1024, 768), crop=(3, 4))
    both = model.condition(None, 2, "a", size=(48, 32))
    assert both.uncond is not None
    for branch in (both.cond, both.uncond):
        assert branch.tensors["size_ids"].tolist() == [[1024, 768, 3, 4, 48, 32]] * 2
    model.size_ids = None
    assert model.size_ids == SizeIds()


@pytest.mark.parametrize(
    "options",
    [
        {"original": (0, 5)},
        {"original": 1024},
        {"crop": (-1, 0)},
        {"crop": None},
        {"target": (1.5, 2)},
        {"target": (1,)},
    ],
)
def test_size_ids_that_are_none(options):
    with pytest.raises(ddim.InputError) as caught:
        SizeIds(**options)
    assert caught.value.parameter == "size_ids"


def test_a_model_takes_no_other_size_ids():
    with pytest.raises(ddim.InputError) as caught:
        tiny_sdxl.model().size_ids = (1024, 1024)  # type: ignore[assignment]
    assert caught.value.parameter == "size_ids"


def test_an_edit_of_a_picture_that_is_not_square_tells_its_own_size(model):
    edited = ddim.edit(model, tiny_sdxl.pictures(1, 32, 48), ["a dog"], source_prompt="a cat", steps=3)
    assert edited.code.conditions.cond.tensors["size_ids"].tolist() == [[32, 48, 0, 0, 32, 48]]
    assert edited.edits.shape == (1, 1, 3, 32, 48)


def test_an_edit_of_a_code_tells_its_targets_the_sizes_of_the_source(images):
    model = tiny_sdxl.model()
    model.size_ids = SizeIds(original=(512, 300))
    code = ddim.invert(model, images, steps=3, prompt="a cat", method="direct")
    same = ddim.edit(model, code, ["a dog", "a bird"], attention="none").edits
    model.size_ids = None
    assert torch.equal(ddim.edit(model, code, ["a dog", "a bird"], attention="none").edits, same)
    assert apart(ddim.edit(model, images, ["a dog", "a bird"], source_prompt="a cat", steps=3).edits, same) >= FAR


def test_conditions_that_lack_a_part_are_refused(model):
    cond = model.encode_prompt(["a cat"]).replace()
    text = type(cond)({"text": cond.tensors["text"]})
    with refused("conditioning", "pooled"):
        model.ask(noise_like((1, 4, 16, 16)).float(), model.schedule.grid(4)[0], text)


# --- precision --------------------------------------------------------------------------------------------------------


def overflowing(pipeline: Any) -> Any:
    """An autoencoder whose numbers leave float16's range on the way, and come back into it."""
    for part in (pipeline.vae.encoder, pipeline.vae.decoder):
        for weight in part.conv_in.parameters():
            weight.data *= 3e5
    return pipeline


def test_bfloat16_is_finite(images):
    model = tiny_sdxl.model(dtype=torch.bfloat16)
    assert model.vae.dtype == torch.bfloat16
    drawn = ddim.sample(model, 2, steps=4, prompt="a cat", guidance=5.0)
    edited = ddim.edit(model, images[:1], ["a dog"], source_prompt="a cat", steps=4, blend="cat/dog")
    assert all(bool(torch.isfinite(x).all()) for x in (drawn, edited.edits))


@pytest.mark.parametrize("live", [False, True])
def test_float16_with_an_autoencoder_in_float32(images, live):
    if live:
        pipeline = overflowing(tiny_sdxl.pipeline()).to(torch.float16)
        model = ddim.load(pipeline)
    else:
        pipeline = overflowing(tiny_sdxl.pipeline())
        model = StableDiffusionXL("tiny", pipeline, dtype=torch.float16)
    assert isinstance(model, StableDiffusionXL)
    assert model.vae.dtype == (torch.float16 if live else torch.float32)
    wide = StableDiffusionXL("tiny", overflowing(tiny_sdxl.pipeline()))
    with unchanged(called(pipeline)):
        assert apart(model.encode(images), wide.encode(images)) < 1e-2
        latents = wide.encode(images)
        assert apart(model.decode(latents), wide.decode(latents)) < 1e-2
        edited = ddim.edit(model, images[:1], ["a dog"], source_prompt="a cat", steps=4, guidance=3.0)
    assert bool(torch.isfinite(edited.edits).all())
    # without it, there are no numbers
    pipeline.vae.register_to_config(force_upcast=False)
    pipeline.vae.half()
    with failed(None, repr(model.name)):
        model.encode(images)


def test_an_error_inside_leaves_a_live_autoencoder_as_it_was(images, monkeypatch):
    pipeline = tiny_sdxl.pipeline().to(torch.float16)
    model = ddim.load(pipeline)

    def stops(*args: object) -> None:
        assert pipeline.vae.dtype == torch.float32
        raise KeyboardInterrupt

    with unchanged(called(pipeline)):
        monkeypatch.setattr(pipeline.vae, "encode", stops)
        with pytest.raises(KeyboardInterrupt):
            model.encode(images)
        monkeypatch.undo()


# --- live pipelines ---------------------------------------------------------------------------------------------------


def called(pipeline: Any) -> Any:
    """The pipeline after a first prompt of its own: transformers then sets hooks that gather the hidden layers."""
    with torch.no_grad():
        pipeline.encode_prompt("a cat")
    return pipeline


def use(pipeline: Any, images: Tensor) -> Tensor:
    """Every pipeline of the library once; what it draws."""
    model = ddim.load(pipeline)
    drawn = ddim.sample(model, 1, steps=3, prompt="a cat", guidance=5.0)
    code = ddim.invert(model, images, steps=3, method="bdia", prompt="a cat", guidance=5.0)
    ddim.reconstruct(model, code)
    tuned = ddim.invert(model, images, steps=3, method="null-text", prompt="a cat", guidance=5.0, options={"inner": 2})
    ddim.edit(model, tuned, ["a dog"], attention="replace", blend="cat/dog")
    return drawn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_live_pipeline_stays_as_it_is(images, dtype):
    pipeline = tiny_sdxl.pipeline().to(dtype)
    pipeline.unet.requires_grad_(True)
    with unchanged(called(pipeline)):
        use(pipeline, images)


def test_a_live_pipeline_with_a_lora_stays_as_it_is(images):
    peft: Any = pytest.importorskip("peft", reason="LoRA needs peft, which is not installed")
    plain = tiny_sdxl.pipeline()
    pipeline = tiny_sdxl.pipeline()
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    pipeline.unet.add_adapter(config)
    assert ddim.load(pipeline).fingerprint != ddim.load(plain).fingerprint
    with unchanged(called(pipeline)):
        drawn = use(pipeline, images)
    assert apart(drawn, use(plain, images)) >= FAR


def test_a_pipeline_in_training_is_refused():
    pipeline = tiny_sdxl.pipeline()
    pipeline.text_encoder_2.train()
    with refused("model", "text_encoder_2"):
        ddim.load(pipeline)


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    there = tmp_path_factory.mktemp("sdxl") / "model"
    tiny_sdxl.pipeline().save_pretrained(there)
    return there


def changed(folder: Path, to: Path, change: Callable[[dict[str, Any]], Any], file: str = "model_index.json") -> Path:
    """The folder again, with one of its JSON files changed."""
    for source in folder.rglob("*"):
        target = to / source.relative_to(folder)
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    index = json.loads((to / file).read_text())
    change(index)
    (to / file).write_text(json.dumps(index))
    return to


def test_a_folder_is_the_pipeline_it_was_saved_from(folder):
    loaded, live = ddim.load(folder, device="cpu"), ddim.load(tiny_sdxl.pipeline())
    assert isinstance(loaded, StableDiffusionXL)
    assert loaded.fingerprint == live.fingerprint
    assert loaded.pipeline.tokenizer_2.pad_token == "!"
    a, b = loaded.condition(None, 1, "a cat", "grey"), live.condition(None, 1, "a cat", "grey")
    for one, two in ((a.cond, b.cond), (a.uncond, b.uncond)):
        assert one is not None
        assert two is not None
        assert all(apart(one.tensors[name], two.tensors[name]) <= 1e-6 for name in one.tensors)
    settings = {"steps": 4, "prompt": "a cat", "guidance": 5.0}
    drawn = ddim.sample(loaded, 1, **settings)
    assert apart(drawn, ddim.sample(live, 1, **settings)) <= 1e-4
    assert loaded.describe()["kind"] == "SDXL text-to-image"


def test_the_second_tokenizer_pads_with_its_own_token(model):
    two = model.tokenizers[1]
    row = model._read(two, "a cat").row
    assert row[-1] == two.convert_tokens_to_ids("!") != two.eos_token_id
    assert model.tokens("a cat").row[-1] == model.tokenizer.eos_token_id
    assert model.tokens("a cat").row != row


@pytest.mark.parametrize("kind", ["StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"])
def test_the_index_says_what_stands_for_no_prompt(folder, tmp_path, kind):
    def set_off(index: dict[str, Any]) -> None:
        index |= {"force_zeros_for_empty_prompt": False, "_class_name": kind}

    def uncond(model: ddim.models.base.Model) -> Tensor:
        found = model.condition(None, 1, "a cat").uncond
        assert found is not None
        return found.tensors["pooled"]

    assert not uncond(ddim.load(folder, device="cpu")).any()
    encoded = ddim.load(changed(folder, tmp_path / "off", set_off), device="cpu")
    assert apart(uncond(encoded), encoded.encode_prompt([""]).tensors["pooled"]) <= 1e-6
    assert uncond(encoded).any()


@pytest.mark.parametrize("value", [1, "yes", None])
def test_an_index_that_does_not_say_it(folder, tmp_path, value):
    there = changed(folder, tmp_path / "odd", lambda index: index.update(force_zeros_for_empty_prompt=value))
    with pytest.raises(ddim.InputError) as caught:
        ddim.load(there, device="cpu")
    assert caught.value.parameter == "model"


# --- what is refused --------------------------------------------------------------------------------------------------


def refiner(index: dict[str, Any]) -> None:
    index |= {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}
    index |= {"text_encoder": [None, None], "tokenizer": [None, None]}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (refiner, "refiner"),
        (lambda index: index.update(_class_name="StableDiffusionXLControlNetPipeline"), "ControlNet"),
        (lambda index: index.update(_class_name="StableDiffusionXLInpaintPipeline"), "mask"),
        (lambda index: index.update(_class_name="StableDiffusionXLInstructPix2PixPipeline"), "source image"),
        (lambda index: index.update(text_encoder_2=["transformers", "CLIPTextModel"]), "text_encoder_2"),
    ],
)
def test_folders_that_are_refused_by_name(folder, tmp_path, change, word):
    there = changed(folder, tmp_path / "other", change)
    with refused("model", word):
        ddim.load(there, device="cpu")


UNETS = [
    ({"in_channels": 9}, [9, 4]),
    ({"in_channels": 8}, [8, 4, "InstructPix2Pix"]),
    ({"projection_class_embeddings_input_dim": 5 * 6 + 10}, ["refiner"]),
    ({"projection_class_embeddings_input_dim": 99}, [99]),
    ({"addition_embed_type": None}, ["addition_embed_type", None]),
    ({"out_channels": 5}, [5, 4]),
]


@pytest.mark.parametrize(("config", "words"), UNETS)
def test_networks_that_are_refused_by_name(config, words):
    pipeline = tiny_sdxl.pipeline()
    pipeline.unet = tiny_sdxl.unet(**config)
    with refused("model", *words):
        ddim.load(pipeline)


def test_a_live_refiner_is_refused_by_name():
    pipeline = tiny_sdxl.pipeline()
    pipeline.text_encoder = pipeline.tokenizer = None
    with refused("model", "refiner"):
        ddim.load(pipeline)


def test_text_encoders_of_different_lengths_are_refused():
    pipeline = tiny_sdxl.pipeline()
    pipeline.tokenizer_2.model_max_length = 12
    with refused("model", 24, 12):
        ddim.load(pipeline)


def test_tokenizers_that_place_a_word_differently_are_told_by_an_edit(images):
    pipeline = tiny_sdxl.pipeline()
    pipeline.tokenizer_2.add_tokens(["cat"])
    pipeline.text_encoder_2.resize_token_embeddings(len(pipeline.tokenizer_2))
    model = ddim.load(pipeline)
    ddim.sample(model, 1, steps=2, prompt="a cat", guidance=5.0)
    with refused("prompt", "'a cat'"):
        ddim.edit(model, images[:1], ["a dog"], source_prompt="a cat", steps=2)


@pytest.mark.parametrize("numbers", [[1.0, 2.0], "abcd", [1, 1, 1, 0]])
def test_statistics_that_are_none(numbers):
    pipeline = tiny_sdxl.pipeline()
    pipeline.vae.register_to_config(latents_mean=[0.0] * 4, latents_std=numbers)
    with refused("model", "latents_std", repr(numbers)):
        ddim.load(pipeline)


def test_a_prompt_that_is_cut_warns_once(model):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model.encode_prompt(["a" * 40])
    assert sum(issubclass(w.category, ddim.DDIMWarning) for w in seen) == 1


def test_nothing_is_drawn_between_pictures_of_different_size_ids(images):
    model = tiny_sdxl.model()
    codes = list[ddim.LatentCode]()
    for sizes in (None, ddim.SizeIds(original=(64, 64))):
        model.size_ids = sizes
        codes.append(ddim.invert(model, images[:1], steps=2, prompt="a cat"))
    with refused("codes", "size_ids"):
        ddim.interpolate(model, *codes, frames=3)
