"""The batches of a run on Ray Data: an actor for each GPU or group of CPUs, each with the model."""

import logging
import os
import queue
import socket
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from .._utils.error_text import reason_of
from .._utils.errors import DDIMError, InputError
from .._utils.silence import without_stderr
from .plan import Plan
from .worker import UNDER_WAY, Done, Work, Worker

LEFT_FREE = 0.2
"""The part of all CPUs that no worker reserves. Ray Data has tasks of its own, and would wait for ever without."""
ANSWER, CONNECT = 10.0, 60.0
"""How many seconds the address of a cluster has to answer, and the cluster to take this process in."""
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
STORE = 100 * 2**20
"""Bytes of Ray's object store on this machine. Only the numbers of batches go through it."""
BLOCKS = 4096
"""The largest number of tasks that the batches are divided into."""


class _Actor:
    """A worker as Ray Data calls it: with a table of batch numbers. Errors are returned as rows."""

    def __init__(self, work: Work, plan: Plan, folder: str) -> None:
        self._worker = Worker(work, plan, Path(folder))

    def __call__(self, table: dict[str, Any]) -> dict[str, list[str]]:
        import json

        out: list[str] = []
        for number in table["item"]:
            try:
                said: dict[str, Any] = asdict(self._worker.run(int(number)))
            except DDIMError as error:
                kind = "input" if isinstance(error, InputError) else "other"
                said = {"kind": kind, "message": error.message, "parameter": error.parameter, "hint": error.hint}
            except Exception as error:
                said = {"kind": "other", "message": f"Batch {int(number)}: {type(error).__name__}: {reason_of(error)}"}
            out.append(json.dumps(said))
        return {"said": out}


def on_ray(
    work: Work, plan: Plan, folder: Path, numbers: Sequence[int], address: str, workers: int | None, timeout: float
) -> Generator[Done]:
    """Computes batches on Ray, and yields each as it is stored.

    Args:
        work, plan: what is done.
        folder: the output, which all machines of the cluster see.
        numbers: the batches.
        address, workers, timeout: see ``run.Spread``.

    Raises:
        InputError: Ray is not installed or not there, or it has fewer GPUs than workers; or from a worker.
        DDIMError: no batch was finished for ``timeout`` seconds, or a worker failed.
    """
    ray, ours = _started(address)
    try:
        share = _share(ray.cluster_resources(), work, workers, len(numbers))
        yield from _answers(_dataset(ray, work, plan, folder, numbers, share), timeout, ray)
    finally:
        if ours:
            ray.shutdown()


def _started(address: str) -> tuple[Any, bool]:
    """Starts Ray or joins a cluster, quietly. Returns it, and whether it was not joined already by this process.

    Raises:
        InputError: it is not installed, or there is no cluster at the address.
        DDIMError: it could not be started here.
    """
    for name, value in (
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("RAY_DATA_DISABLE_PROGRESS_BARS", "1"),
        ("RAY_ENABLE_AUTO_CONNECT", "0"),  # a thread that outlives a run that gave up would start another Ray
        ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),
    ):
        os.environ.setdefault(name, value)
    try:
        ray: Any = import_module("ray")
        import_module("ray.data")
    except ImportError:
        raise InputError("A cluster needs Ray Data: pip install 'ddim[batch]'.", parameter="ray") from None
    ours = not ray.is_initialized()
    if ours:
        _start(ray) if address == "local" else _join(ray, address)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context: Any = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return ray, ours


def _start(ray: Any) -> None:
    """Starts Ray on this machine. Raises DDIMError if it does not start."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with without_stderr():  # Ray says there that its log level was set
            ray.init("local", object_store_memory=STORE, include_dashboard=False, **QUIET)
    except Exception as error:  # ray raises several kinds
        raise DDIMError(f"Ray could not be started here: {reason_of(error)}") from None


def _join(ray: Any, address: str) -> None:
    """Joins a cluster. Raises InputError if there is none at the address."""
    _check_answers(address)
    said: queue.Queue[Exception | None] = queue.Queue()

    def connect() -> None:
        try:
            ray.init(address, **QUIET)
            said.put(None)
        except Exception as error:  # ray raises several kinds
            said.put(error)

    # In a thread of its own, because Ray waits for ever for what listens and is no cluster.
    threading.Thread(target=connect, name="ddim-batch-ray-join", daemon=True).start()
    try:
        error = said.get(timeout=CONNECT)
    except queue.Empty:
        raise InputError(
            f"what listens at {address!r} does not answer as a Ray cluster within {CONNECT:g} seconds; use the address "
            "that ray start printed.",
            parameter="ray",
        ) from None
    if error is not None:
        raise InputError(f"there is no Ray at {address!r}: {reason_of(error)}", parameter="ray") from None


def _check_answers(address: str) -> None:
    """Raises InputError for what is no address, and if nothing listens at it.

    Ray itself would try for minutes, and then end the process.
    """
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"{address!r} is no address; use local, auto, or the HOST:PORT of a cluster.", parameter="ray")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, OverflowError, ValueError) as error:  # the latter two of a port above 65535 and of a host's name
        raise InputError(f"there is no Ray at {address!r}: {reason_of(error)}", parameter="ray") from None


def _share(resources: dict[str, float], work: Work, workers: int | None, batches: int) -> tuple[int, float, float]:
    """Returns the number of workers, and the CPUs and GPUs that each reserves.

    The CPUs are a fraction, so that all workers together leave some free, however many there are.

    Args:
        resources: of the cluster.
        work: what is done.
        workers: the number that was asked for.
        batches: the number of batches, which is the most workers that have something to do.

    Raises:
        InputError: there are fewer GPUs than workers.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    device = work.loading.get("device")
    on_gpu = gpus >= 1 and device != "cpu"
    if not on_gpu and str(device or "").startswith("cuda"):
        raise InputError(f"the Ray cluster has no GPU, and {device!r} needs one.", parameter="device")
    usual = int(gpus) if on_gpu else int(cpus) // work.threads
    count = max(1, usual) if workers is None else workers
    if on_gpu and count > gpus:
        raise InputError(
            f"{count} is more than the {int(gpus)} GPUs of the Ray cluster; use that many or fewer.",
            parameter="workers",
        )
    count = min(count, batches)
    each = min(float(work.threads), (1 - LEFT_FREE) * cpus / count)
    return count, max(0.001, int(1000 * each) / 1000), 1.0 if on_gpu else 0.0


def _dataset(
    ray: Any, work: Work, plan: Plan, folder: Path, numbers: Sequence[int], share: tuple[int, float, float]
) -> Any:
    """The batches as a data set that has not been computed yet; each of its rows is a batch."""
    count, cpus, gpus = share
    blocks = min(len(numbers), BLOCKS)
    data: Any = ray.data.from_items([int(number) for number in numbers], override_num_blocks=blocks)
    return data.map_batches(
        _Actor,
        fn_constructor_args=(work, plan, str(folder)),
        batch_size=1,
        # One batch is computed while the next one is read or the last one written.
        compute=ray.data.ActorPoolStrategy(
            size=count, max_concurrent_calls_per_actor=UNDER_WAY, enable_true_multi_threading=True
        ),
        num_cpus=cpus,
        **({"num_gpus": gpus} if gpus else {}),
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(work.threads)}},
    )


def _answers(data: Any, timeout: float, ray: Any) -> Generator[Done]:
    """Yields the batches as they are finished.

    Ray waits in a thread of its own, so that this one can give up.

    Raises:
        DDIMError: see ``on_ray``.
    """
    import json

    said: queue.Queue[Any] = queue.Queue()
    given_up = threading.Event()

    def wait_for_ray() -> None:
        try:
            for row in data.iter_rows():
                if given_up.is_set():
                    return  # which ends the workers of a Ray that is not ours to shut down
                said.put(row["said"])
            said.put(None)
        except BaseException as error:
            said.put(error)

    threading.Thread(target=wait_for_ray, name="ddim-batch-ray", daemon=True).start()
    try:
        while True:
            try:
                answer = said.get(timeout=timeout)
            except queue.Empty:
                raise DDIMError(_stuck(ray, timeout)) from None
            if answer is None:
                return
            if isinstance(answer, BaseException):
                raise DDIMError(f"Ray ended the run: {reason_of(answer)} The same command goes on.") from answer
            found: dict[str, Any] = json.loads(answer)
            if "kind" in found:
                kind = InputError if found.pop("kind") == "input" else DDIMError
                raise kind(found["message"], parameter=found.get("parameter"), hint=found.get("hint"))
            yield Done(**{**found, "warnings": tuple(found["warnings"])})
    finally:
        given_up.set()


def _stuck(ray: Any, timeout: float) -> str:
    """The sentence for a run in which nothing happens."""
    free = "unknown"
    with suppress(Exception):
        have, left = ray.cluster_resources(), ray.available_resources()
        free = ", ".join(
            f"{left.get(name, 0):g} of {have.get(name, 0):g} {name}s" for name in ("CPU", "GPU") if have.get(name)
        )
    return (
        f"No batch was finished in {timeout:g} seconds (free: {free}); wait until other work has left the cluster, or "
        "use a larger --timeout or a smaller --batch. The same command goes on."
    )
