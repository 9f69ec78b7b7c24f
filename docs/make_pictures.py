"""Draws the pictures of the README and the site with the bundled models: ``python docs/make_pictures.py``.

``python docs/make_pictures.py FOLDER`` converts the sheets that ``ddim evaluate edits`` wrote to FOLDER for
docs/edits.md instead.
"""

import csv
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import ddim
from ddim.data.images import read_images

FOLDER = Path(__file__).parent / "images"
SIDE, GAP, HEAD = 96, 8, 26
"""Pixels of a drawing, between two drawings, and of the line of headings above them."""


def main() -> None:
    """Writes round_trip.png, samples.png, interpolation.png, edits.png and edits_flow.png."""
    edits("emoji", "edits.png")
    edits("emoji-flow", "edits_flow.png", guidance=5, attention="none")
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


def edits(name: str, picture: str, guidance: float = 3, attention: str = "refine") -> None:
    """Three held-out drawings, a row each: the drawing, its reconstruction, its edit, and the real target drawing.

    Args:
        name: the model.
        picture: the file to write.
        guidance, attention: of the edits.
    """
    root, model = ddim.bundled_test_images(name)[0].parents[1], ddim.load(name)
    with (root / "pictures.csv").open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    answers = [row for row in listed if row["file"].startswith("answers/")]
    sources = [row for row in listed if row["file"].startswith("test_images/")][: len(answers)]
    drawn, wanted = (read_images([root / row["file"] for row in rows], model.picture) for rows in (sources, answers))
    made = ddim.edit(
        model,
        drawn,
        [[row["prompt"]] for row in answers],
        source_prompt=[row["prompt"] for row in sources],
        method="direct",
        guidance=guidance,
        attention=attention,
        steps=50,
    )
    columns = {"drawing": drawn, "reconstruction": made.reconstruction, "edit": made.edits[:, 0], "real target": wanted}
    owners = "; ".join(sorted({row["source"] for row in sources}))
    ddim.save_image(_with_headings(columns), FOLDER / picture, about=owners)


def _with_headings(columns: dict[str, Tensor]) -> Image.Image:
    """Columns of images [N, C, H, W], each under its heading."""
    images = torch.stack(list(columns.values()), 1).flatten(0, 1)
    images = torch.nn.functional.interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    body = ddim.sheet(images, columns=len(columns), gap=GAP)
    page = Image.new("RGB", (body.width, body.height + HEAD), "white")
    page.paste(body, (0, HEAD))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for k, heading in enumerate(columns):
        draw.text((GAP + k * (SIDE + GAP) + SIDE / 2, HEAD / 2 + 3), heading, fill="#333", font=font, anchor="mm")
    return page


def sheets(folder: Path) -> None:
    """Saves every sheet of edits in ``folder`` as a WebP of the same name, without the model's fingerprint."""
    for file in sorted(folder.glob("*_w*_*.png")):  # and not the plot
        name = "_".join(file.stem.split("_")[:-1])
        with Image.open(file) as image:
            image.save(FOLDER / "edits" / f"{name}.webp", quality=80, method=6)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sheets(Path(sys.argv[1]))
    else:
        main()
