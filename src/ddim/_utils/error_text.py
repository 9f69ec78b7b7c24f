"""Texts for error messages: the reason behind a caught exception on one line, and names that can be printed."""

import re

_ENDS = " .:;,"


def first_line(error: BaseException, longest: int = 200) -> str:
    """Returns the first line of an error that holds text, without a final stop, for use inside a sentence.

    An OSError gives the operating system's reason alone. If the line ends in a colon, the next line is added. An error
    without text gives the name of its class.

    Args:
        error: the exception that was caught.
        longest: the text is cut after this many characters.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.rstrip(_ENDS)
    lines = [line.strip() for line in _message(error).splitlines() if line.strip(_ENDS)]
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return text[:longest].rstrip(_ENDS) or type(error).__name__


def one_line(error: BaseException, longest: int = 300) -> str:
    """Returns the whole text of an error on one line, cut after ``longest`` characters.

    An error without text gives the name of its class.
    """
    return " ".join(_message(error).split())[:longest] or type(error).__name__


def _message(error: BaseException) -> str:
    """The text of an error: ``<class 'a.B'>`` becomes ``B``, and unprintable characters become escapes."""
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", str(error))
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def printable(name: object) -> str:
    """Returns a name that any terminal or file accepts: bytes of a file name that are not UTF-8 become ``\\xe9``."""
    text = str(name)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a lone UTF-16 surrogate, which comes from a text and never from a file name
        return text.encode("utf-8", "backslashreplace").decode()


def reason_of(error: BaseException, longest: int = 200) -> str:
    """Returns ``first_line(error)`` as the end of a sentence, with exactly one closing mark."""
    return with_full_stop(first_line(error, longest))


def with_full_stop(text: str) -> str:
    """Returns a text with one stop at its end; a final question or exclamation mark is kept instead."""
    bare = text.rstrip(_ENDS)
    return bare if bare.endswith(("!", "?")) else f"{bare}."
