"""SIGTERM and SIGHUP, which a time limit or a closed terminal sends, interrupt a command as Ctrl-C does."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_received: list[int] = []


@contextmanager
def as_ctrl_c() -> Iterator[None]:
    """Inside, the first SIGTERM or SIGHUP raises KeyboardInterrupt, so that the command can save its work; a second one
    ends the process at once. A signal that is already ignored or handled stays so, as under ``nohup``."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def restore() -> None:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)

    def stop(number: int, _: object) -> None:
        restore()
        _received.append(number)
        raise KeyboardInterrupt

    _received.clear()
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


def exit_code() -> int:
    """The exit code of an interrupted command, as shells count it: 143 by SIGTERM, 129 by SIGHUP, 130 by Ctrl-C."""
    return 128 + (_received[0] if _received else signal.SIGINT)


def forget() -> None:
    """Forgets the signal of the command that ended, so that the next one in this process has its own exit code."""
    _received.clear()
