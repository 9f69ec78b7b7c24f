"""The metrics of PIE-Bench (Ju et al. 2023, arXiv 2310.01506, section 4), corrected and as published.

Images are float tensors [N, 3, H, W] in [0, 1]. Masks are bool [N, 1, H, W] and True where the image may change; the
rest is the background. A metric returns float64 [N].

The published figures were measured in another way, and compare only with figures measured in the same way. Pass
``as_published`` for that:

- The edits were compressed by JPEG (``through_jpeg``), whose noise counts as a change of the background.
- PSNR, MSE, SSIM and LPIPS set what may change to black and average over all pixels, so a larger mask gives a better
  figure. Here they average over the background only.
- The structure distance passes values from 0 to 255 to a network that expects about -2 to 2, and resizes images without
  antialiasing.
- CLIP is the same in both: "edited" is defined with black outside the mask.
"""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..._utils.errors import DDIMWarning, InputError, UnknownName
from ...data.images import read_images, to_pil
from .networks import Clip, Dino, Lpips
from .pairwise import mean_where, mse, mse_where, ssim, ssim_map


def background_mse(source: Tensor, edit: Tensor, mask: Tensor, as_published: bool = False) -> Tensor:
    """Mean squared error over the background; NaN for an image without background."""
    if as_published:
        return _where_any(mse(*_blackened(source, edit, ~mask)), ~mask)
    return mse_where(source, edit, ~mask)


def background_psnr(source: Tensor, edit: Tensor, mask: Tensor, as_published: bool = False) -> Tensor:
    """PSNR in dB over the background; infinite where it is unchanged, NaN for an image without background."""
    return -10 * background_mse(source, edit, mask, as_published).log10()


def background_ssim(source: Tensor, edit: Tensor, mask: Tensor, as_published: bool = False) -> Tensor:
    """Structural similarity, averaged over the background; NaN for an image without background.

    Windows at the edge of the mask reach into it. There both images show the source, so that only changes of the
    background count, and no artificial edge appears.

    Raises:
        InputError: torchmetrics is not installed.
    """
    if as_published:
        return _where_any(ssim(*_blackened(source, edit, ~mask)), ~mask)
    return mean_where(ssim_map(source, _filled(source, edit, mask)), ~mask)


def background_lpips(lpips: Lpips, source: Tensor, edit: Tensor, mask: Tensor, as_published: bool = False) -> Tensor:
    """LPIPS, averaged over the background as in ``background_ssim``; NaN for an image without background."""
    if as_published:
        return _where_any(lpips.distance(*_blackened(source, edit, ~mask)), ~mask)
    return mean_where(lpips.map(source, _filled(source, edit, mask)), ~mask)


def structure_distance(dino: Dino, source: Tensor, edit: Tensor, as_published: bool = False) -> Tensor:
    """Mean squared difference between the self-similarities of DINO's keys in both images (Tumanyan et al. 2022)."""
    if as_published:  # torchvision did not antialias tensors at that time
        a, b = (dino.similarity(255 * x, antialias=False) for x in (source, edit))
    else:
        a, b = dino.similarity(source), dino.similarity(edit)
    return (a - b).square().flatten(1).mean(1)


def clip_whole(clip: Clip, edit: Tensor, prompts: Sequence[str]) -> Tensor:
    """CLIP score of the edit and its target prompt, 0 to 100."""
    return clip.score(edit, prompts)


def clip_edited(clip: Clip, edit: Tensor, mask: Tensor, prompts: Sequence[str]) -> Tensor:
    """CLIP score of the edit with black outside the mask; NaN where the mask is empty."""
    return _where_any(clip.score(_blackened(edit, edit, mask)[0], prompts), mask)


def through_jpeg(source: Tensor, reconstruction: Tensor, edit: Tensor) -> Tensor:
    """The edit as the published pipeline stored it: the last of four panels of a JPEG file, at PIL's default quality.

    The panels (a text, the source, the reconstruction, the edit) touch. JPEG subsamples colours, so a little of the
    reconstruction's colour crosses the edge.
    """
    from PIL import Image

    out = []
    height, width = edit.shape[2:]
    for a, b, c in zip(source, reconstruction, edit, strict=True):
        strip, file = torch.cat([torch.ones_like(a), a, b, c], dim=2), io.BytesIO()
        to_pil(strip).save(file, "JPEG")
        with Image.open(file) as image:
            out.append(read_images(image.crop((3 * width, 0, 4 * width, height)), (3, height, width)))
    return torch.cat(out)


def _blackened(source: Tensor, edit: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(keep, source, 0.0), torch.where(keep, edit, 0.0)


def _filled(source: Tensor, edit: Tensor, mask: Tensor) -> Tensor:
    """The edit's background; where the image may change, the source."""
    return torch.where(mask, source, edit)


def _where_any(values: Tensor, mask: Tensor) -> Tensor:
    """The values, with NaN for images whose mask is empty."""
    return torch.where(mask.flatten(1).any(1), values.double(), torch.nan)


@dataclass(frozen=True)
class ScoredEdits:
    """Edits to be scored, with everything that the metrics need; one prompt for each edit."""

    source: Tensor
    edit: Tensor
    mask: Tensor
    prompts: Sequence[str]
    as_published: bool

    @property
    def pictures(self) -> tuple[Tensor, Tensor, Tensor, bool]:
        """The arguments of a background metric."""
        return self.source, self.edit, self.mask, self.as_published


@dataclass(frozen=True)
class Metric:
    """A column of PIE-Bench's table.

    Attributes:
        title: the column's title, including the factor.
        factor: the factor that the field prints the metric with.
        needs: the network or the package that the metric needs; empty for none.
        measure: (network, edits) -> float64 [N].
    """

    title: str
    factor: float
    needs: str
    measure: Callable[[Any, ScoredEdits], Tensor]


METRICS: dict[str, Metric] = {
    "structure": Metric(
        "structure ×10³", 1e3, "dino", lambda dino, s: structure_distance(dino, s.source, s.edit, s.as_published)
    ),
    "psnr": Metric("PSNR", 1, "", lambda _, s: background_psnr(*s.pictures)),
    "lpips": Metric("LPIPS ×10³", 1e3, "lpips", lambda lpips, s: background_lpips(lpips, *s.pictures)),
    "mse": Metric("MSE ×10⁴", 1e4, "", lambda _, s: background_mse(*s.pictures)),
    "ssim": Metric("SSIM ×10²", 1e2, "torchmetrics", lambda _, s: background_ssim(*s.pictures)),
    "clip": Metric("CLIP whole", 1, "clip", lambda clip, s: clip_whole(clip, s.edit, s.prompts)),
    "clip-edited": Metric("CLIP edited", 1, "clip", lambda clip, s: clip_edited(clip, s.edit, s.mask, s.prompts)),
}


@dataclass(frozen=True, eq=False)
class Scorer:
    """Metrics with their networks.

    Attributes:
        metrics: keys of ``METRICS``, in the table's order.
        networks: the networks, by ``Metric.needs``.
        names: the folders or hub ids of ``clip`` and ``dino``; empty for one that is not used.
        as_published: whether to measure as the published pipeline did.
    """

    metrics: tuple[str, ...]
    networks: Mapping[str, Any]
    names: Mapping[str, str]
    as_published: bool = False

    def score(
        self, source: Tensor, reconstruction: Tensor, edit: Tensor, mask: Tensor, prompts: Sequence[str]
    ) -> dict[str, Tensor]:
        """Metric to values, float64 [N]. The reconstruction is used only as the edit's neighbour in the JPEG file."""
        if self.as_published:
            edit = through_jpeg(source, reconstruction, edit)
        edits = ScoredEdits(source, edit, mask, prompts, self.as_published)
        return {name: METRICS[name].measure(self.networks.get(METRICS[name].needs), edits) for name in self.metrics}


def check_metrics(metrics: Sequence[str]) -> None:
    """Raises UnknownName for a name that is not a key of ``METRICS``."""
    if unknown := next((name for name in metrics if name not in METRICS), None):
        raise UnknownName("metric", unknown, METRICS)


def open_scorer(
    metrics: Sequence[str] | None = None,
    *,
    clip: str,
    dino: str,
    device: str | torch.device = "cpu",
    as_published: bool = False,
) -> Scorer:
    """Loads the networks that some metrics need.

    Args:
        metrics: keys of ``METRICS``. By default all whose network can be loaded; a DDIMWarning names the others.
        clip, dino: folders or hub ids.
        device: where the networks compute.
        as_published: as for ``Scorer``.

    Raises:
        InputError: a metric is unknown, or was named and its network cannot be loaded.
    """
    check_metrics(metrics or [])
    wanted = [name for name in METRICS if metrics is None or name in metrics]
    openers: dict[str, Callable[[], Any]] = {
        "": lambda: None,
        "torchmetrics": lambda: ssim_map(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)),
        "lpips": lambda: Lpips(device),
        "clip": lambda: Clip(clip, device),
        "dino": lambda: Dino(dino, device),
    }
    networks: dict[str, Any] = {}
    for need in dict.fromkeys(METRICS[name].needs for name in wanted):
        try:
            networks[need] = openers[need]()
        except InputError as error:
            if metrics is not None:
                raise
            lost = [name for name in wanted if METRICS[name].needs == need]
            warnings.warn(f"Without {' and '.join(lost)}: {error}", DDIMWarning, stacklevel=2)
    names = {kind: name if kind in networks else "" for kind, name in (("clip", clip), ("dino", dino))}
    return Scorer(tuple(n for n in wanted if METRICS[n].needs in networks), networks, names, as_published)
