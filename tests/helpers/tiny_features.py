"""The smallest real feature classifier, and pictures to hold images against."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import ResNetConfig, ResNetForImageClassification

DIM = 6


def features_folder(folder: Path, channels: int = 1, size: int = 8, seed: int = 0) -> Path:
    """A random classifier of three classes with ``DIM`` features."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"num_channels": channels, "num_labels": 3, "embedding_size": 4}
    config = ResNetConfig(**shape, layer_type="basic", hidden_sizes=[4, DIM], depths=[1, 1])
    config.image_size = size
    ResNetForImageClassification(config).save_pretrained(folder)
    return folder


def pictures_folder(folder: Path, count: int = 12, size: int = 8) -> Path:
    """Grey pictures of noise."""
    (folder / "test").mkdir(parents=True)
    for k in range(count):
        noise = torch.rand(size * size, generator=torch.Generator().manual_seed(k))
        data = (noise * 255).to(torch.uint8).numpy().tobytes()
        Image.frombytes("L", (size, size), data).save(folder / "test" / f"{k:02d}.png")
    return folder
