"""What a config may say, and the sentence for what it may not."""

import subprocess
import sys
from pathlib import Path

import pytest
from refusals import refused, unknown
from training_helpers import tables, tiny, write_toml

from ddim.training import config_from_dict, load_config
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
        ("loss", "prediction", "velocity", unknown("loss.prediction", "velocity")),
        ("loss", "prediction", "flow", refused("loss.prediction", "'flow'", "'pixel'")),
        ("loss", "times", "logit_normal", refused("loss.times", "'logit_normal'", "'pixel'")),
        ("flow", "base", "emoji", refused("flow", "'pixel'", "'flow'")),
        ("train", "processes", 0, refused("train.processes", 1, 0)),
        ("schedule", "zero_terminal_snr", True, refused("loss.prediction", "'v'")),
        ("output", "sample_steps", 21, refused("output.sample_steps", 21, "schedule.steps", 20)),
    ],
)
def test_a_wrong_value_is_one_sentence(tmp_path, section, key, value, refusal):
    with refusal as caught:
        tiny(tmp_path, tmp_path, **{section: {key: value}})
    assert "\n" not in str(caught.value)


FLOW = {"prediction": "flow", "times": "logit_normal"}


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"loss": {}}, refused("loss.prediction", "'flow'", "'eps'")),
        ({"loss": {**FLOW, "prediction": "v"}}, refused("loss.prediction", "'flow'", "'v'")),
        ({"loss": {**FLOW, "times": "stratified"}}, refused("loss.times", "'logit_normal'", "'stratified'")),
        ({"loss": {**FLOW, "weight": "min_snr"}}, refused("loss.weight", "'ones'", "'min_snr'")),
        ({"loss": {**FLOW, "weight": [1.0, 2.0]}}, refused("loss.weight", "'ones'", [1.0, 2.0])),
        ({"loss": {**FLOW, "min_snr_k": 3.0}}, refused("loss.min_snr_k")),
        ({"schedule": {"beta_end": 0.01}}, refused("schedule", "'flow'")),
        ({"flow": {"length": 2}}, refused("flow.length", 3, 2)),
        ({"flow": {"empty": 1.5}}, refused("flow.empty", 1.5)),
        ({"flow": {"zeros": []}}, refused("flow.zeros", 512, ())),
        ({"flow": {"zeros": [12, 513]}}, refused("flow.zeros", 512, (12, 513))),
        ({"flow": {"shift": 0.0}}, refused("flow.shift", 0.0)),
        ({"text": {"length": 12}}, refused("text", "'flow'", "'text'")),
    ],
)
def test_a_value_that_does_not_fit_rectified_flow_is_one_sentence(tmp_path, changes, refusal):
    table = {"task": "flow", "data": {"path": "x", "size": 8}, "train": {"steps": 1}, "output": {"folder": "run"}}
    config_from_dict({**table, "loss": FLOW})
    with refusal as caught:
        config_from_dict({**table, "loss": FLOW, **changes})
    assert "\n" not in str(caught.value)


def test_processes_share_the_cpus_only(tmp_path):
    assert tiny(tmp_path, tmp_path, train={"processes": 2}).train.processes == 2
    with refused("train.processes", 2, "'cpu'"):
        tiny(tmp_path, tmp_path, train={"processes": 2, "device": "auto"})


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
    def changed(step=4, **changes):
        return differing_keys(before.as_dict(), tiny(tmp_path, tmp_path / "run", **changes).as_dict(), step)

    before = tiny(tmp_path, tmp_path / "run")
    assert changed() == []
    assert changed(output={"keep": 7, "folder": "elsewhere", "sample_every": 3}, data={"memory_gib": 0.0}) == []
    assert changed(train={"lr": 2e-3, "seed": 1}, model={"dropout": 0.2}) == ["model.dropout", "train.lr", "train.seed"]
    assert changed(train={"steps": 12}) == ["train.steps"]  # the cosine would be another
    constant = {"lr_schedule": "constant"}
    before = tiny(tmp_path, tmp_path / "run", train=constant)
    assert changed(train={**constant, "steps": 12}) == []
    assert changed(train={**constant, "steps": 4}) == []
    assert changed(train={**constant, "steps": 3}) == ["train.steps"]
    assert changed(train={**constant, "steps": 12, "decay": 8}) == []  # the fall begins after the steps made so far
    assert changed(train={**constant, "steps": 12, "decay": 9}) == ["train.decay", "train.steps"]
    before = tiny(tmp_path, tmp_path / "run", train={**constant, "decay": 2})
    assert changed(train={**constant, "steps": 12}) == []
    assert changed(5, train={**constant, "steps": 12}) == ["train.decay", "train.steps"]
    assert changed(train={**constant, "decay": 2, "processes": 2}) == ["train.processes"]


def test_reading_a_config_is_quick():
    heavy = "[m for m in ('torch', 'diffusers', 'accelerate', 'datasets') if m in sys.modules]"
    code = f"import sys; from ddim.training import load_config; load_config(sys.argv[1]); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code, str(RECIPES[0])], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
