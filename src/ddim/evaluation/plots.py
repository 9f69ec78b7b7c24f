"""The plot beside a table: lines with intervals, drawn by matplotlib if it is installed."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .._utils.files import write_whole
from .columns import Row

COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#4a5568", "#b7791f", "#319795", "#9b2c2c", "#1a202c")
MARKS = "osD^vPX*<>"


class Point(NamedTuple):
    """A value y at x, with its interval if it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


def spaced_ticks(values: Iterable[float]) -> list[float]:
    """The positive values whose labels do not overlap on a logarithmic axis, beginning with the smallest."""
    at, out = sorted(value for value in values if value > 0), list[float]()
    for value in at:
        if not out or value >= out[-1] * (at[-1] / at[0]) ** 0.06:
            out.append(value)
    return out


@dataclass(frozen=True)
class Plot:
    """What a plot shows.

    Attributes:
        lines: a line's name to its points, in the order in which they are joined.
        x, y: the labels of the axes, with units.
        title: the text above the plot.
        log_x, log_y: whether the axes are logarithmic.
    """

    lines: Mapping[str, Sequence[Point]]
    x: str
    y: str
    title: str = ""
    log_x: bool = True
    log_y: bool = False


def by_line(rows: Sequence[Row], name: str, x: str, y: str) -> dict[str, list[Point]]:
    """The rows of a table as lines: one for each value of ``name``, with a point for each row that has a value."""
    out: dict[str, list[Point]] = {}
    for row in rows:
        if row[y] is not None:
            out.setdefault(str(row[name]), []).append(Point(row[x], row[y], row.get(f"{y}_low"), row.get(f"{y}_high")))
    return out


def draw(plot: Plot, file: Path) -> Path | None:
    """Draws a plot into a PNG file, each line in its own mark and colour, with the legend beside them.

    Lines without points are left out.

    Returns:
        The file, or None if matplotlib is not installed or there is nothing to draw.
    """
    drawn = {name: [p for p in points if p.y == p.y] for name, points in plot.lines.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
    except ImportError:
        return None
    if not drawn:
        return None
    figure = Figure(figsize=(6.4, 3.6), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for k, (name, points) in enumerate(drawn.items()):
        colour, mark = COLOURS[k % len(COLOURS)], MARKS[k // len(COLOURS) % len(MARKS)]
        axes.plot([p.x for p in points], [p.y for p in points], mark + "-", color=colour, label=name, lw=1.2, ms=3.5)
        for p in points:
            if p.low is not None and p.high is not None:
                axes.plot([p.x, p.x], [p.low, p.high], color=colour, lw=2.4, alpha=0.35, solid_capstyle="butt")
    if plot.log_x:
        axes.set_xscale("log")
        axes.set_xticks(spaced_ticks({p.x for points in drawn.values() for p in points}))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if plot.log_y:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high / low < 1e3:  # an axis with less than three powers of ten gets plain numbers
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(plot.x, fontsize=8)
    axes.set_ylabel(plot.y, fontsize=8)
    axes.set_title(plot.title, fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    out = io.BytesIO()
    figure.savefig(out, bbox_inches="tight")
    return write_whole(file, out.getvalue())
