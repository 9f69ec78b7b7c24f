"""Invert real images to their codes, keep the codes on disk, and come forward again."""

import tempfile
from pathlib import Path

import ddim


def main(folder: Path) -> float:
    model = ddim.load("fashion")
    photos = ddim.bundled_test_images("fashion")[:4]
    code = ddim.invert(model, photos, steps=50, method="bdia")
    file = code.save(folder / "photos.code.safetensors")
    back = ddim.reconstruct(model, ddim.LatentCode.load(file))
    ddim.save_image(ddim.sheet(back, columns=4, scale=4), folder / "photos.png")
    originals = ddim.reconstruct(model, code)
    return float((back - originals).abs().max())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(f"a saved code comes back with a difference of {main(Path(folder))}")
