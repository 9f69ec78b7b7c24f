"""A classifier, transformers' ResNetForImageClassification: of noisy images, for guidance, or of clean ones, whose
features tell sets of images apart."""

import copy
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
from .base import Draw, Task, as_dtype, asked, built, check_labelled, count_classes, scaled, scheduler_options, widened

if TYPE_CHECKING:
    from PIL import Image

OPTIONS = (  # the others of ResNetConfig follow from [data]
    "embedding_size",
    "hidden_sizes",
    "depths",
    "layer_type",
    "hidden_act",
    "downsample_in_first_stage",
    "downsample_in_bottleneck",
)
SETTLED_BY = 16  # batches of 128 images, whose means and variances batch norm keeps


class ClassifierTask(Task):
    """See ``Task``; the loss is the cross entropy of p(y | x_t, t), t drawn from ``[schedule]`` as ``loss.times`` says
    (section 4 of Dhariwal & Nichol 2021, arXiv 2105.05233), or of p(y | x0) where ``classifier.noise`` is false."""

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
        """Counts the classes; keeps the images for sheets and for what batch norm must know."""
        count_classes(images, "a classifier")
        self.images = images
        return super().prepare(images, device)

    def build(self) -> nn.Module:
        """A ``NoisyResNet``, or a ``CleanResNet``, for the images of ``[data]``."""
        network = NoisyResNet(self._network()) if self.noise else CleanResNet(self._network())
        side = self.config.data.size
        x = torch.zeros(1, self.config.data.channels, side, side)
        given = (x, torch.zeros(1)) if self.noise else (x,)
        asked(lambda: network.eval()(*given), f"{side}x{side} images")
        return network.train()

    def _network(self) -> nn.Module:
        from transformers import ResNetConfig, ResNetForImageClassification

        data = self.config.data
        sides = {"num_channels": data.channels + self.noise, "num_labels": self.images.classes, "image_size": data.size}

        def make(**options: Any) -> nn.Module:
            return ResNetForImageClassification(ResNetConfig(**options))

        return built(make, {**self.config.model, **sides}, maker="transformers")

    def loss(self, forward: nn.Module, batch: Batch, draw: Draw) -> Tensor:
        """See ``Task``."""
        logits, labels = self._asked(forward, batch, draw)
        return cross_entropy(logits.float(), labels)

    def _asked(self, network: nn.Module, batch: Batch, draw: Draw) -> tuple[Tensor, Tensor]:
        """Logits [N, K] of what ``draw`` makes of the images, and the labels [N]."""
        flips, noise = draw.flips_and_noise(batch.pixels.shape[1:])
        x0 = scaled(batch, flips, self.config.data.flip)
        reach = self.config.classifier.shift
        if reach:
            x0 = shifted(x0, draw.chances(), reach, self.config.data.background / 127.5 - 1)
        labels = torch.tensor(batch.labels, device=self.device)
        if not self.noise:
            return network(x0.to(self.device)), labels
        t = draw.times(len(self.alpha), self.config.loss.times)
        return network(*self._noised(x0, t, noise)), labels

    def _noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """alpha x0 + sigma eps at t in 1..T, [N, C, H, W], and its log-SNR [N]."""
        alpha, sigma = (table[t - 1].view(-1, 1, 1, 1) for table in (self.alpha, self.sigma))
        return (alpha * x0 + sigma * noise).to(self.device), self.log_snr[t - 1].to(self.device)

    @torch.no_grad()
    def settled(self, network: nn.Module) -> NoisyResNet | CleanResNet:
        """A copy whose batch norm knows the means and variances that these weights, averages perhaps, give (section
        3.2 of Izmailov et al. 2018, arXiv 1803.05407)."""
        settled = copy.deepcopy(network)
        assert isinstance(settled, NoisyResNet | CleanResNet)
        for module in settled.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # a plain mean over the batches
        settings, count = self.config.train, len(self.images)
        order = draws.order(settings.seed, 0, count)[: 128 * SETTLED_BY]
        parts = [order[at : at + 128].tolist() for at in range(0, len(order), 128)]
        settled.train()
        for step, batch in enumerate(self.images.stream(parts), settings.steps):  # steps that no training has drawn
            self._asked(settled, batch, Draw(settings.seed, step, len(batch.pixels), range(len(batch.pixels))))
        return settled.eval()

    @torch.no_grad()
    def sheet(self, network: nn.Module) -> "Image.Image":
        """Images, from the first noise level to the last; those it names wrongly are shown as negatives."""
        data, count = self.config.data, min(self.config.output.samples, len(self.images))
        (batch,) = self.images.stream([torch.linspace(0, len(self.images) - 1, count).long().tolist()])
        x0, settled = scaled(batch, torch.zeros(count, dtype=torch.bool), False), self.settled(network)
        if self.noise:
            t = torch.linspace(1, len(self.alpha), count).long()
            noise = draws.sheet_noise(self.config.train.seed, count, (data.channels, data.size, data.size))
            x, log_snr = self._noised(x0, t, noise)
            named = settled(x, log_snr).argmax(1)
        else:
            x = x0.to(self.device)
            named = settled(x).argmax(1)
        wrong = named != torch.tensor(batch.labels, device=self.device)
        return sheet((torch.where(wrong.view(-1, 1, 1, 1), -x, x).clamp(-1, 1) + 1) / 2)

    @torch.no_grad()
    def export(self, network: nn.Module, folder: Path) -> None:
        """A folder that ResNetForImageClassification loads, and ``ddim.load_classifier`` or ``load_features``."""
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        with quiet():
            as_dtype(self.settled(network).resnet, self._network(), self.config).save_pretrained(folder)
        widened(folder / "config.json")
        if self.noise:
            DDIMScheduler(**scheduler_options(self.config.schedule, "eps")).save_config(folder)


def shifted(x: Tensor, chances: Tensor, reach: int, fill: float) -> Tensor:
    """Each image [C, H, W] moved by one of the (2 reach + 1)^2 whole offsets, as its number in [0, 1) says; what
    comes in at the edges is ``fill``."""
    side = 2 * reach + 1
    height, width = x.shape[2:]
    places = (chances * side**2).long().tolist()
    larger = pad(x, [reach] * 4, value=fill)
    return torch.stack(
        [image[:, at // side :, at % side :][:, :height, :width] for image, at in zip(larger, places, strict=True)]
    )
