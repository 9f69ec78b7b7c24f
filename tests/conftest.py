"""Every test runs offline, on the CPU, on one thread and from the same seed; with ``-m cuda`` those of a GPU run."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave the cores to the other worker

import gc
import socket
from pathlib import Path

import pytest
import torch
from slow_tests import SLOW

torch.set_num_threads(1)  # the networks here are tiny: more threads are slower, and sums in another order


def pytest_configure(config: pytest.Config) -> None:
    """Hides CUDA from torch and from processes that tests start, except where ``-m cuda`` asks for those tests alone.

    Elsewhere ``ddim.load`` would choose the GPU, and tests of bits and of speed are about a CPU.
    """
    if config.option.markexpr != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(tryfirst=True)  # before ``-m`` is applied
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the fast tests: the first row of every test function, but for what ``SLOW`` names."""
    seen = set[str]()
    for item in items:
        function = item.nodeid.partition("[")[0].removeprefix("tests/")
        if function not in seen and not SLOW & {function, function.partition("::")[0]}:
            item.add_marker(pytest.mark.fast)
        seen.add(function)
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device is visible; on a machine with one, use -m cuda"))


def pytest_make_parametrize_id(val: object) -> str | None:
    """Names a row after the error that it expects, so that ``-k steps`` finds it; None for pytest's own name."""
    return repr(val) if type(val).__module__ == "refusals" else None


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
    """What ``datasets`` keeps of a test lies in the test's own folder; without that package the test is skipped."""
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
