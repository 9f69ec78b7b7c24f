"""Quantiles of the beta distribution, against closed forms, and against values that scipy 1.17 printed."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ddim
from ddim.core.beta import beta_quantiles

PARTS = torch.linspace(0, 1, 101, dtype=torch.float64)


@pytest.mark.parametrize(
    ("a", "b", "quantile"),
    [
        (1.0, 1.0, lambda p: p),
        (0.5, 0.5, lambda p: torch.sin(math.pi * p / 2) ** 2),  # the arcsine distribution
        (3.0, 1.0, lambda p: p ** (1 / 3)),
        (1.0, 2.5, lambda p: 1 - (1 - p) ** 0.4),
    ],
)
def test_closed_forms(a: float, b: float, quantile: object):
    wanted: Tensor = quantile(PARTS)  # type: ignore[operator]
    torch.testing.assert_close(beta_quantiles(PARTS, a, b), wanted, rtol=0, atol=1e-14)


def test_values_of_scipy():
    parts = torch.tensor([0.01, 0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
    wanted = torch.tensor([8.61238822e-04, 3.95844056e-02, 2.34017004e-01, 0.5, 9.60415594e-01], dtype=torch.float64)
    torch.testing.assert_close(beta_quantiles(parts, 0.6, 0.6), wanted, rtol=1e-8, atol=0)


def test_the_spacing_has_its_nodes_at_the_quantiles():
    grid = ddim.make_grid(ddim.VEPath(80.0, 0.002), 5, "beta")
    parts = [(node.sigma - 0.002) / (80 - 0.002) for node in grid.nodes[:-1]]
    quantiles = beta_quantiles(torch.linspace(1, 0, 5, dtype=torch.float64), 0.6, 0.6).tolist()
    assert parts == pytest.approx(quantiles, abs=1e-12)


WITNESS: dict[str, tuple[dict[str, Any], list[float], list[float]]] = {
    "FlowMatchEulerDiscreteScheduler": (
        {"shift": 3.0},
        [1.0, 0.7270457744598389, 0.2818828225135803, 0.008928571827709675],
        [1000.0, 727.0457744598389, 281.8828225135803, 8.928571827709675],
    ),
    "EulerDiscreteScheduler": (
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": "leading"}
        | {"steps_offset": 1},
        [4.116698265075684, 2.994283437728882, 1.1637293100357056, 0.04131447896361351],
        [751.0, 672.662841796875, 399.8265380859375, 1.0000001192092896],
    ),
    "DPMSolverMultistepScheduler": (
        {},
        [157.4072723388672, 114.05797576904297, 43.35930252075195, 0.010001329705119133],
        [999, 966, 862, 0],
    ),
}
"""Class -> config, and the sigmas and timesteps that diffusers 0.42 printed with scipy 1.17 for 4 steps, in float32."""


@pytest.mark.parametrize("kind", WITNESS)
def test_grids_of_diffusers(kind: str):
    config, sigmas, timesteps = WITNESS[kind]
    schedule = ddim.read_schedule({"_class_name": kind, "use_beta_sigmas": True, **config})
    assert schedule.spacing == "beta"
    starts = schedule.grid(4).nodes[:-1]
    flow = kind.startswith("Flow")
    assert [node.sigma if flow else node.ratio for node in starts] == pytest.approx(
        sigmas, rel=2e-4
    )  # tables in float32
    assert [schedule.timestep(node) for node in starts] == pytest.approx(timesteps, abs=2e-3)
    other = ddim.read_schedule({"_class_name": kind, **config}).grid(4).nodes[:-1]
    assert [node.sigma if flow else node.ratio for node in other] != pytest.approx(sigmas, rel=1e-2)
