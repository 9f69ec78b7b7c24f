"""Rows on disk: what is written, what a kill loses, what is refused, and several processes."""

import importlib
import os
import pkgutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import ddim
import ddim.evaluation
from ddim._utils.errors import DDIMError, InputError, NotWritten
from ddim.cli.app import app
from ddim.cli.output import Terminal
from ddim.evaluation import BENCHMARKS, runner
from ddim.evaluation import rows as rows_module
from ddim.evaluation.rows import Processes, RowColumns, Rows, batches, isolate_failures, only_run, open_rows

COLUMNS = RowColumns(
    {"setting": "string", "item": "int64", "w": "float64"}, {"value": "float64", "vector": "list<float32>"}
)


def item(k: int, setting: str = "a") -> dict[str, Any]:
    return {"setting": setting, "item": k, "w": 7.5}


def row(k: int, setting: str = "a", value: float | None = None) -> dict[str, Any]:
    return {**item(k, setting), "value": k / 3 if value is None else value, "vector": [0.5, float(k)]}


def test_rows_come_back_as_they_were_in_the_order_asked_for(tmp_path: Path):
    with open_rows(tmp_path, COLUMNS) as rows:
        rows.add([row(2), row(0)])
        rows.add([{**row(1), "value": None, "vector": None}])
    with open_rows(tmp_path, COLUMNS) as rows:
        assert rows.of([item(k) for k in range(4)]) == [row(0), {**row(1), "value": None, "vector": None}, row(2)]
        assert rows.missing([item(k) for k in (5, 0, 3, 5)]) == [item(5), item(3)]
        assert rows.missing([item(0, "b")]) == [item(0, "b")]


def test_an_item_is_there_once(tmp_path: Path):
    with open_rows(tmp_path, COLUMNS) as rows:
        rows.add([row(0), row(0, value=9.0)])
        rows.flush()
        rows.add([row(0, value=8.0)])
    with open_rows(tmp_path, COLUMNS) as rows:
        assert len(rows) == 1
        assert rows.of([item(0)]) == [row(0)]


def test_a_part_that_another_repeats_is_no_second_row(tmp_path: Path):
    """A kill between writing the one part and removing the many leaves both."""
    with open_rows(tmp_path, COLUMNS) as rows:
        rows.add([row(0), row(1)])
    (part,) = (tmp_path / "rows").glob("*.parquet")
    part.with_name("part-copy.parquet").write_bytes(part.read_bytes())
    with open_rows(tmp_path, COLUMNS) as rows:
        assert len(rows) == 2


def test_many_parts_become_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows_module, "FLUSH_SECONDS", 0.0)
    with open_rows(tmp_path, COLUMNS) as rows:
        for k in range(rows_module.MANY + 1):
            rows.add([row(k)])
    folder = tmp_path / "rows"
    assert len(list(folder.iterdir())) == rows_module.MANY + 1
    with open_rows(tmp_path, COLUMNS) as rows:
        assert len(list(folder.iterdir())) == 1
    with open_rows(tmp_path, COLUMNS) as rows:
        assert rows.of([item(k) for k in range(50)]) == [row(k) for k in range(rows_module.MANY + 1)]


def test_what_was_measured_is_written_when_a_run_fails(tmp_path: Path):
    def fails(rows: Rows) -> None:
        rows.add([row(0)])
        raise RuntimeError

    with pytest.raises(RuntimeError), open_rows(tmp_path, COLUMNS) as rows:
        fails(rows)
    with open_rows(tmp_path, COLUMNS) as rows:
        assert len(rows) == 1


def test_a_block_belongs_to_one_process_and_what_is_missing_of_it_is_run_at_once(tmp_path: Path):
    reported, asked = [], []

    def run(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        asked.append([i["item"] for i in items])
        return [row(i["item"]) for i in items]

    blocks = [[item(0), item(1)], [item(2)], [item(3), item(4), item(5)], []]
    with open_rows(tmp_path, COLUMNS) as rows:
        rows.add([row(4), row(2)])
        rows.measure(blocks, run, lambda done, total: reported.append((done, total)))
        assert len(rows) == 6
    assert asked == [[0, 1], [3, 5]]
    assert reported == [(2, 6), (4, 6), (6, 6)]
    asked.clear()
    for rank in range(2):
        with open_rows(tmp_path / "two", COLUMNS, Alone(rank, 2)) as rows:
            rows.measure(blocks, run)
    assert asked == [[0, 1], [3, 4, 5], [2]]


def test_batches_are_smaller_where_a_process_would_have_nothing_to_do():
    assert batches(range(6), 2) == [[0, 1], [2, 3], [4, 5]]
    assert batches(range(5), 50) == [[0, 1, 2, 3, 4]]
    assert batches(range(6), 50, 3) == [[0, 1], [2, 3], [4, 5]]
    assert batches(range(3), 0) == [[0], [1], [2]]
    assert batches([], 5) == []


def test_one_item_that_fails_costs_no_other_its_result():
    asked = []

    def run(items: Any) -> Any:
        asked.append(list(items))
        if 1 in items:
            raise DDIMError("The sample is no longer finite.\nAt step 3.")
        return [f"{k} done" for k in items]

    found = isolate_failures([0, 1, 2], run, lambda k, why: f"{k}: {why}")
    assert asked == [[0, 1, 2], [0], [1], [2]]
    assert found == ["0 done", "1: The sample is no longer finite. At step 3.", "2 done"]


@pytest.mark.parametrize("error", [InputError("no"), NotWritten("no")])
def test_wrong_input_and_a_full_disk_are_no_results(error: DDIMError):
    def run(items: Any) -> Any:
        raise error

    with pytest.raises(type(error)):
        isolate_failures([0, 1], run, lambda k, why: why)


class Alone(Processes):
    """One of several, that waits for none."""

    def wait(self) -> None:
        """Nobody else is here."""


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path):
    code = "import sys; from pathlib import Path; from ddim._utils.lock import only_process\n"
    code += "with only_process(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        other.stdout.readline()
        with (
            pytest.raises(InputError, match="Another process is writing results to"),
            only_run(tmp_path, Processes()),
        ):
            pass
        other.communicate("")
    with only_run(tmp_path, Processes()):
        pass


def test_other_columns_and_broken_parts_are_refused(tmp_path: Path):
    with open_rows(tmp_path, COLUMNS) as rows:
        rows.add([row(0)])
    with (
        pytest.raises(InputError) as caught,
        open_rows(tmp_path, RowColumns({"item": "int64"}, {"value": "float64"})),
    ):
        pass
    assert caught.value.parameter == "out"
    (tmp_path / "rows" / "part-x.parquet").write_bytes(b"nothing")
    with pytest.raises(DDIMError, match=r"part-x\.parquet"), open_rows(tmp_path, COLUMNS):
        pass


def test_wrong_rows_and_columns_are_a_mistake_of_the_code(tmp_path: Path):
    with pytest.raises(ValueError, match="identity"):
        RowColumns({}, {"value": "float64"})
    with pytest.raises(ValueError, match="kind"):
        RowColumns({"item": "int"}, {})
    with pytest.raises(ValueError, match="a row has the columns"), open_rows(tmp_path, COLUMNS) as rows:
        rows.add([item(0)])


def test_processes_part_the_work_without_rest_or_overlap():
    parts = [Processes(rank, 3).share(list(range(10))) for rank in range(3)]
    assert sorted(k for part in parts for k in part) == list(range(10))
    assert [p.main for p in (Processes(0, 3), Processes(1, 3))] == [True, False]


NEEDED = {"edits": "none.toml", "pie-bench": "--model emoji --data none", "fid": "--features none --data none"}
"""What a benchmark cannot do without; the others have a default for everything."""


@pytest.mark.parametrize("command", [f"{name} {NEEDED.get(name, '')}" for name in BENCHMARKS])
def test_a_process_knows_its_place_before_it_loads_and_only_the_first_speaks(
    command: str, monkeypatch: pytest.MonkeyPatch
):
    """Accelerate gives each its GPU: a model that was loaded before lies on the first one's."""
    asked, quiet, init = [], [], Terminal.__init__

    def place() -> Processes:
        asked.append("place")
        return Processes()

    def load(*_: Any, **__: Any) -> None:
        asked.append("load")
        raise InputError("No model.")

    def began(self: Terminal) -> None:
        init(self)
        quiet.append(self.quiet)

    for found in pkgutil.walk_packages(ddim.evaluation.__path__, "ddim.evaluation."):
        importlib.import_module(found.name)  # a module keeps what it has imported, not what stands in for it below
    assert None not in (ddim.load, ddim.load_features)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(runner, "processes", place)
    monkeypatch.setattr("ddim.models.load", load)
    monkeypatch.setattr("ddim.models.features.load_features", load)
    monkeypatch.setattr(Terminal, "__init__", began)
    assert CliRunner().invoke(app, ["evaluate", *command.split()]).exception is not None
    assert (asked[:1], quiet) == (["place"], [True])


RUN = """
import sys, time
from pathlib import Path
from ddim.evaluation import rows as store
store.FLUSH_SECONDS = 0.01
columns = store.RowColumns({"item": "int64"}, {"value": "float64", "by": "int64"})
items = [{"item": k} for k in range(int(sys.argv[2]))]
with store.open_rows(Path(sys.argv[1]), columns) as rows:
    def run(some):
        time.sleep(float(sys.argv[3]))
        with open(sys.argv[1] + ".log", "a") as log:
            log.write("".join(f"{i['item']}\\n" for i in some))
        return [{**i, "value": i["item"] ** 0.5, "by": rows.processes.rank} for i in some]
    print("began", flush=True)
    rows.measure(store.batches(items, 2, rows.processes.count), run)
    rows.gather()
    if rows.processes.main:
        print([r["value"] for r in rows.of(items)], sorted({r["by"] for r in rows.of(items)}))
"""


def test_killed_five_times_no_item_is_lost_or_there_twice(tmp_path: Path):
    folder, log, count = tmp_path / "run", tmp_path / "run.log", 60

    def lines() -> int:
        return log.read_text().count("\n") if log.is_file() else 0

    for k in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", RUN, str(folder), str(count), "0.02"], stdout=subprocess.PIPE, text=True
        ) as process:
            while process.poll() is None and lines() < 6 * (k + 1):  # some batches further each time
                time.sleep(0.002)
            os.kill(process.pid, signal.SIGKILL)
    partial = Rows(folder / "rows", RowColumns({"item": "int64"}, {"value": "float64", "by": "int64"}))
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), str(count), "0"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1] == f"{[k**0.5 for k in range(count)]} [0]"
    assert 0 < len(partial) < count  # the kills fell inside the work
    whole = Rows(folder / "rows", partial.columns)
    assert len(whole) == count
    measured = [int(line) for line in log.read_text().split()]
    assert set(measured) == set(range(count))
    assert len(measured) <= count + 5 * 2  # a kill costs at most the batch that it fell into


def test_accelerates_processes_share_the_items(tmp_path: Path):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"),
            *("--standalone", str(script), str(tmp_path / "run"), "9", "0"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{[k**0.5 for k in range(9)]} [0, 1]" in done.stdout
