"""Invert a real drawing with guidance, and edit it with other prompts."""

import tempfile
from pathlib import Path

import torch

import ddim


def main(folder: Path, steps: int = 50) -> float:
    model = ddim.load("emoji")
    # a real drawing that is not in the training set
    picture = next(p for p in ddim.bundled_test_images("emoji") if p.stem == "emojitwo_dog-face")
    code = ddim.invert(model, picture, prompt="emojitwo dog face", method="negative-prompt", guidance=3, steps=steps)
    edited = ddim.edit(model, code, ["emojitwo cat face", "twemoji dog face"])
    strip = torch.cat([edited.reconstruction, edited.edits[0]])
    ddim.save_image(ddim.sheet(strip, columns=3, scale=3), folder / "dog.png")
    reconstruction = ddim.reconstruct(model, code)
    return float((edited.reconstruction - reconstruction).abs().max())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(f"reconstructed with and without edits, the drawing differs by {main(Path(folder)):.1g}")
