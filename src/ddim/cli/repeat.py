"""The line that repeats a command, from the parameters that were typed."""

import shlex
from typing import Any

from .command import running, typed


def repeat(command: str | None = None, **changes: object) -> str:
    """The running command as a shell line, without the output flags and without what was left at its default.

    Args:
        command: another command, such as ``"ddim invert"``, to take the running one's options as far as it has them.
        changes: parameters of the command in place of those that were typed; None leaves a parameter out, and a list
            repeats it. Floats are written with 15 digits.

    Returns:
        The words, quoted where a shell needs it.
    """
    return shlex.join(repeat_words(command, **changes))


def repeat_words(command: str | None = None, **changes: object) -> list[str]:
    """The words of ``repeat``, unquoted."""
    now = running()
    assert now is not None, "no command is running"
    words = command.split() if command else now.context.command_path.split()
    kind = now.context.command if command is None else _found(now.context, words)
    values = {name: now.context.params[name] for name in typed()} | changes
    arguments: list[str] = []
    options: list[str] = []
    for parameter in kind.params:
        place = arguments if parameter.param_type_name == "argument" else options
        place += _words(parameter, values.get(parameter.name))
    if any(word.startswith("-") for word in arguments):  # a file's name that looks like a flag
        return [*words, *options, "--", *arguments]
    return [*words, *arguments, *options]


def _found(context: Any, words: list[str]) -> Any:
    """The command that the words name, ``ddim`` first."""
    found = context.find_root().command
    for word in words[1:]:
        found = found.commands[word]
    return found


def _words(parameter: Any, value: object) -> list[str]:
    """A parameter with its value, as it is typed; none where the value is None or an empty list, or an unset flag."""
    if value is None or value is False:
        return list(parameter.secondary_opts[:1]) if value is False else []  # --no-check
    flag = [] if parameter.param_type_name == "argument" else [parameter.opts[0]]
    if value is True:
        return flag
    values = value if isinstance(value, (list, tuple)) else [value]
    return [word for one in values for word in (*flag, f"{one:.15g}" if isinstance(one, float) else str(one))]
