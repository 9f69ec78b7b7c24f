"""What a run gives: a folder that plain diffusers loads, and sheets of samples on the way."""

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..denoiser import corrected, from_network
from ..errors import InputError, unknown
from ..grid import make_grid
from ..images import sheet
from ..loop import solve
from ..path import TablePath
from ..prediction import clip
from ..solvers.ddim import DDIM
from .checkpoint import whole_folder
from .config import TrainConfig

if TYPE_CHECKING:
    from PIL import Image

_FOREIGN: dict[str, Literal["epsilon", "sample", "v_prediction"]] = {
    "eps": "epsilon",
    "x0": "sample",
    "v": "v_prediction",
}
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def check_model(config: TrainConfig) -> None:
    """Raises InputError for a key in ``[model]`` that UNet2DModel does not know; the nearest known one is named."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    known = [name for name in inspect.signature(UNet2DModel.__init__).parameters if name != "self"]
    for key in config.model:
        if key not in known:
            raise unknown("key in [model]", key, known)


def build_network(config: TrainConfig) -> nn.Module:
    """The UNet2DModel that ``[model]`` describes, with weights from torch's global generator.

    Raises:
        InputError: diffusers cannot build it.
    """
    from diffusers.models.unets.unet_2d import UNet2DModel

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
    from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

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


def sample_sheet(network: nn.Module, path: TablePath, prediction: str, noise: Tensor, steps: int) -> "Image.Image":
    """A sheet of what ``network`` makes of ``noise`` in ``steps`` DDIM steps (eta = 0, trailing, x0 clipped).

    Args:
        network: a UNet2DModel.
        noise: float32 [N, C, H, W] on the network's device.
    """

    def predict(x: Tensor, label: float) -> Tensor:
        return network(x, torch.tensor(int(label), device=x.device)).sample.float()

    training = network.training
    network.eval()
    solver, grid = DDIM(), make_grid(path, steps, "trailing")
    state = solve(corrected(from_network(predict, path, prediction), clip), solver, {"x": noise}, grid)
    network.train(training)
    return sheet((solver.read(state) + 1) / 2)
