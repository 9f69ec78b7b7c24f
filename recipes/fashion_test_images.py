"""Writes the 16 Fashion-MNIST test images that the package contains: the first of each class, and six more.

python recipes/fashion_test_images.py ../shared/data/fashion-mnist src/ddim/models/bundled/fashion/test_images
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import torch

from ddim import save_image

CLASSES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]


def main(source: Path, target: Path) -> None:
    """Pads 28x28 test images with black to 32x32, and writes them as PNG files named by test index and class."""
    images = gzip.decompress((source / "t10k-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((source / "t10k-labels-idx1-ubyte.gz").read_bytes())
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
    classes = np.frombuffer(labels, np.uint8, offset=8)
    chosen = [int(np.argmax(classes == c)) for c in range(10)]
    chosen += [k for k in range(len(classes)) if k not in chosen][:6]
    for k in sorted(chosen):
        padded = torch.from_numpy(np.pad(pixels[k], 2)).float()[None] / 255
        about = f"Fashion-MNIST test image {k} ({CLASSES[classes[k]]}), (c) 2017 Zalando SE, MIT"
        save_image(padded, target / f"{k:02d}_{CLASSES[classes[k]]}.png", about=about)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
