"""Invert a real drawing under guidance, come forward to it, and to what other words make of it."""

import tempfile
from pathlib import Path

import torch

import ddim


def main(folder: Path, steps: int = 50) -> float:
    model = ddim.load("emoji")
    picture = next(p for p in ddim.bundled_test_images("emoji") if p.stem == "emojitwo_dog-face")  # never trained on
    code = ddim.invert(model, picture, prompt="emojitwo dog face", method="negative-prompt", guidance=3, steps=steps)
    edited = ddim.edit(model, code, ["emojitwo cat face", "twemoji dog face"])
    strip = torch.cat([edited.reconstruction, edited.edits[0]])
    ddim.save_image(ddim.sheet(strip, columns=3, scale=3), folder / "dog.png")
    back = ddim.reconstruct(model, code)
    return float((edited.reconstruction - back).abs().max())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(f"beside its edits the drawing comes back with a difference of {main(Path(folder)):.1g}")
