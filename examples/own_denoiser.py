"""Use the solvers with a denoiser that is a formula: no network, no diffusers."""

import torch

import ddim
from ddim.core.path import Node
from ddim.core.prediction import to_pair


def gaussian(x: torch.Tensor, node: Node) -> ddim.Pair:
    """Returns the exact (x0, eps) for data from a normal distribution with mean 2 and standard deviation 0.5."""
    variance = (node.alpha * 0.5) ** 2 + node.sigma**2
    return to_pair("eps", node.sigma * (x - 2 * node.alpha) / variance, x, node)


def main() -> tuple[float, float]:
    grid = ddim.make_grid(ddim.ddpm_linear(), 200, "trailing")
    solver = ddim.make_solver("heun")
    x = torch.randn(10_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    end = solver.read(ddim.solve(gaussian, solver, solver.init(x, grid), grid))
    return float(end.mean()), float(end.std())


if __name__ == "__main__":
    print("mean {:.3f}, standard deviation {:.3f}".format(*main()))
