"""Downloads models from the Hugging Face hub, or uses the copies in its cache."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .._utils.error_text import first_line, with_full_stop
from .._utils.errors import DDIMError, InputError
from .model_folder import check_variant, parts_of, read_index, unet_folder
from .weights import DIFFUSERS, TRANSFORMERS, one_of, weight_files

_FIRST = ("model_index.json", "config.json", "unet/config.json", "transformer/config.json")
"""Every copy that can be loaded contains at least one of these files."""
_CONFIGS = ["*.json", "*.txt", "*.model"]
"""What a pipeline needs besides weights."""
OFFLINE = "HF_HUB_OFFLINE is set, and its cache has no copy"


def is_repository(name: str) -> bool:
    """Whether a name has the form of a repository, ``owner/name``, and not that of a path."""
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~"))


def from_hub(source: str, variant: str | None = None, check: Callable[[Path], object] = lambda folder: None) -> Path:
    """Downloads a repository's configs and the weights that are needed, and returns its folder in the hub's cache.

    If the hub cannot be reached, a complete copy in the cache is used.

    Args:
        source: ``owner/name``, or ``owner/name/folder`` for a folder inside the repository.
        variant: the variant of the weights that is preferred.
        check: called with the folder when only its configs are there; it raises InputError if the weights are not
            needed.

    Raises:
        InputError: the repository is of another kind, has no safetensors weights, or none of the variant.
        DDIMError: the download failed, and there is no complete copy in the cache.
    """
    owner, own, *inside = source.split("/")
    name, sub = f"{owner}/{own}", "".join(f"{part}/" for part in inside)

    def kept(error: Exception) -> Path | None:
        folder = cached(name, sub)
        if folder is not None:
            _need_weights(name, folder, error, _parts_with_weights(folder), variant)
        return folder

    what = f"{source!r} is neither a bundled model nor a folder"
    return _fetched_or_kept(lambda: _fetched(name, sub, variant, check), kept, name, what, "model")


def file_from_hub(name: str, usual: Sequence[str], parameter: str) -> Path:
    """Downloads one safetensors file, and returns its path in the hub's cache.

    If the hub cannot be reached, the copy in the cache is used.

    Args:
        name: ``owner/name`` or ``owner/name/file.safetensors``.
        usual: names of files that are chosen if only the repository is named; otherwise it must have only one.
        parameter: the argument that an error names.

    Raises:
        InputError: the repository has no safetensors file, or several.
        DDIMError: the download failed, and the cache has no copy.
    """
    from huggingface_hub import hf_hub_download, list_repo_files

    owner, _, rest = name.partition("/")
    own, _, file = rest.partition("/")
    repository = f"{owner}/{own}"

    def fetch() -> Path:
        return Path(hf_hub_download(repository, file or one_of(list_repo_files(repository), usual, name, parameter)))

    def kept(_: Exception) -> Path | None:
        folder = _kept(repository)
        if folder is None or (file and not (folder / file).is_file()):
            return None
        return folder / (file or one_of([p.name for p in folder.iterdir()], usual, name, parameter))

    return _fetched_or_kept(fetch, kept, repository, f"there is no file {name}", parameter)


def configs_from_hub(name: str, holds: Callable[[str], bool]) -> Path:
    """Downloads a repository's configs and tokenizers, and the weights of some parts, for a single file.

    If the hub cannot be reached, the copy in the cache is used.

    Args:
        name: ``owner/name``.
        holds: whether the file holds a part of the pipeline, whose weights are then not needed.

    Returns:
        The folder in the hub's cache.

    Raises:
        InputError: the repository holds no supported pipeline, or lacks the weights.
        DDIMError: the download failed, and the cache has no copy.
    """
    from huggingface_hub import list_repo_files, snapshot_download

    def lacking(folder: Path) -> list[str]:
        return [part for part in _parts_with_weights(folder) if not holds(part)] if parts_of(folder) else []

    def fetch() -> Path:
        folder = Path(snapshot_download(name, allow_patterns=_CONFIGS))
        if not (parts := lacking(folder)):
            return folder
        weights = _needed(folder, list_repo_files(name), parts, None)
        return Path(snapshot_download(name, allow_patterns=[*_CONFIGS, *weights]))

    def kept(error: Exception) -> Path | None:
        folder = cached_configs(name)
        if folder is not None:
            _need_weights(name, folder, error, lacking(folder), None, "config")
        return folder

    return _fetched_or_kept(fetch, kept, name, f"there is no folder {name!r}", "config")


def cached_configs(name: str) -> Path | None:
    """Returns the folder in the hub's cache with a repository's configs and tokenizers; None if there is no copy."""
    return _kept(name, allow_patterns=_CONFIGS)


def _kept(name: str, **options: Any) -> Path | None:
    """Returns the folder of a repository in the hub's cache; None if there is no copy."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True, **options))
    except Exception:  # there is no copy, or no repository can have this name
        return None


def _fetched_or_kept(
    fetch: Callable[[], Path], kept: Callable[[Exception], Path | None], name: str, what: str, parameter: str
) -> Path:
    """Downloads from the hub, or else finds the copy in its cache.

    Args:
        fetch: downloads, and returns a path in the cache.
        kept: returns the path of the copy, or None; it gets the error of the download.
        name: the repository.
        what: how the sentence of the error begins.
        parameter: the argument that an error names.

    Raises:
        InputError: raised by ``fetch``.
        DDIMError: the download failed, and there is no copy.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return fetch()
    except InputError:
        raise
    except Exception as error:  # the hub's client raises errors of a dozen types; all mean that the download failed
        if (found := kept(error)) is not None:
            return found
        away = isinstance(error, LocalEntryNotFoundError) and not _not_asked(error)
        why = OFFLINE if _not_asked(error) else _answer(name, error)
        if away:
            why = f"it cannot be reached ({first_line(error.__cause__ or error)})"
        raise DDIMError(
            f"{what}, and it could not be fetched from the hub: {with_full_stop(why)}",
            parameter=parameter,
            hint="Check the network, or give a local folder." if away else None,
        ) from None


def _answer(name: str, error: Exception) -> str:
    """Says in one line, without a final stop, why a repository could not be downloaded."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return (
            f"access to it is restricted; ask for access on https://huggingface.co/{name}, and log in with "
            "'hf auth login', or set HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no repository of this name, or it is private; log in with 'hf auth login', or set HF_TOKEN"
    return first_line(error)


def _not_asked(error: Exception) -> bool:
    """Whether the hub was not asked, because the user has switched its client off."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    return bool(constants.HF_HUB_OFFLINE) and isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled))


def _need_weights(
    name: str, folder: Path, error: Exception, parts: Sequence[str], variant: str | None, parameter: str = "model"
) -> None:
    """Raises DDIMError if a cached copy lacks weights.

    Args:
        name: the repository.
        folder: the copy.
        error: why they could not be downloaded.
        parts: the parts that need weights.
        variant: the variant that is preferred.
        parameter: the argument that an error names.
    """
    try:
        for part in parts:
            weight_files(folder / part, {p.name for p in (folder / part).glob("*")}, _stem(part), variant=variant)
    except InputError as lacking:
        raise DDIMError(
            f"the cached copy of {name!r} is incomplete, and the rest could not be downloaded "
            f"({_answer(name, error)}): {lacking.message}",
            parameter=parameter,
        ) from None


def _parts_with_weights(folder: Path) -> list[str]:
    """Returns the names of a model's parts that have weights: those of its pipeline, or the folder of its network."""
    if not (parts := parts_of(folder)):
        return [unet_folder(folder).as_posix()]  # unet_folder refuses other models
    index = read_index(folder) or {}
    return [part for part in parts if not part.startswith("tokenizer") and index.get(part) != [None, None]]


def _stem(part: str) -> str:
    """Returns the base name of a part's weight files."""
    return TRANSFORMERS if part.startswith("text_encoder") else DIFFUSERS


def cached(name: str, sub: str = "") -> Path | None:
    """Returns a folder of a repository's main branch in the hub's cache, complete or not; None if there is none.

    Args:
        name: ``owner/name``.
        sub: a folder inside the repository, with a final "/".
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for first in _FIRST:
        try:
            found = try_to_load_from_cache(name, f"{sub}{first}")
        except HFValidationError:  # no repository can have this name
            return None
        if isinstance(found, str):
            return Path(found.removesuffix(first))
    return None


def _fetched(name: str, sub: str, variant: str | None, check: Callable[[Path], object]) -> Path:
    """Downloads all configs, then only those weight files that the configs show to be needed."""
    from huggingface_hub import list_repo_files, snapshot_download

    configs = f"{sub}*.json"
    folder = Path(snapshot_download(name, allow_patterns=[configs])) / sub
    if sub and not folder.is_dir():
        raise InputError(f"the repository {name!r} has no folder {sub.rstrip('/')!r} with configs.", parameter="model")
    check(folder)
    pipeline = bool(parts_of(folder))
    listed = list_repo_files(name) if pipeline or variant is not None else []
    files = [file.removeprefix(sub) for file in listed if file.startswith(sub)]
    if variant is not None:
        check_variant(folder, variant, files)
    if pipeline:
        weights = ["tokenizer*/*", *_needed(folder, files, _parts_with_weights(folder), variant)]
    else:
        weights = [(unet_folder(folder) / "*.safetensors").as_posix()]
    return Path(snapshot_download(name, allow_patterns=[configs, *(f"{sub}{file}" for file in weights)])) / sub


def _needed(folder: Path, files: Sequence[str], parts: Sequence[str], variant: str | None) -> list[str]:
    """Returns the weight files to download.

    Args:
        folder: the folder with the configs.
        files: names of all files that the repository has for it.
        parts: the parts whose weights are needed.
        variant: the variant that is preferred.
    """
    found: list[str] = []
    for part in parts:
        offered = [file.removeprefix(f"{part}/") for file in files if file.startswith(f"{part}/")]
        found += [f"{part}/{one}" for one in weight_files(folder / part, offered, _stem(part), variant=variant)]
    return found
