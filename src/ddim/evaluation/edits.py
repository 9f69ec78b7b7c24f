"""Edits with a known answer: a picture never trained on, to another word in its style or to its word in another style.

"noto dog face" to "noto cat face" has an answer, Noto's cat. So an edit is measured against it: is the answer, of all
pictures in its style, the one that the edit is nearest to, and is what source and answer have in common still there?
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._utils.error_text import one_line
from .._utils.errors import DDIMError, InputError
from ..data.sources import TablePart, held_out, open_source, square
from ..training.config import TrainConfig
from .methods import Way
from .nearest import Gallery
from .pairs import agreement, digest, mse_where, psnr, ssim
from .store import Columns, Row
from .tables import finite_mean

GROUP = "subgroup"
"""The column that says which words are near each other; where there is none, all words are of one group."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture with its style, its word and its prompt; ``pixels`` [3, H, W] in [0, 1]."""

    style: str
    word: str
    group: str
    prompt: str
    pixels: Tensor
    held: bool


@dataclass(frozen=True, eq=False)
class EditPair:
    """An edit with an answer; ``kind`` is ``word`` (same style) or ``style`` (same word)."""

    source: Picture
    answer: Picture
    kind: str

    @property
    def key(self) -> str:
        """What names it in a table."""
        return f"{self.source.prompt} -> {self.answer.prompt}"


def read_pictures(config: TrainConfig) -> list[Picture]:
    """Every picture of a recipe's first source, those it holds out among them.

    Args:
        config: of a text-to-image model; ``data.without`` lists what is held out, by style and word.

    Raises:
        InputError: no list, or a list that has no two columns.
    """
    source, data = config.data.sources[0], config.data
    if not source.without:
        raise InputError(
            "the recipe holds nothing out, so there is nothing to edit that it never saw.", parameter="data.without"
        )
    columns, listed = held_out(source.without)
    if len(columns) != 2:
        raise InputError(
            f"{source.without} must have two columns, a style and a word; it has {', '.join(columns)}.",
            parameter="data.without",
        )
    part = open_source(replace(source, without=""), data)
    assert isinstance(part, TablePart)  # a list of style and word fits nothing else
    out = []
    groups = part.values(GROUP) if GROUP in part.table.names else [""] * len(part)
    for row, (style, word, group) in enumerate(zip(*map(part.values, columns), groups, strict=True)):
        pixels = torch.from_numpy(square(part.open(row), data)).float() / 255
        out.append(Picture(style, word, group, part.prompt(row), pixels, (style, word) in listed))
    return out


def edit_pairs(pictures: Sequence[Picture], words: int = 2, styles: int = 2, seed: int = 0) -> list[EditPair]:
    """For every held-out picture some edits whose answers are pictures of the set, drawn without chance but ``seed``.

    Args:
        pictures: from ``read_pictures``.
        words: edits to another word of the same style, and of the source's own group where that has any; fewer where
            it has fewer.
        styles: edits to another style of the same word.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    out: list[EditPair] = []
    for source in (p for p in pictures if p.held):
        same_style = [p for p in pictures if p.style == source.style and p.word != source.word]
        near = [p for p in same_style if p.group == source.group] or same_style
        same_word = [p for p in pictures if p.word == source.word and p.style != source.style]
        for kind, some, count in (("word", near, words), ("style", same_word, styles)):
            chosen = generator.permutation(len(some))[:count]
            out += [EditPair(source, some[k], kind) for k in chosen.tolist()]
    return out


@dataclass(frozen=True)
class Setting:
    """How edits are made: an inversion and what it takes, an attention control, guidance, steps."""

    name: str
    method: str
    attention: str
    guidance: float = 7.5
    steps: int = 20
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def title(self) -> str:
        """The method with its options."""
        return Way(self.method, self.options).title

    @property
    def arguments(self) -> dict[str, Any]:
        """What ``ddim.edit`` is told."""
        return {
            "method": self.method,
            "options": dict(self.options),
            "steps": self.steps,
            "guidance": self.guidance,
            "attention": self.attention,
        }


def galleries(pictures: Sequence[Picture]) -> dict[str, Gallery]:
    """Each style's pictures, by their words."""
    of: dict[str, list[Picture]] = {}
    for picture in pictures:
        of.setdefault(picture.style, []).append(picture)
    return {s: Gallery(torch.stack([p.pixels for p in own]), [p.word for p in own]) for s, own in sorted(of.items())}


COLUMNS = Columns(
    {
        **dict.fromkeys(("fingerprint", "method", "options", "attention"), "string"),
        **{"steps": "int64", "guidance": "float64", "pair": "string", "kind": "string", "pictures": "string"},
    },
    {
        **dict.fromkeys(("source_psnr", "source_ssim", "kept_mse", "common", "answer_psnr"), "float64"),
        **{"rank": "int64", "seconds": "float64", "nfe": "float64", "failed": "string"},
    },
)
"""A row is an edit: what shaped it, ``pictures`` being a digest of the source and of all that its answer is sought
among; and what was found, nothing where the method ``failed``."""
Item = dict[str, Any]


class EditBenchmark:
    """Edits every pair under a setting, and measures.

    Args:
        model: a text-to-image model.
        pictures: of which those of a style are its gallery.
        pairs: from ``edit_pairs``.
        calls: given a number of images, network calls an image since it was last asked.
    """

    def __init__(
        self,
        model: Any,
        pictures: Sequence[Picture],
        pairs: Sequence[EditPair],
        calls: Callable[[int], float] = lambda images: nan,
    ) -> None:
        self.model, self.pairs, self.calls = model, {pair.key: pair for pair in pairs}, calls
        self.galleries = galleries(pictures)
        of: dict[str, list[Tensor]] = {}
        for picture in pictures:
            of.setdefault(picture.style, []).append(picture.pixels)
        digests = {style: digest(torch.stack(own)) for style, own in of.items()}
        self.digests = {p.key: f"{digest(p.source.pixels)} {digests[p.answer.style]}" for p in pairs}

    def blocks(self, setting: Setting) -> list[list[Item]]:
        """The items of a setting, those of one source together."""
        blocks: dict[int, list[Item]] = {}
        for pair in self.pairs.values():
            item = {
                "fingerprint": str(self.model.fingerprint)[:12],
                "method": setting.method,
                "options": Way(setting.method, setting.options).told,
                "attention": setting.attention,
                "steps": setting.steps,
                "guidance": float(setting.guidance),
                "pair": pair.key,
                "kind": pair.kind,
                "pictures": self.digests[pair.key],
            }
            blocks.setdefault(id(pair.source), []).append(item)
        return list(blocks.values())

    def run(self, setting: Setting, items: Sequence[Item]) -> tuple[list[Row], Tensor | DDIMError]:
        """The rows of one source's items, and their edits [K, 3, H, W].

        A method that diverges is a result too: its error is there in place of the edits.

        Raises:
            InputError: a setting that cannot be used.
        """
        pairs = [self.pairs[item["pair"]] for item in items]
        began = time.perf_counter()
        try:
            found, edits = self._measured(setting, pairs)
        except InputError:
            raise
        except DDIMError as error:
            found, edits = [dict.fromkeys(COLUMNS.measured)] * len(pairs), error
        told = {
            "seconds": (time.perf_counter() - began) / len(pairs),
            "nfe": self.calls(len(pairs)),
            "failed": one_line(edits) if isinstance(edits, DDIMError) else "",
        }
        return [{**item, **row, **told} for item, row in zip(items, found, strict=True)], edits

    def _measured(self, setting: Setting, pairs: Sequence[EditPair]) -> tuple[list[dict[str, Any]], Tensor]:
        from ..pipelines.edit import edit

        source = pairs[0].source
        edited = edit(
            self.model,
            source.pixels,
            [pair.answer.prompt for pair in pairs],
            source_prompt=source.prompt,
            **setting.arguments,
        )
        edits, back = edited.edits[0].cpu().float(), edited.reconstruction.cpu().float()
        near = psnr(source.pixels[None], back).item(), ssim(source.pixels[None], back).item()
        rows = []
        for pair, image in zip(pairs, edits, strict=True):
            (rank,) = self.galleries[pair.answer.style].rank(image[None], [pair.answer.word])
            truth, was = pair.answer.pixels[None], source.pixels[None]
            common = agreement(was, truth)
            rows.append(
                {
                    "source_psnr": near[0],
                    "source_ssim": near[1],
                    "kept_mse": mse_where(image[None], was, common).item(),
                    "common": common.float().mean().item(),
                    "answer_psnr": psnr(image[None], truth).item(),
                    "rank": rank,
                }
            )
        return rows, edits


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over pairs: source PSNR (dB), SSIM, squared distance kept, PSNR to the answer, shares of rank 1 and 5.

    What is not finite is left out (the distance where nothing is common, the PSNR of the same picture); None if all is.
    An edit that failed has no rank, and counts as not found.
    """
    ranks = [row["rank"] for row in rows]
    return {
        "pairs": len(rows),
        "failed": sum(bool(row["failed"]) for row in rows),
        "source_psnr": finite_mean(rows, "source_psnr"),
        "source_ssim": finite_mean(rows, "source_ssim"),
        "kept_mse": finite_mean(rows, "kept_mse"),
        "answer_psnr": finite_mean(rows, "answer_psnr"),
        "top1": sum(r == 1 for r in ranks) / len(ranks),
        "top5": sum(r is not None and r <= 5 for r in ranks) / len(ranks),
        "seconds": finite_mean(rows, "seconds"),
    }
