"""What ``ddim.load`` does for speed changes no answer but by rounding, and nothing where gradients are asked for."""

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from tiny import pipeline_folder, unet
from torch import nn
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode

import ddim
from ddim._utils.errors import InputError
from ddim.core.denoiser import Layout
from ddim.models.engine import threads as rows
from ddim.models.engine import winograd
from ddim.models.engine.optimize import InPlaceResnetBlock, optimize_network
from ddim.models.engine.thread_table import CPU, Least
from ddim.models.engine.threads import Plan, engine_threads, plan_call, run_in_threads, thread_limit
from ddim.models.engine.work import Work


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch):
    """Torch has two threads, the machine two cores, and a part needs a work of 16."""
    monkeypatch.setattr(rows, "usable_cores", lambda: 2)
    monkeypatch.setattr(rows, "CPU", {"float32": Least(part=16, layer=1e18)})
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def every_convolution(monkeypatch: pytest.MonkeyPatch):
    """Winograd's way also for the small ones of the tests."""
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    monkeypatch.setattr(winograd, "MIN_SIDE", 1)
    monkeypatch.setattr(winograd, "MIN_TILES", 1)


# Winograd's convolution


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (5, 7), (1, 1), (32, 32), (70, 9)])
def test_the_sums_are_the_convolution_s_in_float64(size: tuple[int, int]):
    x, weight, bias = torch.randn(3, 5, *size).double(), torch.randn(6, 5, 3, 3).double(), torch.randn(6).double()
    for b in (bias, None):
        torch.testing.assert_close(
            winograd.convolve(x, winograd.transform_weights(weight), b),
            conv2d(x, weight, b, padding=1),
            rtol=1e-12,
            atol=1e-12,
        )


def test_a_lone_impulse_gives_the_kernel_turned_round():
    x, weight = torch.zeros(1, 1, 8, 8), torch.arange(9.0).view(1, 1, 3, 3)
    x[0, 0, 3, 4] = 1
    out = winograd.convolve(x, winograd.transform_weights(weight), None)
    torch.testing.assert_close(out[0, 0, 2:5, 3:6], weight[0, 0].flip(0, 1), rtol=1e-5, atol=1e-5)
    assert out.abs().sum() == pytest.approx(36, rel=1e-4)


def test_float32_stays_within_the_stated_error():
    conv = nn.Conv2d(128, 128, 3, padding=1)
    x = torch.randn(2, 128, 16, 16)
    with torch.no_grad():
        exact = conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)  # type: ignore[union-attr]
        assert relative(winograd.convolve(x, winograd.transform_weights(conv.weight), conv.bias).double(), exact) < 5e-6


def test_cut_into_bands_and_groups_it_is_the_same(monkeypatch: pytest.MonkeyPatch):
    x, u = torch.randn(5, 4, 24, 16), winograd.transform_weights(torch.randn(3, 4, 3, 3))
    whole = winograd.convolve(x, u, None)
    for tiles in (1, 5, 24, 48):
        monkeypatch.setattr(winograd, "TILES_PER_BLOCK", tiles)
        torch.testing.assert_close(winograd.convolve(x, u, None), whole)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"padding": 0},
        {"padding": (1, 0)},
        {"padding": "same"},
        {"stride": 2},
        {"dilation": 2},
        {"groups": 2},
        {"padding_mode": "circular"},
        {"in_channels": 32},
        {"in_channels": 64, "out_channels": 64},
    ],
)
def test_other_convolutions_are_left_alone(options: dict[str, Any]):
    usual = {"in_channels": 128, "out_channels": 128, "kernel_size": 3, "padding": 1}
    assert winograd.WinogradConv.supports(nn.Conv2d(**usual))  # type: ignore[arg-type]
    assert not winograd.WinogradConv.supports(nn.Conv2d(**{**usual, **options}))


def test_new_weights_are_seen():
    conv = nn.Conv2d(128, 64, 3, padding=1).requires_grad_(False)
    quick, x = winograd.WinogradConv(conv), torch.randn(1, 128, 16, 16)
    with torch.no_grad():
        before = quick(x)
        conv.weight.mul_(2)
        torch.testing.assert_close(quick(x), conv(x), rtol=1e-3, atol=1e-3)
        assert relative(quick(x), before) > 0.5


def test_weights_changed_behind_torch_s_back_are_seen():
    conv = nn.Conv2d(128, 64, 3, padding=1).requires_grad_(False)
    quick, x = winograd.WinogradConv(conv), torch.randn(1, 128, 16, 16)

    def replaced() -> None:
        for _ in range(2):  # the second may lie where the first one lay
            conv.weight = nn.Parameter(torch.randn_like(conv.weight), requires_grad=False)

    with torch.no_grad():
        quick(x)
        for change in (lambda: conv.weight.data.mul_(2), lambda: conv.weight.data.add_(0.1), replaced, replaced):
            change()
            assert relative(quick(x), nn.Conv2d.forward(conv, x)) < 1e-4


def test_a_convolution_made_in_inference_mode_and_one_of_its_own_kind():
    class Own(nn.Conv2d):
        """Its ``forward`` might be another."""

    assert not winograd.WinogradConv.supports(Own(128, 128, 3, padding=1))
    with torch.inference_mode():
        conv = nn.Conv2d(128, 64, 3, padding=1)
        quick, x = winograd.WinogradConv(conv), torch.randn(1, 128, 16, 16)
        assert relative(quick(x), nn.Conv2d.forward(conv, x)) < 1e-4
        assert torch.equal(quick(input=x[0]), nn.Conv2d.forward(conv, x[0])), "one picture without a batch"


def test_small_calls_go_the_usual_way():
    conv = nn.Conv2d(128, 64, 3, padding=1).requires_grad_(False)
    quick, x = winograd.WinogradConv(conv), torch.randn(1, 128, 16, 16)
    with torch.no_grad():
        assert torch.equal(quick(x[:, :, :8]), conv(x[:, :, :8])), "8 tiles are too few"
        assert not torch.equal(quick(x), conv(x))


def test_the_budget_is_given_away_in_the_modules_order(monkeypatch: pytest.MonkeyPatch):
    network = nn.Sequential(*(nn.Conv2d(128, 128, 3, padding=1) for _ in range(3)))
    size = winograd.WinogradConv.weight_bytes(network[0])
    assert size == 36 * 128 * 128 * 4
    monkeypatch.setattr("ddim.models.engine.optimize.BYTES", 2 * size + size // 2)
    optimize_network(network)
    assert [isinstance(conv.forward, winograd.WinogradConv) for conv in network] == [True, True, False]


# Blocks, and whole networks


def quickened(network: Any) -> Any:
    network = copy.deepcopy(network).requires_grad_(False)
    optimize_network(network)
    return network


@pytest.mark.usefixtures("every_convolution")
@pytest.mark.parametrize("classes", [None, 3])
def test_a_network_answers_the_same(classes: int | None):
    plain = unet(classes=classes)
    quick, x, t = quickened(plain), torch.randn(5, 1, 8, 8), torch.tensor(400)
    labels = None if classes is None else torch.tensor([0, 1, 2, 0, 1])
    kept = x.clone()
    assert sum(isinstance(m.__dict__.get("forward"), InPlaceResnetBlock) for m in quick.modules()) > 5
    assert sum(isinstance(m.__dict__.get("forward"), winograd.WinogradConv) for m in quick.modules()) > 10
    with torch.no_grad():
        assert relative(quick(x, t, labels).sample, plain(x, t, labels).sample) < 2e-5
    assert torch.equal(x, kept)


def test_without_wide_convolutions_it_is_the_same_to_the_bit():
    plain = unet()
    with torch.no_grad():
        x, t = torch.randn(3, 1, 8, 8), torch.tensor(400)
        assert torch.equal(quickened(plain)(x, t).sample, plain(x, t).sample)


def test_what_a_hook_keeps_is_not_written_over():
    quick, x, t, kept = quickened(unet()), torch.randn(2, 1, 8, 8), torch.tensor(400), []
    block = next(m for m in quick.modules() if isinstance(m.__dict__.get("forward"), InPlaceResnetBlock))
    for part in block.children():
        part.register_forward_hook(lambda _m, _i, out: kept.append((out, out.clone())))
    with torch.no_grad():
        quick(x, t)
    assert len(kept) >= len(list(block.children()))
    assert all(torch.equal(now, then) for now, then in kept)


@pytest.mark.usefixtures("every_convolution")
def test_a_gradient_goes_the_usual_way():
    plain = unet().requires_grad_(False)
    quick, t, slopes = quickened(plain), torch.tensor(400), []
    for network in (plain, quick):
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        network(x, t).sample.square().sum().backward()
        slopes.append(x.grad)
    assert torch.equal(slopes[0], slopes[1])


@pytest.mark.usefixtures("every_convolution")
def test_under_autocast_and_in_training_it_goes_the_usual_way():
    plain = unet()
    quick, x, t = quickened(plain), torch.randn(2, 1, 8, 8), torch.tensor(400)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quick(x, t).sample, plain(x, t).sample)
    for network in (plain, quick):
        network.train()
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.5
    with torch.enable_grad():
        torch.manual_seed(3)
        said = quick(x, t).sample
        torch.manual_seed(3)
        assert torch.equal(said, plain(x, t).sample)


def test_a_loaded_model_is_quick_and_what_it_saves_is_as_it_was(tmp_path: Path):
    folder = pipeline_folder(tmp_path / "model", unet())
    network: Any = ddim.load(folder).network  # type: ignore[attr-defined]
    assert any(isinstance(m.__dict__.get("forward"), InPlaceResnetBlock) for m in network.modules())
    network.save_pretrained(tmp_path / "again")
    again = type(network).from_pretrained(tmp_path / "again")
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), unet().state_dict().values(), strict=True)
    )


# Threads


@pytest.mark.usefixtures("two_threads")
def test_rows_come_back_in_their_order_from_several_threads():
    seen, barrier = [], threading.Barrier(2, timeout=10)

    def work(x: torch.Tensor, labels: torch.Tensor | None, none: None) -> torch.Tensor:
        barrier.wait()  # both at once
        assert none is None
        assert labels is not None
        seen.append((len(x), torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return x * 2 + labels[:, None]

    x, labels = torch.randn(33, 4), torch.arange(33)
    with torch.no_grad():
        assert torch.equal(run_in_threads(work, x, labels, None, row_work=1), x * 2 + labels[:, None])
        assert torch.equal(run_in_threads(work, x, labels, None, row_work=1), x * 2 + labels[:, None])
    with torch.inference_mode():
        run_in_threads(work, x, labels, None, row_work=1)
    assert sorted(seen) == sorted(
        [(16, 1, False, False), (17, 1, False, False)] * 2 + [(n, 1, False, True) for n in (16, 17)]
    )
    assert torch.get_num_threads() == 2
    asked = []
    later = threading.Thread(target=lambda: asked.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert asked == [2], "a thread that begins later has what the caller has"


@pytest.mark.usefixtures("two_threads")
def test_few_rows_gradients_and_autocast_stay_in_one_call():
    calls = []

    def work(x: torch.Tensor) -> torch.Tensor:
        calls.append((len(x), torch.get_num_threads()))
        return x

    with torch.no_grad():
        run_in_threads(work, torch.zeros(31, 1), row_work=1)
        run_in_threads(work, torch.zeros(64, 1), row_work=1, split=False)
        run_in_threads(work, torch.zeros(64, 1), row_work=None)
        with torch.autocast("cpu", torch.bfloat16):
            run_in_threads(work, torch.zeros(64, 1), row_work=1)
    run_in_threads(work, torch.zeros(64, 1), row_work=1)
    torch.set_num_threads(1)
    with torch.no_grad():
        run_in_threads(work, torch.zeros(64, 1), row_work=1)
    assert calls == [(31, 1), (64, 1), (64, 2), (64, 2), (64, 2), (64, 1)]


@pytest.mark.usefixtures("two_threads")
def test_one_row_serves_all_parts():
    x, one = torch.randn(64, 3), torch.randn(1, 3)
    with torch.no_grad():
        assert torch.equal(run_in_threads(torch.add, x, one, row_work=1), x + one)


@pytest.mark.usefixtures("two_threads")
def test_what_a_part_raises_reaches_the_caller():
    def work(x: torch.Tensor) -> torch.Tensor:
        raise InputError("no such row")

    with torch.no_grad(), refused(None, "no such row"):
        run_in_threads(work, torch.zeros(64, 1), row_work=1)


TABLE = {"float32": Least(part=10, layer=100), "bfloat16": Least(part=20, layer=100)}


@pytest.mark.parametrize(
    ("call", "plan"),
    [
        ({"rows": 1, "row_work": 9}, (1, 1)),
        ({"rows": 3, "row_work": 9}, (1, 1)),
        ({"rows": 4, "row_work": 9}, (2, 1)),
        ({"rows": 64, "row_work": 9, "limit": 1}, (1, 1)),
        ({"rows": 64, "row_work": 9, "limit": 3}, (3, 1)),
        ({"rows": 64, "row_work": 9}, (4, 1)),  # no more than four parts
        ({"rows": 3, "row_work": 10}, (3, 1)),
        ({"rows": 3, "row_work": 10, "dtype": torch.bfloat16}, (1, 1)),
        ({"rows": 4, "row_work": 10, "dtype": torch.bfloat16}, (2, 1)),
        ({"rows": 3, "row_work": 10, "dtype": torch.int8}, (3, 1)),  # another dtype is taken for float32
        ({"rows": 1, "row_work": 199}, (1, 1)),
        ({"rows": 1, "row_work": 200}, (1, 2)),  # the layers are shared
        ({"rows": 1, "row_work": 1e9}, (1, 8)),
        ({"rows": 2, "row_work": 1e9}, (2, 4)),
        ({"rows": 3, "row_work": 1e9}, (3, 2)),
        ({"rows": 64, "row_work": 100, "split": False}, (1, 8)),
        ({"rows": 64, "row_work": 4, "split": False}, (1, 2)),
        ({"rows": 64, "row_work": None}, (1, 8)),  # unknown work: torch's number
    ],
    ids=str,
)
def test_the_work_of_a_call_decides_its_threads(
    call: dict[str, Any], plan: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rows, "CPU", TABLE)
    assert plan_call(**{"dtype": torch.float32, "limit": 8, **call}) == Plan(*plan)


def test_the_table_has_the_dtypes_that_networks_compute_in():
    assert set(CPU) >= {"float32", "float64", "bfloat16", "float16"}
    assert all(0 < least.part < least.layer < 1e12 for least in CPU.values())


@pytest.mark.parametrize(("torch_s", "cores", "limit"), [(1, 8, 1), (8, 1, 1), (3, 2, 2), (2, 3, 2)])
def test_threads_are_limited_by_torch_s_number_and_by_the_cores(
    torch_s: int, cores: int, limit: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rows, "usable_cores", lambda: cores)
    torch.set_num_threads(torch_s)
    try:
        assert thread_limit() == limit
        with engine_threads(1.0, torch.float32):
            assert torch.get_num_threads() == 1
            assert thread_limit() == limit
            with engine_threads(None, torch.float32):
                assert torch.get_num_threads() == limit
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == torch_s
    finally:
        torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
def test_the_number_of_a_pipeline_is_the_calling_thread_s_alone():
    """Another thread that begins meanwhile, and may sample too, has the number that the user chose."""
    asked = []
    with engine_threads(1.0, torch.float32):
        later = threading.Thread(target=lambda: asked.extend([torch.get_num_threads(), thread_limit()]))
        later.start()
        later.join()
        with torch.no_grad():
            run_in_threads(torch.neg, torch.zeros(64, 1), row_work=1)  # starts workers
        later = threading.Thread(target=lambda: asked.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert torch.get_num_threads() == 1
    assert asked == [2, 2, 2]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_pipeline_leaves_the_threads_as_they_were(tmp_path: Path):
    seen = []
    model: Any = ddim.load(pipeline_folder(tmp_path / "model", unet()))
    ddim.sample(model, 2, steps=3, on_event=lambda _: seen.append(torch.get_num_threads()))
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError):
        ddim.sample(model, 2, steps=3, on_event=lambda _: 1 // 0)
    assert torch.get_num_threads() == 2
    with refused("model", "int"):
        ddim.sample(3)  # type: ignore[arg-type]
    assert torch.get_num_threads() == 2


def test_the_choice_does_not_look_at_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Clocks and load averages that say anything else change no plan, and no bit of the samples."""
    plans, plan = [], rows.plan_call
    monkeypatch.setattr(rows, "usable_cores", lambda: 3)
    monkeypatch.setattr(rows, "CPU", {"float32": Least(part=1.0, layer=1e18)})
    monkeypatch.setattr(rows, "plan_call", lambda *a, **k: plans.append(plan(*a, **k)) or plans[-1])
    model = ddim.load(pipeline_folder(tmp_path / "model", unet()))
    torch.set_num_threads(3)
    try:
        first = ddim.sample(model, 7, steps=3, seed=5)
        quiet = plans.copy()
        plans.clear()
        with monkeypatch.context() as patch:
            patch.setattr("os.getloadavg", lambda: (99.0, 99.0, 99.0))
            patch.setattr("os.times", lambda: pytest.fail("the engine asked for the times of the process"))
            for clock in ("time", "perf_counter", "process_time", "thread_time"):
                patch.setattr(f"time.{clock}", lambda: 0.0)
            second = ddim.sample(model, 7, steps=3, seed=5)
    finally:
        torch.set_num_threads(1)
    assert plans == quiet
    assert Plan(3, 1) in plans
    assert torch.equal(first, second)


def test_samples_do_not_depend_on_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rows, "usable_cores", lambda: 3)
    monkeypatch.setattr(rows, "CPU", {"float32": Least(part=1.0, layer=1e18)})
    model = ddim.load(pipeline_folder(tmp_path / "model", unet()))
    alone = ddim.sample(model, 7, steps=3, seed=5)
    try:
        torch.set_num_threads(3)
        shared = ddim.sample(model, 7, steps=3, seed=5)
        again = ddim.sample(model, 7, steps=3, seed=5)
        code = ddim.invert(model, shared, steps=3, method="belm")
        back = ddim.reconstruct(model, code)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(shared, again)
    torch.testing.assert_close(shared, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(back, shared, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("rows_of", "layout", "parts"),
    [
        (5, Layout(1, 1), (1, 1)),
        (5, Layout(2, 1), (2, 1)),
        (5, Layout(16, 1), (4, 1)),  # no more than four
        (1, Layout(4, 1), (1, 1)),  # no more than there are rows
        (5, Layout(2), (2, 1)),
        (1, Layout(6), (1, 6)),
        (2, Layout(6), (2, 3)),
        (5, Layout(3, 1, 2), (2, 1)),  # no part is smaller
        (5, Layout(3, 1, 3), (1, 1)),
    ],
)
def test_a_layout_decides_whatever_threads_there_are(rows_of: int, layout: Layout, parts: tuple[int, int]):
    x = torch.zeros(rows_of, 1)
    with torch.no_grad():
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            try:
                assert rows._plan(x, None, True, layout) == parts
            finally:
                torch.set_num_threads(1)
        whole: Any = rows._plan(x, None, False, layout)
        assert whole.parts == 1  # a network that cannot be cut is not cut
    assert rows._plan(x, None, True, layout) is None  # where a gradient is taken all is as it was


def test_a_layout_gives_each_part_its_threads_and_the_rows_their_order():
    seen = []

    def work(x: torch.Tensor) -> torch.Tensor:
        seen.append((len(x), torch.get_num_threads()))
        return x + 1

    x = torch.randn(7, 2)
    with torch.no_grad():
        assert torch.equal(run_in_threads(work, x, row_work=None, layout=Layout(3, 1)), x + 1)
        assert sorted(seen) == [(2, 1), (2, 1), (3, 1)]
        seen.clear()
        assert torch.equal(run_in_threads(work, x, row_work=None, layout=Layout(1, 2)), x + 1)
    assert seen == [(7, 2)]
    assert torch.get_num_threads() == 1


# The work


@pytest.mark.parametrize("name", ["fashion", "emoji"])
def test_the_estimated_work_is_near_the_counted_one(name: str):
    model: Any = ddim.load(ddim.bundled_models()[name])
    _, height, width = model.shape
    conditions = model.condition(None, 1, ["a cat"] if model.text else None).cond

    def ask() -> None:
        model.ask(torch.zeros(1, *model.shape), model.schedule.grid(4)[1], conditions)

    assert 0.75 < model.row_work() / counted(ask) < 1.33
    assert model.row_work((4, 2 * height, width)) == pytest.approx(2 * model.row_work(), rel=0.02)
    if not model.text:
        return
    pixels = model.picture[1] * model.picture[2]
    for part, call, given in (
        (model.vae.encoder, model.vae.encode, model.picture),
        (model.vae.decoder, lambda x: model.vae.decode(x).sample, model.shape),
    ):
        assert 0.75 < Work.of(part).row(pixels) / counted(lambda c=call, g=given: c(torch.zeros(1, *g))) < 2


def counted(call: Any) -> float:
    """The multiply-adds of a call, as torch counts them."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2


def test_the_work_of_layers_outside_of_blocks_and_of_embeddings():
    assert Work.of(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Embedding(9, 9), nn.Linear(5, 7))).row(10) == 10 * (54 + 35)
    blocks = nn.ModuleDict({"down_blocks": nn.ModuleList([nn.Linear(2, 2), nn.Linear(3, 3), nn.Linear(4, 4)])})
    assert Work.of(blocks).row(64) == 64 * 4 + 16 * 9 + 4 * 16
    blocks["up_blocks"] = nn.ModuleList([nn.Linear(5, 5), nn.Linear(6, 6), nn.Linear(7, 7)])
    blocks["mid_block"], blocks["time_embedding"] = nn.Linear(8, 8), nn.Linear(9, 9)
    assert Work.of(blocks) == Work(81, (4 + 49, 9 + 36, 16 + 25 + 64))


# torch.compile


def test_compile_is_asked_of_torch_and_keeps_one_thread_of_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, compiled = pipeline_folder(tmp_path / "model", unet()), []
    plain = ddim.sample(ddim.load(folder), 2, steps=2)
    monkeypatch.setattr(nn.Module, "compile", lambda self, *a, **k: compiled.append(type(self).__name__))
    model: Any = ddim.load(folder, compile=True)
    assert compiled == ["UNet2DModel"]
    assert model.threads is False
    assert not any("forward" in m.__dict__ for m in model.network.modules())
    torch.testing.assert_close(ddim.sample(model, 2, steps=2), plain, rtol=0, atol=1e-6)


def test_compile_without_a_compiler_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with refused("compile", "C++"):
        ddim.load("fashion", compile=True)
