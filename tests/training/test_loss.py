"""The loss against closed forms."""

import itertools
import json
import math
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from refusals import refused, unknown

from ddim.core.path import RectifiedFlow, ddpm_linear
from ddim.core.prediction import Pair, from_pair
from ddim.training import draws
from ddim.training.config import LossConfig, OptimConfig, ScheduleConfig
from ddim.training.ema import EMA
from ddim.training.loss import diffusion_loss, flow_loss, levels_of, path_of
from ddim.training.step import learning_rate
from ddim.training.tasks.base import Draw

SCHEDULE = ScheduleConfig(steps=50)
PREDICTIONS = ["eps", "x0", "v"]


class Guess(torch.nn.Module):
    """A network that knows x0 up to ``off``, and says so as eps, x0 or v."""

    def __init__(self, x0, prediction, off):
        super().__init__()
        self.x0, self.prediction, self.off = x0, prediction, off
        self.path = path_of(SCHEDULE)

    def forward(self, x, timestep):
        t = timestep + 1
        alpha, sigma = (f(t).view(-1, 1, 1, 1) for f in (self.path.alpha, self.path.sigma))
        x0 = self.x0.double() + self.off
        return SimpleNamespace(sample=from_pair(self.prediction, Pair(x0, (x - alpha * x0) / sigma), alpha, sigma))


def the_loss(prediction, t, off=0.1, **options):
    generator = torch.Generator().manual_seed(3)
    x0, eps = (torch.randn(len(t), 1, 4, 4, generator=generator) for _ in range(2))
    config = LossConfig(prediction=prediction, **options)
    levels = levels_of(SCHEDULE, config)
    guess = Guess(x0, prediction, off)
    return float(diffusion_loss(lambda x, label: guess(x, label).sample, x0, eps, torch.tensor(t), levels, prediction))


@pytest.mark.parametrize("t", [1, 7, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_gamma_one_is_the_mean_squared_error_of_the_prediction(prediction, t):
    node = path_of(SCHEDULE).node(t)
    snr = (node.alpha / node.sigma) ** 2
    # An x0 that is off by 0.1 makes eps off by 0.1 alpha / sigma, and v by 0.1 / sigma.
    expected = 0.01 * {"eps": snr, "x0": 1.0, "v": snr + 1}[prediction]
    assert the_loss(prediction, [t]) == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [1, 12, 50])
def test_min_snr_is_the_same_loss_on_x0_for_every_prediction(prediction, t):
    node = path_of(SCHEDULE).node(t)
    expected = 0.01 * min((node.alpha / node.sigma) ** 2, 5.0)
    assert the_loss(prediction, [t], weight="min_snr", min_snr_k=5.0) == pytest.approx(expected, rel=2e-4)


def test_min_snr_takes_both_branches_in_these_tests():
    path = path_of(SCHEDULE)
    snr = [(path.node(t).alpha / path.node(t).sigma) ** 2 for t in (1, 12, 50)]
    assert min(snr) < 5 < max(snr)


def test_user_weights_count_by_level(tmp_path):
    weight = tuple(float(k) for k in range(50))
    plain = [the_loss("eps", [t]) for t in (3, 40)]
    expected = (2 * plain[0] + 39 * plain[1]) / 2
    file = tmp_path / "weights.json"
    file.write_text(json.dumps(weight))
    text = tmp_path / "weights.txt"
    text.write_text("\n".join(map(str, weight)))
    # one batch of both draws other images than two of one, but the error is 0.1 in each
    for given in (weight, str(file), str(text)):
        assert the_loss("eps", [3, 40], weight=given) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("weight", "refusal"),
    [
        ((1.0, 2.0), refused("loss.weight", 2, 50)),
        ((-1.0,) * 50, refused("loss.weight", 0)),
        ((float("nan"),) * 50, refused("loss.weight", "finite")),
        ("min_snrr", unknown("loss.weight", "min_snrr", nearest="min_snr")),
        ("no.json", refused("loss.weight", "no.json")),
    ],
)
def test_wrong_user_weights_are_one_sentence(weight, refusal):
    with refusal:
        levels_of(SCHEDULE, LossConfig(weight=weight))


def test_levels_are_the_papers_table():
    levels = levels_of(ScheduleConfig(), LossConfig())
    path = ddpm_linear()
    for t in (1, 500, 1000):
        assert float(levels.alpha[t - 1]) == pytest.approx(path.node(t).alpha, rel=1e-6)
        assert float(levels.sigma[t - 1]) == pytest.approx(path.node(t).sigma, rel=1e-6)


# --- draws ----------------------------------------------------------------------------------------------------------


def test_draws_depend_on_the_place_only():
    flips, noise = draws.flips_and_noise(7, 3, range(8), (1, 4, 4))
    some_flips, some = draws.flips_and_noise(7, 3, [5, 2], (1, 4, 4))
    assert torch.equal(some, noise[[5, 2]])
    assert torch.equal(some_flips, flips[[5, 2]])
    everything = [noise, draws.flips_and_noise(7, 4, range(8), (1, 4, 4))[1]]
    everything.append(draws.flips_and_noise(8, 3, range(8), (1, 4, 4))[1])
    values = torch.cat([n.flatten() for n in everything])
    assert len(values.unique()) > 0.99 * len(values)  # no stream runs into another


def test_noise_is_standard_normal_and_flips_are_fair():
    flips, noise = draws.flips_and_noise(0, 0, range(400), (1, 16, 16))
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert 150 < int(flips.sum()) < 250


@pytest.mark.parametrize("kind", ["uniform", "stratified"])
def test_times_cover_every_level_alike(kind):
    drawn = torch.cat([draws.times(0, step, 64, 10, kind) for step in range(400)])
    counts = torch.bincount(drawn, minlength=11)
    assert counts[0] == 0
    assert len(counts) == 11
    assert bool((counts[1:] > 2300).all())


def test_stratified_times_fill_each_stratum():
    t = draws.times(1, 2, 100, 1000, "stratified")
    assert torch.equal((t - 1) // 10, torch.arange(100))


def test_logit_normal_times_are_quantiles_of_their_strata():
    """The logit of a level is normal: the level at position p lies between the p-th and the next of B quantiles."""
    normal = NormalDist()
    drawn = torch.stack([draws.logit_normal(3, step, 8) for step in range(400)])
    assert drawn.dtype == torch.float64
    edges = [0.0, *(1 / (1 + math.exp(-normal.inv_cdf(k / 8))) for k in range(1, 8)), 1.0]
    for position, (low, high) in enumerate(itertools.pairwise(edges)):
        assert low <= float(drawn[:, position].min()) <= float(drawn[:, position].max()) <= high
    logits = torch.logit(drawn.flatten())
    assert float(logits.mean()) == pytest.approx(0, abs=0.02)
    assert float(logits.std()) == pytest.approx(1, abs=0.03)
    assert torch.equal(draws.logit_normal(3, 7, 8), drawn[7])
    part = Draw(seed=3, step=7, batch=8, positions=range(4, 8)).logit_normal()
    assert torch.equal(part, drawn[7, 4:].float())


def test_flow_matching_is_the_squared_error_of_the_velocity():
    """A network that says what x and the timestep were, so that the loss is known in closed form."""
    x0, eps = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.0, 0.25, 1.0])
    seen = []

    def network(x, timestep):
        seen.append((x, timestep))
        return eps - x0 + 0.5 * sigma.view(-1, 1, 1, 1)

    loss = flow_loss(network, x0, eps, sigma, RectifiedFlow())
    assert float(loss) == pytest.approx(0.25 * (0.0625 + 1) / 3, rel=1e-5)
    ((x, timestep),) = seen
    assert timestep.tolist() == [0, 250, 1000]
    torch.testing.assert_close(x, torch.stack([x0[0], 0.75 * x0[1] + 0.25 * eps[1], eps[2]]))


def test_order_is_a_permutation_of_its_own_for_each_epoch():
    first, second = draws.order(0, 0, 100), draws.order(0, 1, 100)
    assert sorted(first.tolist()) == list(range(100))
    assert not np.array_equal(first, second)


# --- averages and rates ---------------------------------------------------------------------------------------------


def test_ema_is_the_closed_form_and_gives_the_weights_back():
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(1.0)
    ema = EMA(network, 0.9, warmup=False)
    network.weight.data.fill_(2.0)
    for step in range(5):
        ema.update(step)
    expected = 2 - 0.9**5
    with ema.swapped():
        assert network.weight.item() == pytest.approx(expected)
    assert network.weight.item() == 2.0


def test_ema_warm_up_follows_the_weights_early():
    ema = EMA(torch.nn.Linear(1, 1), 0.999, warmup=True)
    assert ema.decay_at(0) == pytest.approx(0.1)
    assert ema.decay_at(90) == pytest.approx(0.91)
    assert ema.decay_at(10**6) == 0.999


def test_learning_rate_rises_and_falls():
    cosine = OptimConfig(steps=110, lr=2.0, warmup=10, lr_schedule="cosine")
    assert learning_rate(cosine, 0) == pytest.approx(0.2)
    assert learning_rate(cosine, 9) == learning_rate(cosine, 10) == 2.0
    assert learning_rate(cosine, 60) == pytest.approx(1.0)
    assert learning_rate(cosine, 109) < 1e-3
    constant = OptimConfig(steps=110, lr=2.0, warmup=0)
    assert {learning_rate(constant, s) for s in (0, 50, 109)} == {2.0}
    falling = OptimConfig(steps=110, lr=2.0, warmup=10, decay=20)
    assert [learning_rate(falling, s) for s in (0, 9, 89, 90)] == pytest.approx([0.2, 2.0, 2.0, 2.0])
    assert [learning_rate(falling, s) for s in (91, 100, 109)] == pytest.approx([1.9, 1.0, 0.1])
