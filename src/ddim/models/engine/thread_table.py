"""The work from which more threads pay, by dtype. ``python benchmarks/engine.py --write`` measures and writes it."""

from typing import NamedTuple


class Least(NamedTuple):
    """The least work in multiply-adds, as ``Work`` estimates it, that one thread should have.

    Attributes:
        part: of a part of a batch that is computed by a thread of its own.
        layer: of a thread among several that share each layer of a call.
    """

    part: float
    layer: float


CPU: dict[str, Least] = {
    "float32": Least(part=7.1e08, layer=4.3e10),
    "float64": Least(part=1.1e08, layer=4.3e10),
    "bfloat16": Least(part=8.7e08, layer=4.3e10),
    "float16": Least(part=2.2e08, layer=4.3e10),
}
"""Measured on two cores of an AMD EPYC, with torch 2.13.0. ``layer`` of float64 and float16 is that of float32."""
