"""What the witnesses of editors have in common: a tiny flow model in float64, and its velocity under a prompt.

The witnesses write the papers' algorithms out with plain tensors, in rectified flow: x = (1 - s) x0 + s eps and v =
eps - x0 at the time s, which a network of Stable Diffusion 3 and FLUX answers with.
"""

from collections.abc import Callable
from functools import cache

import tiny_flow
import torch
from torch import Tensor

import ddim
from ddim.core.noise import SeededNoise
from ddim.models.base import Model

Velocity = Callable[[Tensor, float], Tensor]


@cache
def flow_model(family: str = "sd3") -> Model:
    """A model of ``tiny_flow.FAMILIES`` in float64, without a reference of its own."""
    made = ddim.load(tiny_flow.FAMILIES[family].pipeline().to(torch.float64))
    assert (made.state_dtype, made.schedule.prediction) == (torch.float64, "flow")
    return made


def pictures(count: int = 2, side: int = 32) -> Tensor:
    """Random pictures [count, 3, side, side] in [0, 1]."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(4))


def velocity(
    model: Model, prompt: str, x0: Tensor, weight: float = 1.0, embedded: float | None = None, looks: bool = False
) -> Velocity:
    """The velocity of a model under a prompt, as a function of x [N, ...] and the time.

    Args:
        model: a flow model.
        prompt: of all rows.
        x0: the encoded images, which say how many rows there are, and of what size.
        weight: of classifier-free guidance.
        embedded: the scale that a distilled network takes.
        looks: whether the network looks at the images.
    """
    size = (x0.shape[2] * 2, x0.shape[3] * 2)
    both = model.condition(None, len(x0), prompt, None, size)
    told = {} if embedded is None else {"guidance": torch.full((len(x0),), embedded)}
    told |= {"reference": x0} if looks else {}

    @torch.no_grad()
    def ask(x: Tensor, time: float) -> Tensor:
        node = model.schedule.path.node(time)
        (cond,) = model.ask(x, node, both.cond.replace(**told))
        if weight == 1:
            return cond
        assert both.uncond is not None
        (uncond,) = model.ask(x, node, both.uncond.replace(**told))
        return uncond + weight * (cond - uncond)

    return ask


def times(found: ddim.Edited) -> list[float]:
    """The times of the grid of an edit, from noise to data."""
    return [node.sigma for node in found.code.grid]


def drawn(x0: Tensor, seed: int) -> Tensor:
    """The first noise of each image, [N, ...]."""
    return SeededNoise([seed + k for k in range(len(x0))])(x0)


def uni_inv(v: Velocity, x0: Tensor, time: list[float]) -> list[Tensor]:
    """The samples of Uni-Inv at all times, from noise to data; the first slope is asked at the time of the guess."""
    x, nodes = x0, [x0]
    slope = v(x0, time[-2])
    for now, after in zip(time[:0:-1], time[-2::-1], strict=True):
        guess = x + (after - now) * slope
        slope = v(guess, after)
        x = x + (after - now) * slope
        nodes.append(x)
    return nodes[::-1]


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference."""
    return float((a - b).abs().max())
