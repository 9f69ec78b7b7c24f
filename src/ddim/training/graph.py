"""The gradient of a micro-batch. On a GPU it is recorded once as a CUDA graph, and then replayed.

The forward and the backward pass of a U-Net launch thousands of small kernels, and launching them from Python takes
longer than most of them run. A graph launches all of them at once and computes the same numbers.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..models.engine.graphs import Notify, side_stream, state_of
from .tasks.base import to_device

Function = Callable[[Mapping[str, Tensor]], Tensor]
"""Takes the inputs of a micro-batch on the device, adds the gradient of its loss to ``grad`` of the weights, and
returns the loss without gradient."""


class Gradient:
    """Calls a function that computes the loss and the gradient of a micro-batch, as a CUDA graph if possible.

    The graph is recorded at the first call and fixes the shapes of the inputs. The function is called as usual on other
    devices, for inputs of other shapes, and if the network has hooks, does not fit or cannot be recorded.

    Args:
        function: computes the gradient. It must read nothing that changes between calls except its inputs, the weights
            and buffers of the network, and torch's random numbers.
        network: the network, in training mode. Its modules and hooks must not change any more.
        device: the device of the network.
        reason: why no graph is to be recorded, or None.
        notify: called once with a sentence if a GPU computes without the graph.
    """

    def __init__(
        self,
        function: Function,
        network: nn.Module,
        device: torch.device,
        *,
        reason: str | None = None,
        notify: Notify | None = None,
    ) -> None:
        self.function, self.network, self.device = function, network, device
        self.reason = reason or state_of(network, training=True)[1]
        self._notify = notify
        self._graph: _Graph | None = None
        # Whether calls without a graph refuse kernels that do not repeat their bits. Several processes exchange
        # gradients in each call, so that none can be made to find out.
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        self._strict: bool | None = None if alone else False

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Computes the gradient of a micro-batch.

        Args:
            inputs: tensors on the CPU.

        Returns:
            The loss, a scalar on the device.
        """
        if self.device.type != "cuda":
            return self.function(to_device(inputs, self.device))
        if self._graph is None and self.reason is None:
            self._record(inputs)
        reason = self.reason
        if self._graph is not None:
            if self._graph.fits(inputs):
                return self._graph.replay(inputs)
            reason = "this micro-batch has another shape than the first one"
        if self._notify is not None:
            self._notify(f"The network is trained without a CUDA graph: {reason}.")
            self._notify = None
        given = to_device(inputs, self.device)
        if self._strict is None:
            self._strict = self._is_deterministic(given)
        with _strictly(self._strict):
            return self.function(given)

    def _is_deterministic(self, given: Mapping[str, Tensor]) -> bool:
        """Whether every operation has a deterministic kernel, found by a call that changes nothing."""
        weights = list(self.network.parameters())
        earlier = [weight.grad for weight in weights]
        self.network.zero_grad()
        try:
            with _unchanged(self.network, self.device), _strictly(True):
                self.function(given)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:
            return False
        finally:
            for weight, gradient in zip(weights, earlier, strict=True):
                weight.grad = gradient
        return True

    def _record(self, inputs: Mapping[str, Tensor]) -> None:
        """Records the graph, or finds the reason why it cannot be recorded."""
        given = to_device(inputs, self.device)
        for strict in (True, False):
            try:
                with _strictly(strict):
                    self._graph = _Graph(self.function, self.network, given)
                self.reason = None
                return
            except torch.cuda.OutOfMemoryError:
                self.reason = "its graph does not fit into the memory of the GPU"
            except RuntimeError as error:  # an operation without a deterministic kernel, or that CUDA cannot record
                self.reason = f"CUDA cannot record it ({str(error).splitlines()[0]})"
            self.network.zero_grad()
            torch.cuda.empty_cache()


class _Graph:
    """A recorded function, with the inputs, the loss and the gradients at fixed addresses.

    Args:
        function, network: those of ``Gradient``.
        inputs: those of the first micro-batch, on the device.
    """

    def __init__(self, function: Function, network: nn.Module, inputs: dict[str, Tensor]) -> None:
        self.inputs = inputs
        self.device = next(iter(inputs.values())).device
        network.zero_grad()  # so that the backward pass makes new gradients, in the memory of the graph
        with torch.cuda.device(self.device), _unchanged(network, self.device):
            with side_stream():  # prepares the libraries, which cannot be done while a graph is recorded
                function(inputs)
            network.zero_grad()
            self.graph = torch.cuda.CUDAGraph()
            # Only this thread is restricted during the recording: others may be decoding and copying images.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.loss = function(inputs)
        self.weights = [weight for weight in network.parameters() if weight.grad is not None]
        self.gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        network.zero_grad()

    def fits(self, inputs: Mapping[str, Tensor]) -> bool:
        """Whether the inputs have the shapes and dtypes of those that were recorded."""
        return _about(inputs) == _about(self.inputs)

    def replay(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Computes the gradient of other inputs, and adds it to gradients that the weights have."""
        # Copies, because these may be the gradients of this graph, which it overwrites.
        earlier = [weight.grad.clone() for weight in self.weights if weight.grad is not None]
        for name, own in self.inputs.items():
            own.copy_(inputs[name].pin_memory(), non_blocking=True)
        with torch.cuda.device(self.device):
            self.graph.replay()
        if earlier:
            torch._foreach_add_(self.gradients, earlier)  # pyright: ignore[reportPrivateImportUsage]
        for weight, gradient in zip(self.weights, self.gradients, strict=True):
            weight.grad = gradient
        return self.loss.clone()


@contextmanager
def _strictly(strict: bool) -> Generator[None]:
    """Inside the block torch refuses operations without a deterministic kernel if ``strict`` is set, and else warns.

    Where it only warns, it also computes the gradient of attention with a kernel that does not repeat its bits.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(before[0], warn_only=not strict)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def _unchanged(network: nn.Module, device: torch.device) -> Generator[None]:
    """Afterwards the network's buffers and torch's random numbers are as before, so that no result changes."""
    before = [buffer.clone() for buffer in network.buffers()]
    try:
        with torch.random.fork_rng([device]):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(network.buffers(), before, strict=True):
                buffer.copy_(value)


def _about(inputs: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Returns what a graph fixes of its inputs."""
    return {name: (value.shape, value.dtype) for name, value in inputs.items()}
