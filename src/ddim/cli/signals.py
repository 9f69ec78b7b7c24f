"""What asks a command to end from outside, such as a time limit: SIGTERM and SIGHUP do as Ctrl-C does."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_received: list[int] = []


@contextmanager
def as_ctrl_c() -> Iterator[None]:
    """Inside, the first SIGTERM or SIGHUP raises KeyboardInterrupt, so that what there is is kept; a second ends the
    process at once. A signal that is ignored or handled already stays so (``nohup``)."""
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
    """Of a command that was interrupted, as shells count it: 143 by SIGTERM, 129 by SIGHUP, 130 by Ctrl-C."""
    return 128 + (_received[0] if _received else signal.SIGINT)
