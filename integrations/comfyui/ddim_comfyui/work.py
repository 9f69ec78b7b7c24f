"""What the nodes do, on a model that can be asked; nothing here imports ComfyUI."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ddim
from ddim import (
    AttentionEdit,
    Conditioning,
    DDIMWarning,
    Guidance,
    InputError,
    LatentCode,
    PromptConditioning,
    ReversibleSolver,
)
from ddim._utils.choices import ATTENTIONS
from ddim.editing.tokens import Tokens
from ddim.pipelines.pictures import Pictures

from .conditions import name_of
from .model import ComfyModel
from .noise import CodeNoise
from .schedules import sigmas_of, times_of

TUNED = ("null-text", "spd")
"""Inversions that optimize by gradients, which ComfyUI's networks do not give: they are loaded in inference mode."""
KINDS = ("none", *(kind for kind in ATTENTIONS if kind != "none"))
"""The kinds of attention control, which work on ComfyUI's U-Nets."""
OF_WORDS = ("refine", "replace")
"""Those that align the words of two prompts."""


def methods() -> list[str]:
    """Returns the inversions that the nodes offer, those that are exact to the bit first."""
    exact = {name: isinstance(ddim.make_inversion(name), ReversibleSolver) for name in ddim.inversion_names()}
    return sorted((name for name in exact if name not in TUNED), key=lambda name: not exact[name])


@contextmanager
def warnings_logged() -> Iterator[None]:
    """Inside the block, warnings of the library go to ComfyUI's log."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DDIMWarning)
        yield
    for one in caught:
        if issubclass(one.category, DDIMWarning):
            logging.warning("ddim: %s", one.message)


# --- latents ----------------------------------------------------------------------------------------------------------


def samples_of(latent: Mapping[str, Any]) -> Tensor:
    """Returns the samples of a LATENT as [N, C, h, w], float32.

    Raises:
        InputError: it is a video or a sound.
    """
    samples: Tensor = latent["samples"]
    if samples.ndim == 5 and samples.shape[2] == 1:
        samples = samples.squeeze(2)
    if samples.ndim != 4:
        raise InputError(
            f"it has the shape {tuple(samples.shape)}, and the nodes invert pictures, [N, C, h, w]; encode a picture.",
            parameter="latent",
        )
    return samples.float()


def latent_of(samples: Tensor, model: ComfyModel) -> dict[str, Tensor]:
    """Returns a LATENT of latents [N, C, h, w], with the axis of frames that the model's family has."""
    video = getattr(model.latent_format, "latent_dimensions", 2) == 3
    return {"samples": samples.unsqueeze(2) if video else samples}


def picture_from(image: Any, side: int, multiple: int = 8) -> tuple[Tensor, Tensor]:
    """Reads a PIL image as ComfyUI holds pictures.

    Args:
        image: the image; its EXIF orientation is applied.
        side: the longer side in pixels that it is scaled to; 0 keeps its size.
        multiple: both sides are cropped around the centre to a multiple of this.

    Returns:
        IMAGE [1, H, W, 3] in [0, 1], on white where it is transparent; MASK [1, H, W], 1 where it is transparent.

    Raises:
        InputError: a side is shorter than ``multiple``.
    """
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image).convert("RGBA")
    if side:
        factor = side / max(upright.size)
        width, height = (max(1, round(n * factor)) for n in upright.size)
        upright = upright.resize((width, height), Image.Resampling.LANCZOS)
    width, height = (n // multiple * multiple for n in upright.size)
    if not width or not height:
        raise InputError(
            f"{upright.size[0]}x{upright.size[1]} is smaller than {multiple} pixels; use a larger one, or set size.",
            parameter="image",
        )
    left, top = (upright.size[0] - width) // 2, (upright.size[1] - height) // 2
    upright = upright.crop((left, top, left + width, top + height))
    pixels = torch.frombuffer(bytearray(upright.tobytes()), dtype=torch.uint8).reshape(height, width, 4).float() / 255
    shown = pixels[..., 3:]
    return (pixels[..., :3] * shown + 1 - shown)[None], 1 - shown[None, ..., 0]


# --- inversion --------------------------------------------------------------------------------------------------------


class Inverted(NamedTuple):
    """What an inversion gives.

    Attributes:
        code: the code.
        latents: the latents that the code reconstructs: those that were inverted, for an exact method on its lattice.
        noise: what ComfyUI's sampler starts from at the noisy end.
        sigmas: from the noisy end to the image, [S + 1].
    """

    code: LatentCode
    latents: Tensor
    noise: CodeNoise
    sigmas: Tensor


def need_negative(guidance: float, negative: object) -> None:
    """Raises InputError for a weight of guidance that has nothing to lead away from."""
    if guidance != 1 and negative is None:
        raise InputError(
            f"{guidance:g} leads away from a negative prompt, and none is connected; connect one, or use 1.",
            parameter="guidance",
        )


def invert(
    model: ComfyModel,
    samples: Tensor,
    *,
    method: str,
    steps: int,
    guidance: float,
    sigmas: Tensor | None,
    seed: int = 0,
    on_event: Any,
) -> Inverted:
    """Inverts latents.

    Args:
        model: the model, with the one condition of all images.
        samples: [N, C, h, w].
        method: one of ``methods()``.
        steps: the number of steps; ignored with ``sigmas``.
        guidance: the weight of guidance, both ways.
        sigmas: the noise levels, [S + 1]; None takes the model's own for this many steps.
        seed: for methods that draw noise.
        on_event: see ``ddim.invert``.

    Raises:
        InputError: the levels or the guidance cannot be used; and what ``ddim.invert`` raises.
    """
    need_negative(guidance, model.negative)
    (name,) = model.prompts
    spacing = None if sigmas is None else times_of(model.schedule.path, sigmas)
    weight = None if guidance == 1 else guidance
    settings = {"method": method, "steps": steps, "spacing": spacing, "seed": seed}
    code = ddim.invert(model, Pictures(samples), prompt=name, guidance=weight, on_event=on_event, **settings)
    solver = ddim.make_solver(code.solver, code.options)
    latents, first = samples.cpu(), 0
    if isinstance(solver, ReversibleSolver):
        x0 = model.encode(samples)
        data = solver.on_lattice(dict.fromkeys(solver.keys, x0), code.grid, code.grid.steps)
        latents, first = model.decode(data.entry("x")), solver.first(code.grid)
    node = code.grid[first]
    x = model.levels.sample(code.floats["x"].to(model.device), node).cpu()
    noise = CodeNoise(x, model.levels.sigma(node), model.patcher)
    return Inverted(code, latents, noise, sigmas_of(model.levels, list(code.grid)[first:]))


# --- edits ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Control:
    """What the node for attention and masks gives to the node that edits.

    Attributes:
        kind: one of ``KINDS``.
        cross_until, self_until: until which part of the steps maps are taken over; None is that of the kind.
        mask: MASK [N, H, W], 1 where the picture may change; None without one.
        auto_mask: whether the target changes only where the predictions differ.
        words: the tokens of the source's and of the target's text; None without a text encoder.
        blend: words that the change is limited to, ``source/target``, or ``auto``; empty for none.
    """

    kind: str = "none"
    cross_until: float | None = None
    self_until: float | None = None
    mask: Tensor | None = None
    auto_mask: bool = False
    words: tuple[Tokens, Tokens] | None = None
    blend: str = ""

    def __post_init__(self) -> None:
        if self.words is None and (self.kind in OF_WORDS or self.blend):
            what = f"the kind {self.kind!r}" if self.kind in OF_WORDS else f"the blend {self.blend!r}"
            raise InputError(
                f"{what} needs the words of both prompts; connect clip, and write source_text and target_text.",
                parameter="clip",
            )
        self.edit()  # raises now, and not after an inversion

    def edit(self) -> AttentionEdit:
        """Returns the settings of attention control. Raises InputError for settings that do not go together."""
        ends = {"cross_steps": self.cross_until, "self_steps": self.self_until}
        windows: dict[str, Any] = {name: (0.0, end) for name, end in ends.items() if end is not None}
        return AttentionEdit(self.kind, **windows)


def control_words(clip: Any, text: str, parameter: str) -> Tokens:
    """Reads a prompt as the tokens that ComfyUI's CLIP makes of it.

    ComfyUI numbers the parts of a prompt that have one weight, and no words. So each word is tokenized alone, and the
    tokens of the whole prompt must be those of its words, one after the other.

    Args:
        clip: the CLIP.
        text: the prompt.
        parameter: the input of the node that has it, for an error.

    Raises:
        InputError: the text encoder is no CLIP, or the tokens cannot be assigned to words.
    """
    made = clip.tokenize(text)
    key = next((key for key in ("l", "h", "g") if key in made), None)
    if key is None:
        raise InputError(
            f"the text encoder makes tokens of {', '.join(made)}, and only those of CLIP are read; use the kind "
            "'masactrl' or 'none', which need no words.",
            parameter="clip",
        )
    end = _ids(clip.tokenize("")[key][0])[1]
    words, spans, inner = tuple(text.split()), list[tuple[int, int]](), list[int]()
    for word in words:
        own = _between(_ids(clip.tokenize(word)[key][0]), end)
        spans.append((1 + len(inner), 1 + len(inner) + len(own)))
        inner += own
    row = _ids(made[key][0])
    if len(made[key]) > 1 or _between(row, end) != inner:
        raise InputError(
            f"{text!r} has other tokens than its {len(words)} words, or too many of them; write plain words that fit "
            "one part of a prompt.",
            parameter=parameter,
        )
    stop = 1 + len(inner)
    return Tokens(text, words, tuple(row), tuple(spans), 0, 1, stop, min(stop + 1, len(row)))


def _ids(row: Sequence[Any]) -> list[int]:
    """Returns the ids of a row of ComfyUI's tokens (id, weight, ...); -1 for a vector of textual inversion."""
    return [one[0] if isinstance(one[0], int) else -1 for one in row]


def _between(row: list[int], end: int) -> list[int]:
    """Returns what stands between the start token of a row and its end token."""
    return row[1 : row.index(end, 1)]


class EditedLatents(NamedTuple):
    """The latents of an edit, and those of its source, [N, C, h, w] each."""

    edits: Tensor
    reconstruction: Tensor


def code_with_negative(code: LatentCode, negative: Conditioning | None, parameter: str = "negative") -> LatentCode:
    """Returns a code with this negative condition, if it was inverted without guidance and so without its own.

    Raises:
        InputError: the code was inverted under guidance, and needs its own.
    """
    if negative is None:
        return code
    if code.guidance.get("weight", 1.0) != 1:
        raise InputError(
            f"the code was inverted at the guidance {code.guidance['weight']:g} with a negative prompt of its own; "
            "disconnect this one.",
            parameter=parameter,
        )
    rows = Conditioning.cat([negative] * len(code))
    return replace(code, conditions=PromptConditioning(code.conditions.cond, rows))


def source_names(code: LatentCode) -> dict[str, Conditioning]:
    """Returns the conditions of a code's images by their prompts, which are their names, on the CPU."""
    rows = [code.conditions.cond[k : k + 1].to("cpu") for k in range(len(code))]
    return dict(zip(code.prompts or map(name_of, rows), rows, strict=True))


def negative_of(code: LatentCode) -> Conditioning | None:
    """Returns the negative condition of a code's first image, on the CPU; None if it has none."""
    return None if code.conditions.uncond is None else code.conditions.uncond[:1].to("cpu")


def edit(
    model: ComfyModel,
    code: LatentCode,
    target: Conditioning,
    *,
    guidance: float,
    strength: float,
    control: Control,
    on_event: Any,
) -> EditedLatents:
    """Edits the images of a code to a target condition; see ``ddim.edit``.

    Args:
        model: the model, with the conditions of the code and the target.
        code: the code.
        target: the condition of what the images are to show.
        guidance: the weight of guidance of the target.
        strength: how far the edit may go, in [0, 1].
        control: attention control and mask.
        on_event: see ``ddim.edit``.
    """
    need_negative(guidance, code.conditions.uncond)
    mask = (
        None if control.mask is None else mask_for(control.mask, (code.state["x"].shape[2], code.state["x"].shape[3]))
    )
    made = ddim.edit(
        model,
        code,
        name_of(target),
        guidance=Guidance(guidance),
        strength=None if strength == 1 else strength,
        attention=control.edit(),
        blend=control.blend or None,
        mask=mask,
        auto_mask="difference" if control.auto_mask else None,
        on_event=on_event,
    )
    return EditedLatents(made.edits[:, 0], made.reconstruction)


def mask_for(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Brings a MASK [N, H, W] to the size of the latents: the mean over the area of each position."""
    masks = mask.float().reshape(-1, 1, *mask.shape[-2:])
    small = torch.nn.functional.adaptive_avg_pool2d(masks, size).clamp(0, 1)[:, 0].cpu()
    return small[0] if len(small) == 1 else small


# --- comparison -------------------------------------------------------------------------------------------------------


class Compared(NamedTuple):
    """A comparison: whether every bit is equal, a sentence, and the absolute difference as IMAGE [N, H, W, 3]."""

    equal: bool
    sentence: str
    difference: Tensor


def compare(a: Tensor | Mapping[str, Any], b: Tensor | Mapping[str, Any]) -> Compared:
    """Compares two IMAGEs or two LATENTs.

    Raises:
        InputError: one is an IMAGE and the other a LATENT, or their shapes differ.
    """
    latents = [not isinstance(one, Tensor) for one in (a, b)]
    if latents[0] != latents[1]:
        raise InputError("a LATENT cannot be compared with an IMAGE; decode it first.", parameter="b")
    first, second = (one.cpu() if isinstance(one, Tensor) else one["samples"].cpu() for one in (a, b))
    if first.shape != second.shape:
        raise InputError(
            f"{tuple(second.shape)} is another shape than {tuple(first.shape)} of a; compare pictures of one size.",
            parameter="b",
        )
    apart = (first.double() - second.double()).abs()
    equal, largest = torch.equal(first, second), float(apart.max())
    if equal:
        sentence = f"exact: all {first.numel()} numbers are equal to the bit"
    else:
        span = 1.0 if not latents[0] else float(first.max() - first.min())
        decibels = 10 * torch.log10(span**2 / apart.square().mean())
        sentence = f"not exact: PSNR {float(decibels):.2f} dB, largest difference {largest:.3g}"
    if latents[0]:  # the mean over the channels, of the first frame
        apart = apart.mean(1, keepdim=True)
        apart = (apart[:, :, 0] if apart.ndim == 5 else apart).movedim(1, -1)
    shown = (apart / largest if largest else apart).float()
    return Compared(equal, sentence, shown.expand(*shown.shape[:-1], 3) if shown.shape[-1] == 1 else shown)
