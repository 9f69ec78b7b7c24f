"""Uni-Edit: the algorithm of the paper written out, and its options."""

from itertools import pairwise

import pytest
import torch
from refusals import refused
from witness import far, flow_model, pictures, times, uni_inv, velocity

import ddim
from ddim.core.prediction import Pair
from ddim.editing.editors.uni_edit import UniEdit, disagreement

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"


def edited(target: str = TARGET, source: str = SOURCE, **settings) -> ddim.Edited:
    options = {"omega": 2.0, "source_guidance": 1.3, **settings.pop("options", {})}
    usual = {"steps": 5, "guidance": 1.7, "strength": 0.6, "options": options}
    return ddim.edit(flow_model(), pictures(), target, source_prompt=source, method="uni-edit", **usual | settings)


def test_it_is_the_algorithm_of_the_paper():
    model, found = flow_model(), edited()
    x0, time = model.encode(pictures()), times(found)
    assert len(time) == 4  # 3 of 5 steps
    nodes = uni_inv(velocity(model, SOURCE, x0), x0, time)
    under_source, under_target = velocity(model, SOURCE, x0, 1.3), velocity(model, TARGET, x0, 1.7)
    x = nodes[0]
    for now, after in pairwise(time):
        v_s, v_t = under_source(x, now), under_target(x, now)
        apart = v_t - v_s
        rows = []
        for row in apart:  # each sample has its own scale
            size = sum(channel.abs() for channel in row) / len(row)
            rows.append((size - size.min()) / (size.max() - size.min()))
        m = torch.stack(rows)[:, None]
        x = x + (after - now) * (m * v_t + (1 - m) * v_s + 2.0 * (1 + m) * apart)
    assert far(found.edits[:, 0], model.decode(x)) < 1e-9
    assert far(found.reconstruction, model.decode(x0)) < 1e-12
    # each prompt, the strength of the difference and both weights matter
    for other in (
        edited("a red face"),
        edited(source="a red face"),
        edited(options={"omega": 1.0}),
        edited(options={"source_guidance": 1.0}),
        edited(guidance=1.0),
    ):
        assert far(found.edits, other.edits) > 1e-3


def test_the_mask_is_of_each_sample_and_of_the_size_of_the_difference():
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    x[1] *= 100
    still = Pair(torch.zeros_like(x), torch.zeros_like(x))
    found = disagreement(Pair(x, -x), still)
    assert torch.equal(found, disagreement(still, Pair(x, -x)))  # without a sign
    for mask in found:
        assert float(mask.min()) == 0
        assert float(mask.max()) == 1
    assert torch.allclose(found[1:], disagreement(Pair(x[1:] / 100, -x[1:] / 100), Pair(*(t[1:] for t in still))))
    assert not bool(disagreement(still, still).any())


def test_the_source_is_asked_at_the_targets_sample_and_unconditional_rows_once():
    model, rows = flow_model(), []
    forward = model.forward

    def counted(x, *rest):
        rows.append(len(x))
        return forward(x, *rest)

    model.forward = counted  # type: ignore[method-assign]
    try:
        ddim.edit(
            model,
            pictures(1),
            TARGET,
            source_prompt=SOURCE,
            method="uni-edit",
            steps=2,
            strength=0.5,
            guidance=2.0,
            options={"source_guidance": 2.0},
        )
    finally:
        del model.forward
    assert rows[-1] == 3  # two conditions, and one unconditional row for both


@pytest.mark.parametrize(("options", "value"), [({"omega": -1.0}, "-1")])
def test_options_out_of_range_are_refused(options, value):
    with refused("omega", value):
        UniEdit(**options)
