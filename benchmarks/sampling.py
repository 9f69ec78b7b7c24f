"""ddim.sample against diffusers' pipeline and bare network calls: the same weights, noise and steps, in one run.

    python benchmarks/sampling.py --network fashion --batch 64 --steps 50

The pipeline is diffusers' as its own documentation loads it: DDIMPipeline, or StableDiffusionPipeline with a
DDIMScheduler under guidance 7.5, in float32. "its network alone" is the U-Net that it loaded, called as often on as
many images, and nothing else: what a loop without any cost would take. "our network alone" is the same for the one
that ddim.load made quicker. --also bfloat16, --also autocast and --also compile add ddim.sample with
ddim.load(dtype="bfloat16"), under torch.autocast, and with ddim.load(compile=True), which says after how many images
the time of its first call is won back.

All take turns, round by round, so that a machine that slows down slows all of them; a ratio is the median of the
rounds' ratios. PSNR is against the pipeline's images: of all of them in one, and of the worst.
"""

import math
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
from rounds import Network, arguments, headline, in_turns, only, opened, peaks, ratios
from torch import Tensor

import ddim
from ddim.core.conditioning import Conditioning, PromptConditioning
from ddim.evaluation.metrics import psnr
from ddim.pipelines.common import grid_for

PIPELINE, ITS_NETWORK = "diffusers' pipeline", "its network alone"
OURS, OUR_NETWORK = "ddim.sample", "our network alone"
ALSO = {"autocast": {"autocast": True}, "bfloat16": {"dtype": "bfloat16"}, "compile": {"compile": True}}


def pipeline_of(network: Network) -> Any:
    """diffusers' pipeline with a DDIMScheduler that does not clip, as the paper's sampler does not."""
    from diffusers import DDIMPipeline, DDIMScheduler, StableDiffusionPipeline

    kind = StableDiffusionPipeline if network.text else DDIMPipeline
    pipeline = kind.from_pretrained(str(network.folder))
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(network: Network, batch: int, steps: int) -> Callable[[], Tensor]:
    """The pipeline's images [N, C, H, W], image k from the seed k."""
    pipeline = pipeline_of(network)

    def run() -> Tensor:
        seeds = [torch.Generator().manual_seed(k) for k in range(batch)]
        settings = {"num_inference_steps": steps, "output_type": "np", "generator": seeds}
        if network.text:
            images = pipeline(network.prompts(batch), guidance_scale=7.5, **settings).images
        else:
            images = pipeline(batch, **settings).images
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    return run


def ours(network: Network, batch: int, steps: int, *, autocast: bool = False, **options: Any) -> Callable[[], Tensor]:
    """ddim.sample's; ``options`` are of ddim.load."""
    model = ddim.load(network.folder, **options)
    prompt = network.prompts(batch) if network.text else None

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return ddim.sample(model, batch, steps=steps, prompt=prompt, batch=batch, clip_x0=math.inf)

    return run


def its_network(network: Network, batch: int, steps: int) -> Callable[[], None]:
    """The pipeline's U-Net, at every time of its grid."""
    pipeline = pipeline_of(network)
    pipeline.scheduler.set_timesteps(steps)
    model = ddim.load(network.folder)
    x, words = asked(network, model, batch)
    about = {"encoder_hidden_states": words} if words is not None else {}

    def run() -> None:
        with torch.no_grad():
            for t in pipeline.scheduler.timesteps:
                pipeline.unet(x, t, return_dict=False, **about)

    return run


def our_network(network: Network, batch: int, steps: int) -> Callable[[], None]:
    """The U-Net that ddim.load gives, as the sampler asks it."""
    model = ddim.load(network.folder)
    x, words = asked(network, model, batch)
    nodes = list(grid_for(model, steps, None))[:-1]
    conditions = PromptConditioning(Conditioning({"text": words} if words is not None else {}))
    denoise = model.guided(ddim.Guidance(), conditions)

    def run() -> None:
        with torch.no_grad():
            for node in nodes:
                denoise(x, node)

    return run


def asked(network: Network, model: Any, batch: int) -> tuple[Tensor, Tensor | None]:
    """What one call is about: with guidance, twice as many rows as images."""
    x = torch.randn(batch, *model.shape)
    if not network.text:
        return x, None
    conditions = model.condition(None, batch, network.prompts(batch))
    return torch.cat([x, x]), Conditioning.cat([conditions.uncond, conditions.cond]).tensors["text"]


def keeping(run: Callable[[], Any], into: dict[str, Any], name: str) -> Callable[[], None]:
    """The run with what it last made kept under its name."""

    def kept() -> None:
        into[name] = run()

    return kept


def runs_of(network: Network, args: Namespace) -> dict[str, Callable[[], Callable[[], Any]]]:
    """How each run is made ready."""
    size = (network, args.batch, args.steps)
    ready = {
        PIPELINE: lambda: theirs(*size),
        ITS_NETWORK: lambda: its_network(*size),
        OURS: lambda: ours(*size),
        OUR_NETWORK: lambda: our_network(*size),
    }
    return ready | {f"{OURS}, {name}": (lambda name=name: ours(*size, **ALSO[name])) for name in args.also}


def main() -> None:
    parser = arguments(__doc__, batch=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--also", nargs="*", default=[], choices=sorted(ALSO))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with opened(args.network) as network:
        ready = runs_of(network, args)
        if args.only:
            return only(ready[args.only]())
        made: dict[str, Any] = {}
        runs = {name: keeping(make(), made, name) for name, make in ready.items()}
        compiled, first = f"{OURS}, compile", 0.0
        if compiled in runs:
            start = time.perf_counter()
            runs[compiled]()
            first = time.perf_counter() - start
        times = in_turns(runs, args.rounds)
        calls = f"{args.steps} network calls an image" + (", each of two rows" if network.text else "")
        print(headline(args, f"{network.name}, {args.batch} images, {calls}, {args.rounds} rounds"))
        reference, same = made[PIPELINE], {}
        for name in (n for n in runs if n.startswith(OURS)):
            images = made[name].float()
            whole = psnr(images.flatten()[None], reference.flatten()[None]).item()
            same[name] = f"{whole:6.1f} dB, the worst {psnr(images, reference).min().item():.1f} dB"
        memory = peaks(network, list(runs), args)
    for name, seconds in times.items():
        each = args.batch / statistics.median(seconds)
        print(
            f"{name:24s} {each:8.2f} images/s, {ratios(times, name, PIPELINE)} times "
            f"the pipeline's{memory[name]}{f', {same[name]}' if name in same else ''}"
        )
    if first:
        usual, once = statistics.median(times[OURS]), statistics.median(times[compiled])
        after = f"it pays after {(first - once) / (usual - once) * args.batch:.0f} images"
        print(
            f"{compiled}: the first {args.batch} images took {first:.1f} s, the next {once:.1f} s; "
            f"{after if once < usual else 'it does not pay'}"
        )
    for other in (OUR_NETWORK, ITS_NETWORK):
        print(f"{OURS} is {ratios(times, OURS, other)} times as fast as {other}")


if __name__ == "__main__":
    main()
