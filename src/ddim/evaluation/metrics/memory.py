"""The peak memory of tensors."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MEGA = 2**20


def peak_memory(run: Callable[[], object], device: torch.device) -> float:
    """The peak of the memory that ``run`` allocates, without what was allocated before, in MB (2^20 bytes).

    On CUDA this is the allocator's figure. Elsewhere it is the storages of all tensors that operations return, each
    until it is freed, without the temporary memory inside one operation. Measuring makes ``run`` slower.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MEGA
    with _Storages() as storages:
        run()
    return storages.peak / MEGA


class _Storages(TorchDispatchMode):
    """Adds the size of each new storage, and subtracts it when the storage is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for old in tree_leaves((args, kwargs)):
            self._meet(old, new=False)  # existing tensors, such as weights, because operations may return views of them
        out = func(*args, **(kwargs or {}))
        for new in tree_leaves(out):
            self._meet(new, new=True)
        return out

    def _meet(self, value: Any, new: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        key = storage._cdata
        if key in self.seen:
            return
        size = storage.nbytes() if new else 0
        self.seen.add(key)
        weakref.finalize(storage, self._gone, key, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size
