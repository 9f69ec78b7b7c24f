"""The Fréchet distance between two sets of images: the distance of two Gaussians fitted to their feature vectors.

In the features of Inception it is FID (Heusel et al. 2017, arXiv 1706.08500). In the features of another network it is
another number, and is reported under that network's name; see ``title``.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._utils.errors import InputError, is_number, is_whole


def title(features: str) -> str:
    """The name of the distance in the features of a network other than Inception."""
    return f"Fréchet distance in the features of {features}"


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of a set of feature vectors. The sum of two is that of both sets together.

    Attributes:
        mean: float64 [D].
        covariance: float64 [D, D], with the divisor count - 1; zero for a single image.
        count: the number of images.
    """

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor | Iterable[Tensor]) -> "Statistics":
        """The statistics of vectors [N, D], or of an iterable of such parts.

        Raises:
            InputError: there is no vector, or one is not finite.
        """
        parts = [features] if isinstance(features, Tensor) else features
        total: Statistics | None = None
        for part in parts:
            if len(part):
                total = _of(part) if total is None else total + _of(part)
        if total is None:
            raise InputError("there are no images to compute statistics of.", parameter="images")
        return total

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return len(self.mean)

    def __add__(self, other: "Statistics") -> "Statistics":
        """The statistics of both sets together (Chan, Golub & LeVeque 1983)."""
        _same_dim(self, other)
        count, step = self.count + other.count, other.mean - self.mean
        scatter = (self.count - 1) * self.covariance + (other.count - 1) * other.covariance
        scatter = scatter + (self.count * other.count / count) * torch.outer(step, step)
        return Statistics(self.mean + step * (other.count / count), scatter / (count - 1), count)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)): the squared 2-Wasserstein distance of two Gaussians (Dowson & Landau
    1982; Eq. 6 of Heusel et al. 2017, arXiv 1706.08500). Covariances may be singular.

    With A = R R^T and B = S S^T, the trace of the root is the sum of the singular values of R^T S. So no root is taken
    of anything but the eigenvalues of symmetric matrices.

    Raises:
        InputError: a set has fewer than two images, or the vectors have different lengths.
    """
    _enough(a, b)
    return float(_distance(a.mean, a.covariance[None], b)[0])


@dataclass(frozen=True)
class Interval:
    """A distance with its confidence interval; see ``bootstrap_interval``.

    Attributes:
        value: the distance of the images themselves.
        low, high: the ends of the interval.
        bias: how much larger the value is, on average, because there are no more than these images.
        level: the share of such intervals that contain the true value.
        resamples: the number of bootstrap resamples.
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
    """The distance of generated images from a reference, with a bootstrap interval (Efron 1979).

    The generated images are resampled with replacement; the reference is not. A set of N images is about c / N further
    from the reference than the distribution that it is drawn from, and a resample is further away by the same amount
    again. That amount, the mean of the resamples minus the value, is the ``bias``. The interval is the percentiles of
    the resamples minus the bias, so that it lies around the value.

    The interval is for the mean distance of sets of N images, so distances compare only between sets of the same size.
    Subtract the bias once more for an interval of the distance of infinitely many images. On Gaussians with 150 images
    or more, both intervals contain the true value as often as ``level`` says or more often (with 50 images 0.90 of a
    nominal 0.95). The percentiles without the correction do not.

    Args:
        features: vectors of the generated images, [N, D].
        reference: statistics of the other images.
        resamples: the number of resamples, 20 or more.
        level: in (0, 1).
        seed: the seed of the resamples.

    Raises:
        InputError: there are fewer than two images, or a number is out of its range.
    """
    if not is_whole(resamples) or resamples < 20:
        raise InputError(f"{resamples} are too few for percentiles; use 20 or more.", parameter="resamples")
    if not is_number(level) or not 0 < level < 1:
        raise InputError(f"{level} is not between 0 and 1; use for example 0.95.", parameter="level")
    own = Statistics.of(features)
    _enough(own, reference)
    value = frechet_distance(own, reference)
    count, x = (
        len(features),
        features.to("cpu", torch.float64) - own.mean,
    )  # centred, so that no digits cancel in the covariances below
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
    resampled = torch.cat(drawn)
    bias = float(resampled.mean()) - value
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = (resampled.quantile(ends) - bias).tolist()
    return Interval(value, max(low, 0.0), high, bias, level, resamples)


def _of(features: Tensor) -> Statistics:
    """The statistics of one part [N, D], N >= 1."""
    if features.dim() != 2:
        raise InputError(f"Features must be one row for each image, [N, D], not {list(features.shape)}.")
    x = features.detach().to("cpu", torch.float64)
    if not bool(x.isfinite().all()):
        raise InputError("The features are not finite: the images or the weights of the network contain NaN.")
    mean = x.mean(0)
    x = x - mean
    return Statistics(mean, x.T @ x / max(len(x) - 1, 1), len(x))


def _distance(mean: Tensor, covariance: Tensor, reference: Statistics) -> Tensor:
    """The distances [N] of means [N, D] or [D] and covariances [N, D, D] from the reference."""
    roots = _root(covariance).mT @ _root(reference.covariance)
    shared = torch.linalg.svdvals(roots).sum(-1)
    traces = covariance.diagonal(dim1=-2, dim2=-1).sum(-1) + reference.covariance.trace()
    # for two equal sets, rounding may give a small negative number
    return ((mean - reference.mean).square().sum(-1) + traces - 2 * shared).clamp(min=0)


def _root(covariance: Tensor) -> Tensor:
    """R with R R^T = covariance, [..., D, D]. Eigenvalues no larger than the rounding error count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    least = values[..., -1:].clamp(min=0) * (covariance.shape[-1] * torch.finfo(covariance.dtype).eps)
    return vectors * torch.where(values > least, values, 0.0).sqrt().unsqueeze(-2)


def _enough(*sets: Statistics) -> None:
    for one in sets:
        if one.count < 2:
            raise InputError(f"A Fréchet distance needs at least two images in each set, not {one.count}.")
    _same_dim(sets[0], sets[1])


def _same_dim(a: Statistics, b: Statistics) -> None:
    if a.dim != b.dim:
        raise InputError(
            f"Features of {a.dim} and of {b.dim} numbers cannot be compared; they come from different networks."
        )
