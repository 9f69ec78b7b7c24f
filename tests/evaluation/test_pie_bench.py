"""PIE-Bench: its format, its metrics against formulas written here, the command on a made-up set and tiny networks."""

import errno
import io
import json
import shlex
import shutil
import sys
import types
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch
from measuring import kept as kept_rows
from PIL import Image
from refusals import refused
from safetensors.torch import load_file
from tiny_pie import BOX, made_up
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import ddim
from ddim.cli.app import app
from ddim.data.images import read_images
from ddim.evaluation.benchmarks import pie_bench
from ddim.evaluation.metrics import scores
from ddim.evaluation.metrics.networks import Clip, Dino, Lpips
from ddim.evaluation.metrics.scores import METRICS, open_scorer, through_jpeg
from ddim.evaluation.pie_entries import Entry, decode_mask, editable_entries, read_entries, with_free_border

# the format


def test_run_lengths_by_hand():
    mask = decode_mask([9, 2, 14, 1], side=6)
    inner = {(1, 3), (1, 4), (2, 2)}
    for row in range(6):
        for column in range(6):
            border = row in (0, 5) or column in (0, 5)
            assert bool(mask[row, column]) == (border or (row, column) in inner), (row, column)


def test_a_last_run_ends_with_the_picture():
    assert decode_mask([27, 100], side=6).int().tolist()[4] == [1, 0, 0, 1, 1, 1]
    assert decode_mask([], side=6).sum() == 20  # the border alone


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([1, 2, 3], "3 numbers"),
        ([36, 1], "run of 1 from 36"),
        ([-1, 1], "from -1"),
        ([3, -1], "run of -1"),
        ([1.5, 2], "whole numbers"),
        ("1 2", "whole numbers"),
        (None, "whole numbers"),
    ],
)
def test_a_mask_that_does_not_decode(given: Any, sentence: str):
    with pytest.raises(ddim.InputError, match=sentence):
        decode_mask(given, side=6)


def test_entries_are_read_as_published(tmp_path: Path):
    entries = read_entries(made_up(tmp_path))
    assert [e.key for e in entries] == [f"{k:012d}" for k in range(10)]
    assert [e.category for e in entries] == list(range(10))
    assert {e.source_prompt for e in entries} == {"a cat next to a mirror"}
    assert {e.target_prompt for e in entries} == {"a tiger next to a mirror"}
    assert [e.blend for e in entries[:2]] == [None, ("cat", "tiger")]
    assert len({e.digest for e in entries}) == 10
    mask = entries[0].mask
    assert mask.shape == (512, 512)
    top, bottom, left, right = BOX
    assert mask[1:-1, 1:-1].sum() == (bottom - top) * (right - left)
    assert bool(mask[top:bottom, left:right].all())


def test_a_set_one_level_down_parts_and_a_limit(tmp_path: Path):
    made_up(tmp_path / "PIE-Bench_v1")
    assert [e.category for e in read_entries(tmp_path, [8, 1])] == [1, 8]
    assert [e.category for e in read_entries(tmp_path, [8, 1], limit=1)] == [1]
    made_up(tmp_path / "again", 1)
    with pytest.raises(ddim.InputError, match="more than one mapping_file"):
        read_entries(tmp_path)
    made_up(tmp_path, 2)  # the folder's own goes before
    assert len(read_entries(tmp_path)) == 2


def test_a_digest_tells_what_an_entry_is(tmp_path: Path):
    changes = [{}, {"editing_prompt": "a dog"}, {"blended_word": "cat dog"}, {"mask": [600, 3]}]
    changes.append({"image_path": "1_kind/000000000001.png"})
    digests = [read_entries(made_up(tmp_path / str(k), 2, **c))[0].digest for k, c in enumerate(changes)]
    assert len(set(digests)) == len(changes)
    assert read_entries(made_up(tmp_path / "same", 2))[0].digest == digests[0]


def test_a_mask_at_the_models_size_is_the_nearest_and_its_border_is_free(tmp_path: Path):
    mask = read_entries(made_up(tmp_path, 1))[0].mask_at((32, 32))
    expected = np.zeros((32, 32), dtype=bool)
    for row in range(32):
        for column in range(32):
            inside = BOX[0] <= row * 16 < BOX[1] and BOX[2] <= column * 16 < BOX[3]
            expected[row, column] = inside or row in (0, 31) or column in (0, 31)
    assert np.array_equal(mask[0, 0].numpy(), expected)
    assert bool(with_free_border(torch.zeros(1, 1, 3, 3))[0, 0, 1, 1] == 0)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"mask": [1, 2, 3]}, "3 numbers"),
        ({"mask": [512 * 512, 1]}, "outside an image of 512x512"),
        ({"image_path": "nowhere.png"}, "no file"),
        ({"editing_type_id": "10"}, "'10', not one of 0 to 9"),
        ({"editing_type_id": None}, "not one of 0 to 9"),
        ({"editing_prompt": 3}, "editing_prompt is missing or not a text"),
        ({"blended_word": None}, "blended_word is missing or not a text"),
    ],
)
def test_a_malformed_entry_is_one_sentence_that_names_it(tmp_path: Path, changed: dict[str, Any], sentence: str):
    with pytest.raises(ddim.InputError, match=sentence) as error:
        read_entries(made_up(tmp_path, 2, **changed))
    assert "entry '000000000000'" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_malformed_set_is_one_sentence(tmp_path: Path):
    with pytest.raises(ddim.InputError, match=r"has no mapping_file\.json"):
        read_entries(tmp_path)
    made_up(tmp_path, 2)
    with pytest.raises(ddim.InputError, match="no entry of these categories"):
        read_entries(tmp_path, [5])
    with pytest.raises(ddim.InputError, match="10 is not a category") as caught:
        read_entries(tmp_path, [10])
    assert caught.value.parameter == "categories"
    Image.new("RGB", (40, 30)).save(tmp_path / "annotation_images" / "0_kind" / "000000000000.png")
    with pytest.raises(ddim.InputError, match="entry '000000000000': its image is 40x30"):
        read_entries(tmp_path)
    (tmp_path / "mapping_file.json").write_text("{")
    with pytest.raises(ddim.InputError, match="not readable JSON"):
        read_entries(tmp_path)
    for content, sentence in (("[1]", "mapping of keys to entries"), ("{}", "has no entry.")):
        (tmp_path / "mapping_file.json").write_text(content)
        with pytest.raises(ddim.InputError, match=rf"{sentence}$" if content == "{}" else sentence):
            read_entries(tmp_path)
    (tmp_path / "mapping_file.json").write_text("[" * 100_000)
    with pytest.raises(ddim.InputError, match="not readable JSON"):
        read_entries(tmp_path)
    (tmp_path / "mapping_file.json").write_text('{"a": 3}')
    with pytest.raises(ddim.InputError, match="entry 'a'"):
        read_entries(tmp_path)


def test_blend_words_that_a_prompt_lacks_are_left_out_with_a_warning(tmp_path: Path):
    entries = read_entries(made_up(tmp_path, 2, blended_word="cat lion"))
    with pytest.warns(ddim.DDIMWarning, match="'000000000000' is edited without its blend words.*'lion'"):
        found = editable_entries(tiny_text.model(), entries, "refine")
    assert [e.blend for e in found] == [None, ("cat", "tiger")]


@pytest.mark.parametrize("given", ["cat", "cat tiger mirror"])
def test_blend_words_that_are_no_pair_are_left_out_with_a_warning(tmp_path: Path, given: str):
    with pytest.warns(ddim.DDIMWarning, match=f"'000000000000' is edited without its blend words: '{given}'"):
        assert read_entries(made_up(tmp_path, 1, blended_word=given))[0].blend is None


def test_prompts_that_attention_cannot_swap_are_told_before_the_work(tmp_path: Path):
    entries = read_entries(made_up(tmp_path, 2, editing_prompt="a tiger"))
    with pytest.raises(ddim.InputError, match="Entry '000000000000': attention: 'replace'"):
        editable_entries(tiny_text.model(), entries, "replace")


# the metrics, each against its formula


@pytest.fixture
def scene() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two sources, reconstructions and edits of 32 pixels in 8 bits, and their masks."""
    source = (tiny_text.pictures(2) * 255).round() / 255
    edit = (tiny_text.pictures(2, seed=5) * 0.4 + source * 0.6).mul(255).round() / 255
    back = (source * 0.9).mul(255).round() / 255
    mask = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    mask[0, 0, 8:20, 4:25], mask[1, 0, 3:9, 10:30] = True, True
    return source, back, edit, with_free_border(mask)


def blackened(x: Tensor, mask: Tensor) -> np.ndarray:
    return (x * mask).double().numpy()


def gaussian() -> np.ndarray:
    g = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    return np.outer(g, g) / np.outer(g, g).sum()


def ssim_of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Wang et al. 2004, Eq. 13, an 11x11 Gaussian window of 1.5, edges reflected; the map of one channel."""
    x, y = (np.lib.stride_tricks.sliding_window_view(np.pad(z, 5, mode="reflect"), (11, 11)) for z in (a, b))

    def mean(z: np.ndarray) -> np.ndarray:
        return (gaussian() * z).sum((-2, -1))

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    return (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))


def test_mse_and_psnr_over_the_background(scene: Any):
    source, _, edit, mask = scene
    found, decibel = scores.background_mse(source, edit, mask), scores.background_psnr(source, edit, mask)
    for n in range(2):
        squares = [
            float(source[n, c, i, j] - edit[n, c, i, j]) ** 2
            for c in range(3)
            for i in range(32)
            for j in range(32)
            if not mask[n, 0, i, j]
        ]
        assert found[n].item() == pytest.approx(np.mean(squares), rel=1e-6)
        assert decibel[n].item() == pytest.approx(10 * np.log10(1 / np.mean(squares)), rel=1e-6)


def test_mse_and_psnr_as_published_average_over_all_and_so_are_better(scene: Any):
    source, _, edit, mask = scene
    found = scores.background_mse(source, edit, mask, True)
    expected = ((blackened(source, ~mask) - blackened(edit, ~mask)) ** 2).mean((1, 2, 3))
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert scores.background_psnr(source, edit, mask, True).tolist() == pytest.approx(-10 * np.log10(expected))
    share = (~mask).double().mean((1, 2, 3))  # the published figure shrinks with the background
    assert (found / scores.background_mse(source, edit, mask)).tolist() == pytest.approx(share.tolist())


def test_ssim_over_the_background(scene: Any):
    source, _, edit, mask = scene
    found = scores.background_ssim(source, edit, mask)
    filled = np.where(mask.numpy(), source.double().numpy(), edit.double().numpy())
    for n in range(2):
        maps = np.mean([ssim_of(source[n, c].double().numpy(), filled[n, c]) for c in range(3)], axis=0)
        assert found[n].item() == pytest.approx(maps[~mask[n, 0].numpy()].mean(), abs=1e-4)
    inside = torch.where(mask, torch.rand_like(edit), edit)  # what may change does not count
    assert torch.equal(scores.background_ssim(source, inside, mask), found)


def test_ssim_as_published_sees_black_everywhere(scene: Any):
    source, _, edit, mask = scene
    found = scores.background_ssim(source, edit, mask, True)
    a, b = blackened(source, ~mask), blackened(edit, ~mask)
    expected = [np.mean([ssim_of(a[n, c], b[n, c]) for c in range(3)]) for n in range(2)]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert (found > scores.background_ssim(source, edit, mask) + 0.01).all()


@pytest.mark.parametrize("as_published", [False, True])
def test_without_a_background_there_is_no_number(scene: Any, as_published: bool):
    source, _, edit, mask = scene
    full = torch.stack([torch.ones_like(mask[0]), mask[1]])
    for metric in (scores.background_mse, scores.background_psnr, scores.background_ssim):
        found = metric(source, edit, full, as_published)
        assert found.isnan().tolist() == [True, False]


class Fire(nn.Module):
    """A module of SqueezeNet."""

    def __init__(self, inside: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inside, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


def squeezenet(weights: Any = None) -> Any:
    """The layers of SqueezeNet 1.1 with random weights, as torchvision has them."""
    torch.manual_seed(3)
    pool = [nn.MaxPool2d(3, 2, ceil_mode=True) for _ in range(3)]
    fires = [Fire(64, 16, 64), Fire(128, 16, 64), Fire(128, 32, 128), Fire(256, 32, 128)]
    fires += [Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
    layers = [nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool[0], *fires[:2], pool[1], *fires[2:4], pool[2], *fires[4:]]
    return types.SimpleNamespace(features=nn.Sequential(*layers))


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A torchvision that has SqueezeNet and nothing else."""
    import diffusers  # noqa: F401  (this and transformers must not take it for the real one)
    import torchmetrics.image.lpip  # noqa: F401

    models = types.SimpleNamespace(SqueezeNet1_1_Weights=types.SimpleNamespace(DEFAULT=1), squeezenet1_1=squeezenet)
    module: Any = types.ModuleType("torchvision")
    module.models = models
    monkeypatch.setitem(sys.modules, "torchvision", module)
    monkeypatch.setattr("torchmetrics.functional.image.lpips._TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", True)
    return models


def lpips_maps(a: Tensor, b: Tensor) -> list[Tensor]:
    """Zhang et al. 2018, Eq. 1, before the mean over places: a map a layer, with the weights torchmetrics carries."""
    import torchmetrics.functional.image as here

    file = Path(here.__file__).parent / "lpips_models" / "squeeze.pth"
    weights = torch.load(file, map_location="cpu", weights_only=True)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    taps, layers, out = (1, 4, 7, 9, 10, 11, 12), squeezenet().features, []
    x, y = (((2 * p - 1) - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for p in (a, b))
    with torch.no_grad():
        for k, layer in enumerate(layers):
            x, y = layer(x), layer(y)
            if k in taps:
                u, v = (z / (1e-8 + z.square().sum(1, keepdim=True)).sqrt() for z in (x, y))
                lin = weights[f"lin{taps.index(k)}.model.1.weight"]
                out.append(((u - v).square() * lin).sum(1, keepdim=True))
    return out


@pytest.mark.usefixtures("torchvision")
def test_lpips_over_the_background_and_as_published(scene: Any):
    source, _, edit, mask = scene
    lpips = Lpips()
    filled = torch.where(mask, source, edit)
    maps = [F.interpolate(m, (32, 32), mode="bilinear", align_corners=False) for m in lpips_maps(source, filled)]
    whole = torch.stack(maps).sum(0)
    expected = [whole[n, 0][~mask[n, 0]].mean().item() for n in range(2)]
    assert scores.background_lpips(lpips, source, edit, mask).tolist() == pytest.approx(expected, rel=1e-4)
    black = lpips_maps(source * ~mask, edit * ~mask)
    published = torch.stack([m.mean((1, 2, 3)) for m in black]).sum(0)
    found = scores.background_lpips(lpips, source, edit, mask, True)
    assert found.tolist() == pytest.approx(published.tolist(), rel=1e-4)
    full = torch.ones_like(mask)
    assert bool(scores.background_lpips(lpips, source, edit, full).isnan().all())
    assert bool(scores.background_lpips(lpips, source, edit, full, True).isnan().all())


def test_lpips_that_cannot_be_had_is_one_sentence(torchvision: Any, monkeypatch: pytest.MonkeyPatch):
    def offline(weights: Any = None) -> Any:
        raise OSError("<urlopen error no route to host>\nand more")

    torchvision.squeezenet1_1 = offline
    with pytest.raises(ddim.InputError, match="<urlopen error no route to host>"):
        Lpips()
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", False)
    with pytest.raises(ddim.InputError, match="pip install torchmetrics torchvision"):
        Lpips()


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of two layers with random weights, 16 pixels, patches of 4."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    size = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    model = ViTModel(ViTConfig(**size, image_size=16, patch_size=4), add_pooling_layer=False)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape) * 0.3
    folder = tmp_path_factory.mktemp("judges") / "dino"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of one layer each with random weights, 24 pixels, and the tiny tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    words = tiny_text.tokenizer()
    size = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    special = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    text = {**size, **special, "vocab_size": len(words), "max_position_embeddings": tiny_text.LENGTH}
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config={**size, "image_size": 24, "patch_size": 8}, projection_dim=6)
    )
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape) * 0.3
    model.text_projection.weight.data *= -1  # so that scores lie above 0
    folder = tmp_path_factory.mktemp("judges") / "clip"
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = 1e-12) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def gelu(x: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda v: 0.5 * v * (1 + torch.erf(torch.tensor(v / 2**0.5, dtype=torch.float64)).item()))(x)


def last_keys(folder: Path, pixels: np.ndarray) -> np.ndarray:
    """Keys [17, 12] of the tiny ViT's second layer for standardised pixels [3, 16, 16]: a ViT in numpy."""
    stored = load_file(folder / "model.safetensors")
    w = {k.replace("encoder.layer.", "layers."): v.double().numpy() for k, v in stored.items()}
    names = {"attention.attention.query": "attention.q_proj", "attention.attention.key": "attention.k_proj"}
    names |= {"attention.attention.value": "attention.v_proj", "attention.output.dense": "attention.o_proj"}
    names |= {"intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}
    for theirs, ours in names.items():
        w = {k.replace(theirs, ours): v for k, v in w.items()}

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    kernel = w["embeddings.patch_embeddings.projection.weight"].reshape(12, -1)
    patches = [pixels[:, i : i + 4, j : j + 4].ravel() for i in range(0, 16, 4) for j in range(0, 16, 4)]
    tokens = np.stack(patches) @ kernel.T + w["embeddings.patch_embeddings.projection.bias"]
    x = np.concatenate([w["embeddings.cls_token"][0], tokens]) + w["embeddings.position_embeddings"][0]
    for layer in ("layers.0", "layers.1"):
        h = norm(x, w[f"{layer}.layernorm_before.weight"], w[f"{layer}.layernorm_before.bias"])
        q, k, v = (linear(h, f"{layer}.attention.{n}_proj") for n in "qkv")
        if layer == "layers.1":
            return k
        heads = []
        for a in range(0, 12, 4):
            scoring = q[:, a : a + 4] @ k[:, a : a + 4].T / 2
            share = np.exp(scoring - scoring.max(1, keepdims=True))
            heads.append(share / share.sum(1, keepdims=True) @ v[:, a : a + 4])
        x = x + linear(np.concatenate(heads, 1), f"{layer}.attention.o_proj")
        h = norm(x, w[f"{layer}.layernorm_after.weight"], w[f"{layer}.layernorm_after.bias"])
        x = x + linear(gelu(linear(h, f"{layer}.mlp.fc1")), f"{layer}.mlp.fc2")
    raise AssertionError


def similarity_of(folder: Path, image: Tensor, published: bool) -> np.ndarray:
    x = image * 255 if published else image
    small = F.interpolate(x[None].double(), (16, 16), mode="bilinear", antialias=not published)[0].numpy()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    keys = last_keys(folder, (small - mean[:, None, None]) / std[:, None, None])
    return np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in keys] for a in keys])


def test_structure_distance_is_that_of_the_last_layers_keys(scene: Any, dino: Path):
    source, _, edit, _ = scene
    judge = Dino(str(dino))
    for published in (False, True):
        found = scores.structure_distance(judge, source, edit, published)
        for n in range(2):
            a, b = (similarity_of(dino, x[n], published) for x in (source, edit))
            assert found[n].item() == pytest.approx(((a - b) ** 2).mean(), rel=1e-3)
    assert scores.structure_distance(judge, source, source).tolist() == [0, 0]
    plain, other = (scores.structure_distance(judge, source, edit, p) for p in (False, True))
    assert not torch.allclose(plain, other, rtol=0.05)


def clip_of(folder: Path, image: Tensor, prompt: str) -> float:
    """CLIPScore (without its factor 2.5) by transformers' own halves, and preprocessing by hand."""
    from transformers import CLIPModel, CLIPTokenizer

    model, words = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    small = ddim.to_pil(image).resize((24, 24), Image.Resampling.BICUBIC)
    x = np.asarray(small).astype(np.float32) / 255
    x = (x - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    with torch.no_grad():
        vision = model.vision_model(torch.tensor(x).permute(2, 0, 1)[None].float()).pooler_output
        text = model.text_model(**words(prompt, return_tensors="pt")).pooler_output
        a, b = model.visual_projection(vision)[0].numpy(), model.text_projection(text)[0].numpy()
    return max(100 * float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b)), 0.0)


def test_clip_scores_of_the_whole_and_of_the_edited_part(scene: Any, clip: Path):
    _, _, edit, mask = scene
    judge, prompts = Clip(str(clip)), ["a tiger next to a mirror", "a dog"]
    whole, edited = scores.clip_whole(judge, edit, prompts), scores.clip_edited(judge, edit, mask, prompts)
    assert whole.tolist() == pytest.approx([clip_of(clip, edit[n], prompts[n]) for n in range(2)], abs=1e-3)
    assert edited.tolist() == pytest.approx([clip_of(clip, (edit * mask)[n], prompts[n]) for n in range(2)], abs=1e-3)
    assert min(whole.tolist()) > 0
    assert whole.tolist() != edited.tolist()
    assert bool(scores.clip_edited(judge, edit, torch.zeros_like(mask), prompts).isnan().all())
    opposite = Clip(str(clip))
    opposite.model.text_projection.weight.data *= -1
    assert opposite.score(edit, prompts).tolist() == [0, 0]  # never below


def test_clip_takes_the_middle_square_of_a_wide_picture_and_cuts_long_prompts(clip: Path):
    judge, picture = Clip(str(clip)), tiny_text.pictures(1, 24, 48)
    middle = judge.score(picture[..., 12:36], ["a cat"])
    assert judge.score(picture, ["a cat"]).tolist() == pytest.approx(middle.tolist(), abs=1e-4)
    assert bool(judge.score(picture, ["a cat " * 40]).isfinite().all())


def test_jpeg_as_published_is_the_last_panel_of_a_strip(scene: Any):
    source, back, edit, _ = scene
    found = through_jpeg(source, back, edit)
    for n in range(2):
        strip, file = Image.new("RGB", (4 * 32, 32), "white"), io.BytesIO()
        for k, x in enumerate((source, back, edit)):
            strip.paste(ddim.to_pil(x[n]), ((k + 1) * 32, 0))
        strip.save(file, "JPEG", quality=75)
        last = np.asarray(Image.open(file).crop((96, 0, 128, 32))) / 255
        assert np.allclose(found[n].permute(1, 2, 0).numpy(), last, atol=1e-6)
    assert 0 < (found - edit).abs().max() < 0.3
    assert not torch.equal(through_jpeg(source, 1 - back, edit)[..., 0], found[..., 0])  # colours come over the edge


def test_the_scorer_puts_jpeg_before_the_published_metrics_alone(scene: Any):
    source, back, edit, mask = scene
    prompts = ["a cat"] * 2
    plain = open_scorer(["mse"], clip="", dino="").score(source, back, edit, mask, prompts)["mse"]
    assert torch.equal(plain, scores.background_mse(source, edit, mask))
    published = open_scorer(["mse"], clip="", dino="", as_published=True).score(source, back, edit, mask, prompts)[
        "mse"
    ]
    assert torch.equal(published, scores.background_mse(source, through_jpeg(source, back, edit), mask, True))


def background_of(source: Tensor, edit: Tensor, mask: Tensor, published: bool) -> dict[str, float]:
    """The metrics of one background from the formulas in this file alone."""
    if mask.all():
        return dict.fromkeys(("psnr", "lpips", "mse", "ssim"), np.nan)
    a, b = (source * ~mask, edit * ~mask) if published else (source, torch.where(mask, source, edit))
    counted = np.ones((32, 32), dtype=bool) if published else ~mask.numpy()
    x, y, maps = a.double().numpy(), b.double().numpy(), lpips_maps(a[None], b[None])
    squares = ((x - y) ** 2).mean(0)[counted].mean()
    wide = [F.interpolate(m, (32, 32), mode="bilinear", align_corners=False)[0, 0].numpy() for m in maps]
    return {
        "psnr": -10 * np.log10(squares),
        "lpips": sum(m.mean().item() for m in maps) if published else np.sum(wide, axis=0)[counted].mean(),
        "mse": squares,
        "ssim": np.mean([ssim_of(x[c], y[c]) for c in range(3)], axis=0)[counted].mean(),
    }


def formulas(
    source: Tensor, back: Tensor, edit: Tensor, mask: Tensor, prompt: str, published: bool, clip: Path, dino: Path
) -> dict[str, float]:
    """Every metric of one picture [3, 32, 32] and its mask [32, 32], from the formulas in this file alone."""
    if published:
        strip, file = Image.new("RGB", (4 * 32, 32), "white"), io.BytesIO()
        for k, x in enumerate((source, back, edit)):
            strip.paste(ddim.to_pil(x), ((k + 1) * 32, 0))
        strip.save(file, "JPEG", quality=75)
        last = np.asarray(Image.open(file).crop((96, 0, 128, 32))).astype(np.float32) / 255
        edit = torch.tensor(last).permute(2, 0, 1)
    keys = [similarity_of(dino, p, published) for p in (source, edit)]
    return {
        "structure": ((keys[0] - keys[1]) ** 2).mean(),
        **background_of(source, edit, mask, published),
        "clip": clip_of(clip, edit, prompt),
        "clip-edited": clip_of(clip, edit * mask, prompt),
    }


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("published", [False, True])
def test_every_metric_of_a_ten_picture_set_is_its_formula(tmp_path: Path, clip: Path, dino: Path, published: bool):
    entries = read_entries(made_up(tmp_path))
    scorer = open_scorer(clip=str(clip), dino=str(dino), as_published=published)
    assert scorer.metrics == ("structure", "psnr", "lpips", "mse", "ssim", "clip", "clip-edited")
    for k, entry in enumerate(entries):
        source = read_images(entry.image, (3, 32, 32), resize=True)
        edit = (tiny_text.pictures(1, seed=20 + k) * 0.4 + source * 0.6).mul(255).round() / 255
        back = (source * 0.9).mul(255).round() / 255
        mask = torch.ones(32, 32, dtype=torch.bool)
        if k != 9:  # BOX / 16, each place the nearest at 512
            mask[1:-1, 1:-1] = False
            mask[10:21, 7:25] = True
        found = scorer.score(source, back, edit, entry.mask_at((32, 32)), [entry.target_prompt])
        expected = formulas(source[0], back[0], edit[0], mask, "a tiger next to a mirror", published, clip, dino)
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert found[name].shape == (1,)
            assert found[name].item() == pytest.approx(value, rel=1e-3, nan_ok=True), (k, name)
            assert np.isnan(value) == (k == 9 and name in ("psnr", "lpips", "mse", "ssim"))


def test_the_tables_factors_are_those_of_the_published_one():
    factors = {"structure": 1e3, "psnr": 1, "lpips": 1e3, "mse": 1e4, "ssim": 1e2, "clip": 1, "clip-edited": 1}
    assert {name: metric.factor for name, metric in METRICS.items()} == factors


# networks that are not what they should be


def test_networks_come_from_safetensors_and_whole(clip: Path, dino: Path, tmp_path: Path):
    with pytest.raises(ddim.InputError, match="cannot be loaded as a CLIPModel"):
        Clip(str(tmp_path / "nowhere"))
    with pytest.raises(ddim.InputError, match="CLIPModel"):
        Clip(str(dino))
    with pytest.raises(ddim.InputError, match="ViTModel"):
        Dino(str(clip))
    for file in dino.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(dino / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ddim.InputError, match=r"the pickle pytorch_model\.bin, which is never loaded"):
        Dino(str(tmp_path))
    lone = tmp_path / "lone"
    lone.mkdir()
    for name in ("config.json", "model.safetensors"):
        (lone / name).write_bytes((clip / name).read_bytes())
    with pytest.raises(ddim.InputError, match="has no CLIP tokenizer"):
        Clip(str(lone))


def test_a_network_that_lacks_weights_is_not_made_up(dino: Path, tmp_path: Path):
    from safetensors.torch import save_file

    weights = load_file(dino / "model.safetensors")
    weights = {k: v for k, v in weights.items() if "layernorm_after" not in k}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((dino / "config.json").read_bytes())
    with pytest.raises(ddim.InputError, match=r"layernorm_after\.bias' is missing"):
        Dino(str(tmp_path))


def test_metrics_that_cannot_be_had_are_left_out_or_refused(dino: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", False)
    with pytest.warns(ddim.DDIMWarning) as told:
        scorer = open_scorer(clip="./nowhere", dino=str(dino))
    assert scorer.metrics == ("structure", "psnr", "mse", "ssim")
    assert scorer.names == {"clip": "", "dino": str(dino)}
    assert sorted(str(w.message).split(":")[0] for w in told) == ["Without clip and clip-edited", "Without lpips"]
    with pytest.raises(ddim.InputError, match="nowhere"):
        open_scorer(["clip"], clip="./nowhere", dino="")
    with pytest.raises(ddim.InputError, match=r"Unknown metric 'pnsr'\. Did you mean 'psnr'"):
        open_scorer(["pnsr"], clip="", dino="")


def test_the_help_names_what_there_is():
    assert tuple(METRICS) == pie_bench.METRICS


# the command


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    made_up(tmp_path / "data")
    tiny_text.pipeline().save_pretrained(tmp_path / "model")
    return tmp_path


PIXELS = ["--metrics", "psnr,mse", "--metrics", "ssim"]


def evaluated(bench: Path, *more: Any, code: int = 0) -> Any:
    """What the command tells; what is in ``more`` comes after, and wins."""
    words = ["evaluate", "pie-bench", "--model", bench / "model", "--data", bench / "data", "--out", bench / "out"]
    ran = CliRunner().invoke(app, [str(w) for w in [*words, "--steps", 2, "--json", *more]])
    assert ran.exit_code == code, ran.output
    return json.loads(ran.stdout) if code == 0 else " ".join(ran.stderr.split())


def rows_of(bench: Path) -> list[dict[str, Any]]:
    """All rows in the folder, in the order they were measured."""
    import pyarrow.parquet as pq

    parts = sorted((bench / "out" / "rows").glob("*.parquet"))
    return [row for part in parts for row in pq.ParquetFile(part).read().to_pylist()]


def kept(bench: Path, row: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Source, reconstruction and edit of a row, as they lie on disk."""
    (edit,) = (bench / "out").glob(f"*/{row['key']}_{row['entry']}.png")
    k = int(row["key"])
    source = Image.open(bench / "data" / "annotation_images" / f"{k}_kind" / f"{k:012d}.png")
    source = source.resize((32, 32), Image.Resampling.LANCZOS)
    pictures = (source, Image.open(edit.with_suffix(".reconstruction.png")), Image.open(edit))
    return tuple(torch.tensor(np.asarray(p) / 255).float().permute(2, 0, 1)[None] for p in pictures)  # type: ignore[return-value]


def test_the_command_measures_ten_entries(bench: Path, clip: Path, dino: Path):
    networks = ["--clip", clip, "--dino", dino, "--metrics", "structure clip clip-edited"]
    told = evaluated(bench, *PIXELS, *networks)
    rows = rows_of(bench)
    assert [r["key"] for r in rows] == [f"{k:012d}" for k in range(10)]
    assert told["warnings"] == []
    table = told["rows"]
    assert [(r["category"].split()[0], r["images"], r["failed"]) for r in table] == [
        *((str(k), 1, 0) for k in range(10)),
        ("all", 10, 0),
    ]
    judge, eye, prompt = Clip(str(clip)), Dino(str(dino)), ["a tiger next to a mirror"]
    values: dict[str, list[float]] = {}
    for row in rows:
        source, _, edit = kept(bench, row)
        mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
        mask[0, 0, 10:21, 7:25] = True  # BOX / 16, each place the nearest at 512
        mask = with_free_border(mask if row["key"] != f"{9:012d}" else torch.ones_like(mask))
        squares = ((source - edit) ** 2).mean(1)[~mask[:, 0]].double()
        expected = {
            "mse": squares.mean().item(),
            "psnr": -10 * float(np.log10(squares.mean().item())),
            "ssim": scores.background_ssim(source, edit, mask).item(),
            "structure": scores.structure_distance(eye, source, edit).item(),
            "clip": judge.score(edit, prompt).item(),
            "clip-edited": judge.score(edit * mask, prompt).item(),
        }
        for name, value in expected.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-4, nan_ok=True), (row["key"], name)
            values.setdefault(name, []).append(value)
        assert row["lpips"] is None
        assert float(row["nfe"]) > 0
    assert np.isnan(values["mse"][9])  # no background
    assert table[-1]["MSE ×10⁴"] == pytest.approx(1e4 * np.mean(values["mse"][:9]), rel=1e-4)
    assert table[-1]["CLIP whole"] == pytest.approx(np.mean(values["clip"]), rel=1e-4)
    assert table[9]["PSNR"] is None
    for ending in ("md", "csv", "json"):
        assert (bench / "out" / f"pie-bench-model.{ending}").is_file()
    page = (bench / "out" / "pie-bench-model.md").read_text()
    assert "| direct | refine | 1 change object | 1 | 0 |" in page
    assert f"command: {told['command']}" in page


def test_as_published_scores_the_same_edits_otherwise(bench: Path):
    plain = evaluated(bench, *PIXELS, "--limit", 3)
    edits = {p: p.stat().st_mtime_ns for p in (bench / "out").glob("*/*.png")}
    assert len(edits) == 6
    published = evaluated(bench, *PIXELS, "--limit", 3, "--as-published")
    assert edits == {p: p.stat().st_mtime_ns for p in (bench / "out").glob("*/*.png")}  # none was made again
    rows = rows_of(bench)
    assert [(r["key"][-1], r["as_published"]) for r in rows] == [(k, p) for p in (False, True) for k in "012"]
    assert [r["seconds"] for r in rows[:3]] == [r["seconds"] for r in rows[3:]]  # those of the edit
    mask = with_free_border(torch.zeros(1, 1, 32, 32, dtype=torch.bool))
    mask[0, 0, 10:21, 7:25] = True
    source, back, edit = kept(bench, rows[3])
    after = through_jpeg(source, back, edit)
    expected = ((blackened(source, ~mask) - blackened(after, ~mask)) ** 2).mean()
    assert float(rows[3]["mse"]) == pytest.approx(expected, rel=1e-5)
    assert plain["rows"][-1]["PSNR"] != published["rows"][-1]["PSNR"]
    assert "--as-published" in published["command"]
    assert len(list((bench / "out").glob("*.md"))) == 2


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(bench: Path, monkeypatch: pytest.MonkeyPatch):
    whole = evaluated(bench, *PIXELS, "--out", bench / "whole")
    edited: list[str] = []
    edit = ddim.edit

    def counted(model: Any, source: Any, prompt: Any, **given: Any) -> Any:
        if len(edited) == 4:
            raise KeyboardInterrupt
        edited.append(str(source.sum()))
        return edit(model, source, prompt, **given)

    monkeypatch.setattr("ddim.pipelines.edit.edit", counted)
    evaluated(bench, *PIXELS, code=130)
    assert len(rows_of(bench)) == 4
    # and killed between the pictures and the row
    first = rows_of(bench)[:3]
    for part in (bench / "out" / "rows").iterdir():
        part.unlink()
    rows = kept_rows(bench / "out", "pie-bench")
    rows.add(first)
    rows.flush()
    edited.clear()
    edited += ["not asked again"] * 5
    again = evaluated(bench, *PIXELS)
    assert len(edited) == 5 + 6
    assert len(set(edited)) == 1 + 6
    assert sorted(r["key"] for r in rows_of(bench)) == [f"{k:012d}" for k in range(10)]

    def table(told: Any) -> Any:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in told["rows"]]

    assert table(again) == table(whole)
    assert table(evaluated(bench, *PIXELS)) == table(whole)
    assert len(rows_of(bench)) == 10


def test_a_row_is_keyed_by_all_that_shaped_it(bench: Path, clip: Path, dino: Path):
    one = ["--limit", 1, "--metrics", "mse"]
    judged = ["--limit", 1, "--metrics", "clip"]
    runs = [
        one,
        [*one, "--steps", 3],
        [*one, "--guidance", 2],
        [*one, "--attention", "none"],
        [*one, "--method", "ddim"],
        [*one, "--method", "edit-friendly"],
        [*one, "--method", "edit-friendly", "--option", "skip=0"],
        [*one, "--method", "edit-friendly", "--seed", 1234],
        [*one, "--blend-weight", 2],
        [*one, "--as-published"],
        ["--limit", 1, "--metrics", "psnr"],
        [*judged, "--clip", clip],
        [*judged, "--clip", clip.parent / "." / ".." / clip.parent.name / "clip"],
    ]
    for given in runs:
        assert evaluated(bench, *given)["rows"][-1]["images"] == 1
    assert len(rows_of(bench)) == len(runs)
    tiny_text.pipeline(seed=1).save_pretrained(bench / "model")  # other weights under the same name
    evaluated(bench, *one)
    made_up(bench / "data", 2, editing_prompt="a dog next to a mirror")  # another entry under the same key
    evaluated(bench, *one)
    assert len(rows_of(bench)) == len(runs) + 2
    for given in (one, [*one, "--dino", dino]):  # a network that is not asked shapes nothing
        evaluated(bench, *given)
    assert len(rows_of(bench)) == len(runs) + 2


def test_methods_and_attentions_make_one_table_each_with_its_own(bench: Path):
    several = ["--method", "direct", "--method", "ddim", "--attention", "none", "--attention", "refine"]
    told = evaluated(bench, *several, "--categories", "1,8", "--metrics", "psnr", "--steps", 1)
    assert [(r["method"], r["attention"]) for r in told["rows"] if r["category"] == "all"] == [
        *(("direct", "none"), ("direct", "refine"), ("ddim", "none"), ("ddim", "refine"))
    ]
    assert {r["category"] for r in told["rows"]} == {"1 change object", "8 change background", "all"}
    words = shlex.split(told["command"])
    assert words[:3] == ["ddim", "evaluate", "pie-bench"]
    for flag, value in [*zip(several[::2], several[1::2], strict=True), ("--categories", "1,8"), ("--steps", "1")]:
        assert (flag, value) in pairwise(words)


def test_the_edit_is_the_verbs_with_the_entrys_words(bench: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[dict[str, Any]] = []
    edit = ddim.edit

    def watched(model: Any, source: Any, prompt: Any, **given: Any) -> Any:
        seen.append({"prompt": prompt, **given})
        return edit(model, source, prompt, **given)

    monkeypatch.setattr("ddim.pipelines.edit.edit", watched)
    evaluated(bench, "--limit", 2, "--metrics", "mse")
    common = {"prompt": "a tiger next to a mirror", "source_prompt": "a cat next to a mirror", "method": "direct"}
    common |= {"options": {}, "steps": 2, "guidance": 7.5, "attention": "refine", "weights": None, "seed": 0}
    plain = [{**common, "blend": None}, {**common, "blend": ("cat", "tiger")}]
    assert seen == plain
    pictures = {p.name: p.read_bytes() for p in (bench / "out").glob("*/*.png")}
    published = evaluated(bench, "--limit", 2, "--metrics", "mse", "--blend-weight", 2, "--seed", 1234, "--steps", 3)
    # no blend words weigh nothing
    own = {"seed": 1234, "steps": 3}
    assert seen[2:] == [{**plain[0], **own}, {**plain[1], **own, "weights": {"tiger": 2.0}}]
    assert "--blend-weight 2 --seed 1234" in published["command"]
    assert len(list((bench / "out").glob("*.md"))) == 2  # nor one table over the other
    plain_one, other = sorted((bench / "out").glob("direct*"), key=lambda folder: len(folder.name))
    assert "_blend_weight2_seed1234_" in other.name
    assert pictures == {p.name: p.read_bytes() for p in plain_one.glob("*.png")}  # neither writes over the other's
    second = next(name for name in pictures if name.startswith(f"{1:012d}") and "reconstruction" not in name)
    assert not np.array_equal(*(np.asarray(Image.open(folder / second)) for folder in (plain_one, other)))


def test_an_edit_that_diverges_is_a_result_and_the_run_goes_on(bench: Path, monkeypatch: pytest.MonkeyPatch):
    edit = ddim.edit

    def diverges(model: Any, source: Any, prompt: Any, **given: Any) -> Any:
        if given["blend"] is None:
            raise ddim.DDIMError("The sample is no longer finite.\nAt step 3.")
        return edit(model, source, prompt, **given)

    monkeypatch.setattr("ddim.pipelines.edit.edit", diverges)
    told = evaluated(bench, *PIXELS, "--limit", 2)
    assert len(told["warnings"]) == 1
    assert "direct · refine: 000000000000: The sample is no longer finite." in told["warnings"][0]
    assert [(r["images"], r["failed"], r["PSNR"] is None) for r in told["rows"]] == [
        (1, 1, True),
        (1, 0, False),
        (2, 1, False),
    ]
    assert evaluated(bench, *PIXELS, "--limit", 2)["warnings"] == []  # it is done


def test_a_disk_that_is_full_is_no_result(bench: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ddim._utils.files.os.fsync", full)
        assert "No space left on device" in evaluated(bench, *PIXELS, "--limit", 1, code=1)
    assert evaluated(bench, *PIXELS, "--limit", 1)["rows"][-1]["failed"] == 0  # and is measured later


def test_a_kept_picture_that_is_broken_is_made_again(bench: Path):
    told = evaluated(bench, "--limit", 1, "--metrics", "mse")
    (edit,) = [p for p in (bench / "out").glob("*/*.png") if "reconstruction" not in p.name]
    edit.write_bytes(edit.read_bytes()[:200])
    shutil.rmtree(bench / "out" / "rows")
    again = evaluated(bench, "--limit", 1, "--metrics", "mse")
    assert again["rows"][0]["MSE ×10⁴"] == told["rows"][0]["MSE ×10⁴"]


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--data", "nowhere"], "nowhere has no mapping_file.json"),
        (["--categories", "10"], "--categories: 10"),
        (["--categories", "one"], "--categories: one is not a number"),
        (["--categories", "-1"], "--categories: -1 is not a number"),
        (["--categories", " "], "--categories: ' ' names nothing"),
        (["--metrics", ""], "--metrics: '' names nothing"),
        (["--blend-weight", "-1"], "--blend-weight: -1 "),
        (["--blend-weight", "nan"], "blend-weight"),
        (["--blend-weight", "inf"], "--blend-weight: inf is not a number"),
        (["--seed", str(2**63)], f"--seed: {2**63} "),
        (["--metrics", "pnsr"], "Did you mean 'psnr'"),
        (["--metrics", "clip", "--clip", "./nowhere"], "nowhere cannot be loaded as a CLIPModel"),
        (["--metrics", "structure", "--dino", "./nowhere"], "nowhere cannot be loaded as a ViTModel"),
        (["--method", "dirct"], "Did you mean 'direct'"),
        (["--attention", "refin"], "Did you mean 'refine'"),
        (["--model", "fashion"], "takes neither prompts nor classes"),
        (["--method", "direct", "--method", "ddim", "--option", "skip=0"], "--option: it belongs to one method"),
        (["--limit", "0"], "--limit: 0 "),
        (["--steps", "0"], "--steps: 0 "),
        (["--device", "gpu"], "'gpu'"),
    ],
)
def test_wrong_input_is_one_sentence(bench: Path, extra: list[str], sentence: str):
    said = evaluated(bench, *(PIXELS if "--metrics" not in extra else []), *extra, code=2)
    assert sentence in said
    assert "Traceback" not in said
    assert not (bench / "out").exists()


def test_a_malformed_entry_ends_the_command_with_its_name(bench: Path):
    made_up(bench / "data", 2, mask=[5])
    assert "entry '000000000000': its mask has 1 numbers" in evaluated(bench, *PIXELS, code=2)


def test_an_entry_is_a_value(tmp_path: Path):
    entry = read_entries(made_up(tmp_path, 1))[0]
    assert isinstance(entry, Entry)
    with pytest.raises(AttributeError):
        entry.key = "other"  # type: ignore[misc]


def test_an_instruction_editor_gets_the_instruction(tmp_path: Path):
    (entry,) = read_entries(made_up(tmp_path, 1))
    assert entry.target_for(None) == entry.target_for(ddim.make_editor("flow-edit")) == entry.target_prompt
    assert entry.target_for(ddim.make_editor("instruct")) == "Make it a tiger" != entry.target_prompt
    with refused(None, repr(entry.key), "'velo-edit'"):
        replace(entry, instruction="").target_for(ddim.make_editor("velo-edit"))
    for wrong in (3, ["a"]):
        with refused(None, "editing_instruction"):
            read_entries(made_up(tmp_path, 1, editing_instruction=wrong))
