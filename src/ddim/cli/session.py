"""What the commands share around a model: opening it, counting its calls, measuring what came back."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .._utils.errors import InputError, UnknownName
from .files import phrases
from .options import range_from
from .output import Terminal

if TYPE_CHECKING:
    from torch import Tensor

    from .._utils.errors import Interrupted
    from ..core.guidance import Guidance
    from ..inversion.latent_code import LatentCode
    from ..models.base import Model
    from ..models.counted import Counted


def open_model(
    terminal: Terminal,
    name: str,
    device: str | None,
    dtype: str,
    labels: Sequence[int] | None = None,
    *,
    compile: bool = False,
) -> "Counted":
    """A model by name, with the spinner that this deserves.

    Raises:
        InputError: no such model or device, or a conditional one without a label.
        DDIMError: its files are broken, or the hub cannot be reached.
    """
    with terminal.status(f"loading {name}"):
        from ..models import load

        model = load(name, device=device, dtype=dtype, compile=compile)
    if model.classes and labels is None:
        raise InputError(
            f"the model {name!r} is conditional; give a class from 0 to {model.classes - 1}.", parameter="label"
        )
    from ..models.counted import Counted

    return Counted(model)


def open_for_code(
    terminal: Terminal, name: str | None, code: "LatentCode", device: str | None, dtype: str
) -> "Counted":
    """The model of that name, or the one that made the code; a conditional one takes its labels from the code.

    Raises:
        InputError: neither is to be had.
        DDIMError: its files are broken.
    """
    try:
        return open_model(terminal, name or code.model, device, dtype, labels=[])
    except UnknownName as error:
        if name is not None or error.kind != "model":
            raise
        raise InputError(
            f"the code was made by {code.model!r}, which is not to be found from here; give the model.",
            parameter="model",
        ) from None


def guidance_for(
    model: "Counted",
    weight: float | None,
    rescale: float | None = None,
    interval: str | None = None,
    *,
    usual: "float | Guidance",
    negative: str | None = None,
    one_by_one: bool = False,
) -> "Guidance":
    """The guidance that the options describe.

    Args:
        model: of which the words are.
        weight, rescale, interval: the options; None where they were not given.
        usual: w where none was given; or what a code says, of which each option changes its own part.
        negative: the negative prompt.
        one_by_one: whether to ask for both predictions one after the other.

    Raises:
        InputError: a number out of its range, or any of these for a model without text.
    """
    from ..core.guidance import Guidance
    from ..pipelines.common import conditioned

    given: dict[str, Any] = {"guidance": weight, "rescale": rescale, "interval": interval, "negative": negative}
    if conditioned(model) and not model.text:
        given = {"negative": negative}
    if not model.text and (flags := [flag for flag, value in given.items() if value is not None]):
        raise InputError(f"it goes with prompts, and the model {model.name!r} has no text encoder.", parameter=flags[0])
    own = usual if isinstance(usual, Guidance) else Guidance(usual if model.text else 1.0)
    return Guidance(
        own.weight if weight is None else weight,
        own.rescale if rescale is None else rescale,
        own.interval if interval is None else range_from(interval, "--interval"),
        own.embedded,
        not one_by_one,
    )


def about_words(
    model: "Counted", prompts: Sequence[str] | None, negative: str | None, guidance: "Guidance"
) -> dict[str, Any]:
    """What a file says of its words; nothing for a model without text."""
    if not model.text:
        return {"guidance": guidance.options} if guidance.weight != 1 else {}
    several = list(prompts or [""])
    return {"prompts": several, "negative": negative, "guidance": guidance.options}


def words_slug(prompts: Sequence[str] | None) -> str:
    """The prompt in a file's name, or how many there are and which; empty without one."""
    several = list(prompts or [])
    if len(set(several)) == 1:
        several = several[:1]
    return phrases(several, "prompts") if any(p.strip() for p in several) else ""


def words_text(guidance: "Guidance", usual: float, negative: str | None = None) -> dict[str, Any]:
    """What else is not as usual about the words, for ``files.settings_text``."""
    unusual = guidance.interval != (0.0, 1.0)
    return {
        "w": float(guidance.weight) if guidance.weight != usual else None,
        "rescale": guidance.rescale or None,
        "interval": "-".join(f"{v:g}" for v in guidance.interval) if unusual else None,
        "not-": words_slug([negative or ""]) or ("empty" if negative == "" else None),
    }


def partial_beside(file: Path) -> Path:
    """Where that lies which an interrupted run left of ``file``."""
    return file.with_name(f"{file.name}.partial")


def keep_partial(stopped: "Interrupted", path: Path, how: str) -> KeyboardInterrupt:
    """Writes what was done; the Ctrl-C to raise, which says how to go on.

    Args:
        stopped: what ``invert`` raised.
        path: where to.
        how: the command that goes on.

    Raises:
        DDIMError: the file cannot be written.
    """
    stopped.partial.save(path)
    return KeyboardInterrupt(f"Interrupted; what is done lies in {path}: {how} --resume {quoted(path)} goes on.")


def quoted(*words: object) -> str:
    """Words as a shell takes them."""
    return shlex.join([str(word) for word in words])


def about_model(model: "Model | Counted") -> dict[str, Any]:
    """What every file says of the model that made it."""
    return {"ddim": __version__, "model": model.name, "fingerprint": model.fingerprint}


def errors(images: "Tensor", others: "Tensor") -> list[dict[str, float | None]]:
    """For each pair: mse, psnr in dB (None where the two are the same to the bit), and the largest difference.

    Args:
        images, others: [N, C, H, W] in [0, 1].
    """
    distance = (images.double().cpu() - others.double().cpu()).flatten(1)
    mse = distance.square().mean(1).tolist()
    worst = distance.abs().amax(1).tolist()
    return [{"mse": m, "psnr": psnr(m), "max": w} for m, w in zip(mse, worst, strict=True)]


def psnr(mse: float) -> float | None:
    """10 log10(1 / mse) for values in [0, 1]; None for no error at all."""
    from math import log10

    return -10 * log10(mse) if mse > 0 else None


def error_text(error: Mapping[str, float | None]) -> str:
    """``MSE 1.2e-05 · PSNR 49.2 dB``."""
    value = error["psnr"]
    return f"MSE {error['mse']:.2g} · PSNR {'∞ (the same to the bit)' if value is None else f'{value:.1f} dB'}"
