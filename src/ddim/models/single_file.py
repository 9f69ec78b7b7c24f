"""Pipelines in one .safetensors file, in the layout of the original repositories; diffusers converts their tensors."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from .._utils.error_text import reason_of
from .._utils.errors import InputError
from .._utils.silence import without_logs
from .additions import is_lora, is_word
from .hub import cached_configs, configs_from_hub, is_repository
from .model_folder import INDEX, read_index
from .weights import PICKLES, header_of

_WHERE: Mapping[str, tuple[str, ...]] = {
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
    "text_encoder_3": ("text_encoders.t5xxl.",),
    "unet": ("model.diffusion_model.",),
}
"""How the names of a part's tensors begin. Those of a transformer may stand without a prefix."""
_TRANSFORMER = ("model.diffusion_model.", "double_blocks.", "joint_blocks.", "single_blocks.", "layers.")
_UNET = ("down_blocks.", "up_blocks.", "mid_block.", "input_blocks.", "output_blocks.")
_AUTOENCODER = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_QUANTISED = (".scale_weight", ".weight_scale", ".comfy_quant", ".absmax", ".quant_map")
_SPARE = ("loss.",)
"""Tensors of an autoencoder that only its training needs."""


@dataclass(frozen=True)
class SingleFile:
    """A file with the weights of a pipeline.

    Args:
        path: the file.
        shapes: name of a tensor -> its shape.
        config: the folder of a pipeline with the configs, tokenizers and scheduler, and with the weights of those parts
            that the file lacks.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    config: Path

    def holds(self, part: str) -> bool:
        """Whether the file holds the weights of a part."""
        return _holds(self.shapes, part)

    def read(self, kind: Any, parts: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        """Makes the pipeline.

        Args:
            kind: a pipeline class of diffusers.
            parts: the parts that do not come from the file: tokenizers, the scheduler, and what the file lacks.
            options: further arguments of the constructor.

        Raises:
            InputError: the weights do not fit the configs.
        """
        known = inspect.signature(kind.__init__).parameters
        none = {part: None for part in ("safety_checker", "feature_extractor", "image_encoder") if part in known}
        given = {**none, **parts, **options}
        try:
            with without_logs():
                pipeline = kind.from_single_file(
                    str(self.path), config=str(self.config), local_files_only=True, **given
                )
        except Exception as error:  # diffusers raises errors of any type for a file that does not fit
            raise self._misfit(reason_of(error)) from None
        for part, network in pipeline.components.items():
            if isinstance(network, nn.Module) and part not in parts:
                self._check(part, network.eval())
        return pipeline

    def _check(self, part: str, network: nn.Module) -> None:
        """Raises InputError if a network has not got all of its weights, or not all that the file holds for it."""
        stored = {**dict(network.named_parameters()), **network.state_dict()}
        if lacking := sorted(name for name, weight in stored.items() if weight.is_meta):
            raise self._misfit(f"the tensor {lacking[0]!r} of the {part} is missing")
        if part not in (
            "unet",
            "vae",
        ):  # diffusers leaves out layers of text encoders, and splits those of transformers
            return
        begin = next(begin for begin in _WHERE[part] if any(name.startswith(begin) for name in self.shapes))
        own = {name.removeprefix(begin): shape for name, shape in self.shapes.items() if name.startswith(begin)}
        held = sum(prod(shape) for name, shape in own.items() if not name.startswith(_SPARE))
        wanted = sum(weight.numel() for weight in network.parameters())
        if held != wanted:
            raise self._misfit(f"the file holds {held} numbers for the {part}, whose config describes {wanted}")

    def _misfit(self, why: str) -> InputError:
        return InputError(f"{self.path} does not fit the configs in {self.config}: {why}.", parameter="model")


def _holds(shapes: Mapping[str, Any], part: str) -> bool:
    begins = _TRANSFORMER if part == "transformer" else _WHERE.get(part, ())
    return any(name.startswith(begins) for name in shapes)


def single_file(path: Path, config: Any) -> SingleFile:
    """Finds out what a file holds, and the folder with the configs that belong to it.

    Args:
        path: the file.
        config: a folder or a hub id; None takes the configs that diffusers knows for such a file from the hub's cache.

    Raises:
        InputError: the file is a pickle, a LoRA, or only a part of a pipeline; or there are no configs.
        DDIMError: the file is damaged.
    """
    if path.suffix.lower() in PICKLES:
        raise InputError(
            f"{path} is a pickle, which is never loaded; give a .safetensors file, or a folder in the diffusers "
            "format.",
            parameter="model",
        )
    if path.suffix.lower() != ".safetensors":
        raise InputError(
            f"{path} is no model; give a .safetensors file, or a folder in the diffusers format.", parameter="model"
        )
    shapes = _read_shapes(path)
    _refuse_parts(path, shapes)
    if find_spec("accelerate") is None:
        raise InputError("a single file needs accelerate: pip install accelerate.", parameter="model")
    return SingleFile(path, shapes, _config_folder(path, shapes, config))


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Reads the header of a file. Raises InputError if its weights are quantised."""
    header = header_of(path, "model")
    shapes = {key: stored.shape for key, stored in header.items()}
    whole = [key for key, stored in header.items() if stored.dtype.startswith(("I", "U"))]
    integers = [key for key in whole if len(shapes[key]) > 1 and not key.endswith("position_ids")]
    if quantised := sorted([*integers, *(key for key in shapes if key.endswith(_QUANTISED))]):
        raise InputError(
            f"{path} has quantised weights, such as {quantised[0]!r}, which are not loaded; quantise a pipeline of "
            "diffusers, and give the pipeline object.",
            parameter="model",
        )
    return shapes


def _refuse_parts(path: Path, shapes: Mapping[str, Any]) -> None:
    """Raises InputError for a file that holds something else than a pipeline or its network."""
    whole = "give the .safetensors file of a whole pipeline, or its folder in the diffusers format"
    if not shapes:
        raise InputError(f"{path} holds no tensors; {whole}.", parameter="model")

    def any_begins(*begins: str) -> bool:
        return any(name.startswith(begins) for name in shapes)

    if is_lora(shapes):
        raise InputError(
            f"{path} is a LoRA; give the model that it was trained on, and this file as lora (on the command line "
            "--lora).",
            parameter="model",
        )
    if any_begins(*_TRANSFORMER):
        return
    what = None
    if any_begins(*_UNET):
        what = "only a U-Net"
    elif any_begins(*_AUTOENCODER, *_WHERE["vae"]):
        what = "only an autoencoder"
    elif any_begins("text_model.", *_WHERE["text_encoder"], *_WHERE["text_encoder_2"]):
        what = "only a text encoder"
    elif any_begins("transformer_blocks.", "single_transformer_blocks."):
        what = "only a transformer in the layout of diffusers"
    elif is_word(shapes) or all(len(shape) == 1 for shape in shapes.values()):
        what = "a word of textual inversion; give it as textual_inversion (on the command line --textual-inversion)"
    raise InputError(f"{path} holds {what or 'no pipeline that diffusers knows'}; {whole}.", parameter="model")


def _config_folder(path: Path, shapes: Mapping[str, Any], config: Any) -> Path:
    """Returns the folder with the configs. Raises InputError if there is none."""
    if config is not None:
        if not isinstance(config, (str, PathLike)) or config == "":
            raise InputError(f"{config!r} is not the name of a folder, or a hub id.", parameter="config")
        folder = Path(config) if Path(config).is_dir() else None
        if folder is None and is_repository(str(config)):
            folder = configs_from_hub(str(config), lambda part: _holds(shapes, part))
        if folder is None:
            raise InputError(
                f"there is no folder {str(config)!r}; give the folder of a diffusers pipeline, which may lack its "
                "weights, or a hub id.",
                parameter="config",
            )
        if read_index(folder) is None:
            raise InputError(f"{folder} has no {INDEX}; give the folder of a whole pipeline.", parameter="config")
        return folder
    name = _usual_config(shapes)
    folder = None if name is None else cached_configs(name)
    if folder is None:
        what = f"those of {name}, which are not in the hub's cache" if name else "diffusers does not know which"
        raise InputError(
            f"{path} needs the configs and tokenizers of its pipeline ({what}); give as config the folder of a "
            "diffusers pipeline, which may lack its weights, or a hub id.",
            parameter="model",
        )
    return folder


def _usual_config(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Returns the repository whose configs diffusers uses for such a file; None if it knows none."""
    try:
        from diffusers.loaders.single_file_utils import fetch_diffusers_config

        known = fetch_diffusers_config({name: SimpleNamespace(shape=shape) for name, shape in shapes.items()})
        return str(known["pretrained_model_name_or_path"])
    except Exception:  # this version of diffusers has no such function, or cannot tell
        return None
