"""The notebooks run from top to bottom, say again what they have on record, and become pages."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import notebooks
import pytest
import reading
from refusals import refused
from test_docs import DOCS, LINK

import ddim

NAMES = sorted(path.stem for path in notebooks.FOLDER.glob("*.ipynb"))
each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def registry() -> Iterator[None]:
    """Leaves the registry of solvers as it was."""
    before = dict(ddim.SOLVERS._added)
    yield
    ddim.SOLVERS._added.clear()
    ddim.SOLVERS._added.update(before)


def code_cells(name: str) -> list[dict]:
    return [cell for cell in notebooks.read(name)["cells"] if cell["cell_type"] == "code"]


@pytest.mark.usefixtures("registry")
@each
def test_a_notebook_runs_and_says_what_it_has_on_record(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    outputs = notebooks.run(notebooks.read(name))
    for cell, found in zip(code_cells(name), outputs, strict=True):
        kept, now = notebooks.text_of(cell["outputs"]), notebooks.text_of(found)
        assert notebooks.same_text(kept, now, tolerance=0.1), f"on record:\n{kept}\nnow:\n{now}"
        assert [sorted(o.get("data", {})) for o in cell["outputs"]] == [sorted(o.get("data", {})) for o in found]
    assert not list(tmp_path.iterdir())


@each
def test_a_notebook_is_small_whole_and_in_the_format(name):
    notebook = notebooks.read(name)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert [cell["execution_count"] for cell in code_cells(name)] == list(range(1, len(code_cells(name)) + 1))
    assert not any(output["output_type"] == "error" for cell in code_cells(name) for output in cell["outputs"])
    assert notebook["cells"][0]["source"][0].startswith("# ")
    assert (notebooks.FOLDER / f"{name}.ipynb").stat().st_size < 500_000


@each
def test_a_notebooks_links_lead_somewhere(name):
    for cell in notebooks.read(name)["cells"]:
        for target in LINK.findall(notebooks.source(cell)) if cell["cell_type"] == "markdown" else ():
            path, _, _ = target.partition("#")
            assert re.match(r"https?:", target) or (notebooks.FOLDER / path).is_file(), target


@each
def test_a_page_shows_every_cell_and_picture(name):
    page, pictures = notebooks.page(name), notebooks.pictures(name)
    assert page.count("```python\n") == len(code_cells(name))
    assert all(f"]({file})" in page and content.startswith(b"\x89PNG") for file, content in pictures.items())
    assert page.count(f"]({name}-") == len(pictures) > 0
    assert ".ipynb)" not in page
    assert (DOCS / "notebooks" / f"{name}.md").read_text(encoding="utf-8").strip() == f"[[notebook {name}]]"


def test_a_cell_gives_what_jupyter_shows():
    source = "from PIL import Image\nprint('a')\nprint(1)\nImage.new('L', (2, 3))"
    (outputs,) = notebooks.run({"cells": [{"cell_type": "code", "source": [source]}]})
    printed, picture = outputs
    assert printed["text"] == ["a\n", "1\n"]
    assert sorted(picture["data"]) == ["image/png", "text/plain"]
    drawing = "import matplotlib.pyplot as plt\nfigure, axes = plt.subplots()\naxes.plot([1, 2])\nx = 3"
    first, second = notebooks.run({"cells": [{"cell_type": "code", "source": [t]} for t in (drawing, "x")]})
    assert [sorted(o["data"]) for o in first] == [["image/png", "text/plain"]]  # and it is closed, so it comes once
    assert [o["data"] for o in second] == [{"text/plain": ["3"]}]


def test_an_error_in_a_cell_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(notebooks.run({"cells": [{"cell_type": "code", "source": ["1 / 0"]}]}))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("PSNR 30.1 dB", "PSNR 30.9 dB", True),
        ("PSNR 30.1 dB", "PSNR 40.1 dB", False),
        ("PSNR 30.1 dB", "MSE 30.1 dB", False),
        ("a 1 b 2", "a 1", False),
        ("print 3e4a9", "print 3e4a8", False),  # no number, but a name
        ("it is True", "it is False", False),
    ],
)
def test_texts_agree_within_a_part(one, other, same):
    assert notebooks.same_text(one, other) == same


def test_a_notebook_that_was_not_run_is_missing(tmp_path: Path, monkeypatch):
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": ["1"], "outputs": [], "execution_count": None}
    (tmp_path / "new.ipynb").write_text(json.dumps({"cells": [cell], "nbformat": 4, "nbformat_minor": 5}))
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    with refused(None, "docs/notebooks/new.ipynb", kind=reading.Missing):
        notebooks.page("new")


@each
def test_a_notebook_needs_nothing_that_is_not_carried(name):
    loads = [
        node.args[0].value
        for cell in code_cells(name)
        for node in ast.walk(ast.parse(notebooks.source(cell)))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "ddim.load"
        and isinstance(node.args[0], ast.Constant)
    ]
    assert set(loads) <= set(ddim.bundled_models())
    assert loads
