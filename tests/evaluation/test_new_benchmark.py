"""A benchmark that is added, as the reference page says: its command, its options, its rows and its table."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from typer.testing import CliRunner

import ddim
from ddim.cli.app import app
from ddim.data.images import read_images
from ddim.evaluation import BENCHMARKS, evaluate
from ddim.evaluation.metrics import psnr

PAGE = Path(__file__).parents[2] / "docs/reference/evaluation.md"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's benchmark, registered; a tiny model and four images."""
    (source,) = [block for block in PAGE.read_text().split("```python\n") if "class PsnrBySteps" in block]
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source.partition("```")[0], str(PAGE), "exec"), names)
    monkeypatch.setattr(BENCHMARKS, "_added", {})
    BENCHMARKS.add(names["PsnrBySteps"])
    monkeypatch.chdir(tmp_path)
    tiny.pipeline_folder(tmp_path / "model")
    for k in range(4):
        noise = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(k))
        ddim.save_image(noise, tmp_path / "data" / f"{k}.png")
    return names["PsnrBySteps"]


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["evaluate", "psnr-by-steps", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def test_the_command_has_the_declared_options(bench: Any):
    text = run("--help", code=0).output
    assert "PSNR of DDIM reconstructions against the number of steps." in " ".join(text.split())
    for part in ("--steps", "-S", "[default: 5, 10]", "--data", "--batch", "--out", "--json", "--quiet"):
        assert part in text
    assert "--steps" in run("--steps", "0", code=2).stderr


def test_it_measures_writes_resumes_and_repeats(bench: Any, monkeypatch: pytest.MonkeyPatch):
    words = ["--model", "model", "--data", "data", "--images", 3, "--steps", 2, "--json"]
    first = json.loads(run(*words).stdout)
    (row,) = first["rows"]
    model = ddim.load("model")
    images = read_images([Path("data") / f"{k}.png" for k in (0, 1, 2)], model.picture)
    found = psnr(images, ddim.reconstruct(model, ddim.invert(model, images, steps=2)))
    assert row["psnr"] == pytest.approx(float(found.mean()), abs=1e-3)
    assert (row["steps"], row["images"], row["nfe"], row["failed"]) == (2, 3, 4, 0)
    names = {Path(file).name for file in first["files"]}
    assert names >= {f"psnr-by-steps-model.{ending}" for ending in ("md", "csv", "json")}
    page = Path("evaluation/psnr-by-steps/psnr-by-steps-model.md").read_text()
    assert page.startswith("| steps | images | psnr | nfe | seconds | failed |")
    assert f"command: {first['command']}" in page
    asked: list[int] = []
    measure = bench.run

    def watched(self: Any, setting: int, items: Any) -> Any:
        asked.append(setting)
        return measure(self, setting, items)

    monkeypatch.setattr(bench, "run", watched)
    assert json.loads(run(*words).stdout)["rows"] == [row]
    assert asked == []
    more = json.loads(run(*words, "--steps", 3).stdout)
    assert asked == [3]
    assert more["rows"][0] == row


def test_python_runs_the_same(bench: Any, tmp_path: Path):
    model = ddim.load("model")
    found = evaluate("psnr-by-steps", model=model, data="data", images=2, steps=2, out=tmp_path / "out")
    assert found is not None
    assert [row["images"] for row in found.rows] == [2]
    assert found.about["command"] == "evaluate('psnr-by-steps', model='model', data='data', images=2, steps=2)"
    for wrong, parameter in [
        ({"stepz": 2}, "stepz"),
        ({"steps": 0}, "steps"),
        ({"images": 9, "model": model, "data": "data"}, "images"),
    ]:
        with pytest.raises(ddim.InputError) as caught:
            evaluate("psnr-by-steps", out=tmp_path / "out", **wrong)
        assert caught.value.parameter == parameter
    with pytest.raises(ddim.UnknownName) as unknown:
        evaluate("table3")
    assert unknown.value.nearest in ("table1", "table2")


def test_what_a_benchmark_needs_is_asked_for():
    with pytest.raises(ddim.InputError) as caught:
        evaluate("pie-bench", data="nowhere")
    assert caught.value.parameter == "model"


def test_help_of_the_group_and_of_a_benchmark_needs_no_torch():
    code = (
        "import sys; from ddim.cli.app import app; from typer.testing import CliRunner\n"
        "for words in (['evaluate', '--help'], *(['evaluate', n, '--help'] for n in sys.argv[1:])):\n"
        "    assert CliRunner().invoke(app, words).exit_code == 0, words\n"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'numpy', 'pyarrow', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *BENCHMARKS], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
