"""The distance of samples from the data, by eta, sigma-hat and the number of steps."""

import matplotlib.pyplot as plt
from common import PATH, data, keep, mixture, noise

import ddim

COUNT, STEPS = 5_000, [5, 10, 20, 50, 100, 200]
truth = data(COUNT).sort(0).values
figure, axis = plt.subplots(figsize=(5, 2.6))
numbers = {}
for name, solver in {
    "eta = 0": ddim.make_solver("ddim"),
    "eta = 0.5": ddim.make_solver("ddim", {"eta": 0.5}),
    "eta = 1": ddim.make_solver("ddim", {"eta": 1.0}),
    "sigma-hat": ddim.make_solver("ddpm"),
}.items():
    far = []
    for steps in STEPS:
        grid = ddim.make_grid(PATH, steps, "trailing")
        draws = iter(range(1000, 10_000))
        state = solver.init(noise(COUNT), grid)
        end = ddim.solve(mixture, solver, state, grid, noise=lambda like, draws=draws: noise(len(like), next(draws)))
        far.append(float((solver.read(end).sort(0).values - truth).abs().mean()))
    axis.loglog(STEPS, far, marker="o", markersize=3, label=name)
    key = name.replace("eta = ", "eta_").replace("sigma-hat", "hat")
    numbers |= {f"{key}_S{s}": f"{f:.3f}" for s, f in zip(STEPS, far, strict=True) if s in (10, 200)}
axis.set(
    xlabel="steps S",
    xticks=STEPS,
    xticklabels=STEPS,
    ylabel="Wasserstein-1 distance",
    title="5,000 samples against the data",
)
axis.legend(fontsize=6)
keep(figure, "eta", **numbers)
