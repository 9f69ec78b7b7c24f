"""Downloads models from the Hugging Face hub, or uses the copies in its cache."""

from collections.abc import Sequence
from pathlib import Path

from .._utils.error_text import first_line, with_full_stop
from .._utils.errors import DDIMError, InputError
from .model_folder import parts_of, unet_folder
from .weights import DIFFUSERS, TRANSFORMERS, one_of, weight_files

_FIRST = ("model_index.json", "config.json", "unet/config.json", "transformer/config.json")
"""Every copy that can be loaded contains at least one of these files."""
OFFLINE = "HF_HUB_OFFLINE is set, and its cache has no copy"


def from_hub(source: str, variant: str | None = None) -> Path:
    """Downloads a repository's configs and the weights that are needed, and returns its folder in the hub's cache.

    If the hub cannot be reached, a complete copy in the cache is used.

    Args:
        source: ``owner/name``, or ``owner/name/folder`` for a folder inside the repository.
        variant: the variant of the weights that is preferred.

    Raises:
        InputError: the repository is of another kind, or has no safetensors weights.
        DDIMError: the download failed, and there is no complete copy in the cache.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    owner, own, *inside = source.split("/")
    name, sub = f"{owner}/{own}", "".join(f"{part}/" for part in inside)
    try:
        return _fetched(name, sub, variant)
    except InputError:
        raise
    except Exception as error:  # the hub's client raises errors of a dozen types; all mean that the download failed
        folder = cached(name, sub)
        if folder is None:
            away = isinstance(error, LocalEntryNotFoundError) and not _not_asked(error)
            why = OFFLINE if _not_asked(error) else _answer(name, error)
            if away:
                why = f"it cannot be reached ({first_line(error.__cause__ or error)})"
            raise DDIMError(
                f"{source!r} is neither a bundled model nor a folder, and it could not be fetched from the hub: "
                f"{with_full_stop(why)}",
                parameter="model",
                hint="Check the network, or give a local folder." if away else None,
            ) from None
        _need_weights(name, folder, error, variant)
        return folder


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
    from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download

    owner, _, rest = name.partition("/")
    own, _, file = rest.partition("/")
    repository = f"{owner}/{own}"
    try:
        chosen = file or one_of(list_repo_files(repository), usual, repository, parameter)
        return Path(hf_hub_download(repository, chosen))
    except InputError:
        raise
    except Exception as error:  # the hub's client raises errors of a dozen types; all mean that the download failed
        why = OFFLINE if _not_asked(error) else _answer(repository, error)
        try:
            folder = Path(snapshot_download(repository, local_files_only=True))
        except Exception:  # there is no copy, or no repository can have this name
            folder = Path()
        if folder == Path() or (file and not (folder / file).is_file()):
            raise DDIMError(
                f"there is no file {name}, and it could not be fetched from the hub: {with_full_stop(why)}",
                parameter=parameter,
            ) from None
        return folder / (file or one_of([p.name for p in folder.iterdir()], usual, repository, parameter))


def configs_from_hub(name: str, *, local: bool = False) -> Path | None:
    """Returns the folder in the hub's cache with a repository's configs and tokenizers.

    Args:
        name: ``owner/name``.
        local: whether the hub is not asked.

    Returns:
        The folder; None if ``local`` and there is no copy.

    Raises:
        DDIMError: the download failed, and the cache has no copy.
    """
    from huggingface_hub import snapshot_download

    configs = ["*.json", "*.txt", "*.model"]
    try:
        if not local:
            return Path(snapshot_download(name, allow_patterns=configs))
        why = ""
    except Exception as error:  # the hub's client raises errors of a dozen types; all mean that the download failed
        why = OFFLINE if _not_asked(error) else _answer(name, error)
    try:
        return Path(snapshot_download(name, allow_patterns=configs, local_files_only=True))
    except Exception:  # there is no copy, or no repository can have this name
        if local:
            return None
        raise DDIMError(
            f"there is no folder {name!r}, and it could not be fetched from the hub: {with_full_stop(why)}",
            parameter="config",
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


def _need_weights(name: str, folder: Path, error: Exception, variant: str | None) -> None:
    """Raises DDIMError if a cached copy lacks weights; ``error`` is why they could not be downloaded."""
    parts = _parts_with_weights(folder) or (unet_folder(folder).as_posix(),)  # unet_folder refuses other models
    try:
        for part in parts:
            weight_files(folder / part, {p.name for p in (folder / part).glob("*")}, _stem(part), variant=variant)
    except InputError as lacking:
        raise DDIMError(
            f"the cached copy of {name!r} is incomplete, and the rest could not be downloaded "
            f"({_answer(name, error)}): {lacking.message}",
            parameter="model",
        ) from None


def _parts_with_weights(folder: Path) -> list[str]:
    """Returns the names of a pipeline's parts that have weights."""
    return [part for part in parts_of(folder) if not part.startswith("tokenizer")]


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


def _fetched(name: str, sub: str, variant: str | None) -> Path:
    """Downloads all configs, then only those weight files that the configs show to be needed."""
    from huggingface_hub import snapshot_download

    configs = f"{sub}*.json"
    folder = Path(snapshot_download(name, allow_patterns=[configs])) / sub
    if sub and not folder.is_dir():
        raise InputError(f"the repository {name!r} has no folder {sub.rstrip('/')!r} with configs.", parameter="model")
    if parts := _parts_with_weights(folder):
        offered = {part: _offered(name, folder, f"{sub}{part}/", part, variant) for part in parts}
        weights = ["tokenizer*/*", *(f"{part}/{file}" for part, files in offered.items() for file in files)]
    else:
        weights = [(unet_folder(folder) / "*.safetensors").as_posix()]
    return Path(snapshot_download(name, allow_patterns=[configs, *(f"{sub}{file}" for file in weights)])) / sub


def _offered(name: str, folder: Path, inside: str, part: str, variant: str | None) -> list[str]:
    """Returns the names of the weight files to download for a part of a pipeline."""
    from huggingface_hub import list_repo_files

    files = [f.removeprefix(inside) for f in list_repo_files(name) if f.startswith(inside)]
    return weight_files(folder / part, files, _stem(part), variant=variant)
