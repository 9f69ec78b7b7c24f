"""ComfyUI's own modules, as far as the nodes read them, for tests that need no ComfyUI; and a running ComfyUI."""

import contextlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy_server
import pytest
from ddim_comfyui import session


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Runs the nodes without ComfyUI on a stub ``Patcher``; returns the folder that holds ``input`` and ``output``."""

    def run_inside(patcher: Any, shape: tuple[int, ...], work: Callable[[Any], Any]) -> Any:
        return work(patcher.ask)

    @contextlib.contextmanager
    def progress() -> Iterator[Callable[[Any], None]]:
        yield lambda event: None

    monkeypatch.setattr(session, "run_inside", run_inside)
    monkeypatch.setattr(session, "engine", lambda: "a stub")
    monkeypatch.setattr(session, "progress", progress)
    folders = types.ModuleType("folder_paths")
    for name in ("input", "output"):
        (tmp_path / name).mkdir()
        setattr(folders, f"get_{name}_directory", lambda name=name: str(tmp_path / name))
    folders.get_annotated_filepath = lambda name: str(tmp_path / "input" / name)  # type: ignore[attr-defined]
    folders.filter_files_content_types = lambda files, kinds: files  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "folder_paths", folders)
    return tmp_path


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[comfy_server.Server]:
    """ComfyUI with the nodes; one for all tests, which are skipped where there is none."""
    if not comfy_server.COMFYUI:
        pytest.skip("COMFYUI_PATH does not name a folder with ComfyUI")
    running = comfy_server.Server(tmp_path_factory.mktemp("comfyui"))
    try:
        running.wait()
        running.add_pictures()
        yield running
    finally:
        running.stop()
