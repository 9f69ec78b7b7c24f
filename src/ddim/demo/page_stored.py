"""The stored tables as pieces of the page, each with the command that measured it."""

from collections.abc import Mapping
from html import escape
from typing import Any

from .markup import command, db, settings, table
from .plot import psnr_plot
from .stored import Stored, stored

Results = Mapping[str, Any]
Line = tuple[str, bool, Mapping[int, float | None]]

_EDIT_GUIDANCE, _EDIT_STEPS = 7.5, 20
_NOISES = (("ddim", 0.0), ("ddim", 0.2), ("ddim", 0.5), ("ddim", 1.0), ("ddpm", None))
"""Solver and eta of each row of Table 1, in the order of the page's columns."""


def leaderboard(results: Results) -> str:
    """Every inversion under guidance: its round trip, and its edits with a known answer."""
    found = stored("leaderboard-emoji", results["editor"])
    if found is None:
        return ""
    rows = [row for row in found.rows if (row["guidance"], row["steps"]) == (_EDIT_GUIDANCE, _EDIT_STEPS)]
    rows = [row for row in rows if not row["failed"] and row["top1"] is not None and row["nfe"] is not None]
    if not rows:
        return ""
    cells = [
        [
            escape(row["method"]),
            db(row["psnr"]),
            f"{row['nfe']:.0f}",
            f"{row['seconds']:.1f}",
            f"{100 * row['top1']:.0f}\u202f%",
        ]
        for row in sorted(rows, key=lambda row: (-row["top1"], -row["psnr"]))
    ]
    floor = next((row["psnr"] for row in found.rows if row["method"] == "autoencoder"), None)
    best = f" The autoencoder alone gives {db(floor)} dB." if floor else ""
    return _part(
        "Every inversion under guidance",
        f"Guidance {_EDIT_GUIDANCE:g} and S = {_EDIT_STEPS}: the round trip, and how many of "
        f"{rows[0]['edits']} edits come nearest to the real drawing of their prompt, among hundreds. A good method "
        f"reaches both.{best}",
        _wide(table(["method", "PSNR in dB", "calls per picture", "seconds", "edits right"], cells, "numbers-table")),
        found,
    )


def distances(results: Results) -> str:
    """Table 1 of the paper for the page's model."""
    found = stored("table1-fashion", results["model"])
    if found is None:
        return ""
    by = {(row["solver"], row["eta"], row["steps"]): row["distance"] for row in found.rows}
    steps = sorted({row["steps"] for row in found.rows if row["solver"] == "ddpm"})
    head = ["Fréchet distance", *("σ̂" if eta is None else f"η = {eta:g}" for _, eta in _NOISES)]
    rows = [[f"S = {s}", *(f"{by[solver, eta, s]:.1f}" for solver, eta in _NOISES)] for s in steps]
    return _part(
        "The same table, measured",
        "The Fréchet distance between 1000 samples and 10\u202f000 real pictures, in the features of a classifier. "
        "Smaller is better.",
        _wide(table(head, rows, "numbers-table")),
        found,
    )


def round_trip_lines(results: Results) -> tuple[list[Line], list[Stored]]:
    """PSNR against S, a line for each method on the page as far as it was measured, and the tables."""
    tables = [found for name in ("table2-fashion", "table2-exact-fashion") if (found := stored(name, results["model"]))]
    points: dict[str, dict[int, float | None]] = {}
    for row in (row for found in tables for row in found.rows):
        points.setdefault(row["method"], {})[row["steps"]] = row["psnr"]
    shown = set.intersection(*map(set, points.values())) if points else set[int]()
    lines: list[Line] = []
    for one in results["inversion"]["methods"]:
        name = " ".join([one["name"], *(f"{key}={value}" for key, value in one["given"].items())])
        if name not in points:
            return [], []
        lines.append((one["label"], one["exact"], {s: points[name][s] for s in sorted(shown)}))
    return lines, tables


def round_trip_curve(results: Results) -> str:
    """The plot of PSNR against S from stored tables."""
    lines, tables = round_trip_lines(results)
    if not lines:
        return ""
    counts = " and ".join(f"{found.about['images']}" for found in tables)
    return psnr_part(lines, f"MSE over {counts} pictures: a line for each command") + "".join(
        command(found.about["command"]) for found in tables
    )


def psnr_part(lines: list[Line], note: str) -> str:
    """A plot of PSNR against S, and its numbers in a table."""
    grid = sorted(lines[0][2])
    rows = [
        [f'<span class="dot s{k}"></span>{escape(label)}', *(db(points[s]) for s in grid)]
        for k, (label, _, points) in enumerate(lines)
    ]
    numbers = table(["PSNR in dB", *(f"S = {s}" for s in grid)], rows, "numbers-table")
    plot = psnr_plot(
        lines, f"PSNR of the reconstructions at S = {', '.join(map(str, grid))}, with one line for each method"
    )
    about = settings("PSNR = −10 log<sub>10</sub> MSE", note)
    return f'<div class="curve"><div>{plot}</div><div>{numbers}{about}</div></div>'


def same_noise(results: Results) -> str:
    """How near samples with few steps come to those of the longest S."""
    found = stored("consistency-fashion", results["model"])
    if found is None:
        return ""
    rows = [row for row in found.rows if row["eta"] == 0 and row["steps"]]
    other = next((row for row in found.rows if row["eta"] == 0 and not row["steps"]), None)
    cells = [[f"S = {row['steps']}", db(row["psnr"]), f"{row['ssim']:.2f}"] for row in rows]
    cells += [["another x<sub>T</sub>", db(other["psnr"]), f"{other['ssim']:.2f}"]] if other else []
    return _part(
        "How near they come to S = 1000",
        f"The mean over {rows[0]['images']} noise images, against the picture of the same noise with 1000 steps.",
        _wide(table(["compared with S = 1000", "PSNR in dB", "SSIM"], cells, "numbers-table")),
        found,
    )


def _part(title: str, lead: str, body: str, found: Stored) -> str:
    about = settings("stored results, not measured by this page", escape(found.about["machine"]))
    return f'<h3 class="later">{title}</h3><p>{lead}</p>{body}{about}{command(found.about["command"])}'


def _wide(body: str) -> str:
    return f'<div class="wide short">{body}</div>'
