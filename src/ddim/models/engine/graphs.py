"""CUDA graphs: a network call is recorded once per shape and then replayed, which saves the host's work per layer.

A U-Net launches thousands of small kernels per call, and launching them from Python takes longer than they run. A
graph launches all of them at once and computes the same numbers.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...core.tf32 import precision
from ..live import PLAIN, is_compiled, is_quantised

MOST_GRAPHS = 16
"""The most graphs per network; the one that was unused for the longest time is dropped first."""
MEMORY_SHARE = 1 / 3
"""The part of the device's memory that the graphs of a network may hold. A graph keeps what its call needs."""

Outputs = tuple[Tensor, ...]
Function = Callable[..., tuple[Outputs, Any]]
"""A network call: takes tensors or None, and returns output tensors and one more value that no input changes."""
Notify = Callable[[str], None]

_ENGINE = __name__.rpartition(".")[0]
_SCALARS = frozenset({int, float, bool, str, type(None), tuple})


class Graphs:
    """Replays the calls of a network as CUDA graphs.

    A call is recorded at its first use with inputs of these shapes, which costs about three calls. A second graph is
    recorded for the gradient if an input needs one. The network is called as usual if it cannot be recorded: it has
    hooks, or it is offloaded, quantised, compiled or in training mode. Graphs are dropped if the network has changed
    since, for example by a LoRA.

    Args:
        network: the network that the recorded functions call.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._lock = threading.RLock()
        self._entries: OrderedDict[Hashable, _Forward] = OrderedDict()
        self._seen: set[Hashable] = set()
        self._failed: dict[Hashable, str] = {}
        self._state: list[Any] = []
        self._pool: Any = None
        self._held = 0  # bytes that the graphs have taken from the device
        self._done: torch.cuda.Event | None = None

    def __len__(self) -> int:
        """Returns the number of graphs that it holds."""
        return len(self._entries)

    def __reduce__(self) -> tuple[type["Graphs"], tuple[nn.Module]]:
        """Makes a copy of a model, or a model in another process, begin without graphs."""
        return Graphs, (self.network,)

    def __call__(
        self,
        function: Function,
        *inputs: Tensor | None,
        key: Hashable = (),
        from_use: int = 1,
        notify: Notify | None = None,
    ) -> tuple[Outputs, Any]:
        """Returns what ``function(*inputs)`` returns.

        Args:
            function: calls the network. It must read nothing that changes between calls except its inputs.
            inputs: tensors on one CUDA device, or None.
            key: tells functions apart that compute different things with inputs of the same shapes.
            from_use: record at the first (1) or at the second use (2) of a key; the first one then runs as usual.
            notify: called with a sentence if the call is not replayed.
        """
        device = next(t.device for t in inputs if t is not None)
        with self._lock, torch.cuda.device(device):
            state, reason = state_of(self.network)
            if state != self._state:
                self.release()
                self._state = state
            gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
            if reason is None and torch.is_grad_enabled() and any(p.requires_grad for p in self.network.parameters()):
                reason = "its weights require gradients; call requires_grad_(False) on it"
            if reason is None and torch.is_autocast_enabled("cuda"):
                reason = "autocast is enabled"
            if reason is None and torch.cuda.is_current_stream_capturing():
                reason = "the calling code records a CUDA graph itself"
            whole = (key, gradient, *precision(), *map(_about, inputs))
            reason = reason or self._failed.get(whole)
            if reason is None and from_use > 1 and whole not in self._seen:
                self._seen.add(whole)
                reason = "attention control runs for the first time in this shape"
            if reason is None and whole not in self._entries:
                reason = self._record(function, inputs, whole, gradient)
            if reason is None:
                self._entries.move_to_end(whole)
                entry = self._entries[whole]
                if not entry.busy:
                    return entry.replay(inputs), entry.note
                reason = "the gradient of an earlier call of the same shape is still to be computed"
        if notify is not None:
            notify(f"The network runs without CUDA graphs: {reason}.")
        return function(*inputs)

    def release(self) -> None:
        """Drops all graphs and the memory that they hold."""
        with self._lock:
            self._entries.clear()
            self._seen.clear()
            self._failed.clear()
            self._pool, self._held = None, 0

    def _record(
        self, function: Function, inputs: Sequence[Tensor | None], whole: Hashable, gradient: bool
    ) -> str | None:
        """Records a graph; returns None, or the reason why it cannot be recorded."""
        while len(self._entries) >= MOST_GRAPHS:
            self._entries.popitem(last=False)
        if self._pool is None:
            self._pool, self._done = torch.cuda.graph_pool_handle(), torch.cuda.Event()
        try:
            with torch.inference_mode(False):
                kind = _Gradient if gradient else _Forward
                pool = torch.cuda.graph_pool_handle() if gradient else self._pool
                entry = kind(function, inputs, pool, self._done)
        except torch.cuda.OutOfMemoryError:
            held = bool(self._entries)
            self.release()
            torch.cuda.empty_cache()
            if held:
                return self._record(function, inputs, whole, gradient)
            self._failed[whole] = "its graph does not fit into the memory of the GPU"
        except RuntimeError as error:  # an operation that CUDA cannot record, or that waits for the GPU
            self._failed[whole] = f"CUDA cannot record it ({str(error).splitlines()[0]})"
        else:
            self._entries[whole] = entry
            self._held += entry.size  # also of graphs that were dropped since: their pool keeps it until all are
            room = MEMORY_SHARE * torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
            if self._held > room:
                alone = self._held == entry.size
                self.release()
                if not alone:
                    return self._record(function, inputs, whole, gradient)
                self._failed[whole] = f"its graph needs more than {MEMORY_SHARE:.0%} of the memory of the GPU"
        return self._failed.get(whole)


class _Forward:
    """A recorded call without gradients.

    All graphs of a network without gradients share a memory pool, so that together they need what the largest needs:
    their outputs are copied before another graph is replayed.

    Args:
        function: the call.
        inputs: its inputs.
        pool: the memory pool.
        done: the event of the last replay of any of these graphs, which the next one waits for on every stream.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor | None], pool: Any, done: Any) -> None:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        self.inputs = [None if t is None else t.detach().clone() for t in inputs]
        self.note: Any = None
        self.done = done
        self.record(function, pool)
        # What this recording added to the shared pool; it keeps that much until all graphs are dropped.
        self.size = max(0, torch.cuda.memory_reserved() - before)

    busy: bool = False
    """Whether its buffers are in use by a call whose gradient is still to be computed."""

    def record(self, function: Function, pool: Any) -> None:
        """Calls the function twice: once to prepare the libraries for it, and once to record it."""
        with torch.no_grad():
            with side_stream():
                function(*self.inputs)
            self.graph = torch.cuda.CUDAGraph()
            # Only this thread is restricted during the recording, so that others can go on with other GPU work.
            with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
                self.outputs, self.note = function(*self.inputs)

    def replay(self, inputs: Sequence[Tensor | None]) -> Outputs:
        """Computes the outputs for other inputs of the same shapes."""
        self.fill(inputs)
        self.graph.replay()
        return self.copies()

    def fill(self, inputs: Sequence[Tensor | None]) -> None:
        """Copies the inputs to where the graph reads them, after an earlier replay on any stream has ended."""
        torch.cuda.current_stream().wait_event(self.done)
        with torch.no_grad():
            for own, given in zip(self.inputs, inputs, strict=True):
                if own is not None and given is not None:
                    own.copy_(given)

    def copies(self) -> Outputs:
        """Returns copies of the outputs, because the next replay overwrites them."""
        outputs = tuple(output.detach().clone() for output in self.outputs)
        self.done.record()
        return outputs


class _Gradient(_Forward):
    """A recorded call of one output and its gradient with respect to the inputs that need one: two graphs.

    The second graph reads what the first one has stored, so that the two share a pool of their own.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor | None], pool: Any, done: Any) -> None:
        self.needed = [k for k, t in enumerate(inputs) if t is not None and t.requires_grad]
        self._user: weakref.ref[Any] | None = None
        super().__init__(function, inputs, pool, done)

    @property
    def busy(self) -> bool:  # type: ignore[override]
        """Whether a result exists whose gradient may still be asked for."""
        return self._user is not None and self._user() is not None

    def record(self, function: Function, pool: Any) -> None:
        """Calls the function and its gradient twice: once to prepare the libraries, and once to record both."""
        leaves: list[Tensor] = []
        for k in self.needed:
            own = self.inputs[k]
            assert own is not None
            leaves.append(own.requires_grad_())
        with torch.enable_grad():
            with side_stream():
                (output,), _ = function(*self.inputs)
                torch.autograd.grad(output, leaves, torch.zeros_like(output))
                del output
            self.graph, self.backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
                (output,), self.note = function(*self.inputs)
            self.slope = torch.zeros_like(output)
            with torch.cuda.graph(self.backward_graph, pool=pool, capture_error_mode="thread_local"):
                self.gradients = torch.autograd.grad(output, leaves, self.slope)
        self.outputs = (output.detach(),)

    def replay(self, inputs: Sequence[Tensor | None]) -> Outputs:
        """Computes the output for other inputs, with a gradient that the second graph computes."""
        user = _User()
        self._user = weakref.ref(user)
        return (_Replay.apply(self, user, *inputs),)  # type: ignore[no-untyped-call]

    def backward(self, slope: Tensor) -> list[Tensor | None]:
        """Returns the gradient with respect to each input, for the gradient with respect to the output."""
        self.slope.copy_(slope)
        self.backward_graph.replay()
        found: list[Tensor | None] = [None] * len(self.inputs)
        for k, gradient in zip(self.needed, self.gradients, strict=True):
            found[k] = gradient.clone()
        self.done.record()
        self._user = None
        return found


class _User:
    """Lives as long as a result whose gradient can be asked for."""


class _Replay(torch.autograd.Function):
    """Makes a recorded call and its recorded gradient one operation of autograd."""

    @staticmethod
    def forward(ctx: Any, entry: _Gradient, user: _User, *inputs: Tensor | None) -> Tensor:  # type: ignore[override]
        """Replays the call."""
        ctx.entry, ctx.user = entry, user
        entry.fill(inputs)
        entry.graph.replay()
        (output,) = entry.copies()
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:  # type: ignore[override]
        """Replays the gradient. It can be computed once, because the next call overwrites what it reads."""
        if ctx.user is None:
            raise RuntimeError("The gradient of this call was computed already; call the network again.")
        gradients = ctx.entry.backward(slope)
        ctx.user = None
        return None, None, *gradients


@contextmanager
def side_stream() -> Generator[None]:
    """Runs the block on a stream of its own, as the call before a recording must."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        torch.cuda.current_stream().wait_stream(stream)


def _about(tensor: Tensor | None) -> Hashable:
    """Returns what a graph fixes of an input."""
    return None if tensor is None else (tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad)


def state_of(network: nn.Module, *, training: bool = False) -> tuple[list[Any], str | None]:
    """Describes all of a network that a graph fixes, and whether it can be recorded.

    A graph reads the weights where they were, so that their values may change but not their addresses. It does not see
    modules that were replaced since, or plain attributes such as the scale of a LoRA.

    Args:
        network: the network.
        training: whether it may be in training mode.

    Returns:
        a list that changes if the modules, the plain attributes or the addresses of the weights change; and the reason
        why calls cannot be recorded, or None.
    """
    state: list[Any] = []
    reason = "it is compiled" if is_compiled(network) else None
    if network.training and not training:
        reason = reason or "it is in training mode"
    stack = [network]
    while stack:  # this runs before every call, so that it visits the attributes of each module only once
        module = stack.pop()
        attributes = module.__dict__
        state.append(type(module))
        state += [value for value in attributes.values() if type(value) in _SCALARS]
        if scaling := attributes.get("scaling"):  # of a LoRA layer, with its active and its fused adapters
            state.append(f"{scaling} {attributes.get('_active_adapter')} {attributes.get('merged_adapters')}")
        if (processor := attributes.get("processor")) is not None:
            kind = type(processor)
            # Without a controller, ours computes what diffusers' does, and is set for the time of an edit only.
            state.append(kind.__name__.replace("ControlledAttention", "AttnProcessor2_0"))
            if kind.__name__ not in PLAIN:
                reason = reason or f"it has an attention processor of its own ({kind.__name__})"
        if "_hf_hook" in attributes:
            reason = reason or "it is offloaded or has hooks of accelerate"
        elif "forward" in attributes and not type(attributes["forward"]).__module__.startswith(_ENGINE):
            reason = reason or f"the forward of a {type(module).__name__} was replaced"
        elif attributes["_forward_hooks"] or attributes["_forward_pre_hooks"]:
            reason = reason or "it has hooks"
        for weight in (*attributes["_parameters"].values(), *attributes["_buffers"].values()):
            if weight is None:
                continue
            if weight.is_meta or is_quantised(weight):
                reason = reason or ("it is offloaded" if weight.is_meta else "it is quantised")
            else:
                state.append(weight.data_ptr())
        stack.extend(child for child in attributes["_modules"].values() if child is not None)
    return state, reason
