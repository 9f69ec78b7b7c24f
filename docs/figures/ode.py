"""DDIM is Euler's method in x / alpha against sigma / alpha: its steps, and the orders of the solvers."""

import matplotlib.pyplot as plt
import torch
from common import keep, mixture, noise, slope, smooth

import ddim

figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.8))
x, fine = torch.linspace(-2.2, 2.2, 9, dtype=torch.float64).unsqueeze(1), smooth(200)


def trajectory(name: str, grid: ddim.Grid, x: torch.Tensor) -> torch.Tensor:
    """x at every node, [N, S + 1]."""
    solver, nodes = ddim.make_solver(name), [x]
    ddim.solve(mixture, solver, solver.init(x, grid), grid, on_step=lambda i, state: nodes.append(state["x"]))
    return torch.cat(nodes, 1)


for name, grid, style in (
    ("heun", fine, {"color": "0.7"}),
    ("ddim", smooth(6), {"color": "C0", "marker": "o", "markersize": 2}),
):
    ratio, alpha = torch.tensor([n.ratio for n in grid]), torch.tensor([n.alpha for n in grid])
    left.plot(ratio, (trajectory(name, grid, x) / alpha).T, **style)
left.set(xlabel="sigma / alpha", ylabel="x / alpha", title="the ODE (grey) and DDIM in 6 steps", xscale="log")

steps, x = [16, 32, 64, 128, 256], noise(50)
truth, numbers = trajectory("heun", smooth(2000), x)[:, -1], {}
for name in ("ddim", "heun", "adams-bashforth", "dpm++2m"):
    errors = [float((trajectory(name, smooth(s), x)[:, -1] - truth).abs().max()) for s in steps]
    right.loglog(steps, errors, marker="o", markersize=3, label=f"{name}: order {slope(steps, errors):.2f}")
    numbers[name] = f"{slope(steps, errors):.2f}"
right.set(xlabel="steps S", xticks=steps, xticklabels=steps, title="largest error of the endpoint")
right.legend(fontsize=6)
keep(figure, "ode", **numbers)
