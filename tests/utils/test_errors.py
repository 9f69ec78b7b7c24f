"""Errors are data: what was wrong, under which parameter, and what would do; the command spells the parameter."""

import pickle

import numpy as np
import pytest
import torch
import typer

import ddim
from ddim._utils.errors import DDIMError, InputError, NotFinite, UnknownName, is_number, is_whole
from ddim.cli.app import app
from ddim.cli.failure import code_and_sentence, speller


def command(*names: str):
    found = typer.main.get_command(app)
    for name in names:
        found = found.commands[name]  # type: ignore[attr-defined]
    return found


def test_a_sentence_has_the_parameter_the_message_and_the_hint():
    error = InputError("0 is too few.", parameter="steps", hint="Use 1 or more.")
    assert str(error) == "steps: 0 is too few. Use 1 or more."
    assert (error.message, error.parameter, error.hint) == ("0 is too few.", "steps", "Use 1 or more.")
    assert str(InputError("Something is wrong.")) == "Something is wrong."
    assert isinstance(error, ValueError)


def test_an_unknown_name_keeps_what_was_asked_and_what_there_is():
    error = UnknownName("method", "bdai", ["ddim", "bdia"])
    assert (error.kind, error.name, error.known, error.nearest) == ("method", "bdai", ("bdia", "ddim"), "bdia")
    assert error.parameter == "method"
    assert str(error) == "Unknown method 'bdai'. Did you mean 'bdia'? Known: bdia, ddim."
    assert UnknownName("method", "zzz", ["ddim"]).nearest is None


@pytest.mark.parametrize(
    "error",
    [
        InputError("0 is too few.", parameter="steps", hint="Use 1."),
        UnknownName("method", "bdai", ["ddim", "bdia"], hint="Or another."),
        NotFinite("The sample is NaN.", step=3, hint="Try float32."),
        DDIMError("The disk is full."),
    ],
    ids=lambda e: type(e).__name__,
)
def test_errors_survive_another_process(error: DDIMError):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.__dict__ == error.__dict__
    assert str(copy) == str(error)


@pytest.mark.parametrize(
    ("names", "parameter", "flag"),
    [
        (("sample",), "steps", "--steps"),
        (("sample",), "clip_x0", "--clip"),
        (("sample",), "labels", "--label"),
        (("sample",), "prompt", "--prompt"),
        (("edit",), "prompt", "--to"),
        (("edit",), "source_prompt", "--from"),
        (("edit",), "self_steps", "--self"),
        (("edit",), "blend_start", "--blend-start"),
        (("evaluate", "table1"), "eta", "--eta"),
        (("train",), "data.size", "data.size"),  # a key of the recipe: no flag, so it stays as it is
        (("invert",), "eta", "eta"),
    ],
)
def test_a_command_spells_parameters_as_its_own_flags(names: tuple[str, ...], parameter: str, flag: str):
    error = InputError("that will not do.", parameter=parameter)
    assert code_and_sentence(error, command(*names)) == (2, f"{flag}: that will not do.")
    assert speller(None)(parameter) == parameter


def test_a_network_that_answers_nan_is_an_error_that_knows_its_step():
    path = ddim.ddpm_linear()
    grid = ddim.make_grid(path, 5)

    def broken(x, node):
        bad = node.t < grid[1].t
        return ddim.to_pair("eps", x * float("nan") if bad else x, x, node)

    solver = ddim.make_solver("ddim")
    with pytest.raises(NotFinite) as caught:
        ddim.solve(broken, solver, solver.init(torch.randn(1, 1, 4, 4), grid), grid)
    assert caught.value.step == 3  # grid[0] and grid[1] answer numbers; the step that asks at grid[2] does not


@pytest.mark.parametrize("value", [3, np.int64(3), np.array(3), torch.tensor(3)])
def test_one_integer_of_any_library_is_whole(value):
    assert is_whole(value)


@pytest.mark.parametrize(
    "value", [True, 3.0, "3", None, np.array([1, 2]), np.array(1.5), torch.tensor(1.5), torch.tensor([1, 2]), [3]]
)
def test_what_counts_nothing_is_not_whole(value):
    assert not is_whole(value)


@pytest.mark.parametrize("value", [True, torch.tensor(True), np.bool_(True)])
def test_a_truth_value_is_no_number(value: object):
    assert not is_whole(value)
    assert not is_number(value)
    assert is_whole(np.int64(2))
    assert is_number(torch.tensor(0.5))
