"""``run_batch``: plans a run or goes on with one, and computes what is missing, here or on a cluster."""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .._utils.errors import DDIMError, InputError, is_number, is_whole
from .._utils.lock import only_process
from ..data.sources import HUB
from ..models import bundled_models
from .items import Items, open_items, stamp_of_files
from .output import Output
from .plan import Plan
from .worker import UNDER_WAY, Done, Work, Worker

SECONDS = 3600.0
"""How long no batch may be finished, by default."""


@dataclass(frozen=True)
class Spread:
    """Where the batches are computed.

    Attributes:
        ray: None for this process; ``"local"`` starts Ray on this machine; otherwise the address of a Ray cluster, or
            ``"auto"`` for the one that this machine belongs to.
        workers: the number of workers on Ray, each with the model; by default one for each GPU, or without a GPU one
            for each ``threads`` CPUs.
        timeout: the number of seconds without a finished batch after which the run ends with an error.
    """

    ray: str | None = None
    workers: int | None = None
    timeout: float = SECONDS

    def check(self) -> None:
        """Raises InputError for a value that cannot be used."""
        if self.workers is not None and (not is_whole(self.workers) or self.workers < 1):
            raise InputError(f"{self.workers} is not a number of workers; use 1 or more.", parameter="workers")
        if self.workers is not None and self.ray is None:
            raise InputError("it goes with ray, because this process is one worker; leave it out.", parameter="workers")
        if not is_number(self.timeout) or self.timeout <= 0:
            raise InputError(f"{self.timeout} is not a number of seconds above 0.", parameter="timeout")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        plan: the plan.
        batches, items: the number of batches and items that are stored.
        begun: the number of items that were stored when this run began.
        done: the batch that was finished last; None at the beginning.
    """

    plan: Plan
    batches: int
    items: int
    begun: int
    done: Done | None = None


@dataclass(frozen=True)
class Summary:
    """What a run has done.

    Attributes:
        plan: the plan.
        computed: the number of batches that this run has computed.
        missing: the number of batches that are not stored: 0, but for a dry run.
        errors: the key of each item without a result, with the reason.
        warnings: what the pipelines warned of.
    """

    plan: Plan
    computed: int
    missing: int
    errors: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = field(default_factory=list[str])


def run_batch(
    work: Work,
    out: Path,
    spread: Spread | None = None,
    *,
    dry_run: bool = False,
    on_event: Callable[[Progress], None] | None = None,
) -> Summary:
    """Computes all batches that are not stored yet.

    A run that was interrupted or killed goes on when it is called again: every batch is stored whole or not at all,
    and is computed with the same network calls whenever that is. So the output is the same, row for row.

    Args:
        work: what is done with every batch.
        out: the folder of the output, which all workers must see.
        spread: where the batches are computed; by default in this process.
        dry_run: only say how much work there is; nothing is written.
        on_event: called at the beginning and after every batch.

    Returns:
        what was done, with the items that have no result.

    Raises:
        InputError: an option cannot be used, the data cannot be read, or the output was begun with other options or
            data.
        DDIMError: the output cannot be written, or no batch was finished for ``Spread.timeout`` seconds.
    """
    spread = Spread() if spread is None else spread
    spread.check()
    _check(work)
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise InputError("Results are stored as parquet, which needs pyarrow: pip install 'ddim[batch]'.") from None
    out, work = out.resolve(), _from_anywhere(work)
    if work.columns.data and Path(work.columns.data).resolve() in (out, *out.parents):
        raise InputError(
            f"{out} lies in the data, which would change with every batch; choose another.", parameter="out"
        )
    items = open_items(work.command, work.columns, work.count)
    plan = Plan(len(items), items.size or work.batch, _settings(work))
    output = Output(out)
    listed = [(item.key, item.stamp) for item in map(items.item, range(len(items)))]
    if begun := output.begun():
        plan.check_same(output.plan(), out)
        output.check_items(iter(listed))
    if dry_run:
        missing = output.missing(plan) if begun else range(plan.batches)
        return Summary(plan, 0, len(missing), output.errors() if begun else ())
    with only_process(out, "writing pictures to", "--out"):
        if not begun:
            output.write_plan(plan, listed)
        return _computed(work, plan, output, items, spread, on_event)


def _computed(
    work: Work,
    plan: Plan,
    output: Output,
    items: Items,
    spread: Spread,
    on_event: Callable[[Progress], None] | None,
) -> Summary:
    """Computes what is missing of a plan."""
    missing = output.missing(plan)
    left = sum(len(plan.indices(number)) for number in missing)
    begun = plan.count - left
    progress = Progress(plan, plan.batches - len(missing), begun, begun)
    said: dict[str, None] = {}
    if on_event is not None:
        on_event(progress)
    if missing:
        with closing(_engine(work, plan, output, items, spread)(missing)) as batches:
            for done in batches:
                said |= dict.fromkeys(done.warnings)
                count = progress.items + done.good + done.bad
                progress = Progress(plan, progress.batches + 1, count, begun, done)
                if on_event is not None:
                    on_event(progress)
    if lost := output.missing(plan):
        raise DDIMError(
            f"{len(lost)} batches were computed and are not in {output.folder}: the workers do not write to the same "
            "folder; choose one that all machines share."
        )
    return Summary(plan, len(missing), 0, output.errors(), list(said))


def _engine(
    work: Work, plan: Plan, output: Output, items: Items, spread: Spread
) -> Callable[[Sequence[int]], Generator[Done]]:
    """What computes batches: this process, or Ray."""
    if spread.ray is None:
        worker = Worker(work, plan, output.folder, items)
        return lambda numbers: _here(worker, numbers)
    from .on_ray import on_ray

    address, timeout = spread.ray, spread.timeout
    return lambda numbers: on_ray(work, plan, output.folder, numbers, address, spread.workers, timeout)


def _here(worker: Worker, numbers: Sequence[int]) -> Generator[Done]:
    """Computes batches in this process, and yields each as it is stored."""
    waiting, under_way = iter(numbers), set["Future[Done]"]()
    pool = ThreadPoolExecutor(UNDER_WAY, "ddim-batch-files")
    try:
        for number in waiting:
            under_way.add(pool.submit(worker.run, number))
            if len(under_way) == UNDER_WAY:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in done)
        while under_way:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            yield from (one.result() for one in done)
    finally:
        worker.close()
        pool.shutdown(wait=True, cancel_futures=True)


def _from_anywhere(work: Work) -> Work:
    """The work with absolute paths of its data and of its model, which workers in other folders open."""
    data, model = work.columns.data, work.model
    if data and not data.startswith(HUB) and Path(data).exists():
        data = os.fspath(Path(data).absolute())
    if model not in bundled_models() and Path(model).exists():
        model = os.fspath(Path(model).absolute())
    return replace(work, model=model, columns=replace(work.columns, data=data))


def _check(work: Work) -> None:
    """Raises InputError for a number that does not fit, or for data that are missing."""
    for name in ("batch", "threads"):
        value = getattr(work, name)
        if not is_whole(value) or value < 1:
            raise InputError(f"{value} is not a whole number of at least 1.", parameter=name)
    if work.count is not None and (not is_whole(work.count) or work.count < 1):
        raise InputError(f"{work.count} is not a number of items; use 1 or more.", parameter="count")
    if work.command == "reconstruct" and work.count is not None:
        raise InputError("the items are those of the inversion; leave it out.", parameter="count")
    if work.command == "sample" and not work.columns.data and work.count is None:
        raise InputError("it is missing; say how many pictures to draw, or give data with prompts.", parameter="count")
    if work.command != "sample" and not work.columns.data:
        raise InputError("it is missing; name a folder, a parquet or tar file, or hf:ID.", parameter="data")


def _settings(work: Work) -> Mapping[str, Any]:
    """What the plan lists of the work: all that decides the result, but the place of the data."""
    columns = {name: value for name, value in vars(work.columns).items() if name != "data"}
    given = {} if callable(work.arguments) else dict(work.arguments)
    return {
        "command": work.command,
        "model": work.model,
        "model_files": _model_stamp(work.model),
        **columns,
        "resize": work.resize,
        "threads": work.threads,
        "count": work.count,
        "device": _kind_of(work.loading.get("device")),
        **{key: value for key, value in work.loading.items() if key != "device" and value is not None},
        **given,
        **work.settings,
    }


def _kind_of(device: Any) -> str | None:
    """The kind of a device that was named: the kind decides the last bits, its number does not."""
    return None if device is None else str(device).partition(":")[0]


def _model_stamp(model: str) -> str:
    """The sizes and times of a model's files, if it is a folder or a file."""
    path = Path(model)
    if path.is_file():
        return stamp_of_files([path])
    return stamp_of_files(sorted(file for file in path.rglob("*") if file.is_file())) if path.is_dir() else ""
