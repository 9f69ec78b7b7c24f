"""The smallest BLIP: random weights, and words in no order that depend on the picture."""

from pathlib import Path

import torch
from tiny_text import WORDS

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")


def folder(path: Path, seed: int = 6) -> Path:
    """Writes the folder of a BlipForConditionalGeneration with its processor, as transformers does.

    With the seed 6 it describes each picture in other words; with 10 it says nothing.
    """
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    vocab = {word: k for k, word in enumerate((*SPECIAL, *WORDS))}
    size = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={
            **size,
            **{
                "tie_word_embeddings": False,
                "vocab_size": len(vocab),
                "max_position_embeddings": 64,
                "projection_dim": 12,
            },
            **{"bos_token_id": vocab["[DEC]"], "eos_token_id": vocab["[SEP]"], "sep_token_id": vocab["[SEP]"]},
        },
        vision_config={**size, "image_size": 32, "patch_size": 8, "initializer_range": 0.02, "projection_dim": 12},
        tie_word_embeddings=False,  # else it repeats its last word
        projection_dim=12,
        image_text_hidden_size=12,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = BlipForConditionalGeneration(config).eval()
        for name, weight in network.named_parameters():  # random weights of this size hardly look at the picture
            weight.data = torch.randn_like(weight) * (0.7 if weight.ndim > 1 else 0.1) + ("orm.weight" in name)
    network.save_pretrained(path)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(images, BertTokenizer(vocab=vocab, bos_token="[DEC]")).save_pretrained(path)
    return path
