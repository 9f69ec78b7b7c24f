"""What the fuzz damages: the tests' tiny models, codes of them, pictures, and recipes."""

import gzip
import struct
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny
import tiny_features
import tiny_pie
import tiny_text
import torch
import training_helpers

import ddim
from ddim.data.images import save_image

torch.set_num_threads(1)

PROMPT = "a cat next to a mirror"


def models(root: Path) -> None:
    """``pixel``, ``classes`` (of three classes), ``text``, ``classifier`` and ``features``: each a folder."""
    from diffusers.utils.logging import disable_progress_bar
    from transformers import ResNetConfig, ResNetForImageClassification
    from transformers.utils import logging

    disable_progress_bar()
    logging.disable_progress_bar()
    other: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    tiny.pipeline_folder(root / "pixel", clip_sample=False, **other)  # not what a config's silence means
    tiny.pipeline_folder(root / "classes", tiny.unet(classes=3), clip_sample=False)
    tiny_text.pipeline().save_pretrained(root / "text")
    tiny_features.features_folder(root / "features")
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_channels": 2, "num_labels": 3, "embedding_size": 4, "layer_type": "basic"}
    config = ResNetConfig(**shape, hidden_sizes=[4, 6], depths=[1, 1])
    config.image_size = 8
    ResNetForImageClassification(config).save_pretrained(root / "classifier")
    scheduler = (root / "pixel/scheduler/scheduler_config.json").read_bytes()
    (root / "classifier/scheduler_config.json").write_bytes(scheduler)


def codes(root: Path) -> None:
    """Codes of pictures, beside the models that made them: of one value, of two, of words, and with extras."""
    pixel, words = ddim.load(root / "pixel", device="cpu"), ddim.load(root / "text", device="cpu")
    pixel.info, words.info = replace(pixel.info, name="pixel"), replace(words.info, name="text")
    grey, colour = torch.rand(1, 1, 8, 8), tiny_text.pictures(1)
    told: dict[str, Any] = {"prompt": PROMPT, "guidance": 3.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ddim.invert(pixel, grey, steps=3).save(root / "pixel.code.safetensors")
        ddim.invert(pixel, 1 - grey, steps=3).save(root / "second.code.safetensors")
        ddim.invert(pixel, grey, steps=3, method="bdia").save(root / "other.code.safetensors")
        ddim.invert(words, colour, steps=3, method="negative-prompt", **told).save(root / "text.code.safetensors")
        extra = {"uncond_text": "null-text", "noise": "edit-friendly", "pivot": "direct"}
        for name, method in extra.items():
            ddim.invert(words, colour, steps=3, method=method, **told).save(root / f"{name}.code.safetensors")


def pictures(root: Path) -> None:
    for k, name in enumerate("abcd"):
        save_image(torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(k)), root / f"{name}.png")
    save_image(tiny_text.pictures(1)[0], root / "colour.png")
    (root / "broken.png").write_bytes((root / "colour.png").read_bytes()[:300])
    (root / "text.txt").write_text("no picture")
    tiny_features.pictures_folder(root / "pictures")


def lines(root: Path) -> None:
    """All that command lines name."""
    models(root)
    codes(root)
    pictures(root)
    tiny_pie.made_up(root / "bench", 2)
    table(root / "words.parquet", 32)
    (root / "held.csv").write_text("vendor,text\nnoto,dog\nblob,owl\n")
    data = {"path": "words.parquet", "size": 32, "prompt": "a {vendor} {text}", "without": "held.csv"}
    edits = {"task": "text", "data": data, "train": {"steps": 1}, "output": {"folder": "none"}}
    (root / "edits.toml").write_text(toml(edits))
    tables = training_helpers.tables(Path("pictures/test"), Path("run"), train={"steps": 1})
    (root / "train.toml").write_text(toml(tables))


def table(file: Path, size: int = 16) -> None:
    """Twelve pictures with the columns that the recipes name."""
    names = [(style, animal) for style in ("noto", "blob", "fluent-3d") for animal in ("dog", "cat", "owl", "red fox")]
    training_helpers.make_parquet(
        file,
        image=[training_helpers.png(k, size) for k in range(12)],
        vendor=[style for style, _ in names],
        text=[animal for _, animal in names],
        group=["Animals & Nature"] * 12,
        split=["train"] * 12,
    )


def idx(folder: Path, count: int = 12, side: int = 14) -> None:
    """Pictures and labels as MNIST's files."""
    folder.mkdir()
    pixels = torch.randint(0, 256, (count * side * side,), dtype=torch.uint8).numpy().tobytes()
    for part in ("train", "t10k"):
        head = struct.pack(">4I", 0x803, count, side, side)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels))
        labels = struct.pack(">2I", 0x801, count) + bytes(k % 3 for k in range(count))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def toml(value: Any, top: bool = True) -> str:
    """Plain values as TOML; sections become tables in braces."""
    import json

    if isinstance(value, dict):
        pairs = [f"{json.dumps(str(k))} = {toml(v, False)}" for k, v in value.items()]
        return "\n".join(pairs) if top else "{" + ", ".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(v, False) for v in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(str(value) if isinstance(value, Path) else value)
