"""The command as the tests run it: in this process, or in one of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from typer.testing import CliRunner

from ddim.cli.app import app


def picture(path: Path, seed: int = 0, size: int | tuple[int, int] = 8) -> Path:
    width, height = size if isinstance(size, tuple) else (size, size)
    pixels = torch.randint(0, 256, (height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    Image.frombytes("L", (width, height), pixels.numpy().tobytes()).save(path)
    return path


def run(*words: object) -> Any:
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == 0, result.output
    return result


def run_json(*words: object) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def about(path: str | Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return json.loads(image.info["Description"])


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, timeout=120)


def fails(*words: object, code: int) -> str:
    """The sentence on stderr of a command that must fail so."""
    result = CliRunner().invoke(app, [str(w) for w in words])
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    return lines[0]
