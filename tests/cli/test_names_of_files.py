"""Default file names: an option that changes a result changes the name of its file, so that none is overwritten."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import original_layout
import pytest
import tiny
import tiny_flux
import tiny_lora
import tiny_text
import typer
from commands import picture as grey
from commands import run, run_json
from tiny_flow import FAMILIES
from typer.testing import CliRunner

import ddim
from ddim.cli import edit, interpolate, invert, sample
from ddim.cli.app import app
from ddim.cli.files import model_slug

CAT, TIGER = "a cat on a mat", "a tiger on a mat"
HIDDEN = {
    *("help", "json", "quiet", "debug", "out"),
    *("columns", "scale", "each", "check", "code"),  # how results are laid out, and what else is told
    *("device", "batch", "one_by_one", "low_memory", "tf32", "compile"),  # at most the last bits
    *("together", "resume"),
}
"""Options that leave a result as it is."""


LOAD = cache(ddim.load)


class Named(Exception):
    """Ends a command when it has named its files."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny models in folders, by kind."""
    place = tmp_path_factory.mktemp("models")
    tiny_text.pipeline().save_pretrained(place / "words")
    tiny_text.pipeline().save_pretrained(place / "other")
    tiny.pipeline_folder(place / "classes", tiny.unet(classes=5))
    tiny.pipeline_folder(place / "grey")
    tiny_flux.pipeline().save_pretrained(place / "flux")
    FAMILIES["sd3"].pipeline().save_pretrained(place / "sd3")
    FAMILIES["flux kontext"].pipeline().save_pretrained(place / "kontext")
    for seed, name in enumerate(("style", "other-style")):
        tiny_lora.lora(tiny_text.pipeline(), place / f"{name}.safetensors", seed)
        tiny_lora.embedding(place / f"{name}-word.safetensors", 12, seed=seed)
    for name in ("fp16", "bf16"):
        tiny_text.pipeline().unet.save_pretrained(place / "words" / "unet", variant=name)
    original_layout.write(tiny_text.pipeline(), place / "single.safetensors")
    known = {path.name: str(path) for path in place.iterdir()}
    return known | {"style.safetensors:0.5": f"{known['style.safetensors']}:0.5"}


@pytest.fixture
def names(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, ...]]:
    """A function that tells which files a command line would write; nothing is computed."""
    said: list[str] = []

    def protect(targets: Any, inputs: Any = (), parameter: str = "out") -> None:
        files = [str(path) for path in targets]
        if not all(Path(file).name in ("x", "x.png", "x.code.safetensors") for file in files):
            said.extend(files)
            raise Named

    for module in (sample, invert, edit, interpolate):
        monkeypatch.setattr(module, "protect", protect)
    monkeypatch.setattr("ddim.models.load", LOAD)
    monkeypatch.setattr("ddim.load_classifier", lambda *_, **__: None)
    for k, name in enumerate(("cat", "dog", "fox", "owl")):
        ddim.save_image(tiny_text.pictures(1, 32, 32, k)[0], f"{name}.png")
        grey(Path(f"grey-{name}.png"), k)

    def names_of(*words: object) -> tuple[str, ...]:
        said.clear()
        result = CliRunner().invoke(app, [folders.get(str(word), str(word)) for word in words])
        assert said, result.output
        return tuple(said)

    return names_of


WORDS = ["--model", "words"]
SD3 = ["--model", "sd3", "--prompt", CAT]
FLUX = ["--model", "flux", "--prompt", CAT]
KONTEXT = ["--model", "kontext", "--prompt", CAT]
SOURCE = ["--from", CAT, "--to", TIGER]
CLASSES = ["--model", "classes"]
GUIDED: dict[str, list[list[object]]] = {
    "negative": [["-w", 3, "--negative", "hat"], ["-w", 3, "--negative", ""], ["-w", 3]],
    "guidance": [[], ["--guidance", 3], ["--guidance", 4]],
    "guidance_scale": [[], ["--guidance-scale", 3]],
    "rescale": [["-w", 3], ["-w", 3, "--rescale", 0.5]],
    "interval": [["-w", 3], ["-w", 3, "--interval", "0,0.5"], ["-w", 3, "--interval", "0.1,0.5"]],
    "proximal": [["-w", 3], ["-w", 3, "--proximal", "l0"], ["-w", 3, "--proximal", "l1"]],
    "proximal_quantile": [["-w", 3, "--proximal", "l0", *more] for more in ([], ["--proximal-quantile", 0.5])],
}
SKIPPED: dict[str, list[list[object]]] = {
    "skip_layers": [[], ["--skip-layers", "0"], ["--skip-layers", "1"]],
    "skip_scale": [["--skip-layers", "0"], ["--skip-layers", "0", "--skip-scale", 2]],
    "skip_steps": [["--skip-layers", "0"], ["--skip-layers", "0", "--skip-steps", "0,0.5"]],
}
GRID: dict[str, list[list[object]]] = {
    "steps": [[], ["--steps", 7]],
    "spacing": [
        *([], ["--spacing", "trailing"], ["--spacing", "900,500"]),
        *(["--spacing", "900,800,700,600,500,400,300"], ["--spacing", "900,800,700,600,500,400,200"]),
    ],
    "seed": [[], ["--seed", 3]],
    "clip": [[], ["--clip", 1], ["--clip", 2]],
    "threshold": [[], ["--threshold", 0.9]],
    "dtype": [[], ["--dtype", "bfloat16"], ["--dtype", "float64"]],
}
ADDED: dict[str, list[list[object]]] = {
    "lora": [
        [],
        *(
            ["--lora", f"{name}.safetensors{scale}"]
            for name, scale in (("style", ""), ("style", ":0.5"), ("other-style", ""))
        ),
        ["--lora", "style.safetensors", "--lora", "other-style.safetensors"],
    ],
    "textual_inversion": [
        [],
        *(["--textual-inversion", f"{name}-word.safetensors"] for name in ("style", "other-style")),
    ],
    "variant": [[], ["--variant", "fp16"], ["--variant", "bf16"]],
    "config": [["--model", "single.safetensors", "--config", name] for name in ("words", "other")],
}
INVERTED: dict[str, list[list[object]]] = {
    "method": [["--method", "ddim"], ["--method", "direct"]],
    "inversion_guidance": [["--method", "ddim"], ["--method", "ddim", "--inversion-guidance", 2]],
    "options": [["--method", "ddim"], ["--method", "ddim", "-o", "iterations=3"]],
    "resize": [[], ["--resize"]],
}
AUTO = ["--auto-mask"]
CROP = ["--crop", "0,0,16,16"]
CASES: dict[str, tuple[list[object], dict[str, list[list[object]]]]] = {
    "sample": (
        ["sample", *WORDS, "--prompt", CAT],
        {
            **GUIDED,
            **GRID,
            **ADDED,
            "model": [[], ["--model", "other"]],
            "prompt": [[], ["--prompt", TIGER], ["-p", "a dog", "-p", TIGER]],
            "count": [[], ["-n", 3]],
            "size": [[], ["--size", "32x16"]],
            "solver": [[], ["--solver", "bdia"], ["--solver", "heun"]],
            "options": [["--solver", "bdia"], ["--solver", "bdia", "-o", "gamma=0.5"]],
            "eta": [[], ["--eta", 0.5]],
            "guidance_scale": [[], [*FLUX, "--guidance-scale", 2], [*FLUX, "--guidance-scale", 9], FLUX],
            **{key: [[*SD3, *row] for row in rows] for key, rows in SKIPPED.items()},
            "reference": [KONTEXT, [*KONTEXT, "--reference", "cat.png"], [*KONTEXT, "--reference", "dog.png"]],
        },
    ),
    "sample classes": (
        ["sample", *CLASSES],
        {
            "label": [["--label", 1], ["--label", 2], ["--label", 1, "--label", 2, "-n", 2]],
            "classifier": [
                ["--label", 1, *more] for more in ([], ["--classifier", "a"], ["--classifier", "runs/b/model"])
            ],
            "classifier_weight": [["--label", 1, "--classifier", "a", *w] for w in ([], ["--classifier-weight", 2])],
        },
    ),
    "invert": (
        ["invert", "cat.png", *WORDS, "--prompt", CAT],
        {
            **GUIDED,
            **GRID,
            **ADDED,
            **INVERTED,
            "images": [[], ["dog.png", "--together"], ["fox.png", "--together"]],
            "model": [[], ["--model", "other"]],
            "prompt": [[], ["--prompt", TIGER]],
            "guidance_scale": [[], [*FLUX, "--guidance-scale", 2], [*FLUX, "--guidance-scale", 9], FLUX],
            "seed": [["--method", "edit-friendly", *seed] for seed in ([], ["--seed", 3])],
            "strength": [[], ["--strength", 0.5], ["--strength", 0.25], ["--strength", 1]],
            "keep_trajectory": [["--method", "ddim", *more] for more in ([], ["--keep-trajectory"])],
            "crop": [[], CROP, ["--crop", "0,0,24,24"], ["--crop", "whole"]],
            "keep_source": [CROP, [*CROP, "--keep-source"]],
            **{key: [[*SD3, "-w", 3, *row] for row in rows] for key, rows in SKIPPED.items()},
            "reference": [KONTEXT, [*KONTEXT, "--reference", "fox.png"], [*KONTEXT, "--reference", "dog.png"]],
        },
    ),
    "invert classes": (["invert", "grey-cat.png", *CLASSES], {"label": [["--label", 1], ["--label", 2]]}),
    "edit": (
        ["edit", "cat.png", *WORDS, *SOURCE],
        {
            **GUIDED,
            **GRID,
            **ADDED,
            **INVERTED,
            "source": [],
            "method": [["--method", name] for name in ("ddim", "direct", "flow-edit")],
            "options": [["--method", "flow-edit", *more] for more in ([], ["-o", "sampled=1"])],
            "model": [[], ["--model", "other"]],
            "from_": [[], ["--from", "a cat"]],
            "to": [[], ["--to", "a dog"], ["--to", f"{TIGER} (mat:2)"]],
            "guidance_scale": [
                [],
                ["--model", "flux", "--guidance-scale", 2],
                ["--model", "flux", "--guidance-scale", 9],
            ],
            "attention": [[], ["--attention", "replace"], ["--attention", "masactrl"], ["--attention", "none"]],
            "cross_steps": [[], ["--cross", 0.5]],
            "self_steps": [[], ["--self", 0.5]],
            "value_steps": [[], ["--value", 0.5]],
            "key_value_steps": [[], ["--key-value", 0.5]],
            "key_value_area": [
                ["--attention", "masactrl", "--mask", "dog.png"],
                ["--attention", "masactrl", "--mask", "dog.png", "--key-value-area", "background"],
            ],
            "feature_steps": [[], ["--features", 0.5]],
            "branches": [[], ["--branches", "both"]],
            "layers": [[], ["--layers", 0.5], ["--layers", "0.5,1"]],
            "layer_indices": [[], ["--layer-indices", "0"], ["--layer-indices", "0,1"]],
            "blend": [[], ["--blend", "cat/tiger"], ["--blend", "mat/mat"], ["--blend", "auto"]],
            "blend_start": [["--blend", "cat/tiger"], ["--blend", "cat/tiger", "--blend-start", 0.5]],
            "blend_threshold": [["--blend", "cat/tiger"], ["--blend", "cat/tiger", "--blend-threshold", 0.5]],
            "weight": [[], ["--weight", "tiger=2"], ["--weight", "tiger=3"]],
            "weight_steps": [["--weight", "tiger=2"], ["--weight", "tiger=2", "--weight-steps", 0.5]],
            "mask": [[], ["--mask", "dog.png"], ["--mask", "fox.png"]],
            "feather": [["--mask", "dog.png"], ["--mask", "dog.png", "--feather", 2]],
            "strength": [[], ["--strength", 0.5], ["--strength", 0.25], ["--strength", 1]],
            "sweep": [[], ["--sweep", 3], ["--sweep", 4]],
            "auto_mask": [[], AUTO],
            "mask_level": [AUTO, [*AUTO, "--mask-level", 0.3]],
            "mask_draws": [AUTO, [*AUTO, "--mask-draws", 3]],
            "mask_threshold": [AUTO, [*AUTO, "--mask-threshold", 0.3]],
            "mask_grow": [AUTO, [*AUTO, "--mask-grow", 1]],
            "crop": [[], CROP, ["--crop", "0,0,24,24"]],
            **{key: [["--model", "sd3", *row] for row in rows] for key, rows in SKIPPED.items()},
            "reference": [["--model", "kontext", *row] for row in ([], ["--reference", "fox.png"])],
        },
    ),
    "edit classes": (
        ["edit", "grey-cat.png", *CLASSES],
        {
            "from_label": [["--from-label", 1, "--to-label", 3], ["--from-label", 2, "--to-label", 3]],
            "to_label": [["--from-label", 1, "--to-label", 3], ["--from-label", 1, "--to-label", 2]],
        },
    ),
    "interpolate": (
        ["interpolate", "cat.png", "dog.png", *WORDS, "--prompt", CAT],
        {
            **GUIDED,
            **GRID,
            **ADDED,
            **INVERTED,
            "ends": [[], ["fox.png"], ["owl.png"], ["fox.png", "dog.png"], ["owl.png", "dog.png"]],
            "model": [[], ["--model", "other"]],
            "prompt": [[], ["--prompt", TIGER]],
            "guidance_scale": [[], [*FLUX, "--guidance-scale", 2], [*FLUX, "--guidance-scale", 9], FLUX],
            "frames": [[], ["--frames", 3]],
            "grid": [["fox.png", "owl.png", *grid] for grid in ([], ["--grid", "2x2"], ["--grid", "2x3"])],
            "seed": [["--method", "edit-friendly", *seed] for seed in ([], ["--seed", 3])],
            "through": [[], ["--through", "state"]],
            **{key: [[*SD3, "-w", 3, *row] for row in rows] for key, rows in SKIPPED.items()},
            "reference": [KONTEXT, [*KONTEXT, "--reference", "fox.png"], [*KONTEXT, "--reference", "owl.png"]],
        },
    ),
    "interpolate classes": (
        ["interpolate", "grey-cat.png", "grey-dog.png", *CLASSES],
        {"label": [["--label", 1], ["--label", 2]]},
    ),
}
"""A command line, and for each option lines that must name other files; a repeated option replaces an earlier one."""


def line(base: list[object], more: list[object]) -> list[object]:
    """The command line with ``more``, whose options replace those of ``base``."""
    said = {str(word) for word in more if str(word).startswith("--")} - {"--to"} | (
        {"--prompt"} if "-p" in more else set()
    )
    out = list(base)
    for flag in said & set(map(str, base)):
        at = out.index(flag)
        del out[at : at + 2]
    images = [word for word in more if str(word).endswith(".png")]
    loose = [
        word for k, word in enumerate(more) if word in images and (k == 0 or not str(more[k - 1]).startswith("--"))
    ]
    rest = [word for word in more if word not in loose]
    head = next((k for k, word in enumerate(out) if str(word).startswith("--")), len(out))
    return [*out[:head], *loose, *out[head:], *rest]


def rows() -> list[Any]:
    return [
        pytest.param(base, more, id=f"{name}-{key}")
        for name, (base, all_) in CASES.items()
        for key, more in all_.items()
    ]


@pytest.mark.parametrize(("base", "variants"), rows())
def test_an_option_that_changes_a_result_changes_the_names(
    base: list[object], variants: list[list[object]], names: Callable[..., tuple[str, ...]]
):
    found = [name for more in variants for name in names(*line(base, more))]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", ["sample", "invert", "edit", "interpolate"])
def test_every_option_has_a_row_or_leaves_results_as_they_are(name: str):
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    tried = {key for case, (_, cases) in CASES.items() if case.split()[0] == name for key in cases}
    assert {option.name for option in command.params} - HIDDEN <= tried
    assert not tried & HIDDEN


def test_an_embedded_scale_names_the_files_and_is_reported(folders: dict[str, str]):
    words = ["sample", *("-m", folders["flux"]), "-p", CAT, "-n", 1, "-S", 2]
    two, nine, usual = (run(*words, *more) for more in (["--guidance-scale", 2], ["--guidance-scale", 9], []))
    assert len([name for name in os.listdir() if name.endswith(".png")]) == 3
    assert ["embedded scale 2 " in two.stdout, "embedded scale 9 " in nine.stdout] == [True, True]
    assert "embedded scale 3.5 " in usual.stdout
    assert "w = " not in usual.stdout
    ddim.save_image(tiny_flux.picture()[0], "cat.png")
    edits = ["edit", "cat.png", "-m", folders["flux"], *SOURCE, "-S", 2, "--guidance-scale", 2]
    said = run(*edits).stdout
    assert "embedded scale 2 " in said
    assert "w = 1" not in said


def test_a_weight_is_reported_where_it_is_not_1(folders: dict[str, str]):
    words = ["sample", *("-m", folders["words"]), "-p", CAT, "-n", 1, "-S", 2]
    assert "w = 3 " in run(*words, "-w", 3).stdout
    assert "w = " not in run(*words, "-w", 1).stdout


def test_codes_keep_what_their_own_names_say(folders: dict[str, str]):
    for k, name in enumerate(("cat", "dog")):
        grey(Path(f"{name}.png"), k)
    words = ["invert", "cat.png", "dog.png", "-m", folders["grey"], "--method", "bdia", "-S", 3, "--no-check"]
    plain, other = run_json(*words), run_json(*words, "-o", "gamma=0.5")
    assert plain["files"] == [f"{name}_bdia_S3_on-grey.code.safetensors" for name in ("cat", "dog")]
    between = ["interpolate", "--frames", 2]
    pages = [run_json(*between, *said["files"])["files"][0] for said in (plain, other)]
    assert pages == ["cat_to_dog_bdia_S3_on-grey_frames2.png", "cat_to_dog_bdia_S3_gamma0.5_on-grey_frames2.png"]
    alike = run_json(*between, "cat.png", plain["files"][1], "-m", folders["grey"], "-S", 3)
    assert alike["files"] == pages[:1]
    again = run_json("reconstruct", plain["files"][0])["files"]
    half = run_json("reconstruct", plain["files"][0], "--dtype", "bfloat16")["files"]
    assert again == ["cat_bdia_S3_on-grey_recon.png"]
    assert half == ["cat_bdia_S3_on-grey_bfloat16_recon.png"]


def test_the_usual_model_has_no_tag_and_folders_of_runs_have_their_runs():
    grey(Path("cat.png"), size=32)
    said = run_json("invert", "cat.png", "--method", "bdia", "-S", 2, "--no-check")
    assert said["files"] == ["cat_bdia_S2.code.safetensors"]
    assert model_slug("runs/fashion/model") == model_slug("runs/fashion/model/") == "fashion-model"
    assert model_slug("runs/a/checkpoints/step-100") == "a-checkpoints-step-100"
    assert [model_slug(name) for name in ("emoji-flow", "owner/model-x", "./small", "model")] == [
        *("emoji-flow", "model-x", "small", "model")
    ]


def test_a_method_that_leaves_steps_out_reports_both_numbers(folders: dict[str, str]):
    ddim.save_image(tiny_text.pictures(1, 32, 32)[0], "cat.png")
    words = ["edit", "cat.png", "-m", folders["words"], *SOURCE, "-S", 5]
    assert "3 of 5 steps (skip = 0.36)" in run(*words, "--method", "edit-friendly").stdout
    assert "direct, S = 5 " in run(*words).stdout
