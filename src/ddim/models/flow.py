"""The part that the adapters of transformers on rectified flow share (SD 3, FLUX, Qwen-Image and others)."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError
from ..core.path import Node, RectifiedFlow
from ..core.schedule import Clock, Schedule
from ..editing.plan import AttentionSite
from .attention.processors import Layer, exchanged, refuse_others
from .engine.work import Work
from .info import ModelInfo
from .live import refuse_compiled
from .pipeline_model import PipelineModel
from .scheduler_config import read_schedule

_LEVELS = 1000  # timesteps in the pipelines are 1000 sigma


class FlowModel(PipelineModel):
    """A text-to-image pipeline whose network is a transformer that predicts the velocity of rectified flow.

    The velocity is eps - x0 at x = (1 - sigma) x0 + sigma eps (Liu et al. 2022, arXiv 2209.03003). Latents are
    [N, C, h, w] here; a family that packs them into tokens does so inside ``call_network``.
    """

    network_part: ClassVar[str] = "transformer"
    spacing: ClassVar[str] = "trailing"
    """The spacing of the pipeline's grid before its shift; see ``read_schedule``."""
    clock: ClassVar[Clock | None] = "sigma"
    patch: ClassVar[int] = 2
    """Along each side, so many pixels of the latent make one token."""

    @classmethod
    def check_pipeline(cls, name: str, pipeline: Any) -> None:
        """Raises InputError for a network that takes other channels than the autoencoder makes."""
        takes, makes = pipeline.transformer.config.in_channels, pipeline.vae.config.latent_channels
        if takes != makes:
            raise InputError(
                f"the transformer of {name!r} takes {takes} channels, but its autoencoder makes {makes}; give a "
                "text-to-image model.",
                parameter="model",
            )

    def schedule_of(self, name: str, config: Mapping[str, Any]) -> Schedule:
        """Makes the schedule. Raises InputError for a scheduler that is not for rectified flow."""
        schedule = read_schedule(config, flow_spacing=self.spacing)
        if not isinstance(schedule.path, RectifiedFlow):
            raise InputError(
                f"{name!r} has a {config['_class_name']}, but its network needs a scheduler for rectified flow, such "
                "as FlowMatchEulerDiscreteScheduler.",
                parameter="model",
            )
        return schedule if self.clock is None else replace(schedule, clock=self.clock)

    def read_info(self, name: str, device: torch.device, dtype: torch.dtype) -> ModelInfo:
        """Collects the facts about the model."""
        vae = self.vae.config
        factor, (height, width) = self.pixels_per_latent(), self.latent_sides()
        return ModelInfo(
            name=name,
            family=self.family,
            shape=(self.latent_channels(), height, width),
            picture=(int(vae.get("in_channels") or 3), height * factor, width * factor),
            parameters=self.count_parameters(),
            dtype=dtype,
            device=device,
            multiple=factor * self.patch,
            text=True,
            guidance=self.usual_guidance,
            steps=self.usual_steps,
            prompt_tokens=self.longest_prompt(),
        )

    def check_width(self, made: int, taken: int) -> None:
        """Raises InputError if the text encoder makes embeddings of another size than the transformer takes."""
        if made != taken:
            raise InputError(
                f"the text encoder of {self.name!r} makes embeddings of {made} numbers, but its transformer takes "
                f"{taken}.",
                parameter="model",
            )

    def pixels_per_latent(self) -> int:
        """Returns how many pixels of an image, along each side, belong to one position of the latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_channels(self) -> int:
        """Returns the number of channels of the latent."""
        return int(self.vae.config.latent_channels)

    def latent_sides(self) -> tuple[int, int]:
        """Returns (height, width) of the latent by default: the pipeline's ``default_sample_size``."""
        side = int(self.pipeline.default_sample_size)
        return side, side

    @abstractmethod
    def longest_prompt(self) -> int:
        """Returns the largest number of tokens in a prompt, without start and end token."""

    def timestep(self, node: Node, x: Tensor) -> Tensor:
        """Returns the timestep of a call as a float32 scalar on the device of x, to the last bit that of the pipeline.

        Like the sigmas of the grid, it is a float32 number in every dtype of the network.
        """
        return torch.full((), self.schedule.timestep(node), dtype=torch.float32, device=x.device)

    def estimate_work(self) -> Work:
        """Estimates the work of the network's calls, whose layers act on tokens."""
        return Work.of_tokens(self.network, self.patch)

    # --- attention --------------------------------------------------------------------------------------------------

    def attention_layers(self) -> Iterable[Layer]:
        """Returns the attention layers that can be controlled, in the order in which they run; by default none."""
        return ()

    def attention_sites(self) -> tuple[AttentionSite, ...]:
        """Returns the transformer's attention layers; see ``Model.attention_sites``."""
        layers = list(self.attention_layers())
        if not layers:
            return super().attention_sites()
        refuse_compiled(self.network)
        refuse_others(layers, "load the pipeline without what has set it")
        return tuple(layer.site for layer in layers)

    @contextmanager
    def controlled(self) -> Iterator[None]:
        """Inside the block, the transformer's attention layers follow the controller of a call."""
        with exchanged(self.attention_layers()):
            yield


class PackedFlowModel(FlowModel):
    """A flow model whose transformer takes latents packed into tokens, 2x2 positions each (FLUX.1, FLUX.2, Chroma)."""

    needs: ClassVar[str] = "give a text-to-image model."
    """What to do about a transformer that takes other tokens, for an error."""

    @classmethod
    def check_pipeline(cls, name: str, pipeline: Any) -> None:
        """Raises InputError for a transformer that takes other tokens than the autoencoder's latents make."""
        config, channels = pipeline.transformer.config, pipeline.vae.config.latent_channels
        makes = cls.patch**2 * channels
        if config.in_channels != makes or (config.out_channels or config.in_channels) != makes:
            raise InputError(
                f"the transformer of {name!r} takes tokens of {config.in_channels} numbers and returns "
                f"{config.out_channels or config.in_channels}, but its autoencoder makes {makes} (2x2 positions of "
                f"{channels} channels); {cls.needs}",
                parameter="model",
            )
        if config.patch_size != 1:
            raise InputError(
                f"the transformer of {name!r} has patch_size {config.patch_size}; 1 is supported.", parameter="model"
            )

    def timestep(self, node: Node, x: Tensor) -> Tensor:
        """Returns the timestep of a call as a scalar in the network's dtype; see ``rounded_sigma``."""
        return rounded_sigma(node, x, self.dtype)


def rounded_sigma(node: Node, x: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns sigma as the pipelines of FLUX, Chroma and Qwen-Image compute it: a scalar on the device of x.

    They round 1000 sigma to the dtype of their latents before they divide by 1000. In bfloat16, a thousand times what
    the network sees so differs from 1000 sigma by up to 2.

    Args:
        node: the noise level.
        x: the input of the network.
        dtype: the dtype of the network.
    """
    return (torch.full((), node.sigma, dtype=torch.float32, device=x.device) * _LEVELS).to(dtype) / _LEVELS


def packed(x: Tensor) -> Tensor:
    """Packs latents [N, C, h, w] into tokens [N, (h/2)(w/2), 4C]: 2x2 positions each, channel after channel."""
    n, channels, height, width = x.shape
    blocks = x.reshape(n, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(n, (height // 2) * (width // 2), channels * 4)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Inverts ``packed`` for latents of (height, width)."""
    n, _, numbers = tokens.shape
    blocks = tokens.reshape(n, height // 2, width // 2, numbers // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(n, numbers // 4, height, width)
