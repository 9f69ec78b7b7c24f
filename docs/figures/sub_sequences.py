"""The levels of each spacing at S = 10, and where a fixed stride lands."""

import matplotlib.pyplot as plt
from common import PATH, keep, mixture, noise

import ddim

figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.6))
for row, name in enumerate(ddim.SPACINGS):
    grid = ddim.make_grid(PATH, 10, name)
    left.plot([n.t for n in grid], [row] * len(grid), "o", markersize=3)
stride = [n.t - 100 for n in ddim.make_grid(PATH, 10, "linspace").nodes[:-1]]
left.plot(stride, [2.25] * 10, "x", markersize=3, color="0.4")
left.set(yticks=range(len(ddim.SPACINGS)), yticklabels=ddim.SPACINGS, xlabel="t", title="S = 10; crosses: t - T/S")
wanted = {n.t for n in ddim.make_grid(PATH, 10, "linspace").nodes[1:]}
elsewhere = sum(t not in wanted for t in stride[:-1])

solver, x, steps = ddim.make_solver("ddim"), noise(500), [5, 10, 20, 50, 100]
heun, fine = ddim.make_solver("heun"), ddim.make_grid(PATH, 1000, "trailing")
truth = heun.read(ddim.solve(mixture, heun, heun.init(x, fine), fine))
numbers = {}
for name in ddim.SPACINGS:
    far = []
    for count in steps:
        grid = ddim.make_grid(PATH, count, name)
        end = solver.read(ddim.solve(mixture, solver, solver.init(x, grid), grid))
        far.append(float((end - truth).square().mean().sqrt()))
    right.loglog(steps, far, marker="o", markersize=3, label=name)
    numbers[name] = f"{far[1]:.3f}"
right.set(xlabel="steps S", xticks=steps, xticklabels=steps, title="error of DDIM's endpoint (RMS)")
right.legend(fontsize=6)
keep(figure, "sub_sequences", elsewhere=str(elsewhere), **numbers)
