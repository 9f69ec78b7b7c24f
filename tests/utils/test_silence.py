"""What is written to stderr while a block keeps it silent."""

import os
import threading

import pytest

from ddim._utils.silence import without_stderr


def test_stderr_is_silent_inside_and_back_after_blocks_that_overlap(capfd: pytest.CaptureFixture[str]):
    inside, may_end = threading.Event(), threading.Event()

    def other() -> None:
        with without_stderr():
            inside.set()
            may_end.wait(60)

    thread = threading.Thread(target=other)
    with without_stderr():
        os.write(2, b"in both blocks")
        thread.start()
        inside.wait(60)
    os.write(2, b"in the other block")
    may_end.set()
    thread.join()
    os.write(2, b"after both")
    assert capfd.readouterr().err == "after both"
