"""What ``ddim.load`` takes, what it refuses, and what the adapter makes of a network."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from refusals import failed, refused, unknown, warned

import ddim
import ddim.models
from ddim.models.fingerprint import fingerprint
from ddim.models.pixel import PixelModel
from ddim.pipelines.common import grid_for
from ddim.solvers import REVERSIBLE

NODE = ddim.ddpm_linear().node(300)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return tiny.pipeline_folder(tmp_path_factory.mktemp("pristine") / "model")


@pytest.fixture
def folder(pristine, tmp_path):
    """A pipeline's folder that a test may damage."""
    return shutil.copytree(pristine, tmp_path / "model")


def load(where, **options) -> PixelModel:
    return ddim.load(where, device="cpu", **options)


def same_answers(a: PixelModel, b: PixelModel, tolerance: float = 0.0) -> bool:
    x = torch.randn(2, *a.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        eps, other = tiny.unguided(a)(x, NODE).eps, tiny.unguided(b)(x, NODE).eps
    return torch.allclose(eps, other, rtol=0, atol=tolerance)


# --- folders that load ----------------------------------------------------------------------------------------------


def test_a_pipeline_folder(folder):
    model = load(folder)
    assert (model.shape, model.schedule.prediction, model.schedule.spacing, model.schedule.offset) == (
        (1, 8, 8),
        "eps",
        "leading",
        0,
    )
    assert model.schedule.path.levels == 1000
    assert same_answers(model, tiny.model())


def test_a_bare_network_folder_has_ddpms_path(folder):
    bare = load(folder / "unet")
    assert torch.equal(bare.schedule.path.alpha_bar, ddim.linear_alpha_bar())
    assert same_answers(bare, load(folder))


def test_a_path_as_text(folder):
    assert same_answers(load(str(folder)), load(folder))


def test_a_folder_without_a_scheduler_is_taken_for_ddpms_and_says_so(folder):
    shutil.rmtree(folder / "scheduler")
    with warned("eps", "linear", 0.0001, 0.02) as told:
        assert torch.equal(load(folder).schedule.path.alpha_bar, ddim.linear_alpha_bar())
    assert len(told) == 1
    assert told[0].filename == __file__


def checkpoint_of(folder, tmp_path):
    """A run of diffusers' training script: checkpoints without a scheduler's config, and the run's own beside them."""
    run = tmp_path / "run"
    shutil.copytree(folder / "unet", run / "checkpoint-1000" / "unet")
    config = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    (run / "scheduler").mkdir()
    (run / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return run / "checkpoint-1000"


@pytest.mark.parametrize("sub", ["unet", "."])
def test_a_checkpoint_has_the_scheduler_of_its_run(folder, tmp_path, sub, monkeypatch):
    checkpoint = checkpoint_of(folder, tmp_path)
    model = load(checkpoint / sub)
    assert model.schedule.prediction == "v"
    assert torch.equal(model.schedule.path.alpha_bar, ddim.cosine_alpha_bar())
    monkeypatch.chdir(checkpoint)
    assert load(Path(sub)).schedule.prediction == "v"


def test_what_lies_above_a_whole_pipeline_is_anothers(folder, tmp_path):
    shutil.rmtree(folder / "scheduler")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    with warned(folder / "unet", "eps"):
        assert load(folder).schedule.prediction == "eps"


def test_the_scheduler_config_shapes_the_model(tmp_path):
    config = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    model = load(tiny.pipeline_folder(tmp_path / "m", **config))
    assert (model.schedule.prediction, model.schedule.spacing) == ("v", "trailing")
    assert model.schedule.path.node(1000).alpha == 0


def test_stable_diffusions_offset_is_our_first_level():
    # diffusers' 1 counts the table's first entry, which is data
    assert [n.t for n in grid_for(tiny.model(_class_name="DDIMScheduler", **tiny.STABLE_DIFFUSION), 2, None)] == [
        501,
        1,
        0,
    ]
    assert [n.t for n in grid_for(tiny.model(steps_offset=1), 2, None)] == [502, 2, 0]
    assert tiny.model(steps_offset=1).schedule.offset == 1


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_half_precision_files(folder, variant):
    half = tiny.unet().half()
    shutil.rmtree(folder / "unet")
    half.save_pretrained(folder / "unet", variant=variant)
    model = load(folder)
    assert next(model.network.parameters()).dtype == torch.float32
    assert same_answers(model, tiny.model(), tolerance=0.01)


def test_half_precision_files_and_their_float32_copy_have_one_fingerprint(folder, tmp_path):
    half = tiny.unet().half()
    half.save_pretrained(tmp_path / "half")
    half.float().save_pretrained(tmp_path / "full")
    for name in ("half", "full"):
        shutil.copy(folder / "scheduler" / "scheduler_config.json", tmp_path / name)
    assert load(tmp_path / "half").fingerprint == load(tmp_path / "full").fingerprint


def test_sharded_weights(folder):
    shutil.rmtree(folder / "unet")
    tiny.unet().save_pretrained(folder / "unet", max_shard_size="40KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    assert same_answers(load(folder), tiny.model())


def test_the_older_layout_with_both_configs_side_by_side(folder, tmp_path):
    # google/ddpm-cifar10-32 and its kin: the network and scheduler_config.json in the root
    root = shutil.copytree(folder / "unet", tmp_path / "root")
    (root / "scheduler_config.json").write_text(json.dumps({"prediction_type": "v_prediction"}))
    assert load(root).schedule.prediction == "v"


def test_a_hub_repository_is_loaded_from_its_cached_copy(folder, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, *allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model = load("owner/name")
    assert model.name == "owner/name"
    assert same_answers(model, tiny.model())
    assert asked == [("owner/name", "*.json"), ("owner/name", "*.json", "unet/*.safetensors")]


def test_every_bundled_model_loads_and_its_test_images_fit():
    for name in ddim.bundled_models():
        model = load(name)
        pictures = ddim.bundled_test_images(name)
        assert pictures
        told = {"prompt": ""} if model.text else {"labels": 0} if model.classes else {}
        code = ddim.invert(model, pictures[:1], steps=2, method="bdia", **told)
        assert ddim.reconstruct(model, code).shape == (1, *model.picture)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_an_unknown_name_suggests_the_nearest(monkeypatch, pristine):
    monkeypatch.setattr(ddim.models, "bundled_models", lambda: {"fashion": pristine})
    with unknown("model", "fashoin", nearest="fashion", hint=True):
        load("fashoin")
    assert load("fashion").name == "fashion"


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "./a/b/c"])
def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(name):
    with unknown("model", name, hint=True):
        load(name)


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing/unet"])
def test_a_hub_id_without_a_network(name):
    with failed("model", f"'{name}'"):
        load(name)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.pth", "model.bin", "model.pkl"])
def test_a_pickle_is_never_loaded(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    torch.save(Bomb(), tmp_path / name)
    with refused("model", tmp_path / name, "pickle"):
        load(tmp_path / name)


def test_a_folder_with_pickled_weights_only(folder):
    network = folder / "unet"
    for file in network.glob("*.safetensors"):
        file.unlink()
    torch.save(tiny.unet().state_dict(), network / "diffusion_pytorch_model.bin")
    with refused("model", network, "diffusion_pytorch_model.bin", "pickle"):
        load(folder)


def test_a_damaged_single_file(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"")
    with failed("model", tmp_path / "a.safetensors"):
        load(tmp_path / "a.safetensors")


def test_missing_weights(folder):
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    with refused("model", folder / "unet", ".safetensors"):
        load(folder)


def test_truncated_weights(folder):
    (file,) = (folder / "unet").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    with failed("model", file):
        load(folder)


def test_weights_of_another_network(folder):
    tiny.unet(channels=3).save_pretrained(folder / "other")
    shutil.copy(folder / "unet" / "config.json", folder / "other" / "config.json")
    shutil.rmtree(folder / "unet")
    (folder / "other").rename(folder / "unet")
    with refused("model", "'conv_in.weight'", "8x3x3x3", "8x1x3x3"):
        load(folder)


@pytest.mark.parametrize("content", ["{", "", "[1, 2]", "\x00"])
@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_broken_json(folder, file, content):
    (folder / file).write_text(content)
    with refused(None, folder / file):
        load(folder)


def test_an_empty_folder(tmp_path):
    with refused("model", tmp_path, "config.json"):
        load(tmp_path)


def test_a_stable_diffusion_folder(folder):
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "UNet2DConditionModel"}))
    with refused("model", "UNet2DConditionModel", "model_index.json"):
        load(folder)


@pytest.mark.parametrize(("kind", "prediction"), [("EDMEulerScheduler", "edm"), ("ScoreSdeVeScheduler", "score")])
def test_a_variance_exploding_network_is_not_taken_for_eps(folder, kind, prediction):
    # their networks want their input scaled, or answer the score
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": kind}))
    assert ddim.load(folder, device="cpu").schedule.prediction == prediction


def test_a_flow_network_predicts_the_flow_by_default(folder):
    # a flow-matching scheduler's config has no prediction_type
    from diffusers import FlowMatchEulerDiscreteScheduler

    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    model = load(folder)
    assert model.schedule.prediction == "flow"
    assert model.schedule.path == ddim.RectifiedFlow()


def test_an_unknown_beta_schedule_names_the_nearest():
    with unknown("beta_schedule", "liner", nearest="linear"):
        tiny.model(beta_schedule="liner")


def test_an_unknown_dtype_names_the_nearest(folder):
    with unknown("dtype", "flaot16", nearest="float16"):
        load(folder, dtype="flaot16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_cuda(folder):
    with refused("device", "CUDA"):
        ddim.load(folder, device="cuda")


def test_a_device_that_does_not_exist(folder):
    with unknown("device", "cdua", nearest="cuda"):
        ddim.load(folder, device="cdua")


def test_classes_that_are_not_counted():
    network = tiny.unet()
    network.register_to_config(class_embed_type="timestep")
    with refused("model", "'timestep'"):
        PixelModel("tiny", network, {})


def test_an_unknown_bundled_model_has_no_test_images():
    with unknown("name", "fasion", nearest="fashion"):
        ddim.bundled_test_images("fasion")


def test_a_hub_repository_of_another_kind_is_refused_before_its_weights(folder, monkeypatch):
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: asked.append(name) or folder)
    with refused("model", "UNet2DConditionModel"):
        load("owner/name")
    assert len(asked) == 1


def test_a_network_without_a_size():
    network = tiny.unet()
    network.register_to_config(sample_size=None)
    with refused("model", "sample_size", None):
        PixelModel("tiny", network, {})


def test_channels_that_do_not_match():
    with refused("model", 5, 1):
        PixelModel("tiny", tiny.unet(out=5), {})


# --- the adapter ----------------------------------------------------------------------------------------------------


def test_a_learned_variance_is_left_aside():
    network = tiny.unet(out=2)
    model = PixelModel("tiny", network, {})
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(tiny.unguided(model)(x, NODE).eps, network(x, 299).sample[:, :1])


def test_class_labels_reach_the_network():
    network = tiny.unet(classes=4)
    model = PixelModel("tiny", network, {})
    x = torch.randn(2, 1, 8, 8)
    cond = model.condition([1, 3], 2)
    with torch.no_grad():
        expected = network(x, 299, class_labels=torch.tensor([1, 3])).sample
        assert torch.equal(tiny.unguided(model, cond)(x, NODE).eps, expected)
        assert not torch.equal(expected[0], network(x, 299, class_labels=torch.tensor([2, 3])).sample[0])


def test_one_label_serves_all():
    assert tiny.model(classes=4).condition([2], 3).cond.tensors["labels"].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("classes", "labels", "refusal"),
    [
        (4, None, refused("labels", "'tiny'", 0, 3)),
        (None, [0, 0], refused("labels", "'tiny'")),
        (4, [1, 2, 3], refused("labels", 3, 2)),
        (4, [0, 4], refused("labels", 4, "'tiny'", 0, 3)),
        (4, [-1, 0], refused("labels", -1, "'tiny'", 0, 3)),
        (4, [], refused("labels", 0, 2)),
    ],
)
def test_labels_that_do_not_fit(classes, labels, refusal):
    with refusal:
        tiny.model(classes=classes).condition(labels, 2)


def test_the_network_is_told_the_label_of_its_node():
    told = []
    network = tiny.unet()
    network.register_forward_pre_hook(lambda module, args: told.append(args[1].item()))
    ddim.sample(PixelModel("tiny", network, {}), 1, steps=3, spacing=[1000, 350.5, 1])
    assert told == [999, 349.5, 0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_samplers_state_stays_in_float32(pristine, dtype):
    model = load(pristine, dtype=dtype)
    assert model.state_dtype == torch.float32
    assert next(model.network.parameters()).dtype == getattr(torch, dtype)
    code = ddim.invert(model, torch.rand(1, 1, 8, 8), steps=3)
    assert code.x.dtype == torch.float32


@pytest.mark.parametrize("method", REVERSIBLE)
def test_half_precision_networks_come_back_exactly_too(pristine, method):
    # what is exact is the algebra of the state, whatever the network answers, as long as it answers the same twice
    model, picture = load(pristine, dtype="bfloat16"), torch.rand(1, 1, 8, 8)
    back = ddim.reconstruct(model, ddim.invert(model, picture, steps=10, method=method))
    assert (back - picture).abs().max() < 2e-3


def test_encode_and_decode_are_inverse_on_pictures():
    model, pictures = tiny.model(), torch.rand(2, 1, 8, 8)
    x0 = model.encode(pictures)
    assert x0.min() >= -1
    assert torch.allclose(model.decode(x0), pictures, atol=1e-6)
    assert model.decode(torch.tensor([-3.0, 3.0])).tolist() == [0, 1]


# --- fingerprint ----------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_the_same_each_time(pristine):
    assert load(pristine).fingerprint == load(pristine).fingerprint == load(str(pristine)).fingerprint


def test_the_fingerprint_tells_models_apart():
    network, path = tiny.unet(), ddim.ddpm_linear()
    one = fingerprint(network, path, "eps")
    assert fingerprint(network, path, "v") != one
    assert fingerprint(network, ddim.TablePath(ddim.cosine_alpha_bar()), "eps") != one
    assert fingerprint(network, ddim.TablePath(path.alpha_bar, data="first"), "eps") != one
    network.register_to_config(freq_shift=1)  # changes answers, not weights
    assert fingerprint(network, path, "eps") != one
    network.register_to_config(freq_shift=0)
    assert fingerprint(network, path, "eps") == one
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] += 1
    assert fingerprint(network, path, "eps") != one


def test_the_fingerprint_does_not_depend_on_what_it_computes_in(pristine):
    assert load(pristine, dtype="float64").fingerprint == load(pristine).fingerprint


def test_describe_is_json(pristine):
    about = json.loads(json.dumps(load(pristine).describe()))
    assert about["kind"] == "pixel"
    assert about["parameters"] == sum(p.numel() for p in tiny.unet().parameters())


def test_a_grid_that_depends_on_the_size_is_of_the_models_own_where_none_is_given():
    model = tiny.model(_class_name="FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
    assert grid_for(model, 4, None).nodes == grid_for(model, 4, None, (8, 8)).nodes
    assert grid_for(model, 4, None).nodes != grid_for(model, 4, None, (16, 16)).nodes
