"""The plot beside a table: lines with intervals, drawn by matplotlib where it is installed."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .._utils.files import write_whole

COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#4a5568", "#b7791f", "#319795", "#9b2c2c", "#1a202c")
MARKS = "osD^vPX*<>"


class Point(NamedTuple):
    """A value at x, and its interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


def readable(values: Iterable[float]) -> list[float]:
    """Of the positive values those whose labels fit under a logarithmic axis, from the least on."""
    at, out = sorted(value for value in values if value > 0), list[float]()
    for value in at:
        if not out or value >= out[-1] * (at[-1] / at[0]) ** 0.06:
            out.append(value)
    return out


def line_plot(
    file: Path,
    series: Mapping[str, Sequence[Point]],
    x: str,
    y: str,
    *,
    log_x: bool = True,
    log_y: bool = False,
    title: str = "",
) -> Path | None:
    """Draws lines into a PNG, each with its mark and colour, and the legend beside them.

    Args:
        file: where to, written whole.
        series: a line's name -> its points, in the order they are joined; lines without points are left out.
        x, y: what the axes show, with the unit.
        log_x, log_y: logarithmic axes.
        title: above the plot.

    Returns:
        The file, or None where matplotlib is not installed or there is nothing to draw.
    """
    drawn = {name: [p for p in points if p.y == p.y] for name, points in series.items()}
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
    if log_x:
        axes.set_xscale("log")
        axes.set_xticks(readable({p.x for points in drawn.values() for p in points}))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if log_y:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high / low < 1e3:  # plain numbers, where powers of ten would be few
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    out = io.BytesIO()
    figure.savefig(out, bbox_inches="tight")
    return write_whole(file, out.getvalue())
