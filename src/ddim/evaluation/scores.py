"""What PIE-Bench measures of an edit (Ju et al. 2023, arXiv 2310.01506, section 4), rightly and as published.

Pictures are float tensors [N, 3, H, W] in [0, 1], masks bool [N, 1, H, W] where True may change; a metric gives float64
[N]. Published figures were measured otherwise, which ``as_published`` repeats, and they compare only with such:

- Edits went through JPEG (``through_jpeg``), so that noise of a codec counts as a change of the background.
- PSNR, MSE, SSIM and LPIPS blacken what may change and then average over all pixels, so that the larger the mask, the
  better the figure. Here they average over the background alone.
- The structure distance hands 0 to 255 to a network that expects about -2 to 2, and makes pictures smaller without
  antialiasing.
- CLIP is the same in both: black outside the mask is how "edited" is defined.
"""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import DDIMWarning, InputError, UnknownName
from ..data.images import read_images, to_pil
from .networks import CLIP, DINO, Clip, Dino, Lpips
from .pairs import mean_where, mse, mse_where, ssim, ssim_map


def background_mse(source: Tensor, edit: Tensor, mask: Tensor, as_published: bool = False) -> Tensor:
    """Mean squared error over the background; NaN where there is none."""
    if as_published:
        return _where_any(mse(*_blackened(source, edit, ~mask)), ~mask)
    return mse_where(source, edit, ~mask)


def background_psnr(source: Tensor, edit: Tensor, mask: Tensor, as_published: bool = False) -> Tensor:
    """10 log10(1 / MSE) in dB over the background; inf where it is the same, NaN where there is none."""
    return -10 * background_mse(source, edit, mask, as_published).log10()


def background_ssim(source: Tensor, edit: Tensor, mask: Tensor, as_published: bool = False) -> Tensor:
    """Structural similarity, its map averaged over the background; NaN where there is none.

    Windows at the mask's edge reach into it: there both pictures show the source, so that nothing counts but the
    background's own change, and no edge is made up where black would begin.

    Raises:
        InputError: torchmetrics is not installed.
    """
    if as_published:
        return _where_any(ssim(*_blackened(source, edit, ~mask)), ~mask)
    return mean_where(ssim_map(source, _filled(source, edit, mask)), ~mask)


def background_lpips(lpips: Lpips, source: Tensor, edit: Tensor, mask: Tensor, as_published: bool = False) -> Tensor:
    """LPIPS, its map averaged over the background as that of ``background_ssim``; NaN where there is none."""
    if as_published:
        return _where_any(lpips.distance(*_blackened(source, edit, ~mask)), ~mask)
    return mean_where(lpips.map(source, _filled(source, edit, mask)), ~mask)


def structure_distance(dino: Dino, source: Tensor, edit: Tensor, as_published: bool = False) -> Tensor:
    """Mean squared difference of the self-similarities of DINO's keys over the whole picture (Tumanyan et al. 2022)."""
    if as_published:  # torchvision of that time did not antialias tensors
        a, b = (dino.similarity(255 * x, antialias=False) for x in (source, edit))
    else:
        a, b = dino.similarity(source), dino.similarity(edit)
    return (a - b).square().flatten(1).mean(1)


def clip_whole(clip: Clip, edit: Tensor, prompts: Sequence[str]) -> Tensor:
    """CLIP score of the edit and the prompt it was to follow, 0 to 100."""
    return clip.score(edit, prompts)


def clip_edited(clip: Clip, edit: Tensor, mask: Tensor, prompts: Sequence[str]) -> Tensor:
    """The same with black outside the mask; NaN where the mask is empty."""
    return _where_any(clip.score(_blackened(edit, edit, mask)[0], prompts), mask)


def through_jpeg(source: Tensor, reconstruction: Tensor, edit: Tensor) -> Tensor:
    """The edit as the published pipeline left it on disk: the last of four panels in a JPEG of PIL's usual quality.

    The panels (a text, source, reconstruction, edit) touch: where JPEG smooths colours, a little of the reconstruction
    comes over the edge.
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
    """The edit's background, with the source where it may change."""
    return torch.where(mask, source, edit)


def _where_any(values: Tensor, mask: Tensor) -> Tensor:
    """NaN for pictures whose mask is empty, as the published tables have "nan"."""
    return torch.where(mask.flatten(1).any(1), values.double(), torch.nan)


@dataclass(frozen=True)
class InversionProblem:
    """Edits to be scored, with all that this takes; shapes as above, one prompt an edit."""

    source: Tensor
    edit: Tensor
    mask: Tensor
    prompts: Sequence[str]
    as_published: bool

    @property
    def pictures(self) -> tuple[Tensor, Tensor, Tensor, bool]:
        """What a background metric takes."""
        return self.source, self.edit, self.mask, self.as_published


@dataclass(frozen=True)
class Metric:
    """One of the published table's columns.

    Attributes:
        title: in the table, with the factor that the field prints it with.
        factor: that factor.
        needs: the network it asks, or the package; empty for none.
        measure: (network, scene) -> [N].
    """

    title: str
    factor: float
    needs: str
    measure: Callable[[Any, InversionProblem], Tensor]


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
    """Some metrics with the networks they ask.

    Attributes:
        metrics: their names, in the table's order.
        networks: by what ``Metric.needs`` says.
        names: of the networks that have one, for the record: ``clip`` and ``dino``; empty where not asked.
        as_published: whether to repeat the published pipeline.
    """

    metrics: tuple[str, ...]
    networks: Mapping[str, Any]
    names: Mapping[str, str]
    as_published: bool = False

    def score(
        self, source: Tensor, reconstruction: Tensor, edit: Tensor, mask: Tensor, prompts: Sequence[str]
    ) -> dict[str, Tensor]:
        """Each metric's name with its value, float64 [N]; the reconstruction only lies beside the edit in the JPEG."""
        if self.as_published:
            edit = through_jpeg(source, reconstruction, edit)
        scene = InversionProblem(source, edit, mask, prompts, self.as_published)
        return {name: METRICS[name].measure(self.networks.get(METRICS[name].needs), scene) for name in self.metrics}


def known_metrics(metrics: Sequence[str]) -> None:
    """Raises InputError for a name that is none of ``METRICS``."""
    if strange := next((name for name in metrics if name not in METRICS), None):
        raise UnknownName("metric", strange, METRICS)


def open_scorer(
    metrics: Sequence[str] | None = None,
    *,
    clip: str = CLIP,
    dino: str = DINO,
    device: str | torch.device = "cpu",
    as_published: bool = False,
) -> Scorer:
    """A scorer whose networks are loaded.

    Args:
        metrics: names from ``METRICS``; by default all that can be had, with a DDIMWarning of what cannot.
        clip, dino: folders or hub ids.
        device: of the networks.
        as_published: as for ``Scorer``.

    Raises:
        InputError: an unknown metric, or one that was named and whose network cannot be had.
    """
    known_metrics(metrics or [])
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
