"""Invert real images to latent codes, save the codes, load them, and reconstruct the images."""

import tempfile
from pathlib import Path

import ddim


def main(folder: Path) -> float:
    model = ddim.load("fashion")
    photos = ddim.bundled_test_images("fashion")[:4]
    code = ddim.invert(model, photos, steps=50, method="bdia")
    file = code.save(folder / "photos.code.safetensors")
    from_file = ddim.reconstruct(model, ddim.LatentCode.load(file))
    ddim.save_image(ddim.sheet(from_file, columns=4, scale=4), folder / "photos.png")
    from_memory = ddim.reconstruct(model, code)
    return float((from_file - from_memory).abs().max())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(f"images from the saved code and from the code in memory differ by {main(Path(folder))}")
