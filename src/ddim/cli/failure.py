"""What went wrong, as one sentence in the command's own words, and the exit code that goes with it."""

import contextlib
import os
import re
import sys

import typer

from ..errors import DDIMError, InputError

# the library's arguments, as the command spells them
_FLAGS = {
    "steps": "--steps",
    "eta": "--eta",
    "seed": "--seed",
    "count": "--count",
    "batch": "--batch",
    "frames": "--frames",
    "clip_x0": "--clip",
    "threshold": "--threshold",
    "guidance": "--guidance",
    "rescale": "--rescale",
    "interval": "--interval",
    "size": "--size",
    "back": "--back",
    "cross_steps": "--cross",
    "self_steps": "--self",
    "weight_steps": "--weight-steps",
    "blend_start": "--blend-start",
    "blend_threshold": "--blend-threshold",
    "blend": "--blend",
    "source_prompt": "--from",
    "negative": "--negative",
    "classifier_weight": "--classifier-weight",
}
_ARGUMENT = re.compile(rf"\b({'|'.join(_FLAGS)}) = (?=[-\d.inf('\"])")


_PHRASES = {
    "ddim.invert(..., resume=code)": "ddim invert --resume",
    "through='ddim'": "--through ddim",
    "needs source_prompt,": "needs --from,",
}


def in_flags(sentence: str) -> str:
    """``steps = 0 does not fit`` as ``--steps 0 does not fit``."""
    for theirs, ours in _PHRASES.items():
        sentence = sentence.replace(theirs, ours)
    return _ARGUMENT.sub(lambda m: f"{_FLAGS[m[1]]} ", sentence)


def code_and_sentence(error: BaseException) -> tuple[int, str]:
    """The exit code and what to say; an empty sentence says nothing."""
    text = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, InputError):
        return 2, in_flags(str(error))
    if isinstance(error, DDIMError):
        return 1, in_flags(str(error))
    if isinstance(error, KeyboardInterrupt):
        return 130, text or "Interrupted."
    if isinstance(error, BrokenPipeError):
        _let_go_of_stdout()
        return 141, ""
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "can't allocate memory" in text:
        return 1, "The memory does not suffice; use a smaller --batch."
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return 1, f"{where}{error.strerror or text or type(error).__name__}."
    return 1, f"Unexpected {type(error).__name__}: {text or 'no message'} (--debug shows where)"


def say(kind: str, sentence: str) -> None:
    """``Error: ...`` on stderr, in colour on a terminal."""
    colour = {"Error": typer.colors.RED, "Warning": typer.colors.YELLOW}.get(kind)
    typer.secho(f"{kind}: ", fg=colour, bold=True, nl=False, err=True)
    typer.echo(sentence, err=True)


def _let_go_of_stdout() -> None:
    """What reads us has gone (``| head``): the interpreter's last flush must not complain."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
