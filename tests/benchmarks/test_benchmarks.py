"""What the benchmarks leave to chance: nothing."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ddim.evaluation.columns import share_interval

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def sensitivity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)  # they import each other by name
    spec = importlib.util.spec_from_file_location("guidance_sensitivity", FOLDER / "guidance_sensitivity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("missing", "batches"),
    [
        (list(range(7)), [[0, 1, 2], [3, 4, 5], [6]]),
        ([0, 2, 3, 4, 6], [[0], [2], [3, 4], [6]]),
        ([4, 5], [[4, 5]]),
        ([], []),
    ],
)
def test_a_batch_has_no_gaps_so_that_picture_k_has_seed_k(sensitivity: ModuleType, missing, batches):
    assert sensitivity.batches(missing, 3) == batches


@pytest.mark.parametrize(
    ("script", "network", "more", "says"),
    [
        ("sampling", "tiny", ["--also", "bfloat16"], "ddim.sample, bfloat16"),
        ("sampling", "tiny-text", [], "our network alone"),
        ("inversion", "tiny", [], "there and back"),
        ("inversion", "tiny-text", [], "there and back"),
        ("training_step", "tiny", [], "ms a step"),
        ("training_step", "tiny", ["--device", "cpu"], "first losses"),
        ("lattice", "tiny", [], "reversible-heun"),
        ("lattice", "tiny-text", [], "of the inversion"),
    ],
)
def test_a_speed_benchmark_runs_and_says_what_it_did(
    script: str, network: str, more: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    size = ["--network", network, "--batch", "2", "--steps", "2", "--rounds", "1"]
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr("sys.argv", [f"benchmarks/{script}.py", *size, *more])
    importlib.import_module(script).main()
    said = capsys.readouterr().out
    assert said.startswith(f"python benchmarks/{script}.py --network {network}")
    assert says in said
    assert "1 rounds" in said
    assert "thread(s), torch" in said


def test_the_pipeline_and_ours_draw_the_same_images(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(FOLDER)
    rounds, sampling = importlib.import_module("rounds"), importlib.import_module("sampling")
    for name in ("tiny", "tiny-text"):
        with rounds.opened(name) as network:
            images = [make(network, 2, 3)() for make in (sampling.theirs, sampling.ours)]
        assert (images[0] - images[1]).abs().max() < 1e-4


def test_ratios_are_of_rounds_and_a_run_may_take_its_own_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(FOLDER)
    rounds = importlib.import_module("rounds")
    seconds = iter([9.0, 9.0, 1.0, 3.0, 2.0, 2.0, 1.0, 8.0])
    times = rounds.in_turns({"a": lambda: next(seconds), "b": lambda: next(seconds)}, 3)
    assert times == {"a": [1.0, 2.0, 1.0], "b": [3.0, 2.0, 8.0]}
    assert rounds.ratios(times, "a", "b") == "3.00 (1.00 to 8.00)"


def test_the_photograph_benchmark_counts_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    words = ["--model", "tiny", "--from", "a cat", "--to", "a tiger", "--steps", "2", "--out", str(tmp_path)]
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr("sys.argv", ["benchmarks/photograph.py", "--size", "123x77", "--disc", "50,40,20", *words])
    importlib.import_module("photograph").main()
    said = capsys.readouterr().out
    assert "| bytes outside the mask that differ | 0 of " in said
    assert "| bytes inside the mask that differ | 0 of " not in said
    assert "| the loaded code gives the same photograph | yes |" in said
    assert (tmp_path / "edited.png").is_file()


def test_the_judge_reports_chance_the_best_and_wilsons_interval(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(FOLDER)
    prompts = importlib.import_module("prompts")
    # The ends of the interval are the shares p whose test statistic (right - n p)^2 / (n p (1 - p)) is z^2.
    for right, count in ((39, 40), (13, 40), (50, 100)):
        for share in share_interval(right, count)[1:]:
            assert (right - count * share) ** 2 / (count * share * (1 - share)) == pytest.approx(1.959964**2)
    assert share_interval(0, 10)[1] == 0
    assert share_interval(10, 10)[2] == pytest.approx(1)
    told = prompts.report("trained", [1, 1, 3, 9], [1, 1, 1, 2], [4, 4, 5, 5])
    assert told.startswith("trained: 2 of 4 right = 50% (95 % interval 15% to 85%)")
    assert told.endswith("nearest 75%, by chance 22.5%, the autoencoder's own 75%")
