"""The values that some options can have, in a module without torch, so that ``--help`` can list them quickly."""

from typing import Literal, get_args

AttentionKind = Literal["refine", "replace", "masactrl", "plug-and-play", "kv-edit", "none"]
ATTENTIONS: tuple[str, ...] = get_args(AttentionKind)
AUTO_BLEND = "auto"
KeyValueArea = Literal["image", "background", "words"]
KEY_VALUE_AREAS: tuple[str, ...] = get_args(KeyValueArea)
AttentionBranches = Literal["cond", "both"]
ATTENTION_BRANCHES: tuple[str, ...] = get_args(AttentionBranches)
Through = Literal["ddim", "state"]
THROUGH: tuple[str, ...] = get_args(Through)
SPACINGS = ("leading", "trailing", "linspace", "quadratic", "karras", "exponential", "beta", "lcm")
DTYPES = ("float32", "float64", "bfloat16", "float16")
