"""Lumina 2 and Sana: instructions, padding, guidance, shift, sizes, the autoencoder, and Sana's attention control."""

from typing import Any

import pytest
import tiny_lumina2
import tiny_sana
import torch
from oracles import noise_like
from refusals import refused, warned
from tiny_flow import FAMILIES, STEPS, louder
from torch import Tensor
from unchanged import unchanged

import ddim
from ddim import AttentionEdit, Guidance
from ddim.editing.attention import AttentionController
from ddim.models.gemma_text import GemmaTextModel
from ddim.models.lumina2 import Lumina2
from ddim.models.sana import Sana
from ddim.pipelines.edit_plan import planned

NAMES = ("lumina2", "sana")
each = pytest.mark.parametrize("name", NAMES)
pytestmark = pytest.mark.filterwarnings("ignore::ddim._utils.errors.DDIMWarning")  # of codes of random networks
SOURCE, TARGET = "a cat on a mat", "a red zebra on a hat"


def live(name: str, **options: Any) -> tuple[Any, Any]:
    """A pipeline, and the model that it is."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = FAMILIES[name].make(**options)
    pipeline.set_progress_bar_config(disable=True)
    model = ddim.load(pipeline)
    assert isinstance(model, GemmaTextModel)
    return pipeline, model


@torch.no_grad()
def ours(model: Any, x: Tensor, weight: float = 5.0) -> Tensor:
    grid = model.schedule.grid(STEPS, image_size=(x.shape[2], x.shape[3]))
    both = model.condition(None, len(x), ["a cat"] * len(x))
    return ddim.solve(model.guided(Guidance(weight), both), ddim.make_solver("ddim"), {"x": x}, grid)["x"]


def noise(count: int = 1, height: int = 8, width: int = 8) -> Tensor:
    return noise_like((count, 4, height, width)).float()


def apart(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


# --- prompts ----------------------------------------------------------------------------------------------------------


def their_texts(pipeline: Any, prompt: str, negative: str) -> list[Tensor]:
    """The embeddings of a prompt and of a negative prompt in the pipeline, without their padding, [L, D] each."""
    more: dict[str, Any] = {}
    if type(pipeline).__name__ == "SanaPipeline":
        lines = pipeline.__call__.__func__.__wrapped__.__defaults__[-1]
        assert lines[-1] == "User Prompt: "
        more["complex_human_instruction"] = lines
    texts = pipeline.encode_prompt([prompt], negative_prompt=[negative], **more)
    return [text[0, mask[0] == 1] for text, mask in (texts[:2], texts[2:])]


@each
@pytest.mark.parametrize("negative", ["", "dull grey"])
def test_both_branches_are_embedded_as_the_pipeline_does(name: str, negative: str):
    pipeline, model = live(name)
    side = pipeline.tokenizer.padding_side
    both = model.condition(None, 1, "two Red dogs", negative)
    assert pipeline.tokenizer.padding_side == side
    theirs = their_texts(pipeline, "two Red dogs", negative)
    for mine, wanted in zip((both.cond, both.uncond), theirs, strict=True):
        text, mask = mine.tensors["text"][0], mine.tensors["text_mask"][0]
        assert torch.equal(text[mask], wanted)
    assert both.cond.tensors["text"].shape == both.uncond.tensors["text"].shape


@each
def test_a_prompt_is_another_condition_than_the_same_negative_prompt(name: str):
    _, model = live(name)
    prompt, negative = model.encode_prompt(["a cat"]).tensors, model.encode_negative("a cat").tensors
    assert prompt["text"].shape[1] > negative["text"].shape[1]
    both = model.condition(None, 2, ["a cat", "a longer prompt"], "a cat")
    rows = both.uncond.tensors["text"]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0, : negative["text"].shape[1]], negative["text"][0])


@each
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_of_padding_is_the_owners_and_changes_nothing(name: str, side: str):
    pipeline, model = live(name)
    usual = model.condition(None, 1, "a cat", "grey")
    pipeline.tokenizer.padding_side = side
    with unchanged(pipeline):
        again = model.condition(None, 1, "a cat", "grey")
    assert torch.equal(usual.cond.tensors["text"], again.cond.tensors["text"])
    assert torch.equal(usual.uncond.tensors["text"], again.uncond.tensors["text"])


@each
def test_a_long_negative_prompt_warns_and_is_cut(name: str):
    _, model = live(name)
    with warned(400):
        cut = model.encode_negative("z" * 400)
    assert cut.tensors["text"].shape[1] == model.most_tokens


def test_sana_reads_prompts_in_lower_case():
    _, model = live("sana")
    a, b = (model.encode_prompt([prompt]).tensors["text"] for prompt in ("A Cat ", "a cat"))
    assert torch.equal(a, b)
    _, model = live("lumina2")
    a, b = (model.encode_prompt([prompt]).tensors["text"] for prompt in ("A Cat", "a cat"))
    assert not torch.equal(a, b)


def test_sana_drops_the_tokens_of_the_instruction_but_two():
    _, model = live("sana")
    row = model.tokenizer(model.instruction()).input_ids
    tokens = model.tokens("a cat")
    assert tokens.row[:2] == (row[0], row[-1])
    assert tokens.length == 2 + len("a cat")


# --- Lumina 2 ---------------------------------------------------------------------------------------------------------


def test_rows_keep_their_lengths():
    _, model = live("lumina2")
    cond, uncond, node = noise(2), noise(2).flip(0) * 2, model.schedule.grid(4, image_size=(8, 8))[1]
    got = model.combine(cond, uncond, Guidance(4.0), node)
    for y in range(8):  # by its definition, row for row
        c, u = cond[:, :, y], uncond[:, :, y]
        mixed = u + 4.0 * (c - u)
        wanted = mixed * (c.norm(dim=-1) / mixed.norm(dim=-1))[..., None]
        assert torch.allclose(got[:, :, y], wanted, atol=1e-6)
    assert apart(uncond + 4.0 * (cond - uncond), got) > 0.1
    assert torch.allclose(model.combine(cond, uncond, Guidance(1.0), node), cond, atol=1e-6)
    assert bool(torch.isfinite(model.combine(cond, cond * 0, Guidance(0.0), node)).all())


def test_the_pipelines_normalization_is_on_by_default():
    pipeline, model = live("lumina2")
    x = noise()
    on, off = (
        tiny_lumina2.draw_lumina2(pipeline, x, ["a cat"], None, guidance_scale=5.0, cfg_normalization=n)
        for n in (True, False)
    )
    assert apart(ours(model, x), on) <= 1e-5
    assert apart(off, on) > 1e-2


def test_a_rescale_that_would_do_nothing_is_refused():
    _, model = live("lumina2")
    with refused("rescale", 0.7, "row"):
        model.guided(Guidance(4.0, rescale=0.7), model.condition(None, 1, "a cat"))
    with refused("rescale", 0.7):
        model.combine(noise(), noise(), Guidance(4.0, rescale=0.7), model.schedule.grid(4, image_size=16)[0])


def test_a_dynamic_shift_is_that_of_the_channels_at_every_size():
    pipeline, model = live("lumina2", dynamic=True)
    from diffusers.pipelines.lumina2.pipeline_lumina2 import calculate_shift

    mu = calculate_shift(4)
    for size in ((8, 8), (8, 24)):
        grid = model.schedule.grid(STEPS, image_size=size)
        pipeline.scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / STEPS, STEPS).tolist(), mu=mu)
        assert [node.sigma for node in grid.nodes] == pytest.approx(pipeline.scheduler.sigmas.tolist(), abs=1e-7)


def test_a_size_beyond_the_positions_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch):
    _, model = live("lumina2", axes_lens=(300, 12, 8))
    assert model.info.largest == 8 * model.multiple
    monkeypatch.setattr(model.pipeline.text_encoder, "forward", None)
    with refused("size", 36):
        ddim.sample(model, 1, steps=2, prompt="a cat", size=(36, 32))


@each
def test_guidance_scale_is_the_weight(name: str):
    _, model = live(name)
    assert model.guidance_of(4.0) == Guidance(4.0)
    assert model.guidance_of(0.0).weight == 1.0


# --- Sana -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [{"out_channels": 8}, {"interpolation_scale": 1}, {"qk_norm": "rms_norm_across_heads"}, {"patch_size": 2}],
    ids=str,
)
def test_other_networks_of_sana(config: dict[str, Any], tmp_path: Any):
    """A learned variance, positions, normed queries, patches of 2x2: in a pipeline and from its folder."""
    pipeline, model = live("sana", **config)
    assert model.multiple == 2 * config.get("patch_size", 1)
    for x in (noise(), noise(1, 8, 12)):
        theirs = tiny_sana.draw_sana(pipeline, x, ["a cat"], None, guidance_scale=5.0)
        assert apart(ours(model, x), theirs) <= 1e-5
    pipeline.save_pretrained(tmp_path / "m")
    assert apart(ours(ddim.load(tmp_path / "m", device="cpu"), noise()), ours(model, noise())) <= 1e-5


def test_the_factor_of_an_autoencoder_of_more_levels():
    from diffusers import AutoencoderDC

    pipeline, _ = live("sana")
    config = {key: value for key, value in pipeline.vae.config.items() if not key.startswith("_")}
    for key, value in config.items():
        if isinstance(value, (list, tuple)) and len(value) == 2:
            config[key] = (*value, value[-1])
    pipeline.vae = AutoencoderDC(**config).eval()
    model = ddim.load(pipeline)
    assert (model.downscaling, model.multiple, model.picture) == (4, 4, (3, 32, 32))
    images = torch.rand(1, 3, 32, 48)
    assert model.decode(model.encode(images)).shape == images.shape


def test_a_shift_by_the_size_is_refused():
    from diffusers import FlowMatchEulerDiscreteScheduler

    with refused("use_dynamic_shifting"):
        live("sana", scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))


# --- Sana's attention control -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[None, "rms_norm_across_heads"])
def sana(request: pytest.FixtureRequest) -> Any:
    pipeline = tiny_sana.sana(qk_norm=request.param)
    louder(pipeline.transformer, {"attn2.to_q": 2.0})
    return ddim.load(pipeline.to(torch.float64))


def asked(model: Any, how: AttentionEdit | None, *given: Any, **words: Any) -> Tensor:
    """What the network answers for the source and the target, controlled or not."""
    x, t, tensors = given
    with torch.no_grad():
        if how is None:
            lengths = [int(n) for n in tensors["text_mask"].sum(1)]
            return model.call_rows(model.network, x, t, tensors["text"], lengths, None)
        plan = planned(model, [SOURCE], TARGET, model.picture[1:], how, **words)[1]
        assert plan is not None
        control = AttentionController(plan, 0, 1)
        with model.controlled():
            out = model.call_network(model.network, x, t, tensors, {"control": control, "cfg_branch": "cond"})
        control.finish()
        return out


def inputs(model: Any) -> tuple[Tensor, Tensor, Any]:
    x = noise_like((1, *model.shape)).repeat(2, 1, 1, 1)
    conditions = model.condition(None, 2, [SOURCE, TARGET]).cond
    return x, model.timestep(model.schedule.grid(4)[2], x), dict(conditions.tensors)


def test_sana_looks_at_the_words_alone(sana: Any):
    sites = sana.attention_sites()
    assert [site.name for site in sites] == [f"transformer_blocks.{k}.attn2" for k in range(2)]
    assert not any(site.picture for site in sites)


def test_a_control_that_changes_nothing_is_the_plain_call(sana: Any):
    given = inputs(sana)
    plain = asked(sana, None, *given)
    still = AttentionEdit(cross_steps=(0, 0), self_steps=(0, 0), weight_steps=(0, 1))
    assert apart(asked(sana, still, *given, weights={"zebra": 1.0}), plain) <= 1e-12
    with sana.controlled():
        assert torch.equal(asked(sana, None, *given), plain)


def test_the_words_that_both_prompts_share_take_the_sources_maps(sana: Any):
    """The network again, with its fused attention replaced by attention that is written out."""
    from torch.nn import functional as F

    given = inputs(sana)
    ours = asked(sana, AttentionEdit(cross_steps=(0, 1), self_steps=(0, 0)), *given)
    plan = planned(sana, [SOURCE], TARGET, sana.picture[1:], AttentionEdit())[1]
    assert plan is not None
    mapping, new = plan.mapping[0, 0].double(), plan.new[0, 0]

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        maps = (scores if attn_mask is None else scores + attn_mask).softmax(-1)
        length = maps.shape[-1]
        taken = maps[0] @ mapping[:length, :length]
        maps[1] = torch.where(new[:length], maps[1], taken)
        return maps @ value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attention)
        wanted = asked(sana, None, *given)
    plain = asked(sana, None, *given)
    assert apart(ours, wanted) <= 1e-9
    assert torch.equal(ours[0], plain[0])
    assert apart(ours[1], plain[1]) > 1e-4


@pytest.mark.parametrize(
    "setting", [{"self_steps": (0, 1)}, {"value_steps": (0, 0.5)}, {"self_positions": 64}], ids=str
)
def test_control_of_attention_to_the_image_is_refused(setting: dict[str, Any]):
    _, model = live("sana")
    images = torch.rand(1, *model.picture)
    with refused(next(iter(setting)), "linear"):
        ddim.edit(model, images, TARGET, source_prompt=SOURCE, attention=AttentionEdit(**setting), steps=3)


@each
def test_an_edit_with_words_weights_and_blend(name: str):
    pipeline, model = live(name)
    code = ddim.invert(model, torch.rand(1, *model.picture), prompt=SOURCE, method="bdia", steps=4)
    before = [type(m.processor) for m in pipeline.transformer.modules() if hasattr(m, "processor")]
    told: dict[str, Any] = {"guidance": 3.0, "blend": ("cat", "zebra")}
    drawn = [
        ddim.edit(model, code, TARGET, attention=AttentionEdit(cross_steps=(0, part)), weights=weights, **told).edits
        for part, weights in ((0.0, None), (1.0, None), (1.0, {"zebra": 4.0}))
    ]
    assert all(bool(torch.isfinite(x).all()) for x in drawn)
    assert apart(drawn[0], drawn[1]) > 1e-4
    assert apart(drawn[1], drawn[2]) > 1e-4
    assert [type(m.processor) for m in pipeline.transformer.modules() if hasattr(m, "processor")] == before


def test_the_adapters_are_those_of_their_pipelines():
    assert isinstance(live("lumina2")[1], Lumina2)
    assert isinstance(live("sana")[1], Sana)
