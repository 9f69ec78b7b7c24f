"""3x3 convolutions with a quarter of the multiplications, by Winograd's F(4x4, 3x3); for float32 on a CPU.

Lavin & Gray 2016 (arXiv 1509.09308), section 4: a tile of 4x4 outputs is y = A^T [(G g G^T) * (B^T d B)] A, where d is
the 6x6 inputs under the tile, g the 3x3 weights, and * multiplies element by element. Summed over the input channels,
the products at each of the 36 positions of a tile are one matrix product over all tiles.
"""

import threading
from typing import Any

import torch
from torch import Tensor, nn

TILE, UNDER = 4, 6
"""Side of a tile of outputs, and side of the inputs under it."""

MIN_CHANNELS, MIN_SIDE = 64 * 128, 64
"""Least product of input and output channels, and least number of either: below, the transforms cost what is saved."""
MIN_TILES = 16
"""Least number of tiles in a call: with fewer, reading the transformed weights takes longer than the convolution."""
TILES_PER_BLOCK = 64
"""Tiles computed at once: with 128 channels, the intermediate results then about fill a core's second-level cache."""
BYTES = 2**30
"""Memory for the transformed weights of one network; they take four times as much as the weights themselves."""

_B = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0),
      (0, 4, 0, -5, 0, 1))  # fmt: skip
_G = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
      (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip
_A = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
# vec(B^T d B) = (B^T kron B^T) vec(d), and likewise for A: both sides of a transform in one matrix product.
_INTO, _OUT_OF = (torch.kron(m, m).contiguous() for m in (torch.tensor(_B).float(), torch.tensor(_A).float()))
_LOCK = threading.Lock()


def transform_weights(weight: Tensor) -> Tensor:
    """Computes G g G^T for each pair of channels, in float64 and rounded once: [O, C, 3, 3] -> [36, C, O]."""
    g = torch.tensor(_G, dtype=torch.float64)
    out, channels = weight.shape[:2]
    u = torch.einsum("ip,jq,ocpq->ijco", g, g, weight.double())
    return u.reshape(UNDER * UNDER, channels, out).to(weight.dtype).contiguous()


def convolve(x: Tensor, u: Tensor, bias: Tensor | None) -> Tensor:
    """Computes a 3x3 convolution of stride 1 with zero padding of width 1.

    Args:
        x: [N, C, H, W]; fastest in channels-last layout.
        u: the weights from ``transform_weights``, [36, C, O].
        bias: [O], or None.

    Returns:
        [N, O, H, W] in channels-last layout. In float32 its relative error is 2e-6, where direct summation has 6e-7
        (random numbers, 128 to 512 channels).
    """
    n, _, height, width = x.shape
    down, across = -(-height // TILE), -(-width // TILE)
    # One zero before the first row and column; behind the last ones, enough zeros to complete the last tile's 6 inputs.
    pad = (0, 0, 1, 1 + across * TILE - width, 1, 1 + down * TILE - height)
    padded = nn.functional.pad(x.permute(0, 2, 3, 1), pad)
    out = x.new_empty(n, down * TILE, across * TILE, u.shape[2])
    # A block is several whole images, or, of a large image, a band of some rows of tiles.
    images = max(1, TILES_PER_BLOCK // (down * across))
    rows = down if images > 1 else max(1, TILES_PER_BLOCK // across)
    for k in range(0, n, images):
        for row in range(0, down, rows):
            above, below = row * TILE, min(row + rows, down) * TILE
            _tiles(padded[k : k + images, above : below + 2], u, bias, out[k : k + images, above:below])
    return out[:, :height, :width].permute(0, 3, 1, 2)


def _tiles(padded: Tensor, u: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Convolves one block of h x w tiles per image: [n, 4 h + 2, 4 w + 2, C], written to ``out`` [n, 4 h, 4 w, O]."""
    n, height, width, channels = *out.shape[:3], padded.shape[3]
    down, across = height // TILE, width // TILE
    a, b, c, d = padded.stride()
    # A view, not a copy: the 6x6 inputs under neighbouring tiles overlap by two rows or columns.
    under = padded.as_strided(
        (UNDER, UNDER, n, down, across, channels), (b, c, a, TILE * b, TILE * c, d), padded.storage_offset()
    )
    v = _INTO.to(out.dtype) @ under.reshape(UNDER * UNDER, -1)
    m = torch.bmm(v.view(UNDER * UNDER, -1, channels), u)
    y = _OUT_OF.to(out.dtype) @ m.view(UNDER * UNDER, -1)
    whole = y.view(TILE, TILE, n, down, across, -1).permute(2, 3, 0, 4, 1, 5)
    target = out.unflatten(1, (down, TILE)).unflatten(3, (across, TILE))
    target.copy_(whole) if bias is None else torch.add(whole, bias, out=target)


class WinogradConv:
    """A ``forward`` for a ``Conv2d`` that uses ``convolve`` where that is faster, and otherwise the module's own.

    The weights are transformed at the first call, and again whenever they have changed.

    Args:
        conv: a convolution for which ``supports`` is true.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv
        self.u: Tensor | None = None
        self.of: tuple[int, int, Tensor] | None = None

    @staticmethod
    def supports(module: nn.Module) -> bool:
        """Whether a module is a convolution that becomes faster: 3x3, stride 1, zero padding 1, many channels."""
        return (
            type(module) is nn.Conv2d  # a subclass may have another forward
            and module.kernel_size == (3, 3)
            and (module.stride, module.padding, module.dilation) == ((1, 1),) * 3
            and (module.groups, module.padding_mode) == (1, "zeros")
            and module.in_channels * module.out_channels >= MIN_CHANNELS
            and min(module.in_channels, module.out_channels) >= MIN_SIDE
        )

    @staticmethod
    def weight_bytes(conv: nn.Conv2d) -> int:
        """Returns the size of a convolution's transformed weights in bytes."""
        return UNDER * UNDER * conv.in_channels * conv.out_channels * 4

    def __call__(self, input: Tensor) -> Tensor:
        """Convolves [N, C, H, W] -> [N, O, H, W]."""
        u, conv = self._weights(input), self.conv
        return nn.Conv2d.forward(conv, input) if u is None else convolve(input, u, conv.bias)

    def _weights(self, x: Tensor) -> Tensor | None:
        """Returns the transformed weights, or None if the module's own forward should compute this call."""
        weight: Any = self.conv.weight
        if (
            x.dim() != 4
            or len(x) * -(-x.shape[2] // TILE) * -(-x.shape[3] // TILE) < MIN_TILES
            or not x.dtype == weight.dtype == torch.float32
            or x.device.type != "cpu"
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
        ):
            return None
        if not self._current(weight):
            with _LOCK:  # several threads may call at once; the check is repeated for those that had to wait
                if not self._current(weight):
                    self.u = transform_weights(weight.detach())
                    self.of = (*_weight_version(weight), _weight_sample(weight).clone())
        return self.u

    def _current(self, weight: Tensor) -> bool:
        """Whether ``u`` was computed from these weights."""
        of = self.of
        return of is not None and of[:2] == _weight_version(weight) and torch.equal(of[2], _weight_sample(weight))


def _weight_version(weight: Tensor) -> tuple[int, int]:
    """Address and version counter of a weight; in-place operations increase the counter."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _weight_sample(weight: Tensor) -> Tensor:
    """A few of the weight's numbers, compared because the address and version counter do not show every change.

    Changes through ``.data`` do not increase the counter, and new weights may be allocated at an old address.
    """
    return weight.detach()[:: max(1, weight.shape[0] // 8), :: max(1, weight.shape[1] // 8)]
