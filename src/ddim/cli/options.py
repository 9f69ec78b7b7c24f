"""The options that commands share, and how their values are read. Imports nothing heavy.

Names of solvers and inversions are the registries', which are read without torch. The other names below are what
``--help`` shows; a test holds them to what is asked at run time.
"""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import inversion, solvers
from .._utils.errors import InputError
from .._utils.texts import check_text

SOLVERS = tuple(solvers.SOLVERS)
METHODS = tuple(inversion.INVERSIONS)
ATTENTIONS = ("refine", "replace", "none")
SPACINGS = ("leading", "trailing", "linspace", "quadratic", "karras")
DTYPES = ("float32", "float64", "bfloat16", "float16")
METRICS = ("structure", "psnr", "lpips", "mse", "ssim", "clip", "clip-edited")
CLIP, DINO = "openai/clip-vit-large-patch14", "facebook/dino-vitb8"

WORDS = "Words, for models with text"
WORK = "The walk"
FILES = "Files and pictures"
MACHINE = "Machine and output"


def remember_debug(ctx: typer.Context, value: bool) -> bool:
    """Tells the group, which catches the errors, to let them through."""
    if value:
        ctx.meta["ddim.debug"] = True
    return value


def readable(param: typer.CallbackParam, value: Any) -> Any:
    """Words as they came, once each is seen to be text.

    Raises:
        InputError: bytes that are not UTF-8.
    """
    for text in [value] if isinstance(value, str) else value or []:
        check_text(text, param.opts[0].removeprefix("--"))
    return value


Model = Annotated[
    str, typer.Option("--model", "-m", help="A bundled model, a folder in the diffusers format, or a hub id.")
]
CodeModel = Annotated[
    str | None, typer.Option("--model", "-m", help="By default the one that made the code.", show_default=False)
]
Steps = Annotated[int, typer.Option("--steps", "-S", help="S, from 1 to the model's T.", rich_help_panel=WORK)]
Spacing = Annotated[
    str | None,
    typer.Option(
        "--spacing",
        help=f"{', '.join(SPACINGS)}; or a list of t such as 900,500,100. By default the model's own.",
        autocompletion=lambda: list(SPACINGS),
        rich_help_panel=WORK,
        show_default=False,
    ),
]
Solver = Annotated[
    str,
    typer.Option("--solver", help=f"{', '.join(SOLVERS)}.", autocompletion=lambda: list(SOLVERS), rich_help_panel=WORK),
]
Method = Annotated[
    str,
    typer.Option("--method", help=f"{', '.join(METHODS)}.", autocompletion=lambda: list(METHODS), rich_help_panel=WORK),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-o",
        metavar="KEY=VALUE",
        help="An option of the method, such as gamma=0.96; repeatable. ddim methods lists them.",
        rich_help_panel=WORK,
        show_default=False,
    ),
]
Clip = Annotated[
    float | None,
    typer.Option(
        "--clip",
        help="Hold the predicted x0 to ±CLIP; by default as the model's config says, and inf holds nothing.",
        rich_help_panel=WORK,
        show_default=False,
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold", help="Dynamic thresholding at this percentile.", rich_help_panel=WORK, show_default=False
    ),
]
Labels = Annotated[
    list[int] | None,
    typer.Option(
        "--label",
        help="Class label for a conditional model; repeatable: one an image, or one for all.",
        rich_help_panel=WORK,
        show_default=False,
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        "-p",
        callback=readable,
        help="What the pictures show; repeatable: one a picture, or one for all.",
        rich_help_panel=WORDS,
        show_default=False,
    ),
]
Negative = Annotated[
    str | None,
    typer.Option(
        "--negative",
        callback=readable,
        help="What guidance leads away from.",
        rich_help_panel=WORDS,
        show_default=False,
    ),
]
GuidanceWeight = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        "-w",
        help="w of classifier-free guidance; 1 is the prompt alone, 7.5 is usual.",
        rich_help_panel=WORDS,
        show_default=False,
    ),
]
Back = Annotated[
    float | None,
    typer.Option(
        "--inversion-guidance",
        help="w of the way back, where the method leaves it free; by default as --guidance if exact, else 1.",
        rich_help_panel=WORDS,
        show_default=False,
    ),
]
Rescale = Annotated[
    float | None,
    typer.Option(
        "--rescale",
        help="0 to 1: how far the guided prediction gets the plain one's spread back.",
        rich_help_panel=WORDS,
        show_default=False,
    ),
]
Interval = Annotated[
    str | None,
    typer.Option(
        "--interval",
        metavar="LOW,HIGH",
        help="Guide only where t / T lies between, such as 0.2,0.8.",
        rich_help_panel=WORDS,
        show_default=False,
    ),
]
OneByOne = Annotated[
    bool,
    typer.Option(
        "--one-by-one",
        help="Under guidance, ask for both predictions one after the other: half the memory.",
        rich_help_panel=MACHINE,
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="WIDTHxHEIGHT",
        help="Pixels, of a model that takes several sizes.",
        rich_help_panel=WORDS,
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="The k-th picture has seed + k.", rich_help_panel=WORK)]
Batch = Annotated[int, typer.Option("--batch", help="Images a network call.", rich_help_panel=MACHINE)]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="cpu, cuda, cuda:1; by default cuda where there is one.",
        rich_help_panel=MACHINE,
        show_default=False,
    ),
]
DType = Annotated[str, typer.Option("--dtype", help=f"{', '.join(DTYPES)}: of the network.", rich_help_panel=MACHINE)]
Resize = Annotated[
    bool,
    typer.Option("--resize", help="Fit images of another size or number of channels.", rich_help_panel=FILES),
]
Columns = Annotated[
    int | None,
    typer.Option("--columns", min=1, help="Images a row of the sheet.", rich_help_panel=FILES, show_default=False),
]
Scale = Annotated[int, typer.Option("--scale", min=1, help="Pixels a pixel.", rich_help_panel=FILES)]
Each = Annotated[
    bool, typer.Option("--each", help="One file a picture too, in a folder beside the sheet.", rich_help_panel=FILES)
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="A folder, or a file; by default a file here that names its settings.",
        rich_help_panel=FILES,
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for machines.", rich_help_panel=MACHINE)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no report.", rich_help_panel=MACHINE)]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show where an error came from (or set DDIM_DEBUG=1).",
        callback=remember_debug,
        rich_help_panel=MACHINE,
    ),
]


def options_from(pairs: list[str] | None) -> dict[str, Any]:
    """``["gamma=0.96"]`` as a dict; the values stay text, the method knows their types.

    Raises:
        InputError: something that is not KEY=VALUE, or a key given twice.
    """
    out: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        key, value = key.strip().replace("-", "_"), value.strip()
        if not equals or not key or not value:
            raise InputError(f"{pair!r} is not KEY=VALUE; write for example gamma=0.96.", parameter="option")
        if key in out:
            raise InputError(f"{key} was given twice: {out[key]} and {value}.", parameter="option")
        out[key] = value
    return out


def check_bounds(clip: float | None, threshold: float | None) -> None:
    """Raises InputError where both ways to hold x0 are given."""
    if clip is not None and threshold is not None:
        raise InputError("it does not go with --threshold; give one of the two.", parameter="clip")


def weights_from(pairs: list[str] | None) -> dict[str, float]:
    """``["tiger=2"]`` as a dict.

    Raises:
        InputError: something that is not WORD=FACTOR, or a word given twice.
    """
    out: dict[str, float] = {}
    for pair in pairs or []:
        word, _, factor = (part.strip() for part in pair.rpartition("="))
        if not word or not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", factor):
            raise InputError(f"{pair!r} is not WORD=FACTOR; write for example tiger=2.", parameter="weight")
        if word in out:
            raise InputError(f"{word} was given twice.", parameter="weight")
        out[word] = float(factor)
    return out


def spacing_from(text: str | None) -> str | list[float] | None:
    """A spacing's name, or the list of t that ``900,500,100`` is.

    Raises:
        InputError: a list with something other than numbers in it.
    """
    if text is None or not re.match(r"\s*[-+.\d]", text):
        return text
    out = []
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
    return _by(text, "grid", f"{text!r} is not ROWSxCOLUMNS; write for example 7x7.")


def size_from(text: str | None) -> tuple[int, int] | None:
    """(height, width) in pixels of ``768x512``, which is written width first.

    Raises:
        InputError: anything else.
    """
    if text is None:
        return None
    width, height = _by(text, "size", f"{text!r} is not WIDTHxHEIGHT; write for example 768x512.")
    return height, width


def _by(text: str, parameter: str, sentence: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)\s*[xX×]\s*(\d+)", text.strip())
    if not match:
        raise InputError(sentence, parameter=parameter)
    return int(match[1]), int(match[2])


def range_from(text: str, option: str) -> tuple[float, float]:
    """(low, high) of ``0.2,0.8``; one number is the end of a range from 0.

    Raises:
        InputError: anything else.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise InputError(
            f"{text!r} is not a range; write for example 0,0.8.", parameter=option.removeprefix("--").replace("-", "_")
        )
    return (0.0, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])
