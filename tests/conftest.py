"""Every test runs offline, on the CPU, on one thread and from the same seed."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the cores to the other worker

import gc
import socket
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the networks here are tiny: more threads are slower, and sums in another order

SLOW = {
    *("benchmarks/test_benchmarks.py", "benchmarks/test_fuzz.py", "benchmarks/test_kills.py"),
    *("cli/test_cli_text.py", "cli/test_lost_work.py", "demo/test_demo.py"),
    *("docs/test_docs_code.py", "docs/test_examples.py", "docs/test_notebooks.py"),
    *("evaluation/test_edits.py", "evaluation/test_pie_bench.py", "evaluation/test_rows.py"),
    *("evaluation/test_table1.py", "evaluation/test_table2.py", "inversion/test_guided_inversions.py"),
    *("laws/test_law_bits.py", "models/test_emoji.py", "models/test_live.py", "models/test_sdxl_family.py"),
    *("parity/test_sdxl.py", "parity/test_stable_diffusion.py", "training/test_run.py"),
    *("test_imports.py", "test_structure.py"),
    "cli/test_cli.py::test_a_true_process_speaks_json_on_stdout_alone",
    "cli/test_cli_errors.py::test_a_reader_that_leaves_is_no_drama",
    "cli/test_cli_errors.py::test_a_true_process_exits_with_the_code_and_no_traceback",
    "core/test_hold.py::test_text_models_hold_after_guidance",
    "evaluation/test_fid.py::test_what_cannot_be_measured_is_one_sentence",
    "evaluation/test_leaderboard.py::test_the_command_measures_every_method_once",
    "laws/test_law_moments.py::test_monte_carlo_of_the_mixture",
    "pipelines/test_edit.py::test_a_saved_code_edits_as_the_one_that_was_saved",
    "pipelines/test_verbs.py::test_inverting_a_sample_finds_the_noise_it_came_from",
    "training/test_labels.py::test_a_network_learns_the_mean_of_each_class_and_of_all",
    "training/test_tasks.py::test_another_autoencoder_in_the_same_folder_is_refused_on_resume",
}
"""Modules of many seconds, and tests of more than one."""


@pytest.hookimpl(tryfirst=True)  # before ``-m`` is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the fast tests: the first row of every test function, but for what ``SLOW`` names."""
    seen = set[str]()
    for item in items:
        function = item.nodeid.partition("[")[0].removeprefix("tests/")
        if function not in seen and not SLOW & {function, function.partition("::")[0]}:
            item.add_marker(pytest.mark.fast)
        seen.add(function)


def pytest_collection_finish() -> None:
    """Takes what was imported out of the garbage collector's sight: it stays, and is an eighth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(autouse=True)
def _same_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch):
    """A connection to anywhere but this machine fails."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test reached for the network: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``datasets`` keeps of a test lies in the test's own folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
