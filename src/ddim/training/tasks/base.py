"""What the loop asks of a task."""

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..._utils.error_text import one_line, with_full_stop
from ..._utils.errors import InputError, UnknownName
from .. import draws
from ..config import ScheduleConfig, TrainConfig
from ..data import Batch, Images

if TYPE_CHECKING:
    from PIL import Image

FOREIGN: dict[str, Literal["epsilon", "sample", "v_prediction"]] = {
    "eps": "epsilon",
    "x0": "sample",
    "v": "v_prediction",
}
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@dataclass(frozen=True)
class Draw:
    """The random numbers of a micro-batch: all of them functions of the seed, the step and the place in the batch."""

    seed: int
    step: int
    batch: int
    places: range

    def times(self, levels: int, kind: str) -> Tensor:
        """t in 1..levels, int64 [N]; see ``draws.times``."""
        return draws.times(self.seed, self.step, self.batch, levels, kind)[self.places.start : self.places.stop]

    def flips_and_noise(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """bool [N], and N(0, 1) float32 [N, *shape]."""
        return draws.flips_and_noise(self.seed, self.step, self.places, shape)

    def chances(self) -> Tensor:
        """Uniform in [0, 1), float64 [N]."""
        return draws.chances(self.seed, self.step, self.places)

    def dropped(self, share: float) -> Tensor:
        """Which images go without their condition, for classifier-free guidance: bool [N], each True with probability
        ``share``."""
        return self.chances() < share


class Task(ABC):
    """A network, its loss, its sheets and what is exported. One object lives as long as its run.

    Args:
        config: the run.

    Raises:
        InputError: ``[model]`` names an option that does not exist, or contradicts the rest.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.device = torch.device("cpu")

    def prepare(self, images: Images, device: torch.device) -> Images:
        """Called once before ``build``; may replace the images by what the network sees."""
        self.device = device
        return images

    @abstractmethod
    def build(self) -> nn.Module:
        """All that is trained, as one module, with weights from torch's global generator; asked once to see that
        the shapes fit. Raises InputError."""

    def sums(self) -> Mapping[str, int | None]:
        """Checksums of inputs other than the images; a resumed run must find the same."""
        return {}

    @abstractmethod
    def loss(self, forward: nn.Module, batch: Batch, draw: Draw) -> Tensor:
        """The mean loss of a micro-batch, a scalar. ``forward`` is the module, perhaps wrapped for many processes."""

    @abstractmethod
    def sheet(self, network: nn.Module) -> "Image.Image":
        """A picture of what the network does by now."""

    @abstractmethod
    def export(self, network: nn.Module, folder: Path) -> None:
        """Writes the finished model into an empty folder, in the diffusers format."""


def check_options(kind: Any, options: Mapping[str, Any], section: str) -> None:
    """Raises InputError for an option that ``kind``'s constructor does not know; the nearest known one is named."""
    known = [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "kwargs")]
    for key in options:
        if key not in known:
            raise UnknownName(f"key in [{section}]", key, known, parameter=f"{section}.{key}")


def built(
    kind: Callable[..., nn.Module], options: Mapping[str, Any], section: str = "model", maker: str = "diffusers"
) -> nn.Module:
    """``kind(**options)``. Raises InputError when that fails."""
    try:
        return kind(**options)
    except Exception as error:  # diffusers raises what comes up, from ValueError to TypeError
        raise InputError(
            f"{maker} cannot build the network in [{section}]: {with_full_stop(one_line(error))}", parameter=section
        ) from error


def asked(network: Callable[[], Tensor], takes: str) -> Tensor:
    """What a new network answers, asked once. Raises InputError, with what it should take, when that fails."""
    try:
        with torch.no_grad():
            return network()
    except Exception as error:  # diffusers and torch raise what comes up
        raise InputError(
            f"the network does not take {takes}: {with_full_stop(one_line(error))}", parameter="model"
        ) from error


def check_labelled(config: TrainConfig, who: str) -> None:
    """Raises InputError unless every source of images says which column holds their classes."""
    if not all(source.label for source in config.data.sources):
        raise InputError(
            f"{who} needs it, the column of the classes, for every source of images.", parameter="data.label"
        )


def count_classes(images: Images, who: str) -> int:
    """How many classes the images have. Raises InputError for fewer than two."""
    if images.classes < 2:
        raise InputError(f"{who} needs images of two classes or more, not {images.classes}.", parameter="data.label")
    return images.classes


def as_dtype(network: nn.Module, copy: nn.Module, config: TrainConfig) -> Any:
    """``copy`` with the weights of ``network`` in the export's dtype."""
    copy.load_state_dict(network.state_dict())
    return nn.Module.to(copy, dtype=getattr(torch, config.output.export_dtype))  # past diffusers' own, which warns


def widened(file: Path) -> None:
    """Lets transformers compute in float32 what ``file``, a config, says is stored in half: diffusers computes the
    other parts of a pipeline so, and the two would not go together."""
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def scheduler_options(schedule: ScheduleConfig, prediction: str) -> dict[str, Any]:
    """What diffusers' DDIMScheduler must be told to be the schedule of the run."""
    return {
        "num_train_timesteps": schedule.steps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": _SCHEDULES[schedule.kind],
        "prediction_type": FOREIGN[prediction],
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "clip_sample": False,  # what the verbs do: with it, diffusers draws other pictures
        # Only trailing steps start at T, where a zero-SNR model has to be asked first.
        "timestep_spacing": "trailing" if schedule.zero_terminal_snr else "leading",
    }


def scaled(batch: Batch, flips: Tensor, flip: bool) -> Tensor:
    """The images in [-1, 1], float32, mirrored where ``flip`` is set and ``flips`` says so."""
    x0 = batch.pixels.to(torch.float32) / 127.5 - 1
    return torch.where(flips.view(-1, 1, 1, 1), x0.flip(-1), x0) if flip else x0


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Keeps how the model was made beside it."""
    (folder / "ddim_training.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
