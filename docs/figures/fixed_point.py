"""The PSNR of round trips of `fashion` by the number of fixed-point iterations per step."""

import matplotlib.pyplot as plt
from common import keep

import ddim
from ddim.data.images import read_images
from ddim.evaluation.metrics import psnr

model, files = ddim.load("fashion"), ddim.bundled_test_images("fashion")[:2]
originals, numbers, calls = read_images(files, model.picture), {}, [1, 2, 3, 5]
figure, axis = plt.subplots(figsize=(5, 2.6))
for anderson in (0, 2):
    near = []
    for iterations in calls:
        options = {"iterations": iterations, "anderson": anderson}
        code = ddim.invert(model, files, steps=10, method="ddim", options=options)
        near.append(float(psnr(ddim.reconstruct(model, code), originals).mean()))
        numbers[f"a{anderson}_{iterations}"] = f"{near[-1]:.1f} dB"
    axis.plot(calls, near, marker="o", markersize=3, label="plain" if not anderson else f"Anderson, memory {anderson}")
axis.set(xlabel="iterations a step", xticks=calls, ylabel="PSNR, dB", title="round trip of two pictures, S = 10")
axis.legend(fontsize=6)
keep(figure, "fixed_point", **numbers)
