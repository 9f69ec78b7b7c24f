"""What commands share around a model: opening it, its guidance, saving an interrupted run, metadata and errors."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from .._utils.errors import InputError, UnknownName
from .options import Guiding, layers_from, range_from
from .output import Terminal

if TYPE_CHECKING:
    from .._utils.errors import Interrupted
    from ..core.guidance import Guidance, Proximal, SkipLayers
    from ..inversion.latent_code import LatentCode
    from ..models.base import Model
    from ..models.counted import Counted


def open_model(
    terminal: Terminal,
    name: str,
    labels: Sequence[int] | None = None,
    **loading: Any,
) -> "Counted":
    """Loads a model by name, behind a spinner.

    Args:
        terminal: where the spinner is drawn.
        name: a bundled model, a folder or a hub id.
        labels: the classes that were asked for; None where there are none.
        loading: the keyword arguments of ``ddim.load``.

    Raises:
        InputError: no such model or device, or a class-conditional model without a label.
        DDIMError: its files are broken, or the hub cannot be reached.
    """
    with terminal.status(f"loading {name}"):
        from ..models import load

        model = load(name, **loading)
    if model.classes and labels is None:
        raise InputError(
            f"the model {name!r} is class-conditional; name a class from 0 to {model.classes - 1}.", parameter="label"
        )
    from ..models.counted import Counted

    return Counted(model)


def open_for_code(terminal: Terminal, name: str | None, code: "LatentCode", **loading: Any) -> "Counted":
    """Loads the model of that name, or by default the one that made the code; classes come from the code.

    Raises:
        InputError: there is no such model, or it is none that the code can be used with.
        DDIMError: its files are broken.
    """
    try:
        counted = open_model(terminal, name or code.model, labels=[], **loading)
    except UnknownName as error:
        if name is not None or error.kind != "model":
            raise
        raise InputError(
            f"the code was made by {code.model!r}, which cannot be found from here; name the model.",
            parameter="model",
        ) from None
    from ..pipelines.common import check_made_for

    check_made_for(counted, code)
    return counted


def guidance_for(
    model: "Counted", asked: Guiding, *, usual: "float | Guidance", batched_cfg: bool = True
) -> "Guidance":
    """The guidance that the options describe.

    Args:
        model: the model that will be guided.
        asked: the options.
        usual: the weight where none was typed; or a code's own guidance, of which each option replaces its part.
        batched_cfg: whether both branches are asked in one batch.

    Raises:
        InputError: a number out of its range, or any of these options for a model that takes neither prompts nor
            classes.
    """
    from ..core.guidance import Guidance
    from ..pipelines.common import conditioned, translated

    skipping = ("skip_layers", "skip_scale", "skip_steps")
    weighing = ("guidance", "guidance_scale", "rescale", "interval", *skipping, "proximal", "proximal_quantile")
    names = ("negative", "guidance_scale") if conditioned(model) else (*weighing, "negative")
    if not model.text and (idle := [name for name in names if getattr(asked, name) is not None]):
        raise InputError(f"it goes with prompts, and the model {model.name!r} has no text encoder.", parameter=idle[0])
    own = usual if isinstance(usual, Guidance) else Guidance(usual if model.text else 1.0)
    if asked.guidance_scale is not None and asked.guidance is not None:
        raise InputError("it does not go with --guidance; use one of the two.", parameter="guidance_scale")
    if asked.guidance_scale is not None:
        translated(model, asked.guidance, asked.guidance_scale)
        other = model.guidance_of(asked.guidance_scale)
        own = replace(own, weight=other.weight, embedded=other.embedded)
    return Guidance(
        own.weight if asked.guidance is None else asked.guidance,
        own.rescale if asked.rescale is None else asked.rescale,
        own.interval if asked.interval is None else range_from(asked.interval, "interval", empty=False),
        own.embedded,
        batched_cfg,
        _skipping(asked, own.skip),
        _proximal(asked, own.proximal),
    )


def _skipping(asked: Guiding, own: "SkipLayers | None") -> "SkipLayers | None":
    """Skip-layer guidance as it was asked for, on top of a code's own.

    Raises:
        InputError: a value out of its range, or settings without layers.
    """
    from ..core.guidance import SkipLayers

    if asked.skip_layers is not None:
        layers = layers_from(asked.skip_layers, "skip_layers")
        own = SkipLayers(layers) if own is None else replace(own, layers=layers)
    if own is None:
        if idle := [name for name in ("skip_scale", "skip_steps") if getattr(asked, name) is not None]:
            raise InputError("it goes with --skip-layers.", parameter=idle[0])
        return None
    own = own if asked.skip_scale is None else replace(own, scale=asked.skip_scale)
    if asked.skip_steps is None:
        return own
    return replace(own, interval=range_from(asked.skip_steps, "skip_steps", empty=False), window=None)


def _proximal(asked: Guiding, own: "Proximal | None") -> "Proximal | None":
    """Proximal guidance as it was asked for, on top of a code's own.

    Raises:
        InputError: a value unknown or out of its range, or a quantile without a kind.
    """
    from ..core.guidance import Proximal

    if asked.proximal is not None:
        own = Proximal(asked.proximal) if own is None else replace(own, kind=asked.proximal)
    if asked.proximal_quantile is None:
        return own
    if own is None:
        raise InputError("it goes with --proximal.", parameter="proximal_quantile")
    return replace(own, quantile=asked.proximal_quantile)


def guidance_text(model: "Counted", guidance: "Guidance") -> str:
    """``w = 3 · embedded scale 3.5 · `` for a report: the weight if it is not 1, and the scale if the network takes
    one; empty without both."""
    scale = model.info.embedded if guidance.embedded is None else guidance.embedded
    weight = "" if guidance.weight == 1 else f"w = {guidance.weight:g} · "
    return weight + ("" if scale is None else f"embedded scale {scale:g} · ")


def steps_text(code: "LatentCode", asked: int | None = None) -> str:
    """``S = 20``; of a code that leaves out a part of the grid ``13 of 20 steps``, with the skip or strength.

    Args:
        code: a code, whose grid has the steps that are taken.
        asked: the number of steps that were asked for; None if only the code is known.
    """
    skip, steps, left_out = code.settings.get("skip"), code.grid.steps, code.settings.get("left_out")
    if left_out:
        return f"{steps} of {steps + left_out} steps (strength {code.settings['strength']:g})"
    if not skip:
        return f"S = {steps}"
    return f"{steps}{'' if asked is None else f' of {asked}'} steps (skip = {skip:g})"


def if_it_acts(model: "Counted", guidance: "Guidance") -> "Guidance | None":
    """The guidance as the library's argument: None for a model that takes neither prompts nor classes."""
    from ..pipelines.common import conditioned

    return guidance if conditioned(model) else None


def about_prompts(
    model: "Counted", prompts: Sequence[str] | None, negative: str | None, guidance: "Guidance"
) -> dict[str, Any]:
    """What a file's metadata says of prompts and guidance; of a model without text, only a weight other than 1."""
    if not model.text:
        return {"guidance": guidance.options} if guidance.weight != 1 else {}
    return {"prompts": list(prompts or [""]), "negative": negative, "guidance": guidance.options}


def partial_beside(file: Path) -> Path:
    """The file that an interrupted run leaves beside the code file ``file``."""
    return file.with_name(f"{file.name}.partial")


def keep_partial(stopped: "Interrupted", path: Path, command: str) -> KeyboardInterrupt:
    """Saves what an interrupted inversion had done, and returns the KeyboardInterrupt that says how to go on.

    Args:
        stopped: the exception that ``invert`` raised.
        path: the file to write.
        command: the shell line that goes on, without ``--resume``.

    Raises:
        DDIMError: the file cannot be written.
    """
    stopped.partial.save(path)
    return KeyboardInterrupt(
        f"Interrupted; what is done lies in {path}: {command} --resume {shlex.quote(str(path))} goes on."
    )


def about_model(model: "Model | Counted", reference: Path | None = None) -> dict[str, Any]:
    """The metadata of a file about the model that made it, and about the picture that its network looked at."""
    looked_at = {} if reference is None else {"reference": str(reference)}
    return {"ddim": __version__, "model": model.name, "fingerprint": model.fingerprint, **looked_at}


def error_text(error: Mapping[str, float | None]) -> str:
    """``MSE 1.2e-05 · PSNR 49.2 dB``."""
    value = error["psnr"]
    return f"MSE {error['mse']:.2g} · PSNR {'∞ (the same to the bit)' if value is None else f'{value:.1f} dB'}"
