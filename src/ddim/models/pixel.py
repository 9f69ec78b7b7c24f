"""Pixel models: a diffusers UNet2DModel with its scheduler's config, unconditional or class-conditional."""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.errors import InputError, is_whole
from ..core.denoiser import Cond, Denoiser, aligned
from ..core.path import GaussianPath, Node, VEPath
from ..core.prediction import Pair, to_pair
from . import where_and_what
from .base import class_labels
from .engine.side_by_side import least_rows, side_by_side
from .schedule import read_schedule, timestep
from .trial import answered

_LONGEST = 2**14  # of a side that a config may name; a mistyped one would take all memory


class PixelModel:
    """A UNet2DModel behind the library's interface; made by ``ddim.load``.

    Args:
        name: as it was asked for.
        network: a diffusers UNet2DModel; it is put into eval mode and moved.
        scheduler: the scheduler config it was trained with.
        device: where it computes.
        dtype: what it computes in; the sampler's state is float32, or float64 when this is.

    Attributes:
        threads: on a CPU, share the rows of a large batch out among threads.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        scheduler: Mapping[str, Any],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        config: Any = network.config  # type: ignore[attr-defined]
        height, width = sides_of(config.sample_size, name)
        if config.class_embed_type is not None and not config.num_class_embeds:
            raise InputError(
                f"{name!r} embeds its classes by {config.class_embed_type!r}; this version takes those that "
                "count them (num_class_embeds).",
                parameter="model",
            )
        self.name = name
        self.shape = (int(config.in_channels), int(height), int(width))
        self.path, self.prediction, self.spacing, self.offset, self.hold = read_schedule(scheduler)
        if isinstance(self.path, VEPath):
            raise InputError(
                f"{name!r} has a {scheduler['_class_name']}: such networks want their input scaled or answer "
                "the score, which this version does not do.",
                parameter="model",
            )
        self.classes = int(config.num_class_embeds or 0)
        self.picture, self.multiple, self.text = self.shape, 0, False
        self.device, self.dtype = where_and_what(device, dtype)
        self.state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.fingerprint = fingerprint(network, self.path, self.prediction)  # of the weights as they come
        self.parameters = sum(p.numel() for p in network.parameters())
        # nn.Module.to and not diffusers' own, which warns of casts
        nn.Module.to(network, device=self.device, dtype=dtype)
        # the layout that convolutions are fastest in; the same numbers
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.network = network.eval().requires_grad_(False)
        self.threads, self.least = True, least_rows(network)
        if int(config.out_channels) not in (self.shape[0], 2 * self.shape[0]):
            raise InputError(
                f"{name!r} has {config.out_channels} output channels for {self.shape[0]} input channels.",
                parameter="model",
            )

    def try_out(self) -> None:
        """Asks the network what it makes of its own shape, without numbers.

        Raises:
            InputError: it does not take that shape, or answers with another.
        """
        shapes = ((1, *self.shape), (1,), *([(1,)] if self.classes else []))

        def ask(network: Any, x: Tensor, time: Tensor, *classes: Tensor) -> Tensor:
            return network(x, time, *(labels.long() for labels in classes), return_dict=False)[0]

        answer = answered(self.network, ask, *shapes, takes=f"the pictures of {self.name!r}, {self.shape}")
        if answer[2:] != self.shape[1:]:
            raise InputError(f"{self.name!r} makes {answer[1:]} of pictures of {self.shape}.", parameter="model")

    def denoiser(self) -> Denoiser:
        """The network as a denoiser; a learned variance in the upper half of its channels is left aside."""
        network, path, prediction, dtype = self.network, self.path, self.prediction, self.dtype
        channels = self.shape[0]

        def denoise(x: Tensor, node: Node, cond: Cond | None = None) -> Pair:
            x, label = aligned(x), timestep(path, node, x.device)
            labels = cond["labels"] if cond else None

            def ask(rows: Tensor, classes: Tensor | None) -> Tensor:
                return network(rows, label, class_labels=classes, return_dict=False)[0]

            output = (
                side_by_side(ask, x.to(dtype), labels, least=self.least) if self.threads else ask(x.to(dtype), labels)
            )
            return to_pair(prediction, output[:, :channels].to(x.dtype), x, node)

        return denoise

    def condition(
        self,
        labels: int | Sequence[int] | None,
        count: int,
        prompts: str | Sequence[str] | None = None,
        negative: str = "",
    ) -> Cond:
        """Class labels as a tensor [count]; one label serves for all."""
        for key, words in (("prompt", prompts), ("negative", negative)):
            if words:
                raise InputError(f"the model {self.name!r} has no text encoder, so it takes no prompt.", parameter=key)
        if labels is None:
            if self.classes:
                raise InputError(
                    f"the model {self.name!r} needs a class, from 0 to {self.classes - 1}.", parameter="labels"
                )
            return {}
        if not self.classes:
            raise InputError(f"the model {self.name!r} is unconditional; it takes no class labels.", parameter="labels")
        return {"labels": class_labels(labels, count, self.classes, self.name).to(self.device)}

    def encode(self, images: Tensor) -> Tensor:
        """[0, 1] to [-1, 1]."""
        return images.to(device=self.device, dtype=self.state_dtype) * 2 - 1

    def decode(self, x0: Tensor) -> Tensor:
        """[-1, 1] to [0, 1], what lies outside cut."""
        return ((x0 + 1) / 2).clamp(0, 1)

    def describe(self) -> dict[str, Any]:
        """Name, kind, shape, prediction, path, spacing, parameters, fingerprint."""
        return {
            "name": self.name,
            "kind": "pixel",
            "shape": list(self.shape),
            "classes": self.classes,
            "prediction": self.prediction,
            "path": type(self.path).__name__,
            "levels": self.path.levels,
            "spacing": self.spacing,
            "hold": self.hold.options,
            "parameters": self.parameters,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "fingerprint": self.fingerprint,
        }


def sides_of(size: Any, name: str) -> tuple[int, int]:
    """Height and width by a config's ``sample_size``: a number, or one for each. Raises InputError otherwise."""
    both = list(size) if isinstance(size, (list, tuple)) else [size, size]
    if len(both) != 2 or not all(is_whole(side) and 0 < side <= _LONGEST for side in both):
        raise InputError(
            f"the sample_size of {name!r} is {size!r}, which is not one or two sides of up to {_LONGEST}.",
            parameter="model",
        )
    return int(both[0]), int(both[1])


def fingerprint(network: nn.Module, path: GaussianPath | None, prediction: str) -> str:
    """SHA-256 over what shapes the model's answers: path, if any, prediction, network config, and its weights.

    Of every weight up to 4096 elements count, as they were before a cast; fp16 files and their float32 copies agree.
    Options at their defaults are left out, so that a newer diffusers with more of them gives the same.
    """
    table: list[str] = []
    if path is not None:
        levels = torch.linspace(0, path.t_max, path.levels + 1, dtype=torch.float64)
        signal, noise = path.alpha(levels).tolist(), path.sigma(levels).tolist()
        table = [f"{a:.9f} {s:.9f}" for a, s in zip(signal, noise, strict=True)]
    config: Any = network.config
    if isinstance(config, Mapping):  # of diffusers
        usual = _defaults(type(network))
        entries = {k: v for k, v in config.items() if not k.startswith("_")}
    else:  # of transformers: what its own class adds to the parameters that every config has
        base = next(c for c in reversed(type(config).__mro__) if c.__name__.startswith("PreTrained"))
        usual = {k: v for k, v in _defaults(type(config)).items() if k not in _defaults(base)}
        entries = {k: getattr(config, k) for k in usual if k != "self"}
    options = {k: v for k, v in entries.items() if _plain(v) != _plain(usual.get(k))}
    about = json.dumps([prediction, table, options], sort_keys=True, default=str)
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(network.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // 4096)].cpu().float()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(picked.numpy().tobytes())
    return digest.hexdigest()


def _defaults(kind: type) -> dict[str, Any]:
    return {k: p.default for k, p in inspect.signature(kind.__init__).parameters.items()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
