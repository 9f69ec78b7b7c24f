"""Thousands of pictures: ``run_batch`` cuts them into batches, computes each as a whole, and goes on after a kill."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .items import Columns
    from .output import Output, code_of
    from .run import Spread, run_batch
    from .worker import Work

_WHERE = {
    **dict.fromkeys(("Spread", "run_batch"), "run"),
    "Work": "worker",
    **dict.fromkeys(("Output", "code_of"), "output"),
    "Columns": "items",
}

__all__ = ["Columns", "Output", "Spread", "Work", "code_of", "run_batch"]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'ddim.batch' has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)
