"""Pipelines whose network is quantised: they work as they are, and exact codes of them are exact.

Layerwise casting needs no library. The libraries of the other rows are no dependencies, and a row is skipped without.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bits
import pytest
import tiny_text
import torch
from refusals import warned
from test_live_families import called, used
from tiny_flow import FAMILIES
from tiny_lora import network_of
from torch import nn
from unchanged import unchanged

import ddim
from ddim.models.base import Model
from ddim.models.live import is_hooked, is_quantised

pytestmark = pytest.mark.filterwarnings("ignore::ddim._utils.errors.DDIMWarning")  # of codes of random networks
FAMILY = ["sd", "sd3", "flux dev", "qwen-image", "z-image"]


def pipeline_of(family: str) -> Any:
    return tiny_text.pipeline() if family == "sd" else FAMILIES[family].pipeline()


def check_bits(model: Model, place: Path) -> None:
    """The bit law: the integers that the inversion began with come back from a saved code, of each image alone too."""
    pictures = torch.rand(2, *model.picture, generator=torch.Generator().manual_seed(1))
    code, begun = bits.inverted(model, pictures, prompt="a cat", steps=3, method="bdia")
    code.save(place / "x.code.safetensors")
    code = ddim.LatentCode.load(place / "x.code.safetensors")
    assert code.settings["quantised"] == ", ".join(model.quantised)
    images, ended = bits.returned(model, code, strict=True)
    assert bits.same(ended, begun)
    for row in range(2):
        alone, last = bits.returned(model, code[row], strict=True)
        assert bits.same(last, bits.rows(begun, [row]))
        assert torch.equal(alone, images[row : row + 1])
    assert float((images - model.decode(model.encode(pictures))).abs().max()) < 1e-4


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
def test_layerwise_casting_works_as_it_is(family: str, compute: torch.dtype, tmp_path: Path):
    pipeline = pipeline_of(family)
    _, network = network_of(pipeline)
    plain = ddim.load(pipeline).fingerprint
    if compute is torch.bfloat16:
        pipeline.to(compute)
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute)
    assert any(weight.dtype is torch.float8_e4m3fn for weight in network.parameters())
    if family == "sd":
        pipeline("a cat", num_inference_steps=1)
    else:
        called(family, pipeline)  # in the first call, transformers sets hooks and Qwen's VAE counts
    with unchanged(pipeline, moves=True):  # each call of a layer makes its weights anew
        model = ddim.load(pipeline)
        assert model.dtype is compute
        assert model.quantised
        assert not model.threads  # two threads would cast the same weights
        assert model.fingerprint != plain
        assert model.fingerprint == ddim.load(pipeline).fingerprint
        check_bits(model, tmp_path)
        if family != "sd":
            used(family, pipeline)
        else:
            ddim.edit(model, tiny_text.pictures(1), ["a dog"], source_prompt="a cat", steps=3)
            ddim.invert(model, tiny_text.pictures(1), prompt="a cat", steps=2, method="null-text", guidance=3.0)


def test_the_gradient_is_that_of_the_weights_that_were_used():
    """Null-text tuning of a network in eight bits is that of a network with the same numbers in float32."""
    cast, plain = tiny_text.pipeline(), tiny_text.pipeline()
    cast.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with torch.no_grad():
        for name, weight in plain.unet.named_parameters():
            weight.copy_(cast.unet.get_parameter(name).float())
    told: dict[str, Any] = {"prompt": "a cat", "steps": 3, "method": "null-text", "guidance": 3.0}
    one, two = (ddim.invert(ddim.load(each), tiny_text.pictures(1), **told) for each in (cast, plain))
    assert one.conditions.uncond is not None
    tuned, same = one.extras["uncond_text"], two.extras["uncond_text"]
    moved = (tuned - one.conditions.uncond.tensors["text"].unsqueeze(1)).abs().amax(dim=(2, 3))
    assert float(moved.min()) > 0.05  # in every step
    assert float((tuned - same).abs().max()) < 1e-4
    assert float((one.x - two.x).abs().max()) < 1e-4
    pictures = [ddim.reconstruct(ddim.load(each), code) for each, code in ((cast, one), (plain, two))]
    assert float((pictures[0] - pictures[1]).abs().max()) < 1e-3


def test_another_weight_in_eight_bits_is_another_model():
    prints = []
    for seed in (0, 1):
        pipeline = tiny_text.pipeline(seed=seed)
        pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        pipeline.text_encoder, pipeline.vae = tiny_text.pipeline().text_encoder, tiny_text.pipeline().vae
        prints.append(ddim.load(pipeline).fingerprint)
    assert prints[0] != prints[1]


def test_a_code_of_quantised_layers_names_them_to_another_model(tmp_path: Path):
    pipeline = tiny_text.pipeline()
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    model = ddim.load(pipeline)
    code = ddim.invert(model, tiny_text.pictures(1), prompt="a cat", steps=3, method="bdia")
    code.save(tmp_path / "x.code.safetensors")
    code = ddim.LatentCode.load(tmp_path / "x.code.safetensors")
    assert code.settings["quantised"] == "Conv2d, Linear"
    with pytest.warns() as caught:
        ddim.reconstruct(ddim.load(tiny_text.pipeline()), code)
    assert any("Conv2d, Linear" in str(w.message) and "none" in str(w.message) for w in caught)
    plain = ddim.invert(ddim.load(tiny_text.pipeline()), tiny_text.pictures(1), prompt="a cat", steps=3)
    assert "quantised" not in plain.settings
    with warned("Conv2d, Linear", "no quantised layers"):
        ddim.reconstruct(model, plain)


def test_what_counts_as_quantised():
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8):
        assert is_quantised(torch.zeros(2, dtype=dtype))
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool):
        assert not is_quantised(torch.zeros(2, dtype=dtype))
    assert not is_hooked(nn.Linear(2, 2))


# --- by a library ---------------------------------------------------------------------------------------------------


def quanto(width: str) -> Callable[[nn.Module], None]:
    def quantise(network: nn.Module) -> None:
        library: Any = pytest.importorskip("optimum.quanto")
        library.quantize(network, weights=getattr(library, width))
        library.freeze(network)

    return quantise


def torchao(network: nn.Module) -> None:
    library: Any = pytest.importorskip("torchao.quantization")
    library.quantize_(network, library.Int8WeightOnlyConfig())


def bitsandbytes(network: nn.Module) -> None:
    """Linear layers in eight bits. Those of four bits compute on a CPU for wide layers only."""
    library: Any = pytest.importorskip("bitsandbytes")
    for name, module in [*network.named_modules()]:
        if type(module) is nn.Linear:
            made = library.nn.Linear8bitLt(
                module.in_features, module.out_features, module.bias is not None, has_fp16_weights=False
            )
            made.load_state_dict(module.state_dict())
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, made.to("cpu"))
    network.eval()


WAYS = {
    "quanto int8": quanto("qint8"),
    "quanto int4": quanto("qint4"),
    "torchao": torchao,
    "bitsandbytes": bitsandbytes,
}


@pytest.mark.parametrize("family", ["sd", "flux dev"])
@pytest.mark.parametrize("way", WAYS)
def test_libraries_quantise_and_it_works_as_it_is(way: str, family: str, tmp_path: Path):
    pipeline = pipeline_of(family)
    plain = ddim.load(pipeline).fingerprint
    with torch.no_grad():
        WAYS[way](network_of(pipeline)[1])
    model = ddim.load(pipeline)
    assert model.quantised
    assert not model.threads
    assert model.fingerprint != plain
    assert bool(torch.isfinite(ddim.sample(model, 1, steps=2, prompt="a cat")).all())
    check_bits(model, tmp_path)
    ddim.edit(model, torch.rand(1, *model.picture), ["a dog"], source_prompt="a cat", steps=2)
