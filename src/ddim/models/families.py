"""The registry of model families. To add a family, write its adapter in a file of its own and add a line here."""

from typing import TYPE_CHECKING

from .._utils.registry import Registry

if TYPE_CHECKING:
    from .base import Model

_PIXEL = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "ScoreSdeVePipeline", "KarrasVePipeline")
_STABLE_DIFFUSION = (
    *("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
    # pipelines with the same networks, which diffusers samples in other ways
    *("StableDiffusionPanoramaPipeline", "StableDiffusionSAGPipeline", "StableDiffusionAttendAndExcitePipeline"),
    *("StableDiffusionDiffEditPipeline", "StableDiffusionParadigmsPipeline", "StableDiffusionPipelineSafe"),
    *("SemanticStableDiffusionPipeline", "CycleDiffusionPipeline"),
    *("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
)
_SDXL = (
    *("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
    # pipelines with the same networks, which diffusers samples in other ways
    *("StableDiffusionXLPAGPipeline", "StableDiffusionXLPAGImg2ImgPipeline", "LEditsPPPipelineStableDiffusionXL"),
)
_FLUX = ("FluxPipeline", "FluxImg2ImgPipeline")
_CHROMA = ("ChromaPipeline", "ChromaImg2ImgPipeline")
_SD3 = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3PAGPipeline")
_QWEN_IMAGE = ("QwenImagePipeline", "QwenImageImg2ImgPipeline")
_Z_IMAGE = ("ZImagePipeline", "ZImageImg2ImgPipeline")
_LUMINA_2 = ("Lumina2Pipeline", "Lumina2Text2ImgPipeline")  # the second is its older name

FAMILIES: "Registry[Model]" = Registry(
    {
        **dict.fromkeys(_PIXEL, "models.pixel:PixelModel"),
        **dict.fromkeys(_STABLE_DIFFUSION, "models.sd:StableDiffusion"),
        **dict.fromkeys(_SDXL, "models.sdxl:StableDiffusionXL"),
        **dict.fromkeys(_SD3, "models.sd3:StableDiffusion3"),
        **dict.fromkeys(_FLUX, "models.flux:Flux"),
        "FluxKontextPipeline": "models.flux:FluxKontext",
        "Flux2KleinPipeline": "models.flux2:Flux2Klein",
        **dict.fromkeys(_CHROMA, "models.chroma:Chroma"),
        **dict.fromkeys(_QWEN_IMAGE, "models.qwen_image:QwenImage"),
        **dict.fromkeys(_Z_IMAGE, "models.z_image:ZImage"),
        **dict.fromkeys(_LUMINA_2, "models.lumina2:Lumina2"),
        "SanaPipeline": "models.sana:Sana",
    }
)
"""Name of a pipeline class of diffusers -> the adapter for its models."""
