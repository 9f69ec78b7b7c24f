"""Tables as files, and the provenance that is printed under them."""

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .._utils.error_text import printable
from .._utils.files import write_whole


def interval_text(row: Mapping[str, Any], name: str, form: str) -> str:
    """A value with its interval, as ``value [low, high]``; ``–`` if there is none."""
    if row.get(name) is None:
        return "–"
    return "{} [{}, {}]".format(*(format(row[f"{name}{end}"], form) for end in ("", "_low", "_high")))


def machine() -> str:
    """The processor, the GPU, the threads, and the versions of torch and Python, in one line."""
    import torch

    from ..models.engine.threads import thread_limit

    info = Path("/proc/cpuinfo")  # exists on Linux only
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = thread_limit()
    return f"{cpu}{gpu}, {threads} thread(s), torch {torch.__version__}, Python {platform.python_version()}"


def versions() -> str:
    """The versions of the other libraries that shape the numbers: ``diffusers 0.35.1, transformers 4.56.2``."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("diffusers", "transformers"))


def markdown(rows: Sequence[Mapping[str, Any]], formats: Mapping[str, str]) -> str:
    """Rows as a Markdown table; None is shown as a dash.

    Args:
        rows: the lines of the table.
        formats: column to format, such as ``.2f``, in the columns' order.
    """
    lines = ["| " + " | ".join(formats) + " |", "|" + "---|" * len(formats)]
    for row in rows:
        cells = ["–" if row[c] is None else format(row[c], formats[c]) for c in formats]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_table(
    folder: Path,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    formats: Mapping[str, str],
    about: Mapping[str, Any],
    page: str | None = None,
) -> list[Path]:
    """Writes a table as ``name.md``, ``name.csv`` and ``name.json``, and returns the three files.

    Args:
        folder: the folder to write to.
        name: the files' name without suffix.
        rows: the lines of the table.
        formats: column to format in Markdown, such as ``.2f``, in the columns' order.
        about: the provenance, which is written under the table and into the JSON.
        page: the table in Markdown, if it is not ``markdown(rows, formats)``.
    """
    lines = [
        markdown(rows, formats) if page is None else page.rstrip(),
        "",
        *(f"{key}: {value}  " for key, value in about.items()),
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(formats), lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    contents = {
        "md": "\n".join(lines) + "\n",
        "csv": text.getvalue(),
        "json": json.dumps({"about": about, "rows": rows}, indent=2, default=str),
    }
    return [
        write_whole(folder / f"{name}.{ending}", printable(content).encode()) for ending, content in contents.items()
    ]
