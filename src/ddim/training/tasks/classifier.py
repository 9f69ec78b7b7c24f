"""A classifier of noisy images, for classifier guidance: transformers' ResNetForImageClassification."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...errors import InputError, unknown
from ...images import sheet
from ...models.classifier import NoisyResNet
from ...models.quiet import quiet
from .. import draws
from ..config import TrainConfig
from ..data import Batch, Images
from ..loss import path_of
from .base import Draw, Task, as_dtype, asked, built, scaled, scheduler_options, widened

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
    (section 4 of Dhariwal & Nichol 2021, arXiv 2105.05233)."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        for key in config.model:
            if key not in OPTIONS:
                raise unknown("key in [model]", key, OPTIONS)
        if not all(source.label for source in config.data.sources):
            raise InputError("A classifier needs data.label, the column of the classes, for every source of images.")
        path = path_of(config.schedule)
        t = torch.arange(1, path.levels + 1, dtype=torch.float64)
        self.alpha, self.sigma, self.log_snr = path.alpha(t).float(), path.sigma(t).float(), path.log_snr(t).float()

    def prepare(self, images: Images, device: torch.device) -> Images:
        """Counts the classes; keeps the images for sheets and for what batch norm must know."""
        if images.classes < 2:
            raise InputError(f"A classifier needs images of two classes or more, not {images.classes}.")
        self.images = images
        return super().prepare(images, device)

    def build(self) -> nn.Module:
        """A ``NoisyResNet`` for the images of ``[data]``."""
        network = NoisyResNet(self._network())
        side = self.config.data.size
        x = torch.zeros(1, self.config.data.channels, side, side)
        asked(lambda: network.eval()(x, torch.zeros(1)), f"{side}x{side} images")
        return network.train()

    def _network(self) -> nn.Module:
        from transformers import ResNetConfig, ResNetForImageClassification

        data = self.config.data
        sides = {"num_channels": data.channels + 1, "num_labels": self.images.classes, "image_size": data.size}

        def make(**options: Any) -> nn.Module:
            return ResNetForImageClassification(ResNetConfig(**options))

        return built(make, {**self.config.model, **sides}, maker="transformers")

    def loss(self, forward: nn.Module, batch: Batch, draw: Draw) -> Tensor:
        """See ``Task``."""
        logits, labels = self._asked(forward, batch, draw)
        return cross_entropy(logits.float(), labels)

    def _asked(self, network: nn.Module, batch: Batch, draw: Draw) -> tuple[Tensor, Tensor]:
        """Logits [N, K] at the noise levels of ``draw``, and the labels [N]."""
        t = draw.times(len(self.alpha), self.config.loss.times)
        x, log_snr = self._noised(batch, t, *draw.flips_and_noise(batch.pixels.shape[1:]))
        return network(x, log_snr), torch.tensor(batch.labels, device=self.device)

    def _noised(self, batch: Batch, t: Tensor, flips: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """alpha x0 + sigma eps at t in 1..T, [N, C, H, W], and its log-SNR [N]."""
        alpha, sigma = (table[t - 1].view(-1, 1, 1, 1) for table in (self.alpha, self.sigma))
        x = alpha * scaled(batch, flips, self.config.data.flip) + sigma * noise
        return x.to(self.device), self.log_snr[t - 1].to(self.device)

    @torch.no_grad()
    def settled(self, network: nn.Module) -> NoisyResNet:
        """A copy whose batch norm knows the means and variances that these weights, averages perhaps, give (section
        3.2 of Izmailov et al. 2018, arXiv 1803.05407)."""
        settled = copy.deepcopy(network)
        assert isinstance(settled, NoisyResNet)
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
        """Images from the first noise level to the last; those it names wrongly are shown as negatives."""
        data, count = self.config.data, min(self.config.output.samples, len(self.images))
        (batch,) = self.images.stream([torch.linspace(0, len(self.images) - 1, count).long().tolist()])
        t = torch.linspace(1, len(self.alpha), count).long()
        noise = draws.sheet_noise(self.config.train.seed, count, (data.channels, data.size, data.size))
        x, log_snr = self._noised(batch, t, torch.zeros(count, dtype=torch.bool), noise)
        named = self.settled(network)(x, log_snr).argmax(1)
        wrong = named != torch.tensor(batch.labels, device=self.device)
        return sheet((torch.where(wrong.view(-1, 1, 1, 1), -x, x).clamp(-1, 1) + 1) / 2)

    @torch.no_grad()
    def export(self, network: nn.Module, folder: Path) -> None:
        """A folder that ResNetForImageClassification and ``ddim.load_classifier`` load."""
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        with quiet():
            as_dtype(self.settled(network).resnet, self._network(), self.config).save_pretrained(folder)
        widened(folder / "config.json")
        DDIMScheduler(**scheduler_options(self.config.schedule, "eps")).save_config(folder)
