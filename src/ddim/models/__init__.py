"""Adapters from foreign formats; the only folder that imports diffusers at run time."""

from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DDIMError, InputError, UnknownName
from ..foreign import first_line, read_json
from .quiet import loading

if TYPE_CHECKING:
    import torch

    from .base import Model
    from .classifier import load_classifier
    from .features import load_features
    from .latent import LatentTextModel
    from .pixel import PixelModel

DTYPES = ("float32", "float64", "bfloat16", "float16")
TEXT_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
TEXT_PARTS = ("unet", "vae", "text_encoder")
_PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"}


def bundled_models() -> dict[str, Path]:
    """The models that the package carries: name to folder."""
    root = Path(str(resources.files("ddim.models"))) / "bundled"
    return {p.name: p for p in sorted(root.iterdir()) if (p / "model_index.json").is_file()}


def bundled_test_images(name: str) -> list[Path]:
    """Real pictures, never trained on, that the package carries beside a bundled model."""
    if name not in bundled_models():
        raise UnknownName("bundled model", name, bundled_models(), parameter="name")
    return sorted((bundled_models()[name] / "test_images").glob("*.png"))


def load(
    name: str | Path,
    *,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype" = "float32",
    compile: bool = False,
) -> "Model":
    """A model by the name of a bundled one, a folder in the diffusers format, or a hub id.

    Args:
        name: ``"fashion"`` or ``"emoji"``; a folder (a DDPM's or Stable Diffusion's pipeline, or a bare UNet2DModel);
            or ``owner/name`` on the hub.
        device: ``"cpu"``, ``"cuda"`` ...; by default cuda where there is one.
        dtype: what the network computes in: float32, float64, bfloat16 or float16.
        compile: have torch.compile translate the U-Net at its first call, which takes a minute or so for each size of
            batch; in float32 on a CPU it seldom pays (``benchmarks/NOTES.md``).

    Raises:
        InputError: no such model (the nearest is named), a format this version does not take, a pickle; ``compile``
            where there is no C++ compiler.
        DDIMError: the files are broken, or the hub cannot be reached.
    """
    from .quicken import need_compiler, quicken

    if not isinstance(name, (str, PathLike)):
        raise InputError(
            f"a {type(name).__name__} is neither the name of a model nor its folder, and that is what load takes.",
            parameter="model",
            hint="A pipeline's save_pretrained(folder) makes a folder; for a network of one's own there is "
            "ddim.from_network.",
        )
    where, dtype = where_and_what(device, dtype)
    if compile:
        need_compiler(where)
    bundled = bundled_models()
    source = str(bundled.get(str(name), name))
    folder = Path(source)
    if folder.is_file():
        what = "a pickle, which is never loaded" if folder.suffix.lower() in _PICKLES else "a single file"
        raise InputError(
            f"{source} is {what}; give a folder in the diffusers format (with safetensors weights).", parameter="model"
        )
    if not folder.is_dir() and (source.count("/") != 1 or source.startswith((".", "/"))):
        hint = "" if "/" not in source else f"There is no folder {source}. "
        also = "A folder in the diffusers format or a hub id (owner/name) will do too."
        raise UnknownName("model", str(name), bundled, hint=f"{hint}{also}")
    folder = folder if folder.is_dir() else _from_hub(source)
    if _kind(folder) in TEXT_PIPELINES:
        model = _load_text(str(name), folder, where, dtype)
    else:
        model = _load_pixel(str(name), folder, where, dtype)
    quicken(model, compile=compile)
    return model


def where_and_what(
    device: "str | torch.device | None", dtype: "str | torch.dtype"
) -> "tuple[torch.device, torch.dtype]":
    """A device, cuda by default where there is one, and a dtype. Raises InputError for one that is not to be had."""
    import torch

    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise UnknownName("dtype", dtype, DTYPES)
        dtype = getattr(torch, dtype)
    assert isinstance(dtype, torch.dtype)
    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UnknownName("device", str(device), ["cpu", "cuda", "mps"]) from None
    if where.type == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no CUDA device here; use 'cpu'.", parameter="device")
    return where, dtype


def _kind(folder: Path) -> str:
    """The pipeline's class that a folder names, or an empty text."""
    index = folder / "model_index.json"
    return str(read_json(index).get("_class_name", "")) if index.is_file() else ""


def _load_text(name: str, folder: Path, device: "torch.device", dtype: "torch.dtype") -> "LatentTextModel":
    try:
        with loading():
            from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    except (ImportError, RuntimeError):  # diffusers raises RuntimeError where transformers is missing
        raise InputError("A model with a text encoder needs transformers: pip install transformers.") from None
    from .latent import LatentTextModel

    weights = [p for part in TEXT_PARTS for p in (folder / part).glob("*.safetensors")]
    lacking = [part for part in TEXT_PARTS if not any(p.parent.name == part for p in weights)]
    if lacking:
        pickles = [p.name for p in (folder / lacking[0]).glob("*") if p.suffix in _PICKLES]
        what = f"only the pickle {pickles[0]}, which is never loaded" if pickles else "no weights"
        raise InputError(
            f"{folder / lacking[0]} holds {what}; a diffusers folder with .safetensors weights is needed.",
            parameter="model",
        )
    if not any((folder / "tokenizer").glob("*.*")):  # transformers would make an empty one in silence
        raise InputError(f"{folder} has no tokenizer; a whole diffusers folder is needed.", parameter="model")
    full = {p.parent.name for p in weights if ".fp16" not in p.name}
    half = {} if full == set(TEXT_PARTS) else {"variant": "fp16"}
    off = {"safety_checker": None, "feature_extractor": None, "image_encoder": None, "requires_safety_checker": False}
    with loading():
        try:
            pipeline = StableDiffusionPipeline.from_pretrained(
                str(folder), torch_dtype=dtype, use_safetensors=True, local_files_only=True, **half, **off
            )
        except Exception as error:  # diffusers, transformers and safetensors raise dozens of kinds
            raise DDIMError(f"{folder} cannot be loaded: {first_line(error)}.") from None
        pipeline.set_progress_bar_config(disable=True)
    return LatentTextModel(name, pipeline, device=device, dtype=dtype)


def _load_pixel(name: str, folder: Path, device: "torch.device", dtype: "torch.dtype") -> "PixelModel":
    from diffusers.models.unets.unet_2d import UNet2DModel

    from .pixel import PixelModel

    source = folder
    weights = folder / _unet_folder(folder)
    files = [p.name for p in weights.glob("*.safetensors")]
    if not files:
        pickles = [p.name for p in weights.iterdir() if p.suffix in _PICKLES]
        what = f"only the pickle {pickles[0]}, which is never loaded" if pickles else "no weights"
        raise InputError(
            f"{weights} holds {what}; a diffusers folder with .safetensors weights is needed.", parameter="model"
        )
    half = {"variant": "fp16"} if all(".fp16" in f for f in files) else {}
    with loading():
        try:
            network: Any = UNet2DModel.from_pretrained(str(weights), use_safetensors=True, **half)
        except Exception as error:  # diffusers and safetensors raise a dozen kinds; all of them mean this
            raise DDIMError(f"{source} cannot be loaded: {first_line(error)}.") from None
    # a pipeline's folder, or the older layout of google/ddpm-* with both configs side by side
    configs = (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json")
    scheduler = next((read_json(file) for file in configs if file.is_file()), {})
    return PixelModel(name, network, scheduler, device=device, dtype=dtype)


def _from_hub(name: str) -> Path:
    """The cached copy of a hub repository: its configs, and then the network's weights."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json"]))
        if _kind(folder) in TEXT_PIPELINES:
            weights = ["tokenizer/*", *(f"{part}/{file}" for part in TEXT_PARTS for file in _offered(name, part))]
        else:
            weights = [(_unet_folder(folder) / "*.safetensors").as_posix()]
        return Path(snapshot_download(name, allow_patterns=["*.json", *weights]))
    except InputError:
        raise
    except Exception as error:  # the hub's client raises a dozen kinds; all of them mean this
        raise DDIMError(
            f"{name!r} is neither bundled nor a folder here, and the hub gave no model of that name: "
            f"{first_line(error)}."
        ) from None


def _offered(name: str, part: str) -> list[str]:
    """Which weights of a pipeline's part to fetch: the full ones, or the fp16 variant where there are no others."""
    from huggingface_hub import list_repo_files

    files = [f.partition("/")[2] for f in list_repo_files(name) if f.startswith(f"{part}/")]
    tensors = [f for f in files if f.endswith(".safetensors") and "non_ema" not in f]
    return [f for f in tensors if ".fp16" not in f] or tensors


def _unet_folder(folder: Path) -> Path:
    """Where the UNet2DModel lies in a folder: ``unet``, or ``.`` where the folder itself is one."""
    for sub in (Path("unet"), Path()):
        file = folder / sub / "config.json"
        if file.is_file():
            kind = read_json(file).get("_class_name")
            if kind != "UNet2DModel":
                raise InputError(
                    f"{file.parent} is a {kind}; this version works on pixel models, whose network is a UNet2DModel.",
                    parameter="model",
                )
            return sub
    raise InputError(
        f"{folder} is not in the diffusers format: it has neither unet/config.json nor config.json.", parameter="model"
    )


def __getattr__(name: str) -> Any:
    if name == "load_classifier":  # needs torch
        from .classifier import load_classifier

        return load_classifier
    if name == "load_features":
        from .features import load_features

        return load_features
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["bundled_models", "bundled_test_images", "load", "load_classifier", "load_features"]
