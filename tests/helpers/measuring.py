"""Benchmarks as the tests run them: opened with a model, and measured without the command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddim.evaluation import BENCHMARKS
from ddim.evaluation.benchmark import Benchmark
from ddim.evaluation.rows import RowColumns, Rows, open_rows
from ddim.evaluation.runner import Session, make_options, measure
from ddim.models.base import Model


def opened(name: str, model: Model, out: Path, **options: Any) -> Any:
    """A benchmark with its model and images."""
    kind = BENCHMARKS[name]
    return kind(make_options(kind, {"model": model, **options}), Session(out))


def measured(bench: Benchmark[Any, Any], setting: Any, items: Sequence[Any] | None = None) -> list[Any]:
    """The rows of some items of a setting, by default of all."""
    items = bench.items(setting) if items is None else items
    with open_rows(bench.session.out / bench.rows_folder(setting), RowColumns.of(bench.columns)) as rows:
        measure(bench, rows, setting, items)
        return rows.of(items)


def kept(out: Path, name: str) -> Rows:
    """All rows in a folder."""
    return Rows(out / "rows", RowColumns.of(BENCHMARKS[name].columns))


class Flat:
    """Features that are the pixels."""

    name, dim, fingerprint = "pixels", 4, "p" * 64

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)
