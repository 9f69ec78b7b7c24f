"""Models that ComfyUI's own loaders load, in the real ComfyUI: a checkpoint, LoRAs, and rectified flow."""

from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_server import MASK, Server, Workflow, decibels, said, sampled_from, stored_workflow
from safetensors.torch import save_file
from torch import Tensor

OTHER = "a photo of an orange"
"""A prompt beside that of the workflows."""


def checkpoint(server: Server, name: str = "round_trip") -> Workflow:
    """A workflow of the package on a small checkpoint of Stable Diffusion 1.5."""
    nodes = stored_workflow(name)
    nodes["1"]["inputs"]["ckpt_name"] = server.add_model("sd1", "checkpoints")
    next(node for node in nodes.values() if node["class_type"] == "DDIMInvert")["inputs"]["steps"] = 4
    return nodes


def test_a_checkpoint_that_comfyui_recognises_is_exact(server: Server) -> None:
    outputs = server.run(checkpoint(server))
    assert said(outputs, "8").startswith("exact: all 256 numbers")
    assert server.code(said(outputs, "6")).conditions.cond.rows == 1


@pytest.mark.parametrize("kind", ["refine", "masactrl"])  # the first reads the words of ComfyUI's own CLIP
def test_an_edit_of_a_checkpoint_keeps_every_bit_outside_its_mask(server: Server, kind: str) -> None:
    nodes = checkpoint(server, "edit_with_mask")
    nodes["8"]["inputs"]["kind"] = kind
    edited, source, given = server.latents(nodes, ["9", 0], ["9", 1], ["7", 1])
    assert torch.equal(source, given)
    rows = torch.arange(8)
    outside = ((rows + 1) * 8 <= MASK[1]) | (rows * 8 >= MASK[3])
    assert outside.sum() == 4
    assert torch.equal(edited[..., outside, :], source[..., outside, :])
    assert float((edited - source)[..., ~outside, :].abs().mean()) > 0.1 * float(source.std())


def test_the_words_of_comfyuis_tokens_are_those_of_the_library(server: Server) -> None:
    assert server.script("comfyui_words.py").endswith("4 prompts have equal words\n")


# --- LoRAs ------------------------------------------------------------------------------------------------------------

WIDTHS = {"down_blocks_0": 320, "down_blocks_1": 640, "mid_block": 640, "up_blocks_0": 640, "up_blocks_1": 320}
"""The widths of the small checkpoint's U-Net, by diffusers' names of its parts."""
RANK = 4


def _pair(seed: Any, wide: int, narrow: int) -> tuple[Tensor, Tensor]:
    """Up and down matrices of a LoRA, whose product is about as large as the weights of the checkpoint."""
    return torch.randn(wide, RANK, generator=seed) / RANK**0.5, torch.randn(RANK, narrow, generator=seed) / narrow**0.5


def kohya_lora(file: Path) -> None:
    """Keys as kohya's trainer writes them: cross-attention of the U-Net, and the text encoder."""
    seed, tensors = torch.Generator().manual_seed(1), dict[str, Tensor]()
    layers = {f"lora_te_text_model_encoder_layers_{k}_self_attn_v_proj": (768, 768) for k in range(12)}
    for part, width in WIDTHS.items():
        where = f"lora_unet_{part}_attentions_0_transformer_blocks_0_attn2"
        layers |= {f"{where}_to_k": (width, 768), f"{where}_to_v": (width, 768)}
    for name, sizes in layers.items():
        up, down = _pair(seed, *sizes)
        scale = {f"{name}.alpha": torch.tensor(float(RANK))}
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, **scale}
    save_file(tensors, file)


def diffusers_lora(file: Path) -> None:
    """Keys as diffusers wrote them: self-attention of the U-Net."""
    seed, tensors = torch.Generator().manual_seed(2), dict[str, Tensor]()
    for part, width in WIDTHS.items():
        name = f"unet.{part.replace('blocks_', 'blocks.')}.attentions.0.transformer_blocks.0.attn1.processor.to_v_lora"
        up, down = _pair(seed, width, width)
        tensors |= {f"{name}.up.weight": up, f"{name}.down.weight": down}
    save_file(tensors, file)


@pytest.fixture(scope="module")
def loras(server: Server) -> tuple[str, str]:
    folder = server.models("loras")
    kohya_lora(folder / "kohya.safetensors")
    diffusers_lora(folder / "diffusers.safetensors")
    return "kohya.safetensors", "diffusers.safetensors"


def with_loras(nodes: Workflow, *loras: tuple[str, float]) -> Workflow:
    """Puts LoraLoader nodes between the checkpoint and the rest."""
    chain = ["1", *(f"lora{k}" for k in range(len(loras)))]
    for node in nodes.values():
        node["inputs"] |= {key: [chain[-1], v[1]] for key, v in node["inputs"].items() if v in (["1", 0], ["1", 1])}
    for before, here, (name, strength) in zip(chain, chain[1:], loras, strict=False):
        given = {"lora_name": name, "strength_model": strength, "strength_clip": strength}
        nodes[here] = {"class_type": "LoraLoader", "inputs": {**given, "model": [before, 0], "clip": [before, 1]}}
    return nodes


@pytest.mark.parametrize(
    "strengths", [(1.0, 0.0), (0.5, 0.0), (0.0, 1.0), (1.0, 1.0)], ids=["kohya", "half", "diffusers", "both"]
)
def test_with_loras_the_round_trip_is_exact_and_without_them_another(
    server: Server, loras: tuple[str, str], strengths: tuple[float, float]
) -> None:
    chosen = [(name, strength) for name, strength in zip(loras, strengths, strict=True) if strength]
    outputs = server.run(with_loras(checkpoint(server), *chosen))
    assert said(outputs, "8").startswith("exact: all 256 numbers")
    assert "lora key not loaded" not in server.log
    without = checkpoint(server)
    # Node 5 inverts the same latent without them; the lattice that this latent is on depends on no weight.
    without["6"] = {"class_type": "DDIMLoadCode", "inputs": {"name": said(outputs, "6")}}
    before = len(server.log)
    assert decibels(said(server.run(without), "8")) < 30
    assert "ddim: This code was made by the model" in server.log[before:]


def test_the_strength_of_a_lora_counts(server: Server, loras: tuple[str, str]) -> None:
    names = [said(server.run(with_loras(checkpoint(server), (loras[0], s))), "6") for s in (0.5, 1.0)]
    half, whole = map(server.code, names)
    assert half.fingerprint != whole.fingerprint
    assert float((half.floats["x"] - whole.floats["x"]).abs().mean()) > 0.01


# --- rectified flow ---------------------------------------------------------------------------------------------------

FLOWS: dict[str, tuple[str, dict[str, int]]] = {
    "sd3": ("EmptySD3LatentImage", {"width": 64, "pooled": 32}),
    "wan": ("EmptyHunyuanLatentVideo", {"width": 4096, "pooled": 8}),
}
"""The family -> its node for an empty latent, and the widths of its text."""


def flow(server: Server, family: str, **sampling: Any) -> Workflow:
    """Samples a latent with ComfyUI's sampler, inverts it on the model's own sigmas, and reconstructs it."""
    kind, widths = FLOWS[family]
    size = {"width": 64, "height": 64, "batch_size": 1} | ({"length": 1} if "Video" in kind else {})
    load = {"unet_name": server.add_model(family, "diffusion_models"), "weight_dtype": "default"}
    steps = {"steps": 6, "scheduler": "simple", "denoise": 1.0}
    sampler = {"seed": 3, "cfg": 1.0, "sampler_name": "euler", "positive": ["2", 0], "negative": ["2", 0]}
    invert = {"latent": ["6", 0], "positive": ["2", 0], "method": "belm", "steps": 2, "guidance": 1.0}
    model: dict[str, Any] = {"model": ["sampling" if sampling else "1", 0]}
    nodes: Workflow = {
        "1": {"class_type": "UNETLoader", "inputs": load},
        "2": {"class_type": "PromptForTests", "inputs": {"text": "a photo of an apple", "tokens": 7, **widths}},
        "3": {"class_type": "PromptForTests", "inputs": {"text": OTHER, "tokens": 7, **widths}},
        "4": {"class_type": kind, "inputs": size},
        "5": {"class_type": "BasicScheduler", "inputs": {**model, **steps}},
        "6": {"class_type": "KSampler", "inputs": {**model, **steps, **sampler, "latent_image": ["4", 0]}},
        "7": {"class_type": "DDIMInvert", "inputs": {**model, **invert, "sigmas": ["5", 0]}},
        "8": {"class_type": "DDIMSaveCode", "inputs": {"code": ["7", 0], "filename_prefix": family}},
        "9": {"class_type": "DDIMEdit", "inputs": {**model, "code": ["8", 0], "guidance": 1.0, "strength": 1.0}},
        "10": {"class_type": "DDIMCompare", "inputs": {"a": ["7", 1], "b": ["9", 0]}},
        "11": {"class_type": "DDIMCompare", "inputs": {"a": ["7", 1], "b": ["6", 0]}},
    }
    if sampling:
        nodes["sampling"] = {"class_type": "ModelSamplingSD3", "inputs": {"model": ["1", 0], **sampling}}
    return nodes


@pytest.mark.parametrize("sampling", [{}, {"shift": 1.5}], ids=["own", "shifted"])
@pytest.mark.parametrize("family", FLOWS)
def test_a_model_on_rectified_flow_is_exact_on_its_own_sigmas(
    server: Server, family: str, sampling: dict[str, Any]
) -> None:
    outputs = server.run(flow(server, family, **sampling))
    assert said(outputs, "10").startswith("exact: all 1024 numbers")
    assert decibels(said(outputs, "11")) > 80  # the lattice changes the last bits of what was sampled
    code, shift = server.code(said(outputs, "8")), sampling.get("shift", {"sd3": 3.0, "wan": 8.0}[family])
    even = [1 - k / 6 for k in range(7)]
    wanted = [shift * u / (1 + (shift - 1) * u) for u in even]
    assert [node.sigma for node in code.grid] == pytest.approx(wanted, abs=2e-3)  # ComfyUI's table has 1000 entries
    assert all(node.alpha == pytest.approx(1 - node.sigma, abs=1e-6) for node in code.grid)


@pytest.mark.parametrize("family", FLOWS)
def test_another_prompt_changes_what_a_flow_model_makes(server: Server, family: str) -> None:
    nodes = flow(server, family)
    nodes["9"]["inputs"]["positive"] = ["3", 0]
    outputs = server.run(nodes)
    assert decibels(said(outputs, "10")) < 30
    nodes["3"]["inputs"]["text"] = nodes["2"]["inputs"]["text"]
    assert decibels(said(server.run(nodes), "10")) > 60  # its own prompt brings it back


@pytest.mark.parametrize("family", FLOWS)
def test_an_edit_of_a_flow_model_keeps_every_bit_outside_its_mask(server: Server, family: str) -> None:
    nodes = flow(server, family)
    nodes["black"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 64, "height": 64}}
    nodes["white"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 32, "height": 64}}
    both = {"destination": ["black", 0], "source": ["white", 0], "x": 0, "y": 0, "operation": "add"}
    nodes["mask"] = {"class_type": "MaskComposite", "inputs": both}
    settings = {"kind": "none", "cross_until": -1.0, "self_until": -1.0, "auto_mask": False, "blend": ""}
    settings |= {"source_text": "", "target_text": "", "mask": ["mask", 0]}
    nodes["control"] = {"class_type": "DDIMControl", "inputs": settings}
    nodes["9"]["inputs"] |= {"positive": ["3", 0], "control": ["control", 0]}
    edited, source, given = server.latents(nodes, ["9", 0], ["9", 1], ["7", 1])
    assert torch.equal(source, given)
    assert torch.equal(edited[..., 4:], source[..., 4:])
    assert float((edited - source)[..., :4].abs().mean()) > 0.1 * float(source.std())


@pytest.mark.parametrize("family", FLOWS)
def test_the_noise_of_a_flow_model_is_where_comfyuis_own_sampler_goes_on(server: Server, family: str) -> None:
    nodes = flow(server, family)
    nodes["5"]["inputs"]["steps"] = 50
    nodes["7"]["inputs"]["method"] = "ddim"
    nodes |= sampled_from(invert="7", positive="2")
    nodes["10"]["inputs"]["a"] = ["sampled", 0]
    assert 120 < decibels(said(server.run(nodes), "10")) < 200
