"""Classifier guidance: the formula on a mixture whose posterior is known, the adapter, the verb and the command."""

import json
import math
from pathlib import Path

import pytest
import torch
from oracles import Mixture, mixture, noise_like
from refusals import failed, refused, unknown
from tiny import DDPM, model, pipeline_folder
from transformers import ResNetConfig, ResNetForImageClassification
from typer.testing import CliRunner

import ddim
from ddim.core.guidance import classifier_guided
from ddim.core.path import Node, RectifiedFlow, ddpm_linear
from ddim.models.classifier import NoisyClassifier, NoisyResNet

# --- the formula ----------------------------------------------------------------------------------------------------


class Posterior:
    """log p(component | x) of a mixture, exactly; counts what it was asked."""

    def __init__(self, of: Mixture):
        self.of, self.asked = of, 0

    def __call__(self, x, node, labels):
        self.asked += 1
        variance = node.alpha**2 * self.of.scales**2 + node.sigma**2
        off = x.unsqueeze(1) - node.alpha * self.of.means
        log = self.of.weights.log() - off.square().flatten(2).sum(2) / (2 * variance)
        log = log - x[0].numel() / 2 * variance.log()
        return log.log_softmax(1).gather(1, labels.view(-1, 1))[:, 0]


def component(of: Mixture, k: int) -> Mixture:
    return Mixture(torch.ones(1, dtype=torch.float64), of.means[k : k + 1], of.scales[k : k + 1])


NODES = [Node(1.0, math.cos(a), math.sin(a)) for a in (0.05, 0.6, 1.1, 1.5)]
NODES += [Node(0.5, 0.5, 0.5), Node(3.0, 1.0, 3.0)]  # a flow's, a variance-exploding path's


@pytest.mark.parametrize("node", NODES, ids=lambda n: f"{n.alpha:.2f}-{n.sigma:.2f}")
def test_at_weight_one_the_guided_pair_is_the_conditional_one(node):
    # Bayes: grad log p(x | y) = grad log p(x) + grad log p(y | x)
    data, labels = mixture(2, 3), torch.tensor([0, 1, 2, 1])
    x = noise_like((4, 2, 3))
    with torch.no_grad():  # as in the loop
        pair = classifier_guided(data, Posterior(data), labels, 1.0)(x, node)
    expected = [component(data, int(k))(x[i : i + 1], node) for i, k in enumerate(labels)]
    torch.testing.assert_close(pair.eps, torch.cat([e.eps for e in expected]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pair.x0, torch.cat([e.x0 for e in expected]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weight", [-1.0, 0.5, 4.0])
def test_the_weight_scales_what_is_added_and_the_pair_explains_x(weight):
    data, labels, node = mixture(2, 3), torch.tensor([2, 0]), NODES[1]
    x = noise_like((2, 2, 3))
    plain = data(x, node)
    one, guided = (classifier_guided(data, Posterior(data), labels, w)(x, node) for w in (1.0, weight))
    torch.testing.assert_close(guided.eps - plain.eps, weight * (one.eps - plain.eps))
    torch.testing.assert_close(node.alpha * guided.x0 + node.sigma * guided.eps, x)


def test_where_there_is_nothing_to_add_the_pair_is_the_models_own():
    data, labels, x = mixture(2, 3), torch.tensor([2, 0]), noise_like((2, 2, 3))
    for weight, node in ((0.0, NODES[1]), (5.0, Node(0.0, 1.0, 0.0)), (5.0, Node(9.0, 0.0, 1.0))):
        judge = Posterior(data)
        pair, plain = classifier_guided(data, judge, labels, weight)(x, node), data(x, node)
        assert torch.equal(pair.eps, plain.eps)
        assert torch.equal(pair.x0, plain.x0)
        assert judge.asked == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradients_are_taken_and_left_alone_in_every_mode(mode):
    data, labels = mixture(2, 3), torch.tensor([2, 0])
    expected = classifier_guided(data, Posterior(data), labels, 2.0)(noise_like((2, 2, 3)), NODES[1])
    with mode():
        x = noise_like((2, 2, 3))
        pair = classifier_guided(data, Posterior(data), labels, 2.0)(x, NODES[1])
        assert not x.requires_grad
        assert not pair.eps.requires_grad
    assert torch.equal(pair.eps.clone(), expected.eps)


def test_guided_walks_land_in_the_wanted_component():
    data = Mixture(
        torch.tensor([0.5, 0.5], dtype=torch.float64),
        torch.tensor([[-1.0], [1.0]], dtype=torch.float64),
        torch.tensor([0.2, 0.2], dtype=torch.float64),
    )
    grid = ddim.make_grid(ddpm_linear(), 100, "trailing")
    labels = torch.tensor([0, 1]).repeat(50)
    guided = classifier_guided(data, Posterior(data), labels, 1.0)
    solver = ddim.make_solver("ddim")
    end = solver.read(ddim.solve(guided, solver, {"x": noise_like((100, 1))}, grid))
    assert torch.equal((end[:, 0] > 0).long(), labels)
    assert float((end[:, 0].abs() - 1).std()) == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("weight", [math.nan, math.inf, "3"])
def test_a_weight_that_is_no_number_is_one_sentence(weight):
    with refused("classifier_weight", weight):
        classifier_guided(mixture(2), Posterior(mixture(2)), torch.zeros(1), weight)


# --- the adapter ----------------------------------------------------------------------------------------------------


def resnet(classes=3, channels=1, size=8):
    torch.manual_seed(3)
    sides = {"num_channels": channels + 1, "num_labels": classes, "image_size": size}
    options = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**sides, **options)).eval()


def classifier(dtype=torch.float64, **options):
    return NoisyClassifier("tiny classifier", resnet(**options), ddpm_linear(), dtype=dtype)


@pytest.fixture
def folder(tmp_path):
    resnet().save_pretrained(tmp_path / "classifier")
    (tmp_path / "classifier/scheduler_config.json").write_text(json.dumps({**DDPM}))
    return tmp_path / "classifier"


def test_the_noise_level_is_the_last_channel():
    network = resnet()
    x, log_snr = torch.randn(2, 1, 8, 8), torch.tensor([-3.0, 50.0])
    plane = torch.tensor([-0.3, 2.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    with torch.no_grad():
        expected = network(torch.cat([x, plane], 1)).logits
        assert torch.equal(NoisyResNet(network)(x, log_snr), expected)


def test_probabilities_are_of_the_level_whatever_the_path():
    judge, x = classifier(), noise_like((4, 1, 8, 8))
    path = ddpm_linear()
    node = path.node(400)
    log = judge.log_probs(x, node)
    torch.testing.assert_close(log.exp().sum(1), torch.ones(4, dtype=torch.float64))
    labels = torch.tensor([2, 0, 1, 1])
    assert torch.equal(judge(x, node, labels), log[torch.arange(4), labels])
    flow = Node(0.0, node.alpha / (node.alpha + node.sigma), node.sigma / (node.alpha + node.sigma))
    assert RectifiedFlow().node(flow.sigma).alpha == pytest.approx(flow.alpha)
    torch.testing.assert_close(judge.log_probs(x / (node.alpha + node.sigma), flow), log)
    for far, near in (((0.0, 1.0, 0.0), 1), ((9.0, 0.0, 1.0), 1000)):  # beyond what it was trained on
        level = path.node(near)
        clamped = judge.log_probs(x, Node(*far))
        torch.testing.assert_close(clamped, judge.log_probs(x * math.hypot(level.alpha, level.sigma), level))


def test_a_folder_loads_with_transformers_and_here(folder, capsys):
    assert ResNetForImageClassification.from_pretrained(folder).config.num_labels == 3
    capsys.readouterr()
    judge, own = ddim.load_classifier(folder, dtype="float64"), classifier()
    assert capsys.readouterr().err == ""  # no bar of transformers' own
    assert (judge.shape, judge.classes, judge.name) == ((1, 8, 8), 3, str(folder))
    x, node = noise_like((2, 1, 8, 8)), ddpm_linear().node(300)
    torch.testing.assert_close(judge.log_probs(x, node), own.log_probs(x, node))
    half = ddim.load_classifier(folder, dtype="bfloat16").log_probs(x.float(), node)
    assert half.dtype == torch.float32


@pytest.mark.parametrize(
    ("spoil", "refusal"),
    [
        (lambda f: (f / "scheduler_config.json").unlink(), refused(None, "scheduler_config.json", "JSON")),
        (lambda f: (f / "config.json").write_text("{"), refused(None, "config.json", "JSON")),
        (lambda f: (f / "config.json").write_text("[]"), refused(None, "config.json", "JSON")),
        (lambda f: (f / "config.json").write_text('{"model_type": "vit"}'), refused("classifier")),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            refused("classifier", "pytorch_model.bin", "pickle"),
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 50), failed("classifier", "model.safetensors")),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_one_sentence(folder, spoil, refusal):
    spoil(folder)
    with refusal as caught:
        ddim.load_classifier(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_what_is_no_folder_or_dtype_is_one_sentence(folder):
    with refused("classifier", "nowhere"):
        ddim.load_classifier("nowhere")
    with unknown("dtype", "float23", nearest="float32"):
        ddim.load_classifier(folder, dtype="float23")
    with refused("device", "CUDA"):
        ddim.load_classifier(folder, device="cuda")


# --- the verb -------------------------------------------------------------------------------------------------------


def test_sampling_leads_to_the_labels_and_batches_do_not_matter():
    made, judge = model(dtype=torch.float64), classifier()
    settings = {"steps": 4, "classifier": judge, "labels": [0, 1, 2, 2], "spacing": "trailing"}
    plain = ddim.sample(made, 4, steps=4, spacing="trailing")
    assert torch.equal(ddim.sample(made, 4, **settings, classifier_weight=0.0), plain)
    led = ddim.sample(made, 4, **settings, classifier_weight=5.0)
    assert not torch.allclose(led, plain)
    torch.testing.assert_close(ddim.sample(made, 4, **settings, classifier_weight=5.0, batch=3), led)

    def chance(images):
        return judge(images * 2 - 1, made.schedule.path.node(1), torch.tensor([0, 1, 2, 2])).mean()

    assert chance(led) > chance(plain)


def test_a_conditional_model_and_the_classifier_share_the_labels():
    made = model(classes=3)
    judge = classifier(torch.float32)
    alone = ddim.sample(made, 2, steps=2, labels=[0, 2])
    assert not torch.equal(ddim.sample(made, 2, steps=2, labels=[0, 2], classifier=judge, classifier_weight=9.0), alone)


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({}, refused("labels", 0, 2)),
        ({"labels": 3}, refused("labels", 3, "'tiny classifier'", 0, 2)),
        ({"labels": [0, True]}, refused("labels", True)),
        ({"labels": [0, 1, 2]}, refused("labels", 3, 2)),
        ({"labels": 0, "classifier_weight": math.nan}, refused("classifier_weight", "nan")),
        ({"labels": 0, "classifier": classifier(size=16)}, refused("classifier", "1x16x16", "'tiny'", "1x8x8")),
    ],
)
def test_what_cannot_guide_is_one_sentence(options, refusal):
    with refusal:
        ddim.sample(model(), 2, steps=2, **{"classifier": classifier(), **options})


# --- the command ----------------------------------------------------------------------------------------------------


def run(*words):
    from ddim.cli.app import app

    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_samples_under_a_classifier(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = pipeline_folder(tmp_path / "model")
    base = ["sample", "-m", pixels, "-n", 2, "--steps", 2, "--json"]
    done = run(*base, "--classifier", folder, "--label", 1, "--classifier-weight", 3)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["classifier"], said["classifier_weight"], said["labels"]) == (str(folder), 3.0, [1])
    led, plain = Path(said["files"][0]), Path(json.loads(run(*base).stdout)["files"][0])
    assert led.name != plain.name
    assert led.read_bytes() != plain.read_bytes()
    again = json.loads(run(*base, "--classifier", folder, "--label", 1).stdout)
    assert again["classifier_weight"] == 1.0
    for words, says in (
        (["--classifier-weight", 3], "--classifier-weight: it goes with --classifier FOLDER"),
        (["--classifier", folder], "--label: a classifier leads to a class"),
        (["--classifier", folder, "--label", 1, "--classifier-weight", "inf"], "--classifier-weight: inf is not a"),
        (["--classifier", "nowhere", "--label", 1], "classifier: there is no folder nowhere"),
    ):
        failed = run(*base, *words)
        assert failed.exit_code == 2
        assert says in failed.output
