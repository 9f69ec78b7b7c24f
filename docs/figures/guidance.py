"""Round trips under guidance: reconstructions of two drawings that `emoji` never saw, by guidance weight."""

import matplotlib.pyplot as plt
import torch
from common import keep, show

import ddim
from ddim.data.images import read_images
from ddim.evaluation.metrics import psnr

model, files = (
    ddim.load("emoji"),
    [p for p in ddim.bundled_test_images("emoji") if "dog" in p.stem or "slight" in p.stem],
)
prompts = [p.stem.replace("_", " ").replace("-", " ") for p in files]
originals, numbers, weights = read_images(files, model.picture), {}, [1, 3, 7.5]
figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.6), width_ratios=[3, 2])
rows = [originals]
for method in ("ddim", "negative-prompt", "direct"):
    near = []
    for w in weights:
        code = ddim.invert(model, files, prompt=prompts, method=method, guidance=w, steps=10)
        back = ddim.reconstruct(model, code)
        near.append(float(psnr(back, originals).mean()))
        numbers[f"{method}_{w:g}"] = f"{near[-1]:.1f} dB"
    rows.append(back)
    left.plot(weights, near, marker="o", markersize=3, label=method)
numbers["floor"] = f"{float(psnr(model.decode(model.encode(originals)), originals).mean()):.1f} dB"
left.axhline(float(numbers["floor"].split()[0]), color="0.7", linestyle=":", label="autoencoder alone")
left.set(xlabel="guidance w", ylabel="PSNR, dB", title="round trip of two drawings, S = 10")
left.legend(fontsize=6, loc="center right")
show(right, torch.stack(rows, 1).flatten(0, 1), 4, "original; ddim, negative-prompt, direct at w = 7.5")
keep(figure, "guidance", **numbers)
