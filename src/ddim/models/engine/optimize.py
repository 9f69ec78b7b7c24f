"""Makes diffusers' U-Nets and autoencoders faster on a CPU, for calls without gradients.

Residual blocks work in place, and wide 3x3 convolutions use Winograd's algorithm. The outputs are the same except for
rounding. On request, torch.compile compiles the U-Net instead.
"""

import os
import shutil
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..._utils.errors import InputError
from ..live import is_compiled
from .graphs import state_of
from .winograd import BYTES, WinogradConv

if TYPE_CHECKING:
    from ..base import Model


def optimize(model: "Model", *, compile: bool = False) -> None:
    """Replaces the ``forward`` of blocks and convolutions in a loaded model by faster versions.

    Weights, configs and classes stay as they are. In training mode, with gradients or hooks, under autocast, and on
    other devices than a CPU, each block computes as before. Blocks of other kinds are not changed.

    Args:
        model: a model whose weights will not change any more.
        compile: compile the U-Net with torch.compile instead; the autoencoder is optimized as usual.
    """
    network: Any = getattr(model, "network", None)
    if compile:
        network.compile()
        model.threads = False  # type: ignore[attr-defined]  # compiled code uses all threads by itself
    else:
        optimize_network(network)
    if (vae := getattr(model, "vae", None)) is not None:
        optimize_network(vae)


def engine_of(network: nn.Module, *, split: bool = True, device: torch.device | None = None) -> str:
    """Describes how a network computes now, such as ``quick, channels last``.

    A latent code records this text, because each way of computing rounds differently in the last bits.

    Args:
        network: the network.
        split: whether a large batch is split among threads.
        device: the device of a network whose calls are replayed as CUDA graphs, if it is a CUDA device.
    """
    own = any(
        isinstance(module.__dict__.get("forward"), (InPlaceResnetBlock, WinogradConv)) for module in network.modules()
    )
    kind = "compiled" if is_compiled(network) else "quick" if own else "plain"
    wide = next((p for p in network.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1), None)
    last = wide is not None and wide.is_contiguous(memory_format=torch.channels_last)
    graphs = device is not None and device.type == "cuda" and state_of(network)[1] is None
    facts = {"channels last": last, "in one piece": not split, "CUDA graphs": graphs}
    return ", ".join([kind, *(fact for fact, holds in facts.items() if holds)])


def require_compiler(device: torch.device) -> None:
    """Raises InputError if torch.compile would find no C++ compiler, which it needs on a CPU."""
    named = os.environ.get("CXX", "")
    if device.type == "cpu" and not any(shutil.which(c) for c in (named, "g++", "clang++", "c++", "cl") if c):
        raise InputError(
            "it needs a C++ compiler, but neither g++ nor clang++ is installed; leave it out.", parameter="compile"
        )


def optimize_network(network: nn.Module) -> None:
    """Replaces the ``forward`` of a network's residual blocks and wide 3x3 convolutions by faster versions."""
    from diffusers.models.resnet import ResnetBlock2D

    # The memory budget is spent here, in the order of the modules, and not at each convolution's first call: otherwise
    # the order of calls would decide which convolutions use Winograd's algorithm, and so the last bits of the output.
    left = BYTES
    for module in network.modules():
        changed: Any = module
        if isinstance(module, ResnetBlock2D) and InPlaceResnetBlock.supports(module):
            changed.forward = InPlaceResnetBlock(module)
        elif WinogradConv.supports(module) and WinogradConv.weight_bytes(changed) <= left:
            changed.forward = WinogradConv(changed)
            left -= WinogradConv.weight_bytes(changed)


class InPlaceResnetBlock:
    """A faster ``forward`` for a ``ResnetBlock2D``: it overwrites its own intermediate tensors instead of copying them.

    Args:
        block: a block for which ``supports`` is true.
    """

    def __init__(self, block: Any) -> None:
        self.block, self.plain = block, block.forward

    @staticmethod
    def supports(block: Any) -> bool:
        """Whether a block is of the usual kind.

        That is: group norm, SiLU, the time embedding added to the hidden channels, no change of resolution, and no
        scaling of the output.
        """
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
        """Computes what the block's own ``forward`` does; deprecated further arguments are passed on to that."""
        block = self.block
        plain = torch.is_grad_enabled() or block.training or torch.is_autocast_enabled("cpu")
        # A hook on a part might keep a tensor that is overwritten below, or sit on a part that is never called below.
        plain = plain or any(part._forward_hooks or part._forward_pre_hooks for part in block.children())
        if plain or input_tensor.device.type != "cpu" or args or kwargs:
            return self.plain(input_tensor, temb, *args, **kwargs)
        x = block.conv1(silu(block.norm1(input_tensor), inplace=True))
        if temb is not None and block.time_emb_proj is not None:
            x += block.time_emb_proj(silu(temb))[:, :, None, None]
        x = block.conv2(silu(block.norm2(x), inplace=True))
        x += input_tensor if block.conv_shortcut is None else block.conv_shortcut(input_tensor)
        return x
