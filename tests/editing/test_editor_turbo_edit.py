"""TurboEdit against the paper's formulas, written out, and on models of few steps."""

import pytest
import torch
from refusals import refused
from tiny_few_step import FEW_STEP
from written_out import BOTH, OTHER, SOURCE, TARGET, Written, assert_same, ddpm_mean, written

import ddim

SEED, STEPS = 3, 4


@pytest.fixture(params=BOTH, scope="module")
def tiny(request: pytest.FixtureRequest) -> Written:
    return written(request.param)


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_turbo_edit_is_the_papers_algorithm(tiny: Written, shift: float):
    w = 2.5
    settings = {"steps": STEPS, "strength": 1.0, "guidance": w, "options": {"noise_shift": shift}, "seed": SEED}
    source, ours = tiny.edited("turbo-edit", **settings)
    _, other = tiny.edited("turbo-edit", OTHER, **settings)
    xs, grid = tiny.noised(source, STEPS, SEED, shift)
    y = xs[0]
    for i in range(STEPS):
        t, s = grid[i], grid[i + 1]
        mean_y, mean_x, towards = (
            ddpm_mean(*tiny.predict(x, t, prompt), t, s) for x, prompt in ((y, SOURCE), (xs[i], SOURCE), (y, TARGET))
        )
        y = xs[i + 1] + (mean_y - mean_x) + w * (towards - mean_y)
    assert_same(ours, y, source, other)


FEW = {"sd lcm": "lcm", "sd lcm embedded": "lcm", "sd tcd": "tcd", "sdxl turbo": "ddim", "sdxl lightning": "ddim"}


@pytest.mark.filterwarnings("ignore::ddim._utils.errors.DDIMWarning")  # of what is only likely
@pytest.mark.parametrize("row", FEW)
def test_models_of_few_steps_are_edited(row: str):
    model = ddim.load(FEW_STEP[row][0]())
    images = torch.rand(1, *model.picture, generator=torch.Generator().manual_seed(0))
    options = {"sampler": FEW[row], **({"eta": 0.3} if FEW[row] == "tcd" else {})}

    def edited(target: str, **settings) -> ddim.Edited:
        return ddim.edit(model, images, target, source_prompt=SOURCE, method="turbo-edit", options=options, **settings)

    assert ddim.make_editor("turbo-edit").usual(model.info).steps == 5  # type: ignore[union-attr]
    own, found, more = edited(SOURCE), edited(TARGET), edited(TARGET, guidance=3.0)
    assert own.code.grid.steps == 4
    assert torch.equal(own.edits[:, 0], own.reconstruction)
    assert not torch.equal(found.edits[:, 0], found.reconstruction)
    assert not torch.equal(found.edits, more.edits)


def test_a_code_is_replayed_up_to_where_a_strength_begins(tiny: Written):
    images, kept = tiny.images, []
    settings = {"source_prompt": SOURCE, "method": "turbo-edit", "steps": STEPS, "strength": 1.0}
    ddim.edit(tiny.model, images, TARGET, **settings, on_code=kept.append)
    whole = ddim.edit(tiny.model, kept[0], TARGET, method="turbo-edit")
    half = ddim.edit(tiny.model, kept[0], TARGET, method="turbo-edit", strength=0.5)
    late = ddim.edit(tiny.model, images, TARGET, **{**settings, "strength": 0.5})
    assert float((half.edits - late.edits).abs().max()) < 1e-9
    assert float((half.edits - whole.edits).abs().max()) > 1e-3


def test_codes_with_other_guidance_and_options_that_are_wrong_are_refused():
    model, images = written("sd").model, written("sd").images
    code = ddim.invert(model, images, method="edit-friendly", steps=STEPS, prompt=SOURCE, guidance=3.0)
    with refused("method", "3"):
        ddim.edit(model, code, TARGET, method="turbo-edit")
    plain = ddim.invert(model, images, method="direct", steps=STEPS, prompt=SOURCE)
    with refused("method", "noise"):
        ddim.edit(model, plain, TARGET, method="turbo-edit")
    for name, wrong in {"eta": 0.0, "noise_shift": 1.0, "sampler": "heun"}.items():
        with refused(name, str(wrong) if name == "sampler" else f"{wrong:g}"):
            ddim.make_editor("turbo-edit", {name: wrong})
