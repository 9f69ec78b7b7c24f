"""How far apart two sets of images are: the Fréchet distance of their features, each set taken for a Gaussian.

Heusel et al. 2017 (arXiv 1706.08500) named it after Inception's features, FID. In the features of another network it is
another number, which goes by that network's name: ``title``.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._utils.error_text import reason_of
from .._utils.errors import InputError, is_number, is_whole
from .._utils.files import write_whole

FORMAT = "ddim-statistics"


def title(features: str) -> str:
    """What the distance is called in the features of a network: never FID."""
    return f"Fréchet distance in the features of {features}"


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of a set of features; sets are put together with ``+``.

    Attributes:
        mean: float64 [D].
        covariance: float64 [D, D], divided by count - 1; zero of one image alone.
        count: how many images.
    """

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor | Iterable[Tensor]) -> "Statistics":
        """Of features [N, D], or of parts of them, one after the other, N from 1.

        Raises:
            InputError: no feature, or one that is not finite.
        """
        parts = [features] if isinstance(features, Tensor) else features
        total: Statistics | None = None
        for part in parts:
            if len(part):
                total = _of(part) if total is None else total + _of(part)
        if total is None:
            raise InputError("there are none to take statistics of.", parameter="images")
        return total

    @property
    def dim(self) -> int:
        """D."""
        return len(self.mean)

    def __add__(self, other: "Statistics") -> "Statistics":
        """Of both sets together (Chan, Golub & LeVeque 1983)."""
        _same_dim(self, other)
        count, step = self.count + other.count, other.mean - self.mean
        scatter = (self.count - 1) * self.covariance + (other.count - 1) * other.covariance
        scatter = scatter + (self.count * other.count / count) * torch.outer(step, step)
        return Statistics(self.mean + step * (other.count / count), scatter / (count - 1), count)

    def save(self, path: str | Path, about: dict[str, Any]) -> Path:
        """Writes them as safetensors; ``about``, JSON's values, says what shaped them.

        Raises:
            DDIMError: the file cannot be written.
        """
        from safetensors.torch import save

        tensors = {"mean": self.mean.contiguous(), "covariance": self.covariance.contiguous()}
        metadata = {"format": FORMAT, "count": str(self.count), "about": json.dumps(about, sort_keys=True)}
        return write_whole(path, save(tensors, metadata))


def read_statistics(path: str | Path) -> tuple[Statistics, dict[str, Any]]:
    """What ``Statistics.save`` wrote, and what it was told of them.

    Raises:
        InputError: there is no such file, or it is another.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path} does not hold the statistics of features.")
            mean, covariance = file.get_tensor("mean").double(), file.get_tensor("covariance").double()
            return Statistics(mean, covariance, int(metadata["count"])), json.loads(metadata["about"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as the statistics of features: {reason_of(error)}") from None


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)): the squared 2-Wasserstein distance of two Gaussians (Dowson & Landau
    1982; Eq. 6 of Heusel et al. 2017, arXiv 1706.08500); covariances may be singular.

    With A = R R^T and B = S S^T the last trace is the sum of the singular values of R^T S: nothing but eigenvalues of
    symmetric matrices is taken a root of.

    Raises:
        InputError: a set of fewer than two images, which has no covariance; features of different lengths.
    """
    _enough(a, b)
    return float(_distance(a.mean, a.covariance[None], b)[0])


@dataclass(frozen=True)
class Interval:
    """A distance with its uncertainty; see ``bootstrap_interval``.

    Attributes:
        value: the distance of the images themselves.
        low, high: the interval.
        bias: how much larger the value is, on average, for being measured on no more than these images.
        level: how often such intervals hold the true value.
        resamples: how often the images were drawn anew.
    """

    value: float
    low: float
    high: float
    bias: float
    level: float
    resamples: int


def bootstrap_interval(
    features: Tensor, reference: Statistics, *, resamples: int = 200, level: float = 0.95, seed: int = 0
) -> Interval:
    """The distance of generated images from a reference, and how far other draws of as many images would lie from it.

    The images are drawn anew from themselves, with repetition (Efron 1979); the reference stays. A set of N images is
    further away than the distribution it comes from, by about c / N, and a set drawn from it again by as much more: the
    mean of the draws less the value is the ``bias``. The percentiles of the draws less the bias are the interval, which
    lies about the value. It is one for the mean distance of sets of N images, and such figures compare only with those
    of as many; less the bias once more it is one for infinitely many. On Gaussians with 150 images or more both hold
    what they should as often as ``level`` says, or oftener (with 50 images 0.90 of a nominal 0.95); the percentiles
    themselves, a bias further off, do not.

    Args:
        features: of the generated images, [N, D].
        reference: of the others.
        resamples: how many draws.
        level: in (0, 1).
        seed: of the draws.

    Raises:
        InputError: fewer than two images, or a number out of its range.
    """
    if not is_whole(resamples) or resamples < 20:
        raise InputError(f"{resamples} is too few to take percentiles of; use 20 or more.", parameter="resamples")
    if not is_number(level) or not 0 < level < 1:
        raise InputError(f"{level} is no share between 0 and 1; use for example 0.95.", parameter="level")
    own = Statistics.of(features)
    _enough(own, reference)
    value = frechet_distance(own, reference)
    count, x = len(features), features.to("cpu", torch.float64) - own.mean  # centred: nothing cancels below
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for begin in range(0, resamples, 50):
        means, covariances = [], []
        for _ in range(min(50, resamples - begin)):
            chosen = torch.randint(count, (count,), generator=generator)
            times = torch.bincount(chosen, minlength=count).double()
            mean = times @ x / count
            means.append(own.mean + mean)
            covariances.append(((x * times[:, None]).T @ x - count * torch.outer(mean, mean)) / (count - 1))
        drawn.append(_distance(torch.stack(means), torch.stack(covariances), reference))
    several = torch.cat(drawn)
    bias = float(several.mean()) - value
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = (several.quantile(ends) - bias).tolist()
    return Interval(value, max(low, 0.0), high, bias, level, resamples)


def _of(features: Tensor) -> Statistics:
    """Of one part [N, D], N from 1."""
    if features.dim() != 2:
        raise InputError(f"Features are one row an image, [N, D], not {list(features.shape)}.")
    x = features.detach().to("cpu", torch.float64)
    if not bool(x.isfinite().all()):
        raise InputError("The features are not finite: the images or the network that looks at them hold NaN.")
    mean = x.mean(0)
    x = x - mean
    return Statistics(mean, x.T @ x / max(len(x) - 1, 1), len(x))


def _distance(mean: Tensor, covariance: Tensor, reference: Statistics) -> Tensor:
    """Of means [N, D] or [D] and covariances [N, D, D] from the reference, [N]."""
    roots = _root(covariance).mT @ _root(reference.covariance)
    shared = torch.linalg.svdvals(roots).sum(-1)
    traces = covariance.diagonal(dim1=-2, dim2=-1).sum(-1) + reference.covariance.trace()
    # rounding may leave less than nothing of two equal sets
    return ((mean - reference.mean).square().sum(-1) + traces - 2 * shared).clamp(min=0)


def _root(covariance: Tensor) -> Tensor:
    """R with R R^T = covariance, [..., D, D]; directions in which there is nothing but rounding count as none."""
    values, vectors = torch.linalg.eigh(covariance)
    least = values[..., -1:].clamp(min=0) * (covariance.shape[-1] * torch.finfo(covariance.dtype).eps)
    return vectors * torch.where(values > least, values, 0.0).sqrt().unsqueeze(-2)


def _enough(*sets: Statistics) -> None:
    for one in sets:
        if one.count < 2:
            raise InputError(f"A Fréchet distance needs two images or more in each set, not {one.count}.")
    _same_dim(sets[0], sets[1])


def _same_dim(a: Statistics, b: Statistics) -> None:
    if a.dim != b.dim:
        raise InputError(
            f"Features of {a.dim} and of {b.dim} numbers do not compare; they come from different networks."
        )
