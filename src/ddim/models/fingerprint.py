"""A fingerprint of a model: a hash over its config and weights, by which a latent code recognises it."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..core.path import GaussianPath


def fingerprint(network: nn.Module, path: GaussianPath | None, prediction: str) -> str:
    """Returns a SHA-256 hash over all that determines a network's outputs.

    These are the noise levels of the path (if any), the prediction type, the network's config, and its weights. Of a
    large weight only 4096 to 8191 elements are read, in float32, so that float16 files and their float32 copies agree.
    Options that have their default values are left out, so that a newer diffusers with more options gives the same
    hash.

    Args:
        network: the network, before it is cast to another dtype.
        path: the path that it was trained on, or None.
        prediction: what it predicts.
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
    for name, tensor in sorted(network.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):  # a module's extra state may be any object
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        stored = _stored(network, name) if tensor.is_meta else tensor
        if stored is None:
            continue
        flat = stored.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // 4096)].cpu().float()
        digest.update(picked.numpy().tobytes())
    return digest.hexdigest()


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
