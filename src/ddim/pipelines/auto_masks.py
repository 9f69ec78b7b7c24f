"""Finds the automatic masks of an edit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._utils.errors import InputError, warn
from ..core.conditioning import Conditioning, PromptConditioning
from ..core.denoiser import Call
from ..core.guidance import Guidance
from ..core.noise import SeededNoise
from ..editing.auto_mask import AutoMask
from ..editing.sides import Side
from ..inversion.latent_code import LatentCode
from ..models.base import Model
from .common import encoded_images, half_precision_hint
from .events import engine_events
from .reconstruct import end_latents
from .target_batches import TargetBatches, with_facts


def automatic_masks(
    model: Model,
    auto: AutoMask,
    code: LatentCode,
    pixels: Tensor | None,
    targets: Sequence[Conditioning],
    embedded: float | None,
    seed: int,
    batches: TargetBatches,
) -> Tensor:
    """Returns the mask of every target on the latent, float32 [N, K, H, W] of 0 and 1.

    Args:
        model: the model.
        auto: the settings.
        code: of all N sources.
        pixels: the images that the code was made from, [N, C, H, W] in [0, 1], if they are known.
        targets: the conditions of each part of the targets' prompts, N * K rows, those of one image next to each other.
            A target may change the image where one of its parts may.
        embedded: the scale that both sides have, if the network takes one as an input.
        seed: the seed of the first image.
        batches: how many sources and targets the network is asked for at once, and what is reported.
    """
    call, guidance = Call(on_engine=engine_events(batches.on_event)), Guidance(embedded=embedded)
    node = auto.node(model, whole=model.whole_timesteps)
    x0 = _encoded(model, code, pixels, batches.batch)
    found: list[Tensor] = []
    for rows in batches.chunks:
        part, n = code.conditions[rows].cond.to(model.device), rows.stop - rows.start
        source, masks = Side(PromptConditioning(part), guidance, n), list[Tensor]()
        for one in targets:
            wanted = with_facts(one[batches.targets_of(rows)], part, batches.many)
            target = Side(PromptConditioning(wanted), guidance, n)
            noise = SeededNoise([seed + row for row in range(rows.start, rows.stop)])
            with half_precision_hint(model):
                masks.append(auto.mask(model, node, x0[rows], source, target, noise, call=call))
        found.append(torch.stack(masks).amax(0))
    return torch.cat(found)


def _encoded(model: Model, code: LatentCode, pixels: Tensor | None, batch: int) -> Tensor:
    """Returns the encoded images, [N, ...]: those that the code ends at, the given ones, or those that it samples."""
    found = encoded_images(code)
    if found is None and pixels is not None:
        found = torch.cat([model.encode(pixels[k : k + batch]) for k in range(0, len(pixels), batch)])
    elif found is None:
        found = end_latents(model, code, batch)
    return found.to(model.device, model.state_dtype)


def refuse_empty(mask: Tensor, targets: Sequence[Sequence[object]]) -> None:
    """Refuses masks that are empty for every target, and warns if some are.

    Args:
        mask: [N, K, H, W], or [N, 1, H, W] for all targets.
        targets: the targets, ``[N][K]``.

    Raises:
        InputError: no image may change anywhere.

    Warns:
        DDIMWarning: some of the targets change nothing.
    """
    every = [(n, k, name) for n, row in enumerate(targets) for k, name in enumerate(row)]
    empty = [(n, name) for n, k, name in every if not bool(mask[n, min(k, mask.shape[1] - 1)].any())]
    which = ", ".join(f"{name!r} (image {n + 1})" for n, name in empty)
    if len(empty) == len(every):
        raise InputError(
            f"where the prompts ask for different things, nothing may change for {which}; a lower threshold or a "
            "larger mask leaves more.",
            parameter="auto_mask",
        )
    if empty:
        warn(f"The mask of {which} is empty, so that nothing changes; a lower threshold or a larger mask leaves more.")
