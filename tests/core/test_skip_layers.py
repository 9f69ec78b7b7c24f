"""Skip-layer guidance: which steps take part, what is added, and how it is kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bits import inverted, returned, same
from refusals import refused
from tiny_flow import FAMILIES

import ddim
from ddim import Guidance, SkipLayers
from ddim.core.denoiser import Call
from ddim.core.guidance import skip_term
from ddim.solvers import REVERSIBLE

GRID = ddim.make_grid(ddim.RectifiedFlow(), 40)


@pytest.mark.parametrize(("start", "stop"), [(0.01, 0.2), (0.0, 1.0), (0.1, 0.15), (0.3, 0.6)])
def test_the_steps_are_those_of_the_pipeline(start: float, stop: float):
    """``i > S start and i < S stop`` for the node of step i, and for every node within the step."""
    skip = SkipLayers((7, 8, 9), interval=(start, stop)).on(GRID)
    for i in range(GRID.steps):
        wanted = i > GRID.steps * start and i < GRID.steps * stop
        assert skip.applies(GRID[i]) is wanted, i
        assert skip.applies(GRID.between(i, 0.5)) is wanted, i
    assert not skip.applies(GRID[GRID.steps])


def test_an_interval_without_a_step_and_a_missing_grid_are_refused():
    with refused("skip_steps", 40):
        SkipLayers((0,), interval=(0.01, 0.02)).on(GRID)
    with refused("skip"):
        SkipLayers((0,)).applies(GRID[1])


@pytest.mark.parametrize(
    ("values", "parameter"),
    [
        ({"layers": ()}, "skip_layers"),
        ({"layers": (1, 1)}, "skip_layers"),
        ({"layers": (-1,)}, "skip_layers"),
        ({"layers": 7}, "skip_layers"),
        ({"scale": float("nan")}, "skip_scale"),
        ({"interval": (0.5, 0.5)}, "skip_steps"),
        ({"interval": (0.5, 1.5)}, "skip_steps"),
        ({"window": (0.5,)}, "window"),
    ],
)
def test_bad_settings(values: dict[str, Any], parameter: str):
    with refused(parameter):
        SkipLayers(**{"layers": (7,), **values})


def test_options_come_back():
    guidance = Guidance(5.0, skip=SkipLayers([7, 8], 2.0, (0.1, 0.3))).on(GRID)  # type: ignore[arg-type]
    assert Guidance.of(guidance.options) == guidance
    assert guidance.on(ddim.make_grid(ddim.RectifiedFlow(), 3)) == guidance  # a window that is set is kept


@pytest.fixture(scope="module")
def model() -> Any:
    return FAMILIES["sd3"].model()


SKIP = SkipLayers((0,), 2.8, (0.0, 0.7))


def test_what_is_added_is_the_difference_to_a_network_without_the_layers(model: Any):
    grid = model.schedule.grid(4)
    x, both, node = torch.randn(2, *model.shape), model.condition(None, 2, "a cat"), grid[1]
    guidance = Guidance(5.0, skip=SKIP).on(grid)
    plain, led = (model.guided(g, both)(x, node) for g in (Guidance(5.0), guidance))
    (cond,) = model.ask(x, node, both.cond)
    (skipped,) = model.ask(x, node, both.cond, call=Call(skip=(0,)))
    assert not torch.equal(cond, skipped)
    added = (led.eps - led.x0) - (plain.eps - plain.x0)  # velocities
    assert torch.allclose(added, 2.8 * (cond - skipped), atol=1e-4)


def test_it_acts_only_where_guidance_acts(model: Any):
    grid = model.schedule.grid(4)
    x, both, node = torch.randn(1, *model.shape), model.condition(None, 1, "a cat"), grid[1]
    (output,) = model.ask(x, node, both.cond)
    for guidance, acts in (
        (Guidance(5.0, skip=SKIP), True),
        (Guidance(5.0, interval=(0.0, 0.1), skip=SKIP), False),
        (Guidance(1.0, skip=SKIP), False),
    ):
        term = skip_term(model, guidance.on(grid), x, node, both.cond, output, Call())
        assert (term is not None) is acts


@pytest.mark.filterwarnings("ignore::ddim._utils.errors.DDIMWarning")
@pytest.mark.parametrize("name", REVERSIBLE)
def test_the_bit_law_holds(name: str, model: Any, tmp_path: Path):
    picture = torch.rand(1, *model.picture, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"steps": 4, "method": name, "prompt": "a cat"}
    code, begun = inverted(model, picture, guidance=Guidance(5.0, skip=SKIP), **settings)
    loaded = ddim.LatentCode.load(code.save(tmp_path / "a.code"))
    assert Guidance.of(loaded.guidance).skip == SKIP.on(code.grid)
    assert same(returned(model, loaded)[1], begun)
    without = {key: value for key, value in code.guidance.items() if key != "skip"}
    assert not same(returned(model, replace(code, guidance=without))[1], begun)


def test_null_text_tunes_with_it(model: Any):
    picture = torch.rand(1, *model.picture, generator=torch.Generator().manual_seed(0))
    losses: dict[bool, list[float]] = {True: [], False: []}
    for skipping, own in losses.items():
        guidance = Guidance(2.0, skip=SKIP if skipping else None)
        ddim.invert(
            model,
            picture,
            steps=3,
            method="null-text",
            options={"inner": 1},
            prompt="a cat",
            guidance=guidance,
            on_event=lambda event, own=own: own.append(event.loss) if isinstance(event, ddim.LossEvent) else None,
        )
    assert losses[True] != losses[False]


def test_its_steps_are_those_of_the_code(model: Any):
    """``edit-friendly`` leaves out the noisy part of the grid, in which the first fifth of all steps lies."""
    picture = torch.rand(1, *model.picture, generator=torch.Generator().manual_seed(0))
    skip = SkipLayers((0,), 2.8, (0.0, 0.3))
    settings: dict[str, Any] = {"steps": 8, "method": "edit-friendly", "prompt": "a cat"}
    codes = [ddim.invert(model, picture, guidance=Guidance(5.0, skip=one), **settings) for one in (skip, None)]
    assert codes[0].grid.steps < 8
    assert Guidance.of(codes[0].guidance).skip == skip.on(codes[0].grid)
    assert not torch.equal(*(code.extras["noise"] for code in codes))


def test_an_edit_keeps_it_and_another_code_is_refused(model: Any, tmp_path: Path):
    picture = torch.rand(1, *model.picture, generator=torch.Generator().manual_seed(0))
    code = ddim.invert(model, picture, steps=4, method="direct", prompt="a cat", guidance=Guidance(5.0, skip=SKIP))
    with_it = ddim.edit(model, code, "a dog", attention="none")
    without = ddim.edit(model, code, "a dog", attention="none", guidance=Guidance(5.0))
    assert not torch.equal(with_it.edits, without.edits)
    for wrong in ({"layers": []}, {"layers": [0], "scale": "x"}, 3):
        broken = replace(code, guidance={**code.guidance, "skip": wrong})
        with refused("path", "guidance"):
            ddim.LatentCode.load(broken.save(tmp_path / "b.code"))


def test_what_a_model_cannot_skip_is_refused(model: Any):
    last = model.info.skip_layers - 1
    with refused("skip_layers", last + 1, last):
        ddim.sample(model, 1, steps=4, prompt="a cat", guidance=Guidance(5.0, skip=SkipLayers((last + 1,))))
    with refused("skip_layers", "(0,)"):
        ddim.sample(model, 1, steps=4, prompt="a cat", guidance=Guidance(1.0, skip=SKIP))
    other = FAMILIES["flux dev"].model()
    with refused("skip_layers", repr(other.name)):
        ddim.sample(other, 1, steps=4, prompt="a cat", guidance=Guidance(2.0, skip=SKIP))
