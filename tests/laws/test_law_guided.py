"""Laws 2 and 3 under guidance, for every registered method, on data whose mean moves with the words."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import FLOW, conditional, gaussian, mixture, noise_like, prompts

import ddim
from ddim.core.conditioning import PromptConditioning
from ddim.core.contracts import InversionProblem
from ddim.core.guidance import Guidance, guided
from ddim.core.noise import SeededNoise
from ddim.inversion import INVERSIONS, make_inversion
from ddim.inversion.extras import anchor_of, pinned
from ddim.inversion.replay import prompts_of, replay, state_of
from ddim.solvers.lattice import ReversibleSolver

PROBLEMS = {
    "gaussian": conditional(gaussian(2, 4)),
    "mixture": conditional(mixture(2, 4)),
    "gaussian flow": conditional(gaussian(2, 4), schedule=FLOW),
    "mixture flow": conditional(mixture(2, 4), schedule=FLOW),
}
GRID = ddim.make_grid(ddim.ddpm_linear(), 20)
FLOW_GRID = FLOW.grid(20)


def grid_of(problem: str) -> ddim.Grid:
    return FLOW_GRID if "flow" in problem else GRID


TOKENS, WIDTH = 5, 6
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in INVERSIONS),
    ("null-text", {"start": "prompt"}),
    ("null-text", {"scope": "global"}),
    ("negative-prompt", {"toward_empty": 0.3}),
    ("edit-friendly", {"skip": 0, "eta": 0.5}),
    ("edit-friendly", {"skip": 3}),
    ("edit-friendly", {"noise_shift": 0.2}),
    ("renoise", {"iterations": 4, "average": 2, "eta": 0.5}),
    ("renoise", {"iterations": 4, "eta": 1.0, "correct": True}),
    ("prox-npi", {"kind": "l1"}),
    ("uni-inv", {"start": "noise"}),
]
COSTS = {("scope", "global"): 15.0, ("toward_empty", 0.3): 8.0, ("start", "noise"): 17.0}
"""Options that cost the round trip something, with the PSNR that is left, in dB: one embedding for all steps; two
predictions that part; a first guess at the noised image."""
every = pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
problems = pytest.mark.parametrize("problem", PROBLEMS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def images(problem: str, count: int = 4, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    oracle = PROBLEMS[problem]
    return (oracle.base.draw(count) + oracle.move(conditions(count).cond.tensors["text"])).to(dtype)


def conditions(count: int = 4, dtype: torch.dtype = torch.float64) -> PromptConditioning:
    opposite = noise_like((1, TOKENS, WIDTH), seed=9).to(dtype).expand(count, -1, -1).clone()
    return prompts(noise_like((count, TOKENS, WIDTH), seed=8).to(dtype), opposite)


def scene(
    problem: str, both: PromptConditioning, weight: float, inversion_guidance: float, seeds: list[int]
) -> InversionProblem:
    return InversionProblem(PROBLEMS[problem], both, Guidance(weight), inversion_guidance, noise=SeededNoise(seeds))


def code_of(
    name: str,
    options: dict,
    problem: str,
    weight: float = 3.0,
    dtype: torch.dtype = torch.float64,
    rows: slice | None = None,
) -> ddim.LatentCode:
    """As ``ddim.invert`` makes it, of some of four images."""
    method, rows = make_inversion(name, options), rows or slice(0, 4)
    at = scene(problem, conditions(dtype=dtype)[rows], weight, weight, list(range(4))[rows])
    x0 = images(problem, dtype=dtype)[rows]
    result, solver = method.invert(at, x0, grid_of(problem)), method.solver()
    return ddim.LatentCode(
        result.state,
        result.grid,
        name,
        solver.name,
        solver.options,
        conditions=result.prompts,
        extras=result.extras,
        guidance=method.sampling_guidance(Guidance(weight)).options,
        dtype=str(x0.dtype).removeprefix("torch."),
    )


def tensors(code: ddim.LatentCode) -> dict[str, torch.Tensor]:
    """All of a code's, by group and name."""
    assert code.conditions.uncond is not None
    groups = {
        "state": code.state,
        "cond": code.conditions.cond.tensors,
        "uncond": code.conditions.uncond.tensors,
        "extras": code.extras,
    }
    return {f"{group}.{key}": value for group, named in groups.items() for key, value in named.items()}


def forward(code: ddim.LatentCode, problem: str) -> torch.Tensor:
    solver = ddim.make_solver(code.solver, code.options)
    both = prompts_of(code.conditions, code.grid, code.extras)
    denoise = guided(PROBLEMS[problem], Guidance.of(code.guidance), both, anchor=anchor_of(code.extras))
    state = state_of(solver, code.state, code.grid, torch.device("cpu"), getattr(torch, code.dtype))
    return solver.read(replay(denoise, solver, state, code.grid, code.extras))


def decibels(error: torch.Tensor) -> float:
    return 10 * math.log10(4 / max(float(error.double().square().mean()), 1e-300))


@dtypes
@problems
@every
def test_the_image_comes_back_under_guidance(name, options, problem, dtype):
    """As near as the class states; exact methods to the bit, reversible solvers to the lattice's nearest point."""
    exact = 70 if dtype == torch.float32 else 220
    method, x0 = make_inversion(name, options), images(problem, dtype=dtype)
    back = forward(code_of(name, options, problem, dtype=dtype), problem)
    quality = decibels(back - x0)
    print(f"guided round trip {name:16} {options!s:26} {problem:9} {dtype!s:14} {quality:6.1f} dB")
    if method.floor_db == math.inf:
        assert method.exact
        assert quality > exact
        solver, at_end = method.solver(), x0
        if isinstance(solver, ReversibleSolver):
            at_end = solver.read(solver.on_lattice(dict.fromkeys(solver.keys, x0), grid_of(problem), 20))
        assert torch.equal(back, at_end)
    else:
        assert quality > next((COSTS[one] for one in options.items() if one in COSTS), method.floor_db)


@problems
@pytest.mark.parametrize("name", [n for n, m in INVERSIONS.items() if m.exact and m.keeps])
@pytest.mark.parametrize("weight", [1.0, 7.5])
def test_what_is_kept_brings_the_image_back_bit_for_bit(name, problem, weight):
    assert torch.equal(forward(code_of(name, {}, problem, weight), problem), images(problem))


@problems
@every
def test_a_batch_is_its_items(name, options, problem):
    together = code_of(name, options, problem)
    for k in range(4):
        alone, item = code_of(name, options, problem, rows=slice(k, k + 1)), tensors(together[k])
        assert tensors(alone).keys() == item.keys()
        for key, value in tensors(alone).items():
            assert torch.allclose(value, item[key], rtol=0, atol=1e-8), (k, key)


@dtypes
@every
def test_after_save_and_load_the_replay_is_the_same_bit_for_bit(name, options, dtype, tmp_path):
    code = code_of(name, options, "mixture", dtype=dtype)
    loaded = ddim.LatentCode.load(code.save(tmp_path / "a.code"))
    assert torch.equal(forward(loaded, "mixture"), forward(code, "mixture"))
    for key, value in code.extras.items():
        assert torch.equal(loaded.extras[key], value)
        assert value.dtype == dtype


@every
def test_the_same_seed_gives_the_same_bits(name, options):
    once, again = (tensors(code_of(name, options, "mixture")) for _ in range(2))
    assert once.keys() == again.keys()
    for key, value in once.items():
        assert torch.equal(again[key], value), key


@every
def test_an_inversion_leaves_what_it_was_given_alone(name, options):
    both, x0 = conditions(), images("mixture")
    assert both.uncond is not None
    given = {"cond": both.cond.tensors["text"], "uncond": both.uncond.tensors["text"], "x0": x0}
    before = {k: v.clone() for k, v in given.items()}
    make_inversion(name, options).invert(scene("mixture", both, 3.0, 3.0, [0, 1, 2, 3]), x0, GRID)
    for key, value in given.items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", [n for n, m in INVERSIONS.items() if m.needs or m.keeps])
def test_a_guided_method_comes_forward_by_a_registered_solver(name):
    method = make_inversion(name)
    assert method.order == ddim.make_solver(method.solver().name).order
    assert method.amplification(GRID) == 1


@every
def test_a_method_keeps_what_it_says_and_no_more(name, options):
    kept = set(code_of(name, options, "mixture").extras)
    said = set(() if options.get("scope") == "global" else make_inversion(name, options).stores)
    said |= {"noise"} if make_inversion(name, options).solver().stochastic else set()
    assert kept == said - {"uncond_pooled"}  # the network takes no pooled embedding


@every
def test_another_condition_gives_another_image(name, options):
    """What comes back hangs on both conditions, unless the method puts the sample on what it kept."""
    code = code_of(name, options, "mixture")
    both, back = code.conditions, forward(code, "mixture")
    assert both.uncond is not None
    turned = replace(code, conditions=PromptConditioning(both.cond[[1, 2, 3, 0]], both.uncond))
    assert torch.equal(forward(turned, "mixture"), back) is pinned(code.extras)
