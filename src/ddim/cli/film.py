"""The options and files of a film: an edit at several strengths, one frame each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options as o
from .files import PNG, phrase
from .groups import option

if TYPE_CHECKING:
    from torch import Tensor

FRAME, ENDS = 150, 900
"""How long a frame is shown, in milliseconds, and how long the first and the last one are."""


@dataclass(frozen=True)
class Dial(o.Strength):
    """How far from the image an edit may go, or a film over strengths."""

    sweep: int | None = option(
        None,
        "--sweep",
        "Make a film of this many edits, at strengths from 0 to --strength (by default the usual one of an editor, or "
        "1): a row for each --to, and an animated PNG.",
        o.SAMPLING,
        argument=None,
        tag="sweep",
        metavar="FRAMES",
    )

    @property
    def arguments(self) -> dict[str, Any]:
        """The strength, or the list of a film's.

        Raises:
            InputError: there are fewer than two frames, or nothing to sweep over.
        """
        return self.up_to(None)

    def up_to(self, usual: float | None) -> dict[str, Any]:
        """The same, where a film without a strength ends at the usual one of an editor."""
        if self.sweep is None:
            return super().arguments
        from ..editing.strength import even_strengths

        return {"strength": even_strengths(self.sweep, usual if self.strength is None else self.strength)}


class Film:
    """The frames of N images with K targets each, at M strengths.

    Args:
        page: the file of the sheet, after which the others are named.
        images: the number of images N.
        targets: the targets, in words.
        strengths: of the frames.
        source: whether the sheet begins each row with the image that is edited.
    """

    def __init__(
        self, page: Path, images: int, targets: Sequence[str], strengths: Sequence[float], source: bool
    ) -> None:
        self.page, self.images, self.targets, self.strengths = page, images, targets, strengths
        self.rows = images * len(targets)
        self.strip = [*(["source"] if source else []), *(f"strength {s:g}" for s in strengths)]
        self.file = page.with_name(f"{page.with_suffix('').name}_film{PNG}")

    @cached_property
    def singles(self) -> list[Path]:
        """A file for each frame, the strengths of a target next to each other."""
        digits = len(str(len(self.strengths) - 1))
        return [
            self.page.with_suffix("") / f"{n}-{k}_{phrase(to)}_{m:0{digits}d}_strength{strength:g}{PNG}"
            for n in range(self.images)
            for k, to in enumerate(self.targets)
            for m, strength in enumerate(self.strengths)
        ]

    @property
    def shows(self) -> list[dict[str, Any]]:
        """What each of ``singles`` shows, of one image."""
        return [{"shows": to, "strength": strength} for to in self.targets for strength in self.strengths]

    @property
    def text(self) -> str:
        """The film in a few words."""
        return f"{len(self.strengths)} frames from strength {self.strengths[0]:g} to {self.strengths[-1]:g}"

    def about(self, each: bool) -> list[dict[str, Any]]:
        """Returns each frame with its strength and its column in the sheet, and with ``each`` its files."""
        first, many = len(self.strip) - len(self.strengths), len(self.strengths)
        return [
            {
                "strength": strength,
                "column": first + m,
                **({"files": [str(file) for file in self.singles[m::many]]} if each else {}),
            }
            for m, strength in enumerate(self.strengths)
        ]

    def tiles(self, images: "Tensor", source: "Tensor | None") -> "Tensor":
        """Returns the sheet's images, row by row.

        Args:
            images: [N, 1 + K M, C, H, W], each reconstruction first.
            source: the images that are edited, [N, C, H, W], or None.
        """
        import torch

        rows = images[:, 1:].unflatten(1, (len(self.targets), -1))
        if source is not None:
            first = source[:, None, None].to(rows).expand(-1, rows.shape[1], -1, -1, -1, -1)
            rows = torch.cat([first, rows], 2)
        return rows.flatten(0, 2).cpu()

    def write(self, images: "Tensor", about: Mapping[str, Any], scale: int) -> None:
        """Writes the animated PNG: the targets of an image beside each other, and the images below each other."""
        from .pictures import page_of, write_film

        frames = images[:, 1:].unflatten(1, (len(self.targets), -1)).permute(2, 0, 1, 3, 4, 5)
        pages = [page_of(frame.flatten(0, 1).cpu(), len(self.targets), scale) for frame in frames]
        write_film(pages, self.file, about, [ENDS, *[FRAME] * (len(pages) - 2), ENDS])
