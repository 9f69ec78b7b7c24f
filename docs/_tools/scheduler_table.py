"""Writes the tables of ``docs/schedulers.md``: what each option of each scheduler of diffusers does here.

    python docs/_tools/scheduler_table.py

Every option of every supported class is set to other values than its default, one at a time. The schedule that results
is refused, or its grid and its samples are compared with those of the scheduler itself, on one network. The tables are
written to ``docs/results/schedulers.md``.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

import ddim
from ddim._utils.files import write_whole
from ddim.core.path import RectifiedFlow
from ddim.core.schedule import DynamicShift, Schedule
from ddim.models.scheduler_config import read_schedule
from ddim.models.scheduler_fields import IGNORED, SCHEDULERS, TABLES, UNSUPPORTED, fields_read_by

FILE = Path(__file__).parents[1] / "results" / "schedulers.md"
STEPS, TOKENS, SHAPE = 10, 1024, (2, 3, 8, 8)

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
DYNAMIC = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type")
NEEDS: dict[str, dict[str, Any]] = {
    "clip_sample_range": {"clip_sample": True},
    "dynamic_thresholding_ratio": {"thresholding": True},
    "sample_max_value": {"thresholding": True},
    "steps_offset": {"timestep_spacing": "leading"},
    "set_alpha_to_one": {"steps_offset": 1},
    "use_flow_sigmas": FLOW,
    "flow_shift": FLOW,
    "timestep_type": {"prediction_type": "v_prediction"},
    "rescale_betas_zero_snr": {"prediction_type": "v_prediction"},
    "sigma_min": {"use_karras_sigmas": True},
    "sigma_max": {"use_karras_sigmas": True},
    **{key: {"use_dynamic_shifting": True} for key in DYNAMIC},
}
"""Option -> the options without which it does nothing, or without which the samples cannot be compared."""
STEADY = {"prediction_type": "v_prediction"}
"""The prediction with which the options of a class for tables are compared, except for ``prediction_type`` itself.

A network that predicts eps multiplies the difference of the first noise levels, which are float32 in diffusers, by
sigma / alpha. No other difference of two samplers would be seen beside that.
"""

_SWITCHES = (True, False)
VALUES: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (100,),
    "beta_start": (0.001,),
    "beta_end": (0.01,),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"),
    "trained_betas": ("linear from 0.0002 to 0.03",),
    "prediction_type": ("epsilon", "sample", "v_prediction", "flow_prediction"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "steps_offset": (1,),
    **dict.fromkeys(("clip_sample", "thresholding", "set_alpha_to_one", "rescale_betas_zero_snr"), _SWITCHES),
    "clip_sample_range": (0.6,),
    "dynamic_thresholding_ratio": (0.9,),
    "sample_max_value": (1.5,),
    **dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"), _SWITCHES),
    **dict.fromkeys(("use_flow_sigmas", "use_dynamic_shifting", "invert_sigmas", "stochastic_sampling"), _SWITCHES),
    "flow_shift": (3.0,),
    "shift": (3.0,),
    "shift_terminal": (0.02,),
    "time_shift_type": ("linear",),
    "base_shift": (0.6,),
    "max_shift": (1.0,),
    "base_image_seq_len": (300,),
    "max_image_seq_len": (8192,),
    "final_sigmas_type": ("sigma_min",),
    "interpolation_type": ("log_linear",),
    "timestep_type": ("continuous",),
    "lambda_min_clipped": (-5.1,),
    "sigma_min": (0.05,),
    "sigma_max": (20.0,),
    "sigma_data": (1.0,),
    "sigma_schedule": ("exponential",),
    "rho": (5.0,),
    "original_inference_steps": (40,),
    "timestep_scaling": (5.0,),
}
"""Option -> the values to try; the default of a class is left out. Options in ``IGNORED`` are not here."""

SAMPLERS: dict[str, tuple[str, dict[str, float]]] = {
    **dict.fromkeys(("DDIMScheduler", "DDIMParallelScheduler", "EulerDiscreteScheduler"), ("ddim", {})),
    **dict.fromkeys(("EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"), ("ddim", {})),
    **dict.fromkeys(("DDPMScheduler", "DDPMParallelScheduler"), ("ddim", {"eta": 1.0})),
    "EulerAncestralDiscreteScheduler": ("ddim", {"eta": 1.0}),
    **dict.fromkeys(("HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"), ("heun", {})),
    "LCMScheduler": ("lcm", {}),
    "TCDScheduler": ("tcd", {}),
    **dict.fromkeys(("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"), ("dpm++2m", {})),
}
"""Class -> our solver that makes the same steps, with its options; the others are compared by their grids."""


@dataclass(frozen=True)
class Row:
    """What one value of one option of a class does.

    Attributes:
        kind: the class.
        option: the option; empty for the defaults of the class.
        value: its value.
        why: the reason why it has no effect, or the sentence that refuses it; empty if it is taken.
        refused: whether it is refused.
        grid: the largest relative difference of a noise level of the two grids; None if it was not compared.
        sample: the largest difference of a value of the two samples; None if there is no such solver here.
        moves: how far our own sample moves if its start differs by the same part as the grids do.
    """

    kind: str
    option: str = ""
    value: Any = None
    why: str = ""
    refused: bool = False
    grid: float | None = None
    sample: float | None = None
    moves: float | None = None


def network(x: Tensor, t: Tensor) -> Tensor:
    """A smooth function of its input, of a pixel's neighbours and of the timestep, which stands for a network."""
    time = torch.as_tensor(t, dtype=torch.float32).reshape(-1, 1, 1, 1)
    return 0.6 * torch.tanh(1.3 * x + 0.4 * x.roll(1, -1)) + 0.1 * torch.sin(time / 150)


def rows() -> Iterator[Row]:
    """Every row of the tables, in the order of the classes and of their options."""
    for kind, defaults in SCHEDULERS.items():
        yield compared(kind, "", None)
        for option, default in defaults.items():
            if option in IGNORED and option not in fields_read_by(kind):
                yield Row(kind, option, why=IGNORED[option])
                continue
            for value in VALUES[option]:
                if value != default or isinstance(value, bool) != isinstance(default, bool):
                    yield compared(kind, option, value)


def compared(kind: str, option: str, value: Any) -> Row:
    """Reads the schedule of one config, and compares it with the scheduler itself."""
    needed = {k: v for k, v in NEEDS.get(option, {}).items() if k in SCHEDULERS[kind] and k != option}
    steady = STEADY if kind in TABLES and option not in ("", "prediction_type") else {}
    config = {**steady, **needed, **({option: set_to(value)} if option else {})}
    if (option, value) == ("prediction_type", "flow_prediction") and "use_flow_sigmas" in SCHEDULERS[kind]:
        config["use_flow_sigmas"] = True
    try:
        schedule = read_schedule({"_class_name": kind, **config})
    except ddim.InputError as error:
        return Row(kind, option, value, error.message, refused=True)
    scheduler = made(kind, config, schedule)
    if scheduler is None:
        return Row(kind, option, value)
    grid = schedule.grid(STEPS, image_size=TOKENS)
    apart = grids_apart(scheduler, schedule, grid)
    sample, moves = samples(kind, schedule, grid, scheduler, apart or 0.0)
    return Row(kind, option, value, grid=apart, sample=sample, moves=moves)


def set_to(value: Any) -> Any:
    """The value of an option; a text stands for the list of ``trained_betas``."""
    return torch.linspace(0.0002, 0.03, 1000).tolist() if value == VALUES["trained_betas"][0] else value


def made(kind: str, config: Mapping[str, Any], schedule: Schedule) -> Any:
    """The scheduler with its timesteps set; None if it cannot be made (LMS needs scipy) or refuses this config."""
    try:
        scheduler = getattr(diffusers, kind)(**config, **({"skip_prk_steps": True} if kind == "PNDMScheduler" else {}))
    except (ImportError, NotImplementedError, ValueError, TypeError):
        return None
    more = {"mu": schedule.shift.mu(TOKENS)} if isinstance(schedule.shift, DynamicShift) else {}
    try:
        scheduler.set_timesteps(STEPS, **more)
    except (ValueError, IndexError, NotImplementedError):
        return None
    if kind == "ScoreSdeVeScheduler":
        scheduler.set_sigmas(STEPS)
    return scheduler


def grids_apart(scheduler: Any, schedule: Schedule, grid: ddim.Grid) -> float | None:
    """The largest relative difference of the finite noise levels at which the steps start; None if they are more."""
    flow = isinstance(schedule.path, RectifiedFlow)
    ours = [node.sigma if flow else node.ratio for node in grid.nodes[:-1]]
    if hasattr(scheduler, "schedule"):  # KarrasVeScheduler, whose levels are squares, for images in [-1, 1]
        theirs = scheduler.schedule.double().sqrt() / 2
    elif hasattr(scheduler, "sigmas"):
        theirs = scheduler.sigmas.double()
    else:
        signal = scheduler.alphas_cumprod[
            scheduler.timesteps.long().clamp(0, len(scheduler.alphas_cumprod) - 1)
        ].double()
        theirs = ((1 - signal) / signal).sqrt()
    levels = sorted({float(level) for level in theirs if level > 0}, reverse=True)
    if type(scheduler).__name__ in STOPPING and len(levels) == len(ours) + 1:
        levels = levels[:-1]
    if getattr(scheduler.config, "final_sigmas_type", "zero") == "sigma_min" and len(levels) == len(ours) + 1:
        levels = levels[:-1]
    if len(levels) != len(ours):
        return None
    return max(abs(a / b - 1) for a, b in zip(ours, levels, strict=True) if math.isfinite(a))


STOPPING = ("DEISMultistepScheduler", "SASolverScheduler")
"""Classes whose list of sigmas ends with the lowest level of the table."""


def samples(
    kind: str, schedule: Schedule, grid: ddim.Grid, scheduler: Any, apart: float
) -> tuple[float | None, float | None]:
    """The largest difference of the samples of both, from the same noise, and ``Row.moves``.

    Both are None if there is no such solver here, or if the scheduler cannot make the step.
    """
    if kind not in SAMPLERS:
        return None, None
    name, options = SAMPLERS[kind]
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    try:
        theirs = their_sample(scheduler, start * float(getattr(scheduler, "init_noise_sigma", 1)))
    except (NotImplementedError, ValueError):  # a prediction type that its config may name, but its step does not have
        return None, None
    model = ddim.Model.from_network(network, schedule, shape=SHAPE[1:], timestep_dtype=torch.float32)  # type: ignore[arg-type]
    solver = ddim.make_solver(name, {**(schedule.solver_options if name == schedule.solver else {}), **options})
    denoise = model.guided(ddim.Guidance(), model.condition(None, SHAPE[0]))

    def ours(x: Tensor) -> Tensor:
        draws = torch.Generator().manual_seed(2)
        state = solver.init(x * schedule.prior_std(grid), grid)
        return solver.read(ddim.solve(denoise, solver, state, grid, noise=lambda like: _normal(like.shape, draws)))

    one = ours(start)
    return float((one - theirs).abs().max()), float((ours(start * (1 + max(apart, 1e-7))) - one).abs().max())


def _normal(shape: Sequence[int], draws: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=draws)


def their_sample(scheduler: Any, x: Tensor) -> Tensor:
    """What the scheduler samples with the network, from x."""
    draws, kind = torch.Generator().manual_seed(2), type(scheduler).__name__
    more: dict[str, Any] = {}
    if kind.startswith("DDIM"):
        more = {"use_clipped_model_output": True}  # clipping that keeps x = alpha x0 + sigma eps, as ours
    elif kind.startswith(("DDPM", "LCM", "TCD")) or "Ancestral" in kind:
        more = {"generator": draws}
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, t), t, x, **more).prev_sample
    return x


NUMBERS = (
    "difference of the grids",
    "difference of the samples",
    "change of our sample if its start is disturbed by as much as the grids differ",
)
"""The heads of the columns of ``Row.grid``, ``Row.sample`` and ``Row.moves``."""

# --- the tables -----------------------------------------------------------------------------------------------------


def markdown(every: list[Row]) -> str:
    """The three tables, with the command that wrote them."""
    taken = [row for row in every if not row.why]
    refused = [row for row in every if row.refused]
    ignored = [row for row in every if row.why and not row.refused]
    parts = [
        "### Taken",
        _table(
            ["class", "solver here", "option", "value", *NUMBERS],
            [[f"`{r.kind.removesuffix('Scheduler')}`", _solver(r.kind), *_setting(r), *_numbers(r)] for r in taken],
        ),
        "### Read, but without effect",
        _table(["option", "classes", "why"], _merged(ignored, lambda r: (f"`{r.option}`", r.why))),
        "### Refused",
        _table(["setting", "classes", "what the error says"], _merged(refused, _refusal)),
        "### Refused classes",
        _table(["class", "why"], [[f"`{kind}`", f"it {why}"] for kind, why in sorted(UNSUPPORTED.items())]),
        "command: python docs/_tools/scheduler_table.py",
        f"S = {STEPS}, one network of two operations, float32; torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}, Python {sys.version.split()[0]}",
    ]
    return "\n\n".join(parts[:-1]) + "\n" + parts[-1] + "\n"


def _refusal(row: Row) -> tuple[str, str]:
    return f"`{row.option}` = `{row.value}`", row.why.replace(row.kind, "the class")


def _merged(some: list[Row], key: Callable[[Row], tuple[str, str]]) -> list[list[str]]:
    groups: dict[tuple[str, str], list[str]] = {}
    for row in some:
        groups.setdefault(key(row), []).append(f"`{row.kind.removesuffix('Scheduler')}`")
    return [[what, ", ".join(classes), why] for (what, why), classes in sorted(groups.items())]


def _solver(kind: str) -> str:
    if kind not in SAMPLERS:
        return "–"
    name, options = SAMPLERS[kind]
    return " ".join([f"`{name}`", *(f"`{k}={v:g}`" for k, v in options.items())])


def _setting(row: Row) -> list[str]:
    if not row.option:
        return ["the defaults", ""]
    return [f"`{row.option}`", f"{row.value}" if row.option == "trained_betas" else f"`{row.value}`"]


def _numbers(row: Row) -> list[str]:
    return [_number(value) for value in (row.grid, row.sample, row.moves)]


def _number(value: float | None) -> str:
    return "–" if value is None else "0" if value == 0 else f"{value:.1e}"


def _table(heads: list[str], body: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    diffusers.logging.set_verbosity_error()
    write_whole(FILE, markdown(list(rows())).encode())
