"""How often the classifier of noisy pictures is right, by noise level, and what its guidance does to `fashion`.

    python benchmarks/classifier.py runs/fashion-classifier/model ../shared/data/fashion-mnist --out runs/classifier

Writes accuracy.csv (10,000 test pictures, one noise each), guided.csv (how many of 200 drawn pictures another look, at
t = 1, calls by their label) and guided.png (a row for each of the ten classes, weights 0, 1, 3, 10 from left to right).
"""

import argparse
import csv
from pathlib import Path

import torch

import ddim
from ddim.evaluation.tables import machine
from ddim.training.config import DataConfig
from ddim.training.data import load_images

LEVELS = (1, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
WEIGHTS = (0.0, 1.0, 3.0, 10.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier")
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, default=Path("runs/classifier"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    classifier, model = ddim.load_classifier(options.classifier), ddim.load("fashion")

    images = load_images(DataConfig(options.data, 32, split="test", channels=1, fit="pad", label="label"))
    (batch,) = images.stream([list(range(len(images)))])
    x0, labels = batch.pixels.float() / 127.5 - 1, torch.tensor(batch.labels)
    with (options.out / "accuracy.csv").open("w", newline="") as file, torch.no_grad():
        table = csv.writer(file)
        table.writerow(["t", "log_snr", "accuracy", "nats"])
        for t in LEVELS:
            node = model.schedule.path.node(t)
            x = node.alpha * x0 + node.sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(t))
            said = torch.cat([classifier.log_probs(part, node) for part in x.split(500)])
            right = (said.argmax(1) == labels).double().mean()
            nats = -said.gather(1, labels[:, None]).double().mean()
            row = [t, f"{model.schedule.path.log_snr(torch.tensor(float(t))):.2f}", f"{right:.4f}", f"{nats:.4f}"]
            table.writerow(row)
            print(*row)

    wanted, pages = torch.arange(10).repeat_interleave(20), []
    with (options.out / "guided.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["weight", "called_by_label"])
        for weight in WEIGHTS:
            drawn = ddim.sample(
                model, 200, labels=wanted.tolist(), classifier=classifier, classifier_weight=weight, spacing="trailing"
            )
            with torch.no_grad():
                named = classifier.log_probs(drawn * 2 - 1, model.schedule.path.node(1)).argmax(1)
            row = [f"{weight:g}", f"{(named == wanted).double().mean():.3f}"]
            table.writerow(row)
            print(*row)
            pages.append(drawn.view(10, 20, 1, 32, 32)[:, :5])
    print(machine())
    rows = torch.cat(pages, dim=1).flatten(0, 1)
    ddim.save_image(ddim.sheet(rows, columns=20), options.out / "guided.png")


if __name__ == "__main__":
    main()
