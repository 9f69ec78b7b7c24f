"""ddim.invert and ddim.reconstruct against diffusers' DDIMInverseScheduler and DDIMScheduler in a loop written out.

    python benchmarks/inversion.py --network fashion --batch 32 --steps 50

diffusers has the inverse scheduler and no pipeline that walks there and back, so the loop is written out: the same
weights, pictures and steps, under the prompt alone (guidance 1). "its network alone" is the U-Net that diffusers
loaded, called as often on as many pictures. All take turns, round by round; a ratio is the median of the rounds'
ratios. PSNR is of what came back, against the pictures. They are smooth noise: the numbers are about speed.
"""

import math
import statistics
from collections.abc import Callable

import torch
from rounds import Network, arguments, headline, in_turns, only, opened, peaks, ratios
from sampling import pipeline_of
from torch import Tensor

import ddim
from ddim.evaluation.metrics import psnr

THEIRS, ITS_NETWORK, OURS = "diffusers, a loop", "its network alone", "ddim, there and back"


def pictures(count: int, shape: tuple[int, ...]) -> Tensor:
    """Smooth noise, [count, C, H, W] in [0, 1]."""
    coarse = (count, shape[0], *(side // 8 + 1 for side in shape[1:]))
    noise = torch.rand(coarse, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, shape[1:], mode="bilinear")


def theirs(network: Network, batch: int, steps: int) -> Callable[[], Tensor]:
    """Walks back by the inverse scheduler and forward by the other one; [N, C, H, W] in [0, 1]."""
    from diffusers import DDIMInverseScheduler

    pipeline = pipeline_of(network)
    unet, forward = pipeline.unet, pipeline.scheduler
    backward = DDIMInverseScheduler.from_config(forward.config, clip_sample=False)
    vae = pipeline.vae if network.text else None
    images = pictures(batch, ddim.load(network.folder).picture) * 2 - 1

    @torch.no_grad()
    def run() -> Tensor:
        about, x = {}, images
        if vae is not None:
            prompts = network.prompts(batch)
            about = {"encoder_hidden_states": pipeline.encode_prompt(prompts, "cpu", 1, False)[0]}
            x = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
        for scheduler in (backward, forward):
            scheduler.set_timesteps(steps)
            for t in scheduler.timesteps:
                x = scheduler.step(unet(x, t, return_dict=False, **about)[0], t, x).prev_sample
        x = x if vae is None else vae.decode(x / vae.config.scaling_factor).sample
        return ((x + 1) / 2).clamp(0, 1)

    return run


def ours(network: Network, batch: int, steps: int) -> Callable[[], Tensor]:
    """ddim.invert and ddim.reconstruct."""
    model = ddim.load(network.folder)
    images, prompt = pictures(batch, model.picture), network.prompts(batch) if network.text else None

    def run() -> Tensor:
        code = ddim.invert(model, images, steps=steps, prompt=prompt, batch=batch, clip_x0=math.inf)
        return ddim.reconstruct(model, code, batch=batch)

    return run


def its_network(network: Network, batch: int, steps: int) -> Callable[[], None]:
    """Two calls a step."""
    pipeline, model = pipeline_of(network), ddim.load(network.folder)
    x, about = torch.randn(batch, *model.shape), {}
    if network.text:
        about = {"encoder_hidden_states": model.condition(None, batch, network.prompts(batch)).cond.tensors["text"]}
    pipeline.scheduler.set_timesteps(steps)

    @torch.no_grad()
    def run() -> None:
        for t in [*pipeline.scheduler.timesteps] * 2:
            pipeline.unet(x, t, return_dict=False, **about)

    return run


def main() -> None:
    parser = arguments(__doc__, batch=32)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    made = {THEIRS: theirs, ITS_NETWORK: its_network, OURS: ours}
    with opened(args.network) as network:
        if args.only:
            return only(made[args.only](network, args.batch, args.steps))
        runs = {name: make(network, args.batch, args.steps) for name, make in made.items()}
        times = in_turns(runs, args.rounds)
        memory = peaks(network, list(runs), args)
        print(headline(args, f"{network.name}, {args.batch} pictures, 2 x {args.steps} calls, {args.rounds} rounds"))
        images = pictures(args.batch, ddim.load(network.folder).picture)
        back = {name: psnr(runs[name](), images).mean().item() for name in (THEIRS, OURS)}
    for name, seconds in times.items():
        each = args.batch / statistics.median(seconds)
        came = f", {back[name]:.1f} dB came back" if name in back else ""
        print(f"{name:24s} {each:8.2f} pictures/s, {ratios(times, name, THEIRS)} times the loop's{memory[name]}{came}")
    print(f"{OURS} is {ratios(times, OURS, ITS_NETWORK)} times as fast as {ITS_NETWORK}")


if __name__ == "__main__":
    main()
