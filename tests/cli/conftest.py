"""Every command runs in an empty folder; ``model`` is a folder with a tiny network."""

from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder called ``small`` with the tiny network, which takes no prompts."""
    return str(tiny.pipeline_folder(tmp_path_factory.mktemp("models") / "small"))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
