"""The options that commands share, each declared once, and how their values are read. Imports nothing heavy.

Solvers, inversions and other names come from the registries and from ``_utils/choices.py``, which need no torch.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import inversion, solvers
from .._utils.choices import DTYPES, SPACINGS
from .._utils.errors import InputError
from .._utils.names import short_hash, slug
from .._utils.texts import check_text
from ..editing.editors import EDITORS
from .command import MACHINE, typed
from .groups import Options, option

SOLVERS = tuple(solvers.SOLVERS)
METHODS = tuple(inversion.INVERSIONS)
EDIT_METHODS = tuple(dict.fromkeys((*METHODS, *EDITORS)))
"""The methods of an edit: inversions, and editors, which make their own steps."""

PROMPTS = "Prompts and guidance"
SAMPLING = "Sampling and inversion"
FILES = "Files and images"
MODEL = "The model"


# --- reading values -------------------------------------------------------------------------------------------------


def check_utf8(param: typer.CallbackParam, value: Any) -> Any:
    """The texts as they were typed.

    Raises:
        InputError: bytes that are not UTF-8.
    """
    for text in [value] if isinstance(value, str) else value or []:
        check_text(text, param.opts[0].removeprefix("--"))
    return value


def options_from(pairs: list[str] | None) -> dict[str, Any]:
    """``["gamma=0.96"]`` as a dict; the values stay text, the method knows their types.

    Raises:
        InputError: something that is not KEY=VALUE, or a key that appears twice.
    """
    out: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        key, value = key.strip().replace("-", "_"), value.strip()
        if not equals or not key or not value:
            raise InputError(f"{pair!r} is not KEY=VALUE; write for example gamma=0.96.", parameter="option")
        if key in out:
            raise InputError(f"{key} appears twice: {out[key]} and {value}.", parameter="option")
        out[key] = value
    return out


def spacing_from(text: str | None) -> str | list[float] | None:
    """A spacing's name, or the list of t that ``900,500,100`` is.

    Raises:
        InputError: a list with something other than numbers in it.
    """
    if text is None or not re.match(r"\s*[-+.\d]", text):
        return text
    out: list[float] = []
    for part in text.split(","):
        try:
            out.append(float(part))
        except ValueError:
            raise InputError(
                f"{text!r}: {part.strip()!r} is not a t; write for example 900,500,100.", parameter="spacing"
            ) from None
    return out


def grid_from(text: str) -> tuple[int, int]:
    """(rows, columns) of ``7x9``.

    Raises:
        InputError: anything else.
    """
    return _two_numbers(text, "grid", f"{text!r} is not ROWSxCOLUMNS; write for example 7x7.")


def size_from(text: str | None) -> tuple[int, int] | None:
    """(height, width) in pixels of ``768x512``, which is written width first.

    Raises:
        InputError: anything else.
    """
    if text is None:
        return None
    width, height = _two_numbers(text, "size", f"{text!r} is not WIDTHxHEIGHT; write for example 768x512.")
    return height, width


def crop_from(text: str | None) -> tuple[int, ...] | str | None:
    """(left, top, right, bottom) of ``100,200,900,1000``; ``whole`` stays as it is.

    Raises:
        InputError: anything else.
    """
    if text is None or text.strip() == "whole":
        return text and text.strip()
    parts = text.split(",")
    if len(parts) != 4 or not all(re.fullmatch(r"\s*\d+\s*", part, re.ASCII) for part in parts):
        raise InputError(
            f"{text!r} is not LEFT,TOP,RIGHT,BOTTOM in pixels; write for example 100,200,900,1000, or whole.",
            parameter="crop",
        )
    return tuple(map(int, parts))


def _two_numbers(text: str, parameter: str, sentence: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)\s*[xX×]\s*(\d+)", text.strip())
    if not match:
        raise InputError(sentence, parameter=parameter)
    return int(match[1]), int(match[2])


def range_from(text: str, parameter: str, *, empty: bool = True) -> tuple[float, float]:
    """(low, high) of ``0.2,0.8``; one number is the end of a range that begins at 0.

    Args:
        text: what was typed.
        parameter: the parameter at fault.
        empty: whether both may be equal.

    Raises:
        InputError: anything else, or a range that leaves [0, 1] or ends before it begins.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise InputError(f"{text!r} is not a range; write for example 0,0.8.", parameter=parameter)
    low, high = (0.0, numbers[0]) if len(numbers) == 1 else numbers
    if not 0 <= low <= high <= 1 or (low == high and not empty):
        raise InputError(
            f"{text} is not a range between 0 and 1 that ends after it begins; 0,1 is all of it.", parameter=parameter
        )
    return low, high


def layers_from(text: str, parameter: str) -> tuple[int, ...]:
    """The indices of layers that ``7,8,9`` names.

    Raises:
        InputError: anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d+", part, re.ASCII) for part in parts):
        raise InputError(f"{text!r} is no list of layers; write for example 7,8,9.", parameter=parameter)
    return tuple(map(int, parts))


# --- options of one command or two ----------------------------------------------------------------------------------

Model = Annotated[
    str, typer.Option("--model", "-m", help="A bundled model, a folder in the diffusers format, or a hub id.")
]
CodeModel = Annotated[
    str | None, typer.Option("--model", "-m", help="By default the one that made the code.", show_default=False)
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        "-p",
        callback=check_utf8,
        help="What the images show; repeatable: one for each image, or one for all.",
        rich_help_panel=PROMPTS,
        show_default=False,
    ),
]
Labels = Annotated[
    list[int] | None,
    typer.Option(
        "--label",
        help="The class, for a class-conditional model; repeatable: one for each image, or one for all.",
        rich_help_panel=SAMPLING,
        show_default=False,
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        metavar="IMAGE",
        help="The picture that the network of FLUX.1 Kontext or FLUX.2 klein looks at.",
        rich_help_panel=PROMPTS,
        show_default=False,
    ),
]
Resize = Annotated[
    bool,
    typer.Option("--resize", help="Fit images of another size or number of channels.", rich_help_panel=FILES),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="A folder or a file; by default a file in this folder, named after its settings.",
        rich_help_panel=FILES,
        show_default=False,
    ),
]
Each = Annotated[
    bool,
    typer.Option(
        "--each", help="Also write one file for each image, in a folder beside the sheet.", rich_help_panel=FILES
    ),
]
Columns = Annotated[
    int | None,
    typer.Option("--columns", min=1, help="Images in a row of the sheet.", rich_help_panel=FILES, show_default=False),
]
Scale = Annotated[
    int,
    typer.Option(
        "--scale", min=1, help="Enlarge the sheet: each pixel becomes SCALE x SCALE pixels.", rich_help_panel=FILES
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="cpu, cuda or cuda:1; by default cuda where there is one.",
        rich_help_panel=MACHINE,
        show_default=False,
    ),
]
# --- groups of options ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid(Options):
    """The time grid, the solver's or method's own options, and the seed."""

    steps: int | None = option(
        None,
        "--steps -S",
        "The number of steps S, from 1 to the model's T; by default the model's usual one, 50, or fewer for a model "
        "that is distilled to a few.",
        SAMPLING,
    )
    spacing: str | None = option(
        None,
        "--spacing",
        f"{', '.join(SPACINGS)}; or a list of t such as 900,500,100. By default the model's own.",
        SAMPLING,
        parse=spacing_from,
        autocompletion=lambda: list(SPACINGS),
    )
    options: list[str] | None = option(
        None,
        "--option -o",
        "An option of the solver or method, such as gamma=0.96; repeatable. ddim methods lists them.",
        SAMPLING,
        parse=options_from,
        metavar="KEY=VALUE",
    )
    seed: int = option(0, "--seed", "The seed of the noise; image k has the seed SEED + k.", SAMPLING, tag="seed")

    def count(self, usual: int) -> int:
        """Returns S, also where the grid is a list of t; ``usual`` is the number of steps of the model by default."""
        spacing = spacing_from(self.spacing)
        if isinstance(spacing, list):
            return len(spacing)
        return usual if self.steps is None else self.steps


@dataclass(frozen=True)
class Method(Options):
    """Which inversion is used."""

    method: str = option(
        "ddim", "--method", f"The inversion: {', '.join(METHODS)}.", SAMPLING, autocompletion=lambda: list(METHODS)
    )


@dataclass(frozen=True)
class Inverting(Grid, Method):
    """The inversion, its options, its grid and its seed."""


@dataclass(frozen=True)
class Editing(Inverting):
    """The same for an edit, whose method may also be an editor."""

    method: str = option(
        "direct",
        "--method",
        f"The inversion: {', '.join(METHODS)}; or an editor, which makes its own steps from the source to the targets: "
        f"{', '.join(EDITORS)}.",
        SAMPLING,
        autocompletion=lambda: list(EDIT_METHODS),
    )


@dataclass(frozen=True)
class Strength(Options):
    """How far from the image an edit may go."""

    strength: float | None = option(
        None,
        "--strength",
        "0 to 1: how far from the image an edit may go. It acts in this part of the steps, the last ones; by default "
        "in all, or as the paper of an editor says.",
        SAMPLING,
        tag="strength",
    )


@dataclass(frozen=True)
class Guiding(Options):
    """Classifier-free guidance. The command puts weight, rescale and interval together, as one ``Guidance``."""

    negative: str | None = option(
        None, "--negative", "The prompt that guidance leads away from.", PROMPTS, callback=check_utf8
    )
    guidance: float | None = option(
        None,
        "--guidance -w",
        "w of classifier-free guidance: 1 is the prompt alone, 7.5 is usual. By default 1 to invert, a code's own to "
        "edit it, otherwise the model's usual one.",
        PROMPTS,
        argument=None,
    )
    guidance_scale: float | None = option(
        None,
        "--guidance-scale",
        "In place of --guidance, the number that the model's own pipeline in diffusers takes.",
        PROMPTS,
        argument=None,
    )
    rescale: float | None = option(
        None,
        "--rescale",
        "0 to 1: how far the guided prediction is scaled back to the standard deviation of the conditional one.",
        PROMPTS,
        argument=None,
    )
    interval: str | None = option(
        None,
        "--interval",
        "Guide only while t / T is between LOW and HIGH, such as 0.2,0.8.",
        PROMPTS,
        argument=None,
        metavar="LOW,HIGH",
    )
    skip_layers: str | None = option(
        None,
        "--skip-layers",
        "Skip-layer guidance of Stable Diffusion 3.5: also lead away from the prediction without these layers, such as "
        "7,8,9.",
        PROMPTS,
        argument=None,
        metavar="LAYER,...",
    )
    skip_scale: float | None = option(
        None, "--skip-scale", "How strongly --skip-layers leads; by default 2.8.", PROMPTS, argument=None
    )
    skip_steps: str | None = option(
        None,
        "--skip-steps",
        "The part of the steps in which --skip-layers acts; by default 0.01,0.2.",
        PROMPTS,
        argument=None,
        metavar="START,STOP",
    )
    proximal: str | None = option(
        None,
        "--proximal",
        "Proximal guidance, l0 or l1: ignore small differences between the two predictions, so that an edit leaves "
        "more of the image alone.",
        PROMPTS,
        argument=None,
        metavar="KIND",
    )
    proximal_quantile: float | None = option(
        None,
        "--proximal-quantile",
        "The share of the differences that --proximal ignores, between 0 and 1; by default 0.7.",
        PROMPTS,
        argument=None,
    )


@dataclass(frozen=True)
class InversionGuiding(Guiding):
    """Classifier-free guidance of an inversion and of the sampling that follows it."""

    inversion_guidance: float | None = option(
        None,
        "--inversion-guidance",
        "w of the inversion, if the method allows a choice; by default --guidance for exact methods (in an edit 1), "
        "otherwise 1.",
        PROMPTS,
        tag="back",
    )


@dataclass(frozen=True)
class Holding(Options):
    """How the predicted x0 is kept in range."""

    clip: float | None = option(
        None,
        "--clip",
        "Clip the predicted x0 to ±CLIP; by default as the model's config says, and inf does not clip.",
        SAMPLING,
        argument="clip_x0",
        tag="clip",
    )
    threshold: float | None = option(
        None,
        "--threshold",
        "Dynamic thresholding of x0 at this percentile, above 0 and up to 1, such as 0.995.",
        SAMPLING,
        tag="threshold",
    )

    def check(self) -> None:
        """Raises InputError for values out of range, or for both at once; before a model is loaded."""
        if self.clip is not None and self.threshold is not None:
            raise InputError("it does not go with --threshold; use one of the two.", parameter="clip")
        from ..core.prediction import Hold

        Hold(self.clip, self.threshold)


@dataclass(frozen=True)
class Cropping(Options):
    """Which region of a photograph is used."""

    crop: str | None = option(
        None,
        "--crop",
        "The region of a photograph in pixels, which is scaled to the model's size; or whole. By default an image must "
        "fit the model, unless something else says what to do with a photograph: --mask, --blend or --keep-source.",
        FILES,
        parse=crop_from,
        tag="crop",
        metavar="LEFT,TOP,RIGHT,BOTTOM",
    )


@dataclass(frozen=True)
class Keeping(Cropping):
    """The same, and whether the code keeps the photograph."""

    keep_source: bool = option(
        False,
        "--keep-source",
        "Store the photograph in the code at its own size, so that ddim edit can paste an edit of the code into it.",
        FILES,
        tag="kept",
    )


@dataclass(frozen=True)
class Files(Options):
    """What is loaded beside the model's own files."""

    lora: list[str] | None = option(
        None,
        "--lora",
        "A LoRA for a model with prompts: a .safetensors file, a folder or a hub id, with its scale; repeatable.",
        MODEL,
        argument=None,
        metavar="FILE[:SCALE]",
    )
    textual_inversion: list[str] | None = option(
        None,
        "--textual-inversion",
        "A .safetensors file of textual inversion, whose word prompts may then contain; repeatable.",
        MODEL,
        argument=None,
        metavar="FILE",
    )
    variant: str | None = option(
        None, "--variant", "The variant of the weights, such as fp16 or non_ema.", MODEL, argument=None, tag="variant-"
    )
    config: str | None = option(
        None,
        "--config",
        "For a single .safetensors file, the folder of a pipeline with its configs and tokenizers, or a hub id.",
        MODEL,
        argument=None,
        metavar="FOLDER",
    )

    @property
    def loading(self) -> dict[str, Any]:
        """The keyword arguments of ``ddim.load``."""
        loras = tuple(lora_from(text) for text in self.lora or ())
        return {
            "lora": loras or None,
            "textual_inversion": tuple(self.textual_inversion or ()) or None,
            "variant": self.variant,
            "config": self.config,
        }

    @property
    def tags(self) -> dict[str, str]:
        """What file names say of these options: the names of the files, with the scales that are not 1."""
        loras = [f"{_short(name)}{'' if scale == 1 else f'-x{scale:g}'}" for name, scale in self.loading["lora"] or []]
        words = [_short(name) for name in self.textual_inversion or []]
        more = {
            "config-": _short(self.config) if self.config else "",
            "lora-": "-".join(loras),
            "word-": "-".join(words),
        }
        return {**super().tags, **{tag: text for tag, text in more.items() if text}}


def lora_from(text: str) -> tuple[str, float]:
    """The name and the scale of ``style.safetensors:0.8``; without a number, the scale is 1.

    Raises:
        InputError: a file is followed by a scale that is no number.
    """
    name, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", scale):
        return name, float(scale)
    if Path(name).exists():
        raise InputError(f"the scale {scale!r} of {name} is not a number, such as 0.8.", parameter="lora")
    return text, 1.0


def _short(name: str) -> str:
    """A file in the name of another: its own name, and a hash of where it lies."""
    return f"{slug(name.removesuffix('.safetensors'))}-{short_hash(name)}"


@dataclass(frozen=True)
class Machine(Files):
    """Where the network computes, in what numbers, and what is loaded beside the model's own files."""

    batch: int = option(64, "--batch", "Images in one network call.", MACHINE, about=False)
    device: str | None = option(
        None,
        "--device",
        "cpu, cuda or cuda:1; by default cuda where there is one.",
        MACHINE,
        argument=None,
        about=False,
    )
    dtype: str = option(
        "float32", "--dtype", f"The precision of the network: {', '.join(DTYPES)}.", MACHINE, argument=None, tag=""
    )
    tf32: bool | None = option(
        None,
        "--tf32/--no-tf32",
        "Whether a CUDA device computes float32 with TF32: faster, with 10 bits; by default as torch is set.",
        MACHINE,
        argument=None,
        about=False,
    )
    low_memory: bool = option(
        False,
        "--low-memory",
        "Need less memory and more time: one prediction at a time, tiles in the autoencoder, networks wait on the CPU.",
        MACHINE,
        argument=None,
        about=False,
    )

    @property
    def loading(self) -> dict[str, Any]:
        """The keyword arguments of ``ddim.load``."""
        return {**super().loading, **{key: getattr(self, key) for key in ("device", "dtype", "tf32", "low_memory")}}


@dataclass(frozen=True)
class GuidedMachine(Machine):
    """The same, of a command that samples under guidance."""

    one_by_one: bool = option(
        False,
        "--one-by-one",
        "Under guidance, ask the network for both predictions one after the other: half the memory.",
        MACHINE,
        argument=None,
        about=False,
    )

    @property
    def batched_cfg(self) -> bool:
        """Whether both branches of guidance are asked in one batch."""
        return not self.one_by_one


def _names_of(*groups: type[Options]) -> tuple[str, ...]:
    return tuple(one.name for group in groups for one in fields(group) if "typer" in one.metadata)


GUIDING = _names_of(Guiding)
"""Options of guidance."""
INVERSION = (*_names_of(Inverting, Holding), "inversion_guidance", "resize", "crop", "reference")
"""Options of the inversion, which a code has behind it."""


def refuse_for_codes(*more: str, but: Collection[str] = ()) -> None:
    """Raises InputError, before a model is loaded, where an option of the inversion was typed and all inputs are codes.

    Args:
        more: further parameters of the command that only images need.
        but: parameters of the inversion that have another use here.
    """
    if idle := [name for name in (*INVERSION, *more) if name in typed() and name not in but]:
        raise InputError(
            "it is a setting of the inversion, and a code is inverted already; leave it out.", parameter=idle[0]
        )
