"""Loads models in the formats of diffusers and transformers, behind the library's own interface ``Model``."""

from collections.abc import Callable, Mapping
from importlib import resources
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._utils.error_text import reason_of
from .._utils.errors import DDIMError, InputError, UnknownName
from .device import DTYPES, device_and_dtype

if TYPE_CHECKING:
    import torch

    from .additions import LoraFiles, WordFiles
    from .base import Model
    from .classifier import load_classifier
    from .features import load_features


def bundled_models() -> dict[str, Path]:
    """Returns the models that the package contains: name -> folder."""
    root = Path(str(resources.files("ddim.models"))) / "bundled"
    return {p.name: p for p in sorted(root.iterdir()) if (p / "model_index.json").is_file()}


def bundled_test_images(name: str) -> list[Path]:
    """Returns the files of real pictures that a bundled model was not trained on.

    Args:
        name: a bundled model; `fashion-classes` has the same pictures as `fashion`, and `emoji-flow` as `emoji`.

    Raises:
        InputError: there is no bundled model of this name.
    """
    return sorted((pictures_folder(name) / "test_images").glob("*.png"))


def pictures_folder(name: str) -> Path:
    """Returns the folder with ``test_images`` and ``pictures.csv`` for a bundled model.

    It is that of the model itself, or of the model whose name begins its own, which was trained on the same data.

    Raises:
        InputError: there is no bundled model of this name.
    """
    bundled = bundled_models()
    if name not in bundled:
        raise UnknownName("bundled model", name, bundled, parameter="name")
    return bundled[name if (bundled[name] / "test_images").is_dir() else name.partition("-")[0]]


def load(
    model: "str | Path | Any",
    *,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype | None" = None,
    compile: bool = False,
    tf32: bool | None = None,
    low_memory: bool = False,
    lora: "LoraFiles | None" = None,
    textual_inversion: "WordFiles | None" = None,
    variant: str | None = None,
    config: "str | PathLike[str] | None" = None,
) -> "Model":
    """Loads a model: a bundled one, a folder in the diffusers format, a model on the hub, or a pipeline object.

    Args:
        model: the name of a bundled model, such as ``"fashion"`` or ``"emoji"``; a folder (of a pipeline, or of a
            UNet2DModel alone, or a ``checkpoint-N`` in the folder of a training run's pipeline); ``owner/name`` or
            ``owner/name/folder`` on the Hugging Face hub; a single .safetensors file in the layout of the original
            repository, such as those of Stable Diffusion, which needs accelerate; or a pipeline object of diffusers,
            which may have LoRAs, be quantised or be offloaded. A pipeline object is not reloaded, moved or cast.
        device: ``"cpu"``, ``"cuda"``, ...; by default cuda if available. Must be None for a pipeline object.
        dtype: the dtype that the network computes in: float32 (the default), float64, bfloat16 or float16. Must be
            None for a pipeline object.
        compile: compile the U-Net with torch.compile at its first call, which takes about a minute for each batch
            size; in float32 on a CPU it rarely pays (see ``benchmarks/NOTES.md``).
        tf32: whether a CUDA device computes convolutions and matrix products in float32 with TF32, which is faster and
            has 10 bits of precision; by default as torch is set. Exact methods stay exact either way.
        low_memory: needs less memory and more time: both branches of guidance are evaluated one after the other, the
            autoencoder works on one image at a time and on tiles of large ones, and on a CUDA device each network is
            there only while it computes (accelerate's model offload). Must be False for a pipeline object, which
            has methods of its own for this.
        lora: LoRA adapters for a text-to-image model, as safetensors files: a file, a mapping from files to scales, or
            a sequence of files and of pairs (file, scale). In place of a file, a folder that contains one, or one on
            the hub: ``owner/name`` or ``owner/name/file.safetensors``. The scale is 1 by default. Needs peft.
        textual_inversion: words of textual inversion for Stable Diffusion 1, 2 and XL, as safetensors files: a file,
            several, or a mapping from files to the words that prompts contain. By default the word is the one that the
            file names, and otherwise the name of the file.
        variant: the variant of the weights, such as ``"fp16"`` or ``"non_ema"``; parts that lack it are loaded in full
            precision. By default full precision, or a variant if that is all there is.
        config: for a single file, the folder of a diffusers pipeline with the configs, the tokenizers and the
            scheduler, and with the weights of those parts that the file lacks; or a hub id. By default the configs that
            diffusers knows for such a file, if they are in the hub's cache.

    Returns:
        The model, ready for ``ddim.sample``, ``ddim.invert`` and the other functions.

    Raises:
        InputError: there is no such model (the most similar name is suggested), its format is not supported, its
            weights are pickles, ``compile`` finds no C++ compiler, ``tf32`` is set for another device than CUDA, a LoRA
            or an embedding does not fit the model, or a pipeline object comes with a device, dtype, LoRA or embedding.
        DDIMError: the files are damaged, or the hub cannot be reached.
    """
    from .additions import additions_of
    from .engine.optimize import optimize, require_compiler
    from .families import FAMILIES
    from .loading import Loading
    from .model_folder import check_variant, check_variant_name, pipeline_class
    from .single_file import single_file

    if not isinstance(model, (str, PathLike)):
        options = {"device": device, "dtype": dtype, "compile": compile or None, "low_memory": low_memory or None}
        options |= {"lora": lora, "textual_inversion": textual_inversion, "variant": variant, "config": config}
        return _with_tf32(_live(model, options), tf32)
    where, what = device_and_dtype(device, "float32" if dtype is None else dtype)
    if compile:
        require_compiler(where)
    single = _is_file(model)
    _refuse_idle(single, variant, config)
    check_variant_name(variant)
    additions = additions_of(lora, textual_inversion)

    def adapter_of(folder: Path) -> "type[Model]":
        adapter = FAMILIES[pipeline_class(folder) or "DDPMPipeline"]
        adapter.check_additions(str(model), additions)
        return adapter

    file = single_file(Path(model), config) if single else None
    folder = _folder_of(model, variant, adapter_of) if file is None else file.config
    if variant is not None:
        check_variant(folder, variant)
    adapter = adapter_of(folder)
    try:
        made = adapter.from_folder(str(model), folder, Loading(where, what, low_memory, additions, variant, file))
    except (ImportError, RuntimeError) as error:  # diffusers raises RuntimeError if transformers is not installed
        if find_spec("transformers") is None:
            raise InputError("a model with a text encoder needs transformers: pip install transformers.") from None
        raise DDIMError(f"{folder} cannot be loaded: {reason_of(error)}", parameter="model") from None
    except (DDIMError, Warning):
        raise
    except Exception as error:  # a config may hold any value, and diffusers raises errors of any type for it
        raise DDIMError(f"{model} cannot be loaded: {reason_of(error)}", parameter="model") from None
    optimize(made, compile=compile)
    return _with_tf32(made, tf32)


def _is_file(model: "str | PathLike[str]") -> bool:
    """Whether a model is a single file. Raises InputError for a .safetensors file that is not there."""
    path, bundled = Path(model), bundled_models()
    if str(model) in bundled or path.is_file():
        return str(model) not in bundled
    if path.suffix.lower() == ".safetensors" and not path.is_dir():
        beside = path.parent.glob("*.safetensors") if path.parent.is_dir() else ()
        known = [*bundled, *(str(file) for file in beside)]
        raise UnknownName("model", str(model), known, hint=f"There is no file {path}.")
    return False


def _refuse_idle(single: bool, variant: str | None, config: object) -> None:
    """Raises InputError for an option that has no effect on a single file, or only there."""
    if single and variant is not None:
        raise InputError("a single file has no variants; leave it out.", parameter="variant")
    if not single and config is not None:
        raise InputError("it goes with a single .safetensors file; a folder has its own configs.", parameter="config")


def _with_tf32(model: "Model", tf32: bool | None) -> "Model":
    """Sets ``Model.tf32``. Raises InputError if it would have no effect."""
    if tf32 is not None and model.device.type != "cuda":
        raise InputError(
            f"TF32 is a mode of CUDA devices, and the model is on {str(model.device)!r}; leave it out.",
            parameter="tf32",
        )
    model.tf32 = tf32
    return model


def _live(pipeline: object, options: "Mapping[str, object]") -> "Model":
    """Wraps a pipeline object of diffusers. Raises InputError if one of the options of ``load`` is not None."""
    from .families import FAMILIES
    from .model_folder import part_of_family, refuse_pipeline

    kind = type(pipeline).__name__
    if part := part_of_family(kind):
        raise InputError(
            f"a {kind} is only the {part} of a pipeline; give the whole pipeline object, or its folder.",
            parameter="model",
        )
    if not hasattr(pipeline, "components") or not hasattr(pipeline, "scheduler"):
        raise InputError(
            f"a {kind} is neither the name of a model, nor a folder, nor a diffusers pipeline.",
            parameter="model",
            hint="To wrap your own network, use ddim.Model.from_network.",
        )
    if not_none := next((name for name, value in options.items() if value is not None), None):
        own = {
            "low_memory": "; call pipeline.enable_model_cpu_offload() and pipeline.vae.enable_tiling()",
            "lora": "; call pipeline.load_lora_weights() and pipeline.set_adapters()",
            "textual_inversion": "; call pipeline.load_textual_inversion()",
        }.get(not_none, "")
        raise InputError(f"a {kind} object is not moved, cast or changed; leave it out{own}.", parameter=not_none)
    if kind not in FAMILIES:
        refuse_pipeline(kind, f"the pipeline is a {kind}")
    return FAMILIES[kind].from_pipeline(pipeline)


def _folder_of(model: "str | PathLike[str]", variant: str | None, check: "Callable[[Path], object]") -> Path:
    """Returns the folder with a model's files: a bundled one, a folder of the user's, or one in the hub's cache.

    Args:
        model: its name.
        variant, check: as for ``from_hub``.
    """
    from .hub import from_hub

    bundled = bundled_models()
    source = str(bundled.get(str(model), model))
    folder = Path(source)
    if folder.is_dir():
        return folder
    parts = source.split("/")
    # A path whose beginning exists here is mistyped, and no folder inside a repository.
    if len(parts) < 2 or not all(parts) or parts[0] in (".", "..", "~") or (len(parts) > 2 and Path(parts[0]).is_dir()):
        hint = "" if "/" not in source else f"There is no folder {source}. "
        also = "A folder in the diffusers format or a hub id (owner/name) is accepted too."
        raise UnknownName("model", str(model), bundled, hint=f"{hint}{also}")
    return from_hub(source, variant, check)


def __getattr__(name: str) -> Any:
    if name == "load_classifier":  # needs torch
        from .classifier import load_classifier

        return load_classifier
    if name == "load_features":
        from .features import load_features

        return load_features
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DTYPES",
    "bundled_models",
    "bundled_test_images",
    "device_and_dtype",
    "load",
    "load_classifier",
    "load_features",
]
