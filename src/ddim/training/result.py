"""What a run gives: a folder that plain diffusers loads, and sheets of samples on the way."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import DDIMError, InputError
from ..path import TablePath
from ..prediction import to_pair
from .checkpoint import TEMPORARY, whole_folder
from .config import TrainConfig

_FOREIGN = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def build_network(config: TrainConfig) -> nn.Module:
    """The UNet2DModel that ``[model]`` describes, with weights from torch's global generator.

    Raises:
        InputError: diffusers cannot build it.
    """
    from diffusers import UNet2DModel

    sides = {"sample_size": config.data.size, "in_channels": config.data.channels, "out_channels": config.data.channels}
    try:
        return UNet2DModel(**{**config.model, **sides})
    except Exception as error:  # diffusers raises what comes up, from ValueError to TypeError
        raise InputError(f"diffusers cannot build the network in [model]: {error}") from error


@torch.no_grad()
def probe(network: nn.Module, config: TrainConfig) -> None:
    """Asks the network once. Raises InputError if it does not return an image of the size that it was given."""
    side = config.data.size
    x = torch.zeros(1, config.data.channels, side, side)
    try:
        shape = network(x, torch.zeros(1, dtype=torch.int64)).sample.shape
    except Exception as error:
        raise InputError(f"The network in [model] does not take {side}x{side} images: {error}") from error
    if shape != x.shape:
        raise InputError(f"The network in [model] makes {shape[-2]}x{shape[-1]} images of {side}x{side} ones.")


def export(network: nn.Module, config: TrainConfig, target: Path, about: dict[str, Any]) -> Path:
    """Writes ``network`` with its scheduler as a DDIMPipeline folder, whole or not at all.

    Args:
        network: a UNet2DModel with the weights to export (left as it is).
        config: gives the schedule and the dtype.
        target: the folder, replaced if there is one.
        about: JSON values kept beside it in ``ddim_training.json``.
    """
    from diffusers import DDIMPipeline, DDIMScheduler

    copy = build_network(config)
    copy.load_state_dict(network.state_dict())
    nn.Module.to(copy, dtype=getattr(torch, config.output.export_dtype))  # past diffusers' own, which warns
    schedule = config.schedule
    scheduler = DDIMScheduler(
        num_train_timesteps=schedule.steps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule=_SCHEDULES[schedule.kind],
        prediction_type=_FOREIGN[config.loss.prediction],
        rescale_betas_zero_snr=schedule.zero_terminal_snr,
        # Only trailing steps start at T, where a zero-SNR model has to be asked first.
        timestep_spacing="trailing" if schedule.zero_terminal_snr else "leading",
    )
    with whole_folder(target) as folder:
        DDIMPipeline(unet=copy, scheduler=scheduler).save_pretrained(folder)  # type: ignore[arg-type]
        (folder / "ddim_training.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
    return target


@torch.no_grad()
def sample_sheet(network: nn.Module, path: TablePath, prediction: str, noise: Tensor, steps: int) -> Image.Image:
    """A grid of pictures that ``network`` makes of ``noise`` in ``steps`` DDIM steps (eta = 0, x0 clipped).

    Args:
        network: a UNet2DModel.
        noise: float32 [N, C, H, W] on the network's device.
    """
    training = network.training
    network.eval()
    x = noise
    grid = torch.linspace(path.t_max, 0, steps + 1, dtype=torch.float64).round().tolist()
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        here, there = path.node(t), path.node(s)
        label = torch.full((len(x),), int(path.label(t)), device=x.device)
        pair = to_pair(prediction, network(x, label).sample.float(), x, here)
        x0 = pair.x0.clamp(-1, 1)
        x = there.alpha * x0 + there.sigma * (x - here.alpha * x0) / here.sigma
    network.train(training)
    return _grid_image(x)


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Writes a PNG, whole or not at all. Raises DDIMError if it cannot be written."""
    temporary = path.with_name(TEMPORARY + path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(temporary, format="PNG")
        temporary.replace(path)
    except OSError as error:
        raise DDIMError(f"Could not write {path}: {error.strerror or error}.") from error


def _grid_image(x: Tensor) -> Image.Image:
    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8).permute(0, 2, 3, 1)
    count, height, width, channels = pixels.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = torch.zeros(rows * columns, height, width, channels, dtype=torch.uint8)
    canvas[:count] = pixels
    sheet = canvas.view(rows, columns, height, width, channels).permute(0, 2, 1, 3, 4)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    return Image.fromarray(sheet.squeeze(-1).numpy())
