"""The command: what it writes, what it says, and that --help stays light."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from commands import about, fails, picture, python, run, run_json
from PIL import Image
from typer.testing import CliRunner

import ddim
from ddim._utils.names import settings_text, short_hash
from ddim.cli.app import app
from ddim.cli.files import stem

COMMANDS = ["sample", "invert", "reconstruct", "interpolate", "edit", "train", "models", "methods", "demo"]


def pixels(path: str | Path) -> torch.Tensor:
    with Image.open(path) as image:
        data = torch.frombuffer(bytearray(image.convert("L").tobytes()), dtype=torch.uint8)
        return data.view(image.height, image.width)


def test_help_names_every_command_and_imports_nothing_heavy():
    script = (
        "import sys, ddim.cli.app as a\n"
        "sys.argv = ['ddim', '--help']\n"
        "try: a.main()\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = {'torch', 'diffusers', 'numpy', 'PIL', 'safetensors', 'rich.progress'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = python("-c", script)
    assert result.returncode == 0, result.stderr
    for name in COMMANDS:
        assert f" {name} " in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_the_machine_options(name: str):
    text = run(name, "--help").stdout
    for flag in ("--json", "--quiet", "--debug"):
        assert flag in text


def test_the_names_in_help_are_those_of_the_registries():
    for command, names in (("sample", ddim.SOLVERS.lines), ("invert", ddim.INVERSIONS.lines)):
        assert ", ".join(names) in " ".join(run(command, "--help").stdout.replace("│", " ").split())


def test_version():
    assert run("--version").stdout == f"ddim {ddim.__version__}\n"


def test_sample_writes_a_sheet_that_names_its_settings(model: str):
    result = run("sample", "-m", model, "-n", 4, "--steps", 3, "--seed", 7)
    name = "small_ddim_S3_eta0_seed7_n4.png"
    assert os.listdir() == [name]
    assert name in result.stdout
    assert pixels(name).shape == (2 * 8 + 6, 2 * 8 + 6)
    settings = about(name)
    assert settings["seeds"] == [7, 8, 9, 10]
    assert settings["fingerprint"] == ddim.load(model).fingerprint
    assert {k: settings[k] for k in ("solver", "options", "steps", "spacing")} == {
        "solver": "ddim",
        "options": {"eta": 0.0},
        "steps": 3,
        "spacing": "leading",
    }


def test_sample_each_gives_the_verbs_pictures(model: str):
    said = run_json("sample", "-m", model, "-n", 2, "--steps", 3, "--eta", 0.5, "--each", "--batch", 1)
    stem = "small_ddim_S3_eta0.5_seed0"
    assert said["files"] == [f"{stem}_n2.png", f"{stem}_n2/{stem}.png", f"{stem}_n2/{stem[:-1]}1.png"]
    images = ddim.sample(ddim.load(model), 2, steps=3, eta=0.5)
    for file, image, seed in zip(said["files"][1:], images, (0, 1), strict=True):
        assert torch.equal(pixels(file), (image[0] * 255).round().to(torch.uint8))
        assert about(file)["seeds"] == [seed]
    assert said["nfe"] == 3
    assert said["count"] == 2
    assert said["seconds"] > 0


def test_one_sample_has_no_border(model: str):
    run("sample", "-m", model, "-n", 1, "--steps", 2, "--scale", 3, "--out", "one.png")
    assert pixels("one.png").shape == (24, 24)


def test_sample_writes_a_code_of_its_images(model: str):
    said = run_json("sample", "--model", model, "-n", 2, "-S", 3, "--eta", 1, "--code", "--each", "--seed", 5)
    page, *singles, code = said["files"]
    assert code == page.replace(".png", ".code.safetensors")
    assert len(singles) == 2
    back = run_json("reconstruct", code, "--model", model)["files"]
    for one, again in zip(singles, back, strict=True):
        assert torch.equal(pixels(one), pixels(again))
    assert ddim.LatentCode.load(code).method == "sample"
    assert "--solver: 'bdia'" in fails("sample", "--model", model, "--solver", "bdia", "--code", code=2)


def test_sample_takes_a_list_of_t_an_option_and_a_folder(model: str):
    walk = ["--spacing", "900,500,1", "--solver", "bdia", "-o", "gamma=0.5"]
    said = run_json("sample", "-m", model, "-n", 1, *walk, "--out", "new/folder")
    assert said["files"] == ["new/folder/small_bdia_S3_gamma0.5_t900-500-1_seed0_n1.png"]
    assert said["spacing"] == [900, 500, 1]
    assert said["options"] == {"gamma": 0.5}


def test_sample_with_labels_and_thresholds():
    folder = tiny.pipeline_folder(Path("conditional"), tiny.unet(classes=3))
    one = run_json("sample", "-m", folder, "-n", 2, "--steps", 2, "--label", 1, "--clip", 1)
    two = run_json("sample", "-m", folder, "-n", 2, "--steps", 2, "--label", 1, "--label", 2, "--threshold", 0.9)
    assert one["files"] == ["conditional_ddim_S2_eta0_label1_clip1_seed0_n2.png"]
    assert two["files"] == ["conditional_ddim_S2_eta0_label1-2_threshold0.9_seed0_n2.png"]


def test_invert_checks_what_comes_back(model: str):
    shirt = picture(Path("shirt.png"))
    result = run("invert", shirt, "-m", model, "--method", "bdia", "--steps", 4)
    assert "PSNR" in result.stdout
    assert "shirt_bdia_S4_on-small.code.safetensors" in result.stdout
    code = ddim.LatentCode.load("shirt_bdia_S4_on-small.code.safetensors")
    assert (code.method, code.grid.steps, len(code)) == ("bdia", 4, 1)
    assert sorted(os.listdir()) == ["shirt.png", "shirt_bdia_S4_on-small.code.safetensors"]


def test_invert_and_reconstruct_tell_machines_the_error(model: str):
    shirt, coat = picture(Path("shirt.png"), 1), picture(Path("coat.png"), 2)
    there = run_json("invert", shirt, coat, "-m", model, "--steps", 4, "-o", "iterations=2", "--out", "codes")
    assert there["files"] == [f"codes/{n}_ddim_S4_iterations2_on-small.code.safetensors" for n in ("shirt", "coat")]
    assert there["nfe"] == {"invert": 8, "reconstruct": 4}
    back = run_json("reconstruct", *there["files"], "--original", shirt, "--original", coat, "--out", "back")
    assert back["files"] == [f"back/{n}_ddim_S4_iterations2_on-small_recon.png" for n in ("shirt", "coat")]
    for one, two in zip(there["images"], back["images"], strict=True):
        assert one["mse"] == pytest.approx(two["mse"], rel=1e-3)
        assert two["psnr"] == pytest.approx(ddim_psnr(two["mse"]))
    assert about(back["files"][0])["method"] == "ddim"
    assert back["warnings"] == []


def ddim_psnr(mse: float) -> float:
    return float(-10 * torch.tensor(mse, dtype=torch.float64).log10())


def test_an_exact_method_brings_the_png_back_to_the_bit(model: str):
    shirt = picture(Path("shirt.png"))
    run("invert", shirt, "-m", model, "--method", "belm", "--steps", 5, "--no-check")
    run("reconstruct", "shirt_belm_S5_on-small.code.safetensors", "--original", shirt)
    assert torch.equal(pixels("shirt_belm_S5_on-small_recon.png"), pixels(shirt))


def test_together_and_a_sheet(model: str):
    images = [picture(Path(f"{k}.png"), k) for k in range(3)]
    there = run_json("invert", *images, "-m", model, "--steps", 2, "--together", "--no-check")
    assert there["files"] == [f"3pictures-{short_hash('0.png', '1.png', '2.png')}_ddim_S2_on-small.code.safetensors"]
    assert "psnr" not in there["images"][0]
    sheet = run_json("reconstruct", there["files"][0], "--sheet", "--columns", 3)
    name = there["files"][0].removesuffix(".code.safetensors")
    assert sheet["files"] == [f"{name}_recon.png"]
    assert pixels(sheet["files"][0]).shape == (12, 32)
    each = run_json("reconstruct", there["files"][0])
    assert each["files"] == [f"{name}_recon_{k}.png" for k in range(3)]


def test_resize_fits_a_picture(model: str):
    large = picture(Path("large.png"), size=20)
    run("invert", large, "-m", model, "--steps", 2, "--resize")
    said = run_json("reconstruct", "large_ddim_S2_on-small_resized.code.safetensors", "--original", large, "--resize")
    assert said["images"][0]["psnr"] > 0


def test_interpolate_between_a_picture_and_a_code(model: str):
    shirt, coat = picture(Path("shirt.png"), 1), picture(Path("coat.png"), 2)
    run("invert", coat, "-m", model, "--method", "bdia", "--steps", 3, "--no-check")
    code = "coat_bdia_S3_on-small.code.safetensors"
    said = run_json("interpolate", shirt, code, "--method", "bdia", "--steps", 3, "--frames", 4, "--each")
    page = "shirt_to_coat_bdia_S3_on-small_frames4.png"
    assert said["files"][0] == page
    assert len(said["files"]) == 5
    assert pixels(page).shape == (12, 4 * 10 + 2)
    assert torch.equal(pixels(said["files"][1]), pixels(shirt))
    assert torch.equal(pixels(said["files"][-1]), pixels(coat))


def test_interpolations_with_other_options_are_other_files(model: str):
    images = [str(p) for p in ddim.bundled_test_images("fashion")[:2]]
    words = ["interpolate", *images, "-m", model, "-S", 3, "--frames", 2, "--method", "bdia", "--resize"]
    plain = run_json(*words)
    other = run_json(*words, "-o", "gamma=0.9")
    assert plain["files"] != other["files"]
    assert "gamma0.9" in other["files"][0]


def test_interpolate_four_corners_and_a_chain(model: str):
    images = [picture(Path(f"{k}.png"), k) for k in range(4)]
    grid = run_json("interpolate", *images, "-m", model, "--steps", 2, "--grid", "3x5")
    assert grid["count"] == 15
    assert pixels(grid["files"][0]).shape == (3 * 10 + 2, 5 * 10 + 2)
    chain = run_json("interpolate", *images, "-m", model, "--steps", 2, "--frames", 3)
    assert chain["count"] == 7
    assert "via2" in chain["files"][0]


def test_train_writes_a_model_that_samples(tmp_path: Path):
    pytest.importorskip("accelerate")
    import training_helpers

    config = training_helpers.tables(training_helpers.make_images(tmp_path / "pictures"), tmp_path / "runs" / "mini")
    toml = training_helpers.write_toml(config, tmp_path / "mini.toml")
    said = run_json("train", toml)
    assert said["files"] == [str(tmp_path / "runs" / "mini" / "model")]
    assert run_json("sample", "-m", said["files"][0], "-n", 1, "--steps", 2)["files"]


def test_methods_come_from_the_registries():
    said = run_json("methods")
    assert [s["name"] for s in said["solvers"]] == list(ddim.SOLVERS)
    assert [s["name"] for s in said["inversions"]] == ddim.inversion_names()
    assert [s["name"] for s in said["spacings"]] == list(ddim.SPACINGS)
    bdia = next(s for s in said["solvers"] if s["name"] == "bdia")
    assert (bdia["exact"], bdia["order"], bdia["options"], bdia["amplification"]) == (True, 2, {"gamma": 1.0}, 1.0)
    text = run("methods").stdout
    for name in (*ddim.SOLVERS, *ddim.inversion_names(), *ddim.SPACINGS):
        assert name in text


def test_models_lists_and_describes(model: str):
    assert [m["name"] for m in run_json("models")["models"]] == list(ddim.bundled_models())
    said = run_json("models", model)
    assert (said["prediction"], said["levels"], said["shape"]) == ("eps", 1000, [1, 8, 8])
    assert said["schedule"]["beta_schedule"] == "linear"
    assert said["fingerprint"] in run("models", model).stdout


def test_quiet_says_nothing(model: str):
    result = run("sample", "-m", model, "-n", 1, "--steps", 2, "--quiet")
    assert result.output == ""


def test_progress_is_drawn_on_a_terminal_only(model: str, monkeypatch: pytest.MonkeyPatch):
    words = ["sample", "-m", model, "-n", "2", "--steps", "3"]
    assert "steps/s" not in CliRunner().invoke(app, words).stderr
    from ddim.cli import output

    made: list[Any] = []
    progress = output.progress
    monkeypatch.setattr(output, "progress", lambda *a: made.append(progress(*a)) or made[-1])
    talking = output.Terminal()
    talking.live = True
    with talking, talking.bar("sampling", 2) as report:
        assert report is not None
        report(1, 3)
        report(3, 3)
    task = made[0].tasks[0]
    assert (task.completed, task.total) == (3, 3)
    assert "steps/s" in task.fields["rate"]
    assert "images/s" in task.fields["rate"]


def test_a_warning_of_every_batch_is_told_once(capsys: pytest.CaptureFixture[str]):
    import warnings

    from ddim.cli.output import Terminal

    with Terminal(as_json=True) as talking:
        for _ in range(3):
            warnings.warn("edict rounds\nthe picture away.", ddim.DDIMWarning, stacklevel=1)
        talking.warn("Another.")
    assert talking.warned == ["edict rounds the picture away.", "Another."]
    assert [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()] == talking.warned


def test_a_true_process_speaks_json_on_stdout_alone(model: str):
    result = python("-m", "ddim.cli.app", "sample", "-m", model, "-n", "1", "--steps", "2", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["files"] == ["small_ddim_S2_eta0_seed0_n1.png"]
    assert result.stderr == ""


def test_names():
    assert settings_text("dpm++2m", 20, {}, "karras", {"seed": 3, "n": None}) == "dpm++2m_S20_karras_seed3"
    long = settings_text("ddim", 9, {"eta": 1.0}, [float(k) for k in range(9, 0, -1)])
    assert long == f"ddim_S9_eta1_explicit-{short_hash('9-8-7-6-5-4-3-2-1')}"
    assert long != settings_text("ddim", 9, {"eta": 1.0}, [float(k) for k in range(10, 1, -1)])
    assert stem(Path("a/shirt 1.JPG")) == "shirt-1"


def test_settings_that_shape_an_interpolation_are_in_its_name_and_metadata(model: str):
    ends = [picture(Path(f"{k}.png"), k) for k in range(2)]
    words = ["interpolate", *ends, "-m", model, "-S", 2, "--frames", 2]
    plain, other = run_json(*words), run_json(*words, "--seed", 3, "--clip", 2)
    assert plain["files"] == ["0_to_1_bdia_S2_on-small_frames2.png"]
    assert {"seed3", "clip2"} <= set(Path(other["files"][0]).stem.split("_"))
    assert (other["seed"], other["clip"], plain["seed"], plain["clip"]) == (3, 2.0, 0, None)
