"""Tiny random pipelines of models that are distilled to a few steps, and how each of them samples."""

from collections.abc import Callable
from typing import Any

import diffusers
import tiny_sdxl
import tiny_text
import torch

NARROW = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def lcm_unet(pipeline: Any, width: int = 10) -> Any:
    """Gives the U-Net the layer that takes an embedded guidance scale, and lets it listen to it."""
    config = {key: value for key, value in pipeline.unet.config.items() if not key.startswith("_")}
    unet = type(pipeline.unet)(**{**config, "time_cond_proj_dim": width}).eval()
    unet.load_state_dict(pipeline.unet.state_dict(), strict=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet.time_embedding.cond_proj.weight.data.normal_(0, 1)
    pipeline.unet = unet
    return pipeline


def with_scheduler(pipeline: Any, kind: str, **config: Any) -> Any:
    pipeline.scheduler = getattr(diffusers, kind)(**{**NARROW, **config})
    return pipeline


def sd(kind: str, **config: Any) -> Any:
    return with_scheduler(tiny_text.pipeline(), kind, **config)


def xl(kind: str, **config: Any) -> Any:
    return with_scheduler(tiny_sdxl.pipeline(), kind, **config)


def lcm_sd(kind: str = "LatentConsistencyModelPipeline") -> Any:
    made = lcm_unet(sd("LCMScheduler"))
    if kind == "LatentConsistencyModelPipeline":
        made = diffusers.LatentConsistencyModelPipeline(**made.components, requires_safety_checker=False)
        made.set_progress_bar_config(disable=True)
    return made


EULER, ANCESTRAL = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"
TRAILING = {"timestep_spacing": "trailing"}
FEW_STEP: dict[str, tuple[Callable[[], Any], str, dict[str, Any], dict[str, Any]]] = {
    "sd lcm": (lambda: sd("LCMScheduler"), "lcm", {}, {}),
    "sd lcm, v": (lambda: sd("LCMScheduler", prediction_type="v_prediction"), "lcm", {}, {}),
    "sd lcm, another boundary": (lambda: sd("LCMScheduler", timestep_scaling=5e-4), "lcm", {"scaling": 5e-4}, {}),
    "sd lcm embedded": (lcm_sd, "lcm", {}, {}),
    "sd lcm embedded, own pipeline": (lambda: lcm_sd("StableDiffusionPipeline"), "lcm", {}, {}),
    "sdxl lcm": (lambda: xl("LCMScheduler"), "lcm", {}, {}),
    "sdxl lcm embedded": (lambda: lcm_unet(xl("LCMScheduler")), "lcm", {}, {}),
    "sd tcd": (lambda: sd("TCDScheduler"), "tcd", {"gamma": 0.3}, {"eta": 0.3}),
    "sdxl tcd": (lambda: xl("TCDScheduler"), "tcd", {"gamma": 0.3}, {"eta": 0.3}),
    "sdxl tcd, gamma 1": (lambda: xl("TCDScheduler"), "tcd", {"gamma": 1.0}, {"eta": 1.0}),
    "sdxl tcd, gamma 0": (lambda: xl("TCDScheduler"), "ddim", {}, {"eta": 0.0}),
    "sd turbo": (lambda: sd(EULER, **TRAILING), "ddim", {}, {}),
    "sdxl turbo": (lambda: xl(ANCESTRAL, **TRAILING), "ddim", {"eta": 1.0}, {}),
    "sdxl lightning": (lambda: xl(EULER, **TRAILING), "ddim", {}, {}),
    "sdxl lightning, one step": (lambda: xl(EULER, prediction_type="sample", **TRAILING), "ddim", {}, {}),
    "sdxl hyper-sd": (lambda: xl("DDIMScheduler", clip_sample=False, **TRAILING), "ddim", {}, {"eta": 0.0}),
}
"""Row -> what makes the pipeline, our solver, its options, and the same as arguments of the pipeline."""
