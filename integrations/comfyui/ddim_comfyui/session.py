"""Runs the library inside ComfyUI's own sampling, so that whatever ComfyUI loads is asked as its samplers ask it.

``CFGGuider.sample`` loads the model with its LoRAs and patches, runs the callbacks of extensions, and calls a sampler.
Here the sampler is the library: it asks the network through ``calc_cond_batch``, as ``KSampler`` does.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddim import StepEvent

from .attention import Patches
from .model import Ask

T = TypeVar("T")


def run_inside(patcher: Any, shape: tuple[int, ...], work: Callable[[Ask], T]) -> T:
    """Calls ``work(ask)`` inside ComfyUI's sampling, and returns what it returns.

    Args:
        patcher: the MODEL.
        shape: the shape of the latents, with which ComfyUI estimates the memory.
        work: what is done; ``ask`` is valid during the call only.
    """
    import comfy.samplers  # type: ignore[import-not-found]

    result: list[T] = []

    class Library(comfy.samplers.Sampler):
        """Stands where a sampler stands."""

        def sample(self, guider: Any, sigmas: Tensor, extra: dict[str, Any], *others: Any, **named: Any) -> Any:
            result.append(work(_asking(guider.inner_model, extra["model_options"])))
            return torch.zeros(shape)

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds([], [])
    empty = torch.zeros(shape)
    guider.sample(empty, empty, Library(), torch.tensor([1.0, 0.0]), disable_pbar=True)
    return result[0]


def _asking(base: Any, options: dict[str, Any]) -> Ask:
    """Returns what asks a loaded model; see ``Ask``."""
    import comfy.model_management  # type: ignore[import-not-found]
    import comfy.sampler_helpers  # type: ignore[import-not-found]
    import comfy.samplers  # type: ignore[import-not-found]

    def ask(x: Tensor, sigma: Tensor, entries: list[Any], branch: str, patches: Patches | None) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        place = 1 if branch == "uncond" else 0
        key = ("positive", "negative")[place]
        conds = {key: comfy.sampler_helpers.convert_cond(entries)}
        empty = torch.zeros_like(x)
        made = comfy.samplers.process_conds(base, empty, conds, x.device, latent_image=empty)[key]
        both: Any = [made if k == place else None for k in range(2)]
        return comfy.samplers.calc_cond_batch(base, both, x, sigma, _with(options, patches))[place]

    return ask


def _with(options: dict[str, Any], patches: Patches | None) -> dict[str, Any]:
    """Returns the model's options with the attention of one call, and with an attention that repeats its bits."""
    transformer = dict(options.get("transformer_options", {}))
    if patches is not None:
        transformer["patches_replace"] = {**transformer.get("patches_replace", {}), **patches}
    if (steady := _steady_attention()) is not None:
        transformer.setdefault("optimized_attention_override", steady)
    return {**options, "transformer_options": transformer}


def _steady_attention() -> Callable[..., Tensor] | None:
    """Returns torch's attention in place of one that cuts its work by the memory that is free; None for others.

    The pieces decide the last bits of the result, so that an exact reconstruction could not repeat them.
    """
    from comfy.ldm.modules import attention  # type: ignore[import-not-found]

    if attention.optimized_attention not in (attention.attention_sub_quad, attention.attention_split):
        return None

    def instead(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return attention.attention_pytorch(*args, **kwargs)

    return instead


def engine() -> str:
    """Returns what computes the attention, and in which version of ComfyUI: what decides the last bits."""
    import comfyui_version  # type: ignore[import-not-found]
    from comfy.ldm.modules import attention  # type: ignore[import-not-found]

    name = "attention_pytorch" if _steady_attention() is not None else attention.optimized_attention.__name__
    return f"ComfyUI {comfyui_version.__version__}, {name}"


@contextlib.contextmanager
def progress() -> Iterator[Callable[[Any], None]]:
    """A context that gives an ``on_event`` for the library, which moves ComfyUI's progress bar."""
    import comfy.utils  # type: ignore[import-not-found]

    bar = comfy.utils.ProgressBar(1)

    def on_event(event: Any) -> None:
        if isinstance(event, StepEvent):
            bar.update_absolute(event.done, event.total)

    yield on_event
