"""PSNR against S as an inline SVG, with S on a logarithmic axis and one named line for each method."""

from collections.abc import Mapping, Sequence
from html import escape
from math import log

WIDTH, HEIGHT = 560, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 112, 44, 52
"""The width of the margins."""
ROUNDING = 58.9
"""The PSNR in dB of a picture that is rounded to 8 bits: 10 log10(12 * 255^2)."""
NAME_GAP = 20
"""The least distance between the names of two lines."""


def psnr_plot(lines: Sequence[tuple[str, bool, Mapping[int, float | None]]], title: str) -> str:
    """The plot as an ``<svg>`` element.

    Args:
        lines: for each method its label, whether it is exact (the line is solid, otherwise dashed), and its PSNR by S.
            A PSNR of None, which means no error, is drawn at the top.
        title: for screen readers.
    """
    values = [v for _, _, points in lines for v in points.values() if v is not None]
    steps = sorted({s for _, _, points in lines for s in points})
    top = max(20 * -(-int(max([*values, ROUNDING]) + 5) // 20), 80)

    def x(s: int) -> float:
        span = log(steps[-1] / steps[0]) or 1.0
        return LEFT + 18 + (WIDTH - LEFT - RIGHT - 36) * log(s / steps[0]) / span

    def y(db: float | None) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * max(0.0, top if db is None else db) / top

    parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>']
    for db in range(0, top + 1, 20):
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(db):.1f}" y2="{y(db):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 10}" y="{y(db) + 4:.1f}" text-anchor="end">{db}</text>')
    for s in steps:
        parts.append(f'<text class="tick" x="{x(s):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{s}</text>')
    parts.append(
        f'<line class="bound" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(ROUNDING):.1f}" y2="{y(ROUNDING):.1f}"/>'
        f'<text class="tick" x="{LEFT + 6}" y="{y(ROUNDING) - 6:.1f}">rounding to 8 bits: {ROUNDING} dB</text>'
        f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">steps S</text>'
        f'<text class="tick" x="{LEFT - 42}" y="16">PSNR in dB</text>'
    )
    ends = _apart([y(points[max(points)]) for _, _, points in lines], NAME_GAP, TOP + 6, HEIGHT - BOTTOM)
    for k, (label, exact, points) in enumerate(lines):
        at = [(x(s), y(points[s])) for s in sorted(points)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
        parts.append(f'<g class="s{k}"><polyline class="{"exact" if exact else "near"}" points="{path}"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.6"/>' for a, b in at]
        a, b = at[-1]
        parts.append(
            f'<line class="lead" x1="{a + 5:.1f}" y1="{b:.1f}" x2="{a + 22:.1f}" y2="{ends[k]:.1f}"/>'
            f'<text class="name" x="{a + 27:.1f}" y="{ends[k] + 4:.1f}">{escape(label)}</text></g>'
        )
    return "".join([*parts, "</svg>"])


def _apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves places apart so that no two are closer than ``gap``, in the same order and between low and high."""
    order = sorted(range(len(places)), key=lambda k: places[k])
    out = list(places)
    floor = low
    for k in order:
        out[k] = floor = max(places[k], floor)
        floor += gap
    ceiling = high
    for k in reversed(order):
        out[k] = ceiling = min(out[k], ceiling)
        ceiling -= gap
    return out
