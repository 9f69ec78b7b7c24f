"""What a config may say, and the sentence for what it may not."""

import subprocess
import sys
from pathlib import Path

import pytest
from refusals import refused, unknown
from training_helpers import tables, tiny, write_toml

from ddim.training import load_config
from ddim.training.config_file import differing_keys

RECIPES = sorted(Path(__file__, "../../../recipes").resolve().glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_recipes_are_valid(recipe):
    assert load_config(recipe).train.steps > 0


def test_a_toml_file_says_the_same_as_its_tables(tmp_path):
    file = write_toml(tables(tmp_path, tmp_path / "run"), tmp_path / "run.toml")
    config = load_config(file)
    assert config == tiny(tmp_path, tmp_path / "run")
    assert config.model["block_out_channels"] == (8, 8)
    assert config.train.lr == 1e-3
    assert config.train.betas == (0.9, 0.999)


@pytest.mark.parametrize(
    ("section", "key", "value", "refusal"),
    [
        (
            "train",
            "learning_rat",
            1,
            unknown("train.learning_rat", "learning_rat", "[train]", "lr"),
        ),
        ("train", "stepz", 1, unknown("train.stepz", "stepz", nearest="steps")),
        ("trian", "steps", 1, unknown("trian", "trian", nearest="train")),
        ("model", "in_channels", 3, refused("model.in_channels", 3, 1)),
        ("model", "num_class_embeds", 10, refused("model.num_class_embeds", 10)),
        ("train", "steps", 0, refused("train.steps", 1, 0)),
        ("train", "steps", "many", refused("train.steps", "int", "'many'")),
        ("train", "steps", True, refused("train.steps", "int", True)),
        ("train", "betas", [0.9], refused("train.betas", 2, [0.9])),
        ("train", "accumulate", 3, refused("train.batch", 4, 3)),
        ("train", "lr_schedule", "cosin", unknown("train.lr_schedule", "cosin", nearest="cosine")),
        (
            "train",
            "precision",
            "float16",
            unknown("train.precision", "float16", "float32", nearest="bfloat16"),
        ),
        ("data", "channels", 4, refused("data.channels", 1, 3, 4)),
        ("data", "fit", "crp", unknown("data.fit", "crp", nearest="crop")),
        ("loss", "prediction", "flow", unknown("loss.prediction", "flow")),
        ("schedule", "zero_terminal_snr", True, refused("loss.prediction", "'v'")),
        ("output", "sample_steps", 21, refused("output.sample_steps", 21, "schedule.steps", 20)),
    ],
)
def test_a_wrong_value_is_one_sentence(tmp_path, section, key, value, refusal):
    with refusal as caught:
        tiny(tmp_path, tmp_path, **{section: {key: value}})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_min_snr_would_leave_a_level_of_zero_snr_untrained(tmp_path, prediction):
    changes = {"schedule": {"zero_terminal_snr": True}, "loss": {"prediction": prediction, "weight": "min_snr"}}
    with refused("loss.weight", "'min_snr'", "'ones'"):
        tiny(tmp_path, tmp_path, **changes)


def test_a_missing_value_or_file_is_one_sentence(tmp_path):
    config = tables(tmp_path, tmp_path)
    del config["data"]["path"]
    with refused("data.path"):
        load_config(write_toml(config, tmp_path / "run.toml"))
    with refused(None, tmp_path / "none.toml"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[data")
    with refused(None, tmp_path / "bad.toml", "TOML"):
        load_config(tmp_path / "bad.toml")


def test_which_keys_alter_the_weights(tmp_path):
    def changed(**changes):
        return differing_keys(before.as_dict(), tiny(tmp_path, tmp_path / "run", **changes).as_dict())

    before = tiny(tmp_path, tmp_path / "run")
    assert changed() == []
    assert changed(output={"keep": 7, "folder": "elsewhere", "sample_every": 3}, data={"memory_gib": 0.0}) == []
    assert changed(train={"lr": 2e-3, "seed": 1}, model={"dropout": 0.2}) == ["model.dropout", "train.lr", "train.seed"]
    assert changed(train={"steps": 12}) == ["train.steps"]  # the cosine would be another
    before = tiny(tmp_path, tmp_path / "run", train={"lr_schedule": "constant"})
    assert changed(train={"lr_schedule": "constant", "steps": 12}) == []
    assert changed(train={"lr_schedule": "constant", "steps": 5}) == ["train.steps"]
    assert changed(train={"lr_schedule": "constant", "steps": 12, "decay": 3}) == ["train.decay", "train.steps"]


def test_reading_a_config_is_quick():
    heavy = "[m for m in ('torch', 'diffusers', 'accelerate', 'datasets') if m in sys.modules]"
    code = f"import sys; from ddim.training import load_config; load_config(sys.argv[1]); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code, str(RECIPES[0])], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
