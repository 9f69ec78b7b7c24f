"""diffusers' U-Nets and autoencoders made quicker on a CPU, where no gradient is asked for.

What they answer is the same but for rounding: a block that writes over what it alone holds, wide convolutions by
Winograd's way, and, on request, torch.compile in place of both.
"""

import os
import shutil
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..._utils.errors import InputError
from ..live import is_compiled
from .winograd import BYTES, Quick

if TYPE_CHECKING:
    from ..base import Model


def quicken(model: "Model", *, compile: bool = False) -> None:
    """Gives the parts of a loaded model a quicker ``forward``.

    Weights, configs and classes stay; in training, with gradients or hooks, under autocast and on another device each
    block computes as before, and what does not look like the blocks known here is left alone.

    Args:
        model: its weights are not to change any more.
        compile: torch.compile the U-Net instead.
    """
    network: Any = getattr(model, "network", None)
    if compile:
        network.compile()
        model.threads = False  # type: ignore[attr-defined]  # the compiled code has threads of its own
    else:
        optimize_network(network)
    if (vae := getattr(model, "vae", None)) is not None:
        optimize_network(vae)


def engine_of(network: nn.Module, *, cut: bool = True) -> str:
    """How a network computes, in the words of a code's machine: other ways give other last bits.

    Args:
        network: as it is now.
        cut: whether a large batch is cut into parts.
    """
    own = any(isinstance(module.__dict__.get("forward"), (Block, Quick)) for module in network.modules())
    kind = "compiled" if is_compiled(network) else "quick" if own else "plain"
    wide = next((p for p in network.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1), None)
    last = wide is not None and wide.is_contiguous(memory_format=torch.channels_last)
    return ", ".join([kind, *(["channels last"] if last else []), *([] if cut else ["in one piece"])])


def require_compiler(device: torch.device) -> None:
    """Raises InputError where torch.compile could not compile for a CPU."""
    named = os.environ.get("CXX", "")
    if device.type == "cpu" and not any(shutil.which(c) for c in (named, "g++", "clang++", "c++", "cl") if c):
        raise InputError(
            "it needs a C++ compiler, and there is no g++ or clang++ here; leave it out.", parameter="compile"
        )


def optimize_network(network: nn.Module) -> None:
    """The same for one network."""
    from diffusers.models.resnet import ResnetBlock2D

    left = BYTES  # given away here, in the modules' order, so that bits do not depend on what is called first
    for module in network.modules():
        changed: Any = module
        if isinstance(module, ResnetBlock2D) and Block.fits(module):
            changed.forward = Block(module)
        elif Quick.fits(module) and Quick.size(changed) <= left:
            changed.forward = Quick(changed)
            left -= Quick.size(changed)


class Block:
    """A ``ResnetBlock2D``'s ``forward`` that writes over what it alone holds, and divides by no 1.

    Args:
        block: whose ``fits`` is true.
    """

    def __init__(self, block: Any) -> None:
        self.block, self.plain = block, block.forward

    @staticmethod
    def fits(block: Any) -> bool:
        """Whether it is of the usual kind: group norm, SiLU, the time added to the hidden channels, one resolution."""
        return (
            block.upsample is None
            and block.downsample is None
            and (block.time_embedding_norm == "default" or block.time_emb_proj is None)
            and isinstance(block.nonlinearity, nn.SiLU)
            and isinstance(block.norm1, nn.GroupNorm)
            and isinstance(block.norm2, nn.GroupNorm)
            and block.output_scale_factor == 1
            and not block.skip_time_act
        )

    def __call__(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """As the block's own; diffusers passes further arguments, which it has deprecated."""
        block = self.block
        plain = torch.is_grad_enabled() or block.training or torch.is_autocast_enabled("cpu")
        # a hook may keep what is written over here, or be on a part that is passed by
        plain = plain or any(part._forward_hooks or part._forward_pre_hooks for part in block.children())
        if plain or input_tensor.device.type != "cpu" or args or kwargs:
            return self.plain(input_tensor, temb, *args, **kwargs)
        x = block.conv1(silu(block.norm1(input_tensor), inplace=True))
        if temb is not None and block.time_emb_proj is not None:
            x += block.time_emb_proj(silu(temb))[:, :, None, None]
        x = block.conv2(silu(block.norm2(x), inplace=True))
        x += input_tensor if block.conv_shortcut is None else block.conv_shortcut(input_tensor)
        return x
