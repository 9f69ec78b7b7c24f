"""The section ``null-text`` of benchmarks/gpu.py: the library's null-text inversion against its authors' order of work.

The reference is written plainly from Mokady et al. 2023 (arXiv 2211.09794), Algorithm 1: one image in float32; in each
step one conditional call, then for each update one unconditional call with its gradient and a step of torch's Adam, and
at last one guided call of two rows. Both sides make the same number of updates (``stop`` = ``rise`` = 0), and then stop
as early as they do by default. The loss that remains, and how near the guided trajectory comes to its pivot, say that
both solve one problem; plain DDIM inversion, which tunes nothing, stands beside them.
"""

import math
import statistics
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import gpu_models as models
import torch
from gpu_bench import Bench
from gpu_edit import Plain
from gpu_models import SD15, SOURCE, TINY_SD15, Peak
from torch import Tensor
from torch.nn.functional import mse_loss

import ddim
from ddim.models.counted import Counted
from ddim.pipelines.events import LossEvent

WEIGHT, INNER = 7.5, 10
STOP, RISE = 1e-5, 2e-5
EQUAL, OWN = "none, equal updates", "its own"


@dataclass
class Found:
    """What one method reached.

    Attributes:
        end: the last sample of the guided trajectory, which should be the image's latent.
        losses: that of each step after its last update.
        calls: rows of network calls for each image.
    """

    end: Tensor
    losses: list[float]
    calls: float
    seconds: list[float] = field(default_factory=list)


def reference(plain: Plain, picture: Tensor, stop: float, rise: float) -> Found:
    """Algorithm 1 for one picture."""
    pipe, steps = plain.pipe, plain.steps
    with torch.no_grad():
        null, words = plain.text(["", SOURCE]).float().chunk(2)
    pivot = plain.pivot(plain.encode(picture), words)
    x, losses, rows = pivot[0], [], steps
    for i in range(steps):
        null = null.clone().detach().requires_grad_(True)
        adam = torch.optim.Adam([null], lr=1e-2 * (1.0 - i / 100.0))
        with torch.no_grad():
            eps_words = plain.eps(x, i, words)
        rows += 1
        for _ in range(INNER):
            eps_null = plain.eps(x, i, null)
            rows += 1
            loss = mse_loss(plain.move(x, eps_null + WEIGHT * (eps_words - eps_null), i, i + 1), pivot[i + 1])
            adam.zero_grad()
            loss.backward()
            adam.step()
            if loss.item() < stop + i * rise:
                break
        with torch.no_grad():
            both = plain.eps(torch.cat([x, x]), i, torch.cat([null.detach(), words]))
            rows += 2
            eps_null, eps_words = both.chunk(2)
            x = plain.move(x, eps_null + WEIGHT * (eps_words - eps_null), i, i + 1)
            losses.append(float(mse_loss(x, pivot[i + 1])))
    assert not any(p.grad is not None for p in pipe.unet.parameters())
    return Found(x, losses, rows)


def ours(model: ddim.Model, pictures: Tensor, steps: int, **options: Any) -> tuple[Found, ddim.LatentCode]:
    """The library's inversion; ``Found.end`` is still missing."""
    losses: list[float] = []
    counted = Counted(model)
    code = ddim.invert(
        counted,
        pictures,
        method="null-text",
        options={"inner": INNER, **options},
        steps=steps,
        prompt=SOURCE,
        guidance=WEIGHT,
        batch=len(pictures),
        on_event=lambda event: losses.append(event.loss) if isinstance(event, LossEvent) else None,
    )
    return Found(torch.empty(0), losses, counted.calls(len(pictures))), code


def end_of(model: ddim.Model, code: ddim.LatentCode) -> Tensor:
    """The sample that a code ends at."""
    seen: list[Tensor] = []
    with mock.patch.object(model, "decode", lambda x0: seen.append(x0) or torch.zeros(len(x0), 3, 1, 1)):
        ddim.reconstruct(model, code)
    return torch.cat(seen)


def decibels(plain: Plain, x: Tensor, target: Tensor) -> float:
    """PSNR of the decoded sample against the decoded latent."""
    error = float((plain.decode(x) - plain.decode(target)).square().mean())
    return 200.0 if error == 0 else -10 * math.log10(error)


def null_text(bench: Bench) -> None:
    """Memory of each side alone, then both in turns."""
    shape, steps, many = (TINY_SD15, 3, 2) if bench.tiny else (SD15, 10, 8)
    pictures = models.pictures(many, shape)
    whole = models.pipeline(shape, bench.device)
    view = models.owned(models.cast(whole, torch.float32))  # for its grid
    full, short = Plain.of(whole, view, steps), Plain.of(whole, view, 1)
    del view
    with Peak(bench.device) as theirs:
        reference(short, pictures[:1], 0, 0)
    held = models.cast(whole, torch.bfloat16)
    del whole, full, short
    models.free()
    model = models.owned(held)
    peaks: dict[int, Peak] = {}
    for count in (1, many):
        with Peak(bench.device) as peaks[count]:
            ours(model, pictures[:count], 1, stop=0.0, rise=0.0)
    whole = models.pipeline(shape, bench.device)  # the same weights again
    plain = Plain.of(whole, model, steps)
    target = plain.encode(pictures)
    untuned = ddim.invert(
        model, pictures[:1], steps=steps, prompt=SOURCE, guidance=WEIGHT, inversion_guidance=1.0, batch=1
    )
    begun = end_of(model, untuned)
    kinds = {EQUAL: ({"stop": 0.0, "rise": 0.0}, (0.0, 0.0)), OWN: ({}, (STOP, RISE))}
    for stops, (options, (stop, rise)) in list(kinds.items())[: 1 if bench.tiny else None]:
        if not bench.more(5):
            bench.note(f"null-text: stop {stops} was skipped; the time was used up.")
            return
        rounds = 1 if bench.tiny or stops == OWN or not bench.more(60) else 2
        found: dict[tuple[str, int], Found] = {}
        times: dict[tuple[str, int], list[float]] = {}
        for _ in range(rounds):
            for who, count in (("reference", 1), ("ours", 1), ("ours", many)):
                made: list[Any] = []
                some = pictures[:count]
                if who == "reference":
                    seconds = models.seconds_of(
                        lambda made=made, some=some, stop=stop, rise=rise: made.append(
                            (reference(plain, some, stop, rise), None)
                        ),
                        bench.device,
                    )
                else:
                    seconds = models.seconds_of(
                        lambda made=made, some=some, options=options: made.append(ours(model, some, steps, **options)),
                        bench.device,
                    )
                times.setdefault((who, count), []).append(seconds / count)
                found[who, count], code = made[-1]
                if code is not None:
                    found[who, count].end = end_of(model, code)
        for (who, count), seconds in times.items():
            one, peak = found[who, count], theirs if who == "reference" else peaks[count]
            bench.row(
                "null-text",
                who=who,
                images=count,
                shape=shape.name,
                dtype="float32, as torch comes" if who == "reference" else "bfloat16",
                S=steps,
                updates=INNER,
                stop=stops,
                **{
                    "s an image": statistics.median(seconds),
                    "ratio": statistics.median(times["reference", 1]) / statistics.median(seconds),
                    "peak MB": peak.allocated,
                    "reserved MB": peak.reserved,
                    "memory ratio": models.part_of(peak, theirs),
                    "evaluations an image": one.calls,
                    "mean loss": statistics.mean(one.losses),
                    "distance from the pivot": models.distance(one.end[:1], target[:1]),
                    "PSNR, dB": decibels(plain, one.end[:1], target[:1]),
                    "distance, untuned": models.distance(begun, target[:1]),
                },
            )
    change = models.distance(begun, target[:1])
    if not models.trusted(change):
        bench.note(f"null-text: guidance does not lead away from the pivot ({change:.2g}): the ratios mean nothing.")
