"""What the networks on rectified flow are told about the noise level and the guidance: what their own pipelines tell.

Each network is asked in its own pipeline and by us, and what arrives at it is compared bit for bit. In bfloat16 a label
may be rounded on its way, and a method that inverts a sampler must round it alike.
"""

import inspect
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from oracles import noise_like
from tiny_flow import FAMILIES
from torch import Tensor

import ddim

STEPS = 9
PROMPTS = ["a cat", "two red dogs"]
NAMES = ("timestep", "t", "guidance")
"""What the label and the guidance are called in the networks' ``forward``."""


@contextmanager
def recorded(network: Any):
    """Inside the block, notes the labels of each call: a list with one dict of tensors per call."""
    calls: list[dict[str, Tensor]] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        calls.append({name: bound[name].clone() for name in NAMES if bound.get(name) is not None})

    hook = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def in_turn(calls: list[dict[str, Tensor]], name: str) -> Tensor:
    """The values of a label in the order of the steps, where all rows of a call have the same."""
    found: list[Tensor] = []
    for call in calls:
        value = call[name]
        assert bool((value == value[0]).all())
        found.append(value[0])
    return torch.stack([v for k, v in enumerate(found) if k == 0 or v != found[k - 1]])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_labels_are_those_of_the_pipeline(name, dtype):
    family = FAMILIES[name]
    pipeline = family.pipeline().to(dtype)
    model = family.load(pipeline)
    for row, (guidance, options) in family.guidances.items():
        x = noise_like((2, *model.shape)).float()
        with recorded(model.network) as theirs:
            family.draw(pipeline, x, PROMPTS, None, **{"num_inference_steps": STEPS, **options})
        with recorded(model.network) as ours:
            grid = model.schedule.grid(STEPS, image_size=model.shape[1:])
            denoise = model.guided(guidance.on(grid), model.condition(None, 2, PROMPTS))
            ddim.solve(denoise, ddim.make_solver("ddim"), {"x": x}, grid)
        assert theirs[0].keys() == ours[0].keys(), row
        for label in theirs[0]:
            told, tell = in_turn(theirs, label), in_turn(ours, label)
            assert told.dtype == tell.dtype, (row, label)
            assert torch.equal(told, tell), (row, label, told, tell)
            assert len(told) == (STEPS if label != "guidance" else 1)


def test_a_label_of_flux_is_rounded_in_bfloat16():
    """So that the equality above says something: at some steps the exact label is another number."""
    model = FAMILIES["flux dev"].load(FAMILIES["flux dev"].pipeline().to(torch.bfloat16))
    grid = model.schedule.grid(STEPS, image_size=model.shape[1:])
    x = torch.zeros(1)
    told = torch.stack([model.timestep(node, x) for node in grid.nodes[:-1]])  # type: ignore[attr-defined]
    exact = torch.tensor([node.sigma for node in grid.nodes[:-1]])
    assert told.dtype == torch.bfloat16
    assert bool((told != exact.bfloat16()).any())
    assert float((told.float() * 1000 - exact * 1000).abs().max()) < 2.5
