"""How the network was asked on the way to noise, and how it is asked so again.

The last bits of a network's answer depend on its company: the rows of the call, the row's place among them, the
threads, whether both branches of guidance were one batch, the device and the libraries. A method that is exact as long
as the network answers the same bits keeps all of this in its code, and the way forward rebuilds it.
"""

import platform
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._utils.tensors import whole_numbers
from ..core.denoiser import Layout

ROWS, PLACE = "rows", "place"


def exact_layout() -> Layout:
    """The layout of calls whose bits must come again: one thread a part, as many parts as torch has threads here."""
    return Layout(torch.get_num_threads(), 1)


def machine_now(device: torch.device, engine: str, layout: Layout, batched_cfg: bool) -> dict[str, Any]:
    """What decides bits beside a call's rows, as a code keeps it: plain values.

    Args:
        device: where the network computes.
        engine: how; see ``Model.engine``.
        layout: of its calls.
        batched_cfg: whether both branches of guidance are one batch.
    """
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"{device.type} {_kernels()}".strip(),
        "torch": torch.__version__.partition("+")[0],
        "tf32": bool(cuda and torch.backends.cudnn.allow_tf32),
        "matmul": torch.get_float32_matmul_precision(),
        "engine": engine,
        "workers": layout.workers,
        "threads": layout.threads,
        "batched_cfg": batched_cfg,
    }


def _kernels() -> str:
    """Which instructions torch's kernels use on this CPU: other ones sum in another order."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def layout_of(machine: Mapping[str, Any]) -> Layout | None:
    """The layout of a code's calls; None of a code that does not say."""
    return Layout(int(machine["workers"]), int(machine["threads"])) if machine.get("workers") else None


@contextmanager
def untimed() -> Generator[None]:
    """Inside, cuDNN chooses its ways by shape alone: by a stopwatch it might choose another one on the way forward."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def differences(had: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What cannot be rebuilt here, in words: another device or version, other kernels, another engine."""
    named = {"device": "on {}", "torch": "with torch {}", "tf32": "with TF32 {}"}
    named |= {"matmul": "with matrix products of {} precision", "engine": "by a network that computes the way {!r}"}
    return [said.format(had[key]) for key, said in named.items() if key in had and had[key] != now.get(key)]


def recorded(count: int) -> dict[str, Tensor]:
    """``LatentCode.calls`` of a batch of so many images, all asked in one call."""
    return {ROWS: torch.full((count,), count, dtype=torch.int64), PLACE: torch.arange(count)}


@dataclass(frozen=True)
class Rebuilt:
    """A call to be made again.

    Attributes:
        items: which image stands in each row; a row that is missing is filled with one of the others, twice.
        own: of the rows that count: (row, image).
    """

    items: tuple[int, ...]
    own: tuple[tuple[int, int], ...]


def rebuilt(calls: Mapping[str, Tensor]) -> list[Rebuilt]:
    """The fewest calls in which every image stands in its own place among as many rows as it once did."""
    waiting: dict[int, dict[int, list[int]]] = {}
    for image, (rows, place) in enumerate(zip(whole_numbers(calls[ROWS]), whole_numbers(calls[PLACE]), strict=True)):
        waiting.setdefault(rows, {}).setdefault(place, []).append(image)
    out: list[Rebuilt] = []
    for rows, places in waiting.items():
        for k in range(max(map(len, places.values()))):
            own = tuple((place, images[k]) for place, images in sorted(places.items()) if k < len(images))
            at = dict(own)
            out.append(Rebuilt(tuple(at.get(row, own[0][1]) for row in range(rows)), own))
    return out


def plain_calls(count: int, batch: int) -> list[Rebuilt]:
    """Calls of ``batch`` images each, in order."""
    ranges = [range(begin, min(begin + batch, count)) for begin in range(0, count, batch)]
    return [Rebuilt(tuple(r), tuple(enumerate(r))) for r in ranges]


def images_in_order(parts: Sequence[tuple[Rebuilt, Tensor]], count: int) -> Tensor:
    """The images of all calls, [count, ...], each in its own place; rows that filled a call are left out."""
    placed = {image: images[row] for call, images in parts for row, image in call.own}
    return torch.stack([placed[k] for k in range(count)])
