"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3), on a CPU in float32.

Lavin & Gray 2016 (arXiv 1509.09308), section 4: a tile of 4x4 outputs is y = A^T [(G g G^T) * (B^T d B)] A, with d the
6x6 inputs under it and g the 3x3 weights. Summed over the channels, the product * is 36 matrix products.
"""

import threading
from typing import Any

import torch
from torch import Tensor, nn

TILE, UNDER = 4, 6
"""Sides of a tile of outputs, and of the inputs under it."""

MIN_CHANNELS, MIN_SIDE = 64 * 128, 64
"""In times out, and each of them: below it, what is saved is spent on the transforms."""
MIN_TILES = 16
"""In a call: with fewer, reading the transformed weights takes longer than the convolution."""
TILES_PER_BLOCK = 64
"""Of 128 channels, what is in flight is then about as large as a core's second-level cache."""
BYTES = 2**30
"""Of transformed weights that one network may keep; they take four times as much as the weights."""

_B = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0),
      (0, 4, 0, -5, 0, 1))  # fmt: skip
_G = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
      (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip
_A = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_INTO, _OUT_OF = (torch.kron(m, m).contiguous() for m in (torch.tensor(_B).float(), torch.tensor(_A).float()))
_LOCK = threading.Lock()


def transformed(weight: Tensor) -> Tensor:
    """G g G^T of every pair of channels, computed in float64: [O, C, 3, 3] to [36, C, O]."""
    g = torch.tensor(_G, dtype=torch.float64)
    out, channels = weight.shape[:2]
    u = torch.einsum("ip,jq,ocpq->ijco", g, g, weight.double())
    return u.reshape(UNDER * UNDER, channels, out).to(weight.dtype).contiguous()


def convolve(x: Tensor, u: Tensor, bias: Tensor | None) -> Tensor:
    """The 3x3 convolution of stride 1, padded with one zero.

    Args:
        x: [N, C, H, W]; channels-last is quickest.
        u: from ``transformed``, [36, C, O].
        bias: [O].

    Returns:
        [N, O, H, W] in channels-last layout. In float32 it is 2e-6 from the true sums, relative to their size, where
        the direct way is 6e-7 from them (random numbers, 128 to 512 channels).
    """
    n, _, height, width = x.shape
    down, across = -(-height // TILE), -(-width // TILE)
    pad = (0, 0, 1, 1 + across * TILE - width, 1, 1 + down * TILE - height)
    padded = nn.functional.pad(x.permute(0, 2, 3, 1), pad)
    out = x.new_empty(n, down * TILE, across * TILE, u.shape[2])
    images = max(1, TILES_PER_BLOCK // (down * across))
    rows = down if images > 1 else max(1, TILES_PER_BLOCK // across)
    for k in range(0, n, images):
        for row in range(0, down, rows):
            above, below = row * TILE, min(row + rows, down) * TILE
            _tiles(padded[k : k + images, above : below + 2], u, bias, out[k : k + images, above:below])
    return out[:, :height, :width].permute(0, 3, 1, 2)


def _tiles(padded: Tensor, u: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Of whole images or of bands of tiles: [n, 4 h + 2, 4 w + 2, C] into ``out`` [n, 4 h, 4 w, O]."""
    n, height, width, channels = *out.shape[:3], padded.shape[3]
    down, across = height // TILE, width // TILE
    a, b, c, d = padded.stride()
    under = padded.as_strided(
        (UNDER, UNDER, n, down, across, channels), (b, c, a, TILE * b, TILE * c, d), padded.storage_offset()
    )
    v = _INTO.to(out.dtype) @ under.reshape(UNDER * UNDER, -1)
    m = torch.bmm(v.view(UNDER * UNDER, -1, channels), u)
    y = _OUT_OF.to(out.dtype) @ m.view(UNDER * UNDER, -1)
    whole = y.view(TILE, TILE, n, down, across, -1).permute(2, 3, 0, 4, 1, 5)
    target = out.unflatten(1, (down, TILE)).unflatten(3, (across, TILE))
    target.copy_(whole) if bias is None else torch.add(whole, bias, out=target)


class Quick:
    """A ``Conv2d``'s ``forward``: this way where it is quicker, and otherwise the module's own.

    Args:
        conv: whose ``fits`` is true.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = conv
        self.u: Tensor | None = None
        self.of: tuple[int, int, Tensor] | None = None

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a module is a convolution that gains: 3x3, plain, of many channels."""
        return (
            type(module) is nn.Conv2d  # a subclass may have a forward of its own
            and module.kernel_size == (3, 3)
            and (module.stride, module.padding, module.dilation) == ((1, 1),) * 3
            and (module.groups, module.padding_mode) == (1, "zeros")
            and module.in_channels * module.out_channels >= MIN_CHANNELS
            and min(module.in_channels, module.out_channels) >= MIN_SIDE
        )

    @staticmethod
    def size(conv: nn.Conv2d) -> int:
        """Bytes of a convolution's transformed weights."""
        return UNDER * UNDER * conv.in_channels * conv.out_channels * 4

    def __call__(self, input: Tensor) -> Tensor:
        """As the convolution."""
        u, conv = self._weights(input), self.conv
        return nn.Conv2d.forward(conv, input) if u is None else convolve(input, u, conv.bias)

    def _weights(self, x: Tensor) -> Tensor | None:
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
            with _LOCK:
                if not self._current(weight):
                    self.u = transformed(weight.detach())
                    self.of = (*_mark(weight), _some(weight).clone())
        return self.u

    def _current(self, weight: Tensor) -> bool:
        """Whether ``u`` is of these weights."""
        of = self.of
        return of is not None and of[:2] == _mark(weight) and torch.equal(of[2], _some(weight))


def _mark(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _some(weight: Tensor) -> Tensor:
    """A few of the weights: changes through ``.data`` count no version, and new weights may lie where old ones lay."""
    return weight.detach()[:: max(1, weight.shape[0] // 8), :: max(1, weight.shape[1] // 8)]
