"""The plain functions under the page: no browser, no Gradio."""

import io
import json
import shlex
import shutil
import struct
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from PIL import Image
from refusals import refused

import ddim
from ddim._utils.errors import DDIMError, NetworkMemory
from ddim.data.images import read_images
from ddim.pipelines.events import LossEvent, StepEvent
from ddim.studio import menus
from ddim.studio.comparing import CompareWork
from ddim.studio.desk import MOST_UPLOADS, Desk, Session
from ddim.studio.editing import EditOutcome, EditWork
from ddim.studio.errors import LABELS, sentence_of
from ddim.studio.headers import hosts
from ddim.studio.jobs import Job
from ddim.studio.limits import Limits
from ddim.studio.mixing import MixWork
from ddim.studio.pictures import Upload, mask_from, photograph_of, shown, taken
from ddim.studio.requests import EditRequest
from ddim.studio.travelling import TripWork

CAT, TIGER = "a cat on a mat", "a tiger on a mat"


@pytest.fixture
def session(desk: Desk) -> Session:
    return desk.session("someone")


@pytest.fixture
def upload(desk: Desk, session: Session, photo: Path) -> Upload:
    return taken(session, photo, desk.limits)


def asked(desk: Desk, **changes: Any) -> EditRequest:
    return replace(EditRequest(desk.menu[0], CAT, TIGER, steps=3, guidance=3.0), **changes)


def done(work: Any) -> Any:
    job = Job(work)
    assert list(job.updates())
    assert job.result is not None, job.problem
    return job.result


# --- an edit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["direct", "bdia", "flow-edit", "edit-friendly"])
def test_python_and_the_command_repeat_an_edit(
    method: str, desk: Desk, session: Session, upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = desk.model(desk.menu[0])
    own = menus.usual(model, method)
    made: EditOutcome = done(EditWork(desk, session, asked(desk, method=method, strength=own.strength, seed=3), upload))
    assert (made.png.name, made.about.name) == (f"photo_{method}.png", f"photo_{method}.json")
    shutil.copy(upload.path, tmp_path / upload.name)
    monkeypatch.chdir(tmp_path)
    exec(made.python, {})
    expected = Image.open(made.png).tobytes()
    assert Image.open(made.png.name).tobytes() == expected
    before = set(tmp_path.iterdir())
    run(*shlex.split(made.repeat.command)[1:])
    (page,) = [path for path in set(tmp_path.iterdir()) - before if path.name.endswith("_photo.png")]
    assert Image.open(page).tobytes() == expected


def test_a_mask_keeps_every_byte_outside(desk: Desk, session: Session, upload: Upload, tmp_path: Path):
    mask = Image.new("L", (96, 64))
    mask.paste(255, (20, 10, 60, 50))
    made: EditOutcome = done(EditWork(desk, session, asked(desk), upload, mask))
    outside = torch.from_numpy(np.asarray(mask) == 0)
    assert torch.equal(made.before[:, outside], made.after[:, outside])
    assert not torch.equal(made.before, made.after)
    assert made.kept == pytest.approx(float((made.before == made.after).double().mean()))
    assert made.kept >= float(outside.double().mean())
    assert "--mask photo_mask.png" in made.repeat.command
    assert "crop" not in made.repeat.arguments
    assert json.loads(made.about.read_text())["command"] == made.repeat.command
    assert made.mask is not None
    assert Image.open(made.mask).tobytes() == mask.tobytes()


def test_figures_of_an_edit_are_those_of_its_pictures(desk: Desk, session: Session, upload: Upload):
    made: EditOutcome = done(EditWork(desk, session, asked(desk), upload))
    before, after = made.before.double() / 255, made.after.double() / 255
    assert made.edit_psnr == pytest.approx(float(-10 * (before - after).square().mean().log10()), abs=1e-3)
    assert Image.open(made.png).tobytes() == ddim.to_pil(made.after).tobytes()
    assert made.code is not None
    assert ddim.LatentCode.load(made.code).method == "direct"
    alone: EditOutcome = done(EditWork(desk, session, asked(desk, method="flow-edit"), upload))
    assert alone.code is None


def test_a_picture_is_turned_upright_and_keeps_its_transparency(desk: Desk, session: Session, tmp_path: Path):
    path = tmp_path / "Ünder the sun.png"
    image = Image.new("RGBA", (40, 70), (200, 30, 30, 255))
    image.putpixel((3, 4), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    upload = taken(session, path, desk.limits)
    assert upload.size == (40, 70)
    made: EditOutcome = done(EditWork(desk, session, asked(desk), upload))
    assert made.after.shape == (4, 40, 70)
    assert torch.equal(made.before, photograph_of(upload)[0])
    assert torch.equal(made.before[3], made.after[3])


# --- stopping --------------------------------------------------------------------------------------------------------


def stopped(work: Any, after: int, kind: type = StepEvent) -> Job:
    """Runs a job, and stops it at an event of this kind."""
    job = Job(work)
    seen, on_event = [0], job.on_event

    def counted(event: Any) -> None:
        seen[0] += isinstance(event, kind)
        if seen[0] == after:
            job.stop.set()
        on_event(event)

    job.on_event = counted  # type: ignore[method-assign]
    list(job.updates())
    assert job.stopped
    assert job.problem == "Stopped."
    return job


def test_what_was_tuned_is_kept_and_gives_the_same_edit(desk: Desk, session: Session, upload: Upload):
    request = asked(desk, method="null-text", steps=4)
    whole: EditOutcome = done(EditWork(desk, session, request, upload))
    work = EditWork(desk, session, request, upload)
    job = stopped(work, 2, LossEvent)
    assert job.partial is not None
    assert "tuned" in work.keep(job)
    (kept,) = session.kept.values()
    assert kept.partial
    assert ddim.LatentCode.load(kept.file).settings["partial"]["steps"] >= 1
    again: EditOutcome = done(EditWork(desk, session, request, upload))
    assert torch.equal(again.after, whole.after)
    assert again.calls < whole.calls


def test_a_code_is_kept_if_the_sampling_was_stopped(desk: Desk, session: Session, upload: Upload):
    request = asked(desk)
    whole: EditOutcome = done(EditWork(desk, session, request, upload))
    work = EditWork(desk, session, request, upload)
    assert "code" in work.keep(stopped(work, 4))
    again: EditOutcome = done(EditWork(desk, session, request, upload))
    assert torch.equal(again.after, whole.after)
    assert again.calls < whole.calls


def test_what_was_kept_is_not_used_for_another_inversion(desk: Desk, session: Session, upload: Upload):
    work = EditWork(desk, session, asked(desk), upload)
    work.keep(stopped(work, 4))
    other: EditOutcome = done(EditWork(desk, session, asked(desk, steps=2), upload))
    assert ddim.LatentCode.load(str(other.code)).grid.steps == 2


def test_a_job_that_is_left_alone_stops():
    began, ended = threading.Event(), threading.Event()

    def work(job: Job) -> None:
        began.set()
        try:
            while True:
                job.on_event(StepEvent(1, 2))
        finally:
            ended.set()

    updates = Job(work).updates()
    next(updates)
    assert began.wait(10)
    updates.close()
    assert ended.is_set()


def test_progress_counts_steps_and_shows_previews(desk: Desk, session: Session, upload: Upload):
    job = Job(EditWork(desk, session, asked(desk, steps=5), upload))
    seen, say = [], job.on_event
    job.on_event = lambda event: (say(event), seen.append(job._now))[0]  # type: ignore[method-assign]
    list(job.updates())
    steps = [one.done for one in seen if one.total == 10]
    assert steps[-1] == 10
    previews = [one.preview for one in seen if one.preview is not None]
    assert previews
    assert previews[0].shape == (3, 32, 32)
    assert 0 <= float(previews[0].min()) <= float(previews[0].max()) <= 1


def test_watching_changes_no_bit(desk: Desk, upload: Upload):
    settings = {"source_prompt": CAT, "steps": 3, "guidance": 3.0, "crop": "whole"}
    watched = desk.model(desk.menu[0])
    ours = ddim.edit(watched, upload.path, TIGER, on_event=lambda _: watched.peek(), **settings)
    plain = ddim.edit(ddim.load(desk.menu[0]), upload.path, TIGER, **settings)
    assert torch.equal(ours.edits, plain.edits)


# --- the other tabs --------------------------------------------------------------------------------------------------


def test_a_comparison_has_an_entry_for_each_method(desk: Desk, session: Session, upload: Upload):
    work = CompareWork(desk, session, asked(desk), ["direct", "velo-edit", "flow-edit"], upload)
    entries = done(work)
    assert [entry.method for entry in entries] == ["direct", "velo-edit", "flow-edit"]
    assert [entry.made is None for entry in entries] == [False, True, False]
    assert "velo-edit" in entries[1].problem
    assert work.commands.count("ddim edit photo.png") == 2
    none = Job(CompareWork(desk, session, asked(desk), [], upload))
    list(none.updates())
    assert none.problem.startswith("Method: ")


@pytest.mark.parametrize(("missing", "label"), [("prompt", "What it is to show"), ("source_prompt", "What it shows")])
def test_a_comparison_without_words_is_one_sentence(
    missing: str, label: str, desk: Desk, session: Session, upload: Upload
):
    work = CompareWork(desk, session, asked(desk, **{missing: " "}), ["flow-edit", "direct"], upload)
    job = Job(work)
    list(job.updates())
    assert job.problem.startswith(f"{label}: ")
    assert not work.entries


def test_a_comparison_where_nothing_works_has_not_worked(desk: Desk, session: Session, upload: Upload):
    work = CompareWork(desk, session, asked(desk), ["velo-edit", "instruct"], upload)
    job = Job(work)
    list(job.updates())
    assert job.result is None
    assert job.problem.startswith("Method: ")
    assert [entry.method for entry in work.entries] == ["velo-edit", "instruct"]


@pytest.mark.parametrize("error", [NetworkMemory(5), MemoryError(), torch.OutOfMemoryError("out of memory")])
def test_a_method_that_needs_too_much_memory_does_not_stop_the_others(
    error: Exception, desk: Desk, session: Session, upload: Upload, monkeypatch: pytest.MonkeyPatch
):
    edited = EditWork._edited

    def too_large(self: EditWork, *args: Any) -> Any:
        if self.request.method == "direct":
            raise error
        return edited(self, *args)

    monkeypatch.setattr(EditWork, "_edited", too_large)
    entries = done(CompareWork(desk, session, asked(desk), ["direct", "flow-edit"], upload))
    assert "memory" in entries[0].problem
    assert entries[1].made is not None


def test_a_round_trip_of_an_exact_method(desk: Desk, session: Session, upload: Upload):
    trip = done(TripWork(desk, session, asked(desk, method="bdia", steps=6, guidance=1.0), upload))
    assert trip.psnr == pytest.approx(trip.limit, abs=0.01)
    assert min(trip.calls) >= 5
    assert [one.t for one in trip.back] == sorted(one.t for one in trip.back)
    assert [one.t for one in trip.forth] == sorted((one.t for one in trip.forth), reverse=True)
    code = ddim.LatentCode.load(trip.code)
    assert trip.mean == pytest.approx(float(code.x.mean()), abs=1e-5)
    assert trip.std == pytest.approx(float(code.x.std()), rel=0.05)
    assert Image.open(trip.strip).width > 100


def test_an_interpolation_begins_and_ends_at_its_pictures(
    desk: Desk, session: Session, upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = tmp_path / "other.png"
    Image.open(upload.path).transpose(Image.Transpose.ROTATE_180).save(other)
    second = taken(session, other, desk.limits)
    mixed = done(MixWork(desk, session, asked(desk, method="bdia", guidance=None), upload, second, 4))
    assert mixed.frames.shape == (4, 3, 32, 32)
    shutil.copy(upload.path, tmp_path / upload.name)
    monkeypatch.chdir(tmp_path)
    exec(mixed.python, {})
    assert Image.open(mixed.strip.name).tobytes() == Image.open(mixed.strip).tobytes()
    before = set(tmp_path.iterdir())
    run(*shlex.split(mixed.command)[1:])
    (page,) = [path for path in set(tmp_path.iterdir()) - before if path.suffix == ".png"]
    assert Image.open(page).tobytes() == Image.open(mixed.strip).tobytes()


# --- menus -----------------------------------------------------------------------------------------------------------


def test_menus_are_what_capabilities_says(desk: Desk):
    model = desk.model(desk.menu[0])
    table = ddim.capabilities(model)
    works = {name for kind in ("inversions", "editors") for name, why in table[kind].items() if why is None}
    assert {name for _, name in menus.method_menu(model)} == works
    assert {one.name: one.why_not for one in menus.inversions(model)} == table["inversions"]
    reasons = [row[3] for row in menus.capability_rows(model) if row[2] == "no"]
    assert all(reasons)
    assert "masactrl" in menus.attention_menu(model, "direct")
    assert menus.attention_menu(model, "flow-edit") == []


def test_usual_methods_by_family():
    def model(**facts: Any) -> Any:
        info = replace(ddim.load("fashion").info, text=True, guidance_kinds=frozenset({"cfg"}), **facts)
        flow = "FLUX" in info.family
        schedule = SimpleNamespace(prediction="flow" if flow else "eps", path=ddim.ddpm_linear())
        nothing = lambda: ()  # noqa: E731
        return SimpleNamespace(
            info=info, schedule=schedule, whole_timesteps=False, attention_sites=nothing, feature_sites=nothing
        )

    assert menus.usual_method(model()) == "direct"
    assert menus.usual_method(model(steps=4)) == "turbo-edit"
    assert menus.usual_method(model(family="FLUX", steps=4)) == "flow-edit"
    assert menus.usual_method(model(family="FLUX Kontext", optional_conditions=("reference",))) == "instruct"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"prompt": " "}, "What it is to show"),
        ({"source_prompt": ""}, "What it shows"),
        ({"steps": 41}, "Steps"),
        ({"steps": 0}, "Steps"),
        ({"strength": 1.5}, "Strength"),
        ({"seed": -1}, "Seed"),
        ({"guidance": float("nan")}, "Guidance"),
        ({"method": "direkt"}, "direkt"),
        ({"model": "emojy"}, "emojy"),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_its_label(
    changes: dict[str, Any], label: str, desk: Desk, session: Session, upload: Upload
):
    job = Job(EditWork(desk, session, asked(desk, **changes), upload))
    list(job.updates())
    assert label in job.problem
    assert "\n" not in job.problem
    assert "Unexpected" not in job.problem


def test_what_is_no_picture_is_refused(desk: Desk, session: Session, tmp_path: Path):
    with refused("images"):
        taken(session, None, desk.limits)
    with refused("images"):
        taken(session, tmp_path / "gone.png", desk.limits)
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    with refused("images", "notes.png") as caught:
        taken(session, text, desk.limits)
    assert str(desk.root) not in str(caught.value)
    large = tmp_path / "large.png"
    Image.new("L", (1001, 1000)).save(large)
    with refused("images", "1001x1000", 1):
        taken(session, large, desk.limits)
    heavy = tmp_path / "heavy.bmp"
    Image.new("RGB", (800, 800)).save(heavy)
    with refused("images", "heavy.bmp", 1):
        taken(session, heavy, desk.limits)


def test_every_error_is_one_sentence():
    assert sentence_of(ddim.InputError("3 is odd.", parameter="steps")) == "Steps: 3 is odd."
    assert sentence_of(DDIMError("It failed.", hint="Do this.")) == "It failed. Do this."
    assert "5 images" in sentence_of(NetworkMemory(5))
    assert sentence_of(MemoryError()) == "There is not enough memory."
    assert "ZeroDivisionError" in sentence_of(ZeroDivisionError("division by zero"))
    assert set(LABELS) >= {"prompt", "source_prompt", "strength", "guidance", "steps", "seed", "mask", "images"}


def test_a_page_that_others_reach_offers_its_menu_only(words: str, tmp_path: Path):
    with Desk([words], any_model=False) as desk:
        assert desk.model(words).text
        with refused("model", "/etc"):
            desk.model("/etc")
    with refused("queue", 0):
        Limits(queue=0)


def test_a_negative_prompt_of_another_model_is_not_sent(desk: Desk, classes: str):
    text = asked(desk, negative="blurred")
    assert text.arguments(desk.model(desk.menu[0]))["negative"] == "blurred"
    other = replace(text, model=classes, source_label=1, label=2)
    assert "negative" not in other.arguments(desk.model(classes))


@pytest.mark.parametrize(
    ("host", "share", "expected"),
    [
        ("127.0.0.1", False, ["127.0.0.1", "localhost", "[::1]"]),
        ("192.168.1.5", False, ["127.0.0.1", "localhost", "[::1]", "192.168.1.5"]),
        ("fe80::1", False, ["127.0.0.1", "localhost", "[::1]", "[fe80::1]"]),
        ("127.0.0.1", True, ["*"]),
        ("0.0.0.0", False, ["*"]),
        ("::", False, ["*"]),
    ],
)
def test_the_names_to_which_a_page_answers(host: str, share: bool, expected: list[str]):
    assert hosts(host, share) == expected


# --- sessions and models ---------------------------------------------------------------------------------------------


def test_files_of_a_session_go_with_it_and_the_folder_with_the_server(words: str, photo: Path):
    desk = Desk([words])
    one, other = desk.session("one"), desk.session("other")
    mine, theirs = taken(one, photo, desk.limits), taken(other, photo, desk.limits)
    assert mine.path != theirs.path
    desk.close_session("one")
    assert one.stop.is_set()
    assert not mine.path.exists()
    assert theirs.path.exists()
    desk.close()
    assert not desk.root.exists()


def test_the_model_that_was_not_used_for_longest_leaves(words: str):
    with Desk([words], limits=Limits(keep_models=2)) as desk:
        desk.model(words), desk.model("fashion"), desk.model(words), desk.model("fashion-classes")
        assert desk.loaded == ["fashion-classes", words]


def test_a_model_that_loads_keeps_no_page_waiting(words: str, monkeypatch: pytest.MonkeyPatch):
    asked, loads, may_end = threading.Event(), [], threading.Event()

    def slowly(name: str, **loading: Any) -> Any:
        loads.append(name)
        asked.set()
        assert may_end.wait(60)
        return ddim.load(name, **loading)

    with Desk([words]) as desk:
        desk.model(words)
        monkeypatch.setattr("ddim.studio.desk.load", slowly)
        threads = [threading.Thread(target=desk.model, args=("fashion",), daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert asked.wait(60)
        seen: list[Any] = []
        other = threading.Thread(
            target=lambda: seen.extend([desk.session("other"), desk.model(words), desk.loaded]), daemon=True
        )
        other.start()
        other.join(20)
        waits = other.is_alive()
        may_end.set()
        for thread in (*threads, other):
            thread.join(60)
        assert not waits
        assert seen[2] == [words]
        assert loads == ["fashion"]


def test_a_model_that_cannot_be_loaded_takes_no_place(words: str):
    with Desk([words], limits=Limits(keep_models=1)) as desk:
        model = desk.model(words)
        with refused("model", "emojy"):
            desk.model("emojy")
        assert desk.in_memory(words) is model
        assert desk.in_memory("fashion") is None
        assert desk.in_memory(None) is None


def test_a_model_that_does_not_fit_beside_another_takes_its_place(words: str, monkeypatch: pytest.MonkeyPatch):
    with Desk([words], limits=Limits(keep_models=1)) as desk:
        desk.model(words)

        def beside_none(name: str, **loading: Any) -> Any:
            if desk.loaded:
                raise torch.OutOfMemoryError("out of memory")
            return ddim.load(name, **loading)

        monkeypatch.setattr("ddim.studio.desk.load", beside_none)
        desk.model("fashion")
        assert desk.loaded == ["fashion"]


def test_no_file_comes_back_to_a_page_that_was_closed(desk: Desk, session: Session, upload: Upload):
    work = EditWork(desk, session, asked(desk), upload)
    job = stopped(work, 4)
    desk.close_session("someone")
    assert "closed" in work.keep(job)
    with refused(None, "closed", kind=DDIMError):
        session.new_folder()
    assert not session.folder.exists()


def test_the_server_ends_after_its_jobs(words: str):
    desk, begun = Desk([words]), threading.Event()
    session = desk.session("someone")

    def work(job: Job) -> None:
        begun.set()
        try:
            while True:
                job.on_event(StepEvent(1, 2))
        finally:
            late = session.folder / "late.png"
            late.parent.mkdir(parents=True, exist_ok=True)
            threading.Event().wait(0.3)
            late.parent.mkdir(parents=True, exist_ok=True)
            late.write_bytes(b"late")

    session.job = Job(work, session.stop)
    updates = session.job.updates()
    next(updates)
    assert begun.wait(10)
    desk.close()
    assert not desk.root.exists()
    threading.Event().wait(0.6)
    assert not desk.root.exists()
    updates.close()


def test_what_a_closed_page_wrote_at_last_is_deleted(desk: Desk, session: Session):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'ddim[studio]'")
    from ddim.studio.parts import run as run_job

    def work(job: Job) -> None:
        desk.close_session("someone")
        session.folder.mkdir(parents=True)
        (session.folder / "late.png").write_bytes(b"late")

    def end(job: Job, _: Any) -> Any:
        session.new_folder()

    session.wanted.add("edit")
    said = list(run_job(session, "edit", lambda _: work, said=str, show=lambda *_: "", end=end))
    assert "closed" in said[-1]
    assert not session.folder.exists()


def test_the_same_upload_is_taken_once_and_old_ones_are_deleted(desk: Desk, session: Session, photo: Path):
    first = taken(session, photo, desk.limits)
    assert taken(session, photo, desk.limits) is first
    Image.open(photo).rotate(180).resize((50, 40)).save(photo)
    second = taken(session, photo, desk.limits)
    assert (second.size, first.size) == ((40, 50), (64, 96))
    others = [photo.with_name(f"{k}.png") for k in range(MOST_UPLOADS)]
    for other in others[:-1]:
        shutil.copy(photo, other)
        taken(session, other, desk.limits)
        assert taken(session, photo, desk.limits) is second
    assert not first.path.exists()
    assert second.path.exists()
    assert len(list(session.folder.iterdir())) == MOST_UPLOADS
    others[-1].write_bytes(b"no picture")
    with refused("images"):
        taken(session, others[-1], desk.limits)
    assert len(list(session.folder.iterdir())) == MOST_UPLOADS


def test_a_job_deletes_what_earlier_jobs_of_its_tab_left(desk: Desk, session: Session, photo: Path):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'ddim[studio]'")
    from ddim.studio.parts import run as run_job

    made: list[EditOutcome] = []

    def edit(tab: str) -> None:
        session.wanted.add(tab)

        def work_of(_: Session) -> EditWork:
            return EditWork(desk, session, asked(desk, method="flow-edit"), taken(session, photo, desk.limits))

        list(run_job(session, tab, work_of, said=str, show=lambda *_: "", end=lambda job, _: made.append(job.result)))

    for tab in ("edit", "compare", "edit"):
        edit(tab)
    assert [one.png.exists() for one in made] == [False, True, True]
    assert len(list(session.folder.iterdir())) == 3  # two results and the picture


def layer(image: Image.Image, **settings: Any) -> bytes:
    """A layer as the image editor of a browser sends it."""
    file = io.BytesIO()
    image.save(file, "PNG", **settings)
    return file.getvalue()


def test_a_mask_is_where_the_brush_was(desk: Desk, upload: Upload, tmp_path: Path):
    assert mask_from([], upload, desk.limits) is None
    empty = Image.new("RGBA", (480, 320))
    assert mask_from([layer(empty)], upload, desk.limits) is None
    painted = empty.copy()
    painted.paste((0, 0, 0, 255), (0, 0, 240, 320))
    file = tmp_path / "layer.png"
    file.write_bytes(layer(painted))
    for second in (layer(painted), str(file)):
        mask = mask_from([layer(empty), second], upload, desk.limits)
        assert mask is not None
        assert (np.asarray(mask)[:, :48] == 255).all()
        assert not np.asarray(mask)[:, 48:].any()


def claims(data: bytes, width: int, height: int) -> bytes:
    """A PNG file whose header claims another size."""
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def test_a_mask_of_too_many_pixels_is_one_sentence(desk: Desk, upload: Upload, monkeypatch: pytest.MonkeyPatch):
    small = layer(Image.new("RGBA", (8, 8), "red"))
    monkeypatch.setattr("ddim.studio.pictures.decode", None)  # no layer is decoded
    with refused("mask", "1,001,000", 1):
        mask_from([claims(small, 1001, 1000)], upload, desk.limits)
    with refused("mask", "1,200,000", 1):
        mask_from([claims(small, 1000, 600)] * 2, upload, desk.limits)
    with refused("mask"):
        mask_from([claims(small, 60_000, 60_000)], upload, desk.limits)
    with refused("mask"):
        mask_from([b"no picture"], upload, desk.limits)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
showpage
%%EOF
"""


def test_a_file_is_decoded_by_its_content_and_only_if_it_has_pixels(
    desk: Desk, session: Session, upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def ghostscript(*args: Any, **_: Any) -> Any:
        asked.append(args)
        return Image.new("L", (8, 8)).im

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", ghostscript)
    picture = tmp_path / "a.png"
    picture.write_bytes(EPS)
    with refused("images", "a.png") as caught:
        taken(session, picture, desk.limits)
    assert str(tmp_path) not in str(caught.value)
    with refused("images", "a.png"):
        read_images(picture, (3, 8, 8))
    with refused("mask"):
        mask_from([EPS], upload, desk.limits)
    assert not asked


@pytest.mark.parametrize(
    ("size", "expected"), [((20, 10), (460, 230)), ((600, 500), (600, 500)), ((4000, 1000), (1024, 256))]
)
def test_what_a_browser_shows(size: tuple[int, int], expected: tuple[int, int]):
    assert shown(Image.new("RGB", size)).size == expected
