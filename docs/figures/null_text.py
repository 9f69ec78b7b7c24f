"""Null-text inversion: the distance of each guided step of `emoji` from the pivot, before and after tuning."""

import matplotlib.pyplot as plt
import torch
from common import keep, show

import ddim
from ddim.data.images import read_images
from ddim.evaluation.metrics import psnr
from ddim.inversion.replay import prompts_of
from ddim.solvers.base import move

model = ddim.load("emoji")
file = next(p for p in ddim.bundled_test_images("emoji") if p.stem == "emojitwo_dog-face")
original, how = read_images(file, model.picture), {"prompt": "emojitwo dog face", "guidance": 3.0, "steps": 20}
figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.6), width_ratios=[3, 2])
rows, numbers = [original], {}
pivot = ddim.invert(model, file, method="direct", **how).extras["pivot"]
for method in ("ddim", "null-text"):
    code, far = ddim.invert(model, file, method=method, **how), []
    denoise = model.guided(ddim.Guidance(3.0), prompts_of(code.conditions, code.grid, code.extras))
    x = code.x
    for i in range(20):
        with torch.no_grad():
            x = move(denoise(x, code.grid[i]), code.grid[i + 1])
        far.append(float((x - pivot[:, i]).square().mean()))
    rows.append(ddim.reconstruct(model, code))
    left.semilogy(range(1, 21), far, marker="o", markersize=3, label=method)
    numbers |= {method: f"{float(psnr(rows[-1], original)):.1f} dB", f"{method}_far": f"{far[-1]:.1e}"}
numbers["floor"] = f"{float(psnr(model.decode(model.encode(original)), original)):.1f} dB"
left.set(xlabel="step", title="mean squared distance from the pivot, w = 3")
left.legend(fontsize=6)
show(right, torch.cat(rows), 3, "original, ddim, null-text")
keep(figure, "null_text", **numbers)
