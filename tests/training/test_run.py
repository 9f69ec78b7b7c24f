"""Whole runs of a tiny network: the same bits however they were broken off, and a folder that diffusers loads."""

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import training_helpers
from killing import dead_file
from PIL import Image
from refusals import failed, not_finite, refused, unknown
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from training_helpers import Stop, labelled, make_images, make_labels, state, stop_after, tables, tiny, write_toml

import ddim
from ddim._utils.errors import InputError
from ddim._utils.lock import only_process
from ddim.training import train
from ddim.training.checkpoint import Checkpoints, clean, whole_folder
from ddim.training.loss import path_of
from ddim.training.tasks.pixel import PixelTask

HELPER = Path(training_helpers.__file__)


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images")


@pytest.fixture(params=["unconditional", "labels"])
def told(request, images):
    """Makes changes to a config those of an unconditional run, or of one with labels, half of them dropped."""
    if request.param == "unconditional":
        return lambda changes: changes
    make_labels(images)
    return labelled


def leftovers(folder):
    return [p for p in folder.rglob(".*") if p.name.startswith(".ddim-")]


# --- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("broken_at", [1, 3, 5])
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(images, tmp_path, told, broken_at, precision):
    # 10 images in batches of 4: steps 3 and 5 span two epochs. Dropout and flips are on (training_helpers).
    changes = told({"train": {"accumulate": 2, "precision": precision}, "loss": {"times": "stratified"}})
    train(tiny(images, tmp_path / "whole", **changes))
    broken = tiny(images, tmp_path / "broken", **changes)
    with pytest.raises(Stop):
        train(broken, on_event=stop_after(broken_at))
    torch.manual_seed(broken_at)  # what the process drew before is of no account
    events = []
    train(broken, resume=True, on_event=events.append)
    assert events[0].step == broken_at // 2 * 2
    assert state(tmp_path / "broken", 6) == state(tmp_path / "whole", 6)
    weights = Path("model/unet/diffusion_pytorch_model.safetensors")
    assert (tmp_path / "broken" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


def test_the_bits_do_depend_on_the_seed(images, tmp_path):
    train(tiny(images, tmp_path / "a"))
    train(tiny(images, tmp_path / "b", train={"seed": 1}))
    assert state(tmp_path / "a", 6) != state(tmp_path / "b", 6)


def test_reading_images_from_disk_or_memory_and_sheets_alter_no_bit(images, tmp_path, told):
    train(tiny(images, tmp_path / "a", **told({})))
    changes = {"data": {"memory_gib": 0.0, "workers": 1}, "output": {"sample_every": 1}}
    train(tiny(images, tmp_path / "b", **told(changes)))
    assert state(tmp_path / "a", 6) == state(tmp_path / "b", 6)


def test_training_leaves_the_callers_generator_alone(images, tmp_path):
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    train(tiny(images, tmp_path / "run", train={"threads": 1}))
    assert torch.equal(torch.randn(3), expected)


def test_killed_at_any_moment_a_run_continues_to_the_same_bits(images, tmp_path):
    changes = {"train": {"steps": 60, "threads": 1}, "output": {"checkpoint_every": 1, "keep": 2}}
    train(tiny(images, tmp_path / "whole", **changes))
    config = write_toml(tables(images, tmp_path / "killed", **changes), tmp_path / "run.toml")
    command = [sys.executable, str(HELPER), str(config), "--resume"]
    delay = random.Random(time.time_ns()).uniform(0, 0.6)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list((tmp_path / "killed").glob("checkpoints/step-*")):
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    checkpoints = sorted((tmp_path / "killed/checkpoints").glob("step-*"))
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"
    assert {len(list(c.iterdir())) for c in checkpoints} == {4}
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert state(tmp_path / "killed", 60) == state(tmp_path / "whole", 60), f"killed after {delay} s"
    assert not leftovers(tmp_path / "killed")


def test_a_finished_run_is_not_run_again_but_can_be_made_longer(images, tmp_path):
    folder = tmp_path / "run"
    constant = {"lr_schedule": "constant"}
    train(tiny(images, folder, train=constant))
    events = []
    train(tiny(images, folder, train=constant), resume=True, on_event=events.append)
    assert [e.kind for e in events] == ["start", "done"]
    train(tiny(images, folder, train={**constant, "steps": 9}), resume=True)
    train(tiny(images, tmp_path / "nine", train={**constant, "steps": 9}))
    assert state(folder, 9) == state(tmp_path / "nine", 9)
    assert not leftovers(folder)


def test_a_folder_that_holds_a_run_is_not_overwritten(images, tmp_path):
    train(tiny(images, tmp_path / "run"))
    before = state(tmp_path / "run", 6)
    with refused("output.folder", tmp_path / "run"):
        train(tiny(images, tmp_path / "run"))
    with refused("output.folder", "model.dropout", "train.lr"):
        train(tiny(images, tmp_path / "run", train={"lr": 1.0}, model={"dropout": 0.0}), resume=True)
    (images / "003.png").unlink()
    with refused(None, images):
        train(tiny(images, tmp_path / "run"), resume=True)
    assert state(tmp_path / "run", 6) == before


def test_files_of_the_users_own_are_left_alone(images, tmp_path):
    own = [tmp_path / "run" / name for name in (".tmp-notes", ".old-notes", "checkpoints/.tmp-mine")]
    for path in own:
        path.mkdir(parents=True)
    train(tiny(images, tmp_path / "run"))
    stale = tmp_path / "run/.ddim-tmp-model"
    stale.mkdir()
    with refused("output.folder", tmp_path / "run"):
        train(tiny(images, tmp_path / "run"))
    assert stale.is_dir()  # a refused run alters nothing
    train(tiny(images, tmp_path / "run"), resume=True)
    assert not leftovers(tmp_path / "run")
    assert all(path.is_dir() for path in own)


def test_a_model_that_was_only_moved_aside_is_a_run(images, tmp_path):
    (tmp_path / "run/.ddim-old-model").mkdir(parents=True)
    with refused("output.folder", tmp_path / "run"):
        train(tiny(images, tmp_path / "run"))


def test_only_our_own_names_count_among_checkpoints(images, tmp_path):
    """``step-00000003-good`` was removed by the clean-up, ``step-best`` taken for the newest for ever."""
    folder = tmp_path / "run"
    own = ["step-00000003-good", "step-best", "step-3", "step-000000009", "model", ".ddim-old-notes", ".ddim-tmp-mine"]
    for name in own:
        (folder / "checkpoints" / name).mkdir(parents=True)
        (folder / "checkpoints" / name / "a").touch()
    (folder / "checkpoints/step-99999999").touch()  # a file is no checkpoint
    with pytest.raises(Stop):
        train(tiny(images, folder, output={"keep": 1}), on_event=stop_after(5))
    events = []
    train(tiny(images, folder, output={"keep": 1}), resume=True, on_event=events.append)
    assert events[0].step == 4
    found = {path.name for path in (folder / "checkpoints").iterdir()}
    assert found == {*own, "step-99999999", "step-00000006"}
    assert all((folder / "checkpoints" / name / "a").is_file() for name in own)


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for step in (100_000_000, 99_999_999, 5):
        (tmp_path / f"step-{step:08d}").mkdir()
    assert [int(path.name[5:]) for path in Checkpoints(tmp_path, 2).all()] == [5, 99_999_999, 100_000_000]


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("state.json", b"{}"),
        ("state.json", b""),
        ("state.json", b"[]"),
        ("state.json", b'{"config": {}}'),
        ("state.json", b'{"config": {}, "step": 4}'),
        ("state.json", b'{"config": {}, "step": true}'),
        ("state.json", None),
        *((f"{name}.safetensors", content) for name in ("weights", "ema", "optimizer") for content in (b"", None, {})),
        ("optimizer.safetensors", {"0.step": torch.zeros(())}),
        ("optimizer.safetensors", {"x.exp_avg": torch.zeros(2)}),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence_that_names_the_part(images, tmp_path, part, content):
    train(tiny(images, tmp_path / "run"))
    file = tmp_path / "run/checkpoints/step-00000006" / part
    if content is None:
        file.unlink()
    elif isinstance(content, dict):
        save_file(content, file)
    else:
        file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        train(tiny(images, tmp_path / "run"), resume=True)
    assert part in str(caught.value)
    assert "step-00000006" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["weights", "ema", "optimizer"])
def test_a_tensor_of_another_shape_in_a_checkpoint_is_named(images, tmp_path, part):
    """The EMA's was broadcast, and the optimiser's met the step."""
    train(tiny(images, tmp_path / "run"))
    file = tmp_path / f"run/checkpoints/step-00000006/{part}.safetensors"
    tensors = load_file(file)
    name = max(tensors, key=lambda key: tensors[key].numel())
    save_file({**tensors, name: torch.zeros(1)}, file)
    with pytest.raises(InputError) as caught:
        train(tiny(images, tmp_path / "run"), resume=True)
    assert name in str(caught.value)
    assert file.name in str(caught.value)


def test_what_a_killed_process_left_of_a_sheet_is_cleaned_up(images, tmp_path):
    (tmp_path / "run/samples").mkdir(parents=True)
    dead_file(tmp_path / "run/samples")
    train(tiny(images, tmp_path / "run"))
    assert not list((tmp_path / "run/samples").iterdir())


def test_other_weights_in_the_same_file_are_refused_on_resume(images, tmp_path):
    file = tmp_path / "weights.json"
    file.write_text(json.dumps([1.0] * 20))
    config = tiny(images, tmp_path / "run", loss={"weight": str(file)})
    with pytest.raises(Stop):
        train(config, on_event=stop_after(3))
    about = tmp_path / "run/checkpoints/step-00000002/state.json"
    written = about.read_text()
    file.write_text(json.dumps([2.0] * 20))
    with refused(None, file):
        train(config, resume=True)
    file.write_text(json.dumps([1] * 20))  # the same numbers
    old = {key: value for key, value in json.loads(written).items() if key != "weights"}
    about.write_text(json.dumps(old))  # as before there was a checksum
    train(config, resume=True)


def test_two_processes_do_not_train_into_one_folder(images, tmp_path):
    folder = tmp_path / "run"
    code = "import sys; from pathlib import Path; from ddim._utils.lock import only_process\n"
    code += "with only_process(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with refused(None, folder) as caught:
            train(tiny(images, folder))
        process.send_signal(signal.SIGKILL)
    assert "\n" not in str(caught.value)
    assert [p.name for p in folder.iterdir()] == [".ddim-lock"]
    train(tiny(images, folder))
    assert not (folder / ".ddim-lock").exists()


def test_a_lock_on_a_new_folder_leaves_nothing(tmp_path):
    with only_process(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with refused(None, tmp_path / "file"), only_process(tmp_path / "file"):
        pass


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_a_checkpoint_is_refused_and_named(images, tmp_path):
    train(tiny(images, tmp_path / "run"))
    torch.save({"state": Bomb(tmp_path / "ran")}, tmp_path / "run/checkpoints/step-00000006/optimizer.safetensors")
    with refused(None, "step-00000006"):
        train(tiny(images, tmp_path / "run"), resume=True)
    assert not (tmp_path / "ran").exists()


def damage(file, change):
    tensors = load_file(file)
    save_file(change(tensors), file)


@pytest.mark.parametrize(
    ("file", "what"),
    [  # a parameter without gradients has no optimiser's state, so none need be there
        *((file, "missing") for file in ("weights", "ema")),
        *((file, what) for file in ("weights", "ema", "optimizer") for what in ("misshapen", "unexpected")),
    ],
)
def test_a_checkpoint_that_is_not_whole_names_its_first_tensor(images, tmp_path, file, what):
    train(tiny(images, tmp_path / "run"))
    place = tmp_path / f"run/checkpoints/step-00000006/{file}.safetensors"
    name = next(k for k, t in sorted(load_file(place).items()) if t.dim())
    if what == "missing":
        damage(place, lambda tensors: {k: t for k, t in tensors.items() if k != name})
    elif what == "misshapen":
        damage(place, lambda tensors: {**tensors, name: torch.ones(2, 97)})
    else:
        name = "9999.another"
        damage(place, lambda tensors: {**tensors, name: torch.ones(3)})
    with pytest.raises(InputError) as caught:
        train(tiny(images, tmp_path / "run"), resume=True)
    assert repr(name) in str(caught.value)
    assert "step-00000006" in str(caught.value)


def test_a_checkpoint_of_a_compiled_network_is_taken(images, tmp_path):
    folder = train(tiny(images, tmp_path / "run"))
    before = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    shutil.rmtree(folder)
    for file in ("weights", "ema"):
        place = tmp_path / f"run/checkpoints/step-00000006/{file}.safetensors"
        damage(place, lambda tensors: {f"_orig_mod.{k}": t for k, t in tensors.items()})
    again = load_file(train(tiny(images, tmp_path / "run"), resume=True) / "unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(t, again[k]) for k, t in before.items())


# --- what can go wrong ----------------------------------------------------------------------------------------------


FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError(FULL)])
@pytest.mark.parametrize("place", ["ddim.training.checkpoint.save_file", "os.fsync"])
def test_a_full_disk_keeps_the_checkpoint_before(images, tmp_path, monkeypatch, place, error):
    folder = tmp_path / "run"
    with pytest.raises(Stop):
        train(tiny(images, folder), on_event=stop_after(3))
    before = state(folder, 2)

    def full(*_args, **_kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        with failed(None, "step-00000004", "disk"):
            train(tiny(images, folder), resume=True)
    assert state(folder, 2) == before
    assert not leftovers(folder)
    train(tiny(images, folder), resume=True)
    assert (folder / "model/model_index.json").is_file()


def test_a_full_disk_at_the_end_leaves_no_half_model(images, tmp_path, monkeypatch):
    def full(self, folder, **_kwargs):
        Path(folder, "model_index.json").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("diffusers.DDIMPipeline.save_pretrained", full)
        with failed(None, tmp_path / "run/model", "disk"):
            train(tiny(images, tmp_path / "run"))
    assert not (tmp_path / "run/model").exists()
    assert not leftovers(tmp_path / "run")
    assert train(tiny(images, tmp_path / "run"), resume=True).is_dir()


@pytest.mark.parametrize("moment", ["filling", "between the renames", "after both"])
def test_what_a_killed_process_left_is_cleaned_up(tmp_path, moment):
    def fill(folder, text):
        folder.mkdir()
        (folder / "a").write_text(text)

    if moment == "filling":
        fill(tmp_path / "model", "old")
        fill(tmp_path / ".ddim-tmp-model", "ne")
    elif moment == "between the renames":
        fill(tmp_path / ".ddim-old-model", "old")
        fill(tmp_path / ".ddim-tmp-model", "new")
    else:
        fill(tmp_path / "model", "new")
        fill(tmp_path / ".ddim-old-model", "old")
    clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model/a").read_text() == ("new" if moment == "after both" else "old")


def test_a_folder_appears_under_its_name_only_when_it_is_whole(tmp_path):
    target = tmp_path / "model"
    for text in ("first", "second"):
        with whole_folder(target) as folder:
            (folder / "a").write_text(text)
            assert not target.exists() or (target / "a").read_text() == "first"
        assert (target / "a").read_text() == text
    with pytest.raises(Stop), whole_folder(target) as folder:
        raise Stop
    assert (target / "a").read_text() == "second"
    assert not leftovers(tmp_path)


def test_a_folder_is_back_when_the_new_one_cannot_take_its_name(tmp_path, monkeypatch):
    target, rename = tmp_path / "model", Path.rename
    target.mkdir()
    (target / "a").write_text("old")

    def failing(self, to):
        if self.name.startswith(".ddim-tmp-"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with failed(None, target), whole_folder(target):
        pass
    assert (target / "a").read_text() == "old"
    assert not leftovers(tmp_path)


def test_killed_while_an_old_checkpoint_is_removed_no_half_of_it_is_left(images, tmp_path, monkeypatch):
    def killed(path, **_options):
        if path.exists():
            (path / "ema.safetensors").unlink()
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(Stop):
            train(tiny(images, tmp_path / "run", output={"keep": 1}))
    checkpoints = list((tmp_path / "run/checkpoints").glob("step-*"))
    assert [p.name for p in checkpoints] == ["step-00000004"]
    assert len(list(checkpoints[0].iterdir())) == 4
    train(tiny(images, tmp_path / "run", output={"keep": 1}), resume=True)
    assert not leftovers(tmp_path / "run")


def test_a_loss_that_is_not_finite_names_the_step(images, tmp_path, monkeypatch):
    from ddim.training.tasks import pixel

    real, calls = pixel.diffusion_loss, []

    def diverging(*args):
        calls.append(1)
        return real(*args) * (math.nan if len(calls) == 5 else 1)

    monkeypatch.setattr(pixel, "diffusion_loss", diverging)
    with not_finite(5, "nan", hint=True):
        train(tiny(images, tmp_path / "run"))
    assert [p.name for p in sorted((tmp_path / "run/checkpoints").iterdir())] == ["step-00000002", "step-00000004"]


def test_a_broken_image_is_reported_and_the_run_goes_on(images, tmp_path):
    (images / "002.png").write_bytes(b"broken")
    events = []
    result = train(tiny(images, tmp_path / "memory"), on_event=events.append)
    (skipped,) = [e for e in events if e.kind == "skipped"]
    assert "1 images could not be decoded and are left out" in skipped.message
    assert "002.png" in skipped.message
    assert "002.png" in events[-1].message
    about = json.loads((result / "ddim_training.json").read_text())
    assert about["images"]["count"] == 9
    assert len(about["skipped"]) == 1
    lazy = tiny(images, tmp_path / "lazy", data={"memory_gib": 0.0, "workers": 0})
    train(lazy, on_event=events.append)
    assert "002.png" in events[-1].message


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"model": {"down_block_types": ["DownBlock2D"]}}, refused("model", "diffusers", "down_block_types")),
        ({"data": {"size": 7}}, refused("model", "7x7")),
        (
            {"data": {"path": "/none"}, "model": {"block_out_chanels": [8]}},
            unknown("model.block_out_chanels", "block_out_chanels", nearest="block_out_channels"),
        ),
    ],
)
def test_a_network_that_cannot_work_is_one_error_before_the_start(images, tmp_path, changes, refusal):
    with refusal:
        train(tiny(images, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


# --- results --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_plain_diffusers_loads_and_samples_the_result(images, tmp_path, prediction):
    from diffusers import DDIMPipeline

    zero = prediction == "v"
    changes = {
        "loss": {"prediction": prediction, "weight": "ones" if zero else "min_snr"},
        "schedule": {"kind": "cosine", "zero_terminal_snr": zero},
        "output": {"export_dtype": "float16"},
    }
    config = tiny(images, tmp_path / "run", **changes)
    result = train(config)
    assert result == tmp_path / "run/model"
    assert {p.name for p in result.iterdir()} == {"model_index.json", "unet", "scheduler", "ddim_training.json"}
    pipeline = DDIMPipeline.from_pretrained(result)
    stored = load_file(result / "unet/diffusion_pytorch_model.safetensors")
    assert {w.dtype for w in stored.values()} == {torch.float16}
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    pictures = pipeline(2, generators, num_inference_steps=4, output_type="np").images
    assert pictures.shape == (2, 8, 8, 1)
    ours = ddim.sample(ddim.load(result, device="cpu"), 2, steps=4)  # as the folder says, which clips nothing
    assert np.abs(ours.permute(0, 2, 3, 1).numpy() - pictures).max() < 1e-4
    names = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
    assert pipeline.scheduler.config.prediction_type == names[prediction]
    foreign = pipeline.scheduler.alphas_cumprod.double()
    table = path_of(config.schedule).alpha(torch.arange(1, 21)) ** 2
    torch.testing.assert_close(foreign, table, rtol=1e-4, atol=1e-6)


def test_the_result_holds_the_averaged_weights(images, tmp_path):
    result = train(tiny(images, tmp_path / "run"))
    exported = load_file(result / "unet/diffusion_pytorch_model.safetensors")
    average = load_file(tmp_path / "run/checkpoints/step-00000006/ema.safetensors")
    weights = load_file(tmp_path / "run/checkpoints/step-00000006/weights.safetensors")
    assert all(torch.equal(exported[name], average[name]) for name in average)
    assert any(not torch.equal(exported[name], weights[name]) for name in average)


def test_checkpoints_sheets_and_tensorboard(images, tmp_path):
    pytest.importorskip("tensorboard")
    output = {"keep": 2, "checkpoint_every": 1, "sample_every": 4, "samples": 5, "tensorboard": True, "log_every": 1}
    events = []
    train(tiny(images, tmp_path / "run", output=output), on_event=events.append)
    names = [p.name for p in sorted((tmp_path / "run/checkpoints").iterdir())]
    assert names == ["step-00000005", "step-00000006"]
    sheets = sorted((tmp_path / "run/samples").iterdir())
    assert [s.name for s in sheets] == ["step-00000004.png", "step-00000006.png"]
    assert Image.open(sheets[0]).size == (2 * 8 + 3 * 2, 3 * 8 + 4 * 2)  # five pictures in two columns, gaps of 2
    assert list((tmp_path / "run/tensorboard").glob("events*"))
    steps = [e for e in events if e.kind == "step"]
    assert [e.step for e in steps] == [1, 2, 3, 4, 5, 6]
    assert all(e.loss > 0 and e.images_per_second > 0 for e in steps)
    assert (events[0].kind, events[-1].kind) == ("start", "done")


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_a_sheet_shows_what_a_network_that_knows_the_picture_predicts(prediction):
    from test_loss import SCHEDULE, Guess

    picture = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    changes = {"schedule": {"steps": SCHEDULE.steps}, "loss": {"prediction": prediction}}
    config = tiny(Path("-"), Path("-"), **changes, output={"samples": 1, "sample_steps": 10})
    sheet = PixelTask(config).sheet(Guess(picture, prediction, 0.0))
    shown = torch.from_numpy(np.array(sheet))[2:-2, 2:-2].float() / 127.5 - 1
    torch.testing.assert_close(shown, picture[0, 0], atol=0.01, rtol=0)


def test_the_network_learns(images, tmp_path):
    losses = []
    changes = {"train": {"steps": 150, "batch": 10, "lr": 5e-3}, "output": {"checkpoint_every": 150}}
    changes["schedule"] = {"kind": "cosine"}
    train(tiny(images, tmp_path / "run", **changes), on_event=lambda e: e.kind == "step" and losses.append(e.loss))
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])


# --- batches --------------------------------------------------------------------------------------------------------


def curve(config):
    events = []
    train(config, on_event=events.append)
    return [(e.loss, e.gradient_norm) for e in events if e.kind == "step"]


def test_micro_batches_add_up_to_the_batch(images, tmp_path, told):
    # Adam does not see the scale of a gradient; its norm does.
    curves = [
        curve(
            tiny(images, tmp_path / str(n), **told({"train": {"batch": 8, "accumulate": n}, "model": {"dropout": 0.0}}))
        )
        for n in (1, 2, 8)
    ]
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-3)
    np.testing.assert_allclose(curves[2], curves[0], rtol=1e-3)


def test_two_processes_share_a_batch(images, tmp_path):
    """Of an unconditional run, and of one with labels, half of them dropped."""
    changes = {"train": {"batch": 8, "steps": 4, "accumulate": 2, "threads": 1}, "model": {"dropout": 0.0}}
    changes = {**changes, "output": {"checkpoint_every": 4}}
    make_labels(images)
    runs = {"unconditional": changes, "labels": labelled(changes)}
    configs = list[Path]()
    for name, told in runs.items():
        train(tiny(images, tmp_path / name / "one", **told))
        configs.append(write_toml(tables(images, tmp_path / name / "two", **told), tmp_path / f"{name}.toml"))
    # `accelerate launch` starts several CPU processes only through MPI; torchrun sets the same variables without.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launch += [str(HELPER), *map(str, configs)]
    done = subprocess.run(launch, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 x cpu") == 2
    for name in runs:
        folders = (tmp_path / name / n / "checkpoints/step-00000004" for n in ("one", "two"))
        one, two = (load_file(folder / "weights.safetensors") for folder in folders)
        # Rounding that Adam blows up where a gradient is nearly zero moves a weight by a few rates (1e-3) at most.
        gap = torch.cat([(one[key] - two[key]).flatten() for key in one]).abs()
        assert float(gap.median()) < 1e-6
        assert float(gap.max()) < 5e-3
