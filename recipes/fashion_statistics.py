"""Writes the feature statistics (mean and covariance) of Fashion-MNIST's test images for `fashion-features`.

python recipes/fashion_statistics.py ../shared/data/fashion-mnist src/ddim/models/bundled/fashion-features
"""

import sys
from pathlib import Path

from ddim.evaluation.reference import BUNDLED, data_statistics, save_statistics
from ddim.models.features import load_features
from ddim.training.config import DataConfig
from ddim.training.data import load_images


def main(source: Path, folder: Path) -> None:
    """Computes the statistics of the 10,000 test images, padded with black to 32x32, and writes them to ``folder``.

    The features are those of the classifier in ``folder``.
    """
    config = DataConfig(str(source), 32, split="test", channels=1, fit="pad")
    statistics, about = data_statistics(load_features(folder, device="cpu"), load_images(config), config)
    about = {**about, "features": folder.resolve().name, "licence": "MIT, Copyright 2017 Zalando SE, arXiv 1708.07747"}
    save_statistics(statistics, folder / BUNDLED, about)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
