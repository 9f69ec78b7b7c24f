"""When a network call is recorded as a CUDA graph and replayed; the recording needs a GPU and is replaced."""

import copy
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_text
import torch
from refusals import refused
from tiny import unet
from torch import Tensor, nn

import ddim
from ddim.editing.attention import AttentionController
from ddim.editing.plan import AttentionEdit
from ddim.models.engine import graphs as engine
from ddim.models.engine import layout
from ddim.models.engine.graphs import Graphs, state_of
from ddim.models.live import quantised_layers


class Recorded:
    """Stands for a recorded call: it keeps the function, and calls it again with other inputs."""

    busy = False
    size = 1

    def __init__(self, function: Any, inputs: Any, *_: Any) -> None:
        self.function = function
        self.note = function(*inputs)[1]

    def replay(self, inputs: Any) -> Any:
        return self.function(*inputs)[0]


class Small:
    """A linear network and its graphs; ``calls`` counts what ran without a graph."""

    def __init__(self) -> None:
        self.network = nn.Linear(3, 3).eval().requires_grad_(False)
        self.graphs = Graphs(self.network)
        self.told: list[str] = []

    def __call__(self, x: Tensor, **options: Any) -> Tensor:
        (output,), _ = self.graphs(lambda x: ((self.network(x),), None), x, notify=self.told.append, **options)
        return output


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Small:
    """CUDA as far as the decisions ask for it."""
    monkeypatch.setattr(engine, "_Forward", Recorded)
    monkeypatch.setattr(engine, "_Gradient", Recorded)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "Event", object)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=30))
    return Small()


def test_a_call_is_recorded_once_per_shape_and_dtype(small: Small):
    for rows in (2, 2, 5, 5, 2):
        x = torch.randn(rows, 3)
        assert torch.equal(small(x), small.network(x))
    assert len(small.graphs) == 2
    small.network.double()
    small(torch.randn(2, 3).double())
    assert small.told == []


def test_the_gradient_has_a_graph_of_its_own(small: Small):
    small(torch.randn(2, 3))
    small(torch.randn(2, 3).requires_grad_())
    assert len(small.graphs) == 2
    with torch.no_grad():  # nothing is recorded for a gradient that nobody can ask for
        small(torch.randn(2, 3).requires_grad_())
    assert len(small.graphs) == 3
    assert small.told == []


def test_a_pending_gradient_keeps_its_buffers(small: Small):
    x = torch.randn(2, 3).requires_grad_()
    small(x)
    entry: Any = next(iter(small.graphs._entries.values()))
    entry.busy = True
    small(x)
    assert "gradient" in small.told[0]


def test_a_second_use_can_be_the_first_to_be_recorded(small: Small):
    small(torch.randn(2, 3), key="control", from_use=2)
    assert len(small.graphs) == 0
    assert len(small.told) == 1
    small(torch.randn(2, 3), key="control", from_use=2)
    assert len(small.graphs) == 1
    assert len(small.told) == 1


def hooked(network: nn.Module) -> None:
    network.register_forward_hook(lambda *_: None)


def hooked_before(network: nn.Module) -> None:
    network.register_forward_pre_hook(lambda *_: None)


def offloaded(network: nn.Module) -> None:
    network._hf_hook = object()  # type: ignore[assignment]


def quantised(network: nn.Module) -> None:
    network.codes = nn.Buffer(torch.zeros(3, dtype=torch.uint8))


def elsewhere(network: nn.Module) -> None:
    network.weight = nn.Parameter(torch.empty(3, 3, device="meta"), requires_grad=False)


def replaced(network: nn.Module) -> None:
    network.forward = type(network).forward.__get__(network)  # type: ignore[method-assign]


class Collecting:
    """An attention processor of the user's own."""


def with_a_processor(network: nn.Module) -> None:
    network.processor = Collecting()  # type: ignore[assignment]


def training(network: nn.Module) -> None:
    network.train()


def tuned(network: nn.Module) -> None:
    network.requires_grad_(True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (hooked, "hooks"),
        (hooked_before, "hooks"),
        (offloaded, "accelerate"),
        (quantised, "quantised"),
        (elsewhere, "offloaded"),
        (replaced, "forward"),
        (with_a_processor, "Collecting"),
        (training, "training"),
        (tuned, "require gradients"),
    ],
)
def test_it_steps_aside_and_says_why(small: Small, change: Any, why: str):
    x = torch.randn(2, 3)
    small(x)
    assert small.told == []
    change(small.network)
    if change is not elsewhere:
        assert torch.equal(small(x), small.network(x))
    else:
        assert state_of(small.network)[1] is not None
        return
    assert why in small.told[0]


def add_a_layer(network: nn.Module) -> None:
    network.lora = nn.Linear(3, 3).eval().requires_grad_(False)


def move_a_weight(network: nn.Module) -> None:
    network.weight.data = network.weight.data.clone()  # type: ignore[union-attr, operator]


def set_a_number(network: nn.Module) -> None:
    network.scale = 0.5  # type: ignore[assignment]


def set_the_scale_of_a_lora(network: nn.Module) -> None:
    network.scaling = {"style": 0.5}  # type: ignore[assignment]


@pytest.mark.parametrize("change", [add_a_layer, move_a_weight, set_a_number, set_the_scale_of_a_lora])
def test_graphs_are_dropped_when_the_network_changes(small: Small, change: Any):
    small(torch.randn(2, 3))
    small(torch.randn(4, 3))
    change(small.network)
    small(torch.randn(2, 3))
    assert len(small.graphs) == 1


def test_autocast_and_a_recording_of_the_callers_keep_graphs_away(small: Small, monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(2, 3)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: True)
    small(x)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    small(x)
    assert ["autocast" in small.told[0], "records" in small.told[1], len(small.graphs)] == [True, True, 0]


def test_every_change_of_a_real_lora_is_seen():
    """peft fuses in place, so that no address changes; a graph would apply a fused LoRA twice, or not at all."""
    from peft import LoraConfig

    network = tiny_text.pipeline().unet
    network.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian"), "style")
    network.eval()
    before, reason = state_of(network)
    assert reason is None
    for change in (
        lambda: network.set_adapters(["style"], [0.5]),
        network.disable_adapters,
        network.enable_adapters,
        *(network.fuse_lora, network.unfuse_lora) * 2,
    ):
        change()
        after, reason = state_of(network)
        assert reason is None
        assert after != before
        before = after


def test_free_u_is_seen():
    pipeline = tiny_text.pipeline()
    before = state_of(pipeline.unet)[0]
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert state_of(pipeline.unet)[0] != before


def test_our_own_blocks_are_no_reason():
    model: Any = ddim.load("fashion", device="cpu")
    assert any("forward" in module.__dict__ for module in model.network.modules())
    assert state_of(model.network)[1] is None


def test_new_values_of_a_weight_in_place_keep_the_graphs(small: Small):
    small(torch.randn(2, 3))
    before = next(iter(small.graphs._entries.values()))
    small.network.weight.data.mul_(2)
    x = torch.randn(2, 3)
    assert torch.equal(small(x), small.network(x))
    assert next(iter(small.graphs._entries.values())) is before


def test_the_number_of_graphs_is_bounded(small: Small, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "MOST_GRAPHS", 3)
    for rows in (1, 2, 3, 1, 4):
        small(torch.randn(rows, 3))
    assert len(small.graphs) == 3
    kept = [key[-1][0][0] for key in small.graphs._entries]  # type: ignore[index]
    assert kept == [3, 1, 4]  # that of two rows was unused for the longest time


def test_graphs_that_hold_too_much_memory_are_dropped(small: Small, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Recorded, "size", 6)  # of 30, of which a third may be held
    small(torch.randn(1, 3))
    small(torch.randn(2, 3))
    assert len(small.graphs) == 1
    assert small.told == []
    monkeypatch.setattr(Recorded, "size", 11)
    x = torch.randn(3, 3)
    for _ in range(2):
        assert torch.equal(small(x), small.network(x))
        assert len(small.graphs) == 0
    assert "memory" in small.told[0]


def test_a_copy_begins_without_graphs(small: Small):
    small(torch.randn(2, 3))
    network, graphs = copy.deepcopy((small.network, small.graphs))
    assert graphs.network is network is not small.network
    assert len(graphs) == 0


def test_what_cuda_cannot_record_runs_without(small: Small, monkeypatch: pytest.MonkeyPatch):
    tries: list[int] = []

    def fails(*_: Any) -> Any:
        tries.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(engine, "_Forward", fails)
    x = torch.randn(2, 3)
    for _ in range(3):
        assert torch.equal(small(x), small.network(x))
    assert len(tries) == 1
    assert "not permitted" in small.told[0]
    assert "more" not in small.told[0]


def test_the_state_of_a_network_survives_an_edit():
    model = tiny_text.model()
    before, reason = state_of(model.network)
    assert reason is None
    with model.controlled():
        assert state_of(model.network)[0] == before
    ddim.sample(model, 1, steps=2, prompt="a cat")
    assert state_of(model.network)[0] == before


def test_a_controlled_call_computes_the_same_from_the_tensors_of_its_plan(monkeypatch: pytest.MonkeyPatch):
    """A graph reads the plan's tensors as inputs; a controller with copies of them must do what the first one does."""
    made: list[AttentionController] = []
    real = AttentionController.with_tensors

    def copied(self: AttentionController, tensors: Any) -> AttentionController:
        made.append(real(self, [None if t is None else t.clone() for t in tensors]))
        return made[-1]

    model, picture = tiny_text.model(), tiny_text.pictures()
    how = {"source_prompt": "a cat next to a mirror", "steps": 4, "guidance": 3.0, "weights": {"tiger": 2.0}}
    plain = ddim.edit(model, picture, "a tiger next to a mirror", blend="cat/tiger", **how)
    monkeypatch.setattr(AttentionController, "with_tensors", copied)
    again = ddim.edit(model, picture, "a tiger next to a mirror", blend="cat/tiger", **how)
    assert made
    assert torch.equal(plain.edits, again.edits)
    assert not torch.equal(plain.edits[:, 0], plain.reconstruction)


def test_the_key_of_a_controller_tells_windows_apart():
    model = tiny_text.model()
    keys = set()
    real = AttentionController.__init__

    def init(self: AttentionController, *words: Any) -> None:
        real(self, *words)
        keys.add(self.key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttentionController, "__init__", init)
        edit = AttentionEdit(cross_steps=(0, 0.5), self_steps=(0, 0.75))
        ddim.edit(
            model,
            tiny_text.pictures(),
            "a tiger",
            source_prompt="a cat",
            steps=4,
            guidance=3.0,
            attention=edit,
            blend="cat/tiger",
        )
    assert len(keys) == 3  # both kinds of maps, self-attention only, and none


def test_only_modules_can_be_captured():
    schedule = ddim.Schedule(ddim.ddpm_linear(), "eps")
    with refused("capturable"):
        ddim.Model.from_network(lambda x, t: x, schedule, shape=(1, 8, 8), capturable=True)
    assert ddim.Model.from_network(unet(), schedule, shape=(1, 8, 8), capturable=True).graphs is not None  # type: ignore[attr-defined]
    assert ddim.Model.from_network(unet(), schedule, shape=(1, 8, 8)).graphs is None  # type: ignore[attr-defined]


def test_quantised_layers_are_found_by_their_weights():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert quantised_layers(network) == []
    quantised(network[0])
    assert quantised_layers(network) == ["Linear"]


def test_the_layout_follows_from_the_device_and_the_shape(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layout, "CONTIGUOUS_FROM", {"card": 100, "NVIDIA H200": 10**9})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "card")
    cuda = torch.device("cuda")
    assert layout.memory_format(cuda, (4, 7, 7)) is torch.channels_last
    assert layout.memory_format(cuda, (4, 5, 10)) is torch.contiguous_format
    assert layout.memory_format(torch.device("cpu"), (4, 5, 10)) is torch.channels_last
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "another")
    assert layout.memory_format(cuda, (4, 5, 10)) is torch.channels_last
