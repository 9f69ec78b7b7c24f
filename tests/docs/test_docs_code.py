"""Python on the pages names what the package has, calls it as it can be called, and runs on the carried models."""

import ast
import importlib
import inspect
import json
import shutil
import types
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from test_docs import DOCS, FENCE, ROOT, TEXTS, text_of

import ddim
from ddim.evaluation import BENCHMARKS

NOT_RUN = {
    **dict.fromkeys(
        ("stable-diffusion-v1-5", "stable-diffusion-xl", "stable-diffusion-3.5", "black-forest-labs", "sdxl-turbo"),
        "weights that are not carried",
    ),
    'method="null-text"': "a minute",
}  # text -> why


def python_of(page: Path) -> list[str]:
    """A page's Python blocks; a later one may use an earlier one's names."""
    return [block for kind, block in FENCE.findall(text_of(page)) if kind == "python"]


def sources() -> dict[str, str]:
    out = {page.relative_to(ROOT).as_posix(): "\n\n".join(python_of(page)) for page in TEXTS}
    for script in (DOCS / "figures").glob("*.py"):
        out[script.relative_to(ROOT).as_posix()] = text_of(script)
    for notebook in (DOCS / "notebooks").glob("*.ipynb"):
        cells = [c for c in json.loads(text_of(notebook))["cells"] if c["cell_type"] == "code"]
        out[notebook.relative_to(ROOT).as_posix()] = "\n\n".join("".join(c["source"]) for c in cells)
    return {name: source for name, source in out.items() if source}


SOURCES = sources()
RUN = [name for name in SOURCES if name.endswith(".md")]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the registries of solvers and of benchmarks as they were."""
    monkeypatch.setattr(ddim.SOLVERS, "_added", {})
    monkeypatch.setattr(BENCHMARKS, "_added", {})


def imported(tree: ast.AST) -> dict[str, Any]:
    """What the code's imports from ddim bind. Raises where there is no such name."""
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ddim":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"there is no {node.module}.{alias.name}"
                names[alias.asname or alias.name] = getattr(module, alias.name)
        elif isinstance(node, ast.Import):
            names |= {alias.name: ddim for alias in node.names if alias.name == "ddim"}
    return names


def meant(node: ast.expr, names: dict[str, Any]) -> Any:
    """The object that ``ddim.a.b`` or an imported name stands for; None for anything else."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = meant(node.value, names)
        if isinstance(owner, types.ModuleType):
            assert hasattr(owner, node.attr), f"there is no {owner.__name__}.{node.attr}"
            return getattr(owner, node.attr)
    return None


def check_names(source: str) -> int:
    """How many calls of the package were looked at. Raises AssertionError at a name or argument that does not exist."""
    tree, looked = ast.parse(source), 0
    names = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            meant(node, names)
        if not isinstance(node, ast.Call):
            continue
        called = meant(node.func, names)
        if called is None or not callable(called) or (isinstance(called, type) and issubclass(called, Exception)):
            continue
        starred = any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords)
        signature, keywords = inspect.signature(called), {k.arg: None for k in node.keywords if k.arg}
        try:
            (signature.bind_partial if starred else signature.bind)(
                *(None for a in node.args if not isinstance(a, ast.Starred)), **keywords
            )
        except TypeError as error:
            raise AssertionError(f"{ast.unparse(node)}: {error}") from None
        looked += 1
    return looked


@pytest.mark.parametrize("name", SOURCES)
def test_python_names_what_the_package_has_and_calls_it_as_it_can_be_called(name):
    check_names(SOURCES[name])


def test_calls_are_looked_at():
    assert check_names(SOURCES["docs/how-to/stable-diffusion.md"]) == 10
    assert check_names(SOURCES["docs/how-to/add-a-solver.md"]) == 8


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("import ddim\nddim.no_such_verb()", "ddim.no_such_verb"),
        ("import ddim\nddim.invert(m, 'a.png', metod='bdia')", "metod"),
        ("import ddim\nddim.load()", "'model'"),
        ("from ddim.solvers.base import NoSuch", "ddim.solvers.base.NoSuch"),
    ],
)
def test_what_does_not_exist_is_found(wrong, named):
    with refused(None, named, kind=AssertionError):
        check_names(wrong)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("name", RUN)
def test_python_of_a_page_runs(name, tmp_path, monkeypatch):
    """Every block in order, beside the pictures that the pages speak of; at five steps where a page says fifty."""
    pictures = [*ddim.bundled_test_images("emoji"), *ddim.bundled_test_images("fashion")]
    for stem, there in (("noto_slightly-smiling-face", "face.png"), ("00_ankle-boot", "00_ankle-boot.png")):
        shutil.copy(next(p for p in pictures if p.stem == stem), tmp_path / there)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in python_of(ROOT / name):
        if not any(text in block for text in NOT_RUN):
            exec(compile(block.replace("steps=50", "steps=5"), name, "exec"), names)


def test_what_is_not_run_is_little():
    left = [block for page in TEXTS for block in python_of(page) if any(text in block for text in NOT_RUN)]
    assert len(left) == 11
    assert all(any(text in block for block in left) for text in NOT_RUN)
