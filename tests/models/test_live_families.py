"""``ddim.load`` of a pipeline object on rectified flow: in bfloat16, offloaded and with a LoRA; it stays itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import noise_like
from tiny_flow import FAMILIES, STEPS
from torch import Tensor
from unchanged import networks, unchanged

import ddim
from ddim import AttentionEdit
from ddim.models.base import Model
from ddim.pipelines.capabilities import capabilities

pytestmark = pytest.mark.filterwarnings("ignore::ddim._utils.errors.DDIMWarning")  # of codes of random networks
families = pytest.mark.parametrize("family", [name for name in FAMILIES if "turbo" not in name])
FAR = 1e-2
"""What another pipeline must change at least; our agreement is 1,000 times finer."""


def whole(pipeline: Any) -> Any:
    pipeline.transformer.requires_grad_(True)
    return pipeline


def model_offload(pipeline: Any) -> Any:
    pipeline.enable_model_cpu_offload(device="cpu")
    return pipeline


def sequential_offload(pipeline: Any) -> Any:
    """What ``enable_sequential_cpu_offload`` does, with the CPU as the device to compute on."""
    accelerate = pytest.importorskip("accelerate")
    for part in networks(pipeline).values():
        accelerate.cpu_offload(part, execution_device=torch.device("cpu"))
    assert next(pipeline.transformer.parameters()).is_meta
    return pipeline


def brain(pipeline: Any) -> Any:
    return pipeline.to(torch.bfloat16)


def noise(model: Model) -> Tensor:
    return noise_like((1, *model.shape)).to(model.dtype)


def used(family: str, pipeline: Any) -> Tensor:
    """Draws with every verb of the library once; what ``sample`` draws."""
    model = FAMILIES[family].load(pipeline)
    can = capabilities(model)
    weight = 3.0 if can["controls"]["guidance"] is None else 1.0
    images = torch.rand(2, *model.picture, generator=torch.Generator().manual_seed(1))
    told: dict[str, Any] = {"steps": 3, "guidance": weight}
    sampled = ddim.sample(model, 1, prompt="a cat", **told)
    code = ddim.invert(model, images, prompt=["a cat", "a small dog"], method="bdia", **told)
    drawn = [sampled, ddim.reconstruct(model, code, strict=True)]
    drawn.append(ddim.interpolate(model, ddim.invert(model, images, prompt="a cat", **told), frames=3))
    looks: dict[str, Any] = {"self_steps": (0, 1), "value_steps": (0, 0.5)}  # at the image, which Sana's maps do not
    looks = looks if any(site.picture for site in model.attention_sites()) else {}
    how = AttentionEdit("refine", (0, 1), **looks, blend_threshold=0.9)
    edits: dict[str, Any] = {"source_prompt": "a cat", "attention": how, "blend": "cat/fox", "weights": {"fox": 2.0}}
    drawn.append(ddim.edit(model, images, ["a fox"], **edits, **told).edits)
    if can["inversions"]["null-text"] is None:
        tuned = ddim.invert(model, images, prompt="a cat", method="null-text", options={"inner": 2}, **told)
        drawn.append(ddim.edit(model, tuned, ["a dog"], attention="none").edits)
    assert all(bool(torch.isfinite(x).all()) for x in drawn)
    return sampled


def called(family: str, pipeline: Any) -> Tensor:
    """A call of the pipeline by itself. In the first, transformers and accelerate set hooks, and Qwen's VAE counts."""
    getattr(pipeline.vae, "clear_cache", tuple)()
    return theirs(family, pipeline)


WAYS = [
    (family, way)
    for family in FAMILIES
    for way in (whole, brain, model_offload, sequential_offload)
    # one form of each family where the way moves its parts, which all forms share
    if "turbo" not in family and (way in (whole, brain) or family.count(" ") < 2)
]


@pytest.mark.parametrize(("family", "way"), WAYS, ids=[f"{way.__name__}-{family}" for family, way in WAYS])
def test_a_pipeline_runs_end_to_end_and_stays_as_it_is(family: str, way: Callable[[Any], Any]):
    pipeline = way(FAMILIES[family].pipeline())
    before = called(family, pipeline)
    with unchanged(pipeline, moves=way is model_offload):
        drawn = used(family, pipeline)
    assert torch.equal(called(family, pipeline), before)
    if way in (model_offload, sequential_offload):
        plain = FAMILIES[family].pipeline()
        assert ddim.load(pipeline).fingerprint == ddim.load(plain).fingerprint
        assert apart(drawn, used(family, plain)) <= 1e-5


def apart(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


def ours(family: str, pipeline: Any) -> Tensor:
    """Latents of our loop, unguided unless the family is always guided."""
    model = FAMILIES[family].load(pipeline)
    guidance, _ = list(FAMILIES[family].guidances.values())[-1]
    grid = model.schedule.grid(STEPS, image_size=model.shape[1:])
    denoise = model.guided(guidance.on(grid), model.condition(None, 1, ["a cat"]))
    return ddim.solve(denoise, ddim.make_solver("ddim"), {"x": noise(model)}, grid)["x"]


def theirs(family: str, pipeline: Any) -> Tensor:
    """The same of the pipeline."""
    _, options = list(FAMILIES[family].guidances.values())[-1]
    return FAMILIES[family].draw(pipeline, noise(ddim.load(pipeline)), ["a cat"], None, **options)


@families
def test_a_lora_from_a_file_changes_ours_as_it_changes_theirs(family: str, tmp_path: Path):
    peft: Any = pytest.importorskip("peft", reason="LoRA needs peft, which is not installed")
    trained = FAMILIES[family].pipeline()
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    torch.manual_seed(3)
    trained.transformer.add_adapter(config)
    weights = peft.get_peft_model_state_dict(trained.transformer)
    trained.save_lora_weights(tmp_path, transformer_lora_layers={k: 3 * v for k, v in weights.items()})

    pipeline = FAMILIES[family].pipeline()
    bare = ours(family, pipeline)
    plain = ddim.load(pipeline).fingerprint
    pipeline.load_lora_weights(tmp_path, adapter_name="toy")
    model = ddim.load(pipeline)
    assert model.adapters == "toy 1"
    prints = {plain, model.fingerprint}
    assert apart(ours(family, pipeline), theirs(family, pipeline)) <= 1e-5
    assert apart(ours(family, pipeline), bare) >= FAR
    pipeline.set_adapters(["toy"], [0.25])
    assert model.adapters == "toy 0.25"
    assert model.fingerprint not in prints
    assert apart(ours(family, pipeline), called(family, pipeline)) <= 1e-5
    with unchanged(pipeline):
        used(family, pipeline)
    pipeline.unload_lora_weights()
    assert model.fingerprint == plain
    assert torch.equal(ours(family, pipeline), bare)
