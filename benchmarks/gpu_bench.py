"""What the sections of benchmarks/gpu.py share: the clock, the rows of the tables, and how they are printed."""

import json
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ddim._utils.files import write_whole


def card_of(device: torch.device) -> str:
    """The device in words: the card's name, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}"


@dataclass
class Bench:
    """One run of the script.

    Attributes:
        device: where it computes.
        tiny: whether networks are tiny and figures mean nothing.
        limit: seconds of the run.
        share: the part of the time that is left which the current section may use.
        tables: name of a table -> its rows.
        notes: what was left out, or failed.
    """

    device: torch.device
    tiny: bool
    limit: float
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    until: float = 0.0

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def used(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.began

    def more(self, needed: float = 0.0) -> bool:
        """Whether the section has so many seconds left, or any."""
        return self.used + needed < min(self.until, self.limit)

    def provenance(self) -> dict[str, str]:
        """What every row is completed with."""
        return {
            "card": card_of(self.device),
            "torch": torch.__version__,
            "diffusers": metadata.version("diffusers"),
            "transformers": metadata.version("transformers"),
            "ddim": _version(),
        }

    def say(self, text: str) -> None:
        """Prints a line at once, with the seconds so far."""
        print(f"[{self.used:6.1f} s] {text}", flush=True)

    def note(self, text: str) -> None:
        """Keeps a note for the end of the tables."""
        self.notes.append(text)
        self.say(f"NOTE: {text}")

    def row(self, table: str, **cells: Any) -> None:
        """Adds a row to a table and prints it."""
        self.tables.setdefault(table, []).append(cells)
        self.say(f"{table}: " + ", ".join(f"{k} {shown(v)}" for k, v in cells.items()))

    def section(self, name: str, share: float, run: Callable[["Bench"], None]) -> None:
        """Runs a section, which may use ``share`` of the time that is left; its failure ends only itself."""
        if self.used >= self.limit:
            self.note(f"{name} was skipped: the time is used up.")
            return
        begin, self.until = self.used, self.used + share * (self.limit - self.used)
        self.say(f"--- {name}, at most {self.until - begin:.0f} s")
        try:
            run(self)
        except Exception:
            traceback.print_exc()
            sys.stderr.flush()
            self.note(f"{name} failed: {traceback.format_exc(limit=0).strip().splitlines()[-1][:300]}")
        self.say(f"--- {name} took {self.used - begin:.1f} s")

    def report(self) -> str:
        """All tables in Markdown, each row complete."""
        on = self.provenance()
        where = f"{on['card']}, torch {on['torch']}, diffusers {on['diffusers']}"
        parts: list[str] = []
        for name, rows in self.tables.items():
            heads = list(dict.fromkeys(key for row in rows for key in row))
            lines = [f"### {name}", "", f"| {' | '.join([*heads, 'on'])} |", "|" + "---|" * (len(heads) + 1)]
            lines += [f"| {' | '.join([*(shown(row.get(h)) for h in heads), where])} |" for row in rows]
            parts.append("\n".join(lines))
        notes = "\n".join(f"- {note}" for note in self.notes)
        about = ", ".join(f"{k} {v}" for k, v in on.items() if k not in ("card", "torch", "diffusers"))
        parts.append(f"{notes}\n{where}; {about}; Python {platform.python_version()}; {self.used:.0f} s".strip())
        return "\n\n".join(parts)

    def write(self, file: Path) -> None:
        """Writes all rows as JSON, each with its provenance."""
        tables = {name: [{**row, **self.provenance()} for row in rows] for name, rows in self.tables.items()}
        text = json.dumps(
            {"tables": tables, "notes": self.notes, "seconds": round(self.used, 1)}, indent=1, default=str
        )
        write_whole(file, text.encode())


def _version() -> str:
    try:
        return metadata.version("ddim")
    except metadata.PackageNotFoundError:
        return "from source"


def shown(value: Any) -> str:
    """A cell: numbers with three or four digits."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def median_ratio(times: Mapping[str, Sequence[float]], name: str, other: str) -> float:
    """How many times as fast ``name`` is as ``other``: the median of the rounds' ratios."""
    return statistics.median(b / a for a, b in zip(times[name], times[other], strict=True))
