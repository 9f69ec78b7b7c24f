"""``ddim.load`` of a pipeline object: it works as its owner set it up, and stays as it is."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import tiny_text
import torch
from oracles import noise_like
from refusals import not_finite, refused, warned
from torch import Tensor, nn
from unchanged import networks, processors, unchanged

import ddim
from ddim import AttentionEdit, Guidance
from ddim._utils.errors import InputError
from ddim.core.noise import SeededNoise
from ddim.models.attention.unet import ControlledAttention
from ddim.models.engine.thread_table import Least
from ddim.models.live import is_compiled
from ddim.models.pixel import PixelModel
from ddim.models.sd import StableDiffusion
from ddim.pipelines.common import grid_for

AGREE = 1e-4  # as in tests/parity: their tables are float32
PROMPT, OTHER = "a cat next to a mirror", "a tiger next to a mirror"
EVERYWHERE = AttentionEdit("refine", cross_steps=(0, 1), self_steps=(0, 1))


def live(pipeline: Any) -> StableDiffusion:
    model = ddim.load(pipeline)
    assert isinstance(model, StableDiffusion)
    return model


def live_pixels(pipeline: Any) -> PixelModel:
    model = ddim.load(pipeline)
    assert isinstance(model, PixelModel)
    return model


def pixel_pipeline(kind: str = "DDIMPipeline", classes: int | None = None, **config: Any) -> Any:
    scheduler = diffusers.DDIMScheduler if kind == "DDIMPipeline" else diffusers.DDPMScheduler
    pipeline = getattr(diffusers, kind)(tiny.unet(classes=classes), scheduler(**config))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(model: Any, **options: Any) -> Tensor:
    settings = {"prompt": PROMPT, "guidance": 3.0} if model.text else {}
    return ddim.sample(model, 1, **{"steps": 3, **settings, **options})


# --- it draws what the pipeline draws --------------------------------------------------------------------------------


def calm(pipeline: Any) -> Any:
    """Attention so sharp as the tiny model's makes a chaos of the last bits."""
    for name, weight in pipeline.unet.named_parameters():
        if ".to_q." in name or ".to_k." in name:
            weight.data /= 6
    return pipeline


def far(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_it_samples_the_pipelines_own_latents_and_pictures(prediction: str):
    pipeline = calm(tiny_text.pipeline(prediction))
    x = noise_like((2, 4, 16, 16)).float()
    said: dict[str, Any] = {"num_inference_steps": 10, "latents": x, "guidance_scale": 7.5}
    latents = pipeline([PROMPT, OTHER], output_type="latent", **said).images
    model = live(pipeline)
    with unchanged(pipeline):
        denoise = model.guided(Guidance(7.5), model.condition(None, 2, [PROMPT, OTHER]))
        own = ddim.solve(denoise, ddim.make_solver("ddim"), {"x": x}, grid_for(model, 10, None))["x"]
    assert far(own, latents) < AGREE
    seeded = SeededNoise([3, 4])(torch.empty(2, *model.shape))
    shown = pipeline([PROMPT, OTHER], output_type="pt", **{**said, "latents": seeded}).images
    with unchanged(pipeline):
        images = ddim.sample(model, 2, steps=10, seed=3, prompt=[PROMPT, OTHER], guidance=7.5)
    assert far(images, shown) < AGREE


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("clip", [False, True])
def test_a_pixel_pipeline_draws_what_it_draws(eta: float, clip: bool):
    pipeline = pixel_pipeline(clip_sample=clip)
    generators = [torch.Generator().manual_seed(40 + k) for k in range(3)]
    options = {"num_inference_steps": 10, "use_clipped_model_output": clip or None, "output_type": "np"}
    images = torch.from_numpy(pipeline(3, generators, eta=eta, **options).images).permute(0, 3, 1, 2)
    with unchanged(pipeline):
        own = ddim.sample(live_pixels(pipeline), 3, steps=10, eta=eta, seed=40)
    assert far(own, images) < AGREE


@pytest.mark.parametrize("clip", [False, True])
def test_a_ddpm_pipeline_draws_what_it_draws(clip: bool):
    pipeline = pixel_pipeline("DDPMPipeline", clip_sample=clip)
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    images = torch.from_numpy(pipeline(2, generators, num_inference_steps=10, output_type="np").images)
    with unchanged(pipeline):
        own = ddim.sample(live_pixels(pipeline), 2, steps=10, eta=1.0)
    assert far(own, images.permute(0, 3, 1, 2)) < AGREE


def test_it_is_the_model_of_the_folder_that_it_is_saved_as(tmp_path: Path):
    pipeline = tiny_text.pipeline()
    pipeline.save_pretrained(tmp_path / "words")
    saved, model = ddim.load(tmp_path / "words", device="cpu"), live(pipeline)
    assert model.fingerprint == saved.fingerprint
    assert (model.name, model.device, model.dtype) == ("StableDiffusionPipeline", torch.device("cpu"), torch.float32)
    assert model.describe() == {**saved.describe(), "name": model.name}
    assert far(drawn(model), drawn(saved)) < 1e-3  # another memory layout, and so other last bits
    pixels = pixel_pipeline()
    pixels.save_pretrained(tmp_path / "pixels")
    saved, model = ddim.load(tmp_path / "pixels", device="cpu"), live_pixels(pixels)
    assert model.fingerprint == saved.fingerprint
    assert far(drawn(model), drawn(saved)) < AGREE


# --- it stays as it is -----------------------------------------------------------------------------------------------


def sample(model: Any) -> object:
    return drawn(model)


def there_and_back(method: str) -> Callable[[Any], object]:
    def work(model: Any) -> object:
        pictures = tiny_text.pictures(2) if model.text else torch.rand(2, *model.picture)
        words = {"prompt": PROMPT, "guidance": 2.0} if model.text else {}
        code = ddim.invert(model, pictures, steps=3, method=method, **words)
        return ddim.reconstruct(model, code)

    work.__name__ = method
    return work


def edit(model: Any) -> object:
    how = AttentionEdit("refine", cross_steps=(0, 1), self_steps=(0, 1), blend_threshold=0.9)
    said: dict[str, Any] = {"source_prompt": PROMPT, "steps": 3, "blend": "cat/tiger", "weights": {"tiger": 2.0}}
    return ddim.edit(model, tiny_text.pictures(2), OTHER, attention=how, batched_cfg=False, **said)


def edit_plainly(model: Any) -> object:
    return ddim.edit(model, tiny_text.pictures(1), OTHER, source_prompt=PROMPT, steps=3, attention="none")


def interpolate(model: Any) -> object:
    pictures = tiny_text.pictures(2) if model.text else torch.rand(2, *model.picture)
    return ddim.interpolate(model, ddim.invert(model, pictures, steps=3), frames=3)


def describe(model: Any) -> object:
    return json.dumps(model.describe())


ROUND = [there_and_back(name) for name in ("ddim", "heun", "bdia", "edict", "rex", "reversible-heun")]
TUNED = [there_and_back(name) for name in ("null-text", "negative-prompt", "direct", "edit-friendly")]
WORKS = [sample, *ROUND, *TUNED, edit, edit_plainly, interpolate, describe]


@pytest.mark.parametrize("work", WORKS, ids=lambda w: w.__name__)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["plain", "channels-last"])
def test_a_text_pipeline_is_unchanged(work: Callable[[Any], object], layout: torch.memory_format):
    pipeline = tiny_text.pipeline()
    pipeline.unet.to(memory_format=layout)
    pipeline.text_encoder.requires_grad_(False)  # and the others want gradients, as they come
    with unchanged(pipeline):
        assert work(live(pipeline)) is not None


@pytest.mark.parametrize("work", [sample, *ROUND, interpolate, describe], ids=lambda w: w.__name__)
@pytest.mark.parametrize("kind", ["DDIMPipeline", "DDPMPipeline"])
def test_a_pixel_pipeline_is_unchanged(work: Callable[[Any], object], kind: str):
    pipeline = pixel_pipeline(kind)
    with unchanged(pipeline):
        assert work(live_pixels(pipeline)) is not None


def test_a_class_conditional_pipeline_edits_by_class_and_is_unchanged():
    pipeline = pixel_pipeline(classes=4)
    with unchanged(pipeline):
        model = live_pixels(pipeline)
        assert (model.classes, model.info.null_class) == (4, 3)
        made = ddim.edit(model, torch.rand(1, 1, 8, 8), labels=[1, 2], source_labels=0, steps=3)
    assert made.edits.shape == (1, 2, 1, 8, 8)


class Stop(Exception):
    """An error of no kind in particular."""


@pytest.mark.parametrize("ends", [Stop, KeyboardInterrupt], ids=lambda e: e.__name__)
@pytest.mark.parametrize("after", [1, 4])
def test_an_edit_that_ends_midway_leaves_it_unchanged(ends: type[BaseException], after: int):
    pipeline, seen = tiny_text.pipeline(), []

    def stop(event: object) -> None:
        seen.append(event)
        if len(seen) == after:
            raise ends

    with unchanged(pipeline), pytest.raises(ends):
        ddim.edit(live(pipeline), tiny_text.pictures(1), OTHER, source_prompt=PROMPT, steps=3, on_event=stop)


def test_an_error_of_the_network_leaves_it_unchanged():
    pipeline = tiny_text.pipeline()
    code = ddim.invert(live(pipeline), tiny_text.pictures(1), steps=3, prompt=PROMPT)
    torch.nn.init.constant_(pipeline.unet.conv_out.bias, torch.inf)
    kept = processors(pipeline.unet)
    with not_finite(1), warned("'StableDiffusionPipeline'"):
        ddim.edit(live(pipeline), code, OTHER, attention=EVERYWHERE)
    assert all(a is b for a, b in zip(processors(pipeline.unet), kept, strict=True))


def test_the_pipeline_goes_on_drawing_the_same():
    pipeline = tiny_text.pipeline()
    said: dict[str, Any] = {"latents": torch.randn(1, 4, 16, 16), "num_inference_steps": 3, "output_type": "pt"}
    before = pipeline(PROMPT, **said).images
    edit(live(pipeline))
    assert torch.equal(pipeline(PROMPT, **said).images, before)


def test_a_tokenizer_without_a_limit_keeps_none():
    pipeline = tiny_text.pipeline()
    pipeline.tokenizer.model_max_length = 10**30
    with unchanged(pipeline):
        model = live(pipeline)
        sample(model)
    assert model.describe()["prompt_tokens"] == tiny_text.LENGTH - 2


# --- as its owner set it up ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [sample, there_and_back("bdia"), edit], ids=lambda w: w.__name__)
def test_bfloat16_runs_finite_and_stays(work: Callable[[Any], Any]):
    pipeline = tiny_text.pipeline().to(torch.bfloat16)
    with unchanged(pipeline):
        model = live(pipeline)
        made = work(model)
    images = made if isinstance(made, Tensor) else made.edits
    assert bool(torch.isfinite(images).all())
    assert (model.dtype, model.state_dtype, images.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert {p.dtype for network in networks(pipeline).values() for p in network.parameters()} == {torch.bfloat16}


def test_parts_of_several_dtypes_stay_so():
    pipeline = tiny_text.pipeline()
    nn.Module.to(pipeline.unet, dtype=torch.bfloat16)
    with unchanged(pipeline):
        model = live(pipeline)
        assert bool(torch.isfinite(drawn(model)).all())
        code = ddim.invert(model, tiny_text.pictures(1), steps=2, prompt=PROMPT)
    assert (model.dtype, code.x.dtype, pipeline.vae.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def same_but_for_layout(one: Any, other: Any) -> bool:
    return far(drawn(one), drawn(other)) < 1e-5


def test_parts_that_accelerate_moves_at_each_call_stay_hooked():
    """What ``enable_model_cpu_offload`` does, with the CPU as the device to compute on."""
    hooks = pytest.importorskip("accelerate").cpu_offload_with_hook
    pipeline, before = tiny_text.pipeline(), None
    for part in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        _, before = hooks(part, torch.device("cpu"), prev_module_hook=before)
    with unchanged(pipeline):
        model = live(pipeline)
        assert same_but_for_layout(model, live(tiny_text.pipeline()))
        edit(model)
        there_and_back("null-text")(model)


def offloaded(part: nn.Module) -> None:
    pytest.importorskip("accelerate").cpu_offload(part, execution_device=torch.device("cpu"))
    assert next(part.parameters()).is_meta


def test_weights_that_accelerate_keeps_elsewhere_are_found():
    """What ``enable_sequential_cpu_offload`` does: the parts hold no numbers between their calls."""
    pipeline, whole = tiny_text.pipeline(), live(tiny_text.pipeline())
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        offloaded(part)
    model = live(pipeline)
    kept = processors(pipeline.unet)
    assert model.device == torch.device("cpu")
    assert model.fingerprint == whole.fingerprint
    assert same_but_for_layout(model, whole)
    edit(model)
    there_and_back("bdia")(model)
    assert all(p.is_meta for p in pipeline.unet.parameters())
    assert all(a is b for a, b in zip(processors(pipeline.unet), kept, strict=True))
    pixels, whole = pixel_pipeline(), live_pixels(pixel_pipeline())
    offloaded(pixels.unet)
    model = live_pixels(pixels)
    assert (model.device, model.fingerprint) == (whole.device, whole.fingerprint)
    assert same_but_for_layout(model, whole)


def test_hooks_see_whole_batches_in_one_thread(monkeypatch: pytest.MonkeyPatch):
    threads = "ddim.models.engine.threads"
    monkeypatch.setattr(f"{threads}.thread_limit", lambda: 4)  # parts of a batch would go to threads of their own
    monkeypatch.setattr(f"{threads}.CPU", {"float32": Least(part=1.0, layer=1e18)})
    pipeline, rows = tiny_text.pipeline(), []
    pipeline.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    pipeline.vae.decoder.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    drawing = live(pipeline)
    ddim.sample(drawing, 8, steps=2, prompt=PROMPT)
    assert rows == [16, 16, 8]  # both branches of guidance, and pictures


@pytest.mark.parametrize("way", ["tiling", "slicing"])
def test_an_autoencoder_that_works_in_parts_does_so(way: str):
    pipeline = tiny_text.pipeline()
    getattr(pipeline.vae, f"enable_{way}")()
    with unchanged(pipeline):
        there_and_back("ddim")(live(pipeline))
    assert getattr(pipeline.vae, f"use_{way}")


# --- adapters --------------------------------------------------------------------------------------------------------


class WithLora(nn.Module):
    """A linear layer with LoRA adapters, told as peft's are."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base
        draw = torch.Generator().manual_seed(5)
        down, up = (torch.randn(n, generator=draw) for n in ((rank, base.in_features), (base.out_features, rank)))
        self.lora_A, self.lora_B = nn.Parameter(down), nn.Parameter(up)
        self.scaling, self.active_adapters, self.disable_adapters = {"toy": 1.0}, ["toy"], False

    def change(self) -> Tensor:
        return self.scaling["toy"] * self.lora_B @ self.lora_A

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        return out if self.disable_adapters else out + nn.functional.linear(x, self.change())

    def fused(self) -> nn.Linear:
        self.base_layer.weight.data += self.change().detach()
        return self.base_layer


def with_loras(pipeline: Any) -> list[WithLora]:
    """Adapters around the queries of two attention layers and a layer of the text encoder."""
    made = []
    for block in (pipeline.unet.down_blocks[0], pipeline.unet.mid_block):
        attention = block.attentions[0].transformer_blocks[0].attn2
        attention.to_q = WithLora(attention.to_q)
        made.append(attention.to_q)
    layer = next(m for m in pipeline.text_encoder.modules() if hasattr(m, "q_proj"))
    layer.q_proj = WithLora(layer.q_proj)
    return [*made, layer.q_proj]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_another_scale_of_any_layer_is_another_model(layer: int):
    pipeline = tiny_text.pipeline()
    bare = live(pipeline).fingerprint
    loras = with_loras(pipeline)
    model = live(pipeline)
    one, picture = model.fingerprint, drawn(model)
    assert one != bare
    code = ddim.invert(model, tiny_text.pictures(1), steps=2, prompt=PROMPT)
    ddim.reconstruct(model, code)  # a warning would be an error here
    loras[layer].scaling["toy"] = 0.25
    assert model.fingerprint != one
    assert far(drawn(model), picture) > 1e-4
    with warned("toy", 0.25):
        ddim.reconstruct(model, code)
    loras[layer].scaling["toy"] = 1.0
    assert model.fingerprint == one
    assert torch.equal(drawn(model), picture)
    for lora in loras:
        lora.disable_adapters = True
    assert model.fingerprint != one
    assert far(drawn(model), drawn(live(tiny_text.pipeline()))) < 1e-5


def test_fused_adapters_draw_the_same_and_are_another_model():
    pipeline = tiny_text.pipeline()
    loras = with_loras(pipeline)
    model = live(pipeline)
    one, picture, code = model.fingerprint, drawn(model), ddim.invert(model, tiny_text.pictures(1), steps=2)
    for network in (pipeline.unet, pipeline.text_encoder):
        for module in network.modules():
            for name in ("to_q", "q_proj"):
                if getattr(module, name, None) in loras:
                    setattr(module, name, getattr(module, name).fused())
    fused = live(pipeline)
    assert fused.fingerprint not in (one, live(tiny_text.pipeline()).fingerprint)
    assert far(drawn(fused), picture) < 1e-3
    with warned("toy", "none"):
        ddim.reconstruct(fused, code)


def test_a_pipeline_with_adapters_is_edited_and_unchanged():
    pipeline = tiny_text.pipeline()
    with_loras(pipeline)
    with unchanged(pipeline):
        edit(live(pipeline))
        there_and_back("null-text")(live(pipeline))


def test_adapters_of_peft():
    peft = pytest.importorskip("peft", reason="peft, which makes LoRA adapters, is not installed here")
    pipeline = tiny_text.pipeline()
    bare = live(pipeline).fingerprint
    torch.manual_seed(3)
    wanted = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipeline.unet.add_adapter(wanted, adapter_name="toy")
    pipeline.unet.eval()
    model = live(pipeline)
    with unchanged(pipeline):
        one, picture = model.fingerprint, drawn(model)
        edit(model)
        there_and_back("null-text")(model)
    assert one != bare
    pipeline.set_adapters(["toy"], [0.3])
    other, less = model.fingerprint, drawn(model)
    assert other not in (bare, one)
    assert far(less, picture) > 1e-4
    code = ddim.invert(model, tiny_text.pictures(1), steps=2, prompt=PROMPT)
    pipeline.fuse_lora(components=["unet"])
    assert model.fingerprint != other
    assert far(drawn(model), less) < 1e-3
    with warned(other[:12], model.fingerprint[:12]):
        ddim.reconstruct(model, code)
    pipeline.unfuse_lora(components=["unet"])
    assert far(drawn(model), less) < 1e-3


# --- compiled --------------------------------------------------------------------------------------------------------


class Compiled(nn.Module):
    """What torch.compile puts around a network, without a compiler."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._orig_mod = network
        self.train(network.training)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "_orig_mod" else getattr(super().__getattr__("_orig_mod"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._orig_mod(*args, **kwargs)


def around(network: nn.Module) -> nn.Module:
    return Compiled(network)


def by_torch(network: nn.Module) -> Any:
    return torch.compile(network, backend="eager")


def in_place(network: nn.Module) -> nn.Module:
    network.compile(backend="eager")
    return network


@pytest.mark.parametrize("wrap", [around, by_torch, in_place], ids=lambda f: f.__name__)
def test_a_compiled_network_works_without_attention_control(wrap: Callable[[nn.Module], Any]):
    pipeline, own = tiny_text.pipeline(), live(tiny_text.pipeline())
    pipeline.unet = wrap(pipeline.unet)
    assert is_compiled(pipeline.unet)
    model, kept = live(pipeline), processors(pipeline.unet)
    assert model.fingerprint == own.fingerprint
    with refused("attention", "compiled", "attention = 'none'") as caught:
        edit(model)
    assert "\n" not in str(caught.value)
    with suppress_dynamo(wrap):
        assert same_but_for_layout(model, own)
        edit_plainly(model)
    assert all(a is b for a, b in zip(processors(pipeline.unet), kept, strict=True))


@contextmanager
def suppress_dynamo(wrap: Callable[..., Any]) -> Iterator[None]:
    """Forgets what was compiled. Only ``in_place`` is traced, which takes long and is the same for both."""
    try:
        with torch.compiler.set_stance("force_eager") if wrap is by_torch else nullcontext():
            yield
    finally:
        if wrap is not around:
            torch._dynamo.reset()


# --- processors that do more -----------------------------------------------------------------------------------------


class Louder:
    """An attention processor of one's own: it attends, and makes the outcome larger."""

    def __init__(self) -> None:
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.plain, self.calls = AttnProcessor2_0(), 0

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.calls += 1
        return self.plain(attn, hidden_states, *args, **kwargs) * 1.5


def test_processors_of_ones_own_work_and_are_never_replaced():
    pipeline = tiny_text.pipeline()
    louder = Louder()
    pipeline.unet.set_attn_processor(louder)
    with unchanged(pipeline):
        model = live(pipeline)
        with refused("attention", "Louder") as caught:
            edit(model)
        assert "\n" not in str(caught.value)
        drawn(model)
        before = louder.calls
        edit_plainly(model)
    assert louder.calls > before > 0  # also in an edit that controls nothing


@pytest.mark.parametrize("kind", ["AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "FusedAttnProcessor2_0"])
def test_plain_processors_are_stood_in_for_and_come_back(kind: str):
    from diffusers.models import attention_processor

    pipeline = tiny_text.pipeline()
    if kind == "FusedAttnProcessor2_0":
        pipeline.fuse_qkv_projections(vae=False)
    elif kind == "SlicedAttnProcessor":
        pipeline.unet.set_attn_processor(attention_processor.SlicedAttnProcessor(2))
    else:
        pipeline.unet.set_attn_processor(getattr(attention_processor, kind)())
    assert {type(p).__name__ for p in processors(pipeline.unet)} == {kind}
    with unchanged(pipeline):
        model = live(pipeline)
        made = ddim.edit(model, tiny_text.pictures(1), OTHER, source_prompt=PROMPT, steps=3, attention=EVERYWHERE)
        with model.controlled():
            assert {type(p) for p in processors(pipeline.unet)} == {ControlledAttention}
    own = live(tiny_text.pipeline())
    same = ddim.edit(own, tiny_text.pictures(1), OTHER, source_prompt=PROMPT, steps=3, attention=EVERYWHERE)
    assert far(made.edits, same.edits) < 1e-3


# --- what is refused -------------------------------------------------------------------------------------------------


def one_sentence(caught: Any, parameter: str = "model") -> str:
    said = str(caught.value)
    assert caught.value.parameter == parameter
    assert "\n" not in said
    return said


MORE = {
    "StableDiffusionControlNetPipeline": "its ControlNet needs another image in every call",
    "StableDiffusionControlNetImg2ImgPipeline": "its ControlNet needs another image in every call",
    "StableDiffusionControlNetInpaintPipeline": "its ControlNet needs another image in every call",
    "StableDiffusionInpaintPipeline": "needs a mask in every call",
    "StableDiffusionInstructPix2PixPipeline": "its network needs the source image in every call",
    "StableDiffusionDepth2ImgPipeline": "its network needs a depth map in every call",
    "StableDiffusionUpscalePipeline": "its network needs a low-resolution image in every call",
    "StableDiffusionAdapterPipeline": "its adapter needs another image in every call",
    "FluxFillPipeline": "its network needs a masked image in every call",
    "FluxControlPipeline": "its network needs a control image in every call",
    "FluxControlNetPipeline": "its ControlNet needs another image in every call",
    "FluxPriorReduxPipeline": "it makes only the embeddings of another pipeline",
    "StableDiffusionGLIGENPipeline": "",
    "StableDiffusionImageVariationPipeline": "",
    "LDMPipeline": "",
    "ConsistencyModelPipeline": "",
    "CogView4Pipeline": "",
}


@pytest.fixture(scope="module")
def words_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "words"
    tiny_text.pipeline().save_pretrained(folder)
    return folder


def of_class(kind: str) -> Any:
    """A live pipeline of a class of diffusers, with the tiny model's parts."""
    found = getattr(diffusers, kind)
    made = found.__new__(found)
    plain = tiny_text.pipeline()
    made.__dict__.update(plain.__dict__)
    made._internal_dict = plain._internal_dict
    return made


@pytest.mark.parametrize(("kind", "why"), MORE.items())
def test_pipelines_that_want_more_are_refused_by_name(kind: str, why: str, words_folder: Path, tmp_path: Path):
    live_one = of_class(kind)
    live_one.__class__.components = property(lambda self: {})
    try:
        with pytest.raises(InputError) as caught:
            ddim.load(live_one)
    finally:
        del live_one.__class__.components
    folder = Path(shutil.copytree(words_folder, tmp_path / "m"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": kind}))
    with pytest.raises(InputError) as of_folder:
        ddim.load(folder, device="cpu")
    for said in (one_sentence(caught), one_sentence(of_folder)):
        assert f"a {kind}, which this version does not support" in said
        assert why in said
        assert len(said) < 500  # no list of all classes


def test_a_real_inpainting_pipeline_is_refused():
    parts = tiny_text.pipeline().components
    parts = {k: v for k, v in parts.items() if k != "image_encoder"}
    pipeline = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)  # type: ignore[arg-type]
    with unchanged(pipeline), refused("model", "StableDiffusionInpaintPipeline", hint=True) as caught:
        ddim.load(pipeline)
    one_sentence(caught)


def test_an_img2img_pipeline_is_the_same_networks():
    parts = {k: v for k, v in tiny_text.pipeline().components.items() if k != "image_encoder"}
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)  # type: ignore[arg-type]
    with unchanged(pipeline):
        model = live(pipeline)
        assert model.fingerprint == live(tiny_text.pipeline()).fingerprint
        assert torch.equal(drawn(model), drawn(live(tiny_text.pipeline())))


def test_an_ip_adapter_is_refused():
    pipeline = tiny_text.pipeline()
    pipeline.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    with unchanged(pipeline), refused("model", "IP-Adapter") as caught:
        ddim.load(pipeline)
    assert "pipeline.unload_ip_adapter()" in one_sentence(caught)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_network_in_training_is_refused(part: str):
    pipeline = tiny_text.pipeline()
    getattr(pipeline, part).train()
    with unchanged(pipeline), refused("model", part) as caught:
        ddim.load(pipeline)
    assert f"pipeline.{part}.eval()" in one_sentence(caught)


def test_a_pixel_network_in_training_is_refused():
    pipeline = pixel_pipeline()
    pipeline.unet.train()
    with unchanged(pipeline), refused("model", "pipeline.unet.eval()") as caught:
        ddim.load(pipeline)
    one_sentence(caught)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer"])
def test_a_pipeline_without_a_part_is_refused(part: str):
    pipeline = tiny_text.pipeline()
    setattr(pipeline, part, None)
    with refused("model", "StableDiffusionPipeline", part) as caught:
        ddim.load(pipeline)
    one_sentence(caught)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_of_another_class_is_refused(part: str):
    pipeline = tiny_text.pipeline()
    setattr(pipeline, part, tiny.unet())
    with refused("model", part, "UNet2DModel") as caught:
        ddim.load(pipeline)
    one_sentence(caught)
    pixels = pixel_pipeline()
    pixels.unet = tiny_text.pipeline().unet
    with refused("model", "UNet2DConditionModel", "UNet2DModel"):
        ddim.load(pixels)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("device", "cpu"), ("device", torch.device("cpu")), ("dtype", "float32"), ("dtype", torch.bfloat16)),
        ("compile", True),
    ],
)
@pytest.mark.parametrize("make", [tiny_text.pipeline, pixel_pipeline], ids=["text", "pixels"])
def test_where_and_what_are_the_owners_affair(make: Callable[[], Any], option: str, value: Any):
    pipeline = make()
    with unchanged(pipeline), refused(option, type(pipeline).__name__) as caught:
        ddim.load(pipeline, **{option: value})
    one_sentence(caught, option)
    ddim.load(pipeline, device=None, dtype=None, compile=False)


@pytest.mark.parametrize(
    "thing",
    [None, 3, ["fashion"], {"unet": 1}, b"fashion", lambda x, t: x, tiny.unet(), object()],
    ids=lambda thing: type(thing).__name__,
)
def test_what_is_no_pipeline_is_refused(thing: Any):
    with refused("model", type(thing).__name__, hint=True) as caught:
        ddim.load(thing)
    said = one_sentence(caught)
    assert type(thing).__name__ in said
    assert "Model.from_network" in said


def test_a_loaded_model_is_no_pipeline():
    with refused("model", "PixelModel", hint=True):
        ddim.load(tiny.model())  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [{"num_class_embeds": 5}, {"out_channels": 3}], ids=str)
def test_a_network_that_wants_more_than_words_is_refused(config: dict[str, Any]):
    pipeline = tiny_text.pipeline()
    pipeline.unet.register_to_config(**config)
    with unchanged(pipeline), pytest.raises(InputError) as caught:
        ddim.load(pipeline)
    one_sentence(caught)


def test_a_scheduler_that_is_not_taken_is_refused():
    pipeline = tiny_text.pipeline()
    pipeline.scheduler = diffusers.IPNDMScheduler()
    with refused("scheduler", "IPNDMScheduler") as caught:
        ddim.load(pipeline)
    one_sentence(caught, "scheduler")
