"""Takes the pictures of docs/how-to/comfyui.md: each workflow in ComfyUI's page, after it ran on the emoji model.

COMFYUI_PATH=~/ComfyUI COMFYUI_PYTHON=~/ComfyUI/.venv/bin/python PYTHONPATH=src:tests/helpers \\
    python tests/integrations/comfyui_pictures.py docs/images
"""

import sys
import tempfile
from pathlib import Path

import comfy_page
import comfy_server

SIZES = {"round_trip": (2144, 624), "edit_with_mask": (2144, 702)}


def main(out: Path) -> None:
    """Writes ``comfyui_NAME.png`` for each workflow."""
    with tempfile.TemporaryDirectory() as folder:
        server = comfy_server.Server(Path(folder))
        try:
            server.wait()
            comfy_server.picture().save(server.folder / "input" / "picture.png")
            for name, size in SIZES.items():
                with comfy_page.opened(server, size) as page:
                    comfy_page.load(page, comfy_page.emoji_graph(name))
                    comfy_page.run(page)
                    comfy_page.picture(page, out / f"comfyui_{name}.png")
        finally:
            server.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
