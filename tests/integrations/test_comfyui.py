"""Workflows in the real ComfyUI, through its HTTP API, on the emoji model; see ``comfy_server``."""

import itertools
import math
from typing import Any

import pytest
import torch
from comfy_server import MASK, Server, Workflow, decibels, picture, said, sampled_from, workflow
from ddim_comfyui import work

import ddim

SCALE = 0.42286
"""What the emoji model's latents are divided by in ComfyUI, as in ``comfyui_test_nodes``."""


@pytest.mark.parametrize("loader", [{}, {"lora": 0.8}, {"weights": "float8_e4m3fn"}], ids=["plain", "lora", "fp8"])
def test_the_round_trip_through_the_api_is_exact(server: Server, loader: dict[str, Any]) -> None:
    outputs = server.run(workflow("round_trip", **loader))
    assert said(outputs, "8").startswith("exact: all 1024 numbers")
    code = server.code(said(outputs, "6"))
    assert code.method == "belm"
    assert code.state["x"].dtype == torch.int64


@pytest.mark.parametrize("method", ["bdia", "edict", "rex", "reversible-heun"])
def test_every_exact_method_is_exact_under_guidance_on_comfyuis_own_sigmas(server: Server, method: str) -> None:
    nodes = workflow("round_trip")
    nodes["20"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}}
    levels = {"model": ["1", 0], "scheduler": "normal", "steps": 8, "denoise": 1.0}
    nodes["21"] = {"class_type": "BasicScheduler", "inputs": levels}
    more = {"method": method, "guidance": 1.5, "negative": ["20", 0], "sigmas": ["21", 0]}
    nodes["5"]["inputs"] |= more
    assert said(server.run(nodes), "8").startswith("exact: all 1024 numbers")


def test_a_patch_of_weights_changes_the_code(server: Server) -> None:
    names = [said(server.run(workflow("round_trip", lora=lora)), "6") for lora in (0.0, 0.5)]
    plain, patched = map(server.code, names)
    assert plain.fingerprint != patched.fingerprint
    assert not torch.equal(plain.state["x"], patched.state["x"])


def test_a_code_that_was_saved_is_loaded_and_reconstructed(server: Server) -> None:
    nodes = workflow("round_trip")
    name = said(server.run(nodes), "6")
    nodes["6"] = {"class_type": "DDIMLoadCode", "inputs": {"name": name}}
    assert said(server.run(nodes), "8").startswith("exact: all 1024 numbers")


def with_control(kind: str) -> Workflow:
    """The workflow of an edit under a kind of attention control; ``replace`` needs prompts of equally many words."""
    nodes = workflow("edit_with_mask")
    nodes["3"]["inputs"]["text"] = nodes["8"]["inputs"]["target_text"] = "noto grinning cat face"
    nodes["8"]["inputs"]["kind"] = kind
    return nodes


@pytest.mark.parametrize("kind", work.KINDS)
def test_an_edit_keeps_every_bit_outside_its_mask(server: Server, kind: str) -> None:
    edited, source, given = server.latents(with_control(kind), ["9", 0], ["9", 1], ["7", 1])
    assert torch.equal(source, given)
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[MASK[1] // 4 : MASK[3] // 4] = True
    assert torch.equal(edited[..., ~inside], source[..., ~inside])
    assert float((edited - source)[..., inside].abs().mean()) > 0.3


def test_the_kinds_of_attention_control_differ(server: Server) -> None:
    made = [server.latents(with_control(kind), ["9", 0])[0] for kind in work.KINDS]
    assert all(float((a - b).abs().mean()) > 1e-3 for a, b in itertools.combinations(made, 2))


def test_attention_is_controlled_as_the_library_controls_it(server: Server) -> None:
    model, mask = ddim.load("emoji"), torch.zeros(64, 64)
    mask[MASK[1] : MASK[3]] = 1
    words = {key: with_control("none")[node]["inputs"]["text"] for key, node in (("from", "2"), ("to", "3"))}
    code = ddim.invert(model, picture().convert("RGB"), prompt=words["from"], method="belm", steps=20)
    kinds = ("masactrl", "plug-and-play", "kv-edit")  # which differ by more than the noise levels of both do
    own = {k: ddim.edit(model, code, words["to"], guidance=3.0, attention=k, mask=mask).edits[:, 0] for k in kinds}
    for kind in kinds:
        (latent,) = server.latents(with_control(kind), ["9", 0])
        made = model.decode(latent * SCALE)
        near = {k: -10 * math.log10(float((made - one).square().mean())) for k, one in own.items()}
        assert near.pop(kind) > max(38, *(value + 1.5 for value in near.values()))


def test_the_noise_is_where_comfyuis_own_sampler_goes_on(server: Server) -> None:
    nodes = workflow("round_trip")
    nodes["5"]["inputs"] |= {"method": "ddim", "steps": 50}
    nodes |= sampled_from(invert="5", positive="2")
    nodes["8"]["inputs"]["a"] = ["sampled", 0]
    assert 120 < decibels(said(server.run(nodes), "8")) < 200


def test_the_ends_of_the_pictures_between_two_are_their_reconstructions(server: Server) -> None:
    nodes = workflow("between_two_pictures")
    for node, code in (("a", "4"), ("b", "5")):
        inputs = {"model": ["1", 0], "code": [code, 0], "guidance": 1.0, "strength": 1.0}
        nodes[node] = {"class_type": "DDIMEdit", "inputs": inputs}
    between, *ends = server.latents(nodes, ["6", 0], ["a", 0], ["b", 0])
    assert between.shape == (8, 4, 16, 16)
    torch.testing.assert_close(between[[0, -1]], torch.cat(ends), atol=1e-3, rtol=1e-3)
    apart = (between[1:] - between[:-1]).flatten(1).abs().mean(1)
    assert float(apart.min()) > 0.01
