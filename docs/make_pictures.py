"""Draws the README's pictures with the carried models: ``python docs/make_pictures.py``.

With a folder of ``ddim evaluate edits``, writes its sheets small for docs/edits.md instead.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

import ddim
from ddim.data.images import read_images
from ddim.demo.editing import Gallery

FOLDER = Path(__file__).parent / "images"


def main() -> None:
    """Writes round_trip.png, samples.png, interpolation.png and edits.png."""
    edits()
    model = ddim.load("fashion")
    paths = ddim.bundled_test_images("fashion")
    chosen = [paths[k] for k in (0, 1, 3, 5, 8, 9, 13, 14, 15)]
    code = ddim.invert(model, chosen, steps=50, method="bdia")
    latent = (code.x / 6 + 0.5).clamp(0, 1)  # three standard deviations either side of grey
    rows = torch.cat([read_images(chosen, model.shape), latent, ddim.reconstruct(model, code)])
    ddim.save_image(ddim.sheet(rows, columns=len(chosen), scale=3, gap=4), FOLDER / "round_trip.png")
    samples = ddim.sample(model, 36, steps=50, seed=100, batch=36)
    ddim.save_image(ddim.sheet(samples, columns=12, scale=2, gap=3), FOLDER / "samples.png")
    ends = ddim.invert(model, [paths[0], paths[14], paths[1]], steps=50, method="bdia")
    frames = ddim.interpolate(model, ends, frames=7)
    ddim.save_image(ddim.sheet(frames, columns=len(frames), scale=2, gap=3), FOLDER / "interpolation.png")


def edits() -> None:
    """Three held-out drawings: the source, what comes back of it, its edit, and the drawing that was the answer."""
    model = ddim.load("emoji")
    gallery = Gallery("emoji", model.picture)
    count, targets = len(gallery.targets), [[target] for target in gallery.targets]
    sources, prompts = gallery.pixels[:count], gallery.prompts[:count]
    made = ddim.edit(model, sources, targets, source_prompt=prompts, method="direct", guidance=3, steps=50)
    strip = torch.stack([sources, made.reconstruction, made.edits[:, 0], gallery.answers], 1).flatten(0, 1)
    owners = "; ".join(sorted(set(gallery.owners)))
    ddim.save_image(ddim.sheet(strip, columns=12, scale=1, gap=4), FOLDER / "edits.png", about=owners)


def sheets(folder: Path) -> None:
    """Every sheet of edits in ``folder`` as a WebP of its name, without the model's fingerprint."""
    for file in sorted(folder.glob("*_w*_*.png")):  # and not the plot
        name = "_".join(file.stem.split("_")[:-1])
        with Image.open(file) as image:
            image.save(FOLDER / "edits" / f"{name}.webp", quality=80, method=6)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sheets(Path(sys.argv[1]))
    else:
        main()
