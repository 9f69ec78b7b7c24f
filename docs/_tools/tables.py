"""Tables for the pages: results as they were generated, and the properties of each method in the registry.

A result lies in ``docs/results/`` as a command wrote it: NAME.md, NAME.csv, NAME.json, and NAME.png if there is a plot.
If a result of ``EXPECTED`` does not exist yet, the page says so. Any other name stops the build.
"""

import csv
import io
import math
import re
from typing import Any

import capability_table
from reading import DOCS, Macro, Missing

FOLDER = DOCS / "results"
EXPECTED = (
    "eta-fashion",
    "budget-fashion",
    "budget-trailing-fashion",
    "spacings-fashion",
    "table1-fashion",
    "hundred-fashion",
    "quadratic-fashion",
    "table2-fashion",
    "table2-long-fashion",
    "table2-exact-fashion",
    "bit-law",
    "bit-law-runge-kutta",
    "bit-law-h200",
    "class-edits",
    "consistency-fashion",
    "interpolation-fashion",
    "leaderboard-fashion",
    "leaderboard-emoji",
    "gpu",
    "leaderboard-emoji-flow",
    "schedulers",
)
_TRIP = ("psnr", "nfe", "seconds")
"""The columns of a leaderboard that tell of round trips."""
FLOOR = "autoencoder"
"""A row that is not a method: encoding and decoding alone."""
_FACTS = {
    "solvers": ("exact", "order", "nfe", "stochastic", "amplification", "options", "paper"),
    "inversions": ("exact", "order", "nfe", "amplification", "options", "paper"),
    "editors": ("nfe", "self_edit", "draws", "inversion", "options", "paper"),
}
_HEADS = {
    "nfe": "calls a step",
    "stochastic": "noise",
    "self_edit": "exact at itself",
    "draws": "noise",
    "inversion": "codes",
}


def text(macro: Macro, up: str) -> str:
    """The Markdown for a macro of ``reading.TABLES``.

    Args:
        macro: of one of these kinds.
        up: the relative path from the page to ``docs/``.

    Raises:
        Missing: the table does not exist, or cannot be read.
    """
    if macro.kind == "results":
        return results(macro.name, up)
    made = {
        "methods": methods,
        "reference": reference,
        "measured": measured,
        "edited": edited,
        "capabilities": what_works,
    }
    return made[macro.kind](macro.name)


def results(name: str, up: str) -> str:
    """A generated table, with its plot above it, and its command, machine and versions below it.

    Raises:
        Missing: the name is not expected, or the file has no table.
    """
    if not _is_there(name, "md"):
        return f"*`{name}` is not measured yet.*\n"
    lines = _file(name, "md").read_text(encoding="utf-8").strip().splitlines()
    rows = [i for i, line in enumerate(lines) if line.startswith("|")]
    if len(rows) < 3:
        raise Missing(f"docs/results/{name}.md holds no table")
    tables, after = "\n".join(lines[: rows[-1] + 1]), [line.strip() for line in lines[rows[-1] + 1 :]]
    command = [line.removeprefix("command: ") for line in after if line.startswith("command: ")]
    plots = sorted(FOLDER.glob(f"{name}.png")) + sorted(FOLDER.glob(f"{name}-*.png"))
    out = [*(f"![{p.stem}]({up}results/{p.name})\n{{ .figure }}" for p in plots), tables]
    out += [f"```sh\n{line}\n```" for line in command]
    files = [f"[{end.upper()}]({up}results/{name}.{end})" for end in ("csv", "json") if _file(name, end).is_file()]
    notes = [line for line in after if line and not line.startswith("command: ")] + [" · ".join(files)]
    return "\n\n".join([*out, "  \n".join(note for note in notes if note) + "\n{ .held }"]) + "\n"


def methods(kind: str) -> str:
    """A table of a registry with the properties of each entry; ``kind`` is a key of ``_FACTS``.

    Raises:
        Missing: another kind.
    """
    known = _registries()
    if kind not in _FACTS:
        raise Missing(f"there is no registry of {kind!r}; there are {', '.join(_FACTS)}")
    facts = _FACTS[kind]
    heads = ["name", *(_HEADS.get(f, f) for f in facts)]
    return _markdown(heads, [[f"`{m['name']}`", *(_cell(m[f]) for f in facts)] for m in known[kind]])


def reference(kind: str) -> str:
    """The reference directives for every class of a registry. Reversible solvers appear among the solvers only.

    Raises:
        Missing: the kind is neither ``"solvers"``, ``"inversions"`` nor ``"editors"``.
    """
    from ddim.editing.editors import EDITORS
    from ddim.inversion import INVERSIONS
    from ddim.solvers import SOLVERS

    reversible = SOLVERS.lines.items() & INVERSIONS.lines.items()
    own = {name: line for name, line in INVERSIONS.lines.items() if (name, line) not in reversible}
    known = {"solvers": SOLVERS.lines, "inversions": own, "editors": EDITORS.lines}
    if kind not in known:
        raise Missing(f"there is no registry of {kind!r}; there are {', '.join(known)}")
    return "\n\n".join(f"::: ddim.{line.replace(':', '.')}" for line in known[kind].values()) + "\n"


def measured(name: str) -> str:
    """A table of every inversion with its round trips in a leaderboard, at the largest number of steps there.

    Args:
        name: of a result whose CSV has a row for each method, guidance and number of steps. Of the columns only
            ``method`` is required; ``images`` is printed once. Rows of editors have no ``nfe`` and are left out.

    Raises:
        Missing: the result or its column ``method`` does not exist, or the registry has no such method.
    """
    if not _is_there(name, "csv"):
        return f"*`{name}` is not measured yet.*\n"
    rows, known = _board(name), {m["name"]: m for m in _registries()["inversions"]}
    floors = [row for row in rows if row["method"] == FLOOR]
    rows = [row for row in rows if row["method"] != FLOOR and row.get("nfe") and "attention=" not in row["method"]]
    most = max(_number(row.get("steps")) or 0 for row in rows)
    rows = [row for row in rows if (_number(row.get("steps")) or 0) == most]
    weights = sorted(dict.fromkeys(row.get("guidance") or "" for row in rows), key=lambda w: _number(w) or 0.0)
    measures = [c for c in _TRIP if any(_number(row.get(c)) is not None for row in rows)]
    heads = ["method", "exact", "calls a step"]
    heads += [m + (f", w = {_short(w)}" if len(weights) > 1 else "") for m in measures for w in weights]
    found = {(row["method"], row.get("guidance") or ""): row for row in rows}
    names = dict.fromkeys([*known, *(method for method, _ in found)])
    body = []
    for method in sorted(names, key=lambda n: [*known].index(n.split()[0])):
        facts = known[method.split()[0]]
        cells = [_short(found.get((method, w), {}).get(m)) for m in measures for w in weights]
        body.append([f"`{method}`", _cell(facts["exact"]), _cell(facts["nfe"]) if method in known else "–", *cells])
    return _markdown(heads, body) + _notes(most, rows, floors)


def edited(name: str) -> str:
    """A table of the edits of every method in a leaderboard, each at the setting where most of its edits are right.

    Among equals it is the setting that keeps the most. The methods with the most edits that are right come first.

    Raises:
        Missing: as for ``measured``.
    """
    if not _is_there(name, "csv"):
        return f"*`{name}` is not measured yet.*\n"
    rows = _board(name)
    floors = [row for row in rows if row["method"] == FLOOR]

    def merit(row: dict[str, str]) -> tuple[float, float]:
        return float(row["top1"]), _number(row["kept_psnr"]) or 0.0

    best: dict[str, dict[str, str]] = {}
    for row in sorted((row for row in rows if row.get("top1")), key=merit):
        best[row["method"]] = row
    heads = ["method", "w", "S", "right", "95 % interval", "kept, dB", "equal bytes", "source, dB", "calls", "seconds"]
    body = [
        [
            f"`{method}`",
            _short(row["guidance"]),
            _short(row["steps"]),
            _percent(row["top1"]),
            f"{_percent(row['top1_low'])} to {_percent(row['top1_high'])}",
            _short(row["kept_psnr"]),
            _percent(row["kept_bytes"]),
            _short(row["psnr"]),
            _short(row["edit_nfe"]),
            f"{float(row['edit_seconds']):.2g}",
        ]
        for method, row in sorted(best.items(), key=lambda one: merit(one[1]), reverse=True)
    ]
    edits = next((row["edits"] for row in best.values()), "")
    return _markdown(heads, body) + _notes(0, [*best.values()], floors, f"{edits} edits a setting")


def _board(name: str) -> list[dict[str, str]]:
    """The rows of a leaderboard, with the options in ``method``. Raises Missing if it cannot be read."""
    reader = csv.DictReader(io.StringIO(_file(name, "csv").read_text(encoding="utf-8")))
    rows = list(reader)
    if "method" not in (reader.fieldnames or []) or not rows:
        raise Missing(f"docs/results/{name}.csv has no column 'method', or no rows")
    known = {m["name"] for kind in ("inversions", "editors") for m in _registries()[kind]} | {FLOOR}
    for row in rows:
        if row["method"].split()[0] not in known:
            raise Missing(f"docs/results/{name}.csv measures {row['method']!r}, which the registry does not have")
        row["method"] = f"{row['method']} {row.get('options') or ''}".strip()
    return rows


def _notes(steps: float, rows: list[dict[str, str]], floors: list[dict[str, str]], *more: str) -> str:
    notes = [f"S = {steps:g}"] if steps else []
    notes += [f"{rows[0]['images']} images"] if rows and rows[0].get("images") else []
    notes += more
    notes += [f"the autoencoder alone reaches {_short(row['psnr'])} dB" for row in floors if row.get("psnr")]
    return f"\n{', '.join(notes)}.\n" if notes else ""


def what_works(name: str) -> str:
    """The table of what works on which kind of model, ``"kinds"``, or of the editors' ``"strengths"`` on each.

    Raises:
        Missing: another name.
    """
    made = {"kinds": capability_table.table, "strengths": capability_table.strengths}
    if name not in made:
        raise Missing(f"there is no table of capabilities of {name!r}; there are those of {', '.join(made)}")
    return made[name]()


def _file(name: str, ending: str) -> Any:
    return FOLDER / f"{name}.{ending}"


def _is_there(name: str, ending: str) -> bool:
    if _file(name, ending).is_file():
        return True
    if name not in EXPECTED:
        raise Missing(f"there is no docs/results/{name}.{ending}, and docs/_tools/tables.py does not expect one")
    return False


def _registries() -> dict[str, list[dict[str, Any]]]:
    from ddim.cli.tables import registries

    return registries()


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"`{k}={v:g}`" if isinstance(v, float) else f"`{k}={v}`" for k, v in value.items()) or "–"
    if isinstance(value, str):
        return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", value)
    return "–" if value is None else f"{value:.4g}"


def _number(value: str | None) -> float | None:
    try:
        return float(value or "")
    except ValueError:
        return None


def _percent(value: str) -> str:
    number = _number(value)
    return "–" if number is None else f"{100 * number:.0f} %"


def _short(value: str | None) -> str:
    """A cell of a CSV for the page: four digits of a number, or a dash if there is none."""
    number = _number(value)
    if number is None:
        return value or "–"
    return f"{number:.4g}" if math.isfinite(number) else "–"
