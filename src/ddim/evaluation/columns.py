"""Columns of a benchmark, each declared once: what a row stores, how rows become a value of the table, its format."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, sqrt
from statistics import fmean, median, stdev
from typing import Any

Row = Mapping[str, Any]
Item = dict[str, Any]
"""The values of a row's keys: what is to be measured."""
Value = Callable[[Sequence[Row], str], Any]
"""Rows and the name of a column to one value of the table."""
Interval = tuple[float | None, float | None, float | None]
"""A value with the ends of its 95 % interval; all None if there is no value."""


def finite(rows: Sequence[Row], name: str) -> list[float]:
    """The finite values of a column.

    None means that nothing was measured, NaN that a value does not exist (a mean over nothing), and infinity is the
    PSNR of equal images.
    """
    return [value for row in rows if row[name] is not None and isfinite(value := float(row[name]))]


def mean(rows: Sequence[Row], name: str) -> float | None:
    """The mean of the finite values; None if there is none."""
    values = finite(rows, name)
    return sum(values) / len(values) if values else None


def least(rows: Sequence[Row], name: str) -> float | None:
    """The smallest finite value; None if there is none."""
    return min(finite(rows, name), default=None)


def largest(rows: Sequence[Row], name: str) -> float | None:
    """The largest value; None if there is none."""
    return max((row[name] for row in rows if row[name] is not None), default=None)


def first(rows: Sequence[Row], name: str) -> Any:
    """The first row's value, for columns that are equal in all rows; None if there are no rows."""
    return rows[0][name] if rows else None


def count(rows: Sequence[Row], name: str) -> int:
    """The number of rows."""
    return len(rows)


def succeeded(rows: Sequence[Row], name: str) -> int:
    """The number of rows that did not fail."""
    return len(rows) - failures(rows, name)


def failures(rows: Sequence[Row], name: str) -> int:
    """The number of rows that failed."""
    return sum(bool(row["failed"]) for row in rows)


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean and its 95 % interval by the normal approximation, mean ± 1.96 s / sqrt(n).

    The interval of a single value is the value.
    """
    if not values:
        return None, None, None
    middle = fmean(values)
    if len(values) == 1:
        return middle, middle, middle
    half = 1.96 * stdev(values) / sqrt(len(values))
    return middle, middle - half, middle + half


def share_interval(right: int, count: int, z: float = 1.959964) -> Interval:
    """A share and its 95 % interval (Wilson 1927).

    Args:
        right, count: how many of how many were right.
        z: the quantile of the normal distribution.
    """
    if not count:
        return None, None, None
    share = right / count
    middle, scale = share + z**2 / (2 * count), 1 + z**2 / count
    half = z * sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return share, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def median_interval(values: Sequence[float]) -> Interval:
    """The median and its 95 % interval: the order statistics at n/2 ± 0.98 sqrt(n) (Conover 1999, section 3.2).

    It makes no assumption about the distribution. With few values it is their whole range.
    """
    if not values:
        return None, None, None
    ordered, half = sorted(values), 0.98 * sqrt(len(values))
    low, high = floor(len(values) / 2 - half), ceil(len(values) / 2 + half)
    return median(ordered), ordered[max(low - 1, 0)], ordered[min(high, len(ordered)) - 1]


@dataclass(frozen=True)
class Column:
    """A column of the rows, of the table, or of both. The functions below make the usual ones.

    Attributes:
        name: its name in the rows.
        kind: the type of a row's value, one of ``rows.KINDS``; None for a column of the table only.
        key: whether it is a part of an item's identity.
        form: the format of a value in the table, such as ``.2f``; None for a column of the rows only.
        value: computes the table's value from a setting's rows.
        title: its name in the table, if it is not ``name``.
    """

    name: str
    kind: str | None = None
    key: bool = False
    form: str | None = None
    value: Value = mean
    title: str = ""

    @property
    def heading(self) -> str:
        """Its name in the table."""
        return self.title or self.name


def keys(*names: str, kind: str = "string") -> tuple[Column, ...]:
    """Keys that the table does not show."""
    return tuple(Column(name, kind, key=True) for name in names)


def key(name: str, kind: str = "string", form: str = "", value: Value = first, title: str = "") -> Column:
    """A key that the table shows; by default the value that all rows of a setting share."""
    return Column(name, kind, True, form, value, title)


def measured(name: str, form: str | None = None, kind: str = "float64", value: Value = mean, title: str = "") -> Column:
    """A measured value; the table shows the mean of the finite ones if there is a format."""
    return Column(name, kind, False, form, value, title)


def derived(name: str, form: str, value: Value) -> Column:
    """A column of the table only."""
    return Column(name, None, False, form, value)


def with_interval(
    column: Column, interval: Callable[[Sequence[float]], Interval] = mean_interval
) -> tuple[Column, ...]:
    """A measured column whose value in the table has an interval, with the columns ``_low`` and ``_high``."""

    def end(k: int) -> Value:
        return lambda rows, _: interval(finite(rows, column.name))[k]

    assert column.form is not None
    middle = Column(column.name, column.kind, False, column.form, end(0), column.title)
    ends = (derived(f"{column.name}{suffix}", column.form, end(k)) for k, suffix in ((1, "_low"), (2, "_high")))
    return middle, *ends


def filled_in(name: str, form: str) -> Column:
    """A column of the table that the benchmark's own ``summary`` fills in."""
    return derived(name, form, lambda rows, _: None)


FAILED = measured("failed", "d", "string", failures)
"""The reason why an item failed, empty otherwise; the table counts the failures. A benchmark with this column goes on
after a failure, one without it stops."""


def summarise(columns: Sequence[Column], rows: Sequence[Row]) -> dict[str, Any]:
    """One line of the table: every column with a format, computed from rows of one setting."""
    return {column.heading: column.value(rows, column.name) for column in columns if column.form is not None}


def formats(columns: Sequence[Column]) -> dict[str, str]:
    """The table's columns in order: heading to format."""
    return {column.heading: column.form for column in columns if column.form is not None}
