"""LoRAs and embeddings of textual inversion for the tiny pipelines, written here as diffusers writes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

NETWORK, TEXT = ("to_q", "to_k", "to_v"), ("q_proj", "v_proj")


def network_of(pipeline: Any) -> tuple[str, Any]:
    """The name of a pipeline's network, and the network."""
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    return name, getattr(pipeline, name)


def lora(pipeline: Any, file: Path, seed: int = 3, parts: Sequence[str] = ("network",), strength: float = 1.0) -> Path:
    """Writes a LoRA with random weights for a pipeline, which it changes.

    Args:
        pipeline: the pipeline.
        file: the file to write.
        seed: of the weights.
        parts: ``network``, ``text_encoder``, or both.
        strength: how much the weights are enlarged.
    """
    import peft

    layers: dict[str, Any] = {}
    name, network = network_of(pipeline)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in parts:
            where, to = (network, NETWORK) if part == "network" else (pipeline.text_encoder, TEXT)
            where.add_adapter(
                peft.LoraConfig(r=2, lora_alpha=2, target_modules=list(to), init_lora_weights=False),  # type: ignore[arg-type]
            )
            own = {key: strength * weight for key, weight in peft.get_peft_model_state_dict(where).items()}
            layers[f"{name if part == 'network' else part}_lora_layers"] = own
    pipeline.save_lora_weights(file.parent, weight_name=file.name, **layers)
    return file


def embedding(file: Path, *widths: int, vectors: int = 1, seed: int = 5, key: str = "<toy>") -> Path:
    """Writes embeddings of textual inversion: one under ``key``, or two as ``clip_l`` and ``clip_g``."""
    draw = torch.Generator().manual_seed(seed)
    names = [key] if len(widths) == 1 else ["clip_l", "clip_g"]
    shapes = [(width,) if vectors == 1 else (vectors, width) for width in widths]
    save_file({n: torch.randn(shape, generator=draw) for n, shape in zip(names, shapes, strict=True)}, file)
    return file
