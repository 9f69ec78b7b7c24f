"""An edit of a photograph under a mask: how many bytes differ outside of the mask, and inside it.

    python benchmarks/photograph.py --photo photo.jpg --from "noto white flower" --to "noto sunflower"

The photograph is brought to --size. The crop around the mask is inverted, edited and pasted back. The code is saved
with and without its source, loaded, and edited again without the photograph. numpy counts the bytes in the PNG files
that were written. Without --photo a coloured pattern is drawn, so that the command needs no file. Pictures go to --out.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

import numpy as np
from common import open_text_model
from PIL import Image, ImageDraw, ImageOps

import ddim
from ddim.evaluation.tables import machine, markdown


def photograph(path: Path | None, size: tuple[int, int]) -> Image.Image:
    """A photograph, cropped and scaled to (width, height); without a path a pattern of waves and noise."""
    if path is not None:
        with Image.open(path) as image:
            return ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), size, Image.Resampling.LANCZOS)
    x, y = np.meshgrid(np.linspace(0, 9, size[0]), np.linspace(0, 7, size[1]))
    waves = np.stack([np.sin(x + k) * np.cos(y - k) for k in range(3)], -1) * 90 + 128
    noise = np.random.default_rng(0).normal(0, 8, waves.shape)
    return Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8))


def differing(made: Path, photo: Path, mask: Path) -> dict[str, tuple[int, int]]:
    """(differing bytes, bytes) of two PNG files outside and inside of a mask."""
    one, other, white = (np.asarray(Image.open(path)) for path in (made, photo, mask))
    assert one.shape == other.shape
    differ = one != other
    parts = {"outside the mask": white == 0, "inside the mask": white > 0}
    return {name: (int(differ[part].sum()), int(differ[part].size)) for name, part in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, help="a photograph; by default a pattern")
    parser.add_argument("--size", default="2000x1500", help="WIDTHxHEIGHT that the photograph is brought to")
    parser.add_argument("--disc", default="450,480,400", help="X,Y,RADIUS of the mask in pixels")
    parser.add_argument("--model", default="emoji", help="a text model, or tiny for random weights")
    parser.add_argument("--from", dest="source", default="noto white flower")
    parser.add_argument("--to", default="noto sunflower")
    parser.add_argument("--method", default="direct")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--feather", type=int, help="pixels; by default as ddim.edit chooses")
    parser.add_argument("--out", type=Path, default=Path("runs/photograph"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    photo, mask = args.out / "photo.png", args.out / "mask.png"
    width, height = (int(n) for n in args.size.split("x"))
    photograph(args.photo, (width, height)).save(photo)
    x, y, radius = (float(n) for n in args.disc.split(","))
    disc = Image.new("L", (width, height))
    ImageDraw.Draw(disc).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    disc.save(mask)

    model = open_text_model(args.model)
    rows: list[dict[str, object]] = []

    def timed(what: str, work):
        began = time.perf_counter()
        result = work()
        rows.append({"what": what, "value": f"{time.perf_counter() - began:.2f} s"})
        return result

    pasting = {"feather": args.feather}
    settings = {"steps": args.steps, "method": args.method, "guidance": args.guidance}
    edited = timed(
        "ddim.edit: read, invert, edit and paste",
        lambda: ddim.edit(
            model, photo, args.to, source_prompt=args.source, mask=mask, feather=args.feather, **settings
        ),
    )
    assert edited.composites is not None
    made = args.out / "edited.png"
    timed("write the PNG file", lambda: ddim.save_image(edited.composites[0][0], made))
    crop = edited.code.crops[0]
    kept = {"prompt": args.source, "crop": crop, **settings}
    bare = ddim.invert(model, photo, **kept).save(args.out / "bare.code.safetensors")
    code = ddim.invert(model, photo, keep_source=True, **kept)
    with_source = timed("save the code with its source", lambda: code.save(args.out / "source.code.safetensors"))
    loaded = timed("load it", lambda: ddim.LatentCode.load(with_source))
    again = ddim.edit(model, loaded, args.to, mask=mask, **pasting)
    assert again.composites is not None
    same = bool((again.composites[0][0] == edited.composites[0][0]).all())
    ddim.save_image(edited.code.sources[0].region, args.out / "crop.png")
    ddim.save_image(ddim.sheet(ddim_strip(edited), columns=3, scale=4), args.out / "strip.png")

    pair(photo, made, args.out / "pair.jpg")
    for part, (count, every) in differing(made, photo, mask).items():
        rows.append({"what": f"bytes {part} that differ", "value": f"{count:,} of {every:,}"})
    rows += [
        {"what": "photograph, crop", "value": f"{width}x{height}, {crop}"},
        {"what": "code without source, with source", "value": f"{kib(bare)}, {kib(with_source)}"},
        {"what": "raw bytes of the photograph", "value": f"{width * height * 3 / 1024:,.0f} KiB"},
        {"what": "the loaded code gives the same photograph", "value": "yes" if same else "no"},
    ]
    print(f"    {shlex.join(['python', *sys.argv])}\n\n{machine()}\n\n{markdown(rows, {'what': '', 'value': ''})}")


def ddim_strip(edited: ddim.Edited):
    """Source, reconstruction and edit as the model has them, [3, C, H, W]."""
    import torch

    assert edited.source is not None
    return torch.cat([edited.source, edited.reconstruction, edited.edits[0]])


def pair(photo: Path, made: Path, path: Path) -> None:
    """Writes both photographs side by side, 500 pixels wide each, to look at."""
    small = [ImageOps.contain(Image.open(file).convert("RGB"), (500, 500)) for file in (photo, made)]
    sheet = Image.new("RGB", (1010, small[0].height), "white")
    sheet.paste(small[0], (0, 0))
    sheet.paste(small[1], (510, 0))
    sheet.save(path, quality=85)


def kib(path: Path) -> str:
    """The size of a file in KiB."""
    return f"{path.stat().st_size / 1024:,.0f} KiB"


if __name__ == "__main__":
    main()
