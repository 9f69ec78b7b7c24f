"""Loads a part of a model from its config and safetensors weights, and checks that every tensor fits the config."""

import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .._utils.error_text import reason_of
from .._utils.errors import DDIMError, InputError
from .._utils.files import read_json
from .._utils.silence import loading

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
"""Base names of the two libraries' weight files, without variant and extension."""
PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"}
_VARIANTS = ("", "fp16", "bf16")  # the first complete one is used, or any other
_WRAPPER_PREFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # occur anywhere in a name
_DATA_PARALLEL = "module."  # precedes every name
_COUNTS = ("position_ids", "num_batches_tracked")  # tensors of transformers that are meant to be integers
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # diffusers renamed these in 2023


def diffusers_part(kind: Any, folder: Path, *, parameter: str = "model", variant: str | None = None) -> Any:
    """Loads a network of diffusers, on the CPU and in the dtype of its file.

    Args:
        kind: the class, such as ``UNet2DModel``.
        folder: a folder with ``config.json`` and safetensors weights: one file or shards, full precision or a variant
            such as fp16.
        parameter: the argument that an error names.
        variant: the variant that is preferred.

    Raises:
        InputError: there are no safetensors weights (pickles are never loaded), or they do not fit the config; the
            message names the first tensor that is missing, unexpected or has a wrong shape.
        DDIMError: the files are damaged.
    """
    config = _config(folder, parameter)
    tensors = read_tensors(folder, DIFFUSERS, parameter=parameter, variant=variant)
    with loading():
        network = _built_on_meta(lambda: kind.from_config(config), folder, tensors, parameter)
    expected = network.state_dict()
    tensors = {_renamed(name, expected): tensor for name, tensor in unwrapped(tensors).items()}
    must_fit(expected, tensors, str(folder), parameter=parameter)
    network.load_state_dict(tensors, assign=True)
    # Tensors that no file contains, such as a resampling kernel or the angles of positions, are still on the meta
    # device. The constructor computes them, so they are taken from a second network without parameters.
    if lacking := dict.fromkeys((owner, name) for owner, name, tensor in _unstored(network) if tensor.is_meta):
        with loading(), _parameters_on_meta():
            made = dict(kind.from_config(config).named_modules())
        for owner, name in lacking:
            setattr(network.get_submodule(owner), name, getattr(made[owner], name))
    return network.eval()


def _unstored(network: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Yields the tensors of a network that are no parameters, buffers or not: module, name, tensor.

    The tensors of a list or tuple have its name.
    """
    for owner, module in network.named_modules():
        for name, value in (*module._buffers.items(), *vars(module).items()):
            for part in cast("list[Any]", [*value]) if isinstance(value, (list, tuple)) else [value]:
                if isinstance(part, Tensor):
                    yield owner, name, part


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Inside the block, parameters that this thread registers in modules have no memory; buffers are as usual."""
    from torch.nn.modules import module as hooks

    thread = threading.get_ident()

    def without_memory(owner: nn.Module, name: str, parameter: Any) -> Any:
        if parameter is None or threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = hooks.register_module_parameter_registration_hook(without_memory)
    try:
        yield
    finally:
        handle.remove()


def transformers_part(
    kind: Any,
    folder: Path,
    *,
    parameter: str = "model",
    spare: Collection[str] = (),
    stored: bool = False,
    variant: str | None = None,
    **options: Any,
) -> Any:
    """Loads a network of transformers, on the CPU, in float32, or in float64 if its file is.

    Args:
        kind: the class, such as ``CLIPTextModel``.
        folder: as for ``diffusers_part``.
        parameter: the argument that an error names.
        spare: prefixes of tensor names that the file may contain without being used, such as another task's head.
        stored: load it in the dtype of most numbers in its file instead. transformers keeps weights in float32 that
            its class names as too large for float16.
        variant: the variant that is preferred.
        options: further arguments of the class's constructor.

    Raises:
        InputError: as for ``diffusers_part``.
        DDIMError: the files are damaged.
    """
    about, known = _config(folder, parameter).get("model_type"), kind.config_class.model_type
    if not isinstance(about, str) or not known.startswith(about):  # "clip" is accepted for "clip_text_model"
        raise InputError(
            f"{folder} does not contain a {kind.__name__}: the model_type in its config is {about!r}.",
            parameter=parameter,
        )
    tensors = unwrapped(read_tensors(folder, TRANSFORMERS, parameter=parameter, variant=variant))
    _refuse_integers({k: t for k, t in tensors.items() if not k.endswith(_COUNTS)}, str(folder), parameter)
    numbers = Counter[torch.dtype]()
    for tensor in tensors.values():
        if tensor.is_floating_point():
            numbers[tensor.dtype] += tensor.numel()
    if stored and numbers:
        dtype = numbers.most_common(1)[0][0]
    else:
        dtype = torch.float64 if torch.float64 in numbers else torch.float32
    with loading():
        try:
            config = kind.config_class.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # for an invalid config, transformers raises errors of any type
            raise InputError(
                f"{folder / 'config.json'} cannot be used: {reason_of(error)}", parameter=parameter
            ) from None
        _built_on_meta(lambda: kind(config, **options), folder, tensors, parameter)
        network, found = reported(
            kind, None, str(folder), parameter=parameter, config=config, state_dict=tensors, dtype=dtype, **options
        )
    must_be_whole(found, str(folder), parameter=parameter, spare=spare)
    return network.eval()


def pretrained(kind: str, name: str, *, parameter: str, spare: Collection[str] = (), **options: Any) -> Any:
    """Loads a network of transformers from a folder or from the hub, in float32, to use and not to train.

    Args:
        kind: the name of the class in transformers.
        name: a folder, or a hub id.
        parameter, spare, options: as for ``transformers_part``.

    Raises:
        InputError, DDIMError: as ``transformers_part`` raises.
    """
    import transformers

    network = getattr(transformers, kind)
    if Path(name).is_dir():
        found = transformers_part(network, Path(name), parameter=parameter, spare=spare, **options)
    else:
        options |= {"use_safetensors": True, "dtype": torch.float32}
        found, report = reported(network, name, name, parameter=parameter, **options)
        must_be_whole(report, name, parameter=parameter, spare=spare)
    return found.float().eval().requires_grad_(False)


def reported(kind: Any, source: "str | None", name: str, *, parameter: str, **options: Any) -> tuple[Any, Any]:
    """Loads a network of transformers, together with its report of tensors that do not fit (see ``must_be_whole``).

    Args:
        kind: the class.
        source: the folder or hub id for ``from_pretrained``; None if ``options`` contain the tensors.
        name: what error messages call it.
        parameter: the argument that an error names.
        options: further arguments of ``from_pretrained``.

    Returns:
        The network and the report, a dict with ``missing_keys``, ``unexpected_keys`` and ``mismatched_keys``.
    """
    with loading():
        try:
            return kind.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
        except Exception as error:  # transformers, safetensors and the hub's client raise errors of many types
            raise InputError(
                f"{name} cannot be loaded as a {kind.__name__}: {reason_of(error)}",
                parameter=parameter,
                hint="Use a folder with .safetensors weights.",
            ) from None


def must_be_whole(found: Mapping[str, Any], name: str, *, parameter: str, spare: Collection[str] = ()) -> None:
    """Raises InputError if transformers reports a tensor that is missing, unexpected or has a wrong shape.

    transformers itself would only warn, and fill missing tensors with random numbers.

    Args:
        found: the report from ``reported``.
        name: what error messages call the network.
        parameter: the argument that an error names.
        spare: prefixes of tensor names that may be unexpected.
    """
    shapes = sorted((key, tuple(stored), tuple(wanted)) for key, stored, wanted in found["mismatched_keys"])
    wrong = {key for key, _, _ in shapes}
    # Files of older versions of transformers contain these constants, which are no weights.
    ignored = (*spare, "rotary_emb.inv_freq")
    more = [k for k in found["unexpected_keys"] if not k.startswith(ignored) and not k.endswith(_COUNTS[0])]
    _refuse([k for k in found["missing_keys"] if k not in wrong], more, shapes, name, parameter)


def must_fit(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor], name: str, *, parameter: str | None) -> None:
    """Raises InputError for the first tensor that is missing, unexpected, has a wrong shape, or is quantised.

    Args:
        expected: the module's tensors.
        stored: the file's tensors.
        name: what error messages call the file.
        parameter: as for ``InputError``.
    """
    both = sorted(expected.keys() & stored.keys())
    pairs = [(k, tuple(stored[k].shape), tuple(expected[k].shape)) for k in both]
    shapes = [(k, has, wanted) for k, has, wanted in pairs if has != wanted]
    _refuse(expected.keys() - stored.keys(), stored.keys() - expected.keys(), shapes, name, parameter)
    _refuse_integers({k: stored[k] for k in both if expected[k].is_floating_point()}, name, parameter)


def _refuse_integers(tensors: Mapping[str, Tensor], name: str, parameter: str | None) -> None:
    """Raises InputError if a tensor is stored as integers, which means that it is quantised."""
    wrong = next((key for key, tensor in sorted(tensors.items()) if not tensor.is_floating_point()), None)
    if wrong is not None:
        what = str(tensors[wrong].dtype).removeprefix("torch.")
        raise InputError(
            f"{name} cannot be loaded: its tensor {wrong!r} is stored as {what}, and quantised weights are not "
            "supported.",
            parameter=parameter,
        )


def _refuse(
    missing: Collection[str],
    unexpected: Collection[str],
    misshapen: Collection[tuple[str, tuple[int, ...], tuple[int, ...]]],
    name: str,
    parameter: str | None,
) -> None:
    """Raises InputError if one of the lists is not empty; the message names the first tensor and counts the others."""
    problem = None
    if missing:
        problem = f"the tensor {min(missing)!r} is missing{_others(missing)}"
    elif misshapen:
        key, has, wanted = min(misshapen)
        problem = f"the tensor {key!r} is {sides(has)}, not {sides(wanted)} as its config says{_others(misshapen)}"
    elif unexpected:
        problem = f"the network has no place for the tensor {min(unexpected)!r}{_others(unexpected)}"
    if problem:
        raise InputError(f"{name} cannot be loaded: {problem}.", parameter=parameter)


def _others(names: Collection[Any]) -> str:
    """Returns a note on how many tensors have the same problem, if there are several."""
    return f" (one of {len(names)})" if len(names) > 1 else ""


def sides(shape: Sequence[int]) -> str:
    """Formats a tensor's shape for a message, as ``320x768``; a scalar is "one number"."""
    return "x".join(map(str, shape)) or "one number"


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes the prefixes that torch.compile, DataParallel and other wrappers add to the names of tensors.

    If two names would become equal, all are left unchanged.
    """
    names = {name: name for name in tensors}
    for mark in _WRAPPER_PREFIXES:
        names = {old: new.replace(mark, "") for old, new in names.items()}
    while names and all(new.startswith(_DATA_PARALLEL) for new in names.values()):
        names = {old: new.removeprefix(_DATA_PARALLEL) for old, new in names.items()}
    if len({*names.values()}) < len(names):
        return dict(tensors)
    return {names[old]: tensor for old, tensor in tensors.items()}


def _renamed(name: str, expected: Mapping[str, Tensor]) -> str:
    """Returns the current name of a tensor, because diffusers has renamed the parts of its attention."""
    head, _, leaf = name.rpartition(".")
    block, _, part = head.rpartition(".")
    new = f"{block}.{_RENAMED[part]}.{leaf}" if part in _RENAMED else name
    return new if name not in expected and new in expected else name


def read_tensors(folder: Path, stem: str, *, parameter: str = "model", variant: str | None = None) -> dict[str, Tensor]:
    """Reads all tensors of a folder's weights, in their own dtypes.

    Args:
        folder: the folder.
        stem: ``DIFFUSERS`` or ``TRANSFORMERS``.
        parameter: the argument that an error names.
        variant: the variant that is preferred.

    Raises:
        InputError: there are no safetensors weights, or a shard is missing.
        DDIMError: a file is damaged.
    """
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    names = {p.name for p in folder.glob("*")}
    for file in weight_files(folder, names, stem, parameter=parameter, variant=variant):
        try:
            tensors |= load_file(folder / file)
        except Exception as error:  # safetensors has an error type of its own, and the disk may fail
            raise DDIMError(f"{folder / file} cannot be loaded: {reason_of(error)}", parameter=parameter) from None
    return tensors


class Stored(NamedTuple):
    """What the header of a safetensors file says of a tensor: its dtype, as ``F32``, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def header_of(file: Path, parameter: str) -> dict[str, Stored]:
    """Reads the names, dtypes and shapes of a file's tensors, without the tensors.

    Args:
        file: the file.
        parameter: the argument that an error names.

    Raises:
        DDIMError: the file is damaged.
    """
    from safetensors import safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
            return {key: Stored(each.get_dtype(), tuple(each.get_shape())) for key, each in slices.items()}
    except Exception as error:  # safetensors has an error type of its own, and the disk may fail
        raise DDIMError(f"{file} cannot be read: {reason_of(error)}", parameter=parameter) from None


def weight_files(
    folder: Path, names: Collection[str], stem: str, *, parameter: str = "model", variant: str | None = None
) -> list[str]:
    """Chooses the files with a part's weights: full precision if it is complete, otherwise a variant such as fp16.

    Args:
        folder: the folder, in which the indices of sharded weights must already exist.
        names: names of all files of the part; the weights may still have to be downloaded.
        stem: ``DIFFUSERS`` or ``TRANSFORMERS``.
        parameter: the argument that an error names.
        variant: the variant that is preferred; a part that lacks it is loaded as if there were none.

    Returns:
        The names of the files.

    Raises:
        InputError: there are no safetensors weights; the message says if there is a pickle.
    """
    lacking = ""
    found = variants_of(names, stem)
    for dotted in [f".{one}" if one else "" for one in ([variant] if variant in found else found)]:
        if (whole := f"{stem}{dotted}.safetensors") in names:
            return [whole]
        for index in (f"{stem}.safetensors.index{dotted}.json", f"{stem}{dotted}.safetensors.index.json"):
            if index in names:
                shards = _shards(folder / index, parameter)
                missing = [shard for shard in shards if shard not in names]
                if not missing:
                    return shards
                lacking = lacking or f"but not {missing[0]}, which {index} names"
    pickles = sorted(name for name in names if Path(name).suffix in PICKLES)
    others = sorted(name for name in names if name.endswith(".safetensors"))
    if lacking:
        what = f"weights, {lacking}"
    elif others:
        what = f"{others[0]}, but no {stem}.safetensors"
    else:
        what = f"only the pickle {pickles[0]}, which is never loaded" if pickles else "no weights"
    raise InputError(
        f"{folder} contains {what}; a diffusers folder with .safetensors weights is needed.", parameter=parameter
    )


def variants_of(names: Collection[str], stem: str) -> list[str]:
    """Returns the variants of a part's weights, the preferred one first; "" is full precision.

    Args:
        names: names of all files of the part.
        stem: ``DIFFUSERS`` or ``TRANSFORMERS``.
    """
    form = re.compile(rf"{stem}(?:\.(?P<one>[\w-]+))?\.safetensors(?:\.index(?:\.(?P<other>[\w-]+))?\.json)?")
    matches = [match for name in names if (match := form.fullmatch(name))]
    found = {match["one"] or match["other"] or "" for match in matches}
    found = {one for one in found if not re.search(r"-\d+-of-\d+$", one)}  # a shard
    return [one for one in _VARIANTS if one in found] + sorted(found - set(_VARIANTS))


def one_of(names: Collection[str], usual: Sequence[str], where: str, parameter: str) -> str:
    """Chooses the one file of a folder or repository that is meant.

    Args:
        names: the names of its files.
        usual: the usual names, which are chosen if they exist.
        where: what it is called in an error.
        parameter: the argument that an error names.

    Raises:
        InputError: there is no safetensors file, or more than one.
    """
    found = sorted(name for name in names if name.endswith(".safetensors"))
    if chosen := next((name for name in usual if name in found), found[0] if len(found) == 1 else None):
        return chosen
    pickle = next((name for name in sorted(names) if Path(name).suffix.lower() in PICKLES), None)
    what = f"only the pickle {pickle}, which is never loaded" if pickle else "no .safetensors file"
    what = f"several files ({', '.join(found[:8])}); name one, as {where}/{found[0]}" if found else what
    raise InputError(f"{where} contains {what}.", parameter=parameter)


def _shards(index: Path, parameter: str) -> list[str]:
    """Returns the names of the shards in an index, sorted. Raises InputError if there are none."""
    named = read_json(index).get("weight_map")
    shards = sorted({*named.values()}, key=str) if isinstance(named, dict) else []
    if not shards or not all(isinstance(s, str) and re.fullmatch(r"[^/\\]+\.safetensors", s) for s in shards):
        raise InputError(
            f"{index} is not an index of weights: its weight_map does not list safetensors files.", parameter=parameter
        )
    return shards


def _config(folder: Path, parameter: str) -> dict[str, Any]:
    """Reads the ``config.json`` of a folder."""
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {folder}; a diffusers folder with .safetensors weights is needed.",
            parameter=parameter,
        )
    return read_json(folder / "config.json")


def _built_on_meta(build: Callable[[], Any], folder: Path, tensors: Mapping[str, Tensor], parameter: str) -> Any:
    """Builds the network that a config describes on the meta device, which uses no memory for its tensors.

    A config may describe a network of any size, so building stops when the network has far more tensors or numbers than
    its file.
    """
    try:
        with torch.device("meta"), _no_more_than(2 * len(tensors) + 1000, 2 * sum(t.numel() for t in tensors.values())):
            return build()
    except _TooMuch:
        raise InputError(
            f"{folder / 'config.json'} describes a network that is far larger than the {len(tensors)} tensors of its "
            "weights.",
            parameter=parameter,
        ) from None
    except Exception as error:  # for an invalid config, the libraries raise errors of any type
        raise InputError(
            f"{folder / 'config.json'} describes a network that cannot be built: {reason_of(error)}",
            parameter=parameter,
        ) from None


class _TooMuch(Exception):
    """The network under construction is far larger than its file."""


@contextmanager
def _no_more_than(tensors: int, numbers: int) -> Iterator[None]:
    """Inside the block, raises ``_TooMuch`` as soon as this thread registers more than that in modules."""
    from torch.nn.modules import module as hooks

    thread, had = threading.get_ident(), [0, 0]

    def count(owner: nn.Module, name: str, tensor: Any) -> None:
        if tensor is not None and threading.get_ident() == thread:
            had[0] += 1
            had[1] += tensor.numel()
            if had[0] > tensors or had[1] > numbers + 10**8:
                raise _TooMuch

    made = [
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in made:
            handle.remove()
