"""The package of the nodes: what its wheel contains, and that ComfyUI takes it as it is."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import comfy_server
import pytest
from comfy_server import NAMES, NODES, Server
from ddim_comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((NODES / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel, and is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=NODES, check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_has_the_nodes_the_workflows_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        texts = {Path(name).name: opened.read(name).decode() for name in names if ".dist-info/" in name}
    package = {name.removeprefix("ddim_comfyui/") for name in names if name.startswith("ddim_comfyui/")}
    assert {path.name for path in (NODES / "ddim_comfyui").glob("*.py")} <= package
    for folder in ("api_workflows", "example_workflows"):
        assert {f"{folder}/{name}.json" for name in NAMES} <= package
    assert {f"example_workflows/{name}.jpg" for name in NAMES} <= package
    assert texts["LICENSE"] == (comfy_server.ROOT / "LICENSE").read_text()
    assert {"License: Apache-2.0", "Requires-Dist: ddim==0.1.0"} <= set(texts["METADATA"].splitlines())


def test_what_the_registry_reads_follows_its_rules() -> None:
    project, comfy = PROJECT["project"], PROJECT["tool"]["comfy"]
    assert "comfyui" not in project["name"].lower()
    assert project["license"] == {"text": "Apache-2.0"}
    assert comfy["PublisherId"]
    assert len(comfy["DisplayName"]) < 40
    assert (NODES / "requirements.txt").read_text().split() == project["dependencies"]
    root = tomllib.loads((comfy_server.ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == root["version"]
    assert project["dependencies"] == [f"{root['name']}=={root['version']}"]


@pytest.mark.skipif(not comfy_server.COMFYUI, reason="COMFYUI_PATH does not name a folder with ComfyUI")
def test_comfyui_takes_the_package_of_the_wheel_as_custom_nodes(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path / "wheel")
    folder = tmp_path / "comfyui"
    folder.mkdir()
    server = Server(folder, tmp_path / "wheel" / "ddim_comfyui")
    try:
        server.wait()
        told = server.get("/object_info")
        templates = server.get("/workflow_templates")
    finally:
        server.stop()
    for name in NODE_CLASS_MAPPINGS:
        assert told[name]["display_name"] == NODE_DISPLAY_NAME_MAPPINGS[name]
        assert told[name]["python_module"] == "custom_nodes.ddim"
    assert set(templates["ddim"]) == set(NAMES)


def test_a_template_of_the_page_is_served(server: Server) -> None:
    assert set(server.get("/workflow_templates")["ddim"]) == set(NAMES)
    served = server.get("/api/workflow_templates/ddim/round_trip.json")
    assert served == json.loads((NODES / "example_workflows" / "round_trip.json").read_text())
