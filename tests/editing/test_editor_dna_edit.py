"""DNAEdit: the algorithm of the paper written out, and the exact reconstruction."""

from itertools import pairwise

import pytest
import tiny_text
import torch
from refusals import refused
from witness import drawn, far, flow_model, pictures, times, velocity

import ddim
from ddim.editing.editors.dna_edit import DNAEdit

SOURCE, TARGET, SEED = "a cat on a mat", "a dog on a mat", 6


def edited(target: str = TARGET, source: str = SOURCE, model=None, **settings) -> ddim.Edited:
    usual = {"steps": 5, "guidance": 1.7, "strength": 0.8, "seed": SEED}
    model = flow_model() if model is None else model
    return ddim.edit(model, pictures(), target, source_prompt=source, method="dna-edit", **usual | settings)


def test_it_is_the_algorithm_of_the_paper():
    model, found = flow_model(), edited(options={"mvg": 0.7})
    x0, time = model.encode(pictures()), times(found)
    assert len(time) == 5
    v, x, n, kept = velocity(model, SOURCE, x0), x0, drawn(x0, SEED), []
    for now, after in zip(time[:0:-1], time[-2::-1], strict=True):  # direct noise alignment
        step = after - now
        guess = x + step / (1 - now) * (n - x)
        source = v(guess, after)
        apart = (guess - x) / step - source
        x, n = guess - apart * step, n - apart * (1 - now)
        kept.append((source, apart * step))
    under_target, reference = velocity(model, TARGET, x0, 1.7), x0
    for (source, offset), (now, after) in zip(kept[::-1], pairwise(time), strict=True):  # mobile velocity guidance
        v_t = under_target(x + offset, now)
        reference = reference + (after - now) * (v_t - source)
        x = x + (after - now) * (0.7 * v_t + 0.3 * (x - reference) / now)
    assert far(found.edits[:, 0], model.decode(x)) < 1e-9
    for other in (
        edited("a red face", options={"mvg": 0.7}),
        edited(source="a red face", options={"mvg": 0.7}),
        edited(options={"mvg": 0.8}),
        edited(seed=5, options={"mvg": 0.7}),
        edited(guidance=1.0, options={"mvg": 0.7}),
    ):
        assert far(found.edits, other.edits) > 1e-4


@pytest.mark.parametrize("kind", ["flow", "sd", "sd v"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_under_the_sources_prompt_without_the_reference_the_image_comes_back(kind: str, strength: float):
    model = flow_model() if kind == "flow" else tiny_text.model(*["v_prediction"][: "v" in kind], dtype=torch.float64)
    settings = {"model": model, "guidance": 1.0, "strength": strength, "options": {"mvg": 1.0}}
    same = edited(SOURCE, **settings)
    assert far(same.edits[:, 0], same.reconstruction) < 1e-9
    assert far(edited(**settings).edits, same.edits) > 1e-3
    # where plain sampling from the same code does not return
    back = ddim.reconstruct(model, same.code)
    assert far(back, same.reconstruction) > 1e-4


def test_a_code_of_its_inversion_is_edited_and_others_are_refused():
    model = flow_model()
    settings = {"steps": 4, "prompt": SOURCE, "seed": SEED, "keep_trajectory": True}
    code = ddim.invert(model, pictures(), method="uni-inv", options={"start": "noise"}, **settings)
    found = ddim.edit(model, code, TARGET, method="dna-edit", guidance=1.7, strength=1.0)
    assert far(found.edits, edited(steps=4, strength=1.0).edits) < 1e-9
    with refused("method", "'uni-inv'"):
        ddim.edit(model, ddim.invert(model, pictures(), method="uni-inv", **settings), TARGET, method="dna-edit")


def test_options_out_of_range_are_refused():
    for mvg in (-0.1, 1.5):
        with refused("mvg", f"{mvg:g}"):
            DNAEdit(mvg)
