"""Damaged input of every kind, at a small size; ``benchmarks/fuzz.py`` is the whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def fuzzed(*words: str) -> "subprocess.CompletedProcess[str]":
    """The script in a process of its own: it forks, and a process that pytest runs in is none to fork from."""
    return subprocess.run(
        [sys.executable, str(FOLDER / "fuzz.py"), *words, "--workers", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_damage_ends_in_what_is_right_or_in_a_sentence():
    ran = fuzzed("--count", "12", "--limit", "120")
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]
    assert "60 cases" in ran.stdout


def test_a_case_that_takes_too_long_is_a_failure_and_ends():
    ran = fuzzed("--only", "codes", "--case", "0", "--limit", "0.001")
    assert ran.returncode == 1
    assert "hang: " in ran.stdout


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("images: there is no file x.png.", True),
        ("Unknown solver 'x'. Known: bdia, ddim. (It was left out.)", True),
        ("x.png is broken..", False),
        ("Cannot read x: No such file", False),
        ("Unexpected TypeError: no message (--debug shows where)", False),
        ("one line.\nanother.", False),
        ("", False),
    ],
)
def test_what_a_sentence_is(text: str, fine: bool, monkeypatch: pytest.MonkeyPatch):
    import importlib

    monkeypatch.syspath_prepend(FOLDER)
    assert (importlib.import_module("fuzz").sentence_fault(text) is None) == fine
