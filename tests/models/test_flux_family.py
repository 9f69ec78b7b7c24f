"""FLUX.1 and Kontext through the whole library: codes, edits, the embedded guidance, folders, and what is refused."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_flux
import tiny_sdxl
import torch
from oracles import noise_like
from refusals import refused, warned
from tiny_flow import FAMILIES, t5_encoder
from torch import Tensor, nn

import ddim
from ddim import Guidance
from ddim.core.conditioning import Conditioning, PromptConditioning
from ddim.core.guidance import with_embedded
from ddim.inversion import make_inversion
from ddim.models.base import Model
from ddim.models.flux import Flux, FluxKontext, packed, position_ids, unpacked

FAR = 0.01
"""What a wrong number changes, at the least, in parts of the largest value."""
EXACT = ("bdia", "belm", "edict", "rex", "reversible-heun")
SIZE = (32, 32)


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference in parts of the largest value of ``b``."""
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def made(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a row of ``FAMILIES``."""
    family = FAMILIES[name]
    return family.load(family.pipeline().to(dtype))


@pytest.fixture(scope="module")
def dev() -> Flux:
    return made("flux dev")


@pytest.fixture(scope="module")
def schnell() -> Flux:
    return made("flux schnell")


@pytest.fixture
def kontext() -> FluxKontext:
    return made("flux kontext")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return tiny_sdxl.pictures(2)


# --- facts ------------------------------------------------------------------------------------------------------------


def test_what_a_model_says_of_itself(dev, schnell, kontext):
    assert (dev.info.embedded, schnell.info.embedded, kontext.info.embedded) == (3.5, None, 3.5)
    assert dev.info.guidance_kinds == kontext.info.guidance_kinds == {"cfg", "embedded"}
    assert schnell.info.guidance_kinds == frozenset()
    assert {m.info.guidance for m in (dev, schnell, kontext)} == {1.0}
    assert (dev.info.prompt_tokens, schnell.info.prompt_tokens) == (511, 255)
    free = made("flux de-distilled")
    facts = (free.info.embedded, free.info.guidance_kinds, free.info.guidance, free.info.prompt_tokens)
    assert facts == (None, {"cfg"}, 3.5, 511)
    assert (dev.shape, dev.picture, dev.multiple) == ((4, 16, 16), (3, 32, 32), 4)


def test_the_published_default_size(dev):
    pipeline = FAMILIES["flux dev"].pipeline()
    pipeline.default_sample_size = 128
    assert ddim.load(pipeline).picture == (3, 256, 256)  # 1024 with an autoencoder of four levels


@pytest.mark.parametrize(
    ("text", "null_class", "kinds"),
    [(True, None, {"cfg"}), (False, 3, {"cfg"}), (False, None, set())],
)
def test_guidance_kinds_by_default(text, null_class, kinds):
    where = {"dtype": torch.float32, "device": torch.device("cpu")}
    info = ddim.models.info.ModelInfo("a", "b", (1, 8, 8), (1, 8, 8), 0, text=text, null_class=null_class, **where)
    assert info.guidance_kinds == kinds


def test_latents_are_packed_into_tokens_and_back():
    x = noise_like((2, 3, 4, 6))
    tokens = packed(x)
    assert tokens.shape == (2, 6, 12)
    assert torch.equal(tokens[0, 4], x[0, :, 2:4, 2:4].reshape(-1))  # the second row's second block
    assert torch.equal(unpacked(tokens, 4, 6), x)


def test_position_ids_count_rows_and_columns():
    ids = position_ids(2, 3, 1, torch.zeros(0, dtype=torch.bfloat16))
    assert ids.dtype == torch.bfloat16
    assert ids.tolist() == [[1, row, column] for row in range(2) for column in range(3)]


# --- codes ------------------------------------------------------------------------------------------------------------

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "embedded": ("flux dev", {}),
    "embedded 3.5": ("flux dev", {"guidance": Guidance(1.0, embedded=3.5)}),
    "true cfg": ("flux dev", {"guidance": Guidance(3.0, embedded=3.5), "negative": "grey"}),
    "schnell": ("flux schnell", {}),
    "kontext": ("flux kontext", {"guidance": 2.0}),
}


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize(
    ("way", "dtype"),
    [*((way, torch.float32) for way in WAYS), ("embedded", torch.bfloat16), ("true cfg", torch.bfloat16)],
    ids=str,
)
def test_codes_of_exact_methods_come_back_to_the_bit(images, method, way, dtype, tmp_path):
    name, settings = WAYS[way]
    model = made(name, dtype)
    code = ddim.invert(model, images, steps=3, method=method, prompt=["a cat", "a dog"], **settings)
    code = ddim.LatentCode.load(code.save(tmp_path / "code"))
    solver: Any = make_inversion(method).solver()
    x0 = model.encode(images)
    snapped = solver.read(solver.on_lattice(dict.fromkeys(solver.keys, x0), code.grid, code.grid.steps))
    back = ddim.reconstruct(model, code, strict=True)
    assert torch.equal(back, model.decode(snapped))
    assert torch.equal(ddim.reconstruct(model, code[1])[0], back[1])
    assert bool(torch.isfinite(back).all())


@pytest.mark.parametrize("method", ["direct", "edit-friendly"])
def test_methods_that_store_their_errors_come_back(dev, images, method):
    code = ddim.invert(dev, images, steps=6, method=method, prompt="a cat")
    assert apart(ddim.reconstruct(dev, code), dev.decode(dev.encode(images))) <= 1e-5


# --- the embedded guidance --------------------------------------------------------------------------------------------


def scales(both: PromptConditioning) -> list[list[float]]:
    return [c.tensors["guidance"].tolist() for c in (both.cond, both.uncond) if c is not None]


def test_samples_are_drawn_with_the_usual_scale(dev):
    def drawn(guidance: Guidance | None) -> Tensor:
        return ddim.sample(dev, 1, steps=3, prompt="a cat", guidance=guidance)

    assert scales(dev.condition(None, 2, "a cat")) == [[3.5, 3.5], [3.5, 3.5]]
    assert torch.equal(drawn(None), drawn(Guidance(1.0, embedded=3.5)))
    assert apart(drawn(None), drawn(Guidance(1.0, embedded=1.0))) >= FAR


def test_both_branches_are_told_the_scale(dev):
    both = with_embedded(dev.condition(None, 2, "a cat", "grey"), 1.25)
    assert scales(both) == [[1.25, 1.25], [1.25, 1.25]]
    assert both.cond.tensors["guidance"].dtype == torch.float32
    assert with_embedded(both, None) is both


@pytest.mark.parametrize(("guidance", "scale"), [(None, 1.0), (2.0, 1.0), (Guidance(2.0, embedded=2.5), 2.5)], ids=str)
def test_a_code_stores_the_scale_of_its_inversion(dev, images, guidance, scale, tmp_path):
    code = ddim.invert(dev, images, steps=3, method="bdia", prompt="a cat", guidance=guidance)
    code = ddim.LatentCode.load(code.save(tmp_path / "code"))
    assert scales(code.conditions) == [[scale] * 2] * 2
    assert code.guidance.get("embedded") == (scale if isinstance(guidance, Guidance) else None)
    other = ddim.invert(dev, images, steps=3, prompt="a cat", guidance=Guidance(1.0, embedded=3.5))
    mine = ddim.invert(dev, images, steps=3, prompt="a cat", guidance=Guidance(1.0, embedded=scale))
    assert apart(other.x, mine.x) >= FAR


def forward(model: Model, code: ddim.LatentCode, cond: Conditioning) -> Tensor:
    """What a code of DDIM becomes under a condition, by the core alone."""
    denoise = model.guided(Guidance(1.0), PromptConditioning(cond))
    return model.decode(ddim.solve(denoise, ddim.make_solver("ddim"), code.state, code.grid)["x"])


@pytest.mark.parametrize(
    ("inverted", "edited", "scale"),
    [
        (None, None, 3.5),
        (None, 1.0, 3.5),
        (None, Guidance(1.0, embedded=5.0), 5.0),
        (Guidance(1.0, embedded=2.0), None, 2.0),
        (Guidance(1.0, embedded=2.0), 1.0, 2.0),
        (Guidance(1.0, embedded=2.0), Guidance(1.0, embedded=5.0), 5.0),
    ],
    ids=str,
)
def test_an_edit_tells_its_targets_their_own_scale(dev, images, inverted, edited, scale):
    code = ddim.invert(dev, images[:1], steps=4, method="ddim", prompt="a cat", guidance=inverted)
    out = ddim.edit(dev, code, ["two dogs"], attention="none", guidance=edited)
    target = dev.condition(None, 1, "two dogs").cond
    right, wrong = (target.replace(guidance=torch.tensor([s])) for s in (scale, scale + 2))
    assert apart(out.edits[:, 0], forward(dev, code, right)) <= 1e-5
    assert apart(out.edits[:, 0], forward(dev, code, wrong)) >= FAR
    assert apart(out.reconstruction, ddim.reconstruct(dev, code)) <= 1e-5


def test_an_edit_of_pictures_inverts_them_with_the_scale_1(dev, images):
    told = Guidance(1.0, embedded=5.0)
    out = ddim.edit(dev, images, ["two dogs"], source_prompt="a cat", steps=3, attention="none", guidance=told)
    assert scales(out.code.conditions)[0] == [1.0, 1.0]
    by_code = ddim.edit(dev, out.code, ["two dogs"], attention="none", guidance=told)
    assert torch.equal(out.edits, by_code.edits)
    usual = ddim.edit(dev, out.code, ["two dogs"], attention="none")
    assert apart(usual.edits, out.edits) >= FAR


def test_an_edit_to_the_source_itself_is_the_source_at_equal_scales(dev, images):
    code = ddim.invert(dev, images, steps=3, method="bdia", prompt="a cat")
    same = ddim.edit(dev, code, ["a cat"], attention="none", guidance=Guidance(1.0, embedded=1.0))
    assert torch.equal(same.edits[:, 0], same.reconstruction)
    other = ddim.edit(dev, code, ["a cat"], attention="none")
    assert apart(other.edits[:, 0], other.reconstruction) >= FAR


def test_interpolations_need_one_scale(dev, images):
    one, two = (
        ddim.invert(dev, images[k : k + 1], steps=3, prompt="a cat", guidance=Guidance(1.0, embedded=scale))
        for k, scale in enumerate((1.0, 2.0))
    )
    with refused("codes"):
        ddim.interpolate(dev, one, two, frames=3)
    both = ddim.invert(dev, images, steps=3, method="bdia", prompt="a cat", guidance=Guidance(1.0, embedded=2.0))
    frames = ddim.interpolate(dev, both, frames=3)
    assert apart(frames[[0, 2]], ddim.reconstruct(dev, both)) <= 1e-5


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def idle(schnell, monkeypatch) -> Flux:
    """A FLUX.1-schnell none of whose networks may be called."""

    def called(*args: object, **kwargs: object) -> None:
        raise AssertionError("work was begun")

    for network in schnell.networks().values():
        monkeypatch.setattr(network, "forward", called)
    return schnell


@pytest.mark.parametrize("guidance", [2.0, 0.0, Guidance(4.0)], ids=str)
def test_schnell_takes_no_weight(idle, images, guidance):
    with refused("guidance", repr(idle.name)):
        ddim.sample(idle, 1, steps=2, prompt="a cat", guidance=guidance)
    with refused("guidance", repr(idle.name)):
        ddim.invert(idle, images, steps=2, prompt="a cat", guidance=guidance)
    with refused("guidance", repr(idle.name)):
        ddim.edit(idle, images, ["a dog"], source_prompt="a cat", attention="none", guidance=guidance)


def test_schnell_takes_no_negative_prompt_and_no_scale(idle, images):
    prompts = {"prompt": "a cat", "negative": "grey"}
    with refused("negative", "'grey'", repr(idle.name)):
        ddim.sample(idle, 1, steps=2, **prompts)
    with refused("negative", "'grey'"):
        ddim.invert(idle, images, steps=2, **prompts)
    with refused("negative", "'grey'"):
        ddim.edit(idle, images, ["a dog"], source_prompt="a cat", attention="none", negative="grey")
    with refused("negative", "'grey'"):
        idle.condition(None, 1, "a cat", "grey")
    with refused("inversion_guidance", 2):
        ddim.invert(idle, images, steps=2, prompt="a cat", inversion_guidance=2.0)
    with refused("embedded", 3.5):
        ddim.sample(idle, 1, steps=2, prompt="a cat", guidance=Guidance(1.0, embedded=3.5))


def test_schnell_edits_a_code_without_a_weight(schnell, images):
    code = ddim.invert(schnell, images, steps=3, prompt="a cat", inversion_guidance=1.0)
    assert code.conditions.uncond is None
    assert apart(ddim.edit(schnell, code, ["a dog"], attention="none").edits[:, 0], ddim.reconstruct(schnell, code)) > 0
    with refused("guidance", 3):
        ddim.edit(schnell, code, ["a dog"], attention="none", guidance=3.0)


def test_dev_takes_a_negative_prompt_with_a_weight(dev):
    with refused("negative", "'grey'"):
        ddim.sample(dev, 1, steps=2, prompt="a cat", negative="grey")
    drawn = [
        ddim.sample(dev, 1, steps=2, prompt="a cat", negative=words, guidance=4.0) for words in (None, "grey", "red")
    ]
    assert min(apart(drawn[0], drawn[1]), apart(drawn[1], drawn[2])) >= FAR


def test_a_scale_that_no_network_is_told():
    model = made("sd3")
    with refused("embedded", 3.5):
        ddim.sample(model, 1, steps=2, prompt="a cat", guidance=Guidance(1.0, embedded=3.5))
    denoise = model.guided(Guidance(1.0, embedded=3.5), model.condition(None, 1, "a cat"))
    with refused("embedded", 3.5):
        denoise(noise_like((1, *model.shape)).float(), model.schedule.grid(3)[0])


def test_conditions_that_lack_the_scale_are_refused(dev):
    cond = dev.encode_prompt(["a cat"])
    without = Conditioning({name: t for name, t in cond.tensors.items() if name != "guidance"})
    with refused("conditioning", "guidance"):
        dev.ask(noise_like((1, *dev.shape)).float(), dev.schedule.grid(3, image_size=(16, 16))[0], without)


def test_sizes_that_are_no_multiples(dev):
    with refused("size", "height 30 and width 32"):
        ddim.sample(dev, 1, steps=2, prompt="a cat", size=(30, 32))
    with refused("images", "30x32"):
        ddim.invert(dev, torch.rand(1, 3, 32, 30), steps=2, prompt="a cat")
    assert ddim.sample(dev, 1, steps=2, prompt="a cat", size=(16, 24)).shape == (1, 3, 16, 24)


def test_a_prompt_that_is_cut_warns(schnell):
    with warned(300, 255):
        schnell.encode_prompt(["a" * 299])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ddim.DDIMWarning)
        schnell.encode_prompt(["a" * 254])


# --- Kontext ----------------------------------------------------------------------------------------------------------


def test_a_reference_is_a_condition_of_every_row(kontext):
    latents = kontext.encode(tiny_flux.picture())
    both = kontext.condition(None, 2, ["a cat", "a dog"])
    for branch in (both.cond, both.uncond):
        assert branch is not None
        assert torch.equal(branch.tensors["reference"], latents.repeat(2, 1, 1, 1))
    kontext.reference = None
    assert kontext.reference is None
    assert "reference" not in kontext.condition(None, 1, "a cat").cond


def test_a_reference_may_be_a_file(kontext, tmp_path):
    ddim.save_image(tiny_flux.picture()[0], tmp_path / "r.png")
    before = kontext.reference
    kontext.reference = tmp_path / "r.png"
    assert kontext.reference.shape == before.shape
    assert 0 < apart(kontext.reference, before) < 0.05  # eight bits


@pytest.mark.parametrize(
    ("picture", "value"),
    [(torch.rand(1, 3, 30, 32), "32x30"), (torch.rand(2, 3, 32, 32), 2), (3, "int"), ("/no/such/file.png", "file")],
    ids=["size", "two", "number", "missing"],
)
def test_references_that_are_none(kontext, picture, value):
    with refused("reference", value):
        kontext.reference = picture


def test_a_code_keeps_its_reference(kontext, images, tmp_path):
    code = ddim.invert(kontext, images, steps=3, method="bdia", prompt="a cat")
    back, target = ddim.reconstruct(kontext, code), ddim.edit(kontext, code, ["a dog"], attention="none")
    code = ddim.LatentCode.load(code.save(tmp_path / "code"))
    for other in (None, tiny_flux.picture(seed=1)):
        kontext.reference = other
        assert torch.equal(ddim.reconstruct(kontext, code, strict=True), back)
        assert torch.equal(ddim.edit(kontext, code, ["a dog"], attention="none").edits, target.edits)
    elsewhere = ddim.invert(kontext, images, steps=3, method="bdia", prompt="a cat")
    assert apart(elsewhere.x, code.x) >= FAR
    with refused("codes"):
        ddim.interpolate(kontext, code[0], elsewhere[1], frames=3)


def test_a_code_without_a_reference_stays_without(kontext, images):
    reference = tiny_flux.picture()
    kontext.reference = None
    code = ddim.invert(kontext, images, steps=3, prompt="a cat")
    back, target = ddim.reconstruct(kontext, code), ddim.edit(kontext, code, ["a dog"], attention="none")
    kontext.reference = reference
    assert torch.equal(ddim.reconstruct(kontext, code), back)
    assert torch.equal(ddim.edit(kontext, code, ["a dog"], attention="none").edits, target.edits)


def test_a_code_with_a_reference_is_not_for_a_model_that_takes_none(kontext, dev, images):
    code = ddim.invert(kontext, images, steps=3, prompt="a cat")
    with refused("code", "FluxPipeline"):
        ddim.reconstruct(dev, code)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_an_ip_adapter_is_refused():
    pipeline = FAMILIES["flux dev"].pipeline()
    pipeline.transformer.register_to_config(encoder_hid_dim_type="ip_image_proj")
    with refused("model", "IP-Adapter"):
        ddim.load(pipeline)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"])
def test_a_pipeline_without_a_part_is_refused(part):
    pipeline = FAMILIES["flux dev"].pipeline()
    setattr(pipeline, part, None)
    with refused("model", "FluxPipeline", part):
        ddim.load(pipeline)


def test_a_network_in_training_is_refused():
    pipeline = FAMILIES["flux dev"].pipeline()
    pipeline.text_encoder_2.train()
    with refused("model", "text_encoder_2"):
        ddim.load(pipeline)


@pytest.mark.parametrize(
    ("config", "values"),
    [({"in_channels": 32}, [32, 16]), ({"in_channels": 96, "out_channels": 16}, [96, 16]), ({"patch_size": 2}, [2])],
    ids=["control", "fill", "patches"],
)
def test_other_networks_are_refused(config, values):
    pipeline = FAMILIES["flux dev"].pipeline()
    pipeline.transformer = tiny_flux.transformer(**config)
    with refused("model", *values):
        ddim.load(pipeline)


def test_a_scheduler_of_another_path_is_refused():
    pipeline = FAMILIES["flux dev"].pipeline()
    pipeline.scheduler = tiny_sdxl.scheduler()
    with refused("model", "DDIMScheduler"):
        ddim.load(pipeline)


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    there = tmp_path_factory.mktemp("flux")
    for name in ("flux dev", "flux schnell", "flux kontext"):
        FAMILIES[name].pipeline().save_pretrained(there / name)
    return {name: there / name for name in ("flux dev", "flux schnell", "flux kontext")}


def changed(folder: Path, to: Path, change: Callable[[dict[str, Any]], Any], file: str = "model_index.json") -> Path:
    """The folder again, with one of its JSON files changed."""
    shutil.copytree(folder, to)
    values = json.loads((to / file).read_text())
    change(values)
    (to / file).write_text(json.dumps(values))
    return to


@pytest.mark.parametrize("name", ["flux dev", "flux schnell", "flux kontext"])
def test_a_folder_is_the_pipeline_it_was_saved_from(folders, name):
    loaded, again = (ddim.load(folders[name], device="cpu") for _ in range(2))
    live = ddim.load(FAMILIES[name].pipeline())
    assert type(loaded) is type(live)
    assert loaded.fingerprint == again.fingerprint == live.fingerprint
    settings = {"steps": 3, "prompt": "a cat", "size": SIZE}
    assert apart(ddim.sample(loaded, 1, **settings), ddim.sample(live, 1, **settings)) <= 1e-5
    assert loaded.picture == (3, 256, 256)  # the default of the pipeline, which a folder does not change


def test_an_img2img_folder_and_pipeline_are_the_same_networks(folders, tmp_path):
    import diffusers

    pipeline = FAMILIES["flux dev"].pipeline()
    live = diffusers.FluxImg2ImgPipeline(**{k: v for k, v in pipeline.components.items() if k != "image_encoder"})
    there = changed(folders["flux dev"], tmp_path / "m", lambda index: index.update(_class_name="FluxImg2ImgPipeline"))
    assert ddim.load(live).fingerprint == ddim.load(there, device="cpu").fingerprint == ddim.load(pipeline).fingerprint


def test_a_folder_in_bfloat16(folders):
    model = ddim.load(folders["flux dev"], device="cpu", dtype="bfloat16")
    drawn = ddim.sample(model, 1, steps=3, prompt="a cat", size=SIZE)
    assert bool(torch.isfinite(drawn).all())
    assert {p.dtype for part in model.networks().values() for p in part.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "tokenizer_2"])
def test_a_folder_without_an_encoder_is_refused(folders, tmp_path, part):
    there = changed(folders["flux dev"], tmp_path / "m", lambda index: index.update({part: [None, None]}))
    with refused("model", part):
        ddim.load(there, device="cpu")


def replaced(pipeline: Any, part: str, by: nn.Module) -> Any:
    setattr(pipeline, part, by)
    return pipeline


@pytest.mark.parametrize(
    ("part", "make", "value"),
    [
        ("text_encoder_2", lambda p: t5_encoder(p.tokenizer_2, 24), 24),
        ("text_encoder", lambda p: tiny_sdxl.encoder(p.tokenizer, 16), 16),
        ("text_encoder_2", lambda p: t5_encoder(range(9)), 9),
    ],
    ids=["t5", "clip", "vocabulary"],
)
def test_a_folder_whose_parts_do_not_fit_is_refused(tmp_path, part, make, value):
    pipeline = FAMILIES["flux dev"].pipeline()
    pipeline.register_modules(**{part: make(pipeline)})
    pipeline.save_pretrained(tmp_path / "m")
    with refused("model", value):
        ddim.load(tmp_path / "m", device="cpu")


OTHERS = {
    "FluxFillPipeline": "masked image",
    "FluxControlPipeline": "control image",
    "FluxControlNetPipeline": "ControlNet",
    "FluxInpaintPipeline": "mask",
    "FluxKontextInpaintPipeline": "mask",
    "FluxPriorReduxPipeline": "embeddings",
}


@pytest.mark.parametrize(("kind", "why"), OTHERS.items())
def test_other_pipelines_of_flux_are_refused_by_name(folders, tmp_path, kind, why):
    there = changed(folders["flux dev"], tmp_path / "m", lambda index: index.update(_class_name=kind))
    with refused("model", kind, why, hint=True):
        ddim.load(there, device="cpu")
