"""The forward process: the coefficients of four paths, and the density of two normals at four times."""

import matplotlib.pyplot as plt
import torch
from common import PATH, data, density, keep, noise

import ddim

figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.6))
paths = {
    "DDPM, linear": PATH,
    "latent diffusion, scaled linear": ddim.TablePath(ddim.scaled_linear_alpha_bar()),
    "cosine": ddim.TablePath(ddim.cosine_alpha_bar()),
    "rectified flow": ddim.RectifiedFlow(),
}
for k, (name, path) in enumerate(paths.items()):
    t = torch.linspace(0, 1, 200, dtype=torch.float64)
    left.plot(t, path.alpha(t * path.t_max), color=f"C{k}", label=name)
    left.plot(t, path.sigma(t * path.t_max), color=f"C{k}", linestyle=":")
left.set(xlabel="t / T", title="alpha (solid) and sigma (dotted)")
left.legend(fontsize=6)

x0, x, gap = data(100_000), torch.linspace(-4, 4, 400, dtype=torch.float64), 0.0
for k, t in enumerate([0, 100, 300, 1000]):
    node = PATH.node(t)
    x_t = node.alpha * x0 + node.sigma * noise(len(x0), seed=2 + k)
    right.hist(x_t[:, 0].numpy(), bins=100, range=(-4, 4), density=True, alpha=0.35, color=f"C{k}", label=f"t = {t}")
    right.plot(x, density(x, node), color=f"C{k}")
    gap = max(gap, abs(float(x_t.var()) - (node.alpha**2 * float(x0.var()) + node.sigma**2)))
right.set(title="draws (bars) and density (lines)", xlabel="x")
right.legend(fontsize=6)
last = PATH.node(1000)
keep(figure, "forward", alpha=f"{last.alpha:.4f}", sigma=f"{last.sigma:.5f}", gap=f"{gap:.3f}")
