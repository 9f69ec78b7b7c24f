"""Edits with a known answer: a picture never trained on, to another word in its style or to its word in another style.

"noto dog face" to "noto cat face" has an answer, Noto's cat. So an edit is measured against it: is the answer, of all
pictures in its style, the one that the edit is nearest to, and is what source and answer have in common still there?
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DDIMError, InputError
from ..training.config import TrainConfig
from ..training.sources import DatasetPart, held_out, open_source, square
from .nearest import Gallery
from .pairs import agreement, mse_where, psnr, ssim
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
        raise InputError("The recipe holds nothing out (data.without), so there is nothing to edit that it never saw.")
    columns, listed = held_out(source.without)
    if len(columns) != 2:
        raise InputError(f"{source.without} must have two columns, a style and a word; it has {', '.join(columns)}.")
    part = open_source(replace(source, without=""), data)
    assert isinstance(part, DatasetPart)  # a list of style and word fits nothing else
    out = []
    groups = part.values(GROUP) if GROUP in part.columns else [""] * len(part)
    for row, (style, word, group) in enumerate(zip(*map(part.values, columns), groups, strict=True)):
        with part.open(row) as image:
            pixels = torch.from_numpy(square(image, data)).float() / 255
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
        return "".join((self.method, *(f" {key}={value}" for key, value in self.options)))

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


class EditBenchmark:
    """Edits every pair under a setting, and measures.

    Args:
        model: a text-to-image model.
        pictures: of which those of a style are its gallery.
        pairs: from ``edit_pairs``.
    """

    def __init__(self, model: Any, pictures: Sequence[Picture], pairs: Sequence[EditPair]) -> None:
        self.model, self.pairs = model, list(pairs)
        self.galleries = galleries(pictures)

    def run(self, setting: Setting, done: set[str]) -> Iterator[tuple[list[dict[str, Any]], Tensor | DDIMError]]:
        """Measures every pair whose key is not in ``done``; after each source its rows and its edits.

        A method that diverges is a result too: its error is there in place of the edits, and the run goes on.

        Raises:
            InputError: a setting that cannot be used.
        """
        by_source: dict[int, list[EditPair]] = {}
        for pair in self.pairs:
            if pair.key not in done:
                by_source.setdefault(id(pair.source), []).append(pair)
        for pairs in by_source.values():
            began = time.perf_counter()
            try:
                measured = self.one(setting, pairs)
            except InputError:
                raise
            except DDIMError as error:
                measured = self.failed(setting, pairs, (time.perf_counter() - began) / len(pairs)), error
            yield measured

    def one(self, setting: Setting, pairs: Sequence[EditPair]) -> tuple[list[dict[str, Any]], Tensor]:
        """The rows of one source's pairs, and their edits [K, 3, H, W]."""
        from ..editing.edit import edit

        source = pairs[0].source
        began = time.perf_counter()
        edited = edit(
            self.model,
            source.pixels,
            [pair.answer.prompt for pair in pairs],
            source_prompt=source.prompt,
            **setting.arguments,
        )
        seconds = (time.perf_counter() - began) / len(pairs)
        edits, back = edited.edits[0].cpu().float(), edited.reconstruction.cpu().float()
        near = psnr(source.pixels[None], back).item(), ssim(source.pixels[None], back).item()
        rows = []
        for pair, image in zip(pairs, edits, strict=True):
            (rank,) = self.galleries[pair.answer.style].rank(image[None], [pair.answer.word])
            truth, was = pair.answer.pixels[None], source.pixels[None]
            common = agreement(was, truth)
            rows.append(
                {
                    **_named(setting, pair),
                    "source_psnr": near[0],
                    "source_ssim": near[1],
                    "kept_mse": mse_where(image[None], was, common).item(),
                    "common": common.float().mean().item(),
                    "answer_psnr": psnr(image[None], truth).item(),
                    "rank": rank,
                    "seconds": seconds,
                }
            )
        return rows, edits

    def failed(self, setting: Setting, pairs: Sequence[EditPair], seconds: float) -> list[dict[str, Any]]:
        """The rows of one source's pairs where no edit came out: no number, and the last place in the gallery."""
        return [
            {
                **_named(setting, pair),
                **dict.fromkeys(("source_psnr", "source_ssim", "kept_mse", "common", "answer_psnr"), nan),
                "rank": len(self.galleries[pair.answer.style].names),
                "seconds": seconds,
            }
            for pair in pairs
        ]


def _named(setting: Setting, pair: EditPair) -> dict[str, Any]:
    return {"setting": setting.name, "pair": pair.key, "kind": pair.kind}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Means over pairs: source PSNR (dB), SSIM, squared distance kept, PSNR to the answer, shares of rank 1 and 5.

    What is not finite is left out (the distance where nothing is common, the PSNR of the same picture); None if all is.
    """

    ranks = [int(row["rank"]) for row in rows]
    return {
        "pairs": len(rows),
        "source_psnr": finite_mean(rows, "source_psnr"),
        "source_ssim": finite_mean(rows, "source_ssim"),
        "kept_mse": finite_mean(rows, "kept_mse"),
        "answer_psnr": finite_mean(rows, "answer_psnr"),
        "top1": sum(r == 1 for r in ranks) / len(ranks),
        "top5": sum(r <= 5 for r in ranks) / len(ranks),
        "seconds": finite_mean(rows, "seconds"),
    }
