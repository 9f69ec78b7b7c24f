"""Runs a network call the fastest way on its device: as a CUDA graph, or split among the threads of a CPU."""

from collections.abc import Callable

from torch import Tensor

from ...core.denoiser import Call
from .graphs import Graphs
from .kernels import kernels
from .threads import run_in_threads


def run(
    function: Callable[..., Tensor],
    x: Tensor,
    timestep: Tensor,
    *others: Tensor | None,
    call: Call,
    graphs: Graphs | None,
    tf32: bool | None,
    row_work: float | None,
    split: bool,
) -> Tensor:
    """Computes ``function(x, timestep, *others)``.

    Args:
        function: calls the network. It reads nothing that changes between calls except its arguments.
        x: the input, [N, ...].
        timestep: a scalar tensor on the device of x.
        others: further arguments: [N, ...], [1, ...] (the same for all rows), or None.
        call: the other arguments of the call.
        graphs: the CUDA graphs of the network; None calls it as usual.
        tf32: see ``kernels``.
        row_work, split: see ``run_in_threads``.
    """
    with kernels(x.device, tf32):
        if graphs is not None and x.is_cuda:
            inputs = (x, timestep, *others)
            # The layers that are left out are no tensors, so that they decide which recording is replayed.
            told = {"key": call.skip, "notify": call.on_engine}
            (output,), _ = graphs(lambda *tensors: ((function(*tensors),), None), *inputs, **told)
            return output

        def part(rows: Tensor, *about: Tensor | None) -> Tensor:
            return function(rows, timestep, *about)

        return run_in_threads(part, x, *others, row_work=row_work, split=split, layout=call.layout)
