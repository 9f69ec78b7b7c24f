"""What tells two models apart: a hash over config and weights."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..core.path import GaussianPath


def fingerprint(network: nn.Module, path: GaussianPath | None, prediction: str) -> str:
    """SHA-256 over what shapes the model's answers: path, if any, prediction, network config, and its weights.

    Of every weight up to 4096 elements count, as they were before a cast; fp16 files and their float32 copies agree.
    Options at their defaults are left out, so that a newer diffusers with more of them gives the same.
    """
    network = getattr(network, "_orig_mod", network)  # torch.compile's wrapper is no part of it
    table: list[str] = []
    if path is not None:
        levels = torch.linspace(0, path.t_max, path.levels + 1, dtype=torch.float64)
        signal, noise = path.alpha(levels).tolist(), path.sigma(levels).tolist()
        table = [f"{a:.9f} {s:.9f}" for a, s in zip(signal, noise, strict=True)]
    config: Any = getattr(network, "config", {})
    if isinstance(config, Mapping):  # of diffusers
        usual = _defaults(type(network))
        entries = {k: v for k, v in config.items() if not str(k).startswith("_")}
    elif base := next((c for c in reversed(type(config).__mro__) if c.__name__.startswith("PreTrained")), None):
        # of transformers: what its own class adds to the parameters that every config has
        usual = {k: v for k, v in _defaults(type(config)).items() if k not in _defaults(base)}
        entries = {k: getattr(config, k) for k in usual if k != "self"}
    else:  # of somebody's own network: what its printed form would say is not the same on every machine
        usual, entries = {}, {}
    options = {k: v for k, v in entries.items() if _plain(v) != _plain(usual.get(k))}
    about = json.dumps([prediction, table, options], sort_keys=True, default=str)
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(network.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):  # a module's extra state may be anything
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        stored = _stored(network, name) if tensor.is_meta else tensor
        if stored is None:
            continue
        flat = stored.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // 4096)].cpu().float()
        digest.update(picked.numpy().tobytes())
    return digest.hexdigest()


def _stored(network: nn.Module, name: str) -> torch.Tensor | None:
    """A weight that accelerate offloads, from where it keeps it; None where that is not known."""
    owner, _, own = name.rpartition(".")
    hook: Any = getattr(network.get_submodule(owner), "_hf_hook", None)
    maps = [getattr(each, "weights_map", None) for each in getattr(hook, "hooks", [hook])]
    return next((kept[own] for kept in maps if kept is not None), None)


def _defaults(kind: type) -> dict[str, Any]:
    return {k: p.default for k, p in inspect.signature(kind.__init__).parameters.items()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
