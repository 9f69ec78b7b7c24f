"""Plans in closed form: how items are cut into batches and filled up, and what may go on in an output."""

import json
from pathlib import Path

import pytest
import torch
from refusals import refused

import ddim
from ddim.batch.on_ray import LEFT_FREE, _share
from ddim.batch.output import Output, empty_row
from ddim.batch.plan import Plan, filled, first_difference
from ddim.batch.worker import Work


@pytest.mark.parametrize(("count", "size"), [(1, 1), (1, 8), (8, 8), (9, 8), (64, 5), (63, 64)])
def test_batches_are_all_items_once_and_in_order(count: int, size: int):
    plan = Plan(count, size)
    cut = [list(plan.indices(number)) for number in range(plan.batches)]
    assert [index for batch in cut for index in batch] == list(range(count))
    assert {len(batch) for batch in cut[:-1]} <= {size}
    assert 1 <= len(cut[-1]) <= size


def test_good_items_stay_in_their_places_and_the_other_rows_are_copies_of_the_first():
    assert filled(4, {0, 1, 2, 3}) == [0, 1, 2, 3]
    assert filled(5, {1, 3}) == [1, 1, 1, 3, 1]
    assert filled(3, {2}) == [2, 2, 2]


def test_the_first_difference_of_two_lists():
    one = [("a", "1"), ("b", "2")]
    assert first_difference(iter(one), iter(one)) is None
    assert first_difference(iter(one), iter([("a", "1"), ("b", "3")])) == ("b", "b")
    assert first_difference(iter(one), iter(one[:1])) == ("b", None)
    assert first_difference(iter(one[:1]), iter(one)) == (None, "b")


def test_a_plan_is_read_as_it_was_written_and_another_one_names_its_setting(tmp_path: Path):
    plan = Plan(10, 4, {"steps": 50, "model": "emoji", "lora": (("a", 1.0),)})
    again = Plan.read(json.loads(plan.text()), "plan")
    assert (again.text(), again.identity) == (plan.text(), plan.identity)
    plan.check_same(again, tmp_path)
    for name, other in (
        ("steps", Plan(10, 4, {**plan.settings, "steps": 5})),
        ("batch", Plan(10, 5, plan.settings)),
        ("seed", Plan(10, 4, {**plan.settings, "seed": 3})),
    ):
        with refused(name):
            other.check_same(again, tmp_path)
        assert other.identity != plan.identity
    for wrong in ({}, {"format": "ddim.batch", "version": 1, "items": 0, "batch": 4, "settings": {}}):
        with refused("out"):
            Plan.read(wrong, "plan")


def test_settings_that_differ_are_different_plans_and_what_has_no_plain_form_is_refused():
    long = torch.zeros(2000)
    other = long.clone()
    other[1000] = 1.0
    texts = [Plan(1, 1, {"mask": mask}).text() for mask in (long, long.clone(), other, long.double())]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3
    weights = [Plan(1, 1, {"guidance": ddim.Guidance(w)}).text() for w in (1.0, 2.0)]
    assert weights[0] != weights[1]
    with refused("arguments", "object"):
        Plan(1, 1, {"solver": object()}).text()


def test_an_output_knows_what_is_missing_and_refuses_other_data(tmp_path: Path):
    output, plan = Output(tmp_path / "out"), Plan(5, 2)
    assert (output.begun(), output.missing(plan)) == (False, [0, 1, 2])
    listed = [(f"{k}.png", "1") for k in range(5)]
    output.write_plan(plan, listed)
    assert not output.begun()  # nothing is done, so that another plan may take its place
    output.write(1, [empty_row(2, 1, "2.png") | {"error": "broken"}, empty_row(3, 1, "3.png")])
    assert (output.begun(), output.missing(plan)) == (True, [0, 2])
    assert output.errors() == [("2.png", "broken")]
    assert [row["index"] for row in output.rows()] == [2, 3]
    output.check_items(iter(listed))
    with refused("data", "3.png"):
        output.check_items(iter([*listed[:3], ("3.png", "2"), listed[4]]))
    with refused("data", "4.png"):
        output.check_items(iter(listed[:4]))
    with refused("data"):
        Output(tmp_path / "none").plan()


@pytest.mark.parametrize("cpus", [0.5, 1, 2, 3, 64])
@pytest.mark.parametrize("workers", [None, 1, 2, 7])
@pytest.mark.parametrize("threads", [1, 2, 100])
def test_workers_always_leave_a_part_of_the_cpus_free(cpus: float, workers: int | None, threads: int):
    """Workers that took all of them would keep Ray Data's own tasks waiting for ever."""
    count, each, gpus = _share({"CPU": cpus}, Work("invert", threads=threads), workers, 1000)
    assert count == workers or workers is None
    assert count * each <= (1 - LEFT_FREE) * cpus + 1e-9
    assert each > 0
    assert gpus == 0


def test_workers_on_gpus_are_as_many_as_there_are():
    resources = {"CPU": 8.0, "GPU": 2.0}
    assert _share(resources, Work("invert"), None, 1000) == (2, 1.0, 1.0)
    assert _share(resources, Work("invert"), None, 1)[0] == 1  # a second one would have nothing to do
    assert _share(resources, Work("invert", loading={"device": "cpu"}), None, 1000)[2] == 0
    with refused("workers", 3, 2):
        _share(resources, Work("invert"), 3, 1000)
    with refused("device", "'cuda'"):
        _share({"CPU": 8.0}, Work("invert", loading={"device": "cuda"}), None, 1000)
