import inspect
import math

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

import ddim
from ddim.path import _TABLE_SCHEDULERS, spacing_from_config

PATHS = {
    "ddpm": ddim.ddpm_linear(),
    "scaled-linear": ddim.TablePath(ddim.scaled_linear_alpha_bar(), "first"),
    "cosine": ddim.TablePath(ddim.cosine_alpha_bar()),
    "zero-terminal-snr": ddim.TablePath(ddim.zero_terminal_snr(ddim.linear_alpha_bar())),
    "ten": ddim.TablePath(ddim.linear_alpha_bar(10, 0.01, 0.3)),
    "ve": ddim.VEPath(),
    "flow": ddim.RectifiedFlow(),
}
TABLES = [name for name, p in PATHS.items() if isinstance(p, ddim.TablePath)]
every_path = pytest.mark.parametrize("path", PATHS)


def inside(path) -> torch.Tensor:
    """Real times between the two ends."""
    return torch.linspace(0.001, 0.999, 97, dtype=torch.float64) * path.t_max


def test_linear_alpha_bar_is_the_product_of_its_betas():
    bar = 1.0
    for t in range(1000):
        bar *= 1 - (1e-4 + t * (0.02 - 1e-4) / 999)
        assert ddim.linear_alpha_bar()[t] == pytest.approx(bar, rel=1e-12) if t % 333 == 0 else True
    assert ddim.linear_alpha_bar()[-1] == pytest.approx(bar, rel=1e-12)


def test_scaled_linear_alpha_bar_is_linear_in_the_root_of_beta():
    bar = ddim.scaled_linear_alpha_bar()
    betas = 1 - bar[1:] / bar[:-1]
    assert torch.allclose(betas.sqrt().diff(), torch.full((998,), (0.012**0.5 - 0.00085**0.5) / 999).double())


def test_cosine_alpha_bar_is_nichols_formula_until_the_cap():
    bar = ddim.cosine_alpha_bar(1000)

    def f(t: float) -> float:
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (1, 10, 500, 990):
        assert float(bar[t - 1]) == pytest.approx(f(t) / f(0), rel=1e-9)
    assert 1 - float(bar[-1] / bar[-2]) == pytest.approx(0.999)


@pytest.mark.parametrize(
    ("ours", "schedule", "start", "end"),
    [
        (ddim.linear_alpha_bar(), "linear", 1e-4, 0.02),
        (ddim.scaled_linear_alpha_bar(), "scaled_linear", 0.00085, 0.012),
        (ddim.cosine_alpha_bar(), "squaredcos_cap_v2", 1e-4, 0.02),
    ],
    ids=["linear", "scaled_linear", "cosine"],
)
def test_tables_are_those_of_diffusers(ours, schedule, start, end):
    theirs = DDPMScheduler(beta_schedule=schedule, beta_start=start, beta_end=end).alphas_cumprod
    assert torch.allclose(ours, theirs.double(), rtol=1e-3, atol=1e-7)  # theirs is a product of float32


def test_zero_terminal_snr_is_that_of_diffusers():
    bar = ddim.scaled_linear_alpha_bar()
    betas = 1 - bar / torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0)
    ours = ddim.zero_terminal_snr(bar)
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-15)
    assert ours[-1] == 0
    assert ours[0] == pytest.approx(float(bar[0]))


@pytest.mark.parametrize("path", TABLES)
def test_tables_preserve_variance_at_every_real_t(path):
    t = inside(PATHS[path])
    total = PATHS[path].alpha(t) ** 2 + PATHS[path].sigma(t) ** 2
    assert torch.allclose(total, torch.ones_like(t), rtol=0, atol=1e-14)


@pytest.mark.parametrize("path", TABLES)
def test_tables_are_met_at_whole_t(path):
    p = PATHS[path]
    first = 1 if p.data == "one" else 0
    t = torch.arange(len(p.alpha_bar), dtype=torch.float64) + first
    assert torch.allclose(p.alpha(t), p.alpha_bar.sqrt(), rtol=0, atol=1e-12)
    assert torch.allclose(p.sigma(t), (1 - p.alpha_bar).sqrt(), rtol=0, atol=1e-12)


def test_ends_are_exact():
    assert PATHS["ddpm"].node(0) == ddim.Node(0.0, 1.0, 0.0)
    assert PATHS["zero-terminal-snr"].node(1000) == ddim.Node(1000.0, 0.0, 1.0)
    assert PATHS["zero-terminal-snr"].node(1000).ratio == math.inf
    assert PATHS["flow"].node(1) == ddim.Node(1.0, 0.0, 1.0)
    assert PATHS["ve"].node(80) == ddim.Node(80.0, 1.0, 80.0)


def test_rectified_flow_is_straight():
    assert ddim.RectifiedFlow().node(0.3) == ddim.Node(0.3, 0.7, 0.3)


@every_path
def test_noise_rises_with_t(path):
    p = PATHS[path]
    assert (p.log_snr(inside(p)).diff() < 0).all()


@every_path
def test_t_of_log_snr_inverts_at_any_real_t(path):
    p, t = PATHS[path], inside(PATHS[path])
    assert torch.allclose(p.t_of_log_snr(p.log_snr(t)), t, rtol=1e-8, atol=1e-8 * p.t_max)


@every_path
def test_t_of_log_snr_stays_on_the_path(path):
    p = PATHS[path]
    ends = p.t_of_log_snr(torch.tensor([1e3, -1e3, math.inf, -math.inf]))
    assert ((ends >= 0) & (ends <= p.t_max)).all()


@every_path
def test_a_path_keeps_the_shape_and_computes_in_float64(path):
    t = torch.rand(2, 3, 1) * PATHS[path].t_max
    for f in (PATHS[path].alpha, PATHS[path].sigma, PATHS[path].log_snr):
        assert f(t).shape == t.shape
        assert f(t).dtype == torch.float64


def test_labels_are_the_networks_own_numbers():
    assert [PATHS["ddpm"].label(t) for t in (1000, 1, 0.5, 0)] == [999, 0, 0, 0]
    assert [PATHS["scaled-linear"].label(t) for t in (999, 1, 0)] == [999, 1, 0]
    assert PATHS["flow"].label(0.25) == 250
    assert PATHS["ve"].label(3.5) == 3.5


def test_stable_diffusions_table_ends_at_its_first_entry():
    p = PATHS["scaled-linear"]
    assert (p.levels, p.train_levels, p.t_max) == (999, 1000, 999.0)
    assert p.node(0).alpha == pytest.approx(math.sqrt(1 - 0.00085))


@every_path
@pytest.mark.parametrize("t", [-0.1, 1e6, float("nan")])
def test_a_node_off_the_path_is_refused(path, t):
    with pytest.raises(ddim.InputError, match="it runs from 0 to"):
        PATHS[path].node(t)


# --- from_scheduler_config ------------------------------------------------------------------------------------------


def test_from_config_defaults_are_ddpms():
    path = ddim.from_scheduler_config({})
    assert torch.equal(path.alpha_bar, ddim.linear_alpha_bar())
    assert path.data == "one"


@pytest.mark.parametrize(
    "scheduler", ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"]
)
def test_from_config_reads_what_diffusers_writes(scheduler):
    made = getattr(diffusers, scheduler)(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    path = ddim.from_scheduler_config(dict(made.config) | {"_class_name": scheduler})
    assert torch.allclose(path.alpha_bar, made.alphas_cumprod.double(), rtol=1e-4)
    # PNDM's default differs from DDIM's: set_alpha_to_one=False
    assert path.data == ("first" if scheduler == "PNDMScheduler" else "one")


def test_from_config_of_stable_diffusion():
    import tiny

    path = ddim.from_scheduler_config(tiny.STABLE_DIFFUSION)
    assert torch.equal(path.alpha_bar, ddim.scaled_linear_alpha_bar())
    assert path.data == "first"


def test_from_config_with_zero_terminal_snr():
    path = ddim.from_scheduler_config({"rescale_betas_zero_snr": True})
    assert path.node(1000).alpha == 0


def test_from_config_with_trained_betas():
    path = ddim.from_scheduler_config({"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3})
    assert path.alpha_bar.tolist() == pytest.approx([0.9, 0.72, 0.504])


def test_from_config_of_flow_and_ve():
    flow = ddim.from_scheduler_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 500})
    assert flow == ddim.RectifiedFlow(levels=500)
    ve = ddim.from_scheduler_config({"_class_name": "EDMEulerScheduler", "sigma_max": 50.0, "sigma_min": 0.01})
    assert ve == ddim.VEPath(50.0, 0.01)


def told_apart() -> list[str]:
    """The schedulers that choose their spacing, and that are there (some need scipy and are stand-ins without it)."""
    kinds = [k for k in _TABLE_SCHEDULERS if k and hasattr(diffusers, k)]
    return [k for k in kinds if "timestep_spacing" in inspect.signature(getattr(diffusers, k)).parameters]


@pytest.mark.parametrize("kind", told_apart())
def test_what_a_config_leaves_out_is_what_its_class_takes_for_granted(kind):
    usual = inspect.signature(getattr(diffusers, kind)).parameters
    at_one = usual["set_alpha_to_one"].default if "set_alpha_to_one" in usual else True
    assert ddim.from_scheduler_config({"_class_name": kind}).data == ("one" if at_one else "first")
    assert spacing_from_config({"_class_name": kind}) == usual["timestep_spacing"].default
    assert spacing_from_config({"_class_name": kind, "timestep_spacing": "trailing"}) == "trailing"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"_class_name": "DDIMSchedular"}, "Did you mean 'DDIMScheduler'"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps: 'many' of the scheduler config is not a number"),
        ({"beta_start": None}, "beta_start: None of the scheduler config is not a number"),
        ({"trained_betas": "abc"}, "trained_betas: it is not a list of numbers"),
        ({"trained_betas": [0.1, 2.0]}, "between 0 and 1|in \\(0, 1\\)"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_read(config, says):
    with pytest.raises(ddim.InputError, match=says):
        ddim.from_scheduler_config(config)


def test_from_config_names_the_nearest_schedule():
    with pytest.raises(ddim.InputError, match="Did you mean 'scaled_linear'"):
        ddim.from_scheduler_config({"beta_schedule": "scaled-linear"})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ddim.TablePath(torch.tensor([0.5])), "at least 2"),
        (lambda: ddim.TablePath(torch.rand(2, 2)), "at least 2"),
        (lambda: ddim.TablePath(torch.tensor([0.5, 0.6])), "fall strictly"),
        (lambda: ddim.TablePath(torch.tensor([0.9, 0.5, 0.5])), "fall strictly"),
        (lambda: ddim.TablePath(torch.tensor([1.2, 0.5])), "fall strictly"),
        (lambda: ddim.TablePath(torch.tensor([0.9, float("nan")])), "fall strictly"),
        (lambda: ddim.TablePath(torch.tensor([1.0, 0.5])), "coincide"),
        (lambda: ddim.TablePath(torch.tensor([0.9, 0.5]), "frist"), "Did you mean 'first'"),
        (lambda: ddim.VEPath(sigma_max=0.001), "sigma_min < sigma_max"),
        (lambda: ddim.VEPath(sigma_max=math.inf), "sigma_min < sigma_max"),
        (lambda: ddim.linear_alpha_bar(1), "at least 2 steps"),
        (lambda: ddim.linear_alpha_bar(10, 0.0, 0.1), "between 0 and 1"),
        (lambda: ddim.scaled_linear_alpha_bar(10, 0.1, 1.5), "between 0 and 1"),
    ],
)
def test_a_path_that_cannot_be(make, says):
    with pytest.raises(ddim.InputError, match=says):
        make()
