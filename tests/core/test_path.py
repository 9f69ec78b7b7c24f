import json
import math
from dataclasses import dataclass

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from refusals import refused, unknown

import ddim
from ddim.core.path import description, path_from

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
    assert [PATHS["ddpm"].timestep(t) for t in (1000, 1, 0.5, 0)] == [999, 0, 0, 0]
    assert [PATHS["scaled-linear"].timestep(t) for t in (999, 1, 0)] == [999, 1, 0]
    assert PATHS["flow"].timestep(0.25) == 250
    assert PATHS["ve"].timestep(3.5) == 3.5


def test_stable_diffusions_table_ends_at_its_first_entry():
    p = PATHS["scaled-linear"]
    assert (p.levels, p.train_levels, p.t_max) == (999, 1000, 999.0)
    assert p.node(0).alpha == pytest.approx(math.sqrt(1 - 0.00085))


@every_path
@pytest.mark.parametrize("t", [-0.1, 1e6, float("nan")])
def test_a_node_off_the_path_is_refused(path, t):
    with refused("t", f"{t:g}"):
        PATHS[path].node(t)


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        (lambda: ddim.TablePath(torch.tensor([0.5])), refused("alpha_bar", (1,))),
        (lambda: ddim.TablePath(torch.rand(2, 2)), refused("alpha_bar", (2, 2))),
        (lambda: ddim.TablePath(torch.tensor([0.5, 0.6])), refused("alpha_bar")),
        (lambda: ddim.TablePath(torch.tensor([0.9, 0.5, 0.5])), refused("alpha_bar")),
        (lambda: ddim.TablePath(torch.tensor([1.2, 0.5])), refused("alpha_bar")),
        (lambda: ddim.TablePath(torch.tensor([0.9, float("nan")])), refused("alpha_bar")),
        (lambda: ddim.TablePath(torch.tensor([1.0, 0.5])), refused("data", "alpha_bar[0]", "'first'")),
        (lambda: ddim.TablePath(torch.tensor([0.9, 0.5]), "frist"), unknown("data", "frist", nearest="first")),
        (lambda: ddim.VEPath(sigma_max=0.001), refused("sigma_min", 0.002, 0.001)),
        (lambda: ddim.VEPath(sigma_max=math.inf), refused("sigma_min", 0.002, "inf")),
        (lambda: ddim.linear_alpha_bar(1), refused("steps", 1, 2, 100000)),
        (lambda: ddim.linear_alpha_bar(10, 0.0, 0.1), refused("beta_start", 0.0)),
        (lambda: ddim.scaled_linear_alpha_bar(10, 0.1, 1.5), refused("beta_end", 1.5)),
    ],
)
def test_a_path_that_cannot_be(make, refusal):
    with refusal:
        make()


# --- a path as data -------------------------------------------------------------------------------------------------

AS_DATA = {
    "table": ddim.ddpm_linear(),
    "first": ddim.TablePath(ddim.scaled_linear_alpha_bar(), "first"),
    "single": ddim.TablePath(ddim.cosine_alpha_bar().float()),
    "zero-snr": ddim.TablePath(ddim.zero_terminal_snr(ddim.linear_alpha_bar(10, 0.01, 0.3))),
    "ve": ddim.VEPath(0.1 + 0.2, 1e-3 / 3, 17),
    "flow": ddim.RectifiedFlow(321),
}


@pytest.mark.parametrize("name", AS_DATA)
def test_a_path_written_down_comes_back_to_the_bit(name):
    path = AS_DATA[name]
    about, tensors = description(path)
    assert all(value.dtype == torch.float64 for value in tensors.values())
    back = path_from(json.loads(json.dumps(about)), {**tensors, "another": torch.zeros(1)})
    assert type(back) is type(path)
    t = torch.linspace(0, path.t_max, 1001, dtype=torch.float64)
    for ask in ("alpha", "sigma", "log_snr"):
        assert torch.equal(getattr(back, ask)(t), getattr(path, ask)(t))
    for one, other in zip(*(ddim.make_grid(p, 7, "karras") for p in (path, back)), strict=True):
        assert one == other
    assert (back.levels, back.train_levels, back.t_max) == (path.levels, path.train_levels, path.t_max)


@dataclass(frozen=True)
class Own(ddim.RectifiedFlow):
    pass


def test_a_path_of_another_class_is_not_written_down():
    with pytest.raises(ddim.InputError) as caught:
        description(Own())
    assert caught.value.parameter == "path"
    assert "Own" in str(caught.value)


@pytest.mark.parametrize(
    ("about", "tensors"),
    [
        ({}, {}),
        ({"kind": "spiral"}, {}),
        ({"kind": ["table"]}, {}),
        ({"kind": "table", "data": "one"}, {}),
        ({"kind": "table", "data": "last"}, {"alpha_bar": torch.tensor([0.9, 0.5])}),
        ({"kind": "table"}, {"alpha_bar": torch.tensor([0.9, 0.5])}),
        ({"kind": "table", "data": "one"}, {"alpha_bar": torch.tensor([0.5, 0.9])}),
        ({"kind": "ve", "sigma_max": 80.0, "levels": 5}, {}),
        ({"kind": "ve", "sigma_max": "80", "sigma_min": 0.1, "levels": 5}, {}),
        ({"kind": "ve", "sigma_max": 0.1, "sigma_min": 80.0, "levels": 5}, {}),
        ({"kind": "ve", "sigma_max": 80.0, "sigma_min": 0.1, "levels": 5.5}, {}),
        ({"kind": "flow"}, {}),
        ({"kind": "flow", "levels": 0}, {}),
        ({"kind": "flow", "levels": True}, {}),
    ],
    ids=str,
)
def test_a_description_that_is_none(about, tensors):
    with pytest.raises(ddim.InputError):
        path_from(about, tensors)
