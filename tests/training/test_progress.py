"""What a run tells: a bar on a terminal, lines elsewhere, and nothing of its own where somebody listens."""

import io
import sys

import pytest
from training_helpers import make_images, tiny

from ddim.training import train
from ddim.training.config import OutputConfig
from ddim.training.progress import Event, Reporter


class Screen(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self):
        return True


def told(on_event=None):
    """A whole run of a reporter on a terminal; how many bars it drew, and what it wrote."""
    reporter = Reporter(OutputConfig("-", log_every=1, tensorboard=False), 2, 4, True, on_event)
    reporter.open(0)
    bar = reporter._bar
    reporter.step(1, 0.5, 1e-3, 1.0)
    reporter.event("done", 2, "Done.")
    reporter.close()
    return bar


def test_a_bar_is_drawn_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    assert told() is not None
    assert "training" in screen.getvalue()
    assert "Done." in screen.getvalue()


def test_no_bar_is_drawn_where_somebody_listens(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    events: list[Event] = []
    assert told(events.append) is None
    assert screen.getvalue() == ""
    assert [e.kind for e in events] == ["step", "done"]


def test_lines_are_written_where_there_is_no_terminal(capsys):
    assert told() is None
    assert capsys.readouterr().err.splitlines()[0].startswith("step 1/2  loss 0.5000")


def test_a_silent_process_of_several_says_nothing(capsys, tmp_path):
    reporter = Reporter(OutputConfig(str(tmp_path)), 2, 4, False, None)
    reporter.open(0)
    reporter.step(1, 0.5, 1e-3, 1.0)
    reporter.event("done", 2, "Done.")
    reporter.close()
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--json", "--quiet"])
def test_the_command_draws_no_bar_under_json_and_quiet(tmp_path, monkeypatch, flag):
    from training_helpers import tables, write_toml
    from typer.testing import CliRunner

    from ddim.cli.app import app
    from ddim.training import progress

    drawn = []
    monkeypatch.setattr(progress, "_rich_bar", lambda *_: drawn.append(1))
    monkeypatch.setattr(progress.sys.stderr.__class__, "isatty", lambda self: True, raising=False)
    file = write_toml(tables(make_images(tmp_path / "images"), tmp_path / "run"), tmp_path / "run.toml")
    assert CliRunner().invoke(app, ["train", str(file), flag]).exit_code == 0
    assert drawn == []


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("pixel", "next: ddim sample --model RUN/model"),
        ("autoencoder", 'next: a recipe with task = "text" and text.autoencoder = "RUN/model"'),
        ("text", 'next: ddim sample --model RUN/model --prompt "..."'),
        ("classifier", "next: ddim sample --classifier RUN/model --label 0"),
    ],
)
def test_the_command_says_what_the_model_is_for(tmp_path, monkeypatch, task, says):
    from training_helpers import make_words, task_config
    from typer.testing import CliRunner

    import ddim.training
    from ddim.cli.app import app

    images, run = tmp_path / "images", tmp_path / "run"
    words = make_words(tmp_path / "words.parquet")
    config = tiny(images, run) if task == "pixel" else task_config(task, words, run, images)
    monkeypatch.setattr(ddim.training, "load_config", lambda _: config)
    monkeypatch.setattr(ddim.training, "train", lambda *_, **__: run / "model")
    done = CliRunner().invoke(app, ["train", "x.toml"], env={"COLUMNS": "400"})
    assert done.exit_code == 0, done.output
    assert says.replace("RUN", str(run)) in " ".join(done.stdout.split())


def test_a_listener_hears_a_whole_run(tmp_path):
    events: list[Event] = []
    train(tiny(make_images(tmp_path / "images"), tmp_path / "run"), on_event=events.append)
    assert (events[0].kind, events[-1].kind) == ("start", "done")
