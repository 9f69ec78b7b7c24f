"""A run small enough for a test: 8x8 grey images, a network of a few thousand weights."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddim.training import TrainConfig, config_from_dict, load_config, train


def make_images(folder: Path, count: int = 10, size: int = 8) -> Path:
    """``count`` grey PNG files of blocks of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (size, size), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


def tables(images: Path, folder: Path, **changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections of a tiny config; ``changes`` are laid over them, section by section."""
    config: dict[str, dict[str, Any]] = {
        "data": {"path": str(images), "size": 8, "channels": 1, "flip": True},
        "model": {
            "block_out_channels": [8, 8],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"],
            "add_attention": False,
            "dropout": 0.1,
        },
        "schedule": {"steps": 20},
        "train": {"steps": 6, "batch": 4, "lr": 1e-3, "warmup": 2, "lr_schedule": "cosine", "device": "cpu"},
        "output": {
            "folder": str(folder),
            "checkpoint_every": 2,
            "sample_every": 0,
            "samples": 4,
            "sample_steps": 3,
            "tensorboard": False,
        },
    }
    for section, values in changes.items():
        config.setdefault(section, {}).update(values)
    return config


def tiny(images: Path, folder: Path, **changes: dict[str, Any]) -> TrainConfig:
    return config_from_dict(tables(images, folder, **changes))


def write_toml(config: dict[str, dict[str, Any]], path: Path) -> Path:
    """The tables as a TOML file (strings, numbers, booleans and lists of these: Python's spelling, nearly)."""
    lines = []
    for section, values in config.items():
        lines.append(f"[{section}]")
        for key, value in values.items():
            text = str(value).lower() if isinstance(value, bool) else repr(value)
            lines.append(f"{key} = {text}")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def state(folder: Path, step: int) -> dict[str, bytes]:
    """What a checkpoint says: weights, EMA and optimiser, as bytes."""
    checkpoint = folder / "checkpoints" / f"step-{step:08d}"
    files = ("weights.safetensors", "ema.safetensors", "optimizer.safetensors")
    return {name: (checkpoint / name).read_bytes() for name in files}


def main() -> None:
    """``python training_helpers.py CONFIG [--resume]``: one run on one thread."""
    torch.set_num_threads(1)
    train(load_config(sys.argv[1]), resume="--resume" in sys.argv)


if __name__ == "__main__":
    main()
