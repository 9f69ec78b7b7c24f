"""How often the classifier of clean pictures is right, and whether its Fréchet distance tells what it should.

    python benchmarks/features.py fashion-features ../shared/data/fashion-mnist --out runs/features

Writes accuracy.csv (the 10,000 test pictures, by class and over all) and distances.csv: from the test pictures to
10,000 training pictures, and to these disturbed more and more, each with its bootstrap interval.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import ddim
from ddim.evaluation.metrics.feature_extractor import as_saved
from ddim.evaluation.metrics.frechet import Statistics, bootstrap_interval
from ddim.evaluation.tables import machine
from ddim.training.config import DataConfig
from ddim.training.data import load_images

CLASSES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]
COUNT = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features")
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, default=Path("runs/features"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    judge = ddim.load_features(options.features, device="cpu")

    test, labels = pictures(options.data, "test")
    began = time.perf_counter()
    features = judge.features(test)
    print(f"{len(test) / (time.perf_counter() - began):.0f} pictures/s")
    right = judge.predict(test) == labels
    with (options.out / "accuracy.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["class", "pictures", "accuracy"])
        for name, chosen in [*((n, labels == k) for k, n in enumerate(CLASSES)), ("all", labels >= 0)]:
            row = [name, int(chosen.sum()), f"{right[chosen].double().mean():.4f}"]
            table.writerow(row)
            print(*row)

    reference = Statistics.of(features)
    print("trace of the covariance", f"{reference.covariance.trace():.4f}")
    others, _ = pictures(options.data, "train")
    with (options.out / "distances.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["pictures", "count", "value", "low", "high", "bias"])
        for name, images in disturbed(others):
            found = bootstrap_interval(judge.features(as_saved(images)), reference)
            row = [name, len(images), *(f"{v:.4f}" for v in (found.value, found.low, found.high, found.bias))]
            table.writerow(row)
            print(*row, flush=True)
    print(machine())


def pictures(data: str, split: str) -> tuple[Tensor, Tensor]:
    """Up to 10,000, drawn from all, in [0, 1]; and their labels."""
    images = load_images(DataConfig(data, 32, split=split, channels=1, fit="pad", label="label"))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:COUNT].tolist()
    (batch,) = images.stream([order])
    return batch.pixels.float() / 255, torch.tensor(batch.labels)


def disturbed(images: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield "training pictures", images
    yield "1,000 of them", images[:1000]
    for amount in (0.03, 0.1):
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
        yield f"noise of {amount:g}", images + amount * noise
    yield "mean over 3x3", torch.nn.functional.avg_pool2d(images, 3, 1, 1)
    yield (
        "a tenth of them one picture",
        torch.cat([images[:1].expand(len(images) // 10, -1, -1, -1), images[len(images) // 10 :]]),
    )
    yield "mirrored", images.flip(-1)


if __name__ == "__main__":
    main()
