"""A training step of ddim.train against diffusers' unconditional example, written out plainly, in turns.

    python benchmarks/training_step.py --network fashion --batch 64 --steps 12
    python benchmarks/training_step.py --device cuda

Both learn eps on the same random pictures with AdamW, gradients clipped to 1 and averaged weights, on the same network.
The plain loop does what the example does in one process: a DataLoader, DDPMScheduler.add_noise, the mean squared
error, Accelerate's backward pass, the learning rate's schedule, EMAModel. ddim.train runs whole; what it takes between
its first and its last step counts, so loading, checkpoints and export do not. Milliseconds a step, the median of the
rounds.

With ``--device`` bare steps are compared on that device, and nothing but torch and diffusers is needed; see
training_device.py. By default that is ``fashion`` at its batch of 64 and the shape of CIFAR's network at 128, each in
float32 and under autocast to bfloat16.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import training_device
from PIL import Image
from rounds import Network, arguments, headline, in_turns, only, opened, peaks, ratios
from torch import Tensor
from torch.nn.functional import mse_loss

PLAIN, OURS = "diffusers' example", "ddim.train"
_LEFT_OUT = ("sample_size", "in_channels", "out_channels")  # what ddim.train reads from its data section


def options_of(network: Network) -> dict[str, Any]:
    """The U-Net's config, without what stands for "as usual"."""
    config = json.loads((network.folder / "unet" / "config.json").read_text())
    return {k: v for k, v in config.items() if not k.startswith("_") and v is not None}


def random_pictures(folder: Path, count: int, options: dict[str, Any]) -> Tensor:
    """``count`` PNG files of noise in a folder, and the same as a tensor [count, C, H, W] in [-1, 1]."""
    side, channels = options["sample_size"], options["in_channels"]
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    for k, picture in enumerate(pixels):
        Image.fromarray(picture.squeeze()).save(folder / f"{k:04d}.png")
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


def plain(
    options: dict[str, Any], images: Tensor, batch: int, steps: int, precision: str, device: str = "cpu"
) -> Callable[[], float]:
    """The example's loop; seconds a step."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    def run() -> float:
        torch.manual_seed(0)
        accelerator = Accelerator(mixed_precision="no", cpu=device == "cpu")
        scheduler, network = DDPMScheduler(), UNet2DModel(**options)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
        data = torch.utils.data.DataLoader(images, batch_size=batch, shuffle=True)
        rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=10_000)
        network, optimizer, data, rate = accelerator.prepare(network, optimizer, data, rate)
        averaged = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True)
        averaged.to(accelerator.device)
        network.train()
        began, done = 0.0, 0
        while done < steps:
            for clean in data:
                noise = torch.randn_like(clean)
                times = torch.randint(0, 1000, (len(clean),), device=clean.device)
                with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
                    said = network(scheduler.add_noise(clean, noise, times), times).sample
                loss = mse_loss(said.float(), noise)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                rate.step()
                optimizer.zero_grad()
                averaged.step(network.parameters())
                loss.item()
                done += 1
                if done == 1:
                    began = time.perf_counter()
                if done == steps:
                    break
        return (time.perf_counter() - began) / (steps - 1)

    return run


def ours(
    options: dict[str, Any], folder: Path, batch: int, steps: int, precision: str, device: str = "cpu"
) -> Callable[[], float]:
    """ddim.train; seconds a step."""
    from ddim.training import config_from_dict, train

    size, channels = options["sample_size"], options["in_channels"]
    where = "cpu" if device == "cpu" else "auto"

    def run() -> float:
        with tempfile.TemporaryDirectory() as out:
            config = config_from_dict(
                {
                    "data": {"path": str(folder), "size": size, "channels": channels},
                    "model": {k: v for k, v in options.items() if k not in _LEFT_OUT},
                    "train": {"steps": steps, "batch": batch, "precision": precision, "device": where},
                    "output": {"folder": f"{out}/run", "sample_every": 0, "tensorboard": False},
                }
            )
            at: list[float] = []
            train(config, on_event=lambda event: at.append(time.perf_counter()) if event.kind == "step" else None)
            return (at[-1] - at[0]) / (len(at) - 1)

    return run


def main() -> None:
    parser = arguments(__doc__, batch=64, rounds=3)
    parser.add_argument("--steps", type=int, help="of a round; without --device, the first does not count")
    parser.add_argument("--precision", choices=("float32", "bfloat16"))
    parser.add_argument("--device", help="compare bare steps on this device, such as cuda")
    also = "with --device: ours in the usual memory layout, or compiled"
    parser.add_argument("--also", nargs="*", choices=("contiguous", "compile"), default=[], help=also)
    parser.set_defaults(network=None, batch=None, rounds=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device:
        return training_device.main(args, options_of)
    given = {"network": "fashion", "batch": 64, "rounds": 3, "steps": 12, "precision": "float32"}
    vars(args).update({name: value for name, value in given.items() if getattr(args, name) is None})
    with opened(args.network) as network, tempfile.TemporaryDirectory() as folder:
        options = options_of(network)
        images = random_pictures(Path(folder), 4 * args.batch, options)
        runs = {
            PLAIN: plain(options, images, args.batch, args.steps, args.precision),
            OURS: ours(options, Path(folder), args.batch, args.steps, args.precision),
        }
        if args.only:
            return only(runs[args.only])
        times = in_turns(runs, args.rounds)
        memory = peaks(network, list(runs), args)
    what = f"{network.name}, batch {args.batch}, {args.precision}, {args.steps - 1} steps a round, {args.rounds} rounds"
    print(headline(args, what))
    for name, seconds in times.items():
        each = 1e3 * statistics.median(seconds)
        print(
            f"{name:24s} {each:8.1f} ms a step, {ratios(times, name, PLAIN)} times as fast as the example{memory[name]}"
        )


if __name__ == "__main__":
    main()
