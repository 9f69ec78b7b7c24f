"""On a CUDA device: bits that come back, graphs and eager calls that agree, and the results of a CPU.

Run them by ``python -m pytest -m cuda``: in every other run CUDA is hidden from torch, and they are skipped.
"""

from collections.abc import Iterator
from pathlib import Path

import bits
import pytest
import tiny_text
import torch
from refusals import refused

import ddim
from ddim.data.images import read_images
from ddim.models.sd import StableDiffusion
from ddim.solvers import REVERSIBLE

pytestmark = pytest.mark.cuda

DEVICE = "cuda"
DTYPES = ("float32", "bfloat16", "float16")


@pytest.fixture(autouse=True)
def _tf32() -> Iterator[None]:
    """Without TF32, unless a test asks for it; afterwards torch's settings are as before."""
    matmul, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolutions.allow_tf32
    matmul.allow_tf32 = convolutions.allow_tf32 = False
    yield
    matmul.allow_tf32, convolutions.allow_tf32 = before


def images(count: int = 3) -> torch.Tensor:
    return read_images(ddim.bundled_test_images("fashion")[:count], (1, 32, 32))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).square().mean().sqrt() / b.double().square().mean().sqrt())


@pytest.mark.filterwarnings("ignore::ddim._utils.errors.DDIMWarning")  # a code of five steps is no latent to edit
@pytest.mark.parametrize("tf32", [False, True], ids=["IEEE", "TF32"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", REVERSIBLE)
def test_the_integers_come_back(name: str, dtype: str, tf32: bool, tmp_path: Path):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    model = ddim.load("fashion", device=DEVICE, dtype=dtype)
    code, begun = bits.inverted(model, images(), steps=5, method=name, batch=3)
    loaded = ddim.LatentCode.load(code.save(tmp_path / "code.safetensors"))
    back, ended = bits.returned(model, loaded, strict=True)
    assert bits.same(begun, ended)
    alone, its_end = bits.returned(model, loaded[1], strict=True)
    assert bits.same(bits.rows(begun, [1]), its_end)
    assert torch.equal(alone[0], back[1])
    assert (back.cpu() - images()).abs().max() < 1e-2
    assert (model.decode(code.x.to(model.device)).cpu() - images()).abs().mean() > 0.1  # the code is not the image


@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_a_hooked_network_which_is_called_eagerly_agrees(dtype: str, near: float):
    model = ddim.load("fashion", device=DEVICE, dtype=dtype)
    drawn = [ddim.sample(model, 2, steps=5) for _ in range(2)]
    assert torch.equal(*drawn)  # the first call of a shape may capture what the second replays
    seen: list[int] = []
    hooked = ddim.load("fashion", device=DEVICE, dtype=dtype)
    hooked.network.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))  # type: ignore[attr-defined]
    eager = ddim.sample(hooked, 2, steps=5)
    assert seen == [2] * 5
    assert relative(drawn[0], eager) < near


def test_samples_are_those_of_a_cpu():
    here, there = (ddim.sample(ddim.load("fashion", device=d), 2, steps=5).cpu() for d in (DEVICE, "cpu"))
    assert relative(here, there) < 1e-3


def test_a_code_of_another_device_warns_and_is_refused_where_bits_are_wanted(tmp_path: Path):
    code = ddim.invert(ddim.load("fashion", device=DEVICE), images(), steps=5, method="edict")
    loaded, model = ddim.LatentCode.load(code.save(tmp_path / "code.safetensors")), ddim.load("fashion", device="cpu")
    with pytest.warns(ddim.DDIMWarning):
        back = ddim.reconstruct(model, loaded)
    assert (back - images()).abs().max() < 1e-2
    with refused("strict"):
        ddim.reconstruct(model, loaded, strict=True)


def test_null_text_tunes_as_on_a_cpu():
    pictures, codes, losses = tiny_text.pictures(2), [], []
    for device in (DEVICE, "cpu"):
        model = StableDiffusion("tiny-text", tiny_text.pipeline(), device=device)
        said: list[float] = []
        code = ddim.invert(
            model,
            pictures,
            steps=3,
            method="null-text",
            options={"inner": 4, "stop": 0.0, "rise": 0.0},
            prompt="a cat",
            guidance=3,
            on_event=lambda event, said=said: said.append(event.loss) if hasattr(event, "loss") else None,
        )
        codes.append(code.extras["uncond_text"].cpu())
        losses.append(torch.tensor(said))
    assert relative(*losses) < 1e-2
    assert relative(*codes) < 1e-2
    assert (codes[1][:, 0] - codes[1][:, 2]).abs().max() > 1e-3  # it was tuned
