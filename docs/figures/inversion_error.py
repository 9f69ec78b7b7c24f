"""The error of plain DDIM inversion: with exact eps by the number of steps, and on real images with `fashion`."""

import matplotlib.pyplot as plt
import torch
from common import data, keep, mixture, show, slope, smooth

import ddim
from ddim.data.images import read_images
from ddim.evaluation.metrics import mse

figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.6))
steps, x0, numbers = [8, 16, 32, 64, 128], data(50), {}
for label in ("destination", "source"):
    method, errors = ddim.make_inversion("ddim", {"timestep": label}), []
    for count in steps:
        grid, solver = smooth(count), method.solver()
        code = method.invert(mixture, x0, grid)
        back = solver.read(ddim.solve(mixture, solver, code, grid))
        errors.append(float((back - x0).square().mean().sqrt()))
    left.loglog(steps, errors, marker="o", markersize=3, label=f"label of the {label}")
    numbers[f"order_{label}"] = f"{slope(steps, errors):.2f}"
left.set(xlabel="steps S, each way", xticks=steps, xticklabels=steps, title="round trip, exact eps (RMS)")
left.legend(fontsize=6)

model, files = ddim.load("fashion"), ddim.bundled_test_images("fashion")[:4]
rows = [read_images(files, model.picture)]
for count in (10, 20, 50):
    rows.append(ddim.reconstruct(model, ddim.invert(model, files, steps=count)))
    numbers[f"S{count}"] = f"{float(mse(rows[-1], rows[0]).mean()):.4f}"
show(right, torch.cat(rows), 4, "pictures, and back at S = 10, 20, 50")
keep(figure, "inversion_error", **numbers)
