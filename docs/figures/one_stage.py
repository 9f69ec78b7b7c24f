"""Round trips of the one-stage methods: with exact velocities on rectified flow, and on real images with `fashion`."""

import matplotlib.pyplot as plt
import torch
from common import data, keep, mixture, slope

import ddim
from ddim.data.images import read_images
from ddim.evaluation.metrics import psnr

WAYS = (
    ("ddim", {"timestep": "source"}, "Euler"),
    ("ddim", {}, "plain DDIM inversion"),
    ("ddim", {"iterations": 3}, "fixed point, K = 3"),
    ("uni-inv", {}, "Uni-Inv"),
    ("rf-solver", {}, "RF-Solver"),
    ("fireflow", {}, "FireFlow"),
)

figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.6))
steps, x0, numbers = [8, 16, 32, 64, 128], data(200), {}
model, files, real = ddim.load("fashion"), ddim.bundled_test_images("fashion")[:4], [5, 10, 20]
images = read_images(files, model.picture)
for name, options, label in WAYS:
    method, errors, quality = ddim.make_inversion(name, options), [], []
    for count in steps:
        sigmas = torch.linspace(1, 0, count + 1, dtype=torch.float64).tolist()
        grid = ddim.Grid(tuple(ddim.Node(s, 1 - s, s) for s in sigmas), path=ddim.RectifiedFlow())
        state = method.invert(mixture, x0, grid).state
        back = ddim.solve(mixture, method.solver(), state, grid)["x"]
        errors.append(float((back - x0).square().mean().sqrt()))
    for count in real:
        code = ddim.invert(model, files, steps=count, method=name, options=options)
        quality.append(float(psnr(ddim.reconstruct(model, code), images).mean()))
    left.loglog(steps, errors, marker="o", markersize=3, label=label)
    right.plot(real, quality, marker="o", markersize=3, label=label)
    key = "_".join([name, *map(str, options.values())])
    numbers |= {f"{key}_order": f"{slope(steps[1:], errors[1:]):.1f}", f"{key}_10": f"{quality[1]:.1f} dB"}
left.set(xlabel="steps S, each way", xticks=steps, xticklabels=steps, title="round trip, exact velocity (RMS)")
right.set(xlabel="steps S, each way", xticks=real, title="round trip of four images (PSNR in dB)")
left.legend(fontsize=6)
keep(figure, "one_stage", **numbers)
