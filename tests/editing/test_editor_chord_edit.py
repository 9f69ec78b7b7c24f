"""ChordEdit against the paper's formulas, written out."""

import pytest
import torch
from refusals import refused
from written_out import ALPHA_BAR, BOTH, OTHER, SOURCE, TARGET, Written, assert_same, written

import ddim
from ddim.core.path import Node

SEED = 3


@pytest.fixture(params=BOTH, scope="module")
def tiny(request: pytest.FixtureRequest) -> Written:
    return written(request.param)


def at(tiny: Written, time: float) -> Node:
    """The node of a time in (0, 1): a timestep of 999, or sigma."""
    if tiny.model.schedule.prediction == "flow":
        return Node(time, 1 - time, time)
    label = round(999 * time)
    bar = float(ALPHA_BAR[label])
    return Node(label, bar**0.5, (1 - bar) ** 0.5)


@pytest.mark.parametrize("clean", [None, 0.3])
def test_chord_edit_is_the_papers_algorithm(tiny: Written, clean: float | None):
    t, delta, strength = 0.8, 0.25, 0.7 if clean is None else 1.0
    options = {"time": t, "delta": delta, "clean": clean, "draws_per_step": 2}
    settings = {"options": options, "guidance": 2.0, "strength": strength, "seed": SEED}
    source, ours = tiny.edited("chord-edit", **settings)
    _, other = tiny.edited("chord-edit", OTHER, **settings)
    noises, changes = tiny.noise(SEED, 2, source), []

    def seen(x: torch.Tensor, node: Node, noise: torch.Tensor, prompt: str) -> torch.Tensor:
        return tiny.guided(node.alpha * x + node.sigma * noise, node, prompt, 2.0)[0]

    for noise in noises:
        far, near = (
            seen(source, at(tiny, time), noise, TARGET) - seen(source, at(tiny, time), noise, SOURCE)
            for time in (t, t - delta)
        )
        changes.append((delta * far + t * near) / (t + delta))
    x = source + strength * torch.stack(changes).mean(0)
    if clean is not None:
        x = seen(x, at(tiny, clean), noises[0], TARGET)
    assert_same(ours, x, source, other)


def test_it_asks_for_four_rows_and_with_a_clean_up_for_five(monkeypatch: pytest.MonkeyPatch):
    tiny, rows = written("sd"), []
    unet = tiny.model.pipeline.unet  # type: ignore[attr-defined]
    hook = unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        tiny.edited("chord-edit", guidance=1.0)
        assert sum(rows) == 4
        rows.clear()
        tiny.edited("chord-edit", guidance=1.0, options={"clean": 0.3})
        assert sum(rows) == 5
    finally:
        hook.remove()


def test_settings_of_chord_edit_that_are_wrong_are_refused():
    wrong = {"time": 1.0, "delta": 0.9, "clean": 0.0, "draws_per_step": 0}
    for name, value in wrong.items():
        with refused(name, str(value)):
            ddim.make_editor("chord-edit", {name: value})
    with refused("steps", "3"):
        written("sd").edited("chord-edit", steps=3)
