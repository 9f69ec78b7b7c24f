"""Kill a training run with SIGKILL at random moments, resume it, and compare it bit for bit with an unbroken one.

    python benchmarks/kill_resume.py [--kills 5] [--steps 300] [--seed N]

One thread, no GPU, one or two minutes; prints a line for each kill and the verdict, and exits with 1 if a bit differs.
Every second kill is aimed at a checkpoint that is just being written.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ddim.training.checkpoint import REPLACED, TEMPORARY

RUN = "import sys; from ddim.training import load_config, train; train(load_config(sys.argv[1]), resume=True)"
CONFIG = """
[data]
path = {images}
size = 16
channels = 1
flip = true
[model]
block_out_channels = [16, 32]
layers_per_block = 1
norm_num_groups = 8
down_block_types = ["DownBlock2D", "AttnDownBlock2D"]
up_block_types = ["AttnUpBlock2D", "UpBlock2D"]
attention_head_dim = 8
dropout = 0.1
[loss]
times = "stratified"
[train]
steps = {steps}
batch = 8
accumulate = 2
lr = 1e-3
lr_schedule = "cosine"
warmup = 20
precision = "bfloat16"
threads = 1
device = "cpu"
[output]
folder = {folder}
checkpoint_every = 2
sample_every = 0
log_every = 1
tensorboard = false
"""


def start(config: Path, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as out:
        return subprocess.Popen([sys.executable, "-c", RUN, str(config)], stderr=out, stdout=out)


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step-*"))


def last_step(folder: Path) -> int:
    found = checkpoints(folder)
    return int(found[-1].name.removeprefix("step-")) if found else 0


def unfinished(folder: Path) -> int:
    return sum(1 for p in folder.rglob(".*") if p.name.startswith((TEMPORARY, REPLACED)))


def bits(folder: Path) -> dict[str, bytes]:
    files = {f.name: f.read_bytes() for f in checkpoints(folder)[-1].iterdir() if f.name != "state.json"}
    model = folder / "model/unet/diffusion_pytorch_model.safetensors"
    return {**files, "exported model": model.read_bytes()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=None, help="of the random moments")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else time.time_ns() % 2**32
    chance = random.Random(seed)
    print(f"{options.steps} steps, {options.kills} kills, moments from seed {seed}")

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "images").mkdir()
        for index in range(50):
            pixels = np.random.default_rng(index).integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"images/{index:03d}.png")
        for name in ("unbroken", "killed"):
            values = {"images": json.dumps(str(root / "images")), "folder": json.dumps(str(root / name))}
            (root / f"{name}.toml").write_text(CONFIG.format(steps=options.steps, **values))

        began = time.perf_counter()
        if start(root / "unbroken.toml", root / "log").wait() != 0:
            print((root / "log").read_text())
            return 1
        print(f"unbroken: {time.perf_counter() - began:.1f} s")

        folder, done = root / "killed", 0
        while done < options.kills:
            before = last_step(folder)
            # Some way into this part of the run, then anywhere within the next steps.
            target = before + chance.randint(1, max(1, (options.steps - before) // (options.kills - done + 1)))
            process = start(root / "killed.toml", root / "log")
            while process.poll() is None and last_step(folder) < target:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.2))
            # Every second kill aims at the worst moment: a checkpoint half written.
            while done % 2 and process.poll() is None and not any((folder / "checkpoints").glob(f"{TEMPORARY}*")):
                pass
            process.send_signal(signal.SIGKILL)
            if process.wait() != -signal.SIGKILL:
                print(f"the run ended (exit {process.returncode}) before kill {done + 1}: raise --steps")
                print((root / "log").read_text()[-2000:])
                return 1
            done += 1
            broken = unfinished(folder)
            while_writing = "in the middle of a checkpoint" if broken else "between checkpoints"
            print(f"kill {done}: started from step {before}, killed {while_writing}, step {last_step(folder)} is whole")
        if start(root / "killed.toml", root / "log").wait() != 0:
            print((root / "log").read_text()[-2000:])
            return 1

        one, other = bits(root / "unbroken"), bits(folder)
        for name in one:
            print(f"  {name}: {len(one[name]):,} bytes, {'the same' if one[name] == other.get(name) else 'DIFFERENT'}")
        same = one == other and not unfinished(folder)
        print("verdict: bit for bit the same" if same else "verdict: DIFFERENT")
        return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
