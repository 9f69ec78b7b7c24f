"""What an inversion stores beside its latent, in ``LatentCode.extras``, and what sampling does with it.

Under guidance, or because the network is called at another point than during the inversion, a sampling step does not
return to the trajectory of the inversion. Let x*_i be the sample of the inversion at ``grid[i]`` and d_i(x) the end of
the step of DDIM from x at ``grid[i]``. Three kinds of stored tensors put the source of a code back on x*, so that its
image comes back to the bit. They differ in what the targets of an edit get, which are sampled beside the source:

- ``pivot``, put back (``direct``): x*_{i+1} - d_i(x*_i) is added to the source, and nothing to a target. Adding the
  difference is the same as setting the source to x*_{i+1}, which is what is stored and done.
- ``asked``, an offset (``direct-edit``): the network is called where the inversion called it, at x*_{i+1}, and the step
  from x*_i along that slope ends at x*_{i+1}, because it is the step of the inversion backwards. A target is moved by
  the same offset before its call. The source is put back besides, only against rounding and guidance. The inversion
  called the network at the samples of the trajectory, so that the tensor is the same as ``pivot``.
- ``noise``, noise maps (``edit-friendly``): the difference to the mean of a step that adds noise, in units of the
  standard deviation of that noise, is stored as the noise of the step, and the targets get the same noise. The last
  map is zero, and the source is set to ``end`` after the last step.

``trajectory`` and ``source``, the image, are kept for editors, and sampling ignores them.

Null-text inversion corrects the step through the network's input instead: ``uncond_text`` and ``uncond_pooled``.
``anchor`` is the image, towards which ``prox-npi`` pulls the prediction of the source and of its targets.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

TUNED, TUNED_POOLED = "uncond_text", "uncond_pooled"
"""The names of the unconditional embeddings that null-text inversion optimized."""
ANCHOR = "anchor"
"""The name of the encoded image that reconstruction guidance pulls to."""
TRAJECTORY = "trajectory"
"""The name of the samples of an inversion at the nodes 1 to S, which editors start from."""


@dataclass(frozen=True)
class Extra:
    """One kind of stored tensor, [N, S, ...] with entry i for the step from ``grid[i]``.

    Attributes:
        phrase: what an entry is, for an error.
        per_step: whether there is one entry for each step; False means a single one, [N, 1, ...].
        sample: whether an entry has the shape of a sample.
        pins: whether sampling sets the source to it, so that the image comes back with any guidance.
        acts: whether sampling uses it. Other tensors are for an editor.
    """

    phrase: str
    per_step: bool = True
    sample: bool = True
    pins: bool = False
    acts: bool = True


EXTRAS: dict[str, Extra] = {
    TUNED: Extra("a null embedding", sample=False),
    TUNED_POOLED: Extra("a pooled null embedding", sample=False),
    "noise": Extra("a noise map"),
    "pivot": Extra("a pivot", pins=True),
    "asked": Extra("the point of a network call", pins=True),
    "end": Extra("the image", per_step=False, pins=True),
    ANCHOR: Extra("the image", per_step=False),
    TRAJECTORY: Extra("a sample", acts=False),
    "source": Extra("the image", per_step=False, acts=False),
    "guess": Extra("the first guess", per_step=False, acts=False),
}
"""All kinds of stored tensors by their names in ``LatentCode.extras``."""


def pinned(names: Iterable[str]) -> bool:
    """Returns whether sampling sets the source to stored samples, so that its image comes back with any guidance.

    Args:
        names: the names in ``LatentCode.extras``, or ``Inversion.keeps``.
    """
    return any(name in EXTRAS and EXTRAS[name].pins for name in names)


def acting(extras: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors that sampling uses."""
    return {name: tensor for name, tensor in extras.items() if name not in EXTRAS or EXTRAS[name].acts}


def shared(extras: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors that the targets of an edit use as their source does: embeddings and noise maps."""
    return {name: tensor for name, tensor in acting(extras).items() if name not in EXTRAS or not EXTRAS[name].pins}


PATHS = ("pivot", "asked")
"""The names of the trajectories that sampling puts the source on, at the nodes 1 to S."""


def path_of(extras: Mapping[str, Tensor]) -> Tensor | None:
    """Returns the trajectory that sampling puts the source on, [N, S, ...], or None if there is none."""
    return next((extras[name] for name in PATHS if name in extras), None)


def image_of(extras: Mapping[str, Tensor]) -> Tensor | None:
    """Returns the encoded image that a code was made from, [N, ...], or None if no stored tensor ends at it."""
    ends = (*PATHS, TRAJECTORY, "end", "source", ANCHOR)
    return next((extras[name][:, -1] for name in ends if name in extras), None)


def anchor_of(extras: Mapping[str, Tensor]) -> Tensor | None:
    """Returns the encoded images that reconstruction guidance pulls to, [N, ...], or None if there are none."""
    return extras[ANCHOR][:, 0] if ANCHOR in extras else None
