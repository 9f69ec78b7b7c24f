"""Records the network calls of an inversion in the code, and repeats them when the code is reconstructed.

The last bits of a network's output depend on more than its input: on the number of rows in the batch, the position of
the row, the number of threads, whether both branches of guidance form one batch, the device and the versions of the
libraries. An inversion that is exact only for equal bits stores all of this in its code, and reconstruction repeats it.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._utils.tensors import whole_numbers
from ..core.denoiser import Layout
from ..core.tf32 import precision

ROWS, PLACE = "rows", "place"


def machine_now(
    device: torch.device, engine: str, layout: Layout, batched_cfg: bool, tf32: bool | None = None
) -> dict[str, Any]:
    """Describes everything besides the rows of a call that decides the last bits of its output, for this machine.

    Args:
        device: the device of the network.
        engine: how the network is computed; see ``Model.engine``.
        layout: the layout of the calls.
        batched_cfg: whether both branches of guidance form one batch.
        tf32: ``Model.tf32``.

    Returns:
        plain values by name, as ``LatentCode.machine`` stores them.
    """
    cuda = device.type == "cuda"
    convolutions, products = precision() if tf32 is None else (tf32, tf32)
    versions = {"cuda": torch.version.cuda or "", "cudnn": torch.backends.cudnn.version() or 0} if cuda else {}
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"{device.type} {_kernels()}".strip(),
        "torch": torch.__version__.partition("+")[0],
        **versions,
        "tf32": cuda and convolutions,
        "matmul": ("high" if products else "highest") if cuda else _matmul_precision(),
        "engine": engine,
        "workers": layout.workers,
        "threads": layout.threads,
        "min_rows": layout.min_rows,
        "batched_cfg": batched_cfg,
    }


def _matmul_precision() -> str:
    """Returns how precise matrix products in float32 are on a CPU."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses this after a program has set its newer switches
        return str(torch.backends.mkldnn.matmul.fp32_precision)  # type: ignore[attr-defined]


def _kernels() -> str:
    """Returns the instruction set that torch uses on this CPU, because another one sums in another order."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def layout_of(machine: Mapping[str, Any]) -> Layout | None:
    """Returns the layout of a code's calls, or None if the code has no record of it."""
    if not machine.get("workers"):
        return None
    return Layout(int(machine["workers"]), int(machine["threads"]), int(machine.get("min_rows", 1)))


def differences(had: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lists what this machine cannot reproduce: another device or version, other kernels, another engine.

    Args:
        had: ``LatentCode.machine`` of the code.
        now: ``machine_now`` of this machine.

    Returns:
        phrases that complete the sentence "This code was made ...".
    """
    phrases = {
        "device": "on {}",
        "torch": "with torch {}",
        "cuda": "with CUDA {}",
        "cudnn": "with cuDNN {}",
        "tf32": "with TF32 {}",
        "matmul": "with matrix products of {} precision",
        "engine": "by a network with the engine {!r}",
    }
    return [phrase.format(had[key]) for key, phrase in phrases.items() if key in had and had[key] != now.get(key)]


def call_record(count: int) -> dict[str, Tensor]:
    """Returns ``LatentCode.calls`` for a batch of ``count`` images that were inverted in one call."""
    return {ROWS: torch.full((count,), count, dtype=torch.int64), PLACE: torch.arange(count)}


@dataclass(frozen=True)
class NetworkCall:
    """The images in the rows of one network call.

    Attributes:
        items: the index of the image in each row. A row whose image is not there is filled with a copy of another one.
        own: (row, image) for the rows whose result is used.
    """

    items: tuple[int, ...]
    own: tuple[tuple[int, int], ...]


def recorded_calls(calls: Mapping[str, Tensor]) -> list[NetworkCall]:
    """Returns the fewest calls in which every image has its recorded row, in a batch of the recorded number of rows.

    Args:
        calls: ``LatentCode.calls``.
    """
    # Images of one code may come from several batches. Those with equal numbers of rows share a call if their places
    # differ; the k-th image that waits for a place goes into the k-th call.
    waiting: dict[int, dict[int, list[int]]] = {}
    for image, (rows, place) in enumerate(zip(whole_numbers(calls[ROWS]), whole_numbers(calls[PLACE]), strict=True)):
        waiting.setdefault(rows, {}).setdefault(place, []).append(image)
    out: list[NetworkCall] = []
    for rows, places in waiting.items():
        for k in range(max(map(len, places.values()))):
            own = tuple((place, images[k]) for place, images in sorted(places.items()) if k < len(images))
            at = dict(own)
            out.append(NetworkCall(tuple(at.get(row, own[0][1]) for row in range(rows)), own))
    return out


def batched_calls(count: int, batch: int) -> list[NetworkCall]:
    """Returns calls of ``batch`` images each, in order; the last one may be smaller."""
    ranges = [range(begin, min(begin + batch, count)) for begin in range(0, count, batch)]
    return [NetworkCall(tuple(r), tuple(enumerate(r))) for r in ranges]


def images_in_order(parts: Sequence[tuple[NetworkCall, Tensor]], count: int) -> Tensor:
    """Returns the images of all calls in their original order, [count, ...], without the rows that filled a call."""
    placed = {image: images[row] for call, images in parts for row, image in call.own}
    return torch.stack([placed[k] for k in range(count)])
