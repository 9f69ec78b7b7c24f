"""A part of a model from its folder: what its config describes, from safetensors that fit it tensor for tensor."""

import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.error_text import reason_of
from .._utils.errors import DDIMError, InputError
from .._utils.files import read_json
from .._utils.silence import loading

DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
"""How each library names its weights, without the variant and the ending."""
PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"}
_VARIANTS = ("", ".fp16", ".bf16")  # the first whole one is taken
_WRAPPED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # anywhere in a name
_DATA_PARALLEL = "module."  # in front of every name
_COUNTS = ("position_ids", "num_batches_tracked")  # tensors of transformers that are integers by right
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # by diffusers, in 2023


def diffusers_part(kind: Any, folder: Path, *, parameter: str = "model") -> Any:
    """A network of diffusers, on the CPU and in the dtype that its file has.

    Args:
        kind: the class, such as ``UNet2DModel``.
        folder: with ``config.json`` and safetensors, whole or in shards, in full or as a variant.
        parameter: what an error is about.

    Raises:
        InputError: there are no safetensors (pickles are never loaded), or they do not fit the config; the sentence
            names the first tensor that is missing, unexpected or misshapen.
        DDIMError: the files are broken.
    """
    config = _config(folder, parameter)
    tensors = read_tensors(folder, DIFFUSERS, parameter=parameter)
    with loading():
        # built without memory: a config can describe anything
        network = _described(lambda: kind.from_config(config), folder, tensors, parameter)
    expected = network.state_dict()
    tensors = {_renamed(name, expected): tensor for name, tensor in unwrapped(tensors).items()}
    must_fit(expected, tensors, str(folder), parameter=parameter)
    network.load_state_dict(tensors, assign=True)
    if any(t.is_meta for t in network.buffers()):  # those that are in no file, such as a kernel, are made by building
        with loading():
            made = dict(kind.from_config(config).named_buffers())
        for module_name, module in network.named_modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                if buffer.is_meta:
                    setattr(module, name, made[f"{module_name}.{name}" if module_name else name])
    return network.eval()


def transformers_part(
    kind: Any, folder: Path, *, parameter: str = "model", spare: Collection[str] = (), **options: Any
) -> Any:
    """A network of transformers, on the CPU; in float32, or in float64 where its file is. As ``diffusers_part``.

    Args:
        kind: the class, such as ``CLIPTextModel``.
        spare: beginnings of names that the file may hold and that are not used, such as another task's head.
        options: of the class's constructor.
    """
    about, known = _config(folder, parameter).get("model_type"), kind.config_class.model_type
    if not isinstance(about, str) or not known.startswith(about):  # a text encoder may have a whole CLIP's config
        raise InputError(f"{folder} is no {kind.__name__}: its config is of {about!r}.", parameter=parameter)
    tensors = unwrapped(read_tensors(folder, TRANSFORMERS, parameter=parameter))
    _refuse_integers({k: t for k, t in tensors.items() if not k.endswith(_COUNTS)}, str(folder), parameter)
    wide = any(t.dtype == torch.float64 for t in tensors.values())
    dtype = torch.float64 if wide else torch.float32
    with loading():
        try:
            config = kind.config_class.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # of a config, transformers raises what comes up
            raise InputError(
                f"{folder / 'config.json'} is not taken: {reason_of(error)}", parameter=parameter
            ) from None
        _described(lambda: kind(config, **options), folder, tensors, parameter)
        network, found = reported(
            kind, None, str(folder), parameter=parameter, config=config, state_dict=tensors, dtype=dtype, **options
        )
    must_be_whole(found, str(folder), parameter=parameter, spare=spare)
    return network.eval()


def reported(kind: Any, source: "str | None", name: str, *, parameter: str, **options: Any) -> tuple[Any, Any]:
    """A network of transformers, and its report of what was missing, unexpected or misshapen: see ``must_be_whole``.

    Args:
        source: what ``from_pretrained`` is given; None where ``options`` have the tensors.
        name: what the sentence of an error is about.
    """
    with loading():
        try:
            return kind.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
        except Exception as error:  # transformers, safetensors and the hub's client raise dozens of kinds
            raise InputError(
                f"{name} cannot be loaded as a {kind.__name__}: {reason_of(error)}",
                parameter=parameter,
                hint="A folder with .safetensors will do.",
            ) from None


def must_be_whole(found: Mapping[str, Any], name: str, *, parameter: str, spare: Collection[str] = ()) -> None:
    """Raises InputError where transformers' report says that a tensor was missing, unexpected or misshapen: what is
    missing is made up at random."""
    shapes = sorted((key, tuple(given), tuple(wanted)) for key, given, wanted in found["mismatched_keys"])
    wrong = {key for key, _, _ in shapes}
    # older transformers kept the positions, which count from 0, in the file
    passed = (*spare, "rotary_emb.inv_freq")
    more = [k for k in found["unexpected_keys"] if not k.startswith(passed) and not k.endswith(_COUNTS[0])]
    _refuse([k for k in found["missing_keys"] if k not in wrong], more, shapes, name, parameter)


def must_fit(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], name: str, *, parameter: str | None) -> None:
    """Raises InputError for the first tensor that is missing, unexpected, misshapen or not of numbers as it should be.

    Args:
        expected: a module's tensors.
        given: a file's.
        name: what the sentence is about.
        parameter: as for ``InputError``.
    """
    both = sorted(expected.keys() & given.keys())
    shapes = [(k, tuple(given[k].shape), tuple(expected[k].shape)) for k in both if given[k].shape != expected[k].shape]
    _refuse(expected.keys() - given.keys(), given.keys() - expected.keys(), shapes, name, parameter)
    _refuse_integers({k: given[k] for k in both if expected[k].is_floating_point()}, name, parameter)


def _refuse_integers(tensors: Mapping[str, Tensor], name: str, parameter: str | None) -> None:
    wrong = next((key for key, tensor in sorted(tensors.items()) if not tensor.is_floating_point()), None)
    if wrong is not None:
        what = str(tensors[wrong].dtype).removeprefix("torch.")
        raise InputError(
            f"{name} cannot be loaded: its tensor {wrong!r} is stored as {what}; quantised weights are not taken.",
            parameter=parameter,
        )


def _refuse(
    missing: Collection[str],
    unexpected: Collection[str],
    misshapen: Collection[tuple[str, tuple[int, ...], tuple[int, ...]]],
    name: str,
    parameter: str | None,
) -> None:
    says = None
    if missing:
        says = f"the tensor {min(missing)!r} is missing{_others(missing)}"
    elif misshapen:
        key, given, wanted = min(misshapen)
        says = f"the tensor {key!r} is {_sides(given)}, not {_sides(wanted)} as its config says{_others(misshapen)}"
    elif unexpected:
        says = f"nothing takes its tensor {min(unexpected)!r}{_others(unexpected)}"
    if says:
        raise InputError(f"{name} cannot be loaded: {says}.", parameter=parameter)


def _others(names: Collection[Any]) -> str:
    return f" (one of {len(names)})" if len(names) > 1 else ""


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without what torch.compile, DataParallel and their kin leave in the names."""
    names = {name: name for name in tensors}
    for mark in _WRAPPED:
        names = {old: new.replace(mark, "") for old, new in names.items()}
    while names and all(new.startswith(_DATA_PARALLEL) for new in names.values()):
        names = {old: new.removeprefix(_DATA_PARALLEL) for old, new in names.items()}
    if len({*names.values()}) < len(names):  # two would become one
        return dict(tensors)
    return {names[old]: tensor for old, tensor in tensors.items()}


def _renamed(name: str, expected: Mapping[str, Tensor]) -> str:
    """A tensor's name now; diffusers has renamed the parts of its attention."""
    head, _, leaf = name.rpartition(".")
    block, _, part = head.rpartition(".")
    new = f"{block}.{_RENAMED[part]}.{leaf}" if part in _RENAMED else name
    return new if name not in expected and new in expected else name


def read_tensors(folder: Path, stem: str, *, parameter: str = "model") -> dict[str, Tensor]:
    """All tensors of a folder's weights, in their own dtype.

    Raises:
        InputError: there are no safetensors, or a shard is missing.
        DDIMError: a file is broken.
    """
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder, {p.name for p in folder.glob("*")}, stem, parameter=parameter):
        try:
            tensors |= load_file(folder / file)
        except Exception as error:  # of safetensors and of the disk
            raise DDIMError(f"{folder / file} cannot be loaded: {reason_of(error)}", parameter=parameter) from None
    return tensors


def weight_files(folder: Path, names: Collection[str], stem: str, *, parameter: str = "model") -> list[str]:
    """Which files hold a part's weights: the full ones where they are whole, or a variant's.

    Args:
        folder: where the indices of shards lie.
        names: the files that there are, perhaps not yet here.
        stem: ``DIFFUSERS`` or ``TRANSFORMERS``.

    Raises:
        InputError: there are none; a pickle is named.
    """
    lacking = ""
    for variant in _VARIANTS:
        if (whole := f"{stem}{variant}.safetensors") in names:
            return [whole]
        for index in (f"{stem}.safetensors.index{variant}.json", f"{stem}{variant}.safetensors.index.json"):
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
        f"{folder} holds {what}; a diffusers folder with .safetensors weights is needed.", parameter=parameter
    )


def _shards(index: Path, parameter: str) -> list[str]:
    """The files that an index names."""
    named = read_json(index).get("weight_map")
    shards = sorted({*named.values()}, key=str) if isinstance(named, dict) else []
    if not shards or not all(isinstance(s, str) and re.fullmatch(r"[^/\\]+\.safetensors", s) for s in shards):
        raise InputError(f"{index} is no index of weights: its weight_map names no files.", parameter=parameter)
    return shards


def _config(folder: Path, parameter: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(
            f"{folder} holds no weights; a diffusers folder with .safetensors weights is needed.", parameter=parameter
        )
    return read_json(folder / "config.json")


def _described(build: Callable[[], Any], folder: Path, tensors: Mapping[str, Tensor], parameter: str) -> Any:
    """What a config describes, without memory for it; given up where it is far more than the file holds."""
    try:
        with torch.device("meta"), _no_more_than(2 * len(tensors) + 1000, 2 * sum(t.numel() for t in tensors.values())):
            return build()
    except _TooMuch:
        raise InputError(
            f"{folder / 'config.json'} describes far more than the {len(tensors)} tensors that its weights hold.",
            parameter=parameter,
        ) from None
    except Exception as error:  # of a config that makes no sense, the libraries raise what comes up
        raise InputError(
            f"{folder / 'config.json'} describes no network that can be built: {reason_of(error)}",
            parameter=parameter,
        ) from None


class _TooMuch(Exception):
    """More than a file could fill."""


@contextmanager
def _no_more_than(tensors: int, numbers: int) -> Iterator[None]:
    """Raises ``_TooMuch`` as soon as this thread's modules have more."""
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
