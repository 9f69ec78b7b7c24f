"""Round trips of the reversible solvers in float64: with the whole state, and with the latent alone."""

import matplotlib.pyplot as plt
from common import PATH, data, keep, mixture

import ddim
from ddim import LatticeState

figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.6), sharey=True)
steps, x0, numbers = [10, 20, 50, 100], data(100), {}
for name, options in (
    *(("edict", {}), ("bdia", {}), ("bdia", {"gamma": 0.9}), ("belm", {})),
    *(("rex", {}), ("reversible-heun", {}), ("ddim", {})),
):
    method, whole, alone = ddim.make_inversion(name, options), [], []
    for count in steps:
        grid, solver = ddim.make_grid(PATH, count, "trailing"), method.solver()
        code = method.invert(mixture, x0, grid).state
        lone = {"x": code["x"]}
        if isinstance(code, LatticeState):  # every entry as x
            lone = solver.on_lattice(dict.fromkeys(solver.keys, solver.read(code)), grid, code.node)
        for kept, far in ((code, whole), (lone, alone)):
            back = solver.read(ddim.solve(mixture, solver, kept, grid))
            far.append(max(float((back - x0).abs().max()), 1e-17))
    label = name + "".join(f", {k} = {v:g}" for k, v in options.items())
    left.loglog(steps, whole, marker="o", markersize=3, label=label)
    right.loglog(steps, alone, marker="o", markersize=3, label=label)
    key = name + "".join(f"_{v:g}" for v in options.values())
    numbers |= {f"{key}_whole": f"{whole[2]:.0e}", f"{key}_alone": f"{alone[2]:.2g}"}
left.set(xlabel="steps S", xticks=steps, xticklabels=steps, title="whole state kept", ylabel="largest error")
right.set(xlabel="steps S", xticks=steps, xticklabels=steps, title="x_T alone kept")
left.legend(fontsize=6)
keep(figure, "reversible", **numbers)
