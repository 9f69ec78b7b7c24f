"""Qwen-Image, Z-Image, Lumina 2 and Sana beyond parity: guidance, prompts of many lengths, codes, folders, refusals."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny_qwen_image
import tiny_text
import torch
from bits import inverted, returned, same
from oracles import noise_like
from recording import recorded
from refusals import refused, warned
from tiny_flow import FAMILIES, STEPS
from torch import Tensor

import ddim
from ddim import Guidance
from ddim.core.conditioning import Conditioning, PromptConditioning
from ddim.models.base import Model
from ddim.models.flow import packed, unpacked
from ddim.models.lumina2 import Lumina2
from ddim.models.masked_text import MaskedTextModel
from ddim.models.qwen_image import QwenImage
from ddim.models.sana import Sana
from ddim.models.z_image import ZImage
from ddim.pipelines.interpolate import join

NAMES = ("qwen-image", "z-image", "lumina2", "sana")
each = pytest.mark.parametrize("name", NAMES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
WIDTHS = {
    "qwen-image": "joint_attention_dim",
    "z-image": "cap_feat_dim",
    "lumina2": "cap_feat_dim",
    "sana": "caption_channels",
}
"""What the transformers' configs call the size of an embedding."""
PROMPTS = ["a cat", "two red dogs in a garden"]


def live(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, MaskedTextModel]:
    """A pipeline, and the model that it is."""
    pipeline = FAMILIES[name].make(**options) if options else FAMILIES[name].pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pipeline = pipeline.to(dtype)
    model = ddim.load(pipeline)
    assert isinstance(model, MaskedTextModel)
    return pipeline, model


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest) -> tuple[str, Any, MaskedTextModel]:
    return (request.param, *live(request.param))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return tiny_text.pictures(2, 16, 16)


def noise(count: int, height: int = 8, width: int = 8) -> Tensor:
    return noise_like((count, 4, height, width)).float()


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference in parts of the largest value of ``b``."""
    assert a.shape == b.shape
    return float(((a - b).abs().max() / b.abs().max()).detach())


# --- what the network is told -----------------------------------------------------------------------------------------


@torch.no_grad()
def ours(model: Model, x: Tensor, prompts: list[str], weight: float, negative: str | None = None) -> Tensor:
    grid = model.schedule.grid(STEPS, image_size=(x.shape[2], x.shape[3]))
    both = model.condition(None, len(x), prompts, negative)
    return ddim.solve(model.guided(Guidance(weight), both), ddim.make_solver("ddim"), {"x": x}, grid)["x"]


def test_the_rounding_of_the_pipeline_is_no_plain_cast():
    """Qwen-Image's pipeline rounds 1000 sigma, not sigma, so that some timesteps differ from sigma rounded once."""
    _, model = live("qwen-image", torch.bfloat16)
    grid = model.schedule.grid(50, image_size=(8, 8))
    told = torch.stack([model.timestep(node, noise(1)) for node in grid.nodes[:-1]])
    once = torch.tensor([node.sigma for node in grid.nodes[:-1]]).bfloat16()
    assert bool((told != once).any())
    assert float((told.float() - once.float()).abs().max()) < 0.01


def test_the_first_call_is_the_pipelines_to_the_bit(pair):
    """One row, asked by itself: all inputs are equal, and so is the network's answer.

    The pipelines of Lumina 2 and of Sana pad the text, and mask the padding.
    """
    name, pipeline, model = pair
    x = noise(1)
    off = {"true_cfg_scale": 1.0} if name == "qwen-image" else {"guidance_scale": 0.0}
    theirs = recorded(pipeline.transformer, lambda: FAMILIES[name].draw(pipeline, x, PROMPTS[:1], None, **off))[0]
    mine = recorded(pipeline.transformer, lambda: ours(model, x, PROMPTS[:1], 1.0))[0]

    def tensors(value: Any) -> list[Any]:
        return [t for v in value for t in tensors(v)] if isinstance(value, (list, tuple)) else [value]

    if "encoder_attention_mask" in theirs:
        text = mine["encoder_hidden_states"]
        mask = theirs["encoder_attention_mask"][0] == 1
        assert mask.nonzero().flatten().tolist() == [*range(text.shape[1])]
        theirs = {**theirs, "encoder_hidden_states": theirs["encoder_hidden_states"][:, mask]}
        theirs.pop("encoder_attention_mask")
    for key in theirs:
        if key in ("attention_kwargs", "joint_attention_kwargs"):
            continue
        for a, b in zip(tensors(mine.get(key)), tensors(theirs[key]), strict=True):
            assert torch.equal(a, b) if isinstance(b, Tensor) else a == b, key


# --- guidance ---------------------------------------------------------------------------------------------------------


def test_qwen_images_tokens_keep_their_lengths():
    _, model = live("qwen-image")
    cond, uncond, node = noise(2), noise(2, 8, 8).flip(0) * 2, model.schedule.grid(4, image_size=(8, 8))[1]
    got = model.combine(cond, uncond, Guidance(4.0), node)
    for y in range(0, 8, 2):
        for x in range(0, 8, 2):  # by its definition, token for token
            c, u = (t[..., y : y + 2, x : x + 2].flatten(1) for t in (cond, uncond))
            mixed = u + 4.0 * (c - u)
            wanted = mixed * (c.norm(dim=1) / mixed.norm(dim=1))[:, None]
            assert torch.allclose(got[..., y : y + 2, x : x + 2].flatten(1), wanted, atol=1e-6)
    assert apart(uncond + 4.0 * (cond - uncond), got) > 0.1
    assert torch.allclose(model.combine(cond, uncond, Guidance(1.0), node), cond, atol=1e-6)
    assert bool(torch.isfinite(model.combine(cond, cond * 0, Guidance(0.0), node)).all())


def test_packing_is_that_of_the_pipeline_and_is_undone():
    pipeline, _ = live("qwen-image")
    x = noise(2, 6, 10)
    assert torch.equal(packed(x), pipeline._pack_latents(x, 2, 4, 6, 10))
    assert torch.equal(unpacked(packed(x), 6, 10), x)


def test_a_rescale_that_would_do_nothing_is_refused():
    _, model = live("qwen-image")
    both = model.condition(None, 1, "a cat")
    with refused("rescale", 0.7):
        model.guided(Guidance(4.0, rescale=0.7), both)
    with refused("rescale", 0.7):
        model.combine(noise(1), noise(1), Guidance(4.0, rescale=0.7), model.schedule.grid(4, image_size=16)[0])
    with refused("rescale", 0.7):
        ddim.sample(model, 1, steps=2, prompt="a cat", guidance=Guidance(4.0, rescale=0.7))


@pytest.mark.parametrize(("name", "text"), [("qwen-image", " "), ("z-image", "")])
def test_what_stands_for_no_negative_prompt(name, text):
    _, model = live(name)
    for negative, wanted in ((None, text), ("", ""), ("grey", "grey")):
        uncond, alone = model.condition(None, 1, "a cat", negative).uncond, model.encode_prompt([wanted])
        assert uncond is not None
        (count,) = uncond.tensors["text_mask"].sum(1)
        assert torch.equal(uncond.tensors["text"][:, :count], alone.tensors["text"])


@pytest.mark.parametrize(
    ("name", "options", "usual"),
    [
        ("qwen-image", {}, 4.0),
        ("z-image", {}, 6.0),
        ("z-image", {"shift": 3.0}, 1.0),
        ("lumina2", {}, 4.0),
        ("sana", {}, 4.5),
    ],
)
def test_the_usual_guidance(name, options, usual):
    assert live(name, **options)[1].info.guidance == usual


# --- prompts of different lengths -------------------------------------------------------------------------------------


def test_padding_is_invisible(pair):
    """Prompts of different lengths in one batch, as the branches of guidance: each is as it is alone, to the bit."""
    _, _, model = pair
    around = len(model.tokens("").row)
    most = max(159, around + 20)
    long, short = "d" * (most - around), "s" * (most - 17 - around)
    cond = model.encode_prompt([long, short])
    assert cond.tensors["text_mask"].sum(1).tolist() == [most, most - 17]
    x, node = noise(2), model.schedule.grid(4, image_size=(8, 8))[1]
    (both,) = model.ask(x, node, cond)
    for k, prompt in enumerate((long, short)):
        (alone,) = model.ask(x[k : k + 1], node, model.encode_prompt([prompt]))
        assert torch.equal(both[k], alone[0])
    further = Conditioning.cat([cond, model.encode_prompt([f"{long} and more"])])[:2]
    noisy = further.replace(text=torch.where(further.tensors["text_mask"][..., None], further.tensors["text"], 9.0))
    assert torch.equal(model.ask(x, node, noisy)[0], both)
    lying = noisy.replace(text_mask=torch.ones_like(noisy.tensors["text_mask"]))
    assert apart(model.ask(x, node, lying)[0], both) > 1e-3


def test_rows_in_one_call_agree_with_rows_one_by_one(pair):
    """Attention control needs all rows in one call, with masks or lists."""
    _, _, model = pair
    cond, x = model.encode_prompt(PROMPTS), noise(2)
    lengths = [int(n) for n in cond.tensors["text_mask"].sum(1)]
    time = model.timestep(model.schedule.grid(4, image_size=(8, 8))[1], x)
    with torch.no_grad():
        whole = model.call_rows(model.network, x, time, cond.tensors["text"], lengths, None)
        rows = model.call_network(model.network, x, time, cond.tensors, None)
        full = model.call_rows(model.network, x, time, cond.tensors["text"], [max(lengths)] * 2, None)
    assert apart(whole, rows) <= 1e-5
    assert apart(full, rows) > 1e-3


def spelled(pieces: list[str]) -> str:
    """The text of some tokens, which are letters."""
    return "".join(pieces).replace("Ġ", " ").replace("▁", " ")


def test_words_are_found_inside_the_template(pair):
    _, _, model = pair
    prompt = "a red cat, and a Cat"
    tokens = model.tokens(prompt)
    assert tokens.length == int(model.encode_prompt([prompt]).tensors["text_mask"].sum())
    letters = model.tokenizer.convert_ids_to_tokens(tokens.row)
    seen = prompt.lower() if isinstance(model, Sana) else prompt
    assert spelled(letters[tokens.begin : tokens.end]) == seen
    assert [spelled(letters[a:b]).strip() for a, b in tokens.spans] == seen.split()
    assert spelled([letters[p] for p in tokens.places("red")]).strip() == "red"
    assert len(tokens.find("cat")) == 2
    assert (tokens.first, tokens.stop, tokens.lost) == (0, tokens.length, 0)
    empty = model.tokens("")
    assert empty.words == ()
    assert empty.begin == empty.end
    assert tokens.length == empty.length + len(prompt)


def test_a_long_prompt_warns_and_is_cut(pair):
    name, _, model = pair
    around = len(model.tokens("").row)
    limit, most = model.info.prompt_tokens, model.most_tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error", ddim.DDIMWarning)
        assert model.encode_prompt(["x" * limit]).tensors["text"].shape[1] == most
    if name != "z-image":  # some of the template's tokens are left out, and as many of the prompt's stay
        assert limit == most - around
    over = "y" * 600
    with warned(600):
        cond = model.encode_prompt([over])
    assert cond.tensors["text"].shape[1] == most
    assert model.tokens(over).lost == 600 - (most - model.tokens("").begin)


def test_a_prompt_is_encoded_alone(pair):
    """So that the same prompt is the same condition in every company, and the pipeline's list is not written to."""
    _, _, model = pair
    prompts = list(PROMPTS)
    both = model.encode_prompt(prompts)
    assert prompts == PROMPTS
    (count,) = both.tensors["text_mask"][:1].sum(1)
    assert torch.equal(both.tensors["text"][:1, :count], model.encode_prompt(prompts[:1]).tensors["text"])


# --- facts ----------------------------------------------------------------------------------------------------------


def test_facts(pair):
    name, _, model = pair
    assert model.shape == (4, 8, 8)
    assert model.picture == (3, 16, 16)
    assert (model.multiple, model.downscaling) == (2 if name == "sana" else 4, 2)
    assert type(model) is {"qwen-image": QwenImage, "z-image": ZImage, "lumina2": Lumina2, "sana": Sana}[name]
    assert model.graphs is None


# --- codes ------------------------------------------------------------------------------------------------------------

EXACT = [
    *(("qwen-image", method) for method in ("bdia", "belm", "edict", "rex", "reversible-heun")),
    *((name, "bdia") for name in ("z-image", "lumina2", "sana")),
]
"""Each method on one family, and each family by one method: a method does not know the network."""


@every_dtype
@pytest.mark.parametrize(("name", "method"), EXACT)
def test_codes_of_exact_methods_come_back_to_the_bit(name, method, dtype, images, tmp_path):
    _, model = live(name, dtype)
    for weight in (1.0, 4.0):
        settings = {"steps": 5, "method": method, "prompt": PROMPTS, "guidance": weight}
        code, begun = inverted(model, images, **settings)
        code = ddim.LatentCode.load(code.save(tmp_path / "code"))
        mask = code.conditions.cond.tensors["text_mask"]
        assert mask.dtype == torch.bool
        assert len({*mask.sum(1).tolist()}) == 2
        back, ended = returned(model, code, strict=True)
        assert same(ended, begun)
        assert bool(torch.isfinite(back).all())
        for k in range(2):
            assert torch.equal(ddim.reconstruct(model, code[k], strict=True)[0], back[k])


@each
def test_codes_that_are_joined_come_back_to_the_bit(name, images):
    """The longer text of the other code pads theirs, which the network does not see."""
    _, model = live(name)
    settings = {"steps": 4, "method": "bdia", "guidance": 4.0}
    code = ddim.invert(model, images, prompt=PROMPTS, **settings)
    other = ddim.invert(model, images[:1], prompt="a much longer prompt of many more words", **settings)
    joined = join([code, other])
    assert joined.conditions.cond.tensors["text"].shape[1] > code.conditions.cond.tensors["text"].shape[1]
    back = ddim.reconstruct(model, joined, strict=True)
    assert torch.equal(back[:2], ddim.reconstruct(model, code))
    assert torch.equal(back[2:], ddim.reconstruct(model, other))


def test_codes_of_another_length_are_taken_and_of_another_width_refused(pair, images, tmp_path):
    name, _, model = pair
    code = ddim.invert(model, images, steps=3, prompt="a prompt that is longer than the empty one")
    assert ddim.reconstruct(model, code).shape == images.shape
    _, wider = live(name, width=24, **{WIDTHS[name]: 24})
    with refused("code"):
        ddim.reconstruct(wider, code)


def test_guided_inversions_take_prompts_of_different_lengths(pair, images):
    _, _, model = pair

    def back(method: str, **options: Any) -> Tensor:
        code = ddim.invert(model, images, steps=4, method=method, prompt=PROMPTS, guidance=3.0, options=options, seed=3)
        return ddim.reconstruct(model, code)

    assert apart(back("direct"), model.decode(model.encode(images))) <= 1e-5
    for method in ("negative-prompt", "null-text", "edit-friendly"):
        assert bool(torch.isfinite(back(method)).all())
    with refused("toward_empty", 0.5):
        back("negative-prompt", toward_empty=0.5)
    # a null embedding that starts from the prompt has all of its tokens, and equal branches leave guidance no say
    begun = back("null-text", start="prompt", inner=1, stop=1e9)
    plain = ddim.invert(model, images, steps=4, method="ddim", prompt=PROMPTS, guidance=1.0)
    assert apart(begun, ddim.reconstruct(model, plain)) <= 1e-4


def test_an_edit_to_the_same_prompt_is_the_source(pair, images):
    _, _, model = pair
    code = ddim.invert(model, images[:1], steps=4, method="bdia", prompt="a cat", guidance=3.0)
    edited = ddim.edit(model, code, ["a cat", "a large grey dog on a wall"], attention="none")
    assert torch.equal(edited.edits[:, 0], edited.reconstruction)
    assert apart(edited.edits[:, 1], edited.reconstruction) > 0.01
    target = PromptConditioning(model.encode_prompt(["a large grey dog on a wall"]), code.conditions.uncond)
    denoise, grid = model.guided(Guidance(3.0), target), code.grid.rest(1)  # bdia stores its state at node 1
    alone = ddim.solve(denoise, ddim.make_solver("ddim"), {"x": code.x}, grid)["x"]
    assert apart(edited.edits[:, 1], model.decode(alone)) <= 1e-5


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    there = tmp_path_factory.mktemp(request.param) / "model"
    FAMILIES[request.param].pipeline().save_pretrained(there)
    return request.param, there


def copied(folder: Path, to: Path, file: str, change: Mapping[str, Any]) -> Path:
    """The folder again, with values of one of its JSON files changed."""
    for source in folder.rglob("*"):
        if source.is_file():
            target = to / source.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    content = json.loads((to / file).read_text())
    (to / file).write_text(json.dumps({**content, **change}))
    return to


@every_dtype
def test_a_folder_is_the_pipeline_that_was_saved(folder, dtype):
    name, there = folder
    model = ddim.load(there, device="cpu", dtype=dtype)
    pipeline, other = live(name)
    assert model.fingerprint == other.fingerprint == ddim.load(there, device="cpu").fingerprint
    assert type(model) is type(other)
    x, wide = noise(1), ours(other, noise(1), PROMPTS[:1], 4.0, "grey")
    drawn = ours(model, x, PROMPTS[:1], 4.0, "grey")
    assert apart(drawn, wide) <= (1e-6 if dtype == torch.float32 else 0.3)
    assert apart(model.encode(tiny_text.pictures(1, 16, 16)), other.encode(tiny_text.pictures(1, 16, 16))) < 0.3
    if dtype == torch.bfloat16:
        assert {b.dtype for n, b in model.encoders[0].named_buffers() if "inv_freq" in n} == {torch.float32}
        kind = getattr(diffusers, type(pipeline).__name__)
        half = ddim.load(kind.from_pretrained(there, dtype=dtype))
        assert torch.equal(drawn, ours(half, x, PROMPTS[:1], 4.0, "grey"))


def test_the_default_size_is_1024_pixels_for_the_published_networks(folder):
    name, there = folder
    if name == "qwen-image":
        assert ddim.load(there, device="cpu").shape[1:] == (128, 128)


def test_the_older_name_of_lumina_2(folder, tmp_path):
    name, there = folder
    if name != "lumina2":
        pytest.skip("only this class had another name")
    older = {"_class_name": "Lumina2Text2ImgPipeline"}
    other = ddim.load(copied(there, tmp_path / "m", "model_index.json", older), device="cpu")
    assert type(other) is Lumina2
    assert other.fingerprint == ddim.load(there, device="cpu").fingerprint


def test_the_img2img_class_is_the_same_model(folder, tmp_path):
    name, there = folder
    if name not in (named_so := {"qwen-image": "QwenImageImg2ImgPipeline", "z-image": "ZImageImg2ImgPipeline"}):
        pytest.skip("diffusers has no such class")
    named = named_so[name]
    other = ddim.load(copied(there, tmp_path / "m", "model_index.json", {"_class_name": named}), device="cpu")
    plain = FAMILIES[name].pipeline()
    live_one = ddim.load(getattr(diffusers, named)(**plain.components))
    assert other.fingerprint == live_one.fingerprint == ddim.load(plain).fingerprint


@pytest.mark.parametrize(
    "kind",
    [
        *("QwenImageEditPipeline", "QwenImageEditPlusPipeline", "QwenImageEditInpaintPipeline"),
        *("QwenImageInpaintPipeline", "QwenImageControlNetPipeline", "QwenImageLayeredPipeline"),
        *("QwenImage21Pipeline", "ZImageInpaintPipeline", "ZImageControlNetPipeline", "ZImageOmniPipeline"),
        *("SanaSprintPipeline", "SanaSprintImg2ImgPipeline", "SanaControlNetPipeline", "SanaVideoPipeline"),
    ],
)
def test_other_pipelines_are_refused_with_the_reason(kind, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    assert hasattr(diffusers, kind)
    with refused("model", kind, hint=True) as caught:
        ddim.load(tmp_path)
    assert ": " in caught.value.message.partition("does not support")[2]


def test_a_folder_without_its_text_encoder_is_refused(folder, tmp_path):
    _, there = folder
    with refused("model", "text_encoder"):
        ddim.load(copied(there, tmp_path / "m", "model_index.json", {"text_encoder": [None, None]}), device="cpu")


def test_a_pipeline_without_a_part_is_refused():
    for name in NAMES:
        for part in ("text_encoder", "tokenizer", "vae"):
            pipeline = FAMILIES[name].pipeline()
            setattr(pipeline, part, None)
            with refused("model", part):
                ddim.load(pipeline)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen-image", {"width": 24}),
        ("z-image", {"width": 24}),
        ("qwen-image", {"channels": 3}),
        ("qwen-image", {"out_channels": 3}),
        ("qwen-image", {"guidance_embeds": True}),
        ("qwen-image", {"use_additional_t_cond": True}),
        ("qwen-image", {"use_layer3d_rope": True}),
        ("z-image", {"in_channels": 8}),
        ("z-image", {"all_patch_size": (4,)}),
        ("lumina2", {"width": 24}),
        ("lumina2", {"in_channels": 8}),
        ("lumina2", {"axes_lens": (256, 512, 512)}),
        ("sana", {"width": 24}),
        ("sana", {"channels": 3}),
        ("sana", {"in_channels": 8}),
        ("sana", {"out_channels": 3}),
        ("sana", {"guidance_embeds": True}),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_refused(name, options, tmp_path):
    pipeline = FAMILIES[name].make(**options)
    pipeline.save_pretrained(tmp_path / "m")
    with refused("model"):
        ddim.load(tmp_path / "m", device="cpu")


@each
def test_a_text_encoder_with_too_few_embeddings_is_refused(name, tmp_path):
    pipeline = FAMILIES[name].pipeline()
    pipeline.text_encoder.resize_token_embeddings(30)
    pipeline.save_pretrained(tmp_path / "m")
    with refused("model", 30):
        ddim.load(tmp_path / "m", device="cpu")


@pytest.mark.parametrize(
    "change",
    [{"latents_mean": None}, {"latents_std": [1.0, 1.0]}, {"latents_std": [0.0] * 4}, {"latents_mean": ["a"] * 4}],
    ids=str,
)
def test_latent_statistics_that_are_none(change):
    pipeline = tiny_qwen_image.qwen_image()
    pipeline.vae.register_to_config(**change)
    with refused("model", next(iter(change))):
        ddim.load(pipeline)


def test_another_scheduler_is_refused(folder, tmp_path):
    _, there = folder
    euler = {"_class_name": "EulerDiscreteScheduler"}
    index = {"scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    other = copied(there, tmp_path / "a", "scheduler/scheduler_config.json", euler)
    with refused("model"):
        ddim.load(copied(other, tmp_path / "b", "model_index.json", index), device="cpu")


def test_sizes_that_are_no_multiples_are_refused(pair):
    _, _, model = pair
    with refused("size"):
        ddim.sample(model, 1, steps=2, prompt="a cat", size=(17, 16))
