"""SteerFlow: its formulas written out."""

from itertools import pairwise

import pytest
import torch
from refusals import refused
from witness import far, flow_model, pictures, times, uni_inv, velocity

import ddim
from ddim.editing.editors.steer_flow import SteerFlow

SOURCE, TARGET = "a cat on a mat", "a dog on a mat"


def edited(target: str = TARGET, source: str = SOURCE, **settings) -> ddim.Edited:
    usual = {"steps": 5, "guidance": 1.7, "strength": 0.8}
    return ddim.edit(flow_model(), pictures(), target, source_prompt=source, method="steer-flow", **usual | settings)


def mask(change: torch.Tensor, quantile: float) -> torch.Tensor:
    """The mask of one sample [C, H, W], position by position."""
    size = change.abs().mean(0)
    size = (size - size.min()) / (size.max() - size.min())
    height, width = size.shape
    threshold = torch.quantile(size, quantile)
    rows = [[size[max(i - 2, 0) : i + 3, max(j - 2, 0) : j + 3].max() for j in range(width)] for i in range(height)]
    spread = torch.stack([torch.stack(row) for row in rows])
    return 1 / (1 + torch.exp(-15 * (spread - threshold)))


@pytest.mark.parametrize("quantile", [0.95, 0.4, None])
def test_it_is_the_method_of_the_paper(quantile: float | None):
    model, found = flow_model(), edited(options={"power": 4.5, "quantile": quantile})
    x0, time = model.encode(pictures()), times(found)
    nodes = uni_inv(velocity(model, SOURCE, x0), x0, time)
    v, x = velocity(model, TARGET, x0, 1.7), nodes[0]
    for i, (now, after) in enumerate(pairwise(time)):
        v_s, v_t = (nodes[i + 1] - nodes[i]) / (after - now), v(x, now)
        steered = []
        for s, t in zip(v_s, v_t, strict=True):
            cosine = (s * t).sum() / (s.norm() * t.norm())
            m = 1.0 if quantile is None else mask(t - s, quantile)
            steered.append(s + m * (1 - after**4.5) * cosine * (t - s))
        x = x + (after - now) * torch.stack(steered)
    assert far(found.edits[:, 0], model.decode(x)) < 1e-9
    own = {"power": 4.5, "quantile": quantile}
    for other in (
        edited("a red face", options=own),
        edited(source="a red face", options=own),
        edited(options={**own, "power": 2.0}),
        edited(options={**own, "cosine": False}),
        edited(options={**own, "quantile": 0.7}),
        edited(guidance=1.0, options=own),
    ):
        assert far(found.edits, other.edits) > 1e-4


@pytest.mark.parametrize(
    ("options", "name"),
    [({"power": 0.0}, "power"), ({"quantile": 1.5}, "quantile"), ({"temperature": -1.0}, "temperature")],
)
def test_options_out_of_range_are_refused(options: dict[str, float], name: str):
    with refused(name, f"{next(iter(options.values())):g}"):
        SteerFlow(**options)


def test_the_side_of_the_squares_is_odd():
    for side in (0, 4):
        with refused("dilation", str(side)):
            SteerFlow(dilation=side)
