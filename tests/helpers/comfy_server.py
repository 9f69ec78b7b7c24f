"""The real ComfyUI, started headless on a CPU for the tests, and what they ask it.

    COMFYUI_PATH=~/ComfyUI COMFYUI_PYTHON=~/ComfyUI/.venv/bin/python pytest tests/integrations

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
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import ddim

COMFYUI = os.environ.get("COMFYUI_PATH", "")
ROOT = Path(__file__).parents[2]
NODES = ROOT / "integrations" / "comfyui"
WORKFLOWS = NODES / "api_workflows"
NAMES = tuple(sorted(file.stem for file in WORKFLOWS.glob("*.json")))
"""The workflows of the package."""
TESTS = ROOT / "tests" / "integrations"
EMOJI = {
    "a photo of an apple": "noto slightly smiling face",
    "a photo of an orange": "noto smiling face with sunglasses",
    512: 64,
}
"""The prompts and the size of pictures of the workflows, and those of the emoji model in their place."""
MASK = (0, 12, 64, 36)
"""(left, top, right, bottom) of what an edit may change, in pixels."""

Workflow = dict[str, dict[str, Any]]


class Server:
    """A running ComfyUI.

    Args:
        folder: where it keeps its files.
        nodes: the folder or the package with the nodes.
    """

    def __init__(self, folder: Path, nodes: Path = NODES) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (folder / "custom_nodes").mkdir()
        (folder / "input").mkdir()
        (folder / "custom_nodes" / "ddim").symlink_to(nodes)
        (folder / "custom_nodes" / "tests").symlink_to(TESTS / "comfyui_test_nodes")
        self.python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        options = ["--cpu", "--port", str(self.port), "--base-directory", str(folder), "--disable-auto-launch"]
        options += ["--database-url", f"sqlite:///{folder / 'comfyui.db'}"]
        self._log = (folder / "log.txt").open("w")
        self.env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        command = [self.python, "main.py", *options]
        self.process = subprocess.Popen(command, cwd=COMFYUI, env=self.env, stdout=self._log, stderr=subprocess.STDOUT)

    def add_pictures(self, opaque: bool = False) -> None:
        """Writes the pictures that the workflows name; the first has a mask in its transparency, unless ``opaque``."""
        first = picture().convert("RGB") if opaque else picture()
        for name, one in (("picture", first), ("other", drawing("monkey-face"))):
            one.save(self.folder / "input" / f"{name}.png")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def models(self, kind: str) -> Path:
        """The folder of the models of a kind, such as ``"loras"``."""
        folder = self.folder / "models" / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def add_model(self, kind: str, folder: str) -> str:
        """Writes a small model of ``comfyui_checkpoint.py`` with random weights, once; returns its name."""
        file = self.models(folder) / f"{kind}.safetensors"
        if not file.is_file():
            self.script("comfyui_checkpoint.py", kind, str(file))
        return file.name

    def script(self, name: str, *arguments: str) -> str:
        """Runs a script of the tests with ComfyUI's modules, and returns what it prints."""
        command = [self.python, str(TESTS / name), *arguments]
        env = {**self.env, "PYTHONPATH": os.pathsep.join([str(NODES), self.env["PYTHONPATH"]])}
        return subprocess.run(command, cwd=COMFYUI, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout

    def get(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", data) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> None:
        """Sends what has no answer."""
        data, address = json.dumps(body).encode(), f"http://127.0.0.1:{self.port}{path}"
        urllib.request.urlopen(urllib.request.Request(address, data)).close()

    def wait(self) -> None:
        while self.process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.3)
        raise AssertionError(self.log)

    def run(self, workflow: Workflow) -> dict[str, Any]:
        """Runs a workflow, and returns the outputs of its nodes; what it is refused with is a RuntimeError."""
        try:
            answer = self.get("/prompt", {"prompt": workflow})
        except urllib.error.HTTPError as refused:
            answer = json.load(refused)
        if answer["node_errors"] or "prompt_id" not in answer:  # ComfyUI runs the nodes that none of these concerns
            raise RuntimeError(_details(answer))
        number = answer["prompt_id"]
        while not (history := self.get(f"/history/{number}")):
            assert self.process.poll() is None, self.log
            time.sleep(0.2)
        done = history[number]
        for kind, message in done["status"]["messages"]:
            if kind == "execution_error":
                raise RuntimeError(message["exception_message"].strip())
        return done["outputs"]

    def code(self, name: str) -> ddim.LatentCode:
        """A code that DDIM Save Code wrote."""
        return ddim.LatentCode.load(self.folder / "output" / "ddim" / name)

    def latents(self, workflow: Workflow, *outputs: list[Any]) -> list[Tensor]:
        """Runs a workflow, and returns the latents of outputs of its nodes."""
        inputs = [{"samples": output, "filename_prefix": f"made{k}"} for k, output in enumerate(outputs)]
        savers = {f"saver{k}": {"class_type": "SaveLatent", "inputs": given} for k, given in enumerate(inputs)}
        made = self.run({**workflow, **savers})
        files = (made[name]["latents"][0]["filename"] for name in savers)
        return [load_file(self.folder / "output" / file)["latent_tensor"] for file in files]


def _details(answer: dict[str, Any]) -> str:
    """What ComfyUI says of inputs that it refuses before it runs anything."""
    errors = [error for node in answer["node_errors"].values() for error in node["errors"]]
    return "; ".join(error["details"] for error in errors) or answer["error"]["message"]


def drawing(name: str) -> Image.Image:
    """A bundled drawing whose name has this part."""
    return Image.open(next(path for path in ddim.bundled_test_images("emoji") if name in path.name)).convert("RGB")


def picture() -> Image.Image:
    """A smiling face, transparent over the eyes, as after painting a mask there."""
    pixels = drawing("slightly-smiling")
    alpha = Image.new("L", pixels.size, 255)
    alpha.paste(0, MASK)
    pixels.putalpha(alpha)
    return pixels


def workflow(name: str, **loader: Any) -> Workflow:
    """A workflow of the package, with the emoji model in place of its checkpoint, and prompts of emoji."""
    nodes = stored_workflow(name)
    nodes["1"] = {"class_type": "LoadEmojiForTests", "inputs": {"lora": 0.0, "weights": "float32", **loader}}
    for node in nodes.values():
        node["inputs"] = {key: in_place(value) for key, value in node["inputs"].items()}
    return nodes


def in_place(value: Any) -> Any:
    """A value of a workflow, or what the emoji model takes in its place."""
    return EMOJI.get(value, value) if isinstance(value, (str, int)) else value


def stored_workflow(name: str) -> Workflow:
    """A workflow of the package, such as ``"round_trip"``, as it is."""
    nodes: Workflow = json.loads((WORKFLOWS / f"{name}.json").read_text())
    return nodes


def sampled_from(invert: str, positive: str) -> Workflow:
    """Nodes with which ComfyUI's own sampler goes on from the noisy end of an inversion, without guidance."""
    inputs = {"noise": [invert, 2], "sigmas": [invert, 3], "latent_image": [invert, 1]}
    return {
        "euler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "guider": {"class_type": "BasicGuider", "inputs": {"model": ["1", 0], "conditioning": [positive, 0]}},
        "sampled": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {**inputs, "guider": ["guider", 0], "sampler": ["euler", 0]},
        },
    }


def said(outputs: dict[str, Any], node: str) -> str:
    """The text that a node shows."""
    return outputs[node]["text"][0]


def decibels(sentence: str) -> float:
    """The PSNR that DDIM Compare says; infinite where every bit is equal."""
    return float("inf") if sentence.startswith("exact") else float(sentence.split("PSNR ")[1].split(" dB")[0])
