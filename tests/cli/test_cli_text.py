"""The command with words: sample, invert, reconstruct, interpolate and edit on a tiny Stable Diffusion in a folder."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_text
import torch
from commands import about, fails, run, run_json
from PIL import Image
from typer.testing import CliRunner

import ddim
from ddim._utils.choices import ATTENTIONS
from ddim._utils.names import short_hash
from ddim.cli import output
from ddim.cli.app import app
from ddim.cli.files import phrase, phrases
from ddim.editing.plan import AttentionEdit

CAT, TIGER = "a cat on a mat", "a tiger on a mat"
SIDE = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder called ``words`` with the tiny pipeline."""
    folder = tmp_path_factory.mktemp("models") / "words"
    tiny_text.pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pixel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder called ``small`` with a model that has no text."""
    return str(tiny.pipeline_folder(tmp_path_factory.mktemp("models") / "small"))


def picture(name: str = "cat.png", seed: int = 0, width: int = SIDE, height: int = SIDE) -> Path:
    ddim.save_image(tiny_text.pictures(1, height, width, seed)[0], name)
    return Path(name)


def rgb(path: str | Path) -> torch.Tensor:
    with Image.open(path) as image:
        data = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return data.view(image.height, image.width, 3)


def tile(path: str | Path, k: int, side: int = SIDE) -> torch.Tensor:
    """The k-th picture of a strip: two white pixels round each."""
    begin = 2 + k * (side + 2)
    return rgb(path)[2 : 2 + side, begin : begin + side]


# --- sample ----------------------------------------------------------------------------------------------------------


def test_sample_draws_the_verbs_picture(model: str):
    said = run_json("sample", "-m", model, "-p", "a dog face", "--negative", "hat", "-n", 1, "-S", 3, "--guidance", 5)
    (file,) = said["files"]
    assert file == "words_a-dog-face_ddim_S3_eta0_w5_not-hat_seed0_n1.png"
    image = ddim.sample(ddim.load(model), 1, steps=3, prompt="a dog face", negative="hat", guidance=5.0)
    assert torch.equal(rgb(file), (image[0].permute(1, 2, 0) * 255).round().to(torch.uint8))
    assert said["nfe"] == 6
    settings = about(file)
    assert (settings["prompts"], settings["negative"]) == (["a dog face"], "hat")
    assert settings["guidance"] == {"weight": 5.0, "rescale": 0.0, "interval": [0.0, 1.0]}


def test_several_prompts_are_a_picture_each(model: str):
    said = run_json("sample", "-m", model, "-p", CAT, "-p", TIGER, "-p", "a dog", "-S", 2, "--each")
    assert said["count"] == 3
    assert said["files"][0] == f"words_3prompts-{short_hash(CAT, TIGER, 'a dog')}_ddim_S2_eta0_seed0.png"
    assert [about(f)["prompts"] for f in said["files"][1:]] == [[CAT], [TIGER], ["a dog"]]


def test_rescale_interval_and_size(model: str):
    words = ["sample", "-m", model, "-p", CAT, "-n", 1, "-S", 4]
    said = run_json(*words, "--rescale", 0.7, "--interval", "0.3,0.8", "--size", "48x32")
    (file,) = said["files"]
    assert rgb(file).shape[:2] == (32, 48)
    assert "rescale0.7" in file
    assert "interval0.3-0.8" in file
    assert "size48x32" in file
    assert 4 < said["nfe"] < 8  # outside the interval one call is enough


def test_without_a_prompt_the_empty_one_is_drawn_and_said(model: str):
    result = CliRunner().invoke(app, ["sample", "-m", model, "-n", "1", "-S", "2", "--json"])
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("Warning: There is no --prompt")
    assert len(result.stderr.strip().splitlines()) == 1
    said = json.loads(result.stdout)
    assert said["prompts"] == [""]
    assert len(said["warnings"]) == 1


def test_a_prompt_that_is_too_long_is_one_warning(model: str):
    result = CliRunner().invoke(app, ["sample", "-m", model, "-p", "dog " * 40, "-n", "1", "-S", "2"])
    assert result.exit_code == 0, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert "it was cut after" in result.stderr


# --- invert, reconstruct ---------------------------------------------------------------------------------------------


def test_invert_and_reconstruct_under_guidance(model: str):
    cat = picture()
    there = run_json("invert", cat, "-m", model, "-p", CAT, "--guidance", 3, "--method", "direct", "-S", 3)
    assert there["files"] == ["cat_a-cat-on-a-mat_direct_S3_on-words_w3.code.safetensors"]
    code = ddim.LatentCode.load(there["files"][0])
    assert (code.prompts, code.guidance["weight"]) == ((CAT,), 3.0)
    back = run_json("reconstruct", there["files"][0], "--original", cat)
    assert back["images"][0]["psnr"] == pytest.approx(there["images"][0]["psnr"], abs=0.1)
    assert back["images"][0]["nfe"] == 6
    settings = about(back["files"][0])
    assert (settings["prompts"], settings["guidance"]["weight"]) == ([CAT], 3.0)


def test_invert_takes_sizes_seeds_and_the_way_back(model: str):
    wide = picture("wide.png", width=48)
    said = run_json(
        *("invert", wide, "-m", model, "-p", CAT, "-w", 2, "--inversion-guidance", 1, "--method", "edit-friendly"),
        *("-S", 4, "-o", "skip=0", "--seed", 3, "--no-check"),
    )
    assert said["files"] == ["wide_a-cat-on-a-mat_edit-friendly_S4_skip0_on-words_w2_back1_seed3.code.safetensors"]
    code = ddim.LatentCode.load(said["files"][0])
    assert code.x.shape[2:] == (16, 24)
    assert code.settings["inversion_guidance"] == 1
    other = run_json(
        *("invert", wide, "-m", model, "-p", CAT, "-w", 2, "--inversion-guidance", 1, "--method", "edit-friendly"),
        *("-S", 4, "-o", "skip=0", "--seed", 4, "--no-check"),
    )
    assert not torch.equal(ddim.LatentCode.load(other["files"][0]).x, code.x)


def test_null_text_tells_the_loss_as_it_falls(model: str, monkeypatch: pytest.MonkeyPatch):
    made: list[Any] = []
    progress = output.progress

    def watched(*a: Any) -> Any:
        bar = progress(*a)
        update = bar.update
        monkeypatch.setattr(bar, "update", lambda task, **k: (made.append(k["rate"]), update(task, **k)))
        return bar

    monkeypatch.setattr(output, "progress", watched)
    start = output.Terminal.__init__
    monkeypatch.setattr(output.Terminal, "__init__", lambda self, *a: (start(self, *a), setattr(self, "live", True))[0])
    run("invert", picture(), "-m", model, "-p", CAT, "-w", 5, "--method", "null-text", "-S", 3, "-o", "inner=2")
    told = [rate for rate in made if "loss" in rate]
    assert [rate.partition(":")[0] for rate in dict.fromkeys(told)] == ["step 1", "step 2", "step 3"]


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C after so many tuned steps."""
    from ddim.inversion.null_text import NullText

    tune = NullText._tune
    seen: list[int] = []

    def stopping(self: Any, *a: Any, **k: Any) -> Any:
        seen.append(1)
        if len(seen) > after:
            raise KeyboardInterrupt
        return tune(self, *a, **k)

    monkeypatch.setattr(NullText, "_tune", stopping)


def test_ctrl_c_keeps_what_was_tuned_and_resume_goes_on(model: str):
    words = ["invert", str(picture()), "-m", model, "-p", CAT, "-w", "5", "--method", "null-text", "-S", "4"]
    words += ["-o", "inner=3", "--no-check"]
    whole = ddim.LatentCode.load(run_json(*words, "--out", "whole")["files"][0])
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, 2)
        sentence = fails(*words, code=130)
    partial = "cat_a-cat-on-a-mat_null-text_S4_inner3_on-words_w5.code.safetensors.partial"
    assert f"--resume {partial}" in sentence
    assert sorted(os.listdir()) == ["cat.png", partial, "whole"]
    for command in (["reconstruct", partial], ["edit", partial, "--to", TIGER]):
        assert "finish it with invert and resume" in fails(*command, code=2)
    kept = Path(partial).read_bytes()
    said = run_json(*words, "--resume", partial)
    assert not Path(partial).exists()  # all that it held lies in the code
    Path(partial).write_bytes(kept)
    code = ddim.LatentCode.load(said["files"][0])
    assert torch.equal(code.extras["uncond_text"], whole.extras["uncond_text"])
    assert said["nfe"]["invert"] > 0
    again = [w if w != CAT else TIGER for w in words]
    sentence = fails(*again, "--resume", "cat.png", code=2)
    assert "cat.png is not a latent code" in sentence
    assert partial not in sentence
    assert "another prompts" in fails(*again, "--resume", partial, code=2)


def test_ctrl_c_in_an_edit_keeps_what_was_tuned(model: str):
    words = ["edit", picture(), "-m", model, "--from", CAT, "--to", TIGER, "--method", "null-text", "-S", 3]
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, 1)
        sentence = fails(*words, "-o", "inner=3", "--negative", "it's a hat", code=130)
    (partial,) = Path().glob("*.partial")
    command = sentence[sentence.index("ddim invert ") : sentence.index(" goes on.")]
    assert command.endswith(f"--resume {partial}")
    typed = shlex.split(command)
    file = run_json(*typed[1:])["files"][0]
    code = ddim.LatentCode.load(file)
    assert (code.method, code.grid.steps, code.negative) == ("null-text", 3, "it's a hat")
    assert run_json("edit", file, "--to", TIGER)["to"] == [[TIGER]]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "Interrupted."),
        (MemoryError(), 1, "not enough memory"),
        (ddim.DDIMError("It is no longer finite."), 1, "no longer finite."),
    ],
    ids=["ctrl-c", "memory", "nan"],
)
def test_what_stops_the_way_forward_of_an_edit_leaves_the_code(
    model: str, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
):
    words = ["edit", picture(), "-m", model, "--from", CAT, "--to", TIGER, "-S", 3, "-w", 5]

    def stopping(*a: Any, **k: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("ddim.pipelines.beside.solve", stopping)
        sentence = fails(*words, code=code)
    assert said in sentence
    kept = "cat_to_a-tiger-on-a-mat_direct_S3_on-words_from-a-cat-on-a-mat_w5.code.safetensors"
    assert sorted(os.listdir()) == ["cat.png", kept]
    command = sentence[sentence.index("ddim edit ") : sentence.index(" goes on.")]
    said_then = run_json(*shlex.split(command)[1:])
    assert torch.equal(tile(said_then["files"][0], 1), tile(run_json(*words)["files"][0], 2))


# --- interpolate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ddim", "direct", "bdia"])
def test_interpolate_between_pictures_and_codes_of_one_prompt(model: str, method: str):
    cat, dog = picture("cat.png", 1), picture("dog.png", 2)
    words = ["-m", model, "-p", "a face", "--method", method, "-S", 3, "-w", 2]
    code = run_json("invert", cat, *words)["files"][0]
    said = run_json("interpolate", code, dog, *words, "--frames", 3, "--each")
    assert said["prompts"] == ["a face"]
    assert said["guidance"]["weight"] == 2
    back = run_json("reconstruct", code)["files"][0]
    # one in a batch of two, and alone: the last bits part, and this network is quick to enlarge them
    first, last = (rgb(said["files"][k]).int() for k in (1, 3))
    assert (first - rgb(back).int()).abs().float().mean() < 1
    assert (first - last).abs().float().mean() > 5


def test_interpolate_wants_one_prompt_and_one_size(model: str):
    cat, dog, wide = picture("cat.png", 1), picture("dog.png", 2), picture("wide.png", 3, width=48)
    one = run_json("invert", cat, "-m", model, "-p", CAT, "-S", 2, "--no-check")["files"][0]
    two = run_json("invert", dog, "-m", model, "-p", TIGER, "-S", 2, "--no-check")["files"][0]
    sentence = fails("interpolate", one, two, code=2)
    assert CAT in sentence
    assert TIGER in sentence
    three = run_json("invert", wide, "-m", model, "-p", CAT, "-S", 2, "--no-check")["files"][0]
    assert "different sizes" in fails("interpolate", one, three, code=2)
    kept = [
        run_json("invert", p, "-m", model, "-p", CAT, "-S", 2, "--no-check", "--method", "direct")["files"][0]
        for p in (cat, dog)
    ]
    assert "pivot for every step" in fails("interpolate", *kept, "--through", "state", code=2)


# --- edit ------------------------------------------------------------------------------------------------------------


def test_edit_writes_a_strip_and_a_json(model: str):
    said = run_json("edit", picture(), "-m", model, "--from", CAT, "--to", TIGER, "--to", "a dog on a mat", "-S", 3)
    strip, beside = said["files"]
    both = short_hash(TIGER, "a dog on a mat")
    assert strip == f"cat_to_2targets-{both}_direct_S3_on-words_from-a-cat-on-a-mat.png"
    assert beside == strip.replace(".png", ".json")
    assert rgb(strip).shape == (SIDE + 4, 4 * (SIDE + 2) + 2, 3)
    assert torch.equal(tile(strip, 0), rgb("cat.png"))
    edited = ddim.edit(ddim.load(model), "cat.png", [TIGER, "a dog on a mat"], source_prompt=CAT, steps=3)
    shown = (edited.edits[0].permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
    assert torch.equal(tile(strip, 2), shown[0])
    assert torch.equal(tile(strip, 3), shown[1])
    assert not torch.equal(shown[0], shown[1])
    kept = json.loads(Path(beside).read_text())
    assert {k: kept[k] for k in ("from", "to", "method", "steps", "strip", "negative", "seed")} == {
        "from": [CAT],
        "to": [[TIGER, "a dog on a mat"]],
        "method": "direct",
        "steps": 3,
        "strip": ["source", "reconstruction", "a-tiger-on-a-mat", "a-dog-on-a-mat"],
        "negative": None,
        "seed": 0,
    }
    assert kept["guidance"]["weight"] == 7.5
    assert kept["nfe"] == said["nfe"] == 3 + 3 * 2 * 3  # the way back, and three guided rows forward
    assert kept["seconds"] > 0
    assert kept["reconstruction"][0]["psnr"] == said["reconstruction"][0]["psnr"] > 0
    assert about(strip)["to"] == kept["to"]


def test_an_edit_from_a_code_is_the_one_from_its_picture(model: str):
    cat = picture()
    code = run_json("invert", cat, "-m", model, "-p", CAT, "-w", 7.5, "--method", "direct", "-S", 3)["files"][0]
    one = run_json("edit", cat, "-m", model, "--from", CAT, "--to", TIGER, "-S", 3)["files"][0]
    said = run_json("edit", code, "--to", TIGER)
    two = said["files"][0]
    assert torch.equal(tile(one, 1), tile(two, 0))
    assert torch.equal(tile(one, 2), tile(two, 1))
    assert said["reconstruction"] == []


def test_each_picture_and_several_rows(model: str):
    images = [picture("cat.png", 1), picture("mat.png", 2)]
    code = run_json("invert", *images, "-m", model, "-p", CAT, "-w", 3, "-S", 2, "--together")["files"][0]
    said = run_json("edit", code, "--to", TIGER, "--each", "--out", "edits")
    assert len(said["files"]) == 1 + 4 + 1
    assert rgb(said["files"][0]).shape[:2] == (2 * (SIDE + 2) + 2, 2 * (SIDE + 2) + 2)
    assert all(Path(f).parent.parts[0] == "edits" for f in said["files"])
    assert torch.equal(rgb(said["files"][2]), tile(said["files"][0], 1))


def test_attention_blend_weights_and_mask_reach_the_verb(model: str):
    cat = picture()
    half = Image.new("L", (SIDE, SIDE), 0)
    half.paste(255, (SIDE // 2, 0, SIDE, SIDE))
    half.save("half.png")
    common = ["edit", cat, "-m", model, "--from", CAT, "--to", TIGER, "-S", 4]
    plain = run_json(*common, "--attention", "none")["files"][0]
    nowhere = run_json(*common, "--layers", "0.5,0.5")["files"][0]
    assert torch.equal(tile(plain, 2), tile(nowhere, 2))
    closed = run_json(*common, "--attention", "replace", "--cross", 0, "--self", "0,0")["files"][0]
    swapped = run_json(*common, "--attention", "replace", "--cross", "1", "--self", "0,1")["files"][0]
    heavy = run_json(*common, "--weight", "tiger=5")["files"][0]
    masked = run_json(*common, "--mask", "half.png", "--feather", 0)
    usual = run_json(*common)["files"][0]
    assert torch.equal(tile(plain, 2), tile(closed, 2))
    assert not torch.equal(tile(plain, 2), tile(swapped, 2))
    assert not torch.equal(tile(usual, 2), tile(heavy, 2))
    pasted, original = rgb(masked["photographs"][0]), rgb(cat)
    assert torch.equal(pasted[:, : SIDE // 2], original[:, : SIDE // 2])
    assert not torch.equal(pasted[:, SIDE // 2 :], original[:, SIDE // 2 :])
    assert masked["mask"] == "half.png"
    assert len({plain, closed, swapped, heavy, usual, masked["files"][0]}) == 6  # each has its own name


BAD_EDITS = [
    (["cat.png", "--from", CAT, "--to", TIGER, "--attention", "none", "--cross", "0.5"], ["--cross: (0.0, 0.5)"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--attention", "none", "--self", "0.5"], ["--self: (0.0, 0.5)"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--blend-start", "0.5"], ["--blend-start: 0.5"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--blend-threshold", "0.5"], ["--blend-threshold: 0.5"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--weight-steps", "0.5"], ["--weight-steps: (0.0, 0.5)"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--weight", "tiger=2", "--cross", "0,0"], ["--weight:", "weight_steps"]),
    (["cat.png", "--from", "a (cat:2) on a mat", "--to", TIGER], ["--from: '(cat:2)'"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--negative", "(ugly:2)"], ["--negative: '(ugly:2)'"]),
    (["cat.png", "--from", CAT, "--to", f"{'zebra ' * 4} (cat:2)"], ["--to: 'cat' was cut off"]),
    *(
        (["cat.png", "--from", CAT, "--to", TIGER, flag, "a \udcff"], [f"{flag}: 'a \\udcff' is not UTF-8"])
        for flag in ("--from", "--to", "--negative", "--blend", "--weight")
    ),
    (["cat.png", "--from", CAT], ["--to"]),
    (["cat.png", "--to", TIGER], ["--from"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--attention", "refin"], ["'refin'", "Did you mean 'refine'?"]),
    (["cat.png", "--from", CAT, "--to", "a big tiger on a mat", "--attention", "replace"], ["refine"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--blend", "dog/tiger"], ["'dog'", CAT]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--weight", "tiger"], ["'tiger'", "WORD=FACTOR"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--weight", "lion=2"], ["'lion'"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--weight", "a=1", "--weight", "a=2"], ["twice"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--cross", "much"], ["--cross: 'much'", "0,0.8"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--cross", "0.5,0.2"], ["--cross: 0.5,0.2"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--value", "2"], ["--value: 2"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--layers", "0.5,2"], ["--layers: 0.5,2"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--layer-indices", "0,x"], ["--layer-indices: '0,x'"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--mask", "small.png"], ["16x16", "32x32"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--mask", "none.png"], ["none.png"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--guidance", "nan"], ["--guidance: nan"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--method", "null-txt"], ["Did you mean 'null-text'?"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--method", "null-text", "--guidance", "1"], ["--guidance: 1", "tune"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--steps", "0"], ["--steps: 0"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--out", "cat.png"], ["cat.png is an input"]),
    (["missing.png", "--from", CAT, "--to", TIGER], ["missing.png"]),
    (["odd.png", "--from", CAT, "--to", TIGER], ["33x32", "multiples of", "32x32"]),
    (["code.safetensors", "--to", TIGER, "--steps", "3"], ["--steps", "leave it out"]),
    (["code.safetensors", "--to", TIGER, "--from", TIGER], ["--from", CAT]),
    (["code.safetensors", "--to", TIGER, "--seed", "0"], ["--seed", "leave it out"]),
    (["code.safetensors", "--to", TIGER, "--resize"], ["--resize", "leave it out"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--blend-start", "2"], ["--blend-start: 2"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--blend-threshold", "0"], ["--blend-threshold: 0"]),
    (["cat.png", "--from", CAT, "--to", TIGER, "--weight-steps", "0.5,0.2"], ["--weight-steps: 0.5,0.2"]),
]


@pytest.mark.parametrize(("words", "said"), BAD_EDITS, ids=lambda v: " ".join(v[3:]) if len(v) > 3 else "")
def test_bad_edits_are_one_sentence(words: list[str], said: list[str], model: str):
    picture()
    picture("odd.png", width=SIDE + 1)
    Image.new("L", (16, 16)).save("small.png")
    if words[0] == "code.safetensors":
        run("invert", "cat.png", "-m", model, "-p", CAT, "-S", 2, "--no-check", "--out", "x.code.safetensors")
        os.rename("x.code.safetensors", "code.safetensors")
    before = sorted(os.listdir())
    sentence = fails("edit", *words, "--model", model, code=2)
    for part in said:
        assert part in sentence
    assert sorted(os.listdir()) == before


def test_the_windows_of_weights_and_blend_and_the_guidance_reach_the_verb(model: str):
    cat = picture()
    said = run_json(
        *(
            "edit",
            cat,
            "-m",
            model,
            "--from",
            CAT,
            "--to",
            TIGER,
            "-S",
            4,
            "--weight",
            "tiger=5",
            "--blend",
            "cat/tiger",
        ),
        *("--weight-steps", "0.5", "--blend-start", 0.5, "--blend-threshold", 0.9),
        *("--rescale", 0.7, "--interval", "0.3,0.8", "--value", 0.25, "--layer-indices", "0,2"),
    )
    how = AttentionEdit(
        weight_steps=(0, 0.5), blend_start=0.5, blend_threshold=0.9, value_steps=(0, 0.25), layer_indices=(0, 2)
    )
    edited = ddim.edit(
        ddim.load(model),
        "cat.png",
        TIGER,
        source_prompt=CAT,
        steps=4,
        weights={"tiger": 5.0},
        blend="cat/tiger",
        attention=how,
        guidance=ddim.Guidance(7.5, 0.7, (0.3, 0.8)),
    )
    assert torch.equal(tile(said["files"][0], 2), (edited.edits[0, 0].permute(1, 2, 0) * 255).round().to(torch.uint8))
    assert said["guidance"] == {"weight": 7.5, "rescale": 0.7, "interval": [0.3, 0.8]}
    for part in ("rescale0.7", "interval0.3-0.8", "start0.5", "map0.9", "scaled0.5", "value0.25", "blocks0-2"):
        assert part in said["files"][0]
    assert said["attention"]["value"] == [0.0, 0.25]
    assert said["attention"]["layers"] == [0, 2]


def test_the_kinds_of_attention_control_reach_the_verb(model: str):
    cat = picture()
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (0, 0, SIDE // 2, SIDE))
    mask.save("half.png")
    common = ["edit", cat, "-m", model, "--from", CAT, "--to", TIGER, "-S", 4]
    lines: dict[str, list[Any]] = {
        "masactrl": ["--key-value", "0.25,1", "--key-value-area", "words", "--blend", "auto"],
        "plug-and-play": ["--self", 0.25, "--features", 0.5, "--branches", "cond"],
        "kv-edit": ["--mask", "half.png"],
    }
    verb: dict[str, dict[str, Any]] = {
        "masactrl": {"key_value_steps": (0.25, 1.0), "key_value_area": "words"},
        "plug-and-play": {"self_steps": (0.0, 0.25), "feature_steps": (0.0, 0.5), "branches": "cond"},
        "kv-edit": {},
    }
    more: dict[str, dict[str, Any]] = {"masactrl": {"blend": "cat/tiger"}, "kv-edit": {"mask": "half.png"}}
    for kind, line in lines.items():
        said = run_json(*common, "--attention", kind, *line)
        how = AttentionEdit(kind, **verb[kind])
        edited = ddim.edit(
            ddim.load(model), cat, TIGER, source_prompt=CAT, steps=4, attention=how, **more.get(kind, {})
        )
        shown = (edited.edits[0, 0].permute(1, 2, 0) * 255).round().to(torch.uint8)
        assert torch.equal(tile(said["files"][0], 2), shown), kind
        assert said["attention"] == {
            "kind": kind,
            "cross": [0.0, 0.0],
            "self": list(how.self_steps),
            "value": [0.0, 0.0],
            "key_value": list(how.key_value_steps),
            "key_value_area": how.key_value_area,
            "features": list(how.feature_steps),
            "branches": how.branches,
            "layers": list(how.layers),
        }
    assert "--mask" in fails(*common, "--attention", "kv-edit", code=2)
    assert "--blend" in fails(*common[:-4], "--to", CAT, "-S", 4, "--blend", "auto", code=2)


def test_an_edit_of_a_code_keeps_its_guidance_but_for_what_is_given(model: str):
    words = ["-p", CAT, "-w", 3, "--interval", "0,0.9", "-S", 2, "--no-check", "--method", "direct"]
    code = run_json("invert", picture(), "-m", model, *words)["files"][0]
    said = run_json("edit", code, "--to", TIGER, "--rescale", 0.5)
    assert said["guidance"] == {"weight": 3.0, "rescale": 0.5, "interval": [0.0, 0.9]}


# --- names, memory ---------------------------------------------------------------------------------------------------


def test_other_words_have_other_names(model: str):
    cat = picture()
    plain = ["invert", cat, "-m", model, "-S", 2, "--no-check"]
    inverted = [
        run_json(*plain, "-p", CAT),
        run_json(*plain, "-p", TIGER),
        run_json(*plain, "-p", CAT, "--dtype", "bfloat16"),
        run_json(*plain, "-p", CAT, "--inversion-guidance", 2),
    ]
    assert len({said["files"][0] for said in inverted}) == len(inverted)
    common = ["edit", cat, "-m", model, "-S", 2]
    edits = [
        ["--from", CAT, "--to", TIGER],
        ["--from", "a cat", "--to", TIGER],
        ["--from", CAT, "--to", TIGER, "--dtype", "bfloat16"],
        ["--from", CAT, "--to", TIGER, "--method", "ddim", "--inversion-guidance", "2"],
        ["--from", CAT, "--to", TIGER, "--method", "ddim"],
        ["--from", CAT, "--to", TIGER, "--to", CAT],
        ["--from", CAT, "--to", TIGER, "--to", "a cat"],
        ["--from", CAT, "--to", ""],
    ]
    files = [run_json(*common, *words)["files"][0] for words in edits]
    assert len(set(files)) == len(files)
    assert files[-1].startswith("cat_to_empty_")


def test_a_phrase_in_a_name_is_short_and_its_own():
    assert phrase("a cat on a mat") == "a-cat-on-a-mat"
    assert phrase("") == phrase("  ") == "empty"
    long = "a cat on a mat beside another cat on another mat"
    assert phrase(long) != phrase(f"{long} in a hat")
    assert phrase(long).startswith("a-cat-on-a-mat-beside-another-cat-on-ano")
    assert phrase("a (cat:2)") != phrase("a cat 2")
    assert phrase("!?") == short_hash("!?")
    assert phrases(["a", "b"], "targets") == f"2targets-{short_hash('a', 'b')}"


def test_one_by_one_asks_for_half_as_much_at_a_time(model: str, monkeypatch: pytest.MonkeyPatch):
    from ddim.models.sd import StableDiffusion

    inner, widths = StableDiffusion.forward, list[int]()

    def watched(self: Any, x: Any, *a: Any) -> Any:
        widths.append(len(x))
        return inner(self, x, *a)

    monkeypatch.setattr(StableDiffusion, "forward", watched)
    cat = picture()
    code = run_json("invert", cat, "-m", model, "-p", CAT, "-w", 3, "-S", 2, "--no-check")["files"][0]
    for words, together in (
        (["sample", "-m", model, "-p", CAT, "-n", "1", "-S", "2"], 2),
        (["invert", cat, "-m", model, "-p", CAT, "-w", "3", "-S", "2", "--out", "again"], 2),
        (["reconstruct", code], 2),
        (["edit", code, "--to", TIGER], 4),
        (["edit", code, "--to", TIGER, "-w", "2", "-q"], 4),
    ):
        seen = []
        for more in ([], ["--one-by-one"]):
            widths.clear()
            run(*words, *more)
            seen.append(max(widths))
        assert seen == [together, together // 2], words


def test_invert_without_a_prompt_says_so(model: str):
    result = CliRunner().invoke(app, ["invert", str(picture()), "-m", model, "-S", "2"])
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("Warning: There is no --prompt")
    assert len(result.stderr.strip().splitlines()) == 1


def test_interpolate_has_one_prompt(model: str):
    cat, dog = picture("cat.png", 1), picture("dog.png", 2)
    words = ["interpolate", cat, dog, "-m", model, "-S", "2", "--frames", "2"]
    assert "--prompt: 2 different" in fails(*words, "-p", CAT, "-p", TIGER, code=2)
    assert run_json(*words, "-p", CAT)["prompts"] == [CAT]


# --- models without text, and the lists ------------------------------------------------------------------------------


def test_proximal_guidance(model: str):
    words = ["sample", "-m", model, "-p", CAT, "-n", 1, "-S", 4, "-w", 3]
    plain, led = (run_json(*words, *more) for more in ([], ["--proximal", "l1", "--proximal-quantile", 0.4]))
    (file,), (other,) = led["files"], plain["files"]
    assert "proximall1-0.4" in file
    assert (rgb(file) != rgb(other)).any()
    picture()
    (code,) = run_json(
        *("invert", "cat.png", "-m", model, "-p", CAT, "-S", 4, "--resize", "--no-check", "-w", 3),
        *("--method", "prox-npi", "-o", "quantile=0.4"),
    )["files"]
    kept = run_json("edit", code, "--to", TIGER, "--guidance", 5)["guidance"]["proximal"]
    pull = {"pull": 0.1, "until": 0.4, "dilation": 1}
    assert kept == {"kind": "l0", "quantile": 0.4, **pull}
    said = run_json("edit", code, "--to", TIGER, "--proximal", "l1")["guidance"]["proximal"]
    assert said == {"kind": "l1", "quantile": 0.4, **pull}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample", "--prompt", "a dog"], "no text encoder"),
        (["sample", "--guidance", "3"], "--guidance: it goes with prompts"),
        (["sample", "--negative", "grey"], "--negative: it goes with prompts"),
        (["sample", "--rescale", "0.5"], "--rescale: it goes with prompts"),
        (["sample", "--interval", "0,0.5"], "--interval: it goes with prompts"),
        (["sample", "--proximal", "l0"], "--proximal: it goes with prompts"),
        (["sample", "--size", "16x16"], "height 8 and width 8"),
        (["sample", "--size", "16"], "--size: '16'"),
        (["invert", "cat.png", "--prompt", "a dog", "--resize"], "no text encoder"),
        (["edit", "cat.png", "--from", CAT, "--to", TIGER, "--resize"], "prompt"),
        (["interpolate", "cat.png", "cat.png", "--prompt", "x", "--resize"], "no text encoder"),
    ],
)
def test_a_model_without_text_says_so(words: list[str], said: str, pixel: str):
    picture()
    sentence = fails(*words, "--model", pixel, code=2)
    assert said in sentence


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "a", "--prompt", "b", "-n", "3"], "were given for 3 images"),
        (["--size", "33x32"], "--size: height 32 and width 33"),
        (["--rescale", "2"], "--rescale: 2"),
        (["--interval", "0.8,0.2"], "--interval: 0.8,0.2"),
        (["--proximal", "l3"], "'l3'"),
        (["--proximal", "l0", "--proximal-quantile", "2"], "--proximal-quantile: 2"),
        (["--proximal-quantile", "0.5"], "--proximal-quantile: it goes with --proximal"),
        (["--interval", "x"], "--interval: 'x'"),
        (["--label", "1"], "takes prompts, not class labels"),
    ],
)
def test_bad_words_for_a_text_model(words: list[str], said: str, model: str):
    prompt = [] if "--prompt" in words else ["--prompt", "a dog"]
    assert said in fails("sample", "-m", model, "-S", 2, *prompt, *words, code=2)


def test_models_tells_all_about_a_text_model(model: str):
    said = run_json("models", model)
    loaded = ddim.load(model)
    assert (said["prediction"], said["spacing"], said["picture"]) == ("eps", "leading", [3, SIDE, SIDE])
    assert said["prompt_tokens"] == tiny_text.LENGTH - 2
    assert said["multiple"] == loaded.multiple
    assert said["schedule"]["beta_schedule"] == "scaled_linear"
    text = run("models", model).stdout
    for part in ("prompt tokens", "multiples of 2", said["fingerprint"], "parameters"):
        assert part in text


def test_methods_list_the_guided_ones():
    said = run_json("methods")
    names = {s["name"]: s for s in said["inversions"]}
    for name in ("null-text", "negative-prompt", "direct", "edit-friendly"):
        assert names[name]["paper"]
    assert names["null-text"]["options"]["inner"] == 10


def test_the_attentions_in_help_are_those_of_the_library():
    text = run("edit", "--help").stdout
    for name in ATTENTIONS:
        assert name in text


@pytest.mark.parametrize("command", [["sample"], ["invert", "cat.png"], ["interpolate", "cat.png", "cat.png"]])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "a (cat:2)"], "--prompt: '(cat:2)' weights a word"),
        (["-p", CAT, "--negative", "(ugly:2)"], "--negative: '(ugly:2)' weights a word"),
        (["-p", "a \udcff cat with fur"], "--prompt: 'a \\udcff cat with fur' is not UTF-8"),
        (["-p", CAT, "--negative", "\udcff"], "--negative: '\\udcff' is not UTF-8"),
    ],
)
def test_prompts_that_cannot_be_read_as_they_are_written(command: list[str], words: list[str], said: str, model: str):
    picture()
    assert said in fails(*command, *words, "-m", model, "-S", 2, code=2)
    assert os.listdir() == ["cat.png"]
