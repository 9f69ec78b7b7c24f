"""Writes the real pictures that the package contains beside the model `emoji`.

python recipes/emoji_pictures.py recipes/emoji.toml src/ddim/models/bundled/emoji

``test_images/`` contains held-out pictures, which the model was not trained on. ``answers/`` contains the pictures that
the three edits of the demo should produce. ``pictures.csv`` lists the prompt of each picture, and also prompts from the
training set, without pictures. The owners and licences are in NOTICE.
"""

import csv
import re
import sys
from pathlib import Path

from ddim import save_image, to_pil
from ddim.evaluation.eval_images import EvalImage, recipe_images
from ddim.training import load_config

SOURCES = ["noto slightly smiling face", "emojitwo dog face", "blobmoji red apple"]
ANSWERS = ["noto smiling face with sunglasses", "emojitwo cat face", "twemoji red apple"]
OTHERS = 13
KNOWN = [
    "noto dog face",
    "twemoji hamburger",
    "fluent tiger",
    "emojitwo rose",
    "blobmoji crying face",
    "noto frog",
    "twemoji crocodile",
    "fluent cat face",
    "emojitwo pizza",
    "noto smiling face with heart-eyes",
    "twemoji red heart",
    "fluent strawberry",
    "noto penguin",
    "emojitwo owl",
    "blobmoji angry face",
    "fluent pineapple",
]
CHANGED = "composited on white and resized to 64x64"
APACHE, CC_BY = "Apache-2.0", "CC-BY 4.0 (https://creativecommons.org/licenses/by/4.0/)"
OWNERS = {
    "noto": f"Noto Emoji, Copyright 2013 Google LLC, {APACHE}; {CHANGED}",
    "blobmoji": f"Blobmoji by C1710, derived from Noto Emoji, {APACHE}; {CHANGED}",
    "twemoji": f"Twemoji, Copyright 2020 Twitter, Inc and other contributors, {CC_BY}; {CHANGED}",
    "emojitwo": "Emojione (https://www.emojione.com) / Emojitwo (https://emojitwo.github.io/emojitwo/), "
    f"{CC_BY}; {CHANGED}",
    "fluent-3d": f"Fluent Emoji, Copyright (c) Microsoft Corporation, MIT; {CHANGED}",
}


def main(recipe: Path, target: Path) -> None:
    """Writes the demo's three source pictures, ``OTHERS`` more of the held-out pictures, and the answers."""
    pictures = recipe_images(load_config(recipe))
    held = [p for p in pictures if p.held]
    by_prompt = {p.prompt: p for p in pictures}
    rest = [p for p in held if p.prompt not in {*SOURCES, *ANSWERS}]
    chosen = [by_prompt[name] for name in SOURCES] + rest[:: len(rest) // OTHERS][:OTHERS]
    assert all(p.held for p in chosen)
    assert not any(by_prompt[name].held for name in KNOWN)
    rows = [_write(p, target / "test_images") for p in chosen]
    rows += [_write(by_prompt[name], target / "answers") for name in ANSWERS]
    rows += [("", name, False, "") for name in KNOWN]
    with (target / "pictures.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "prompt", "held_out", "source"), *rows])


def _write(picture: EvalImage, folder: Path) -> tuple[str, str, bool, str]:
    """Writes one picture, and returns its line of ``pictures.csv``."""
    name = re.sub(r"[^a-z0-9]+", "-", picture.word.lower()).strip("-")
    file = folder / f"{picture.style}_{name}.png"
    save_image(to_pil(picture.pixels), file, about=f"{picture.prompt}; {OWNERS[picture.style]}")
    return f"{folder.name}/{file.name}", picture.prompt, picture.held, OWNERS[picture.style]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
