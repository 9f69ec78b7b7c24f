"""One wrong input of each node, in the real ComfyUI: the answer of its API is one sentence that names the value."""

from typing import Any

import pytest
from comfy_server import Server, workflow

MODEL, POSITIVE, CODE = ["1", 0], ["2", 0], ["5", 0]
QUICK = {"method": "belm", "steps": 5, "guidance": 1.0}

WRONG: dict[str, tuple[str, dict[str, dict[str, Any]], str]] = {
    "load picture": (
        "DDIMLoadPicture",
        {"new": {"image": "broken.png", "model": MODEL, "vae": ["1", 2], "positive": POSITIVE, "size": 0, **QUICK}},
        "image: 'broken.png' is no picture",
    ),
    "invert": ("DDIMInvert", {"5": {"guidance": 5.0}}, "guidance: 5 leads away from a negative prompt"),
    "invert, sigmas": (
        "SplitSigmas",
        {"new": {"sigmas": ["levels", 0], "step": 3}, "5": {"sigmas": ["new", 0]}},
        "sigmas: they end at 1",
    ),
    "edit": ("DDIMEdit", {"7": {"strength": 0.5}}, "positive: the strength 0.5 acts on an edit"),
    "control": (
        "DDIMControl",
        {
            "new": {"kind": "refine", "cross_until": -1.0, "self_until": -1.0, "auto_mask": False, "blend": ""}
            | {"source_text": "a face", "target_text": "a cat"},
            "7": {"positive": POSITIVE, "control": ["new", 0], "guidance": 1.0},
        },
        "clip: the kind 'refine' needs the words",
    ),
    "interpolate": (
        "DDIMInterpolate",
        {"new": {"model": MODEL, "code_a": CODE, "code_b": ["small", 0], "frames": 3}, "10": {"samples": ["new", 0]}},
        "code_b: its latents have the shape (4, 8, 8)",
    ),
    "compare": ("DDIMCompare", {"8": {"a": ["3", 0]}}, "b: a LATENT cannot be compared with an IMAGE"),
    "save": ("DDIMSaveCode", {"6": {"filename_prefix": "../code"}}, "filename_prefix: '../code' is no plain name"),
    "load": (
        "DDIMLoadCode",
        {"new": {"name": "none.safetensors"}, "7": {"code": ["new", 0]}},
        "name - There is no code 'none.safetensors'",
    ),
}
"""The node -> its class, the inputs that are changed by the number of the node, and how the sentence begins."""


@pytest.mark.parametrize("row", WRONG)
def test_a_wrong_input_is_one_sentence_that_names_it(server: Server, row: str) -> None:
    kind, changes, sentence = WRONG[row]
    (server.folder / "input" / "broken.png").write_bytes(b"no picture")
    nodes = workflow("round_trip")
    nodes["levels"] = {"class_type": "BasicScheduler", "inputs": {"model": MODEL, "scheduler": "normal", "steps": 6}}
    nodes["levels"]["inputs"]["denoise"] = 1.0
    scale = {"image": ["3", 0], "upscale_method": "area", "width": 32, "height": 32, "crop": "disabled"}
    nodes["half"] = {"class_type": "ImageScale", "inputs": scale}
    nodes["latent"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["half", 0], "vae": ["1", 2]}}
    small = {"model": MODEL, "latent": ["latent", 0], "positive": POSITIVE, **QUICK}
    nodes["small"] = {"class_type": "DDIMInvert", "inputs": small}
    for name, inputs in changes.items():
        nodes.setdefault(name, {"class_type": kind, "inputs": {}})["inputs"] |= inputs
    if row == "load picture":
        nodes["shown"] = {"class_type": "PreviewImage", "inputs": {"images": ["new", 1]}}
    with pytest.raises(RuntimeError) as refused:
        server.run(nodes)
    answer = str(refused.value)
    assert answer.startswith(sentence)
    assert answer.endswith(".")
    assert "\n" not in answer
    assert ". " not in answer.removesuffix(".")


def test_every_node_has_a_row(server: Server) -> None:
    nodes = {name for name in server.get("/object_info") if name.startswith("DDIM")}
    assert nodes == {kind for kind, _, _ in WRONG.values()} - {"SplitSigmas"}
