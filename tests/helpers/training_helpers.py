"""Runs small enough for a test: images of 8 or 16 pixels, networks of a few thousand weights."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddim.training import TrainConfig, config_from_dict, load_config, train


class Stop(Exception):
    """What a crash is in a test."""


def stop_after(step: int) -> Callable[[Any], None]:
    """An ``on_event`` that breaks the run off in the middle, as a crash would."""

    def listen(event: Any) -> None:
        if event.kind == "step" and event.step == step:
            raise Stop

    return listen


def make_images(folder: Path, count: int = 10, size: int = 8) -> Path:
    """``count`` grey PNG files of blocks of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (size, size), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


def make_labels(images: Path, classes: int = 3) -> Path:
    """A list of metadata beside the pictures of ``make_images``: the classes take turns."""
    files = sorted(file.name for file in images.glob("*.png"))
    lines = [json.dumps({"file_name": name, "label": row % classes}) for row, name in enumerate(files)]
    (images / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return images


def labelled(changes: dict[str, dict[str, Any]], **pixel: Any) -> dict[str, dict[str, Any]]:
    """``changes`` to a run that is told the classes of ``make_labels``, half of them dropped."""
    data = {**changes.get("data", {}), "label": "label"}
    return {**changes, "data": data, "pixel": {"condition": "labels", "label_dropout": 0.5, **pixel}}


def png(seed: int, size: int = 8) -> bytes:
    """A colour PNG file of noise, as bytes."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_parquet(file: Path, **columns: list[Any]) -> Path:
    """A parquet file whose column ``image`` holds PNG files (bytes), with further columns beside it."""
    import datasets

    columns["image"] = [{"bytes": cell, "path": None} for cell in columns["image"]]
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False)).to_parquet(file)
    return file


def make_words(file: Path, size: int = 16) -> Path:
    """Twelve pictures of four animals in three styles, with a label for each animal."""
    names = [(style, animal) for style in ("noto", "blob", "twemoji") for animal in ("dog", "cat", "owl", "red fox")]
    return make_parquet(
        file,
        image=[png(k, size) for k in range(12)],
        vendor=[style for style, _ in names],
        text=[animal for _, animal in names],
        label=[k % 4 for k in range(12)],
    )


def make_autoencoder(folder: Path, seed: int = 0, scaling_factor: float = 0.5) -> Path:
    """A random AutoencoderKL, 16x16 RGB to 8x8x4."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=16,
        scaling_factor=scaling_factor,
    ).save_pretrained(folder)
    return folder


def make_base(coder: Path) -> Path:
    """A folder with an autoencoder, a random text encoder and a tokenizer, beside the autoencoder's own folder."""
    import tiny_text

    folder = coder.with_name(coder.name + "-base")
    if not folder.exists():
        pipeline = tiny_text.pipeline()
        pipeline.save_pretrained(folder)
        shutil.rmtree(folder / "vae")
        shutil.copytree(coder, folder / "vae")
    return folder


NETWORKS: dict[str, dict[str, Any]] = {
    "autoencoder": {
        "block_out_channels": [8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
    },
    "text": {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "dropout": 0.1,
    },
    "flow": {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "patch_size": 2,
        "qk_norm": "rms_norm",
        "pos_embed_max_size": 8,
    },
    "classifier": {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
}


def task_config(task: str, words: Path, folder: Path, coder: Path | None = None, **changes: Any) -> TrainConfig:
    """A tiny run of ``autoencoder``, ``text``, ``flow`` or ``classifier`` on what ``make_words`` makes.

    Args:
        task: the task.
        words: the pictures.
        folder: of the run.
        coder: of the autoencoder; a flow model gets a text encoder with it.
        changes: laid over the tables, section by section.
    """
    config = tables(words, folder)
    config["data"] = {"path": str(words), "size": 16}
    config["model"] = dict(NETWORKS[task])
    if task == "text":
        config["data"] |= {"prompt": "{vendor} {text}", "flip": True}
        config["text"] = {"autoencoder": str(coder), "vocabulary": 600, "length": 12, "empty": 0.25}
        config["text"]["encoder"] = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        config["text"]["encoder"]["num_hidden_layers"] = 1
    if task == "flow":
        config["data"] |= {"prompt": "{vendor} {text}", "flip": True}
        config["flow"] = {"base": str(coder and make_base(coder)), "length": 12, "empty": 0.25, "zeros": [0, 3]}
        config["loss"] = {"prediction": "flow", "times": "logit_normal"}
        del config["schedule"]
    if task == "classifier":
        config["data"]["label"] = "label"
    for section, values in changes.items():
        config.setdefault(section, {}).update(values)
    return config_from_dict({"task": task, **config})


def tables(images: Path, folder: Path, **changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections of a tiny config; ``changes`` are laid over them, section by section."""
    config: dict[str, dict[str, Any]] = {
        "data": {"path": str(images), "size": 8, "channels": 1, "flip": True},
        "model": {
            "block_out_channels": [8, 8],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"],
            "add_attention": False,
            "dropout": 0.1,
        },
        "schedule": {"steps": 20},
        "train": {"steps": 6, "batch": 4, "lr": 1e-3, "warmup": 2, "lr_schedule": "cosine", "device": "cpu"},
        "output": {
            "folder": str(folder),
            "checkpoint_every": 2,
            "sample_every": 0,
            "samples": 4,
            "sample_steps": 3,
            "tensorboard": False,
        },
    }
    for section, values in changes.items():
        config.setdefault(section, {}).update(values)
    return config


def tiny(images: Path, folder: Path, **changes: dict[str, Any]) -> TrainConfig:
    return config_from_dict(tables(images, folder, **changes))


def write_toml(config: dict[str, dict[str, Any]], path: Path) -> Path:
    """The tables as a TOML file (strings, numbers, booleans and lists of these: Python's spelling, nearly)."""
    lines = []
    for section, values in config.items():
        lines.append(f"[{section}]")
        for key, value in values.items():
            text = str(value).lower() if isinstance(value, bool) else repr(value)
            lines.append(f"{key} = {text}")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def state(folder: Path, step: int) -> dict[str, bytes]:
    """What a checkpoint says: weights, EMA and optimiser, as bytes."""
    checkpoint = folder / "checkpoints" / f"step-{step:08d}"
    files = ("weights.safetensors", "ema.safetensors", "optimizer.safetensors")
    return {name: (checkpoint / name).read_bytes() for name in files}


def main() -> None:
    """``python training_helpers.py CONFIG... [--resume]``: one run after the other, on one thread."""
    torch.set_num_threads(1)
    for config in sys.argv[1:]:
        if config != "--resume":
            train(load_config(config), resume="--resume" in sys.argv)


if __name__ == "__main__":
    main()
