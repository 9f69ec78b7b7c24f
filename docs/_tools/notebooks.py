"""Runs notebooks without Jupyter, and turns them into pages.

``python docs/_tools/notebooks.py`` runs each notebook of ``docs/notebooks/`` from an empty folder and writes its
outputs into it. The outputs are those that Jupyter shows: printed text, the value of a cell's last expression (an image
as an image), and open matplotlib figures.
"""

import ast
import base64
import contextlib
import io
import json
import os
import pprint
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from reading import DOCS, Missing

FOLDER = DOCS / "notebooks"
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)")


def read(name: str) -> dict[str, Any]:
    """The notebook ``docs/notebooks/NAME.ipynb``.

    Raises:
        Missing: it is not there, or its code cells have not been run.
    """
    file = FOLDER / f"{name}.ipynb"
    if not file.is_file():
        raise Missing(f"there is no docs/notebooks/{name}.ipynb")
    notebook = json.loads(file.read_text(encoding="utf-8"))
    if any(c["cell_type"] == "code" and not c["execution_count"] for c in notebook["cells"]):
        raise Missing(f"docs/notebooks/{name}.ipynb was not run; python docs/_tools/notebooks.py {name} does it")
    return notebook


def source(cell: dict[str, Any]) -> str:
    """A cell's text."""
    return "".join(cell["source"])


def run(notebook: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Runs the code cells in order, in the current folder, and yields the outputs of each in the notebook format."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            yield _outputs(source(cell), names)


def text_of(outputs: list[dict[str, Any]]) -> str:
    """The printed text of a cell, and its value if that is text."""
    return "\n".join("".join(o.get("text", o.get("data", {}).get("text/plain", ""))) for o in outputs)


def same_text(one: str, other: str, tolerance: float = 0.05) -> bool:
    """Whether two outputs agree: equal words, and numbers within a relative tolerance."""
    if _NUMBER.sub("#", one) != _NUMBER.sub("#", other):
        return False
    pairs = zip(_NUMBER.findall(one), _NUMBER.findall(other), strict=True)
    return all(abs(float(a) - float(b)) <= tolerance * max(abs(float(a)), abs(float(b))) for a, b in pairs)


def pictures(name: str) -> dict[str, bytes]:
    """Every image in a notebook, as PNG, by its file name on the page."""
    shown = [p for cell in read(name)["cells"] for o in cell.get("outputs", []) if (p := _picture(o))]
    return {f"{name}-{k}.png": p for k, p in enumerate(shown, 1)}


def page(name: str) -> str:
    """The notebook as Markdown. Its images lie beside the page under the names of ``pictures``."""
    out, drawn = [], 0
    for cell in read(name)["cells"]:
        if cell["cell_type"] == "markdown":
            out.append(source(cell).replace(".ipynb)", ".md)"))
            continue
        out.append(f"```python\n{source(cell)}\n```")
        for output in cell["outputs"]:
            if _picture(output):
                drawn += 1
                out.append(f"![What the cell above drew]({name}-{drawn}.png)\n{{ .drawn }}")
            elif text := text_of([output]).strip("\n"):
                out.append(f"``` {{ .text .output }}\n{text}\n```")
    note = f'The notebook: <a href="{name}.ipynb" download><code>{name}.ipynb</code></a>. It was run by:'
    return "\n\n".join([*out, "---", note, f"```sh\npython docs/_tools/notebooks.py {name}\n```"]) + "\n"


def _picture(output: dict[str, Any]) -> bytes:
    return base64.b64decode("".join(output.get("data", {}).get("image/png", "")))


def _outputs(text: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    tree, printed, value = ast.parse(text), io.StringIO(), None
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    out: list[dict[str, Any]] = []
    if printed.getvalue():
        out.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)})
    if value is not None:
        data = _png(value) if hasattr(value, "getbands") else {"text/plain": pprint.pformat(value).splitlines(True)}
        out.append({"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": data})
    return out + [{"output_type": "display_data", "metadata": {}, "data": data} for data in _figures()]


def _png(image: Any) -> dict[str, Any]:
    drawn = io.BytesIO()
    image.save(drawn, "PNG", optimize=True)
    return {"image/png": base64.b64encode(drawn.getvalue()).decode(), "text/plain": [f"<picture {image.size}>"]}


def _figures() -> Iterator[dict[str, Any]]:
    """Saves the open figures of pyplot and closes them, as Jupyter's inline backend does at the end of a cell."""
    if "matplotlib.pyplot" not in sys.modules:
        return
    import matplotlib.pyplot as plt
    from PIL import Image

    for number in plt.get_fignums():
        drawn = io.BytesIO()
        plt.figure(number).savefig(drawn, dpi=110)
        yield _png(Image.open(drawn).convert("RGB").quantize(64))
    plt.close("all")


def main(names: list[str]) -> None:
    """Runs the named notebooks, or all of them, and writes their outputs."""
    from ddim._utils.files import write_whole

    os.environ["MPLBACKEND"] = "Agg"
    warnings.simplefilter("ignore", ResourceWarning)
    for name in names or sorted(p.stem for p in FOLDER.glob("*.ipynb")):
        file = FOLDER / f"{name}.ipynb"
        notebook = json.loads(file.read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            outputs = list(run(notebook))
            os.chdir(DOCS)
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for count, (cell, found) in enumerate(zip(code, outputs, strict=True), 1):
            for output in found:
                if "execution_count" in output:
                    output["execution_count"] = count
            cell |= {"outputs": found, "execution_count": count}
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        write_whole(file, text.encode())
        print(f"{name}: {len(outputs)} cells, {len(text) // 1000} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
