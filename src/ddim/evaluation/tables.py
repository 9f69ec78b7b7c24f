"""Tables on disk, written whole, and what stands under them."""

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from math import ceil, floor, isfinite, sqrt
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from .._utils.error_text import printable
from .._utils.files import write_whole


def finite_mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The mean of a column over the rows where it is finite; None where it is nowhere.

    None is what was not measured, NaN a number that cannot be had (a mean over nothing), infinity the PSNR of the same
    picture.
    """
    whole = [v for row in rows if row[name] is not None and isfinite(v := float(row[name]))]
    return sum(whole) / len(whole) if whole else None


def mean_interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """The mean and its 95 % interval by the normal approximation, mean ± 1.96 s / sqrt(n); None where there is none;
    of one value the interval is the value."""
    if not values:
        return None, None, None
    mean = fmean(values)
    if len(values) == 1:
        return mean, mean, mean
    half = 1.96 * stdev(values) / sqrt(len(values))
    return mean, mean - half, mean + half


def median_interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """The median and its 95 % interval, the order statistics at n/2 ± 0.98 sqrt(n) (Conover 1999, section 3.2), which
    asks nothing of the distribution; None where there is no value, the whole range where there are few."""
    if not values:
        return None, None, None
    several, half = sorted(values), 0.98 * sqrt(len(values))
    low, high = floor(len(values) / 2 - half), ceil(len(values) / 2 + half)
    return median(several), several[max(low - 1, 0)], several[min(high, len(several)) - 1]


def interval_text(row: Mapping[str, Any], name: str, form: str) -> str:
    """``value [low, high]`` of a row's ``name``, ``name_low`` and ``name_high``; ``–`` where there is none."""
    if row.get(name) is None:
        return "–"
    return "{} [{}, {}]".format(*(format(row[f"{name}{end}"], form) for end in ("", "_low", "_high")))


def machine() -> str:
    """Processor, threads and versions, for the line under a table."""
    import torch

    info = Path("/proc/cpuinfo")  # of Linux; elsewhere the standard library knows
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    return f"{cpu}{gpu}, {threads} thread(s), torch {torch.__version__}, Python {platform.python_version()}"


def versions() -> str:
    """What else shaped the numbers, for the line under a table: ``diffusers 0.35.1, transformers 4.56.2``."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("diffusers", "transformers"))


def markdown(rows: Sequence[Mapping[str, Any]], formats: Mapping[str, str]) -> str:
    """Rows as a table in Markdown; None is a dash.

    Args:
        rows: of one kind.
        formats: column -> how a value is written, such as ``.2f``; the columns' order.
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
    """A table as ``name.md``, ``name.csv`` and ``name.json``.

    Args:
        folder: where to.
        name: without ending.
        rows: of one kind.
        formats: column -> how a number is written in Markdown, such as ``.2f``; the columns' order.
        about: command, machine, versions: under the table, and in the JSON.
        page: the Markdown above that, where it is laid out otherwise than ``markdown(rows, formats)``.
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
