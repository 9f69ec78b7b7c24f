"""What the benchmarks share: the machine in words, and Fashion-MNIST's test images."""

import gzip
import platform
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def machine() -> str:
    """Processor, threads and versions, for the line under a table."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    return f"{cpu}{gpu}, {threads} thread(s), torch {torch.__version__}, Python {platform.python_version()}"


def fashion_test_images(folder: Path, count: int) -> Tensor:
    """The first ``count`` test images, padded with black to 32x32: [count, 1, 32, 32] in [0, 1]."""
    raw = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)[:count]
    return torch.from_numpy(np.pad(pixels, ((0, 0), (2, 2), (2, 2)))).float()[:, None] / 255
