"""An edit at several strengths: a film from the source to the edit."""

from typing import Any

import pytest
import tiny_flow
import tiny_text
import torch
from refusals import refused
from torch import Tensor

import ddim
from ddim import EDITORS, StepEvent, even_strengths
from ddim.editing.strength import Reach
from ddim.models.base import Model
from ddim.pipelines.events import Event, ImagesEvent

SOURCE, TARGETS = "a cat on a mat", ["a dog on a mat", "a red face"]
STEPS = 4
PINNED = ["direct", "edit-friendly", "bdia", "flow-edit"]
"""Methods whose source does not depend on the number of steps."""


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_text.model(dtype=torch.float64)


def filmed(model: Model, method: str, strength: Any, target: Any = TARGETS[0], **settings: Any) -> ddim.Edited:
    images = settings.pop("images", tiny_text.pictures(1))
    if method not in EDITORS or EDITORS[method].steps is None:
        settings = {"steps": STEPS, **settings}
    settings = {"source_prompt": SOURCE, "guidance": 2.0, **settings}
    return ddim.edit(model, images, target, method=method, strength=strength, **settings)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("method", dict.fromkeys([*PINNED, *EDITORS]))
def test_each_frame_is_the_edit_at_its_strength(model: Model, method: str):
    if method in EDITORS and (why := ddim.capabilities(model)["editors"][method]):
        pytest.skip(why)
    strengths = [0.0, 0.3, 0.5, 0.9]
    film = filmed(model, method, strengths, TARGETS, images=tiny_text.pictures(2), batch=3)
    assert film.edits.shape[:2] == (2, 8)
    assert film.strengths == tuple(strengths)
    assert film.prompts == ((TARGETS[0],) * 4 + (TARGETS[1],) * 4,) * 2
    for m, strength in enumerate(strengths):
        alone = filmed(model, method, strength, TARGETS, images=tiny_text.pictures(2))
        assert apart(film.edits[:, m::4], alone.edits) < 1e-6
        assert apart(film.reconstruction, alone.reconstruction) < 1e-6
    assert torch.equal(film.edits[:, 0], film.reconstruction)
    assert apart(film.edits[:, 3], film.edits[:, 2]) > 1e-3


@pytest.mark.parametrize("method", [*PINNED, "ddim", "negative-prompt"])
@pytest.mark.parametrize("kind", ["sd", "flow"])
def test_a_film_is_smooth(model: Model, method: str, kind: str):
    """No frame leaps: the largest change is a small part of the film's, and more frames make it smaller."""
    images = tiny_text.pictures(1)
    if kind == "flow":
        model, images = tiny_flow.FAMILIES["sd3"].model(), torch.rand(1, 3, 16, 16, generator=seeded())

    def changes(strengths: list[float]) -> Tensor:
        film = filmed(model, method, strengths, images=images).edits[0].double()
        return (film[1:] - film[:-1]).flatten(1).norm(dim=1)

    strengths = even_strengths(25)  # every sixth begins a step
    found = changes(strengths)
    worst = int(found.argmax())
    assert 0 < float(found.max()) < 0.3 * float(found.sum())
    begin, end = strengths[worst], strengths[worst + 1]
    finer = changes([begin + (end - begin) * k / 6 for k in range(6)] + [end, 1.0])[:-1]
    assert float(finer.max()) < 0.5 * float(found.max())


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_images_are_inverted_once_and_events_count_to_the_end(model: Model, monkeypatch: pytest.MonkeyPatch):
    events: list[Event] = []
    codes: list[ddim.LatentCode] = []
    film = filmed(
        *(model, "direct", [0.0, 0.5, 1.0]),
        images=tiny_text.pictures(3),
        batch=4,
        on_event=events.append,
        on_code=codes.append,
    )
    steps = [event for event in events if isinstance(event, StepEvent)]
    assert len(codes) == 1
    assert len(steps) == STEPS + 2 * (1 + 2 + 4)  # two batches of sampling at each strength
    assert [event.done for event in steps] == list(range(1, len(steps) + 1))
    assert steps[-1].total == len(steps)
    images = [event for event in events if isinstance(event, ImagesEvent)]
    assert [event.first for event in images] == [0, 2]
    assert torch.equal(torch.cat([event.images for event in images])[:, 1:], film.edits)


@pytest.mark.parametrize("method", ["direct", "bdia", "flow-edit", "edit-friendly"])
def test_a_code_that_was_inverted_at_a_strength_keeps_it(model: Model, method: str, tmp_path):
    kept: list[ddim.LatentCode] = []
    strength = 0.6  # of four steps: two and a part
    first = filmed(model, method, strength, on_code=kept.append, seed=3)
    kept[0].save(tmp_path / "x.code.safetensors")
    code = ddim.LatentCode.load(tmp_path / "x.code.safetensors")
    seed: dict[str, Any] = {"seed": 3} if method == "flow-edit" else {}
    again = {"guidance": 2.0, **seed}
    if method != "bdia":  # which keeps all steps
        assert code.grid.steps == 3
        by_default = ddim.edit(model, code, TARGETS[0], **again)
        assert by_default.strengths == (strength,)
        assert apart(by_default.edits, first.edits) < 1e-9
        with refused("strength", 0.7, strength):
            ddim.edit(model, code, TARGETS[0], strength=0.7, **again)
    assert apart(ddim.edit(model, code, TARGETS[0], strength=strength, **again).edits, first.edits) < 1e-9
    weaker = ddim.edit(model, code, TARGETS[0], strength=0.3, **again)
    assert apart(weaker.edits, filmed(model, method, 0.3, seed=3).edits) < 1e-6


@pytest.mark.parametrize("skip", [0, 0.36, 2])
def test_a_strength_replaces_the_skipped_part(model: Model, skip: float):
    settings: dict[str, Any] = {"method": "edit-friendly", "options": {"skip": skip}, "steps": STEPS}
    for strength, left in ((1.0, 4), (0.75, 3), (0.6, 3), (0.1, 1)):
        code = ddim.invert(model, tiny_text.pictures(1), prompt=SOURCE, strength=strength, **settings)
        assert code.grid.steps == left
        edited = ddim.edit(
            model, tiny_text.pictures(1), TARGETS[0], source_prompt=SOURCE, strength=strength, **settings
        )
        assert edited.code.grid.steps == left


def test_windows_of_attention_count_the_same_steps_from_a_code(model: Model):
    how = ddim.AttentionEdit("refine", cross_steps=(0, 0.5), self_steps=(0, 0.5))
    kept: list[ddim.LatentCode] = []
    first = filmed(model, "direct", 0.75, attention=how, on_code=kept.append)
    assert apart(ddim.edit(model, kept[0], TARGETS[0], guidance=2.0, attention=how).edits, first.edits) < 1e-9
    film = filmed(model, "direct", [0.25, 0.75, 1.0], attention=how)
    assert apart(film.edits[:, 1:2], first.edits) < 1e-9


def test_a_resumed_inversion_has_the_same_strength(model: Model):
    def stop(event: Event) -> None:
        if isinstance(event, ddim.CodeEvent) and event.first == 1:
            raise KeyboardInterrupt

    settings: dict[str, Any] = {"prompt": SOURCE, "steps": STEPS, "batch": 1}
    with pytest.raises(ddim.Interrupted) as caught:
        ddim.invert(model, tiny_text.pictures(3), strength=0.6, on_event=stop, **settings)
    partial = caught.value.partial
    for other in (0.5, 0.55, None):
        with refused("resume"):
            ddim.invert(model, tiny_text.pictures(3), strength=other, resume=partial, **settings)
    whole = ddim.invert(model, tiny_text.pictures(3), strength=0.6, resume=partial, **settings)
    assert whole.settings["strength"] == 0.6
    assert torch.equal(whole.x, ddim.invert(model, tiny_text.pictures(3), strength=0.6, **settings).x)


def test_reaches_on_the_rest_of_a_grid():
    for strength in (0.1, 0.35, 0.5, 1.0):
        whole = Reach.of(strength, 10)
        for node in range(whole.begin + 1):
            rest = whole.on_rest(node)
            assert rest.before == node
            assert [rest.factor(i) for i in range(10 - node)] == [whole.factor(i) for i in range(node, 10)]
            assert Reach.of(strength, 10, node) == rest
        assert Reach.of(strength, 10, 9) == Reach(0, 1.0 if whole.begin < 9 else whole.part, 9)


def test_even_strengths_and_wrong_ones(model: Model):
    assert even_strengths(3) == [0.0, 0.5, 1.0]
    assert even_strengths(2, 0.25) == [0.0, 0.25]
    for count in (0, 1, 2.5, "9"):
        with refused("sweep", count):
            even_strengths(count)  # type: ignore[arg-type]
    for most in (0, 1.2):
        with refused("strength", most):
            even_strengths(3, most)
    for wrong, named in (([], "[]"), ([0.2, 1.5], 1.5), ([None, 0.5], "None"), (["half"], "half")):
        with refused("strength", named):
            filmed(model, "direct", wrong)


def test_a_trajectory_is_kept_only_where_there_is_one(model: Model):
    settings: dict[str, Any] = {"prompt": SOURCE, "steps": STEPS, "keep_trajectory": True}
    kept = ddim.invert(model, tiny_text.pictures(1), method="ddim", **settings)
    assert kept.extras["trajectory"].shape[1] == STEPS
    assert "pivot" in ddim.invert(model, tiny_text.pictures(1), method="direct", **settings).extras
    for method in ("bdia", "edit-friendly"):
        with refused("keep_trajectory", f"'{method}'"):
            ddim.invert(model, tiny_text.pictures(1), method=method, **settings)
