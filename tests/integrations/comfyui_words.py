"""Compares the words that the nodes read from ComfyUI's own tokenizers with those that the library reads.

cd ComfyUI && PYTHONPATH=... python comfyui_words.py
"""

import sys
from typing import Any

sys.argv[1:] = ["--cpu"]
sys.path.insert(0, ".")

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd1_clip  # noqa: E402
import comfy.sdxl_clip  # noqa: E402
from ddim_comfyui.work import control_words  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402

from ddim.editing.tokens import tokens_of  # noqa: E402

TEXTS = ("", "a photo of an apple", "a photorealistic sunglassed, smiling face's dog!", "zebra-crossing 1990s")


class Clip:
    """The part of a CLIP that makes tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def tokenize(self, text: str) -> Any:
        return self.tokenizer.tokenize_with_weights(text)


own = CLIPTokenizer.from_pretrained("comfy/sd1_tokenizer")
for made in (comfy.sd1_clip.SD1Tokenizer(), comfy.sdxl_clip.SDXLTokenizer()):
    for text in TEXTS:
        read, wanted = control_words(Clip(made), text, "source_text"), tokens_of(own, text, 77)
        assert read == wanted, (type(made).__name__, read, wanted)
print(f"{len(TEXTS)} prompts have equal words")
