"""Options are declared once: what a command shows is what the library does, and a command line can be repeated."""

import inspect
import shlex
from dataclasses import fields, replace
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

import ddim
from ddim.cli import edit, interpolate, invert, options, sample
from ddim.cli.command import Command, running, typed
from ddim.cli.failure import Commands
from ddim.cli.groups import Options, grouped
from ddim.cli.repeat import repeat
from ddim.editing.plan import AttentionEdit
from ddim.pipelines.edit_asked import DEFAULTS

VERBS = [(sample.sample, ddim.sample), (invert.invert, ddim.invert), (edit.edit, ddim.edit)]


def groups(command: Any) -> list[Options]:
    values = [p.default for p in inspect.signature(command).parameters.values()]
    return [value for value in values if isinstance(value, Options)]


@pytest.mark.parametrize(("command", "verb"), VERBS, ids=lambda v: v.__name__)
def test_every_option_is_an_argument_of_the_verb_with_its_default(command: Any, verb: Any):
    parameters = inspect.signature(verb).parameters
    seen = 0
    for group in groups(command):
        target = inspect.signature(AttentionEdit).parameters if isinstance(group, edit.Attention) else parameters
        for one in fields(group):
            name = one.metadata.get("argument", one.name)
            if "typer" not in one.metadata or name is None:
                continue
            seen += 1
            shown, own = getattr(group, one.name), target[name].default
            if own is None and verb is ddim.edit:
                own = DEFAULTS.get(name)
            assert shown in (None, own) or (own is None and shown == ()), name
    assert seen > 5


@pytest.mark.parametrize("command", [*(verb[0] for verb in VERBS), interpolate.interpolate], ids=lambda c: c.__name__)
def test_an_option_with_a_tag_changes_the_name_of_a_file(command: Any):
    for group in groups(command):
        for one in fields(group):
            if "tag" in one.metadata:
                other = 3 if isinstance(one.default, int) else 0.25 if "float" in str(one.type) else "other"
                assert one.metadata["tag"] in replace(group, **{one.name: other}).tags
                assert one.metadata["tag"] not in group.tags


def test_what_was_left_out_is_no_argument():
    assert options.Grid().arguments == {}
    asked = options.Grid(
        steps=50, spacing="9,5", options=["gamma=0.9"], typed=frozenset({"steps", "spacing", "options"})
    )
    assert asked.arguments == {"steps": 50, "spacing": [9.0, 5.0], "options": {"gamma": "0.9"}}
    assert asked.count(50) == 2


def app_of(function: Any) -> typer.Typer:
    app = typer.Typer(cls=Commands)
    app.command("probe", cls=Command)(grouped(function))
    app.command("other", cls=Command)(grouped(invert.invert))
    return app


def test_a_line_repeats_what_was_typed_and_nothing_else():
    said: list[Any] = []

    def probe(
        image: str,
        run: options.Grid = options.Grid(steps=7),
        guiding: options.Guiding = options.Guiding(),
        each: options.Each = False,
    ) -> None:
        now = running()
        assert now is not None
        said.extend([repeat(), repeat(steps=3, each=None), repeat("x other", images=image, each=None), typed()])
        said.extend([run.steps, guiding.guidance, now.as_json])

    line = "probe 'a b.png' --option a=1 --option b=2 --guidance 0.1 --each"
    result = CliRunner().invoke(app_of(probe), [*shlex.split(line), "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    again, changed, other, names, *rest = said
    assert sorted(shlex.split(again)[2:]) == sorted(shlex.split(line)[1:])
    assert "--steps 3" in changed
    assert "--each" not in changed
    assert shlex.split(other)[:3] == ["x", "other", "a b.png"]
    assert "--each" not in other  # which the other command does not have
    assert names == {"image", "options", "guidance", "each"}
    assert rest == [7, 0.1, True]
    assert running() is None


def test_every_command_takes_the_output_flags_and_none_declares_them():
    for command in (sample.sample, invert.invert, interpolate.interpolate, edit.edit):
        assert not {"json", "quiet", "debug"} & set(inspect.signature(command).parameters)


def test_a_flag_that_switches_off_and_a_name_like_a_flag_are_repeated():
    said: list[str] = []

    def probe(image: str, check: Annotated[bool, typer.Option("--check/--no-check")] = True) -> None:
        said.append(repeat())

    for words in (["probe", "a.png", "--no-check"], ["probe", "--no-check", "--", "-a.png"]):
        assert CliRunner().invoke(app_of(probe), words).exit_code == 0
    assert [line.partition("probe ")[2] for line in said] == ["a.png --no-check", "--no-check -- -a.png"]
