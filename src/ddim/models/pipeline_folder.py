"""Reads the folder of a text-to-image pipeline, part by part, and checks the parts."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._utils.errors import DDIMWarning, InputError
from .._utils.silence import loading
from .latent import read_network
from .loading import Loading
from .model_folder import INDEX, part_class, part_folder, read_index, whole_folder
from .scheduler_file import read_scheduler

if TYPE_CHECKING:
    from .pipeline_model import PipelineModel


def read_pipeline(adapter: "type[PipelineModel]", folder: Path, how: Loading) -> Any:
    """Makes the pipeline of a folder, after checking each part's weights against its config.

    Only the parts that the adapter uses are read: no safety checker.

    Args:
        adapter: the adapter of the pipeline's family.
        folder: the folder.
        how: the variant, and the file with the weights of some or all parts.

    Raises:
        InputError: a part is missing, or its weights do not fit its config.
        DDIMError: a file is damaged.
    """
    with loading():
        import diffusers
        import transformers

        kind = getattr(diffusers, adapter.pipeline_class, None)  # imports it, which may log
    from .tokens import read_tokenizer
    from .weights import transformers_part

    if kind is None:
        raise InputError(
            f"{folder} needs the {adapter.pipeline_class}, which diffusers {diffusers.__version__} does not have; "
            "install a newer version.",
            parameter="model",
        )
    if how.additions.loras and not hasattr(kind, "load_lora_weights"):
        raise InputError(f"diffusers loads no LoRA into a {adapter.pipeline_class}; leave it out.", parameter="lora")
    index = read_index(folder) or {}
    if adapter.assumed and not (whole_folder(folder) / INDEX).is_file():
        warnings.warn(f"{folder} has no {INDEX}: {adapter.assumed}.", DDIMWarning, stacklevel=5)
    absent = {part for part in adapter.optional if index.get(part, [None, None]) == [None, None]}
    present = [part for part in adapter.parts if part not in absent]
    classes = {part: part_class(folder, part, adapter.parts) for part in (*present, "scheduler")}
    where = {part: part_folder(folder, part) for part in (*present, "scheduler")}
    if lacking := [part for part, place in where.items() if not place.is_dir()]:
        raise InputError(
            f"{folder} has no folder {lacking[0]!r}, although its {INDEX} names this part; copy the whole pipeline.",
            parameter="model",
        )
    parts: dict[str, Any] = dict.fromkeys(absent)
    for part in present:
        if part.startswith("tokenizer"):
            parts[part] = read_tokenizer(where[part], classes[part])
    parts["scheduler"] = read_scheduler(where["scheduler"], classes["scheduler"])
    stored = [part for part in present if how.file is None or not how.file.holds(part)]
    for part in stored:
        if part.startswith("text_encoder"):
            encoder = getattr(transformers, classes[part])
            parts[part] = transformers_part(encoder, where[part], stored=True, variant=how.variant)
    for part in (part for part in ("vae", adapter.network_part) if part in stored):
        parts[part] = read_network(where[part], adapter.parts[part], variant=how.variant)
    options = adapter.pipeline_options(index)
    with loading():
        pipeline = kind(**parts, **options) if how.file is None else how.file.read(kind, parts, options)
        pipeline.set_progress_bar_config(disable=True)
    return pipeline
