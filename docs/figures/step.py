"""Sampling with `fashion`: x at ten of 50 steps, and the x0 that the network predicts there."""

import matplotlib.pyplot as plt
import torch
from common import keep, show

import ddim
from ddim.core.noise import SeededNoise

model = ddim.load("fashion")
denoise = model.guided(ddim.Guidance(), model.condition(None, 1))
grid, solver = model.schedule.grid(50, "trailing"), ddim.make_solver("ddim")
x = SeededNoise([104])(torch.empty(1, *model.shape))
points, guesses = [], []


def watched(x: torch.Tensor, node: ddim.Node) -> ddim.Pair:
    """The model, and what it is asked and says."""
    pair = denoise(x, node)
    points.append(x)
    guesses.append(pair.x0)
    return pair


end = solver.read(ddim.solve(watched, solver, solver.init(x, grid), grid))
chosen = [*range(0, 50, 5)]
rows = [*(points[k] / 6 + 0.5 for k in chosen), end / 2 + 0.5, *(guesses[k] / 2 + 0.5 for k in chosen), end / 2 + 0.5]
figure, axis = plt.subplots(figsize=(7.2, 1.6))
show(
    axis,
    torch.cat(rows).clamp(0, 1),
    11,
    "x_t (top) and the predicted x0 (bottom), from noise to data; last: the sample",
)
far = [float((g - end).square().mean()) / 4 for g in guesses]
keep(figure, "step", first=f"{far[0]:.3f}", half=f"{far[25]:.4f}", last=f"{far[45]:.5f}")
