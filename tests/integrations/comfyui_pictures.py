"""Takes the pictures of docs/how-to/comfyui.md: each workflow in ComfyUI's page, after it ran on the emoji model.

The same pictures, smaller, are those of ComfyUI's template browser, beside the workflows of the package.

COMFYUI_PATH=~/ComfyUI COMFYUI_PYTHON=~/ComfyUI/.venv/bin/python PYTHONPATH=src:tests/helpers \\
    python tests/integrations/comfyui_pictures.py docs/images [NAME ...]
"""

import sys
import tempfile
from pathlib import Path

import comfy_page
import comfy_server
from PIL import Image

SIZE = (2600, 1100)


def main(out: Path, *names: str) -> None:
    """Writes ``comfyui_NAME.png`` for each of these workflows, and ``NAME.jpg`` beside it."""
    with tempfile.TemporaryDirectory() as folder:
        server = comfy_server.Server(Path(folder))
        try:
            server.wait()
            for name in names or comfy_server.NAMES:
                server.add_pictures(opaque="mask" not in name)
                with comfy_page.opened(server, SIZE) as page:
                    comfy_page.load(page, comfy_page.emoji_graph(name))
                    comfy_page.run(page)
                    file = out / f"comfyui_{name}.png"
                    comfy_page.picture(page, file)
                    smaller(file, comfy_server.NODES / "example_workflows" / f"{name}.jpg")
        finally:
            server.stop()


def smaller(file: Path, thumbnail: Path) -> None:
    """Reduces a picture to 256 colours, and writes a square of its middle as a thumbnail."""
    with Image.open(file) as opened:
        whole = opened.convert("RGB")
    whole.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    side = whole.size[1]
    left = (whole.size[0] - side) // 2
    whole.crop((left, 0, left + side, side)).resize((384, 384), Image.Resampling.LANCZOS).save(thumbnail, quality=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
