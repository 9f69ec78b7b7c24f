"""What the processors of all networks share: how they take the place of the network's own, and which they may not."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..._utils.errors import InputError
from ...editing.attention import AttentionController
from ...editing.plan import AttentionSite
from ..live import PLAIN


@dataclass(frozen=True)
class Layer:
    """An attention layer of a network of diffusers.

    Attributes:
        site: its description.
        module: the module, which has ``processor`` and ``set_processor``.
        processor: makes the processor that controls it.
    """

    site: AttentionSite
    module: Any
    processor: Callable[[AttentionSite], Any]


class Controlled:
    """Base class of our processors, which let a controller compute the attention of a layer.

    Args:
        layer: the attention layer that it serves.
    """

    def __init__(self, layer: AttentionSite) -> None:
        self.layer = layer


class Told(Controlled):
    """Base class of processors to which their transformer passes no arguments of a call on.

    Attributes:
        call: ``control`` and ``cfg_branch`` of the running call, and what else the family's processor reads, by name;
            see ``told``.
    """

    def __init__(self, layer: AttentionSite) -> None:
        super().__init__(layer)
        self.call: Mapping[str, Any] = {}

    def attended(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Computes attention, with the controller of the running call if there is one; see ``attended``."""
        control, branch = self.call.get("control"), self.call.get("cfg_branch")
        return attended(control, self.layer, query, key, value, mask, branch)


def refuse_others(layers: Iterable[Layer], remedy: str) -> None:
    """Raises InputError for a layer whose processor does more than plain attention, because ours cannot replace it.

    Args:
        layers: the attention layers.
        remedy: what the user can do, for the error.
    """
    for layer in layers:
        if (kind := type(layer.module.processor).__name__) not in PLAIN:
            raise InputError(
                f"the attention processor {kind} of {layer.site.name} does more than plain attention, so attention "
                f"control cannot replace it; {remedy}, or use attention = 'none'.",
                parameter="attention",
            )


@contextmanager
def exchanged(layers: Iterable[Layer]) -> Iterator[None]:
    """Inside the block, each layer has a processor of ours; afterwards each has its own again."""
    before = [(layer, layer.module.processor) for layer in layers]
    try:
        for layer, _ in before:
            layer.module.set_processor(layer.processor(layer.site))
        yield
    finally:
        for layer, own in before:
            layer.module.set_processor(own)


@contextmanager
def told(layers: Iterable[Layer], call: Mapping[str, Any] | None) -> Iterator[None]:
    """Inside the block, our processors know the running call, of which their transformer passes nothing on to them.

    Args:
        layers: the attention layers.
        call: what becomes ``processor.call``: the controller of a call, its branch of guidance, and what else the
            family's processor reads. None without a controller, where nothing is done.
    """
    ours = [] if call is None else [p for layer in layers if hasattr(p := layer.module.processor, "call")]
    try:
        for processor in ours:
            processor.call = call
        yield
    finally:
        for processor in ours:
            processor.call = {}


def attended(
    control: AttentionController | None,
    layer: AttentionSite,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    cfg_branch: str | None,
) -> Tensor:
    """Computes attention, with the controller if there is one; see ``AttentionController.attend``."""
    if control is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return control.attend(layer, query, key, value, mask, cfg_branch)


def heads_of(x: Tensor, heads: int) -> Tensor:
    """Views [B, S, C] as [B, S, heads, C / heads]."""
    return x.unflatten(-1, (heads, -1))


def joined(out: Tensor, like: Tensor) -> Tensor:
    """Joins the heads of an attention's output, [B, heads, S, D] to [B, S, heads D], in the dtype of ``like``."""
    return out.transpose(1, 2).flatten(2).to(like.dtype)


def normed(norm: Any, x: Tensor) -> Tensor:
    """Applies the norm of queries or keys; some networks have none."""
    return x if norm is None else norm(x)
