"""RF-Inversion's edit: the equations of the paper written out, and what the controller promises."""

import math
from itertools import pairwise

import pytest
import tiny_text
import torch
from refusals import refused
from witness import drawn, far, flow_model, pictures, times, velocity

import ddim
from ddim import Guidance
from ddim.core.grid import Grid
from ddim.editing.editors.base import SOURCE as SOURCE_ENTRY
from ddim.editing.editors.base import TARGET as TARGET_ENTRY
from ddim.editing.editors.base import EditProblem, StepNoise
from ddim.editing.editors.rf_inversion import RFInversionEdit
from ddim.editing.sides import Side

TARGET, SEED = "a dog on a mat", 6


def edited(target: str = TARGET, model=None, **settings) -> ddim.Edited:
    usual = {"steps": 8, "guidance": 1.7, "seed": SEED}
    model = flow_model() if model is None else model
    return ddim.edit(model, pictures(), target, method="rf-inversion", **usual | settings)


@pytest.mark.parametrize(
    ("begin", "end", "decay", "strengths"),
    [
        (0.0, 0.25, 0.0, [0.9, 0.9, 0, 0, 0, 0, 0, 0]),
        (0.125, 0.5, 1.0, [0, 0.9 * 7 / 8, 0.9 * 6 / 8, 0.9 * 5 / 8, 0, 0, 0, 0]),
        (0.0, 0.3, 0.0, [0.9, 0.9, 0.36, 0, 0, 0, 0, 0]),  # 2.4 steps
    ],
)
def test_it_is_the_method_of_the_paper(begin: float, end: float, decay: float, strengths: list[float]):
    model, options = flow_model(), {"begin": begin, "end": end, "decay": decay, "gamma": 0.4}
    found = edited(options=options)
    x0, time = model.encode(pictures()), times(found)
    plain, y1, x = velocity(model, "", x0), drawn(x0, SEED), x0  # no prompt, as in the paper
    for now, after in zip(time[:0:-1], time[-2::-1], strict=True):
        v = plain(x, now if now > 0 else after)
        x = x + (after - now) * (v + 0.4 * ((y1 - x) / (1 - now) - v))
    v = velocity(model, TARGET, x0, 1.7)
    for eta, (now, after) in zip(strengths, pairwise(time), strict=True):
        slope = v(x, now)
        x = x + (after - now) * (slope + eta * ((x - x0) / now - slope))
    assert far(found.edits[:, 0], model.decode(x)) < 1e-9
    for other in (
        edited("a red face", options=options),
        edited(options=options, source_prompt="a red face"),
        edited(options={**options, "gamma": 0.5}),
        edited(options={**options, "eta": 0.5}),
        edited(options={**options, "end": 0.6}),
        edited(options=options, seed=5),
    ):
        assert far(found.edits, other.edits) > 1e-4


@pytest.mark.parametrize("sde", [False, True])
@pytest.mark.parametrize("kind", ["flow", "sd", "sd v"])
def test_a_controller_of_full_strength_to_the_end_returns_the_image(kind: str, sde: bool):
    model = flow_model() if kind == "flow" else tiny_text.model(*["v_prediction"][: "v" in kind], dtype=torch.float64)
    for strength in (1.0, 0.5):
        settings = {"model": model, "steps": 4, "strength": strength}
        same = edited(**settings, options={"eta": 1.0, "end": 1.0, "sde": sde})
        # where the data node has a little noise, two equations are solved, and rounded
        close = 0.0 if same.code.grid[-1].sigma == 0 else 1e-9
        assert far(same.edits[:, 0], same.reconstruction) <= close
        assert far(edited(**settings, options={"sde": sde}).edits[:, 0], same.reconstruction) > 0.05


def test_the_noise_is_seeded_for_each_image():
    model, options = flow_model(), {"sde": True}
    one, two = (edited(options=options, seed=seed).edits for seed in (1, 1))
    assert torch.equal(one, two)
    both = [[TARGET, "a red face"]] * 2
    many = ddim.edit(model, pictures(), both, method="rf-inversion", steps=8, guidance=1.7, seed=1, options=options)
    assert far(many.edits[:, :1], one) < 1e-9
    code = edited(seed=1).code  # the noise of the steps alone
    codes = [
        ddim.edit(model, code, TARGET, method="rf-inversion", guidance=1.7, seed=s, options=options).edits
        for s in (1, 2)
    ]
    assert far(*codes) > 1e-2


@torch.no_grad()
def _single_step(step: float, sde_noise: float) -> tuple[torch.Tensor, float]:
    """One step from the time 0.6 with all noise equal to a number, and what Eq. 17 gives without noise, apart."""
    model = flow_model()
    path = model.schedule.path
    grid = Grid((path.node(0.6), path.node(0.6 - step), path.node(0.0)), path=path)
    x0, x = (torch.randn(1, 4, 16, 16, dtype=torch.float64, generator=_seeded(k)) for k in (1, 2))
    side = Side(model.condition(None, 1, TARGET, None, (32, 32)), Guidance(), 1)
    noise = StepNoise(lambda like: torch.full_like(like, sde_noise))
    problem = EditProblem(model, grid, x0, side, side, noise, torch.stack([x, x, x0], 1))
    editor = RFInversionEdit(eta=0.5, end=1.0, sde=True)
    after = editor.step(problem, {SOURCE_ENTRY: x, TARGET_ENTRY: x}, 0)[TARGET_ENTRY]
    v = velocity(model, TARGET, x0)(x, 0.6)
    data = -(v + 0.5 * ((x - x0) / 0.6 - v))  # the velocity towards the data
    return after - x, float((after - (x + step * (2 * data - x / 0.4))).abs().max())


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_small_steps_with_noise_are_those_of_equation_17():
    apart = [_single_step(step, 0.0)[1] for step in (0.02, 0.01, 0.005)]
    for one, half in pairwise(apart):
        assert one / half == pytest.approx(4, rel=0.1)  # a difference of second order in the drift
    misses = []
    for step in (0.02, 0.01, 0.005):
        moved = _single_step(step, 1.0)[0] - _single_step(step, 0.0)[0]
        assert float(moved.std()) < 1e-12
        misses.append(1 - float(moved.mean()) / math.sqrt(2 * 0.6 / 0.4 * step))
    assert abs(misses[-1]) < 0.02
    for one, half in pairwise(misses):
        assert one / half == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"eta": 1.2}, "eta"),
        ({"gamma": -0.2}, "gamma"),
        ({"decay": -1.0}, "decay"),
        ({"end": 0.0}, "end"),
        ({"begin": 0.5}, "end"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], name: str):
    with refused(name, f"{next(iter(options.values())):g}"):
        RFInversionEdit(**options)
