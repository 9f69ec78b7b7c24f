"""``import ddim`` is quick, quiet and complete."""

import pkgutil
import subprocess
import sys

import pytest
from refusals import refused

import ddim

HEAVY = ["torch", "diffusers", "numpy", "PIL", "safetensors", "accelerate", "rich", "typer"]


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    slow = [*HEAVY, "dataclasses", "inspect"]  # of the standard library
    assert fresh(f"import ddim, sys; print([m for m in {slow} if m in sys.modules])") == "[]"


def test_the_maths_needs_torch_and_nothing_else():
    loaded = fresh(f"import sys; from ddim import solve, SOLVERS; print([m for m in {HEAVY} if m in sys.modules])")
    assert "diffusers" not in loaded
    assert "PIL" not in loaded
    assert "torch" in loaded


def test_the_lists_of_names_agree():
    listed = {name for names in ddim._WHERE.values() for name in names}
    registered = {
        line.partition(":")[2] for r in (ddim.SOLVERS, ddim.INVERSIONS, ddim.EDITORS) for line in r.lines.values()
    }
    assert listed <= set(ddim.__all__) <= listed | registered
    assert all(getattr(ddim, name).__name__ == name for name in registered)
    assert set(ddim.__all__) <= set(dir(ddim))


def test_every_name_is_there():
    for name in ddim.__all__:
        assert getattr(ddim, name) is not None


def test_no_public_name_is_a_modules():
    # importing the module would put it in the name's place: ddim.solve was a function or a module by luck
    modules = {m.name for m in pkgutil.iter_modules(ddim.__path__)}
    assert not modules & set(ddim.__all__)


@pytest.mark.parametrize("first", ["ddim.solve", "ddim.sample", "ddim.SOLVERS", "ddim.inversion_names", "ddim.load"])
def test_a_name_means_the_same_whatever_came_first(first):
    assert fresh(f"import ddim; {first}; print(callable(ddim.solve), callable(ddim.sample))") == "True True"


def test_an_unknown_name_is_an_attribute_error():
    with refused(None, "'smaple'", kind=AttributeError):
        _ = ddim.smaple
