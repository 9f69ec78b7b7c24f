"""Turns any error into one sentence for the page."""

from .._utils.error_text import first_line, reason_of
from .._utils.errors import DDIMError, NetworkMemory, out_of_memory

LABELS = {
    "prompt": "What it is to show",
    "source_prompt": "What it shows",
    "source_labels": "Its class",
    "labels": "The class to edit to",
    "images": "Picture",
    "mask": "Mask",
    "method": "Method",
    "strength": "Strength",
    "guidance": "Guidance",
    "guidance_scale": "Guidance",
    "steps": "Steps",
    "seed": "Seed",
    "attention": "Attention",
    "negative": "Negative prompt",
    "model": "Model",
    "frames": "Frames",
    "captioner": "Describe it",
}
"""The library's parameters -> what the page calls them. Others keep their names."""


def spelled(parameter: str) -> str:
    """Returns what the page calls a parameter of the library."""
    return LABELS.get(parameter, parameter)


def sentence_of(error: BaseException) -> str:
    """Returns an error as one sentence, without a traceback and with the labels of the page."""
    if isinstance(error, DDIMError):
        return " ".join(error.sentence(spelled).split())
    if isinstance(error, NetworkMemory):
        return f"There is not enough memory for {error.rows} images in one network call; use a smaller picture."
    if out_of_memory(error):
        return "There is not enough memory."
    if isinstance(error, OSError):
        return f"A file could not be read or written: {reason_of(error)}"
    said = f": {first_line(error)}" if str(error).strip() else ""
    return f"Unexpected {type(error).__name__}{said}; the terminal shows where."
