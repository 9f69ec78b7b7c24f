"""The documentation says nothing that is not there: names, links, pictures, commands. Reads files; builds no site."""

import html
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import reading
import tables
from refusals import refused

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(set(DOCS.rglob("*.md")) - set((DOCS / "results").glob("*.md")))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
texts = pytest.mark.parametrize("page", TEXTS, ids=lambda p: p.relative_to(ROOT).as_posix())
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pages
def test_what_a_page_includes_exists(page: Path):
    for macro in reading.macros(text_of(page)):
        reading.check(macro)


@pages
def test_every_bracket_pair_is_one_that_the_site_knows(page: Path):
    prose = FENCE.sub("", text_of(page))
    assert prose.count("[[") == len(list(reading.macros(prose)))


@pytest.mark.parametrize(
    "wrong",
    [
        "[[code core.process.no_such_thing]]",
        "[[code nowhere.at_all]]",
        "[[code core.process.eta_std | line=no such line]]",
        "[[code core.process.eta_std | tests=laws/test_law_paper.py::test_eq16_std]]",
        "[[code core.process.eta_std | test=laws/test_law_paper.py::test_no_such_test]]",
        "[[code core.process.eta_std | test=laws/no_such_file.py::test_eq16_std]]",
        "[[figure no_such_figure | Words]]",
        "[[number forward.no_such_number]]",
        "[[section README.md | No such heading]]",
        "[[file examples/no_such_file.py]]",
        "[[results no-such-table]]",
        "[[methods no-such-registry]]",
        "[[reference no-such-registry]]",
        "[[measured no-such-table]]",
        "[[notebook no_such_notebook]]",
        "[[capabilities no-such-table]]",
    ],
)
def test_what_does_not_exist_is_missing(wrong: str):
    (macro,) = reading.macros(wrong)
    with pytest.raises(reading.Missing):
        reading.check(macro)


def test_code_is_cut_as_asked_and_without_its_docstring():
    whole, line, part = (
        reading.code(next(reading.macros(f"[[code core.process.eta_std{options}]]")))
        for options in ("", " | line=return eta", " | from=if eta == 0 | to=return 0.0")
    )
    assert whole.text.startswith("def eta_std(")
    assert '"""' not in whole.text
    assert line.text.startswith("return eta")
    assert part.text == "if eta == 0 or s.sigma == 0:\n    return 0.0"
    assert line.first == line.last == whole.last


@texts
def test_links_and_pictures_lead_somewhere(page: Path):
    for target in LINK.findall(FENCE.sub("", text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} leads to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} leads to {target}"


def anchors(file: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", text_of(file), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def commands() -> list[tuple[str, str]]:
    """Every line of a shell block that calls ``ddim``, with the page's name."""
    out = []
    for page in TEXTS:
        for kind, block in FENCE.findall(text_of(page)):
            for line in block.replace("\\\n", " ").splitlines() if kind == "sh" else ():
                words = shlex.split(line, comments=True)
                call = next((i for i, w in enumerate(words) if w in ("ddim", ".venv/bin/ddim")), None)
                if call is not None:
                    out.append((page.relative_to(ROOT).as_posix(), shlex.join(words[call + 1 :])))
    return out


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_parses(page: str, line: str):
    from typer.main import get_command

    from ddim.cli.app import app

    command: Any = get_command(app)
    words = shlex.split(line)
    context = command.make_context("ddim", list(words))
    while hasattr(command, "commands"):
        name, words = words[0], words[1:]
        assert name in command.commands, f"{page}: there is no ddim {name}"
        command = command.commands[name]
        context = command.make_context(name, list(words), parent=context)


def test_a_wrong_option_does_not_parse():
    with refused(None, "--no-such-option", kind=BaseException):
        test_every_command_parses("here", "sample --no-such-option 3")


def test_scripts_that_pages_print_exist():
    for page in TEXTS:
        for kind, block in FENCE.findall(text_of(page)):
            for script in re.findall(r"python ((?:docs|benchmarks|examples)/\S+\.py)", block) if kind == "sh" else ():
                assert (ROOT / script).is_file(), f"{page.name} runs {script}"


def test_every_figure_has_a_script_and_is_on_a_page():
    drawn = {p.stem for p in (DOCS / "images" / "theory").glob("*.png")}
    named = {m.name for page in PAGES for m in reading.macros(text_of(page)) if m.kind == "figure"}
    scripts = {p.stem for p in (DOCS / "figures").glob("*.py")} - {"common"}
    assert drawn == named == scripts
    assert all(p.stat().st_size < 100_000 for p in (DOCS / "images" / "theory").glob("*.png"))


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r"[\w\-/]+\.md", text_of(ROOT / "mkdocs.yml")))
    assert listed == {page.relative_to(DOCS).as_posix() for page in PAGES}


def reference(page: Path) -> list[str]:
    """What a page of the reference names, its registries among it."""
    text = text_of(page)
    for macro in reading.macros(text):
        text += tables.text(macro, "") if macro.kind == "reference" else ""
    return re.findall(r"^::: ddim\.(\S+)$", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["SOLVERS", "INVERSIONS", "EDITORS"])
def test_the_reference_has_everything_registered_once(name: str):
    import ddim

    named = [name for page in (DOCS / "reference").glob("*.md") for name in reference(page)]
    for line in set(getattr(ddim, name).lines.values()):
        assert named.count(line.replace(":", ".")) == 1


def test_references_name_what_the_package_has():
    for page in (DOCS / "reference").glob("*.md"):
        for name in reference(page):
            whole = reading.PACKAGE.joinpath(*name.split("."))
            if whole.with_suffix(".py").is_file() or (whole / "__init__.py").is_file():
                continue
            reading.check(reading.Macro("code", name))


def test_every_formula_of_the_theory_has_its_code_and_its_test():
    """A formula of its own line is followed by a ``code`` macro with a test before the next, in its section."""
    for page in (DOCS / "theory").glob("*.md"):
        for after in re.split(r"^\$\$.*?\$\$$", text_of(page), flags=re.MULTILINE | re.DOTALL)[1:]:
            found = [m for m in reading.macros(after.split("\n## ")[0]) if m.kind == "code"]
            assert found, f"{page.name}: a formula without code, before {after[:80]!r}"
            assert reading.tests(found[0]), f"{page.name}: a formula without a test, before {after[:80]!r}"
            between = after[: found[0].span[0]].strip()
            assert len(between) < 400, f"{page.name}: a formula far from its code, before {after[:80]!r}"


def test_every_page_of_the_theory_has_a_figure_and_numbers_that_its_script_measured():
    for page in (DOCS / "theory").glob("*.md"):
        kinds = [m.kind for m in reading.macros(text_of(page))]
        assert kinds.count("figure") == 1
        assert "number" in kinds, page.name


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    return tmp_path


def test_every_expected_result_is_on_the_page_of_results():
    pages = (DOCS / "results.md", DOCS / "schedulers.md")
    named = [m.name for page in pages for m in reading.macros(text_of(page)) if m.kind == "results"]
    assert sorted(named) == sorted(tables.EXPECTED)
    known = {file.stem for file in (DOCS / "results").glob("*.md")}
    assert known <= set(tables.EXPECTED)


@pytest.mark.usefixtures("results")
def test_a_result_that_is_not_there_yet_is_named_and_another_name_is_missing():
    assert tables.results("table2-fashion", "") == "*`table2-fashion` is not measured yet.*\n"
    assert tables.measured("leaderboard-emoji") == "*`leaderboard-emoji` is not measured yet.*\n"
    for read in (lambda: tables.results("table3-fashion", ""), lambda: tables.measured("leaderboard-emojis")):
        with refused(None, "docs/results", "docs/_tools/tables.py", kind=reading.Missing):
            read()


def test_a_result_is_included_as_it_was_written(results: Path):
    from ddim.evaluation.tables import write_table

    about = {"command": "ddim evaluate table2-fashion --x", "machine": "a machine", "versions": "torch 2"}
    write_table(results, "table2-fashion", [{"name": "a", "ratio": 1.5}], {"name": "", "ratio": ".2f"}, about)
    (results / "table2-fashion.png").write_bytes(b"")
    text = tables.results("table2-fashion", "../")
    assert "| name | ratio |\n|---|---|\n| a | 1.50 |" in text
    assert "![table2-fashion](../results/table2-fashion.png)" in text
    assert "```sh\nddim evaluate table2-fashion --x\n```" in text
    assert "machine: a machine" in text
    assert "[CSV](../results/table2-fashion.csv)" in text
    (results / "table2-fashion.md").write_text("no table\n")
    with refused(None, "docs/results/table2-fashion.md", kind=reading.Missing):
        tables.results("table2-fashion", "")


def test_the_registry_is_a_table_with_every_method():
    from ddim import EDITORS, SOLVERS, inversion_names

    for kind, names in (("solvers", SOLVERS), ("inversions", inversion_names()), ("editors", EDITORS)):
        rows = [line.split(" | ") for line in tables.methods(kind).splitlines()[2:]]
        assert [row[0] for row in rows] == [f"| `{name}`" for name in names]
    assert "https://arxiv.org/abs/2010.02502" in tables.methods("solvers")
    with refused(None, "'spacings'", kind=reading.Missing):
        tables.methods("spacings")


BOARD = """method,options,guidance,steps,images,psnr,nfe,failed
autoencoder,,,,4,32.5,0,0
ddim,,1,10,4,20.5,20,0
ddim,,1,50,4,30.123456,100,0
ddim,,7.5,50,4,14.25,150,0
ddim,iterations=2,1,50,4,31,150,0
bdia,,1,50,4,inf,100,0
"""


def test_a_leaderboard_joins_the_registry_at_its_most_steps(results: Path):
    from ddim import inversion_names

    (results / "leaderboard-emoji.csv").write_text(BOARD)
    lines = tables.measured("leaderboard-emoji").splitlines()
    assert lines[0] == "| method | exact | calls a step | psnr, w = 1 | psnr, w = 7.5 | nfe, w = 1 | nfe, w = 7.5 |"
    assert "| `ddim` | no | 1 | 30.12 | 14.25 | 100 | 150 |" in lines
    assert "| `ddim iterations=2` | no | – | 31 | – | 150 | – |" in lines
    assert "| `belm` | yes | 1 | – | – | – | – |" in lines
    assert len(lines) == 2 + len(inversion_names()) + 1 + 2
    assert lines[-1] == "S = 50, 4 images, the autoencoder alone reaches 32.5 dB."


EDIT_COLUMNS = "edits,top1,top1_low,top1_high,kept_psnr,kept_bytes,edit_nfe,edit_seconds"
EDITED = f"""method,guidance,steps,images,psnr,nfe,{EDIT_COLUMNS}
autoencoder,,,4,32.5,0,,,,,,,,
direct,3,10,4,32.5,30,8,0.875,0.5,0.99,29,0.61,40,0.4
direct,7.5,10,4,32.5,30,8,1,0.7,1,25,0.51,40,0.4
direct,7.5,20,4,32.5,60,8,1,0.7,1,26.55,0.52,80,0.8123
direct attention=none,3,10,4,32.5,30,8,0.75,0.4,0.9,28,0.6,40,0.4
flow-edit,5.166,33,4,32.5,,8,0.875,0.5,0.99,30,0.7,55,0.7
ddim,3,10,4,14,30,,,,,,,,
"""


def test_the_edits_of_a_leaderboard_are_the_best_of_each_method(results: Path):
    (results / "leaderboard-emoji.csv").write_text(EDITED)
    lines = tables.edited("leaderboard-emoji").splitlines()
    assert lines[2:5] == [
        "| `direct` | 7.5 | 20 | 100 % | 70 % to 100 % | 26.55 | 52 % | 32.5 | 80 | 0.81 |",
        "| `flow-edit` | 5.166 | 33 | 88 % | 50 % to 99 % | 30 | 70 % | 32.5 | 55 | 0.7 |",
        "| `direct attention=none` | 3 | 10 | 75 % | 40 % to 90 % | 28 | 60 % | 32.5 | 40 | 0.4 |",
    ]
    assert lines[-1] == "4 images, 8 edits a setting, the autoencoder alone reaches 32.5 dB."
    trips = tables.measured("leaderboard-emoji").splitlines()
    assert "| `direct` | yes | 1 | 32.5 | 60 |" in trips
    assert not any("flow-edit" in line or "attention=" in line for line in trips)


@pytest.mark.parametrize(("text", "named"), [("a,b\n1,2\n", "'method'"), ("method,psnr\nbdja,1\n", "'bdja'")])
def test_a_leaderboard_that_cannot_be_read_is_missing(results: Path, text: str, named: str):
    (results / "leaderboard-emoji.csv").write_text(text)
    with refused(None, named, kind=reading.Missing):
        tables.measured("leaderboard-emoji")


# --- the hook ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What the site is built with, where MkDocs is installed."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    monkeypatch.syspath_prepend(DOCS / "_tools")
    return importlib.import_module("hook")


PAGE = SimpleNamespace(url="theory/step.html", file=SimpleNamespace(src_uri="theory/step.md"))


def test_formulas_become_mathml_with_letters_that_browsers_know(hook: ModuleType):
    source = r'<p>a <span class="arithmatex">\(\mathcal N(0, \alpha_t)\)</span></p>'
    drawn = html.unescape(hook.on_page_content(source, PAGE))
    assert 'class="formula"><math' in drawn
    assert "\U0001d4a9" in drawn
    assert "mathvariant" not in drawn
    assert "arithmatex" not in drawn


def test_a_letter_that_the_hook_does_not_know_stops_the_build(hook: ModuleType):
    from mkdocs.exceptions import PluginError

    with refused(None, "theory/step.md", "Q", kind=PluginError):
        hook.on_page_content(r'<span class="arithmatex">\(\mathcal Q\)</span>', PAGE)


def test_a_page_that_needs_another_address_stops_the_build(hook: ModuleType):
    from mkdocs.exceptions import PluginError

    shim = hook.on_post_page('<script src="https://unpkg.com/iframe-worker/shim"></script>', PAGE)
    assert shim == '<script src="../assets/iframe-worker.js"></script>'
    assert hook.on_post_page('<a href="https://arxiv.org">paper</a>', PAGE)  # a link is no need
    for away in (
        '<img src="https://a.b/c.png">',
        '<script src="//a.b/c.js">',
        '<link rel="stylesheet" href="http://a">',
    ):
        with refused(None, "theory/step.md", away, kind=PluginError):
            hook.on_post_page(away, PAGE)


def test_a_page_that_names_what_is_not_there_stops_the_build(hook: ModuleType):
    from mkdocs.exceptions import PluginError

    with refused(None, "theory/step.md", "examples/no_such.py", kind=PluginError):
        hook.on_page_markdown("[[file examples/no_such.py]]", PAGE, files=None)
    text = hook.on_page_markdown("before [[number forward.gap]] after", PAGE, files=None)
    assert re.fullmatch(r"before [\d.]+ after", text)
