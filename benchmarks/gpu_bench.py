"""What the sections of benchmarks/gpu.py share: the clock, the rows of the tables, and how they are printed."""

import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ddim._utils.files import write_whole

GRACE = 30.0
"""Seconds after which a section that does not end when it should is killed."""


def card_of(device: torch.device) -> str:
    """The device in words: the card's name, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}"


def provenance(device: torch.device) -> dict[str, str]:
    """Card and versions, with which every row is completed."""
    versions = {name: metadata.version(name) for name in ("diffusers", "transformers")}
    return {"card": card_of(device), "torch": torch.__version__, **versions, "ddim": _version()}


@dataclass
class Bench:
    """One run of the script.

    A section runs in a process of its own, which is forked before CUDA is touched: what it breaks, fills or hangs ends
    with it. It appends its rows and notes to a file, so that they outlive it.

    Attributes:
        device: where it computes.
        tiny: whether networks are tiny and figures mean nothing.
        limit: seconds of the run.
        tables: name of a table -> its rows.
        notes: what was left out, or failed.
        on: card and versions, which complete every row.
        until: when the current section should end, in seconds since the run began.
        log: the file of the current section.
        forked: whether sections have processes of their own.
    """

    device: torch.device
    tiny: bool
    limit: float
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    on: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    until: float = 0.0
    log: Path | None = None
    forked: bool = True

    def __post_init__(self) -> None:
        if self.cuda and self._wait(self._fork(self._touch), 60) != 0:
            self.forked = False
            self.note("a forked process cannot use the GPU here: all sections share one process.")

    def _touch(self) -> int:
        """Whether a forked process can compute on the device: 0 if it can."""
        try:
            return int(float(torch.ones(1, device=self.device) + 1) != 2)
        except Exception:
            traceback.print_exc()
            return 1

    @staticmethod
    def _fork(run: Callable[[], int]) -> int:
        """The number of a process that makes a run and ends with what it returns."""
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            return pid
        os.setsid()
        code = run()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    @property
    def command(self) -> str:
        """The command line of this run."""
        return " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]])

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

    def say(self, text: str) -> None:
        """Prints a line at once, with the seconds so far."""
        print(f"[{self.used:6.1f} s] {text}", flush=True)

    def note(self, text: str) -> None:
        """Keeps a note for the end of the tables."""
        self._keep({"note": text})
        self.say(f"NOTE: {text}")

    def row(self, table: str, **cells: Any) -> None:
        """Adds a row to a table and prints it."""
        self._keep({"table": table, "cells": cells})
        self.say(f"{table}: " + ", ".join(f"{k} {shown(v)}" for k, v in cells.items()))

    def _keep(self, entry: Mapping[str, Any]) -> None:
        """Takes an entry over, or in a section writes it to its file, from which the run takes it over."""
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(json.dumps(entry, default=str) + "\n")
        elif "note" in entry:
            self.notes.append(entry["note"])
        elif "on" in entry:
            self.on = entry["on"]
        else:
            self.tables.setdefault(entry["table"], []).append(entry["cells"])

    def section(self, name: str, share: float, run: Callable[["Bench"], None]) -> None:
        """Runs a section, which should use ``share`` of the time that is left, and is killed long after that."""
        if self.used >= self.limit:
            self.note(f"{name} was skipped: the time is used up.")
            return
        begin, self.until = self.used, self.used + share * (self.limit - self.used)
        self.say(f"--- {name}, at most {self.until - begin:.0f} s")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.jsonl"
            file.touch()
            if self.forked:
                pid = self._fork(lambda: self._in_section(name, run, file))
                status = self._wait(pid, min(self.until, self.limit) + GRACE)
            else:
                status, self.log = self._in_section(name, run, file), None
            for line in file.read_text().splitlines():
                self._keep(json.loads(line))
        if status is None:
            self.note(f"{name} was ended after {self.used - begin:.0f} s.")
        elif status:
            self.note(f"{name} failed: its process ended with {status}.")
        self.say(f"--- {name} took {self.used - begin:.1f} s")

    def _in_section(self, name: str, run: Callable[["Bench"], None], file: Path) -> int:
        """Runs a section, whose rows go to a file, and returns what its process ends with."""
        self.log = file
        try:
            self._keep({"on": provenance(self.device)})
            run(self)
        except BaseException:
            traceback.print_exc()
            self.note(f"{name} failed: {traceback.format_exc(limit=0).strip().splitlines()[-1][:300]}")
        return 0

    def _wait(self, pid: int, until: float) -> int | None:
        """What a process ended with; None if it had to be killed, with all that it has started."""
        while self.used < until:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return None

    def report(self) -> str:
        """All tables in Markdown, each row complete."""
        on = self.on or {"card": str(self.device)}
        where = ", ".join([on["card"], *(f"{name} {on[name]}" for name in ("torch", "diffusers") if name in on)])
        parts: list[str] = []
        for name, rows in self.tables.items():
            heads = list(dict.fromkeys(key for row in rows for key in row))
            lines = [f"### {name}", "", f"| {' | '.join([*heads, 'on'])} |", "|" + "---|" * (len(heads) + 1)]
            lines += [f"| {' | '.join([*(shown(row.get(h)) for h in heads), where])} |" for row in rows]
            parts.append("\n".join(lines))
        notes = "\n".join([f"command: {self.command}", *(f"- {note}" for note in self.notes)])
        about = ", ".join(f"{k} {v}" for k, v in on.items() if k not in ("card", "torch", "diffusers"))
        parts.append(f"{notes}\n{where}; {about}; Python {platform.python_version()}; {self.used:.0f} s".strip())
        return "\n\n".join(parts)

    def write(self, file: Path) -> None:
        """Writes all rows as JSON, each with its provenance, and the tables beside it in Markdown."""
        tables = {name: [{**row, **self.on} for row in rows] for name, rows in self.tables.items()}
        text = json.dumps(
            {"tables": tables, "notes": self.notes, "seconds": round(self.used, 1)}, indent=1, default=str
        )
        write_whole(file, text.encode())
        write_whole(file.with_suffix(".md"), f"{self.report()}\n".encode())


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
