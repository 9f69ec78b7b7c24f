"""Runs on tiny networks: what rows hold, broken pictures, kills at random moments, and what may go on."""

import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_text
import torch
from commands import picture
from refusals import refused

import ddim
from ddim.batch import Columns, Output, Spread, Work, code_of, run_batch
from ddim.batch import worker as workers
from ddim.data.images import read_images

STEPS = {"method": "bdia", "steps": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.pipeline_folder(tmp_path_factory.mktemp("models") / "small"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eleven pictures, of which the fifth is broken."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(11):
        picture(folder / f"{k:02d}.png", k)
    (folder / "04.png").write_bytes(b"broken")
    return folder


def inverting(model: str, pictures: Path, **changes: Any) -> Work:
    return replace(Work("invert", Columns(str(pictures)), model, {"device": "cpu"}, STEPS, batch=4), **changes)


def test_rows_are_what_the_pipelines_return_for_the_filled_batches(model: str, pictures: Path, tmp_path: Path):
    summary = run_batch(inverting(model, pictures), tmp_path / "out")
    rows = list(Output(tmp_path / "out").rows())
    assert [row["index"] for row in rows] == list(range(11))
    assert [row["batch"] for row in rows] == [0] * 4 + [1] * 4 + [2] * 3
    assert [row["key"] for row in rows if row["error"]] == ["04.png"] == [key for key, _ in summary.errors]
    assert (summary.computed, summary.missing) == (3, 0)
    loaded = ddim.load(model, device="cpu")
    pixels = read_images([pictures / f"{k:02d}.png" for k in (8, 9, 10, 8)], loaded.picture)
    code = ddim.invert(loaded, pixels, batch=4, seed=8, **STEPS)
    images = ddim.reconstruct(loaded, code)
    for k, row in enumerate(rows[8:]):
        stored = code_of(row)
        assert all(torch.equal(stored.state[key], code[k].state[key]) for key in code.state)
        assert torch.equal(ddim.reconstruct(loaded, stored)[0], images[k])
        assert row["psnr"] is None or row["psnr"] > 100
    with refused("row"):
        code_of(rows[4])


def test_codes_are_reconstructed_in_their_batches_and_their_errors_stay(model: str, pictures: Path, tmp_path: Path):
    run_batch(inverting(model, pictures), tmp_path / "codes")
    run_batch(Work("reconstruct", Columns(str(tmp_path / "codes")), model), tmp_path / "out")
    codes, again = (list(Output(tmp_path / name).rows()) for name in ("codes", "out"))
    assert [row["picture"] for row in codes] == [row["picture"] for row in again]
    assert [row["error"] for row in codes] == [row["error"] for row in again]
    Output(tmp_path / "codes").part(1).unlink()
    with refused("data", 1):
        run_batch(Work("reconstruct", Columns(str(tmp_path / "codes")), model), tmp_path / "other")
    with refused("data"):
        run_batch(Work("reconstruct", Columns(str(tmp_path / "out")), model), tmp_path / "other")


def test_a_batch_is_read_while_another_one_is_computed(
    model: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first batch is computed until the second one has been read."""
    read, compute, second = workers.Worker._read, workers.Worker._compute, threading.Event()

    def reading(self: Any, indices: range) -> Any:
        found = read(self, indices)
        if indices.start:
            second.set()
        return found

    def computing(self: Any, number: int, *others: Any) -> Any:
        if number == 0:
            assert second.wait(60), "the second batch was not read before the first one was computed"
        return compute(self, number, *others)

    monkeypatch.setattr(workers.Worker, "_read", reading)
    monkeypatch.setattr(workers.Worker, "_compute", computing)
    assert run_batch(inverting(model, pictures), tmp_path / "out").computed == 3


def test_pictures_that_do_not_fit_end_the_run_and_a_broken_first_one_does_not(
    model: str, pictures: Path, tmp_path: Path
):
    (pictures / "00.png").write_bytes(b"broken")
    run = run_batch(inverting(model, pictures, batch=1), tmp_path / "broken")
    assert [key for key, _ in run.errors] == ["00.png", "04.png"]
    for file in pictures.glob("*.png"):
        picture(file, 1, size=(40, 50))
    with refused("images", "40x50"):
        run_batch(inverting(model, pictures), tmp_path / "out")
    assert not Output(tmp_path / "out").numbers()
    assert not run_batch(inverting(model, pictures, resize=True), tmp_path / "out").errors


def test_more_items_than_before_are_refused_by_their_number(model: str, pictures: Path, tmp_path: Path):
    run_batch(inverting(model, pictures, count=4), tmp_path / "out")
    with refused("count", 4, 8):
        run_batch(inverting(model, pictures, count=8), tmp_path / "out")
    with refused("count"):
        run_batch(Work("reconstruct", Columns(str(tmp_path / "out")), model, count=2), tmp_path / "again")
    with refused("out"):
        run_batch(inverting(model, pictures), tmp_path / "other" / ".." / "pictures" / "out")


def test_a_missing_batch_is_computed_again_alone(model: str, pictures: Path, tmp_path: Path):
    run_batch(inverting(model, pictures), tmp_path / "out")
    output = Output(tmp_path / "out")
    before = [output.part(number).read_bytes() for number in range(3)]
    output.part(1).unlink()
    assert run_batch(inverting(model, pictures), tmp_path / "out", dry_run=True).missing == 1
    assert run_batch(inverting(model, pictures), tmp_path / "out").computed == 1
    assert [output.part(number).read_bytes() for number in range(3)] == before
    assert run_batch(inverting(model, pictures), tmp_path / "out").computed == 0


def test_words_and_classes_come_from_the_data(tmp_path: Path):
    tiny_text.pipeline().save_pretrained(tmp_path / "words")
    (tmp_path / "cats").mkdir()
    for k, prompt in enumerate(("a cat", "a dog with a hat", "a red cat")):
        ddim.save_image(tiny_text.pictures(1, 32, 32, k)[0], tmp_path / f"cats/{k}.png")
        (tmp_path / f"cats/{k}.txt").write_text(prompt)
    columns = Columns(str(tmp_path / "cats"), prompt="{text}", target="{text} and hat")
    arguments = {"steps": 2, "attention": "none"}
    work = Work("edit", columns, str(tmp_path / "words"), {"device": "cpu"}, arguments, batch=2)
    run_batch(work, tmp_path / "out")
    rows = list(Output(tmp_path / "out").rows())
    assert [row["target"] for row in rows] == ["a cat and hat", "a dog with a hat and hat", "a red cat and hat"]
    assert not any(row["error"] for row in rows)
    loaded = ddim.load(str(tmp_path / "words"), device="cpu")
    pixels = read_images([tmp_path / "cats/2.png"] * 2, loaded.picture)
    words = {"source_prompt": ["a red cat"] * 2, "prompt": [["a red cat and hat"]] * 2}
    edited = ddim.edit(loaded, pixels, seed=2, batch=4, **arguments, **words)
    from ddim.data.images import png_bytes, to_pil

    assert rows[2]["picture"] == png_bytes(to_pil(edited.edits[0, 0]))
    samples = replace(work, command="sample", arguments={"steps": 2, "seed": 5}, columns=replace(columns, target=""))
    run_batch(samples, tmp_path / "samples")
    drawn = ddim.sample(loaded, 2, steps=2, seed=7, prompt=["a red cat"] * 2, batch=2)
    assert list(Output(tmp_path / "samples").rows())[2]["picture"] == png_bytes(to_pil(drawn[0]))


# --- what cannot be done ---------------------------------------------------------------------------------------------


def test_other_options_and_other_data_are_refused_once_something_is_done(model: str, pictures: Path, tmp_path: Path):
    out, work = tmp_path / "out", inverting(model, pictures)
    run_batch(work, out)
    with refused("steps", 3, 4):
        run_batch(replace(work, arguments={**STEPS, "steps": 4}), out)
    with refused("batch", 4, 5):
        run_batch(replace(work, batch=5), out)
    os.utime(pictures / "07.png", (1, 1))
    with refused("data", "07.png"):
        run_batch(work, out)
    (pictures / "10.png").unlink()
    with refused("data"):
        run_batch(work, out)


def test_an_output_within_the_data_is_refused(model: str, pictures: Path):
    with refused("out"):
        run_batch(inverting(model, pictures), pictures / "out")
    assert not (pictures / "out").exists()


def test_an_option_that_the_model_does_not_take_ends_the_run_and_may_be_corrected(
    model: str, pictures: Path, tmp_path: Path
):
    wrong = inverting(model, pictures, arguments={**STEPS, "prompt": "a cat"})
    with refused("prompt"):
        run_batch(wrong, tmp_path / "out")
    assert run_batch(inverting(model, pictures), tmp_path / "out").computed == 3


@pytest.mark.parametrize(
    ("work", "spread", "error"),
    [
        (Work("invert"), Spread(), refused("data")),
        (Work("sample"), Spread(), refused("count")),
        (Work("sample", count=0), Spread(), refused("count", 0)),
        (Work("sample", count=1, batch=0), Spread(), refused("batch", 0)),
        (Work("sample", count=1, threads=0), Spread(), refused("threads", 0)),
        (Work("sample", count=1), Spread(workers=2), refused("workers")),
        (Work("sample", count=1), Spread("local", workers=0), refused("workers", 0)),
        (Work("sample", count=1), Spread("local", timeout=0), refused("timeout", 0)),
        (Work("sample", Columns(label="style"), count=1), Spread(), refused("label", "'style'")),
    ],
)
def test_what_cannot_be_begun_is_refused_before_anything_is_written(
    work: Work, spread: Spread, error: refused, tmp_path: Path
):
    with error:
        run_batch(work, tmp_path / "out", spread)
    assert not (tmp_path / "out").exists()


def test_one_item_that_fails_costs_no_other_its_result(
    model: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_batch(inverting(model, pictures), tmp_path / "whole")
    verb = _verbs()["invert"]

    def failing(call: Any) -> Any:
        if any(call.items[row].key == "06.png" for row in call.own):
            raise ddim.NotFinite("the sample is not finite", step=1)
        return verb(call)

    monkeypatch.setitem(_verbs(), "invert", failing)
    summary = run_batch(inverting(model, pictures), tmp_path / "out")
    assert [key for key, _ in summary.errors] == ["04.png", "06.png"]
    whole, rows = (list(Output(tmp_path / name).rows()) for name in ("whole", "out"))
    assert [row for row in rows if row["key"] != "06.png"] == [row for row in whole if row["key"] != "06.png"]


def _verbs() -> dict[str, Any]:
    from ddim.batch import verbs

    return verbs.VERBS


# --- kills -----------------------------------------------------------------------------------------------------------


def silently(run: Callable[[], object]) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    run()


def test_a_run_killed_at_random_moments_has_the_rows_of_an_unbroken_one(model: str, pictures: Path, tmp_path: Path):
    work = inverting(model, pictures, batch=1)
    began = time.monotonic()
    run_batch(work, tmp_path / "whole")
    usual = time.monotonic() - began
    chance, context, hit = random.Random(time.time_ns()), multiprocessing.get_context("fork"), 0
    for _ in range(5):
        process = context.Process(target=silently, args=(lambda: run_batch(work, tmp_path / "out"),))
        process.start()
        time.sleep(chance.uniform(0.02, 0.6 * usual))
        hit += process.is_alive()
        process.kill()
        process.join()
    assert hit, "every run ended before it could be killed"
    run_batch(work, tmp_path / "out")
    whole, out = Output(tmp_path / "whole"), Output(tmp_path / "out")
    assert list(out.rows()) == list(whole.rows())
    assert sorted(os.listdir(tmp_path / "out" / "parts")) == sorted(os.listdir(tmp_path / "whole" / "parts"))
    assert (tmp_path / "out" / "plan.json").read_bytes() == (tmp_path / "whole" / "plan.json").read_bytes()


def test_a_stop_ends_the_computation_at_its_next_step(
    model: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    steps: list[object] = []
    count = workers.Worker._on_event

    def stopping(self: Any, event: object) -> None:
        steps.append(event)
        count(self, event)

    monkeypatch.setattr(workers.Worker, "_on_event", stopping)

    def stop(at: Any) -> None:
        if at.done is not None:
            raise KeyboardInterrupt

    work = inverting(model, pictures, arguments={**STEPS, "steps": 200})
    with pytest.raises(KeyboardInterrupt):
        run_batch(work, tmp_path / "out", on_event=stop)
    assert Output(tmp_path / "out").numbers() < {0, 1, 2}
    assert len(steps) < 3 * 400
