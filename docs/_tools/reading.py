"""Reads what the pages include from the files themselves: code by name, figures by script, sections of other texts.

It uses only the standard library, so that the tests read the pages as the site does. A page includes something by
``[[kind name | key=value | ...]]``:

- ``[[code core.process.eta_std | test=laws/test_law_paper.py::test_eq16_std]]``: the function, without its docstring;
  ``from=`` and ``to=`` cut it to the lines from the first that holds one text to the next that holds the other,
  ``line=`` to one line. Several tests are separated by commas.
- ``[[figure forward | What it shows.]]``: ``images/theory/forward.png``, and the command and script that made it.
- ``[[number forward.width]]``: a number that the script measured, from ``images/theory/forward.json``.
- ``[[section README.md | Which method]]``: the text under a heading of another file.
- ``[[file examples/round_trip.py]]``: a whole file.
- ``[[results table1-fashion]]``: the table ``results/table1-fashion.md`` as it was generated, with its plot.
- ``[[methods inversions]]``, ``[[methods solvers]]``, ``[[methods editors]]``: a table with the properties of each.
- ``[[reference inversions]]``, ``[[reference solvers]]``, ``[[reference editors]]``: the reference of every class.
- ``[[measured leaderboard-emoji]]``: every inversion, with its round trips in ``results/leaderboard-emoji.csv``.
- ``[[edited leaderboard-emoji]]``: the edits of every method in it, each at the setting where most of them are right.
- ``[[capabilities kinds]]``: what works on which kind of model, with the reason where it does not.
- ``[[capabilities strengths]]``: the usual strength of every editor on each kind of model.
- ``[[notebook first_steps]]``: ``notebooks/first_steps.ipynb`` with its outputs.
"""

import ast
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "ddim"
TABLES = ("results", "methods", "reference", "measured", "edited", "capabilities")
KINDS = ("code", "figure", "number", "section", "file", "notebook", *TABLES)
CUTS = ("test", "from", "to", "line")
_MACRO = re.compile(r"\[\[(" + "|".join(KINDS) + r") (.+?)\]\]")


class Missing(Exception):
    """A page names something that does not exist."""


@dataclass(frozen=True)
class Lines:
    """Some lines of a file; the numbers count from 1 and include both ends."""

    file: Path
    first: int
    last: int
    text: str

    @property
    def name(self) -> str:
        """The file's path from the root of the project."""
        return self.file.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Macro:
    """One ``[[...]]`` of a page."""

    kind: str
    name: str
    options: dict[str, str] = field(default_factory=dict)
    words: str = ""
    span: tuple[int, int] = (0, 0)


def macros(page: str) -> Iterator[Macro]:
    """Every macro of a page's Markdown."""
    for match in _MACRO.finditer(page):
        name, *rest = (part.strip() for part in match[2].split(" | "))
        options = dict(part.split("=", 1) for part in rest if re.match(r"[a-z]+=", part))
        words = " ".join(part for part in rest if not re.match(r"[a-z]+=", part))
        yield Macro(match[1], name, options, words, match.span())


def code(macro: Macro) -> Lines:
    """The lines that a ``code`` macro names.

    Raises:
        Missing: no such module, name, line or option.
    """
    if strange := sorted(macro.options.keys() - set(CUTS)):
        raise Missing(f"{macro.name!r} has {strange[0]}=, which is none of {', '.join(CUTS)}")
    file, names = _module(macro.name)
    source = file.read_text(encoding="utf-8")
    node = _definition(ast.parse(source), names, macro.name)
    lines = source.splitlines()
    first, last = node.lineno, node.end_lineno or node.lineno
    numbers = [n for n in range(first, last + 1) if n not in _docstring(node)]
    start, end = (macro.options.get("line"),) * 2 if "line" in macro.options else map(macro.options.get, ("from", "to"))
    if start is not None:
        begin = _holding(lines, numbers, start, macro.name)
        numbers = numbers[numbers.index(begin) :]
    if end is not None:
        numbers = numbers[: numbers.index(_holding(lines, numbers, end, macro.name)) + 1]
    return Lines(file, numbers[0], numbers[-1], textwrap.dedent("\n".join(lines[n - 1] for n in numbers)))


def test(name: str) -> Lines:
    """A test by ``path::name``, the path from ``tests/``.

    Raises:
        Missing: no such file or test.
    """
    path, _, function = name.partition("::")
    file = ROOT / "tests" / path
    if not file.is_file():
        raise Missing(f"there is no tests/{path}")
    source = file.read_text(encoding="utf-8")
    node = _definition(ast.parse(source), [function], f"tests/{name}")
    last = node.end_lineno or node.lineno
    return Lines(file, node.lineno, last, "\n".join(source.splitlines()[node.lineno - 1 : last]))


def tests(macro: Macro) -> list[Lines]:
    """The tests that a ``code`` macro names."""
    return [test(name.strip()) for name in macro.options.get("test", "").split(",") if name.strip()]


def figure(macro: Macro) -> tuple[Path, Lines]:
    """The picture of a ``figure`` macro, and the script that made it.

    Raises:
        Missing: either is not there.
    """
    picture, script = DOCS / "images" / "theory" / f"{macro.name}.png", DOCS / "figures" / f"{macro.name}.py"
    for path in (picture, script):
        if not path.is_file():
            raise Missing(f"the figure {macro.name!r} has no {path.relative_to(ROOT)}")
    return picture, whole(script)


def number(macro: Macro) -> str:
    """A number that a figure's script wrote.

    Raises:
        Missing: no such figure or number.
    """
    name, _, key = macro.name.partition(".")
    file = DOCS / "images" / "theory" / f"{name}.json"
    numbers = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if key not in numbers:
        raise Missing(f"docs/figures/{name}.py wrote no number {key!r}")
    return numbers[key]


def section(macro: Macro) -> str:
    """The text under a heading of another Markdown file, without the heading.

    Raises:
        Missing: no such file or heading.
    """
    lines = whole(ROOT / macro.name).text.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("#") and line.lstrip("#").strip() == macro.words:
            level, fenced, out = len(line) - len(line.lstrip("#")), False, []
            for after in lines[i + 1 :]:
                fenced ^= after.startswith("```")
                if not fenced and re.match(rf"#{{1,{level}}} ", after):
                    break
                out.append(after)
            return "\n".join(out).strip()
    raise Missing(f"{macro.name} has no heading {macro.words!r}")


def whole(file: Path) -> Lines:
    """All of a file.

    Raises:
        Missing: it is not there.
    """
    if not file.is_file():
        raise Missing(f"there is no {file.relative_to(ROOT)}")
    text = file.read_text(encoding="utf-8").rstrip("\n")
    return Lines(file, 1, text.count("\n") + 1, text)


def check(macro: Macro) -> None:
    """Reads what a macro names. Raises Missing if it does not exist."""
    if macro.kind == "code":
        code(macro)
        tests(macro)
    elif macro.kind == "file":
        whole(ROOT / macro.name)
    elif macro.kind == "notebook":
        import notebooks

        notebooks.page(macro.name)
    elif macro.kind in TABLES:
        import tables

        tables.text(macro, "")
    else:
        {"figure": figure, "number": number, "section": section}[macro.kind](macro)


def _module(name: str) -> tuple[Path, list[str]]:
    """The file of ``package.module.Class.method``, and the names after the module."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        base = PACKAGE.joinpath(*parts[:cut])
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return file, parts[cut:]
    raise Missing(f"{name!r} is in no module of src/ddim")


def _definition(tree: ast.AST, names: list[str], whole_name: str) -> ast.stmt:
    node = tree
    for wanted in names:
        for child in getattr(node, "body", []):
            targets = [child.target] if isinstance(child, ast.AnnAssign) else getattr(child, "targets", [])
            if getattr(child, "name", None) == wanted or any(getattr(t, "id", None) == wanted for t in targets):
                node = child
                break
        else:
            raise Missing(f"there is no {whole_name!r}")
    assert isinstance(node, ast.stmt)
    return node


def _docstring(node: ast.stmt) -> range:
    body = getattr(node, "body", None)
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) and len(body) > 1:
        return range(body[0].lineno, (body[0].end_lineno or 0) + 1)
    return range(0)


def _holding(lines: list[str], numbers: list[int], text: str, name: str) -> int:
    for n in numbers:
        if text in lines[n - 1]:
            return n
    raise Missing(f"{name!r} has no line that holds {text!r}")
