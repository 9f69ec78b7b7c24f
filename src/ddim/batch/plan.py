"""The plan of a run: its settings, and the batches into which its items are cut before any work."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from .._utils.errors import InputError, is_dict, is_whole
from ..inversion.code_file import checksum

FORMAT, VERSION = "ddim.batch", 1


@dataclass(frozen=True)
class Plan:
    """The settings of a run and its batches, which are numbered from 0 in the order of the data.

    A batch is computed as a whole or not at all, in network calls of ``size`` rows. What a batch contains does not
    depend on what an earlier run has done, so that its result has the same bits whenever it is computed.

    Attributes:
        count: the number of items.
        size: the number of items in a batch; the last one may have fewer, and is filled up with copies.
        settings: everything that decides the result, as plain values of JSON.
    """

    count: int
    size: int
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def batches(self) -> int:
        """The number of batches."""
        return -(-self.count // self.size)

    def indices(self, number: int) -> range:
        """Returns the indices of the items in a batch."""
        return range(number * self.size, min((number + 1) * self.size, self.count))

    @property
    def identity(self) -> str:
        """A hash of everything in the plan."""
        return hashlib.sha256(self.text().encode()).hexdigest()[:16]

    def text(self) -> str:
        """Returns the plan as JSON.

        Raises:
            InputError: a setting is of a type that has no plain form.
        """
        about = {"format": FORMAT, "version": VERSION, "items": self.count, "batch": self.size}
        return json.dumps({**about, "settings": dict(self.settings)}, indent=2, sort_keys=True, default=_plain) + "\n"

    @staticmethod
    def read(content: Mapping[str, Any], name: str) -> "Plan":
        """Returns the plan that ``text`` wrote.

        Args:
            content: the JSON object.
            name: what an error calls it.

        Raises:
            InputError: it is no plan.
        """
        count, size, settings = (content.get(key) for key in ("items", "batch", "settings"))
        known = content.get("format") == FORMAT and content.get("version") == VERSION
        if not (known and is_whole(count) and is_whole(size) and count > 0 and size > 0 and is_dict(settings)):  # type: ignore[operator]
            raise InputError(f"{name} is not the plan of a run of ddim batch that this version reads.", parameter="out")
        return Plan(count, size, settings)  # type: ignore[arg-type]

    def check_same(self, earlier: "Plan", folder: object) -> None:
        """Checks whether a run of this plan may go on in the output of another.

        Args:
            earlier: the plan of the output.
            folder: the output, for the error message.

        Raises:
            InputError: they differ; the sentence names the first setting that does.
        """
        had = {**earlier.settings, "batch": earlier.size}
        now = {**json.loads(self.text())["settings"], "batch": self.size}
        for name in dict.fromkeys([*had, *now]):
            if had.get(name) != now.get(name):
                raise InputError(
                    f"{folder} was begun with {_shown(had.get(name))}, not with {_shown(now.get(name))}; go on with "
                    "the same options, or choose another output.",
                    parameter=name,
                )


def filled(size: int, good: Collection[int]) -> list[int]:
    """Returns which place of a batch each row of its network call has the content of.

    Args:
        size: the number of rows.
        good: the places that have content of their own, at least one. They stay where they are; the rows of broken
            items, and those after the last item, have copies of the first good one.
    """
    first = min(good)
    return [place if place in good else first for place in range(size)]


def first_difference(
    had: Iterator[tuple[str, str]], now: Iterator[tuple[str, str]]
) -> tuple[str | None, str | None] | None:
    """Compares two lists of (key, stamp), and returns the keys of the first pair that differs.

    Returns:
        The two keys, of which one is None where that list has ended; None if the lists are equal.
    """
    while True:
        one, other = next(had, None), next(now, None)
        if one != other:
            return one and one[0], other and other[0]
        if one is None:
            return None


def _plain(value: Any) -> Any:
    """Returns a setting in a form that JSON has, and that is the same for equal settings only.

    Raises:
        InputError: there is none.
    """
    if isinstance(value, (Path, torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, torch.Tensor):
        return checksum({}, {"tensor": value})
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **{one.name: getattr(value, one.name) for one in fields(value)}}
    raise InputError(
        f"a {type(value).__name__} cannot be written into the plan; give a function of the model, and say in settings "
        "what it depends on.",
        parameter="arguments",
    )


def _shown(value: object) -> str:
    text = json.dumps(value, default=_plain, ensure_ascii=False)
    return "none" if value is None else text if len(text) <= 60 else f"{text[:57]}..."
