"""A MODEL as ComfyUI hands it to nodes, with ComfyUI's sampling contract: written from its formulas, without its code.

``apply_model(x, sigma)`` scales x to the network's input, asks the network at ``timestep(sigma)``, and converts its
output to the denoised sample.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ddim import scaled_linear_alpha_bar


def each(sigma: Tensor) -> Tensor:
    return sigma.reshape(-1, 1, 1, 1)


class EPS:
    sigma_data: float

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor, from_the_top: bool = False) -> Tensor:
        return latent + noise * ((1 + each(sigma) ** 2).sqrt() if from_the_top else each(sigma))

    def calculate_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x / (sigma**2 + self.sigma_data**2).sqrt()

    def calculate_denoised(self, sigma: Tensor, output: Tensor, x: Tensor) -> Tensor:
        return x - sigma * output


class V_PREDICTION(EPS):
    sign = -1

    def calculate_denoised(self, sigma: Tensor, output: Tensor, x: Tensor) -> Tensor:
        size = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / size * x + self.sign * sigma * self.sigma_data / size.sqrt() * output


class EDM(V_PREDICTION):
    sign = 1


class X0(EPS):
    def calculate_denoised(self, sigma: Tensor, output: Tensor, x: Tensor) -> Tensor:
        return output


class CONST:
    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor, from_the_top: bool = False) -> Tensor:
        return each(sigma) * noise + (1 - each(sigma)) * latent

    def calculate_input(self, sigma: Tensor, x: Tensor) -> Tensor:
        return x

    def calculate_denoised(self, sigma: Tensor, output: Tensor, x: Tensor) -> Tensor:
        return x - sigma * output


class ModelSamplingDiscrete:
    def __init__(self) -> None:
        table = scaled_linear_alpha_bar()
        self.sigma_data, self.sigmas = 1.0, ((1 - table) / table).sqrt().float()
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]

    def timestep(self, sigma: Tensor) -> Tensor:
        return (sigma.log()[None] - self.sigmas.log()[:, None]).abs().argmin(0)


class ModelSamplingContinuousEDM:
    def __init__(self) -> None:
        self.sigma_data = 0.5
        self.sigmas = torch.linspace(math.log(0.002), math.log(80.0), 1000).exp()
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4


class ModelSamplingDiscreteFlow:
    shift = 3.0

    def __init__(self) -> None:
        even = torch.arange(1, 1001) / 1000
        self.sigmas = self.shift * even / (1 + (self.shift - 1) * even)
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]

    def timestep(self, sigma: Tensor) -> Tensor:
        return sigma * 1000


def sampling(levels: type, prediction: type) -> Any:
    """A ``model_sampling`` object, whose class ComfyUI makes of two in this way."""

    class ModelSampling(levels, prediction):  # type: ignore[misc]
        pass

    return ModelSampling()


SAMPLINGS: dict[str, Callable[[], Any]] = {
    "eps": lambda: sampling(ModelSamplingDiscrete, EPS),
    "v": lambda: sampling(ModelSamplingDiscrete, V_PREDICTION),
    "x0": lambda: sampling(ModelSamplingDiscrete, X0),
    "edm": lambda: sampling(ModelSamplingContinuousEDM, EDM),
    "flow": lambda: sampling(ModelSamplingDiscreteFlow, CONST),
}


class LatentFormat:
    latent_dimensions = 2

    def process_in(self, latent: Tensor) -> Tensor:
        return latent * 0.18215

    def process_out(self, latent: Tensor) -> Tensor:
        return latent / 0.18215


class VideoFormat(LatentFormat):
    latent_dimensions = 3


class Network(nn.Module):
    """Convolutions whose output depends on x, on the timestep and on the text [N, L, 4]."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        told = text.mean(1)[:, :, None, None] + 0.1 * torch.sin(t / 300)[:, None, None, None]
        return self.last(torch.tanh(self.first(x) + told.repeat(1, 2, 1, 1)))


class Patcher:
    """A MODEL. ``ask`` does what ComfyUI's ``calc_cond_batch`` does for one CONDITIONING."""

    def __init__(self, kind: str = "eps", latent_format: Any = None) -> None:
        self.model = SimpleNamespace(diffusion_model=Network().eval(), manual_cast_dtype=None)
        self.objects = {"model_sampling": SAMPLINGS[kind](), "latent_format": latent_format or LatentFormat()}
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.load_device, self.patches, self.backup = torch.device("cpu"), {}, {}
        self.seen: list[tuple[Tensor, Tensor, Tensor, str]] = []

    def get_model_object(self, name: str) -> Any:
        return self.objects[name]

    def model_dtype(self) -> torch.dtype:
        return torch.float32

    def ask(self, x: Tensor, sigma: Tensor, entries: list[Any], branch: str, patches: Any) -> Tensor:
        ((text, _),) = entries
        flat = x.reshape(len(x), x.shape[1], *x.shape[-2:])
        given = self.objects["model_sampling"]
        inside = given.calculate_input(each(sigma), flat)
        text = text.expand(len(x), -1, -1)
        output = self.model.diffusion_model(inside, given.timestep(sigma).float(), text)
        self.seen.append((inside, sigma, output, branch))
        return given.calculate_denoised(each(sigma), output, flat).reshape(x.shape)


def prompt(seed: int, length: int = 3, **more: Any) -> list[Any]:
    """A CONDITIONING as CLIPTextEncode makes it."""
    source = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, length, 4, generator=source), {"pooled_output": None, **more}]]


def latents(seed: int = 0, count: int = 1) -> Tensor:
    return 4 * torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
