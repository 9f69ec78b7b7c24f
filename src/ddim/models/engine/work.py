"""Estimates the work of a network call, by which the engine chooses threads."""

import re
from dataclasses import dataclass

from torch import nn

_BLOCK = re.compile(r"(?:^|\.)(down_blocks|up_blocks|stages)\.(\d+)(?:\.|$)")
_PER_ROW = ("time_emb", "time_embedding", "add_embedding", "class_embedding")
"""Parts of a name of layers that are called once per row, and not at each of its positions."""

_ONCE = ("time", "norm", "modulation", "mod.", "pooled", "guidance")
"""Parts of a name of layers of a transformer that are called once per row, and not for each token."""


@dataclass(frozen=True)
class Work:
    """The weights of a network by the resolution at which they act, as far as the names of its blocks tell it.

    The blocks are those of diffusers' U-Nets and autoencoders (``down_blocks``, ``mid_block``, ``up_blocks``) and the
    stages of ResNets in transformers; each is taken to halve the resolution, or to double it. Layers elsewhere are
    taken to act at the full resolution.

    Attributes:
        per_row: the number of weights that act once per row.
        per_position: the number of weights at the full resolution, at half of it, at a quarter, and so on.
    """

    per_row: int
    per_position: tuple[int, ...]

    @classmethod
    def of(cls, network: nn.Module) -> "Work":
        """Counts the weights of a network: all parameters of two or more dimensions, without embedding tables."""
        layers = {
            f"{name}.{own}": parameter.numel()
            for name, module in network.named_modules()
            if not isinstance(module, nn.Embedding)
            for own, parameter in module.named_parameters(recurse=False)
            if parameter.ndim > 1
        }
        blocks = {name: _block(name) for name in layers}
        lowest = max((index for _, index in blocks.values()), default=0)
        per_row, per_position = 0, [0] * (lowest + 1)
        for name, weights in layers.items():
            kind, index = blocks[name]
            if any(part in name for part in _PER_ROW):
                per_row += weights
            elif kind == "up_blocks":
                per_position[lowest - index] += weights
            else:
                per_position[lowest if "mid_block" in name else index] += weights
        return cls(per_row, tuple(per_position))

    @classmethod
    def of_tokens(cls, network: nn.Module, patch: int) -> "Work":
        """Counts the weights of a transformer, whose layers act on tokens of ``patch`` x ``patch`` positions.

        Layers that modulate the tokens act once per row. The tokens of the prompt are not counted.
        """
        per_row = per_token = 0
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                once = any(part in name for part in _ONCE)
                per_row, per_token = (
                    per_row + parameter.numel() * once,
                    per_token + parameter.numel() * (not once),
                )
        return cls(per_row, (*[0] * (patch.bit_length() - 1), per_token))

    @property
    def known(self) -> bool:
        """Whether the network has weights at all."""
        return self.per_row + sum(self.per_position) > 0

    def row(self, positions: int) -> float:
        """Returns the estimated multiply-adds for one row.

        Args:
            positions: the number of pixels of the row at the network's full resolution.
        """
        return self.per_row + sum(n * max(1.0, positions / 4**level) for level, n in enumerate(self.per_position))


def _block(name: str) -> tuple[str, int]:
    """Returns the kind and index of the block that a layer belongs to; ("", 0) if it belongs to none."""
    found = _BLOCK.search(name)
    return (found[1], int(found[2])) if found else ("", 0)
