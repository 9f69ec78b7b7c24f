"""Too little memory: an inversion goes on with smaller batches, and a model can be loaded to need less."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import tiny_text
import torch
from refusals import refused, warned

import ddim
from ddim.models.counted import Counted

BIG = torch.rand(5, 1, 8, 8)


def small_memory(model: Any, rows: int) -> list[int]:
    """Lets calls of more than this many rows fail as a full device does; returns the rows of the calls that fit."""
    real, fitting = model.forward, list[int]()

    def forward(x: torch.Tensor, *words: Any) -> torch.Tensor:
        if len(x) > rows:
            raise torch.OutOfMemoryError
        fitting.append(len(x))
        return real(x, *words)

    model.forward = forward
    return fitting


@pytest.mark.parametrize("method", ["ddim", "bdia"])
def test_a_batch_that_is_too_large_is_halved(method: str):
    events: list[ddim.Event] = []
    model = Counted(tiny.model())
    fitting = small_memory(model, 2)
    code = ddim.invert(model, BIG, steps=3, method=method, on_event=events.append)
    assert set(fitting) == {1, 2}
    told = [e.message for e in events if isinstance(e, ddim.EngineEvent)]
    assert ["5 images" in told[0], "3 images" in told[1], len(told)] == [True, True, 2]
    steps = [e for e in events if isinstance(e, ddim.StepEvent)]
    assert steps[-1].done == steps[-1].total
    assert [e.first for e in events if isinstance(e, ddim.CodeEvent)] == [0, 2, 4]
    whole = ddim.invert(tiny.model(), BIG, steps=3, method=method, batch=2)
    assert all(torch.equal(code.state[key], whole.state[key]) for key in whole.state)
    if method == "bdia":
        ddim.reconstruct(tiny.model(), code, strict=True)


@pytest.mark.parametrize("where", ["callback", "joining"])
def test_memory_that_runs_out_elsewhere_repeats_no_image(where: str, monkeypatch: pytest.MonkeyPatch):
    """Only the network's calls are tried again: what follows them has changed the result already."""

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError

    def on_event(event: ddim.Event) -> None:
        if where == "callback" and isinstance(event, ddim.CodeEvent):
            full()

    if where == "joining":
        monkeypatch.setattr("ddim.inversion.partial.complete", full)
    with pytest.raises(torch.OutOfMemoryError):
        ddim.invert(tiny.model(), BIG, steps=2, on_event=on_event)


def test_an_interrupted_run_goes_on_with_the_smaller_batch():
    model = tiny.model()
    small_memory(model, 2)
    seen: list[ddim.CodeEvent] = []

    def on_event(event: ddim.Event) -> None:
        if isinstance(event, ddim.CodeEvent):
            seen.append(event)
            if len(seen) == 2:
                raise KeyboardInterrupt

    with pytest.raises(ddim.Interrupted) as stop:
        ddim.invert(model, BIG, steps=3, method="bdia", on_event=on_event)
    assert [event.batch for event in seen] == [2, 2]
    whole = ddim.invert(model, BIG, steps=3, method="bdia", resume=stop.value.partial)
    assert whole.calls["rows"].tolist() == [2, 2, 2, 2, 1]
    assert torch.equal(whole.state["x"], ddim.invert(model, BIG, steps=3, method="bdia", batch=2).state["x"])


def test_ctrl_c_while_the_smaller_batch_is_reported_keeps_what_is_done():
    model = tiny.model()
    real, calls = model.forward, list[int]()

    def forward(x: torch.Tensor, *words: Any) -> torch.Tensor:
        calls.append(len(x))
        if len(calls) > 3:  # the first batch has its three steps
            raise torch.OutOfMemoryError
        return real(x, *words)

    model.forward = forward  # type: ignore[method-assign]

    def on_event(event: ddim.Event) -> None:
        if isinstance(event, ddim.EngineEvent):
            raise KeyboardInterrupt

    with pytest.raises(ddim.Interrupted) as stop:
        ddim.invert(model, BIG[:4], steps=3, batch=2, on_event=on_event)
    assert len(stop.value.partial) == 2


def test_low_memory_that_would_change_nothing_is_refused():
    with refused("low_memory"):
        ddim.load("fashion", device="cpu", low_memory=True)
    assert ddim.load("fashion-classes", device="cpu", low_memory=True).low_memory


def test_a_wrapper_has_the_settings_of_its_model():
    model = tiny.model()
    counted = Counted(model)
    model.tf32, model.low_memory = True, True
    assert (counted.tf32, counted.low_memory) == (True, True)


def test_one_image_that_is_too_large_is_an_error():
    model = tiny.model()
    small_memory(model, 0)
    with pytest.raises(torch.OutOfMemoryError):
        ddim.invert(model, BIG, steps=3)


def test_low_memory_asks_for_one_branch_at_a_time_and_gives_the_same(tmp_path: Path):
    tiny_text.pipeline().save_pretrained(tmp_path)
    usual, low = ddim.load(tmp_path, device="cpu"), ddim.load(tmp_path, device="cpu", low_memory=True)
    assert low.vae.use_slicing  # type: ignore[attr-defined]
    assert low.vae.use_tiling  # type: ignore[attr-defined]
    rows = small_memory(low, 64)
    options: Any = {"steps": 3, "prompt": "a cat", "guidance": 5.0}
    drawn = ddim.sample(low, 2, **options)
    assert set(rows) == {2}
    torch.testing.assert_close(drawn, ddim.sample(usual, 2, **options), rtol=0, atol=1e-4)
    code = ddim.invert(low, drawn, method="bdia", **options)
    assert code.machine["batched_cfg"] is False
    ddim.reconstruct(low, code, strict=True)
    # The same latents; the autoencoder decodes one image at a time, which may change the last bits of a picture.
    torch.testing.assert_close(ddim.reconstruct(usual, code), ddim.reconstruct(low, code), rtol=0, atol=1e-5)
    rows.clear()
    ddim.edit(low, code, "a tiger")
    assert set(rows) == {2, 4}  # two images, and then with a target each; one branch at a time


def test_low_memory_is_the_owners_affair_for_a_pipeline_object():
    with refused("low_memory"):
        ddim.load(tiny_text.pipeline(), low_memory=True)


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_without_a_cuda_device_is_refused(tf32: bool):
    with refused("tf32"):
        ddim.load("fashion", device="cpu", tf32=tf32)
    with refused("tf32"):
        ddim.load(tiny_text.pipeline(), tf32=tf32)


@pytest.mark.parametrize("steady", [True, False])
def test_a_quantised_network_that_does_not_repeat_its_bits_is_told_before_work(
    steady: bool, recwarn: pytest.WarningsRecorder
):
    pipeline = diffusers.DDPMPipeline(tiny.unet(), diffusers.DDPMScheduler())
    pipeline.unet.register_buffer("codes", torch.zeros(2, dtype=torch.uint8))
    model = ddim.load(pipeline)
    assert model.quantised == ["UNet2DModel"]
    real, calls = model.forward, list[int]()

    def forward(x: torch.Tensor, *words: Any) -> torch.Tensor:
        calls.append(len(x))
        return real(x, *words) + (0 if steady else 1e-6 * len(calls))

    model.forward = forward  # type: ignore[method-assign]
    begun: list[int] = []

    def on_event(event: ddim.Event) -> None:
        begun.append(len(calls))

    if steady:
        ddim.invert(model, BIG[:1], steps=2, method="bdia", on_event=on_event)
        assert not recwarn
    else:
        with warned("UNet2DModel"):
            ddim.invert(model, BIG[:1], steps=2, method="bdia", on_event=on_event)
    assert begun[0] > 2
    calls.clear()
    ddim.invert(model, BIG[:1], steps=2, method="ddim")  # not exact, so nobody asks
    assert len(calls) == 2
