"""Three processes with the same marginals: trajectories of one x0 from noise to data, at three eta."""

from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from common import PATH, keep, noise

import ddim
from ddim.core.process import eta_std, q_posterior

figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.3), sharey=True)
grid, x0, count = ddim.make_grid(PATH, 50, "trailing"), torch.tensor([[0.8]], dtype=torch.float64), 20_000
numbers, gap = {}, 0.0
for axis, eta in zip(axes, [0.0, 0.5, 1.0], strict=True):
    start = grid[0].alpha * x0 + grid[0].sigma * noise(count)
    nodes = [start]
    for k, (t, s) in enumerate(pairwise(grid.nodes)):
        q = q_posterior(nodes[-1], x0, t, s, eta_std(eta, t, s))
        nodes.append(q.mean + q.std * noise(count, seed=100 + k))
        gap = max(gap, abs(float(nodes[-1].std()) - s.sigma))
    times = [node.t for node in grid]
    axis.plot(times, torch.cat(nodes, 1)[:12].T, linewidth=0.7)
    spread, middle = torch.tensor([n.sigma for n in grid]), torch.tensor([n.alpha * float(x0) for n in grid])
    axis.fill_between(times, middle - 2 * spread, middle + 2 * spread, color="0.9")
    axis.set(title=f"eta = {eta:g}", xlabel="t")
    halfway = torch.corrcoef(torch.cat([nodes[0], nodes[25]], 1).T)[0, 1]
    numbers[f"correlation_{eta:g}"] = f"{halfway:.2f}"
axes[0].set_ylabel("x")
keep(figure, "non_markovian", gap=f"{gap:.3f}", **numbers)
