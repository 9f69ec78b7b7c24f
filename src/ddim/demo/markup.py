"""Small pieces of HTML, and numbers as text."""

from collections.abc import Iterable
from html import escape

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def command(text: str) -> str:
    """A shell command. Lines do not break inside an option's name."""
    words = (f"<span>{escape(word)}</span>" if word.startswith("-") else escape(word) for word in text.split(" "))
    return f"<pre>{' '.join(words)}</pre>"


def image(file: str, alt: str) -> str:
    """A picture that links to itself."""
    return f'<a href="{escape(file)}"><img src="{escape(file)}" alt="{escape(alt)}" loading="lazy"></a>'


def settings(*parts: str) -> str:
    """A line of settings: pieces of HTML joined by dots. Empty pieces are left out."""
    return f'<p class="set">{" · ".join(filter(None, parts))}</p>'


def table(head: Iterable[str], rows: Iterable[Iterable[str]], kind: str) -> str:
    """A table whose cells are pieces of HTML. The first cell of each row is a heading."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = ""
    for first, *rest in rows:
        body += f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>"
    return f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def subject(name: str) -> str:
    """What a picture shows, by its file name: ``00_ankle-boot`` gives ``ankle-boot``."""
    return escape(name.partition("_")[2] or name)


def last_part(name: str) -> str:
    """The last part of a path."""
    return name.rstrip("/").rpartition("/")[2]


def db(value: float | None) -> str:
    """A PSNR in dB. None, which means no error, gives ``∞``."""
    return "∞" if value is None else f"{value:.1f}"


def small(value: float) -> str:
    """A number of two digits, such as ``0.012`` or ``1.2 × 10⁻¹⁰``."""
    if value == 0 or value >= 1e-3:
        return f"{value:.2g}"
    mantissa, _, power = f"{value:.1e}".partition("e")
    return f"{mantissa}\u00a0×\u00a010{str(int(power)).translate(_SUPERSCRIPT)}"


def duration(seconds: float | None) -> str:
    """A duration such as ``4.1 s`` or ``5 min 02 s``. None gives an empty text."""
    if seconds is None:
        return ""
    if seconds >= 90:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def whole(value: int) -> str:
    """A whole number with thin spaces between thousands, such as ``176 000``."""
    return f"{value:,}".replace(",", "\u202f")
