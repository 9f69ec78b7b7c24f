"""``Task``, the interface between the training loop and what is trained, and helpers that several tasks share."""

import inspect
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..._utils.error_text import one_line, with_full_stop
from ..._utils.errors import InputError, UnknownName
from .. import draws
from ..config import ScheduleConfig, TrainConfig
from ..data import Batch, Images

if TYPE_CHECKING:
    from PIL import Image

PREDICTION_TYPES: dict[str, Literal["epsilon", "sample", "v_prediction"]] = {
    "eps": "epsilon",
    "x0": "sample",
    "v": "v_prediction",
}
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


@dataclass(frozen=True)
class Draw:
    """The random numbers of a micro-batch; all are functions of the seed, the step and the position in the batch.

    Args:
        seed: the run's seed.
        step: the number of the step, from 0.
        batch: the size of the whole batch, over all processes.
        positions: the positions of this micro-batch in the whole batch.
    """

    seed: int
    step: int
    batch: int
    positions: range

    def times(self, levels: int, kind: str) -> Tensor:
        """Draws noise levels t in 1..levels, int64 [N]; see ``draws.times``."""
        whole = draws.times(self.seed, self.step, self.batch, levels, kind)
        return whole[self.positions.start : self.positions.stop]

    def logit_normal(self) -> Tensor:
        """Draws noise levels of rectified flow in [0, 1), float32 [N]; see ``draws.logit_normal``."""
        whole = draws.logit_normal(self.seed, self.step, self.batch)
        return whole[self.positions.start : self.positions.stop].float()

    def flips_and_noise(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Draws whether each image is mirrored, bool [N], and its noise, N(0, 1) float32 [N, *shape]."""
        return draws.flips_and_noise(self.seed, self.step, self.positions, shape)

    def chances(self) -> Tensor:
        """Draws a uniform number in [0, 1) for each image, float64 [N]."""
        return draws.chances(self.seed, self.step, self.positions)

    def dropped(self, share: float) -> Tensor:
        """Draws which images lose their condition, for classifier-free guidance.

        Returns:
            bool [N]; each is True with probability ``share``.
        """
        return self.chances() < share


class Task(ABC):
    """What is trained: it builds the network, computes the loss, draws sample sheets, and exports the model.

    Args:
        config: the run's config.

    Raises:
        InputError: ``[model]`` has an unknown option, or contradicts the rest of the config.
    """

    plain_attention: ClassVar[bool] = False
    """Whether attention is computed by its plain formula on a CPU. With few tokens its backward pass is faster than
    that of the fused kernel; with many it needs much more memory."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.device = torch.device("cpu")

    def prepare(self, images: Images, device: torch.device) -> Images:
        """Prepares the task for its images. The loop calls it once, before ``build``.

        Args:
            images: the run's images.
            device: the device of the network.

        Returns:
            What the network is trained on: the images, or something computed from them, such as latents.
        """
        self.device = device
        return images

    @abstractmethod
    def build(self) -> nn.Module:
        """Builds the network as one module, with random weights from torch's global generator.

        It also calls the network once.

        Raises:
            InputError: the network cannot be built, or does not accept the images.
        """

    def checksums(self) -> Mapping[str, int | None]:
        """Returns checksums of inputs other than the images, by name; they must be the same when a run is resumed."""
        return {}

    @abstractmethod
    def inputs(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        """Prepares a micro-batch on the CPU.

        Args:
            batch: the images of this micro-batch.
            draw: its random numbers.

        Returns:
            All that ``loss`` reads of the two: tensors on the CPU, whose names and shapes are the same in each step.
        """

    @abstractmethod
    def loss(self, forward: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Computes the mean loss of a micro-batch.

        On a GPU it is recorded once as a CUDA graph and then replayed for other inputs. So it must read nothing else
        that changes, copy nothing between host and GPU, and take no decision that depends on the values of tensors.

        Args:
            forward: the network, which may be wrapped in DDP.
            inputs: what ``inputs`` returned, on the device of the network.

        Returns:
            A scalar.
        """

    @abstractmethod
    def sheet(self, network: nn.Module) -> "Image.Image":
        """Draws a sheet of images that shows what the network can do so far."""

    @abstractmethod
    def export(self, network: nn.Module, folder: Path) -> None:
        """Writes the trained model into an empty folder, in the format of diffusers or transformers."""


def weights_checksum(*networks: nn.Module) -> int:
    """Returns a checksum of the weights of some networks, by which a resumed run recognises them."""
    total = 0
    for network in networks:
        for value in network.state_dict().values():
            total = zlib.crc32(value.detach().cpu().numpy().tobytes(), total)
    return total


def check_options(kind: Any, options: Mapping[str, Any], section: str) -> None:
    """Raises InputError for an option that the constructor of ``kind`` lacks; the most similar one is suggested."""
    known = [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "kwargs")]
    for key in options:
        if key not in known:
            raise UnknownName(f"key in [{section}]", key, known, parameter=f"{section}.{key}")


def build_network(
    kind: Callable[..., nn.Module], options: Mapping[str, Any], section: str = "model", maker: str = "diffusers"
) -> nn.Module:
    """Returns ``kind(**options)``.

    Args:
        kind: the network's class.
        options: its options.
        section: the section of the config that they come from, for the error.
        maker: the library of the class, for the error.

    Raises:
        InputError: the constructor fails.
    """
    try:
        return kind(**options)
    except Exception as error:  # for invalid options, diffusers raises errors of any type
        raise InputError(
            f"{maker} cannot build the network in [{section}]: {with_full_stop(one_line(error))}", parameter=section
        ) from error


def first_output(network: Callable[[], Tensor], takes: str) -> Tensor:
    """Returns the output of a new network.

    Args:
        network: calls the network.
        takes: what the network should accept, for the error.

    Raises:
        InputError: the call fails.
    """
    try:
        with torch.no_grad():
            return network()
    except Exception as error:  # diffusers and torch raise errors of any type
        raise InputError(
            f"the network does not take {takes}: {with_full_stop(one_line(error))}", parameter="model"
        ) from error


def check_labelled(config: TrainConfig, who: str) -> None:
    """Raises InputError unless every source of images names a column of classes."""
    if not all(source.label for source in config.data.sources):
        raise InputError(f"{who} needs the column of the classes, for every source of images.", parameter="data.label")


def count_classes(images: Images, who: str) -> int:
    """Returns the number of classes of the images. Raises InputError if there are fewer than two."""
    if images.classes < 2:
        raise InputError(f"{who} needs images of two classes or more, not {images.classes}.", parameter="data.label")
    return images.classes


def copy_in_dtype(network: nn.Module, copy: nn.Module, config: TrainConfig) -> Any:
    """Copies the weights of ``network`` into the network ``copy``, and converts that to the export's dtype."""
    copy.load_state_dict(network.state_dict())
    # nn.Module.to, because diffusers' own method ``to`` warns of a cast
    return nn.Module.to(copy, dtype=getattr(torch, config.output.export_dtype))


def declare_float32(file: Path) -> None:
    """Sets the dtype in a config of transformers to float32, although its weights may be stored in float16.

    diffusers loads the other parts of a pipeline in float32 by default, and all parts must have the same dtype.

    Args:
        file: the ``config.json``.
    """
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def scheduler_options(schedule: ScheduleConfig, prediction: str) -> dict[str, Any]:
    """Returns the options of diffusers' DDIMScheduler that describe the run's schedule."""
    return {
        "num_train_timesteps": schedule.steps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": _SCHEDULES[schedule.kind],
        "prediction_type": PREDICTION_TYPES[prediction],
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "clip_sample": False,  # this library does not clip x0 by default, and diffusers should draw the same images
        # Only trailing spacing starts at T, where a model with zero terminal SNR must be called first.
        "timestep_spacing": "trailing" if schedule.zero_terminal_snr else "leading",
    }


def to_device(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies tensors from the CPU to a device. The host does not wait for a GPU."""
    if device.type != "cuda":
        return {name: value.to(device) for name, value in inputs.items()}
    return {name: value.pin_memory().to(device, non_blocking=True) for name, value in inputs.items()}


def to_model_range(pixels: Tensor, flips: Tensor, flip: bool) -> Tensor:
    """Converts images from uint8 to float32 in [-1, 1], and mirrors those in ``flips`` if ``flip`` is set."""
    x0 = pixels.to(torch.float32) / 127.5 - 1
    return torch.where(flips.view(-1, 1, 1, 1), x0.flip(-1), x0) if flip else x0


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Writes how a model was made to ``ddim_training.json`` in its folder."""
    (folder / "ddim_training.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
