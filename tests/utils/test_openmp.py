"""OpenMP's threads spin for a bounded time, unless the user chose how they wait or torch is loaded already."""

import json
import os
import subprocess
import sys

import pytest

from ddim._utils.openmp import CHOSEN_BY, WAITING, bound_spinning

ASKED = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY", "KMP_LIBRARY")


@pytest.mark.parametrize(
    ("environment", "loaded", "made"),
    [
        ({}, (), WAITING),
        ({"PATH": "/bin"}, ("numpy",), WAITING),
        ({}, ("torch",), {}),
        *(({name: "x"}, (), {}) for name in CHOSEN_BY),
        ({"GOMP_SPINCOUNT": "7"}, (), {"KMP_BLOCKTIME": WAITING["KMP_BLOCKTIME"]}),
        ({"KMP_BLOCKTIME": "7"}, (), {"GOMP_SPINCOUNT": WAITING["GOMP_SPINCOUNT"]}),
        ({"KMP_BLOCKTIME": "7", "GOMP_SPINCOUNT": "7"}, (), {}),
    ],
    ids=str,
)
def test_what_is_set(environment: dict[str, str], loaded: tuple[str, ...], made: dict[str, str]):
    before = environment.copy()
    assert bound_spinning(environment, loaded) == made
    assert environment == {**before, **made}


SCRIPT = """
import json, os, subprocess, sys
{before}
import ddim
assert ("torch" in sys.modules) == {loaded}, "nothing heavy is loaded by import ddim"
print(json.dumps({{name: os.environ.get(name) for name in {names}}}))
child = subprocess.run(["env"], capture_output=True, text=True).stdout
assert all(f"{{name}}={{value}}" in child.splitlines() for name, value in os.environ.items() if name in {names})
"""


@pytest.mark.parametrize(
    ("given", "torch_first", "found"),
    [
        ({}, False, WAITING),
        ({}, True, {}),
        ({"GOMP_SPINCOUNT": "5", "KMP_BLOCKTIME": "9"}, False, {"GOMP_SPINCOUNT": "5", "KMP_BLOCKTIME": "9"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, False, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
    ids=str,
)
def test_import_sets_it_before_torch_is_loaded(given: dict[str, str], torch_first: bool, found: dict[str, str]):
    clean = {name: value for name, value in os.environ.items() if name not in ASKED}
    script = SCRIPT.format(before="import torch" if torch_first else "", loaded=torch_first, names=ASKED)
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**clean, **given, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {**dict.fromkeys(ASKED), **found}
