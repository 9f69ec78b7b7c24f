"""Models of the Hugging Face hub: fetched, or taken as they lie in its cache."""

from pathlib import Path

from .._utils.error_text import first_line, reason_of
from .._utils.errors import DDIMError, InputError
from .model_folder import parts_of, unet_folder
from .weights import DIFFUSERS, TRANSFORMERS, weight_files

_FIRST = ("model_index.json", "config.json", "unet/config.json")
"""One of them is in every copy that can be loaded."""


def from_hub(name: str) -> Path:
    """The cached copy of a hub repository: its configs, and then the network's weights; as it lies there where the
    hub cannot be asked.

    Raises:
        InputError: a repository of another kind, or one without safetensors.
        DDIMError: the hub gave nothing, and there is no copy.
    """
    try:
        return _fetched(name)
    except InputError:
        raise
    except Exception as error:  # the hub's client raises a dozen kinds; all of them mean this
        folder = cached(name)
        if folder is None:
            raise DDIMError(
                f"{name!r} is neither a bundled model nor a folder, and it could not be fetched from the hub: "
                f"{reason_of(error)}",
                parameter="model",
            ) from None
        _need_weights(name, folder, error)
        return folder


def _need_weights(name: str, folder: Path, error: Exception) -> None:
    """Raises DDIMError where a cached copy lacks weights and the hub cannot be asked for them."""
    parts = _weighed(folder) or (unet_folder(folder).as_posix(),)  # what is not taken says so itself
    try:
        for part in parts:
            weight_files(folder / part, {p.name for p in (folder / part).glob("*")}, _stem(part))
    except InputError as lacking:
        raise DDIMError(
            f"the cached copy of {name!r} is not whole, and the hub cannot be asked ({first_line(error)}): "
            f"{lacking.message}",
            parameter="model",
        ) from None


def _weighed(folder: Path) -> list[str]:
    """The parts of a pipeline that hold weights."""
    return [part for part in parts_of(folder) if not part.startswith("tokenizer")]


def _stem(part: str) -> str:
    return TRANSFORMERS if part.startswith("text_encoder") else DIFFUSERS


def cached(name: str) -> Path | None:
    """Where the hub's cache keeps a repository's main branch, be it whole or not."""
    from huggingface_hub import try_to_load_from_cache

    for first in _FIRST:
        found = try_to_load_from_cache(name, first)
        if isinstance(found, str):
            return Path(found.removesuffix(first))
    return None


def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(name, allow_patterns=["*.json"]))
    if parts := _weighed(folder):
        weights = ["tokenizer*/*", *(f"{part}/{file}" for part in parts for file in _offered(name, folder, part))]
    else:
        weights = [(unet_folder(folder) / "*.safetensors").as_posix()]
    return Path(snapshot_download(name, allow_patterns=["*.json", *weights]))


def _offered(name: str, folder: Path, part: str) -> list[str]:
    """Which weights of a pipeline's part to fetch."""
    from huggingface_hub import list_repo_files

    files = [f.partition("/")[2] for f in list_repo_files(name) if f.startswith(f"{part}/")]
    return weight_files(folder / part, files, _stem(part))
