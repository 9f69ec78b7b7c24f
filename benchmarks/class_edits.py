"""Edits by class, and guidance by class, on real garments: how often a classifier sees the class that was asked for.

    python benchmarks/class_edits.py --out runs/class-edits

Test pictures of Fashion-MNIST that the model never saw, each brought to another class, three classes on: by ``direct``,
whose source comes back whatever the guidance. The judge is the carried classifier `fashion-features`. Beside the edits
stand what would make the figure trivially true: how often the edit still is of the source's own class, how far it is
from the source, and the reconstruction. The sheet is unselected: the first picture of each class, and what it becomes.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch

import ddim
from ddim.data.idx import read_images, read_labels
from ddim.evaluation.metrics import psnr
from ddim.evaluation.tables import machine, markdown

NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
AWAY = 3


def test_pictures(folder: Path, count: int) -> tuple[torch.Tensor, list[int]]:
    """The first ``count`` of the test set as the model takes them, [N, 1, 32, 32] in [0, 1], and their classes."""
    file = folder / "t10k-images-idx3-ubyte.gz"
    every = read_images(file)
    images, labels = torch.from_numpy(every[:count].copy()), read_labels(file, len(every))[:count]
    return torch.nn.functional.pad(images.float() / 255, (2, 2, 2, 2)).unsqueeze(1), [int(k) for k in labels]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion-classes")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/fashion-mnist"))
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--weights", nargs="+", type=float, default=[1.0, 2.0, 3.0, 5.0])
    parser.add_argument("--out", type=Path, default=Path("runs/class-edits"))
    args = parser.parse_args()
    model, judge = ddim.load(args.model, device="cpu"), ddim.load_features("fashion-features", device="cpu")
    pictures, labels = test_pictures(args.data, args.images)
    targets = [[(k + AWAY) % 10] for k in labels]
    wanted, own = torch.tensor(targets)[:, 0], torch.tensor(labels)
    print(f"the judge is right on {float((judge.predict(pictures) == own).double().mean()):.0%} of the sources")
    rows, sheet = [], None
    first = [labels.index(k) for k in range(10)]
    for weight in args.weights:
        drawn = ddim.sample(model, args.images, steps=args.steps, labels=wanted.tolist(), guidance=weight)
        made = ddim.edit(
            model, pictures, labels=targets, source_labels=labels, steps=args.steps, guidance=weight, method="direct"
        )
        seen, back = judge.predict(made.edits[:, 0]), psnr(made.reconstruction, pictures)
        rows.append(
            {
                "w": f"{weight:g}",
                "edits seen as the target": f"{float((seen == wanted).double().mean()):.0%}",
                "as the source": f"{float((seen == own).double().mean()):.0%}",
                "PSNR edit to source": f"{float(psnr(made.edits[:, 0], pictures).mean()):.1f}",
                "reconstruction, worst": f"{float(back.min()):.0f}",
                "samples seen as their class": f"{float((judge.predict(drawn) == wanted).double().mean()):.0%}",
            }
        )
        print(rows[-1], flush=True)
        if weight == 3.0:
            sheet = torch.stack([pictures, made.reconstruction, made.edits[:, 0]], 1)[first].flatten(0, 1)
    args.out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "benchmarks/class_edits.py", *sys.argv[1:]])
    about = f"{args.images} test pictures, S = {args.steps}, direct; {machine()}"
    (args.out / "class-edits.md").write_text(
        f"{markdown(rows, dict.fromkeys(rows[0], ''))}\n\ncommand: {command}\n{about}\n"
    )
    if sheet is not None:
        ddim.save_image(ddim.sheet(sheet, columns=15, scale=2, gap=3), args.out / "class_edits.png")


if __name__ == "__main__":
    main()
