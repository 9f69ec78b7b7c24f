"""Small pieces of HTML, and numbers as people read them."""

from collections.abc import Iterable
from html import escape

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def command(text: str) -> str:
    """A line to type."""
    return f"<pre>{escape(text)}</pre>"


def image(file: str, alt: str) -> str:
    """A picture that links to itself."""
    return f'<a href="{escape(file)}"><img src="{escape(file)}" alt="{escape(alt)}" loading="lazy"></a>'


def settings(*parts: str) -> str:
    """Ready HTML, joined by dots; empty parts are left out."""
    return f'<p class="set">{" · ".join(filter(None, parts))}</p>'


def table(head: Iterable[str], rows: Iterable[Iterable[str]], kind: str) -> str:
    """A table of ready HTML whose first column is a head too."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = ""
    for first, *rest in rows:
        body += f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"
    return f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def subject(name: str) -> str:
    """``ankle-boot`` of ``00_ankle-boot``."""
    return escape(name.partition("_")[2] or name)


def last_part(name: str) -> str:
    """A folder's own name."""
    return name.rstrip("/").rpartition("/")[2]


def db(value: float | None) -> str:
    """PSNR; None is no error at all."""
    return "∞" if value is None else f"{value:.1f}"


def small(value: float) -> str:
    """0.0123 as it is; 1.2e-10 as 1.2 × 10⁻¹⁰."""
    if value == 0 or value >= 1e-3:
        return f"{value:.2g}"
    mantissa, _, power = f"{value:.1e}".partition("e")
    return f"{mantissa}\u00a0×\u00a010{str(int(power)).translate(_SUPERSCRIPT)}"


def duration(seconds: float | None) -> str:
    """``4.1 s`` or ``5 min 02 s``; empty for what took none."""
    if seconds is None:
        return ""
    if seconds >= 90:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def whole(value: int) -> str:
    """176 000 with a thin space."""
    return f"{value:,}".replace(",", "\u202f")
