"""MkDocs hook: puts code, figures and numbers into the pages, and turns formulas into MathML.

A name that does not exist stops the build. ``reading.py`` describes what a page can include.
"""

import html
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.utils import get_relative_url

sys.path.insert(0, str(Path(__file__).parent))
import notebooks
import reading
import tables

_FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
_AWAY = re.compile(r'<(?:script|img|iframe|link rel="(?:stylesheet|preconnect)")[^>]+"(?:https?:)?//[^>]+>')
_VARIANT = re.compile(r'<mi mathvariant="(script|double-struck)">(.)</mi>')
_LETTERS = {
    "scriptN": "\U0001d4a9",
    "scriptL": "\u2112",
    "double-struckE": "\U0001d53c",
}  # browsers know no mathvariant
_LANGUAGES = {".py": "python", ".toml": "toml"}


def on_files(files: Files, config: Any) -> Files:
    """Adds a page for every source file that a page names, so that links to lines need no network."""
    named: set[Path] = set()
    for file in list(files.documentation_pages()):
        for macro in reading.macros(file.content_string):
            try:
                if macro.kind == "code":
                    named |= {reading.code(macro).file, *(t.file for t in reading.tests(macro))}
                if macro.kind == "notebook":
                    for picture, content in notebooks.pictures(macro.name).items():
                        files.append(File.generated(config, f"notebooks/{picture}", content=content))
            except reading.Missing as error:
                raise PluginError(f"{file.src_uri}: {error}.") from None
    for path in sorted(named):
        name = path.relative_to(reading.ROOT).as_posix()
        head = f"---\nsearch:\n  exclude: true\nhide: [toc]\n---\n# {name}\n"
        text = f'{head}\n```python linenums="1"\n{path.read_text(encoding="utf-8")}```\n'
        files.append(File.generated(config, _page_of(name), content=text, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Replaces every ``[[...]]``."""

    def link(lines: reading.Lines, words: str) -> str:
        target = files.get_file_from_path(_page_of(lines.name))
        assert target is not None
        there = get_relative_url(target.url, page.url) + f"#__codelineno-0-{lines.first}"
        return f'<a href="{there}"><code>{words}</code></a>'

    out, done = [], 0
    for macro in reading.macros(markdown):
        begin, end = macro.span
        out.append(markdown[done:begin])
        done = end
        try:
            out.append(_text(macro, page, link))
        except reading.Missing as error:
            raise PluginError(f"{page.file.src_uri}: {error}.") from None
    return "".join([*out, markdown[done:]])


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Turns formulas into MathML, which browsers draw without a script."""

    def drawn(match: re.Match[str]) -> str:
        block = match[1] == "div"
        tex = html.unescape(match[2]).strip()[2:-2].strip()
        drawing = convert(tex, display="block" if block else "inline")
        drawing = _VARIANT.sub(lambda m: f"<mi>{_letter(m[1], m[2], page)}</mi>", drawing)
        return f'<{match[1]} class="formula">{drawing}</{match[1]}>'

    return _FORMULA.sub(drawn, content)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Replaces the shim that the search needs without a server: the theme loads it from another address."""
    return _offline(output, get_relative_url("assets/iframe-worker.js", page.url), page.file.src_uri)


def on_post_template(output_content: str, template_name: str, **_: Any) -> str:
    """Does the same for pages that are not made from Markdown."""
    return _offline(output_content, "/assets/iframe-worker.js", template_name)


def _offline(output: str, shim: str, name: str) -> str:
    output = output.replace("https://unpkg.com/iframe-worker/shim", shim)
    if away := _AWAY.search(output):
        raise PluginError(f"{name} needs another address: {away[0]}.")
    return output


def _text(macro: reading.Macro, page: Any, link: Any) -> str:
    if macro.kind == "notebook":
        return notebooks.page(macro.name)
    if macro.kind in reading.TABLES:
        return tables.text(macro, "../" * page.file.src_uri.count("/"))
    if macro.kind == "number":
        return reading.number(macro)
    if macro.kind == "code":
        lines = reading.code(macro)
        held = ", ".join(link(t, t.text.split("(")[0].removeprefix("def ")) for t in reading.tests(macro))
        note = link(lines, f"{lines.name}:{lines.first}") + (f" · tested by {held}" if held else "")
        return f'\n```python\n{lines.text}\n```\n\n<p class="held">{note}</p>\n'
    if macro.kind == "figure":
        picture, script = reading.figure(macro)
        up = "../" * page.file.src_uri.count("/")
        inside = "\n".join("    " + line for line in script.text.splitlines())
        return (
            f"\n![{macro.words}]({up}{picture.relative_to(reading.DOCS).as_posix()})\n{{ .figure }}\n\n"
            f"```sh\npython {script.name}\n```\n\n"
            f'??? example "The code that drew it"\n    ```python\n{inside}\n    ```\n'
        )
    if macro.kind == "section":
        text = reading.section(macro)
        up = "../" * page.file.src_uri.count("/")
        return text.replace("](docs/", f"]({up}")
    lines = reading.whole(reading.ROOT / macro.name)
    return f"\n```{_LANGUAGES.get(lines.file.suffix, '')}\n{lines.text}\n```\n"


def _letter(variant: str, plain: str, page: Any) -> str:
    if variant + plain not in _LETTERS:
        raise PluginError(f"{page.file.src_uri}: the hook knows no {variant} {plain}; add it to its _LETTERS.")
    return _LETTERS[variant + plain]


def _page_of(name: str) -> str:
    return f"source/{name}.md"
