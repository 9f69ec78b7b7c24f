"""Starts the further processes of a run on the CPUs of one machine. They end with it; ``worker`` is their program."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from .._utils.errors import DDIMError
from .config import TrainConfig

READY = b"ready\n"
"""What a process writes to its standard output before it joins the others."""
_SECONDS = 10.0
"""How long the main process waits until another one has ended, if the run is over or the exchange failed."""


@contextmanager
def other_processes(config: TrainConfig, resume: bool) -> Iterator[None]:
    """Inside the block, this process is the main one of ``config.train.processes`` that train together.

    Nothing happens for one process, or if a launcher has started this process. The others get no Ctrl-C, and end with
    the block at the latest.

    Args:
        config: the run's config.
        resume: whether the run continues from its newest checkpoint.

    Raises:
        DDIMError: another process failed; the sentence contains its own error.
    """
    count = config.train.processes
    if count == 1 or "WORLD_SIZE" in os.environ or find_spec("accelerate") is None:  # ``train`` refuses the last
        yield
        return
    with ExitStack() as stack:
        shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        asked = json.dumps({"config": config.as_dict(), "resume": resume}).encode() + b"\n"
        others = [stack.enter_context(_Other(rank, count, shared, asked)) for rank in range(1, count)]
        for other in others:
            other.wait_until_ready()
        stack.enter_context(_joined({**shared, "RANK": "0", "LOCAL_RANK": "0"}))
        try:
            yield
        except DDIMError:
            raise
        except Exception as error:  # the exchange of gradients fails when a process is gone
            for other in others:
                other.raise_failure(error, _SECONDS if isinstance(error, RuntimeError) else 0)
            raise
        for other in others:
            other.finish()


class _Other:
    """Another process of the run. Leaving its ``with`` block ends it.

    Args:
        rank: its number, from 1.
        count: the number of processes.
        shared: the environment variables that all processes share.
        asked: what it reads from its standard input.
    """

    def __init__(self, rank: int, count: int, shared: Mapping[str, str], asked: bytes) -> None:
        self.name = f"Process {rank + 1} of {count}"
        root = str(Path(__file__).parents[2])  # the same package, wherever the working directory is
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        mine = {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ddim.training.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, **shared, **mine},
            start_new_session=True,  # Ctrl-C reaches the main process only
        )
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.write(asked)
            self.process.stdin.flush()

    def __enter__(self) -> "_Other":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # only the main process writes files, so nothing is left half done
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]

    def wait_until_ready(self) -> None:
        """Waits until the process has imported everything. Raises DDIMError if it has failed."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line == READY:
                return
        self.raise_failure(None, _SECONDS)

    def finish(self) -> None:
        """Waits until the process has ended. Raises DDIMError if it has failed."""
        self.raise_failure(None, _SECONDS)

    def raise_failure(self, error: Exception | None, seconds: float) -> None:
        """Raises DDIMError if the process has failed.

        Args:
            error: the error of the main process that followed from it.
            seconds: how long the process has time to end.
        """
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        if code:
            self.errors.seek(0)
            lines = self.errors.read().decode(errors="replace").strip().splitlines()
            said = lines[-1] if code > 0 and lines else f"it ended with code {code}"
            raise DDIMError(f"{self.name} failed: {said}") from error


@contextmanager
def _joined(variables: Mapping[str, str]) -> Iterator[None]:
    """Inside the block, this process has these environment variables, and Accelerate reads them anew.

    Accelerate keeps what it found in the environment for as long as the process lives, unless it is told to forget it.
    """
    from accelerate.state import AcceleratorState

    before = {name: os.environ.get(name) for name in variables}
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.update(variables)
    try:
        yield
    finally:
        leave()
        AcceleratorState._reset_state(reset_partial_state=True)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def leave() -> None:
    """Leaves the group of processes."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _free_port() -> int:
    """Returns a port of this machine that nobody uses."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
