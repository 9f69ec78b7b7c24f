"""The sections ``sampling``, ``memory`` and ``layouts`` of benchmarks/gpu.py: a pipeline of the real shape, three ways.

ddim.sample, diffusers' pipeline and bare calls of the U-Net take turns in one run, on the same weights and noise; a
ratio is the median of the rounds' ratios. That both draw the same is checked first: the latents in float32 without TF32
after a few steps, then those of the timed run in its own dtype.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import gpu_models as models
import torch
from gpu_bench import Bench, median_ratio
from gpu_models import DTYPES, SD15, SDXL, SOURCE, TINY_SD15, TINY_SDXL, Peak, Shape
from rounds import in_turns
from torch import Tensor

import ddim
from ddim.core.tf32 import with_tf32
from ddim.models.counted import Counted
from ddim.pipelines.common import grid_for, prior

PIPELINE, OURS = "diffusers' pipeline", "ddim.sample"
LIVE = f"{OURS}, a live pipeline"
WEIGHT = 7.5


@dataclass(frozen=True)
class Case:
    """One row of the tables: so many images of a shape, in so many steps."""

    shape: Shape
    images: int
    steps: int


def cases(bench: Bench) -> list[Case]:
    """SD 1.5 at 512 pixels and SDXL at 1024."""
    if bench.tiny:
        return [Case(TINY_SD15, 1, 3), Case(TINY_SD15, 2, 3), Case(TINY_SDXL, 1, 2)]
    return [Case(SD15, 1, 50), Case(SD15, 8, 50), Case(SDXL, 1, 20), Case(SDXL, 4, 10)]


def theirs(pipe: Any, model: ddim.Model, case: Case, output: str = "pt") -> Callable[[], Tensor]:
    """The pipeline's images, or its latents, from the noise that ddim.sample begins with."""
    noise, _ = prior(model, grid_for(model, case.steps, None), list(range(case.images)), model.shape)

    def run() -> Tensor:
        return pipe(
            [SOURCE] * case.images,
            num_inference_steps=case.steps,
            guidance_scale=WEIGHT,
            latents=noise.to(pipe.unet.dtype),
            output_type=output,
        ).images

    return run


def ours(model: ddim.Model, case: Case) -> Callable[[], Tensor]:
    """ddim.sample's images."""

    def run() -> Tensor:
        return ddim.sample(model, case.images, steps=case.steps, prompt=SOURCE, guidance=WEIGHT, batch=case.images)

    return run


def latents(model: ddim.Model, case: Case, prompt: str = SOURCE) -> Tensor:
    """What ddim.sample decodes."""
    seen: list[Tensor] = []
    with mock.patch.object(model, "decode", lambda x0: seen.append(x0) or torch.zeros(len(x0), 3, 1, 1)):
        ddim.sample(model, case.images, steps=case.steps, prompt=prompt, guidance=WEIGHT, batch=case.images)
    return torch.cat(seen)


def bare(pipe: Any, case: Case) -> Callable[[], None]:
    """The U-Net of a pipeline, called as often and on as many rows as sampling does, and nothing else."""
    asked = models.asked_of(pipe, [SOURCE], rows=2 * case.images)

    def run() -> None:
        with torch.no_grad():
            for _ in range(case.steps):
                pipe.unet(**asked, return_dict=False)

    return run


def replayed(pipe: Any, case: Case) -> Callable[[], None]:
    """The same calls as replays of a CUDA graph."""
    asked = models.asked_of(pipe, [SOURCE], rows=2 * case.images)
    replay, _ = models.graphed(lambda: pipe.unet(**asked, return_dict=False)[0])

    def run() -> None:
        for _ in range(case.steps):
            replay()

    return run


def sampling(bench: Bench, large: bool = False) -> None:
    """The table of sampling, for SD 1.5 or for SDXL (``large``)."""
    built: dict[str, tuple[Any, Any, ddim.Model, float]] = {}
    for case in cases(bench):
        if case.shape.large != large or not bench.more():
            continue
        if case.shape.name not in built:
            built.clear()
            models.free()
            built[case.shape.name] = _ready(bench, case.shape)
        compare(bench, case, *built[case.shape.name])


def _ready(bench: Bench, shape: Shape) -> tuple[Any, Any, ddim.Model, float]:
    """The pipeline in bfloat16, a channels-last copy, the library's model, and how far float32 latents agree."""
    whole = models.pipeline(shape, bench.device)
    case = Case(shape, 1, 2 if bench.tiny else 4)
    with with_tf32(False):
        model = models.owned(models.cast(whole, torch.float32))
        reference = theirs(whole, model, case, "latent")()
        agree = models.distance(latents(model, case), reference)
    del model
    pipe = models.cast(whole, torch.bfloat16)
    last = models.cast(pipe, torch.bfloat16)
    last.unet.to(memory_format=torch.channels_last)
    model = models.owned(models.cast(pipe, torch.bfloat16))
    del whole
    models.free()
    bench.say(f"{shape.name}: float32 latents agree with the pipeline's to {agree:.2g} in {case.steps} steps")
    return pipe, last, model, agree


def compare(bench: Bench, case: Case, pipe: Any, last: Any, model: ddim.Model, agree: float) -> None:
    """One row: the pipeline, ddim.sample and the network alone, in turns."""
    short = Case(case.shape, case.images, min(case.steps, 10))
    counted = Counted(model)
    mine = latents(counted, short)
    calls = counted.calls(case.images) / short.steps * case.steps
    near = models.distance(mine, theirs(pipe, model, short, "latent")())
    change = models.distance(latents(model, short, models.OTHER), mine)
    runs: dict[str, Callable[[], Any]] = {PIPELINE: theirs(pipe, model, case), OURS: ours(model, case)}
    if case.images == 1:
        runs[LIVE] = ours(ddim.load(models.cast(pipe, torch.bfloat16)), case)
    runs["network, eager"] = bare(pipe, case)
    if bench.cuda:
        runs["network, graph"] = replayed(pipe, case)
        runs["network, graph, channels last"] = replayed(last, case)
    times = in_turns(runs, 1 if bench.tiny else 3)
    seconds = {name: statistics.median(some) for name, some in times.items()}
    limit = min(value for name, value in seconds.items() if name.startswith("network"))
    usable = models.trusted(change) and agree < 1e-2
    bench.row(
        "sampling",
        shape=case.shape.name,
        pixels=model.picture[1],
        images=case.images,
        S=case.steps,
        w=WEIGHT,
        dtype="bfloat16",
        **{f"{name}, s": value for name, value in seconds.items()},
        **{
            "ratio": median_ratio(times, OURS, PIPELINE) if usable else None,
            "ours by the network's limit": seconds[OURS] / limit,
            "evaluations an image, ours": calls,
            "theirs": 2 * case.steps,
            "float32 latents differ by": agree,
            "bfloat16 latents differ by": near,
            "another prompt changes": change,
        },
    )
    if not usable:
        bench.note(f"{case.shape.name}: no ratio: the prompt changes {change:.2g}, float32 differs by {agree:.2g}.")


def memory(bench: Bench) -> None:
    """Peak memory of one side alone: its weights, its first call with captured graphs, its decoder."""
    for shape, counts in ((TINY_SD15, (1,)),) if bench.tiny else ((SD15, (1, 8)), (SDXL, (1,))):
        if not bench.more():
            return
        found: dict[tuple[str, int], Peak] = {}
        whole = models.pipeline(shape, bench.device)
        held = models.cast(whole, torch.bfloat16)
        del whole
        for images in counts:  # theirs first, since a model of the library changes the pipeline that it owns
            case = Case(shape, images, 3)
            with Peak(bench.device) as peak:
                held([SOURCE] * images, num_inference_steps=3, guidance_scale=WEIGHT, output_type="pt")
            found[PIPELINE, images] = peak
        model = models.owned(held)
        del held
        for images in counts:
            case = Case(shape, images, 3)
            with Peak(bench.device) as peak:
                ours(model, case)()
            found[OURS, images] = peak
        for images in counts:
            a, b = found[PIPELINE, images], found[OURS, images]
            bench.row(
                "memory",
                shape=shape.name,
                images=images,
                dtype="bfloat16",
                **{"theirs, MB": a.allocated, "ours, MB": b.allocated, "ratio": models.part_of(b, a)},
                **{"theirs, reserved": a.reserved, "ours, reserved": b.reserved},
            )
        del model
        models.free()


def layouts(bench: Bench) -> None:
    """Milliseconds of a call of the U-Net: eager and as a CUDA graph, contiguous and channels last."""
    if not bench.cuda:
        bench.note("layouts: without CUDA there are no graphs; only eager calls are timed.")
    wanted = [(TINY_SD15, (1, 2)), (TINY_SDXL, (2,))] if bench.tiny else [(SD15, (1, 2, 8, 16)), (SDXL, (2, 8))]
    kinds = ("bfloat16",) if bench.tiny else ("bfloat16", "float16", "float32")
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        for shape, counts in wanted:
            whole = models.pipeline(shape, bench.device)
            whole.vae = None  # its memory is of use elsewhere
            for dtype in kinds:
                layouts_of(bench, whole, shape, dtype, counts)
            del whole
            models.free()
    finally:
        torch.backends.cudnn.benchmark = benchmark


def layouts_of(bench: Bench, whole: Any, shape: Shape, dtype: str, counts: tuple[int, ...]) -> None:
    """Rows of one shape and dtype."""
    networks = {}
    for name, form in (("contiguous", torch.contiguous_format), ("channels last", torch.channels_last)):
        networks[name] = models.copied(whole.unet, DTYPES[dtype]).to(memory_format=form)
    for rows in counts:
        if not bench.more():
            bench.note(f"layouts: {shape.name}, {dtype}, {rows} rows and more were skipped; the time was used up.")
            return
        asked = {key: _cast(value, DTYPES[dtype]) for key, value in models.asked_of(whole, [SOURCE], rows=rows).items()}
        calls: dict[str, Callable[[], Tensor]] = {
            name: lambda unet=unet, asked=asked: unet(**asked, return_dict=False)[0] for name, unet in networks.items()
        }
        cells: dict[str, Any] = {}
        with with_tf32(True), torch.no_grad():
            for name, call in calls.items():
                cells |= timed(bench, call, name)
        best = min(calls, key=lambda name: cells[f"{name}, {'graph' if bench.cuda else 'eager'}"])
        bench.row("layouts", shape=shape.name, dtype=dtype, TF32=dtype == "float32", rows=rows, **cells, best=best)


def timed(bench: Bench, call: Callable[[], Tensor], name: str) -> dict[str, Any]:
    """Milliseconds of a call, eager and as a graph, and whether both give the same bits."""
    eager = call()
    one = models.seconds_of(call, bench.device)
    times = max(3, min(20, int(0.3 / max(one, 1e-4))))
    cells: dict[str, Any] = {f"{name}, eager": 1e3 * models.seconds_of(call, bench.device, 3 if bench.tiny else times)}
    if bench.cuda:
        replay, output = models.graphed(call)
        replay()
        cells[f"{name}, graph"] = 1e3 * models.seconds_of(replay, bench.device, times)
        cells[f"{name}, graph = eager"] = bool(torch.equal(output, eager))
    return cells


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {key: _cast(each, dtype) for key, each in value.items()}
    return value.to(dtype) if value.is_floating_point() else value
