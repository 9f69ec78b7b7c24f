"""Trains a classifier, transformers' ResNetForImageClassification.

A classifier of noisy images is used for classifier guidance; the features of a classifier of clean images are used to
compare sets of images.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from ..._utils.errors import UnknownName
from ..._utils.silence import quiet
from ...data.images import sheet
from ...models.classifier import NoisyResNet
from ...models.features import CleanResNet
from .. import draws
from ..config import TrainConfig
from ..data import Batch, Images
from ..loss import path_of
from .base import (
    Draw,
    Task,
    build_network,
    check_labelled,
    copy_in_dtype,
    count_classes,
    declare_float32,
    first_output,
    scheduler_options,
    to_device,
    to_model_range,
)

if TYPE_CHECKING:
    from PIL import Image

OPTIONS = (  # options of ResNetConfig that [model] may set; the others follow from [data]
    "embedding_size",
    "hidden_sizes",
    "depths",
    "layer_type",
    "hidden_act",
    "downsample_in_first_stage",
    "downsample_in_bottleneck",
)
BATCH_NORM_BATCHES = 16  # the final statistics of batch norm are means over so many batches of 128 images


class ClassifierTask(Task):
    """Trains a classifier with the cross entropy loss.

    It learns p(y | x_t, t), with t drawn from the levels of ``[schedule]`` as ``loss.times`` says (section 4 of
    Dhariwal & Nichol 2021, arXiv 2105.05233), or p(y | x0) if ``classifier.noise`` is false.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        for key in config.model:
            if key not in OPTIONS:
                raise UnknownName("key in [model]", key, OPTIONS, parameter=f"model.{key}")
        check_labelled(config, "a classifier")
        self.noise = config.classifier.noise
        path = path_of(config.schedule)
        t = torch.arange(1, path.levels + 1, dtype=torch.float64)
        self.alpha, self.sigma, self.log_snr = path.alpha(t).float(), path.sigma(t).float(), path.log_snr(t).float()

    def prepare(self, images: Images, device: torch.device) -> Images:
        """Checks the classes, and keeps the images, which the sheets and the statistics of batch norm need."""
        count_classes(images, "a classifier")
        self.alpha, self.sigma, self.log_snr = (table.to(device) for table in (self.alpha, self.sigma, self.log_snr))
        self.images = images
        return super().prepare(images, device)

    def build(self) -> nn.Module:
        """Builds a ``NoisyResNet`` or a ``CleanResNet`` for the images of ``[data]``."""
        network = NoisyResNet(self._network()) if self.noise else CleanResNet(self._network())
        side = self.config.data.size
        x = torch.zeros(1, self.config.data.channels, side, side)
        inputs = (x, torch.zeros(1)) if self.noise else (x,)
        first_output(lambda: network.eval()(*inputs), f"{side}x{side} images")
        return network.train()

    def _network(self) -> nn.Module:
        from transformers import ResNetConfig, ResNetForImageClassification

        data = self.config.data
        sides = {"num_channels": data.channels + self.noise, "num_labels": self.images.classes, "image_size": data.size}

        def make(**options: Any) -> nn.Module:
            return ResNetForImageClassification(ResNetConfig(**options))

        return build_network(make, {**self.config.model, **sides}, maker="transformers")

    def inputs(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        """Flips and shifts the images, and draws noise and levels; see ``Task.inputs``."""
        flips, noise = draw.flips_and_noise(batch.pixels.shape[1:])
        x0 = to_model_range(batch.pixels, flips, self.config.data.flip)
        most = self.config.classifier.shift
        if most:
            x0 = shifted(x0, draw.chances(), most, self.config.data.background / 127.5 - 1)
        clean = {"x0": x0, "labels": torch.tensor(batch.labels)}
        if not self.noise:
            return clean
        return {**clean, "noise": noise, "t": draw.times(len(self.alpha), self.config.loss.times)}

    def loss(self, forward: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Computes the cross entropy of the labels; see ``Task.loss``."""
        return cross_entropy(self._logits(forward, inputs).float(), inputs["labels"])

    def _logits(self, network: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns the logits [N, K] of what ``inputs`` returned."""
        if not self.noise:
            return network(inputs["x0"])
        return network(*self._noised(inputs["x0"], inputs["t"], inputs["noise"]))

    def _noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns alpha x0 + sigma eps at levels t in 1..T, [N, C, H, W], and the log-SNR [N]."""
        alpha, sigma = (table[t - 1].view(-1, 1, 1, 1) for table in (self.alpha, self.sigma))
        return alpha * x0 + sigma * noise, self.log_snr[t - 1]

    @torch.no_grad()
    def recompute_batch_norm(self, network: nn.Module) -> NoisyResNet | CleanResNet:
        """Returns a copy whose batch norm has the means and variances that belong to its current weights.

        The statistics collected in training belong to other weights than their average does (section 3.2 of Izmailov et
        al. 2018, arXiv 1803.05407).
        """
        ready = copy.deepcopy(network)
        assert isinstance(ready, NoisyResNet | CleanResNet)
        for module in ready.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # torch then averages all batches equally
        settings, count = self.config.train, len(self.images)
        order = draws.order(settings.seed, 0, count)[: 128 * BATCH_NORM_BATCHES]
        parts = [order[at : at + 128].tolist() for at in range(0, len(order), 128)]
        ready.train()
        # Counting starts after the last training step, so that the random numbers are new.
        for step, batch in enumerate(self.images.stream(parts), settings.steps):
            draw = Draw(settings.seed, step, len(batch.pixels), range(len(batch.pixels)))
            self._logits(ready, to_device(self.inputs(batch, draw), self.device))
        return ready.eval()

    @torch.no_grad()
    def sheet(self, network: nn.Module) -> "Image.Image":
        """Shows images at increasing noise levels; those that are classified wrongly appear as negatives."""
        data, count = self.config.data, min(self.config.output.samples, len(self.images))
        (batch,) = self.images.stream([torch.linspace(0, len(self.images) - 1, count).long().tolist()])
        x = to_model_range(batch.pixels, torch.zeros(count, dtype=torch.bool), False).to(self.device)
        ready = self.recompute_batch_norm(network)
        if self.noise:
            t = torch.linspace(1, len(self.alpha), count).long().to(self.device)
            noise = draws.sheet_noise(self.config.train.seed, count, (data.channels, data.size, data.size))
            x, log_snr = self._noised(x, t, noise.to(self.device))
            named = ready(x, log_snr).argmax(1)
        else:
            named = ready(x).argmax(1)
        wrong = named != torch.tensor(batch.labels, device=self.device)
        return sheet((torch.where(wrong.view(-1, 1, 1, 1), -x, x).clamp(-1, 1) + 1) / 2)

    @torch.no_grad()
    def export(self, network: nn.Module, folder: Path) -> None:
        """Writes a folder that ResNetForImageClassification and ``load_classifier`` (or ``load_features``) load."""
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        with quiet():
            copy_in_dtype(self.recompute_batch_norm(network).resnet, self._network(), self.config).save_pretrained(
                folder
            )
        declare_float32(folder / "config.json")
        if self.noise:
            DDIMScheduler(**scheduler_options(self.config.schedule, "eps")).save_config(folder)


def shifted(x: Tensor, chances: Tensor, most: int, fill: float) -> Tensor:
    """Shifts each image by one of the (2 most + 1)^2 whole offsets.

    Args:
        x: images [N, C, H, W].
        chances: numbers in [0, 1) that choose the offsets, [N].
        most: the largest shift in each direction, in pixels.
        fill: the value of pixels that enter at the edges.
    """
    side = 2 * most + 1
    height, width = x.shape[2:]
    offsets = (chances * side**2).long().tolist()
    larger = pad(x, [most] * 4, value=fill)
    return torch.stack(
        [image[:, at // side :, at % side :][:, :height, :width] for image, at in zip(larger, offsets, strict=True)]
    )
