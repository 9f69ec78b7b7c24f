"""The names that an option can have. They need no torch, so that the command's help reads them as the library does."""

from typing import Literal, get_args

AttentionKind = Literal["refine", "replace", "none"]
ATTENTIONS: tuple[str, ...] = get_args(AttentionKind)
Through = Literal["ddim", "state"]
THROUGH: tuple[str, ...] = get_args(Through)
SPACINGS = ("leading", "trailing", "linspace", "quadratic", "karras")
DTYPES = ("float32", "float64", "bfloat16", "float16")
