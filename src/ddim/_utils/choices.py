"""The values that some options can have, in a module without torch, so that ``--help`` can list them quickly."""

from typing import Literal, get_args

AttentionKind = Literal["refine", "replace", "none"]
ATTENTIONS: tuple[str, ...] = get_args(AttentionKind)
Through = Literal["ddim", "state"]
THROUGH: tuple[str, ...] = get_args(Through)
SPACINGS = ("leading", "trailing", "linspace", "quadratic", "karras", "exponential", "beta", "lcm")
DTYPES = ("float32", "float64", "bfloat16", "float16")
