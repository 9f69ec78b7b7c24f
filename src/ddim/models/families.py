"""The registry of model families: adding one is a file and a line here."""

from typing import TYPE_CHECKING

from .._utils.registry import Registry

if TYPE_CHECKING:
    from .base import Model

_PIXEL = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline")
_STABLE_DIFFUSION = (
    *("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
    # the same networks, which diffusers samples otherwise
    *("StableDiffusionPanoramaPipeline", "StableDiffusionSAGPipeline", "StableDiffusionAttendAndExcitePipeline"),
    *("StableDiffusionDiffEditPipeline", "StableDiffusionParadigmsPipeline", "StableDiffusionPipelineSafe"),
    *("SemanticStableDiffusionPipeline", "CycleDiffusionPipeline"),
)
_SDXL = (
    *("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
    # the same networks, which diffusers samples otherwise
    *("StableDiffusionXLPAGPipeline", "StableDiffusionXLPAGImg2ImgPipeline", "LEditsPPPipelineStableDiffusionXL"),
)

FAMILIES: "Registry[Model]" = Registry(
    {
        **dict.fromkeys(_PIXEL, "models.pixel:PixelModel"),
        **dict.fromkeys(_STABLE_DIFFUSION, "models.sd:StableDiffusion"),
        **dict.fromkeys(_SDXL, "models.sdxl:StableDiffusionXL"),
    }
)
"""A pipeline's class -> the adapter that serves it."""
