"""A fingerprint of a model: a hash over its config and weights, by which a latent code recognises it."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..core.path import GaussianPath
from .live import active_adapters, is_lora_layer


def fingerprint(network: nn.Module, path: GaussianPath | None, prediction: str) -> str:
    """Returns a SHA-256 hash over all that determines a network's outputs.

    These are the noise levels of the path (if any), the prediction, the network's config, and its weights. Of a
    large weight only 4096 to 8191 elements are read, in float32, so that float16 files and their float32 copies agree.
    Options that have their default values are left out, so that a newer diffusers with more options gives the same
    hash.

    An active LoRA adapter counts with its weights and its scales, and not with the name that it has in memory. An
    adapter that is loaded but not active does not count, and one that is fused counts as a change of the weights.

    Args:
        network: the network, before it is cast to another dtype.
        path: the path that it was trained on, or None.
        prediction: what it is asked for, ``Schedule.predicts``.
    """
    network = getattr(network, "_orig_mod", network)  # the module inside the wrapper of torch.compile
    table: list[str] = []
    if path is not None:
        levels = torch.linspace(0, path.t_max, path.levels + 1, dtype=torch.float64)
        signal, noise = path.alpha(levels).tolist(), path.sigma(levels).tolist()
        table = [f"{a:.9f} {s:.9f}" for a, s in zip(signal, noise, strict=True)]
    options = _options(getattr(network, "config", {}), type(network))
    about = json.dumps([prediction, table, options], sort_keys=True, default=str)
    digest = hashlib.sha256(about.encode())
    weights, adapters = _apart(network)
    for name, (key, tensor) in sorted(weights.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + _numbers(network, key, tensor))
    for adapter in sorted(adapters):
        digest.update(adapter)
    return digest.hexdigest()


def words_fingerprint(tokenizer: Any, embeddings: Any) -> str:
    """Returns a hash over the words that textual inversion has added to a text encoder; empty if there are none.

    ``fingerprint`` reads only a part of a large embedding, and might miss a word in it.

    Args:
        tokenizer: the tokenizer.
        embeddings: the embeddings of its tokens.
    """
    digest, weight = hashlib.sha256(), embeddings.weight
    stored = _stored(embeddings, "weight") if weight.is_meta else None
    rows = weight if stored is None else stored
    known = [word for word in added_words(tokenizer) if tokenizer.convert_tokens_to_ids(word) < len(rows)]
    for word in known:  # others cannot be embedded, and ``check_vocabularies`` refuses such a model
        row = rows[tokenizer.convert_tokens_to_ids(word)]
        digest.update(f"{word}{len(row)}".encode())
        if not row.is_meta:
            digest.update(row.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest() if known else ""


def middles(network: nn.Module) -> list[float]:
    """Returns the middle element of each weight of a network: a cheap sign that an adapter was fused into it."""
    weights = [weight.detach() for weight in network.parameters() if weight.numel() and not weight.is_meta]
    found = [weight[tuple(side // 2 for side in weight.shape)].double() for weight in weights]
    return torch.stack(found).tolist() if found else []


def added_words(tokenizer: Any) -> list[str]:
    """Returns the words that were added to a tokenizer's vocabulary, sorted; special tokens do not count."""
    return sorted(set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens))


def _numbers(network: nn.Module, key: str, tensor: torch.Tensor) -> bytes:
    """Returns the elements of a weight that count; empty if they are offloaded to a place that is not known."""
    stored = _stored(network, key) if tensor.is_meta else tensor
    if stored is None:
        return b""
    try:
        return _picked(stored)
    except NotImplementedError:  # torchao's tensors cannot be reshaped
        return _picked(stored.dequantize())


def _picked(tensor: torch.Tensor) -> bytes:
    """Returns every n-th element of a tensor in float32, 4096 to 8191 of a large one."""
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // 4096)].cpu().float().numpy().tobytes()


def _apart(network: nn.Module) -> tuple[dict[str, tuple[str, torch.Tensor]], list[bytes]]:
    """Tells the weights of a network from those of its LoRA adapters.

    Returns:
        The name of each weight without adapters -> its name in the network, and itself; and a hash of each active
        adapter.
    """
    layers = {name: module for name, module in network.named_modules() if is_lora_layer(module)}
    weights: dict[str, tuple[str, torch.Tensor]] = {}
    hashes: dict[str, Any] = {}
    for key, tensor in sorted(network.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):  # a module's extra state may be any object
            continue
        name, owner = key, _owner(key, layers)
        while owner is not None and name.startswith(f"{owner}.base_layer."):
            name = f"{owner}{name.removeprefix(f'{owner}.base_layer')}"
            owner = _owner(owner, layers)
        if owner is None or not name.startswith(f"{owner}."):
            weights[name] = key, tensor
            continue
        layer: Any = layers[owner]
        parts = key.removeprefix(f"{owner}.").split(".")
        fused = getattr(layer, "merged_adapters", None)  # the layer's own weight contains them
        for adapter, scale in ({} if fused else active_adapters(layer)).items():
            of = parts[1] if len(parts) > 1 and parts[1] in layer.scaling else None  # lora_A.<adapter>.weight
            if of not in (adapter, None):
                continue
            said = f"{owner} {parts if of is None else [parts[0], *parts[2:]]} {tuple(tensor.shape)} {scale!r}"
            own = hashes.setdefault(adapter, hashlib.sha256())
            own.update(said.encode() + _numbers(network, key, tensor))
    return weights, [own.digest() for own in hashes.values()]


def _owner(key: str, layers: Mapping[str, nn.Module]) -> str | None:
    """Returns the name of the innermost of some modules that a name lies in; None if it lies in none."""
    while "." in key:
        key = key.rpartition(".")[0]
        if key in layers:
            return key
    return None


def _options(config: Any, kind: type) -> dict[str, Any]:
    """Returns the options of a config that differ from their defaults, of configs inside it too.

    Args:
        config: a config of diffusers or transformers; others give no options, because their repr might differ from
            machine to machine.
        kind: the class of the network.
    """
    if isinstance(config, Mapping):  # a config of diffusers
        usual = _defaults(kind)
        entries = {k: v for k, v in config.items() if not str(k).startswith("_")}
    elif base := _base(config):  # only the options that its own class adds to those that every config has
        usual = {k: v for k, v in _defaults(type(config)).items() if k not in _defaults(base)}
        entries = {k: getattr(config, k) for k in usual if k != "self"}
    else:
        return {}
    entries = {k: _options(v, type(v)) if _base(v) else v for k, v in entries.items()}
    return {k: v for k, v in entries.items() if _plain(v) != _plain(usual.get(k))}


def _base(config: Any) -> type | None:
    """Returns the base class of the configs of transformers if this is one, otherwise None."""
    return next((c for c in reversed(type(config).__mro__) if c.__name__.startswith("PreTrained")), None)


def _stored(network: nn.Module, name: str) -> torch.Tensor | None:
    """Returns a weight that accelerate has offloaded, from its store; None if the store is not known."""
    owner, _, own = name.rpartition(".")
    hook: Any = getattr(network.get_submodule(owner), "_hf_hook", None)
    maps = [getattr(each, "weights_map", None) for each in getattr(hook, "hooks", [hook])]
    return next((kept[own] for kept in maps if kept is not None), None)


def _defaults(kind: type) -> dict[str, Any]:
    """Returns the default values of a class's constructor."""
    return {k: p.default for k, p in inspect.signature(kind.__init__).parameters.items()}


def _plain(value: Any) -> Any:
    """Converts a tuple to a list, because configs read from JSON hold lists."""
    return list(value) if isinstance(value, tuple) else value
