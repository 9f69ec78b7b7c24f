"""Shared by the figures: data whose exact eps is known, and functions that save a picture and its numbers."""

import io
import json
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image
from torch import Tensor

import ddim

mpl.use("Agg")
mpl.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.2})
FOLDER = Path(__file__).resolve().parents[1] / "images" / "theory"
PATH = ddim.ddpm_linear()
MEANS, SCALES, WEIGHTS = (torch.tensor(v, dtype=torch.float64) for v in ([-1.5, 1.0], [0.35, 0.5], [0.4, 0.6]))


def mixture(x: Tensor, node: ddim.Node, cond: object = None) -> ddim.Pair:
    """The exact pair of data that is one of two normals; x is [N, 1], or [N, D] with independent columns."""
    variance = (node.alpha * SCALES) ** 2 + node.sigma**2
    off = x.unsqueeze(-1) - node.alpha * MEANS
    share = torch.softmax(WEIGHTS.log() - variance.log() / 2 - off**2 / (2 * variance), -1)
    eps = node.sigma * (share * off / variance).sum(-1)
    return ddim.Pair((share * (MEANS + node.alpha * SCALES**2 * off / variance)).sum(-1), eps)


def data(count: int, seed: int = 0) -> Tensor:
    """Draws of that data, [count, 1]."""
    g = torch.Generator().manual_seed(seed)
    which = torch.multinomial(WEIGHTS, count, replacement=True, generator=g)
    return (MEANS[which] + SCALES[which] * torch.randn(count, generator=g, dtype=torch.float64)).unsqueeze(1)


def noise(count: int, seed: int = 1) -> Tensor:
    """Standard normal numbers, [count, 1]."""
    return torch.randn(count, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def density(x: Tensor, node: ddim.Node) -> Tensor:
    """The density of the data at a node."""
    spread = ((node.alpha * SCALES) ** 2 + node.sigma**2).sqrt()
    parts = torch.distributions.Normal(node.alpha * MEANS, spread).log_prob(x.unsqueeze(-1)).exp()
    return (WEIGHTS * parts).sum(-1)


def smooth(steps: int, start: float = 1.45, end: float = 0.2) -> ddim.Grid:
    """A grid even in the angle atan2(sigma, alpha), where errors of methods fall as the textbooks say."""
    angles = torch.linspace(start, end, steps + 1, dtype=torch.float64)
    return ddim.Grid(tuple(ddim.Node(float(a), float(a.cos()), float(a.sin())) for a in angles))


def slope(steps: list[int], errors: list[float]) -> float:
    """Minus the slope of log error against log steps."""
    x, y = (torch.tensor(v, dtype=torch.float64).log() for v in (steps, errors))
    return -float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def show(axes: object, images: Tensor, columns: int, title: str = "") -> None:
    """Images [N, C, H, W] in [0, 1] as a sheet."""
    axes.imshow(ddim.sheet(images, columns=columns, gap=1), cmap="gray", interpolation="nearest")  # type: ignore[attr-defined]
    axes.set_title(title, fontsize=8)  # type: ignore[attr-defined]
    axes.axis("off")  # type: ignore[attr-defined]


def keep(figure: Figure, name: str, **numbers: str) -> None:
    """Writes docs/images/theory/NAME.png, and the measured numbers beside it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for axis in figure.axes:
        for line in (axis.xaxis, axis.yaxis):
            line.set_minor_formatter(NullFormatter())
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=130)
    Image.open(drawn).convert("RGB").quantize(128).save(FOLDER / f"{name}.png", optimize=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(numbers, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(name, numbers)
