"""Results on disk: rows appended as they are measured, tables written whole."""

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from ..code import write_whole
from ..errors import InputError


class Rows:
    """A CSV file that grows by whole lines; what a killed run had begun to write is cut off.

    Args:
        path: the file; made with the first rows.
        columns: what a row holds, in this order.

    Raises:
        InputError: the file has other columns.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, list(columns)
        self.rows: list[dict[str, str]] = []
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                write_whole(path, whole.encode())
            reader = csv.DictReader(io.StringIO(whole))
            if list(reader.fieldnames or []) != self.columns:
                raise InputError(f"{path} holds other columns than this run measures; choose another folder.")
            self.rows = list(reader)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows, all in one write."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        if not self.path.is_file():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            writer.writeheader()
        writer.writerows(rows)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text.getvalue())
        self.rows += [{k: str(row[k]) for k in self.columns} for row in rows]


def finite_mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The mean of a column over the rows where it is finite; None where it is nowhere.

    NaN is a number that cannot be had (a mean over nothing), infinity the PSNR of the same picture.
    """
    whole = [v for row in rows if isfinite(v := float(row[name]))]
    return sum(whole) / len(whole) if whole else None


def machine() -> str:
    """Processor, threads and versions, for the line under a table."""
    import torch

    info = Path("/proc/cpuinfo")  # of Linux; elsewhere the standard library knows
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    return f"{cpu}{gpu}, {threads} thread(s), torch {torch.__version__}, Python {platform.python_version()}"


def write_table(
    folder: Path, name: str, rows: Sequence[Mapping[str, Any]], formats: Mapping[str, str], about: Mapping[str, Any]
) -> list[Path]:
    """A table as ``name.md``, ``name.csv`` and ``name.json``.

    Args:
        folder: where to.
        name: without ending.
        rows: of one kind.
        formats: column -> how a number is written in Markdown, such as ``.2f``; the columns' order.
        about: command, machine, versions: under the table, and in the JSON.
    """
    columns = list(formats)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = ["–" if row[c] is None else format(row[c], formats[c]) for c in columns]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"{key}: {value}  " for key, value in about.items())]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    contents = {
        "md": "\n".join(lines) + "\n",
        "csv": text.getvalue(),
        "json": json.dumps({"about": about, "rows": rows}, indent=2, default=str),
    }
    return [write_whole(folder / f"{name}.{ending}", content.encode()) for ending, content in contents.items()]
