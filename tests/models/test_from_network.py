"""Networks of one's own in every pipeline: one told a real time, one that looks timesteps up and takes classes."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused, warned
from torch import Tensor, nn

import ddim
from ddim.core.prediction import Hold
from ddim.core.schedule import Schedule
from ddim.inversion import INVERSIONS, make_inversion
from ddim.models.base import Model
from ddim.models.loading import Loading
from ddim.models.network import NetworkModel

PATH = ddim.ddpm_linear()
NULL = 7
PLAIN = [name for name, method in INVERSIONS.items() if not method.needs]
EXACT = [name for name in PLAIN if INVERSIONS[name].exact]


class Flow(nn.Module):
    """On rectified flow: told a real t, float32 [N]; pictures of three channels, higher than wide, from 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 3, padding=1)
        self.told: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == x.shape[:1]
        self.told.append(t)
        return torch.tanh(self.mix(x)) * (1 + t.view(-1, 1, 1, 1) / 1000)


class Lookup(nn.Module):
    """On a table: timesteps int64 [N] and labels int64 [N], both looked up; answers as diffusers' networks do."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.times = nn.Embedding(1000, 1)
        self.classes = nn.Embedding(NULL + 1, 16)
        self.known = classes

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Any:
        assert t.dtype == labels.dtype == torch.int64
        assert t.shape == labels.shape == x.shape[:1]
        assert set(labels.tolist()) <= {*range(self.known), NULL}
        kind = self.classes(labels).view(-1, 1, 4, 4)
        said = 0.3 * torch.tanh(x + kind) + 0.1 * self.times(t)[:, :, None, None] * x
        return type("Answer", (), {"sample": said})()


@pytest.fixture(scope="module")
def flow() -> Model:
    torch.manual_seed(0)
    return Model.from_network(Flow().eval(), Schedule(ddim.RectifiedFlow(), "flow"), shape=(3, 6, 4), range=(0, 1))


@pytest.fixture(scope="module")
def lookup() -> Model:
    torch.manual_seed(1)
    network = Lookup().eval()
    return Model.from_network(network, Schedule(PATH, "v"), shape=(1, 4, 4), labels=5, null_label=NULL, name="mine")


def pictures(model: Model, count: int = 2) -> Tensor:
    return torch.rand(count, *model.picture, generator=torch.Generator().manual_seed(3))


def test_its_facts(flow, lookup):
    assert (flow.shape, flow.picture, flow.classes, flow.text, flow.multiple) == ((3, 6, 4), (3, 6, 4), 0, False, 0)
    assert (flow.dtype, flow.device.type, flow.info.parameters) == (torch.float32, "cpu", 84)
    assert (lookup.classes, lookup.info.null_class, lookup.name) == (5, NULL, "mine")
    assert lookup.describe()["null_class"] == NULL
    assert flow.describe()["prediction"] == "flow"
    assert flow.describe()["fingerprint"] == flow.fingerprint


def test_it_samples(flow, lookup):
    drawn = ddim.sample(flow, 3, steps=5, solver="heun", spacing="linspace")
    assert drawn.shape == (3, 3, 6, 4)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert torch.allclose(ddim.sample(flow, 3, steps=5, solver="heun", spacing="linspace", batch=2), drawn, atol=1e-5)
    labelled = ddim.sample(lookup, 3, steps=5, labels=[0, 1, 2], seed=3)
    assert not torch.equal(labelled, ddim.sample(lookup, 3, steps=5, labels=[2, 1, 0], seed=3))
    assert not torch.equal(labelled, ddim.sample(lookup, 3, steps=5, labels=[0, 1, 2], seed=3, guidance=4.0))


def test_it_is_told_the_time_as_it_was_trained(flow, lookup):
    network: Any = flow.network  # type: ignore[attr-defined]
    network.told.clear()
    ddim.sample(flow, 2, spacing=[1.0, 0.5])
    assert [t.tolist() for t in network.told] == [[1000.0, 1000.0], [500.0, 500.0]]
    assert {t.dtype for t in network.told} == {torch.float32}
    told_whole = Model.from_network(
        Lookup().eval(), lookup.schedule, shape=(1, 4, 4), labels=5, timestep_dtype=torch.int64
    )
    with refused("timestep_dtype", "torch.int64", 499.5):
        ddim.sample(told_whole, 1, spacing=[500.5], labels=0)


def test_a_sampler_by_hand_draws_the_same(flow):
    """Euler on dx = (eps - x0) dt, from each image's own noise; the range of pictures is the network's own."""
    network: Any = flow.network  # type: ignore[attr-defined]
    x = torch.stack([torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(k)) for k in range(2)])
    grid = flow.schedule.grid(10)
    with torch.no_grad():
        for t, s in zip(grid.nodes, grid.nodes[1:], strict=False):
            x = x + (s.t - t.t) * network(x, torch.full((2,), 1000 * t.t))
    assert torch.allclose(ddim.sample(flow, 2, steps=10), x.clamp(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", PLAIN)
def test_there_and_back(flow, lookup, method):
    for model, settings in ((flow, {}), (lookup, {"labels": [1, 4], "guidance": 2.0})):
        # The second network looks its timesteps up, so that it has no answer between two of them.
        options = {"tableau": "euler"} if method == "rex" and model is lookup else None
        if model is lookup and make_inversion(method, options).solver().asks_between:
            continue
        code = ddim.invert(model, pictures(model), steps=8, method=method, options=options, **settings)
        assert (code.fingerprint, len(code.fingerprint)) == (model.fingerprint, 64)
        back = ddim.reconstruct(model, code, strict=method in EXACT)
        assert back.shape == (2, *model.picture)
        if method in EXACT:
            assert (back - pictures(model)).abs().max() < 1e-5, model.name
        assert (code.x - model.encode(pictures(model))).abs().max() > 0.1


def test_a_network_of_whole_timesteps_is_not_asked_between_them():
    calls: list[int] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x

    schedule = ddim.Schedule(ddim.ddpm_linear(), "eps")
    model = ddim.Model.from_network(network, schedule, shape=(1, 4, 4), timestep_dtype=torch.int64)
    picture = torch.rand(1, 1, 4, 4)
    for tableau in ("midpoint", "rk4"):
        with refused("method", "timestep_dtype"):
            ddim.invert(model, picture, steps=4, method="rex", options={"tableau": tableau})
        with refused("solver", "timestep_dtype"):
            ddim.sample(model, 1, steps=4, solver="rex", options={"tableau": tableau})
    assert not calls
    ddim.invert(model, picture, steps=4, method="rex", options={"tableau": "euler"})
    assert calls


@pytest.mark.parametrize("method", ["bdia", "direct"])
def test_a_code_in_a_file_and_an_arc_between_two(flow, lookup, method, tmp_path):
    for model, settings in ((flow, {}), (lookup, {"labels": 2, "guidance": 2.0})):
        code = ddim.invert(model, pictures(model), steps=5, method=method, **settings)
        read = ddim.LatentCode.load(code.save(tmp_path / "a.code"))
        back = ddim.reconstruct(model, read)
        assert torch.equal(back, ddim.reconstruct(model, code))
        frames = ddim.interpolate(model, read, frames=4)
        assert frames.shape == (4, *model.picture)
        assert torch.equal(frames[[0, -1]], back)
        assert not torch.allclose(frames[1], frames[0], atol=1e-3)


def test_an_edit_by_class(lookup):
    edited = ddim.edit(lookup, pictures(lookup), labels=[3, 4], source_labels=[1, 2], steps=5, guidance=2.0)
    assert edited.edits.shape == (2, 2, 1, 4, 4)
    assert torch.allclose(edited.reconstruction, pictures(lookup), atol=1e-5)


def test_a_network_that_is_no_module_has_the_fingerprint_that_it_is_given():
    schedule = Schedule(PATH, "eps")
    free, told = (
        Model.from_network(lambda x, t: 0.1 * x, schedule, shape=(1, 4, 4), fingerprint=f) for f in (None, "abc")
    )
    assert (free.fingerprint, told.fingerprint) == ("", "abc")
    code = ddim.invert(free, pictures(free), steps=3, method="bdia")
    assert torch.allclose(ddim.reconstruct(told, code), pictures(free), atol=1e-6)  # nothing to hold it against


def test_the_fingerprint_is_of_weights_schedule_and_range():
    torch.manual_seed(0)
    network, options = Flow().eval(), {"shape": (3, 6, 4)}
    flow, straight = Schedule(ddim.RectifiedFlow(), "flow"), Schedule(ddim.RectifiedFlow(), "x0")
    model = Model.from_network(network, flow, **options)
    before = model.fingerprint
    assert before == Model.from_network(network, flow, **options).fingerprint
    others = [
        Model.from_network(network, straight, **options),
        Model.from_network(network, flow, range=(0, 1), **options),
    ]
    assert len({before, *(other.fingerprint for other in others)}) == 3
    code = ddim.invert(model, pictures(model), steps=3)
    with torch.no_grad():
        network.mix.weight.mul_(1.5)
    assert model.fingerprint != before
    with warned(before[:12], model.fingerprint[:12]):
        ddim.reconstruct(model, code)


def test_the_range_is_what_black_and_white_are():
    for low, high in ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0), (-0.5, 3.0)):
        model = Model.from_network(lambda x, t: x, Schedule(PATH, "eps"), shape=(1, 4, 4), range=(low, high))
        ends = torch.tensor([0.0, 1.0, 0.25]).view(3, 1, 1, 1).expand(3, 1, 4, 4)
        assert model.encode(ends)[:, 0, 0, 0].tolist() == pytest.approx([low, high, low + 0.25 * (high - low)])
        assert torch.allclose(model.decode(model.encode(ends)), ends, atol=1e-6)
        assert model.decode(model.encode(ends) + 10 * (high - low)).max() == 1


def test_what_it_computes_in_and_where(lookup):
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.bfloat16):
        model = Model.from_network(Flow().eval().to(dtype), Schedule(ddim.RectifiedFlow(), "flow"), shape=(3, 6, 4))
        assert model.dtype == dtype
        assert model.state_dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert ddim.sample(model, 1, steps=2).dtype == model.state_dtype
    named = Model.from_network(lambda x, t: x, Schedule(PATH, "eps"), shape=(1, 4, 4), device="cpu", dtype="float64")
    assert named.dtype == torch.float64
    seen = []
    told = lambda x, t: (seen.append((x.dtype, t.dtype)), x)[1]  # noqa: E731
    ddim.sample(Model.from_network(told, Schedule(PATH, "eps"), shape=(1, 4, 4), dtype="bfloat16"), 1, steps=2)
    assert set(seen) == {(torch.bfloat16, torch.int64)}


def test_the_schedules_hold_and_spacing_are_heeded():
    schedule = Schedule(PATH, "eps", "leading", 1, Hold(1.0))
    model = Model.from_network(lambda x, t: 0.2 * x, schedule, shape=(1, 4, 4))
    code = ddim.invert(model, pictures(model), steps=4)
    assert code.settings["hold"] == {"clip_x0": 1.0}
    assert [node.t for node in code.grid] == [752, 502, 252, 2, 0]
    free = replace(schedule, hold=Hold())
    other = Model.from_network(lambda x, t: 0.2 * x, free, shape=(1, 4, 4))
    assert not torch.equal(ddim.sample(model, 1, steps=4), ddim.sample(other, 1, steps=4))


def test_it_is_not_changed():
    torch.manual_seed(0)
    network = Flow().eval().double()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    grads = [p.requires_grad for p in network.parameters()]
    model = Model.from_network(network, Schedule(ddim.RectifiedFlow(), "flow"), shape=(3, 6, 4))
    ddim.reconstruct(model, ddim.invert(model, pictures(model), steps=3, method="bdia"))
    assert all(torch.equal(network.state_dict()[name], weight) for name, weight in before.items())
    assert [p.requires_grad for p in network.parameters()] == grads
    assert not network.training


# --- what does not go ------------------------------------------------------------------------------------------------

SCHEDULE = Schedule(PATH, "eps")


@pytest.mark.parametrize(
    ("changed", "parameter"),
    [
        ({"network": None}, "network"),
        ({"network": "fashion"}, "network"),
        ({"network": Flow()}, "network"),  # in training
        ({"schedule": PATH}, "schedule"),
        ({"schedule": None}, "schedule"),
        ({"shape": (1, 4)}, "shape"),
        ({"shape": (2, 4, 4)}, "shape"),
        ({"shape": (1, 4, 0)}, "shape"),
        ({"shape": (1, 4, 4.5)}, "shape"),
        ({"shape": (1, -4, 4)}, "shape"),
        ({"shape": 8}, "shape"),
        ({"shape": None}, "shape"),
        ({"range": (1.0, -1.0)}, "range"),
        ({"range": (0.0, 0.0)}, "range"),
        ({"range": 1.0}, "range"),
        ({"range": (0, float("inf"))}, "range"),
        ({"range": (0, 1, 2)}, "range"),
        ({"labels": -1}, "labels"),
        ({"labels": 2.5}, "labels"),
        ({"labels": True}, "labels"),
        ({"labels": None}, "labels"),
        ({"null_label": 3}, "null_label"),
        ({"labels": 3, "null_label": 1.5}, "null_label"),
        ({"labels": 3, "null_label": -1}, "null_label"),
        ({"labels": 3, "null_label": "none"}, "null_label"),
        ({"dtype": "float31"}, "dtype"),
        ({"dtype": torch.int64}, "dtype"),
        ({"device": "gpu"}, "device"),
        ({"timestep_dtype": "int64"}, "timestep_dtype"),
    ],
    ids=lambda v: ", ".join(f"{key} {type(of).__name__}" for key, of in v.items()) if isinstance(v, dict) else v,
)
def test_an_argument_that_cannot_be(changed, parameter):
    given = {"network": lambda x, t: x, "schedule": SCHEDULE, "shape": (1, 4, 4), **changed}
    with pytest.raises(ddim.InputError) as caught:
        Model.from_network(given.pop("network"), given.pop("schedule"), **given)
    assert caught.value.parameter == parameter


@pytest.mark.parametrize(
    "answer",
    [lambda x: x[:, :, :2], lambda x: x[:1], lambda x: None, lambda x: [x], lambda x: x.numpy(), lambda x: x.flatten()],
)
def test_an_answer_that_is_no_picture(answer):
    model = Model.from_network(lambda x, t: answer(x), SCHEDULE, shape=(1, 4, 4))
    with refused("network", (2, 1, 4, 4)):
        ddim.sample(model, 2, steps=2)


@pytest.mark.parametrize("labels", [5, NULL, -1, [0, 1, 2], "1", 1.5, None, True])
def test_labels_that_it_does_not_know(lookup, labels):
    for verb, given in ((ddim.sample, (2,)), (ddim.invert, (pictures(lookup),))):
        with pytest.raises(ddim.InputError) as caught:
            verb(lookup, *given, steps=2, labels=labels)
        assert caught.value.parameter == "labels"


@pytest.mark.parametrize("labels", [3, np.int64(3), torch.tensor([3]), (3,)])
def test_labels_of_every_whole_kind(lookup, labels):
    assert torch.equal(ddim.sample(lookup, 2, steps=2, labels=labels), ddim.sample(lookup, 2, steps=2, labels=[3, 3]))


def test_words_and_labels_that_it_does_not_take(flow, lookup):
    for name, call in (
        ("prompt", lambda: ddim.sample(flow, 1, steps=2, prompt="a cat")),
        ("negative", lambda: ddim.invert(lookup, pictures(lookup), steps=2, labels=1, negative="a cat")),
        ("labels", lambda: ddim.sample(flow, 1, steps=2, labels=1)),
        ("guidance", lambda: ddim.sample(flow, 1, steps=2, guidance=2.0)),
        ("model", lambda: ddim.edit(flow, pictures(flow), labels=1, source_labels=0)),
        ("attention", lookup.attention_sites),
        ("model", lambda: NetworkModel.from_folder("x", Path("x"), Loading(torch.device("cpu"), torch.float32))),
    ):
        with pytest.raises(ddim.InputError) as caught:
            call()
        assert caught.value.parameter == name, name


def test_without_a_null_label_only_the_weight_1_is_possible():
    torch.manual_seed(1)
    model = Model.from_network(Lookup().eval(), Schedule(PATH, "v"), shape=(1, 4, 4), labels=5)
    assert model.condition(2, 1).uncond is None
    code = ddim.invert(model, pictures(model), steps=4, method="bdia", labels=[1, 2])
    assert torch.allclose(ddim.reconstruct(model, code), pictures(model), atol=1e-6)
    with pytest.raises(ddim.InputError) as caught:
        ddim.invert(model, pictures(model), steps=4, method="negative-prompt", labels=[1, 2])
    assert caught.value.parameter == "method"


def test_a_code_of_another_network_is_told(flow, lookup):
    code = ddim.invert(lookup, pictures(lookup), steps=2, labels=0)
    with pytest.raises(ddim.InputError) as caught:
        ddim.reconstruct(flow, code)
    assert caught.value.parameter == "code"
    torch.manual_seed(9)
    other = Model.from_network(
        Lookup().eval(), lookup.schedule, shape=(1, 4, 4), labels=5, null_label=NULL, name="other"
    )
    with warned("'mine'", "'other'"):
        ddim.reconstruct(other, code)


def test_a_fingerprint_is_plain_text():
    given = hashlib.sha256(b"my weights").hexdigest()
    model = Model.from_network(Flow().eval(), SCHEDULE, shape=(3, 6, 4), fingerprint=given)
    assert model.fingerprint == given


def test_exact_calls_are_laid_out_as_the_code_says():
    """On one thread, however many torch has: its machine says so, and another number would give other last bits."""
    seen = list[int]()

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return 0.1 * x

    model = Model.from_network(network, Schedule(PATH, "eps"), shape=(1, 4, 4))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        code = ddim.invert(model, torch.rand(3, 1, 4, 4), steps=3, method="bdia")
        ddim.reconstruct(model, code)
        assert set(seen) == {code.machine["threads"]} == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_fingerprint_is_of_the_clock_and_of_whatever_a_module_keeps():
    class Odd(Flow):
        """With a config that is nobody's, and a state that is no tensor."""

        config = type("Config", (), {"width": 3})()

        def get_extra_state(self) -> Any:
            return {"epoch": 3}

    network = Odd().eval()
    prints = {
        Model.from_network(network, Schedule(ddim.RectifiedFlow(), "flow", clock=clock), shape=(3, 6, 4)).fingerprint
        for clock in ("path", "sigma", "signal")
    }
    assert len(prints) == 3
