"""The nodes in the real ComfyUI, through its HTTP API.

    COMFYUI_PATH=~/ComfyUI COMFYUI_PYTHON=~/ComfyUI/.venv/bin/python pytest tests/integrations/test_comfyui.py

``COMFYUI_PYTHON`` has what ComfyUI and ddim need; by default it is the Python that runs the tests. The server has a
folder of its own for models, nodes, pictures and results, so that nothing is written into ComfyUI's.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import ddim

COMFYUI = os.environ.get("COMFYUI_PATH", "")
ROOT = Path(__file__).parents[2]
WORKFLOWS = ROOT / "integrations" / "comfyui" / "workflows"
WORDS = {
    "a photo of an apple": "noto slightly smiling face",
    "a photo of an orange": "noto smiling face with sunglasses",
}
"""The prompts of the workflows, and those of the emoji model in their place."""
MASK = (0, 12, 64, 36)
"""(left, top, right, bottom) of what an edit may change, in pixels."""
pytestmark = pytest.mark.skipif(not COMFYUI, reason="COMFYUI_PATH does not name a folder with ComfyUI")


class Server:
    """A running ComfyUI."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "custom_nodes").mkdir()
        (folder / "input").mkdir()
        (folder / "custom_nodes" / "ddim").symlink_to(ROOT / "integrations" / "comfyui")
        (folder / "custom_nodes" / "emoji").symlink_to(Path(__file__).parent / "comfyui_emoji")
        self.python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        options = ["--cpu", "--port", str(self.port), "--base-directory", str(folder), "--disable-auto-launch"]
        options += ["--database-url", f"sqlite:///{folder / 'comfyui.db'}"]
        self.log = (folder / "log.txt").open("w")
        self.env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [self.python, "main.py", *options]
        self.process = subprocess.Popen(command, cwd=COMFYUI, env=self.env, stdout=self.log, stderr=subprocess.STDOUT)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()

    def add_checkpoint(self, name: str) -> None:
        """Writes a checkpoint in the layout of Stable Diffusion 1.5, 630 MB with random weights."""
        folder = self.folder / "models" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        script = Path(__file__).parent / "comfyui_checkpoint.py"
        subprocess.run([self.python, script, folder / name], cwd=COMFYUI, env=self.env, check=True)

    def get(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", data) as answer:
            return json.load(answer)

    def wait(self) -> None:
        while self.process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.3)
        raise AssertionError((self.folder / "log.txt").read_text())

    def run(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """Runs a workflow, and returns the outputs of its nodes; an error of a node is a RuntimeError."""
        try:
            number = self.get("/prompt", {"prompt": workflow})["prompt_id"]
        except urllib.error.HTTPError as refused:
            raise RuntimeError(refused.read().decode()) from None
        while not (history := self.get(f"/history/{number}")):
            assert self.process.poll() is None, (self.folder / "log.txt").read_text()
            time.sleep(0.2)
        done = history[number]
        for kind, message in done["status"]["messages"]:
            if kind == "execution_error":
                raise RuntimeError(message["exception_message"])
        return done["outputs"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("comfyui"))
    try:
        running.wait()
        picture().save(running.folder / "input" / "picture.png")
        yield running
    finally:
        running.stop()


def picture() -> Image.Image:
    """A smiling face, transparent over the eyes, as after painting a mask there."""
    face = next(path for path in ddim.bundled_test_images("emoji") if "slightly-smiling" in path.name)
    pixels = Image.open(face).convert("RGB")
    alpha = Image.new("L", pixels.size, 255)
    alpha.paste(0, MASK)
    pixels.putalpha(alpha)
    return pixels


def workflow(name: str, **loader: Any) -> dict[str, Any]:
    """A workflow of the package, with the emoji model in place of its checkpoint, and prompts of emoji."""
    nodes = json.loads((WORKFLOWS / name).read_text())
    nodes["1"] = {"class_type": "LoadEmojiForTests", "inputs": {"lora": 0.0, "weights": "float32", **loader}}
    for node in nodes.values():
        node["inputs"] |= {key: WORDS[text] for key, text in node["inputs"].items() if str(text) in WORDS}
    return nodes


def said(outputs: dict[str, Any], node: str) -> str:
    return outputs[node]["text"][0]


@pytest.mark.parametrize("loader", [{}, {"lora": 0.8}, {"weights": "float8_e4m3fn"}], ids=["plain", "lora", "fp8"])
def test_the_round_trip_through_the_api_is_exact(server: Server, loader: dict[str, Any]) -> None:
    outputs = server.run(workflow("round_trip_api.json", **loader))
    assert said(outputs, "8").startswith("exact: all 1024 numbers")
    code = ddim.LatentCode.load(server.folder / "output" / "ddim" / said(outputs, "6"))
    assert code.method == "belm"
    assert code.state["x"].dtype == torch.int64


@pytest.mark.parametrize("method", ["bdia", "edict", "rex", "reversible-heun"])
def test_every_exact_method_is_exact_under_guidance_on_comfyuis_own_sigmas(server: Server, method: str) -> None:
    nodes = workflow("round_trip_api.json")
    nodes["20"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}}
    levels = {"model": ["1", 0], "scheduler": "normal", "steps": 8, "denoise": 1.0}
    nodes["21"] = {"class_type": "BasicScheduler", "inputs": levels}
    more = {"method": method, "guidance": 1.5, "negative": ["20", 0], "sigmas": ["21", 0]}
    nodes["5"]["inputs"] |= more
    assert said(server.run(nodes), "8").startswith("exact: all 1024 numbers")


def test_a_checkpoint_of_stable_diffusion_that_comfyui_recognises_is_exact_too(server: Server) -> None:
    server.add_checkpoint("tiny.safetensors")
    nodes = json.loads((WORKFLOWS / "round_trip_api.json").read_text())
    nodes["1"]["inputs"]["ckpt_name"] = "tiny.safetensors"
    nodes["5"]["inputs"]["steps"] = 4
    outputs = server.run(nodes)
    assert said(outputs, "8").startswith("exact: all 256 numbers")
    assert ddim.LatentCode.load(server.folder / "output" / "ddim" / said(outputs, "6")).conditions.cond.rows == 1


def test_a_lora_changes_the_code(server: Server) -> None:
    names = [said(server.run(workflow("round_trip_api.json", lora=lora)), "6") for lora in (0.0, 0.5)]
    plain, patched = (ddim.LatentCode.load(server.folder / "output" / "ddim" / name) for name in names)
    assert plain.fingerprint != patched.fingerprint
    assert not torch.equal(plain.state["x"], patched.state["x"])


def test_a_code_that_was_saved_is_loaded_and_reconstructed(server: Server) -> None:
    nodes = workflow("round_trip_api.json")
    name = said(server.run(nodes), "6")
    nodes["6"] = {"class_type": "DDIMLoadCode", "inputs": {"name": name}}
    assert said(server.run(nodes), "8").startswith("exact: all 1024 numbers")


def test_an_edit_changes_the_latents_inside_its_mask_only(server: Server) -> None:
    nodes = workflow("edit_with_mask_api.json")
    for node, output in (("30", 0), ("31", 1)):
        inputs = {"samples": ["9", output], "filename_prefix": f"made{node}"}
        nodes[node] = {"class_type": "SaveLatent", "inputs": inputs}
    outputs = server.run(nodes)
    assert said(outputs, "12").startswith("exact")
    files = [server.folder / "output" / outputs[node]["latents"][0]["filename"] for node in ("30", "31")]
    edited, source = (load_file(file)["latent_tensor"] for file in files)
    apart = (edited - source).abs().amax((0, 1))
    inside = torch.zeros_like(apart)
    inside[MASK[1] // 4 : MASK[3] // 4] = 1
    assert float(apart[inside == 1].mean()) > 0.3
    assert float(apart[inside == 0].max()) < 1e-5


def test_the_noise_is_where_comfyuis_own_sampler_goes_on(server: Server) -> None:
    nodes = workflow("round_trip_api.json")
    nodes["5"]["inputs"] |= {"method": "ddim", "steps": 50}
    nodes["40"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    sampling = {"model": ["1", 0], "add_noise": False, "noise_seed": 0, "cfg": 1.0, "positive": ["2", 0]}
    sampling |= {"negative": ["2", 0], "sampler": ["40", 0], "sigmas": ["5", 3], "latent_image": ["5", 2]}
    nodes["41"] = {"class_type": "SamplerCustom", "inputs": sampling}
    nodes["8"]["inputs"]["a"] = ["41", 0]
    sentence = said(server.run(nodes), "8")
    assert float(sentence.split("PSNR ")[1].split(" dB")[0]) > 60


def test_pictures_between_two_codes(server: Server) -> None:
    nodes = workflow("round_trip_api.json")
    load = {"image": "picture.png", "model": ["1", 0], "vae": ["1", 2], "positive": ["2", 0]}
    nodes["50"] = {"class_type": "DDIMLoadPicture", "inputs": {**load, "method": "ddim", "steps": 8, "guidance": 1.0}}
    nodes["50"]["inputs"]["size"] = 64
    nodes["5"]["inputs"] |= {"method": "ddim", "steps": 8}
    between = {"model": ["1", 0], "code_a": ["5", 0], "code_b": ["50", 0], "frames": 3}
    nodes["51"] = {"class_type": "DDIMInterpolate", "inputs": between}
    nodes["10"]["inputs"]["samples"] = ["51", 0]
    assert len(server.run(nodes)["11"]["images"]) == 3


@pytest.mark.parametrize(
    ("node", "inputs", "sentence"),
    [
        ("5", {"guidance": 5.0}, "leads away from a negative prompt"),
        ("7", {"strength": 0.5}, "without a positive prompt the picture is reconstructed"),
        ("8", {"a": ["3", 0]}, "a LATENT cannot be compared with an IMAGE"),
        ("6", {"filename_prefix": "../code"}, "is no plain name of a file"),
    ],
)
def test_a_wrong_input_is_one_sentence(server: Server, node: str, inputs: dict[str, Any], sentence: str) -> None:
    nodes = workflow("round_trip_api.json")
    nodes[node]["inputs"] |= inputs
    with pytest.raises(RuntimeError, match=sentence):
        server.run(nodes)
