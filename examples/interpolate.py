"""Interpolate between real images: a row between two, and a grid between four."""

import tempfile
from pathlib import Path

import ddim


def main(folder: Path, steps: int = 50) -> list[Path]:
    model = ddim.load("fashion")
    codes = ddim.invert(model, ddim.bundled_test_images("fashion")[:4], steps=steps)
    row = ddim.interpolate(model, codes[0], codes[1], frames=11)
    square = ddim.interpolate_grid(model, codes, rows=5, columns=5)
    return [
        ddim.save_image(ddim.sheet(row, columns=11, scale=2), folder / "row.png"),
        ddim.save_image(ddim.sheet(square, columns=5, scale=2), folder / "square.png"),
    ]


if __name__ == "__main__":
    print(*main(Path(tempfile.mkdtemp())), sep="\n")
