"""The program of a run's further processes, which ``processes`` starts.

It reads the config from its standard input, and trains as one of the processes that ``torch.distributed`` joins.
"""

import json
import os
import sys
import threading
from typing import Any

from .._utils.error_text import first_line
from .config_file import config_from_dict
from .loop import train
from .processes import READY, leave


def main() -> None:
    """Trains as one of the further processes. An error is one line on stderr, which the main process reports."""
    asked: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_main, daemon=True).start()
    try:
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()
        train(config_from_dict(asked["config"]), resume=asked["resume"], on_event=lambda event: None)
        leave()
    except Exception as error:
        print(first_line(error) or type(error).__name__, file=sys.stderr)
        sys.exit(1)


def _end_with_main() -> None:
    """Ends this process as soon as the main one has ended, which closes the standard input."""
    while os.read(0, 4096):  # a buffered reader would hold its lock when the interpreter ends
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
