"""The smallest LLaVA: random weights, and words in no order that depend on the picture; it takes instructions."""

from pathlib import Path

import torch
from tiny_text import WORDS

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ '<image> ' if part['type'] == 'image' else part['text'] + ' ' }}"
    "{% endfor %}{% endfor %}"
)


def folder(path: Path) -> Path:
    """Writes the folder of a LlavaForConditionalGeneration with its processor, as transformers does."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    vocab = {word: k for k, word in enumerate((*SPECIAL, "Describe", "this", "picture", *WORDS))}
    words = Tokenizer(models.WordLevel(vocab, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, extra_special_tokens=["<image>"], **names)
    size = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**size, image_size=32, patch_size=8, projection_dim=12),
        text_config=LlamaConfig(**size, **ends, vocab_size=len(vocab), max_position_embeddings=128),
        image_token_index=vocab["<image>"],
        image_seq_length=16,
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = LlavaForConditionalGeneration(config).eval()
        for name, weight in network.named_parameters():  # random weights of this size hardly look at the picture
            weight.data = torch.randn_like(weight) * (0.7 if weight.ndim > 1 else 0.1) + ("norm" in name)
    network.save_pretrained(path)
    sides = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=sides)
    how = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    LlavaProcessor(images, tokenizer, chat_template=TEMPLATE, **how).save_pretrained(path)
    return path
