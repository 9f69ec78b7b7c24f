"""What is wrong is said before the first step, and what is done is written when it is done."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_text
import torch
import training_helpers
from commands import fails, picture, run_json
from typer.testing import CliRunner

import ddim
from ddim._utils.names import LONGEST, protect, shortened, slug
from ddim.cli import signals
from ddim.cli.app import app, main
from ddim.cli.files import PNG, phrase, target
from ddim.data.images import sheet_size
from ddim.inversion import partial as partials
from ddim.inversion.photograph import MOST_PIXELS
from ddim.models.counted import Counted
from ddim.pipelines.events import CodeEvent, StepEvent

JAPANESE = "帽子をかぶった犬の顔がこちらを見ているとても大きな絵を描いてくださいお願いします"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "words"
    tiny_text.pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a network was asked."""
    calls: list[int] = []
    forward = Counted.forward

    def counting(self: Counted, *a: Any) -> Any:
        calls.append(1)
        return forward(self, *a)

    monkeypatch.setattr(Counted, "forward", counting)
    return calls


def colour(path: str, size: int = 32) -> Path:
    from ddim.data.images import save_image

    return save_image(tiny_text.pictures(1, size, size)[0], path)


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_name_is_cut_by_bytes_between_letters_and_still_its_own():
    assert len(os.fsencode(phrase(JAPANESE))) <= 40 + 7
    assert phrase(JAPANESE) != phrase(f"{JAPANESE}犬")
    assert phrase("犬の顔") == "犬の顔"
    assert shortened("a" * LONGEST) == "a" * LONGEST
    one, two = (shortened(f"{'犬' * 100}{end}") for end in "ab")
    assert one != two
    assert one.startswith("犬" * (LONGEST // 3) + "-")
    assert len(os.fsencode(slug("犬" * 80))) <= 107
    assert len(os.fsencode(target(None, "x" * 300, PNG).name)) <= LONGEST + 7 + 4


def test_long_prompts_and_a_long_file_name_make_a_name_that_can_be_written(words: str):
    cat = colour(f"{'猫' * 70}.png")
    said = run_json("invert", cat, "-m", words, "-p", JAPANESE, "--negative", JAPANESE[::-1], "-w", 2, "-S", 2)
    other = run_json("invert", cat, "-m", words, "-p", JAPANESE, "--negative", JAPANESE[1:], "-w", 2, "-S", 2)
    assert said["files"] != other["files"]
    assert len(ddim.LatentCode.load(said["files"][0])) == 1
    made = ["--from", JAPANESE, "--to", JAPANESE[::-1], "--negative", JAPANESE[1:], "--blend", JAPANESE, "-S", 2]
    edited = run_json("edit", cat, "-m", words, *made[:6], "-S", 2, "--each")
    assert all(Path(file).is_file() for file in edited["files"])
    again = run_json("sample", "-m", words, "-S", 2, "--each", "-p", JAPANESE, "-p", "犬")
    assert all(Path(file).is_file() for file in again["files"])


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (f"{'y' * 230}.png", "234 bytes"),
        (f"{'y' * 300}/x.png", "300 bytes"),
        ("file/x.png", "file is not a folder"),
        ("file/deep/x.png", "file is not a folder"),
        ("taken.png", "it is a folder"),
        ("/proc/x.png", "created in /proc"),
        ("/proc/none/x.png", "created in /proc"),
    ],
)
def test_what_cannot_be_written_is_said_and_leaves_nothing(path: str, said: str):
    Path("file").write_text("in the way")
    Path("taken.png").mkdir()
    with pytest.raises(ddim.InputError, match=said) as error:
        protect([Path(path)])
    assert error.value.parameter == "out"
    assert sorted(os.listdir()) == ["file", "taken.png"]


COMMANDS: list[tuple[list[str], str]] = [
    (["sample", "-m", "MODEL", "-n", "1", "-S", "2", "--out"], ""),
    (["sample", "-m", "MODEL", "-n", "1", "-S", "2", "--out"], "/page.png"),
    (["invert", "shirt.png", "-m", "MODEL", "-S", "2", "--out"], ""),
    (["invert", "shirt.png", "coat.png", "-m", "MODEL", "-S", "2", "--out"], ""),
    (["reconstruct", "shirt.code.safetensors", "-m", "MODEL", "--out"], ""),
    (["interpolate", "shirt.png", "coat.png", "-m", "MODEL", "-S", "2", "--out"], ""),
    (["evaluate", "table2", "-m", "MODEL", "-S", "2", "--data", "pictures", "--out"], ""),
    (["evaluate", "consistency", "-m", "MODEL", "-S", "2", "-n", "2", "--reference", "3", "--out"], ""),
    (["evaluate", "interpolation", "-m", "MODEL", "-S", "2", "-n", "2", "--frames", "3", "--out"], ""),
    (["evaluate", "table1", "-m", "MODEL", "-S", "2", "-n", "2", "--out"], ""),
    (["evaluate", "leaderboard", "-m", "MODEL", "-S", "2", "--data", "pictures", "--out"], ""),
    (["evaluate", "fid", "-m", "MODEL", "-S", "2", "-n", "2", "--data", "pictures", "--out"], ""),
    (["evaluate", "edits", "recipe.toml", "-m", "MODEL", "--out"], ""),
    (["evaluate", "pie-bench", "-m", "MODEL", "--data", "pictures", "--out"], ""),
    (["demo", "-m", "MODEL", "--images", "pictures", "--editor", "", "--out"], ""),
]


@pytest.mark.parametrize("place", ["/proc/out", "shirt.png/out"])
@pytest.mark.parametrize(("command", "more"), COMMANDS, ids=lambda v: " ".join(v[:2]) if isinstance(v, list) else v)
def test_every_command_says_first_where_it_cannot_write(
    command: list[str], more: str, place: str, model: str, asked: list[int]
):
    for k, name in enumerate(("shirt", "coat")):
        picture(Path(f"{name}.png"), k)
    Path("pictures").mkdir()
    for k in range(4):
        picture(Path("pictures") / f"{k}.png", k)
    code = ddim.invert(ddim.load(model), "shirt.png", steps=2)
    code.save("shirt.code.safetensors")
    training_helpers.write_toml(training_helpers.tables(Path("pictures"), Path("run")), Path("recipe.toml"))
    filled = [model if word == "MODEL" else word for word in command]
    sentence = fails(*filled, f"{place}{more}", code=2)
    assert sentence.startswith("Error: --out: ")
    assert place.partition("/out")[0] in sentence
    assert asked == []


def test_training_says_first_what_lies_in_the_way(tmp_path: Path):
    pytest.importorskip("accelerate")
    config = training_helpers.tables(training_helpers.make_images(tmp_path / "pictures"), tmp_path / "run")
    toml = training_helpers.write_toml(config, tmp_path / "mini.toml")
    (tmp_path / "run").mkdir()
    for name in ("checkpoints", "samples", "model"):
        (tmp_path / "run" / name).write_text("in the way")
        assert f"{name} is not a folder" in fails("train", toml, code=2)
        (tmp_path / "run" / name).unlink()


def test_training_on_data_that_are_not_there_leaves_nothing(tmp_path: Path):
    pytest.importorskip("accelerate")
    config = training_helpers.tables(tmp_path / "nowhere", Path("runs/deep/run"))
    toml = training_helpers.write_toml(config, tmp_path / "mini.toml")
    before = sorted(os.listdir())
    assert "nowhere" in fails("train", toml, code=2)
    assert sorted(os.listdir()) == before


# --- two things that do not go together ------------------------------------------------------------------------------


def test_sizes_and_settings_that_do_not_go_together_are_said_before_the_walk(words: str, asked: list[int]):
    small, large = colour("small.png"), colour("large.png", 48)
    said = [run_json("invert", p, "-m", words, "-S", 2, "--no-check")["files"][0] for p in (small, large)]
    asked.clear()
    assert "different sizes" in fails("interpolate", small, large, "-m", words, "-S", 2, code=2)
    assert "different sizes" in fails("interpolate", said[0], large, "-S", 2, "--method", "ddim", code=2)
    assert "methods" in fails("interpolate", said[0], small, "-S", 2, "--method", "heun", code=2)
    assert "steps" in fails("interpolate", said[0], small, "-S", 3, "--method", "ddim", code=2)
    assert "--frames" in fails("interpolate", small, small, "-m", words, "--frames", 1, code=2)
    assert "through" in fails("interpolate", small, small, "-m", words, "--through", "sate", code=2)
    assert "different sizes" in fails("reconstruct", *said, "--sheet", code=2)
    assert "resize" in fails("reconstruct", said[0], "--original", large, code=2)
    assert asked == []


def test_a_code_that_does_not_fit_is_said_before_another_is_walked(model: str, asked: list[int]):
    wide = tiny.pipeline_folder(Path("wide"), tiny.unet(size=16))
    picture(Path("shirt.png")), picture(Path("large.png"), size=16)
    one = run_json("invert", "shirt.png", "-m", model, "-S", 2, "--no-check")["files"][0]
    two = run_json("invert", "large.png", "-m", wide, "-S", 2, "--no-check")["files"][0]
    asked.clear()
    assert "(1, 16, 16)" in fails("reconstruct", one, two, "-m", model, code=2)
    assert asked == []


# --- what is done is written when it is done --------------------------------------------------------------------------


class Killed(BaseException):
    """As a kill: nothing in the library may take it for its own."""


def killed(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The command ends, without any clean-up of its own, once so many network calls are made."""
    calls: list[int] = []
    forward = Counted.forward

    def counting(self: Counted, *a: Any) -> Any:
        if len(calls) == after:
            raise Killed
        calls.append(1)
        return forward(self, *a)

    monkeypatch.setattr(Counted, "forward", counting)


def after_kill(calls: int, *words: object) -> list[str]:
    """The files that a command left which was killed after so many network calls."""
    before = set(Path().rglob("*"))
    with pytest.MonkeyPatch.context() as patch:
        killed(patch, calls)
        with pytest.raises(Killed):
            CliRunner().invoke(app, [str(w) for w in words])
    return sorted(str(p) for p in set(Path().rglob("*")) - before if p.is_file())


def same_files(files: list[str], whole: Path) -> None:
    assert files
    for file in files:
        assert Path(file).read_bytes() == (whole / Path(file).name).read_bytes(), file


def test_invert_writes_each_batch_when_it_is_done(model: str):
    images = [picture(Path(f"{k}.png"), k) for k in range(5)]
    words = ["invert", *images, "-m", model, "-S", 3, "--batch", 2]
    run_json(*words, "--out", "whole")
    left = after_kill(2 * 3 + 1, *words, "--out", "left")
    assert left == [f"left/{k}_ddim_S3_on-small.code.safetensors" for k in range(4)]
    same_files(left, Path("whole"))


@pytest.mark.parametrize("method", ["ddim", "edit-friendly"])
def test_a_code_of_many_pictures_goes_on_from_the_batches_that_were_done(words: str, method: str):
    images = [colour(f"{k}.png") for k in range(5)]
    command = ["invert", *images, "-m", words, "-p", "a cat", "-S", 4, "--batch", 2, "--method", method, "--together"]
    (whole,) = run_json(*command, "--out", "whole", "--no-check")["files"]
    calls = 3 if method == "edit-friendly" else 4
    (left,) = after_kill(2 * calls, *command, "--out", "left")
    assert left.endswith(".code.safetensors.partial")
    assert ddim.LatentCode.load(left).settings["partial"]["done"] == 4
    held = Path(left).read_bytes()
    again = CliRunner().invoke(app, [str(word) for word in (*command, "--out", "left")])
    assert (again.exit_code, Path(left).read_bytes()) == (2, held)  # begun anew, it would be written over
    assert "--resume" in again.stderr
    (code,) = run_json(*command, "--out", "left", "--resume", left, "--no-check")["files"]
    assert Path(code).read_bytes() == Path(whole).read_bytes()
    assert os.listdir("left") == [Path(code).name]


def test_ctrl_c_keeps_the_batches_that_are_done_whatever_the_method():
    tiny_model, images = tiny.model(), torch.rand(3, 1, 8, 8)
    seen: list[int] = []

    def stop(event: object) -> None:
        if isinstance(event, StepEvent) and event.done == 5:
            raise KeyboardInterrupt

    def hear(event: object) -> None:
        if isinstance(event, CodeEvent):
            seen.append(event.first)

    with pytest.raises(ddim.Interrupted) as error:
        ddim.invert(tiny_model, images, steps=4, method="belm", batch=1, on_event=stop)
    begun = error.value.partial
    assert begun.settings[partials.KEY] == {"images": 3, "done": 1, "steps": 0, "batch": 1}
    code = ddim.invert(tiny_model, images, steps=4, method="belm", resume=begun, on_event=hear)
    whole = ddim.invert(tiny_model, images, steps=4, method="belm", batch=1)
    assert all(torch.equal(code.state[key], whole.state[key]) for key in whole.state)
    assert all(torch.equal(code.calls[key], whole.calls[key]) for key in ("rows", "place"))
    assert torch.equal(ddim.reconstruct(tiny_model, code), ddim.reconstruct(tiny_model, whole))
    assert seen == [0, 1, 2]


def test_reconstruct_writes_each_batch_when_it_is_done(model: str):
    images = [picture(Path(f"{k}.png"), k) for k in range(3)]
    (three,) = run_json("invert", *images, "-m", model, "-S", 3, "--together", "--no-check")["files"]
    (one,) = run_json("invert", images[0], "-m", model, "-S", 3, "--no-check")["files"]
    words = ["reconstruct", one, three, "--batch", 2]
    run_json(*words, "--out", "whole")
    left = after_kill(3 + 3 + 1, *words, "--out", "left")
    first, several = (file.removesuffix(".code.safetensors") for file in (one, three))
    names = (f"{first}_recon", f"{several}_recon_0", f"{several}_recon_1")
    assert left == [f"left/{name}.png" for name in names]
    same_files(left, Path("whole"))


def test_each_picture_of_a_sheet_is_written_when_its_batch_is_done(model: str):
    words = ["sample", "-m", model, "-n", 5, "-S", 2, "--batch", 2, "--each"]
    run_json(*words, "--out", "whole.png")
    left = after_kill(2 * 2 + 1, *words, "--out", "left.png")
    assert left == [f"left/small_ddim_S2_eta0_seed{k}.png" for k in range(4)]
    same_files(left, Path("whole"))
    ends = [picture(Path(f"{k}.png"), k) for k in range(2)]
    walk = ["interpolate", *ends, "-m", model, "-S", 2, "--method", "ddim", "--frames", 5, "--batch", 2, "--each"]
    run_json(*walk, "--out", "path.png")
    left = after_kill(2 * 2 + 2 * 2, *walk, "--out", "cut.png")
    assert left == [f"cut/cut_{k}.png" for k in range(4)]
    for file in left:
        assert Path(file).read_bytes() == Path(file.replace("cut", "path")).read_bytes()


def test_an_edit_keeps_the_walk_back_until_it_is_done(words: str):
    command = ["edit", colour("cat.png"), "-m", words, "--from", "a cat", "--to", "a dog", "-S", 3]
    (left,) = after_kill(3 + 1, *command, "--out", "left")
    assert left.endswith(".code.safetensors")
    assert len(ddim.LatentCode.load(left)) == 1
    run_json(*command, "--out", "left")
    assert not Path(left).exists()
    assert sorted(p.suffix for p in Path("left").iterdir()) == [".json", ".png"]


def test_edits_of_several_pictures_are_written_batch_by_batch(words: str):
    cats = [colour(f"{k}.png") for k in range(3)]
    (code,) = run_json("invert", *cats, "-m", words, "-p", "a cat", "-w", 3, "-S", 2, "--together")["files"]
    command = ["edit", code, "--to", "a dog", "--to", "a tiger", "--each", "--batch", 3]
    run_json(*command, "--out", "whole.png")
    left = after_kill(2 * 2 + 1, *command, "--out", "left.png")
    assert len(left) == 2 * 3
    same_files(left, Path("whole"))


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_does_as_ctrl_c_and_handlers_are_back_afterwards(
    name: str, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    from ddim.inversion.null_text import NullText

    number, tune, seen = getattr(signal, name), NullText._tune, list[int]()

    def stopping(self: Any, *a: Any, **k: Any) -> Any:
        seen.append(1)
        if len(seen) == 3:
            os.kill(os.getpid(), number)
        return tune(self, *a, **k)

    monkeypatch.setattr(NullText, "_tune", stopping)
    command = ["invert", str(colour("cat.png")), "-m", words, "-p", "a cat", "-w", "5", "--method", "null-text"]
    monkeypatch.setattr("sys.argv", ["ddim", *command, "-S", "4", "-o", "inner=2"])
    before = signal.signal(number, signal.SIG_DFL)  # under nohup it would be ignored, and rightly
    try:
        with pytest.raises(SystemExit) as end:
            main()
        after = signal.getsignal(number)
    finally:
        signal.signal(number, before)
    assert end.value.code == code
    assert "goes on" in capsys.readouterr().err
    assert signals.exit_code() == 130  # the next command in this process has its own
    (partial,) = Path().glob("*.partial")
    assert ddim.LatentCode.load(partial).settings["partial"]["steps"] == 2
    assert after is signal.SIG_DFL


def test_a_second_signal_ends_at_once_and_an_ignored_one_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.as_ctrl_c():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert callable(signal.getsignal(signal.SIGTERM))
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
        signals.forget()


# --- numbers that cannot be ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["sample", "--scale", "3000"], "--scale"),
        (["sample", "--columns", "1000000000"], "--columns"),
        (["sample", "--count", "1000000000"], "--count"),
        (["sample", "--count", "1000000000", "--each"], "--count"),
        (["sample", "--seed", str(2**63 - 3)], "--seed"),
        (["sample", "--seed", str(2**80)], "--seed"),
        (["interpolate", "a.png", "b.png", "--frames", "1000000000"], "--frames"),
        (["interpolate", "a.png", "b.png", "--scale", "3000"], "--scale"),
        (["interpolate", "a.png", "b.png", "a.png", "b.png", "--grid", "99999x99999"], "--grid"),
        (["reconstruct", "a.code.safetensors", "--scale", "99999"], "--scale"),
        (["evaluate", "interpolation", "--frames", "1000000001", "-S", "2"], "--frames"),
        (["evaluate", "consistency", "--seed", str(2**63 - 3), "-S", "2", "--reference", "3"], "--seed"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else v,
)
def test_numbers_that_cannot_be_are_refused_before_the_work(words: list[str], flag: str, model: str, asked: list[int]):
    for k, name in enumerate("ab"):
        picture(Path(f"{name}.png"), k)
    ddim.invert(ddim.load(model), "a.png", steps=2).save("a.code.safetensors")
    before = sorted(os.listdir())
    assert fails(*words, "-m", model, code=2).startswith(f"Error: {flag}: ")
    assert asked == []
    assert sorted(os.listdir()) == before


def test_an_edit_refuses_a_scale_before_the_walk(words: str, asked: list[int]):
    words_ = ["edit", colour("cat.png"), "-m", words, "--from", "a cat", "--to", "a dog", "-S", 2, "--scale", 3000]
    assert fails(*words_, code=2).startswith("Error: --scale: 3000 ")
    assert asked == []


def test_a_large_batch_is_no_mistake(model: str):
    assert run_json("sample", "-m", model, "-n", 2, "-S", 2, "--batch", 10**9)["count"] == 2


@pytest.mark.parametrize(
    ("count", "columns", "scale", "named"),
    [(4, None, 3000, "scale"), (4, 10**7, 1, "columns"), (10**9, None, 1, "count"), (10**9, None, 5, "count")],
)
def test_the_number_that_makes_a_sheet_too_large_is_named(count: int, columns: int | None, scale: int, named: str):
    with pytest.raises(ddim.InputError) as error:
        sheet_size(count, (28, 28), columns, scale=scale)
    assert error.value.parameter == named


def test_the_largest_sheet_is_what_pillow_opens():
    from PIL import Image

    assert Image.MAX_IMAGE_PIXELS is not None
    assert 2 * Image.MAX_IMAGE_PIXELS in (MOST_PIXELS, MOST_PIXELS - 1, MOST_PIXELS + 1)
    assert sheet_size(1, (10, 20), gap=0) == (20, 10)
    assert sheet_size(5, (10, 20), 3, scale=2, gap=2) == (3 * 42 + 2, 2 * 22 + 2)


def test_only_a_network_that_lacks_memory_asks_for_a_smaller_batch(model: str, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("ddim.models.pixel.scalar", full)
        sentence = fails("sample", "-m", model, "-n", 3, "-S", 2, code=1)
    assert "3 images in one network call" in sentence
    assert "--batch" in sentence
    with monkeypatch.context() as patch:
        patch.setattr("ddim.data.images.sheet", full)
        sentence = fails("sample", "-m", model, "-n", 3, "-S", 2, code=1)
    assert "--batch" not in sentence


@pytest.mark.parametrize(
    "words", [["edit", "a.code.safetensors", "--to", "x"], ["interpolate", *["a.code.safetensors"] * 2]]
)
@pytest.mark.parametrize("option", [["--seed", "1"], ["--method", "ddim"], ["-S", "2"], ["--clip", "1"], ["--resize"]])
def test_settings_of_the_inversion_are_refused_for_codes_before_the_work(
    words: list[str], option: list[str], model: str, asked: list[int]
):
    ddim.invert(ddim.load(model), picture(Path("a.png")), steps=2).save("a.code.safetensors")
    flag = {"-S": "--steps"}.get(option[0], option[0])
    assert fails(*words, *option, "-m", model, code=2).startswith(f"Error: {flag}: ")
    assert asked == []
