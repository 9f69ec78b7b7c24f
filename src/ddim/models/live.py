"""Checks of pipeline objects that the user has set up, for what this library cannot use."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .._utils.errors import InputError

PLAIN = (
    *("AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor", "SlicedAttnProcessor", "FusedAttnProcessor2_0"),
    *("JointAttnProcessor2_0", "FusedJointAttnProcessor2_0", "FluxAttnProcessor", "QwenDoubleStreamAttnProcessor2_0"),
    *("Flux2AttnProcessor", "Flux2ParallelSelfAttnProcessor", "ZSingleStreamAttnProcessor", "CountedAttention"),
    *("Lumina2AttnProcessor2_0", "SanaAttnProcessor2_0"),
    *("ControlledAttention", "ControlledSD3", "ControlledFlux", "ControlledFlux2Single", "ControlledQwen"),
    *("ControlledZImage", "ControlledLumina2", "ControlledSana"),
)
"""Attention processors that compute plain attention, so that those of attention control may replace them."""

_PLAIN_WEIGHTS = (torch.Tensor, nn.Parameter, getattr(nn, "Buffer", nn.Parameter))  # torch 2.5 has added nn.Buffer


def require_eval_mode(network: nn.Module, part: str) -> None:
    """Raises InputError for a network in training mode, because dropout would make every call different."""
    if network.training:
        raise InputError(
            f"the {part} of the pipeline is in training mode; call pipeline.{part}.eval() first.", parameter="model"
        )


def require_parts(pipeline: Any, parts: Mapping[str, tuple[str, ...]]) -> None:
    """Raises InputError if a pipeline lacks one of these parts, or if it has another class.

    Args:
        pipeline: the pipeline object.
        parts: name of a part -> names of the classes that are supported; subclasses are accepted too.
    """
    for part, kinds in parts.items():
        found: Any = getattr(pipeline, part, None)
        found = getattr(found, "_orig_mod", found)  # the module inside the wrapper of torch.compile
        if found is None:
            raise InputError(
                f"the {type(pipeline).__name__} has no {part}; load the pipeline with a {kinds[0]}.",
                parameter="model",
            )
        if not {kind.__name__ for kind in type(found).__mro__} & set(kinds):
            raise InputError(
                f"the {part} of the pipeline is a {type(found).__name__}; only {' or '.join(kinds)} is supported.",
                parameter="model",
            )


def refuse_ip_adapter(network: Any) -> None:
    """Raises InputError for a network with an IP-Adapter, because a latent code cannot store the adapter's image."""
    config = getattr(network, "config", None)
    # diffusers names the adapter in the config of a U-Net and of FLUX, and adds a module to the transformer of SD 3.
    named = getattr(config, "encoder_hid_dim_type", None) == "ip_image_proj"
    if named or getattr(network, "image_proj", None) is not None:
        raise InputError(
            "the pipeline has an IP-Adapter, and a latent code cannot store the image that it needs; call "
            "pipeline.unload_ip_adapter() first.",
            parameter="model",
        )


def is_compiled(network: nn.Module) -> bool:
    """Whether a network was compiled, by ``torch.compile(network)`` or by ``network.compile()``."""
    return hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None) is not None


def refuse_compiled(network: nn.Module) -> None:
    """Raises InputError for a compiled network, because compiled code ignores attention controllers."""
    if is_compiled(network):
        raise InputError(
            "the network is compiled, and attention in compiled code cannot be controlled; load it without compile, or "
            "use attention = 'none'.",
            parameter="attention",
        )


def is_hooked(network: nn.Module) -> bool:
    """Whether a module of the network has hooks, of the user, of accelerate or of diffusers.

    Layerwise casting and offloading change a layer's weights before and after each of its calls, so that two threads
    cannot call it at once.
    """
    return any(
        module._forward_hooks or module._forward_pre_hooks or {"_hf_hook", "_diffusers_hook"} & module.__dict__.keys()
        for module in network.modules()
    )


def is_quantised(weight: torch.Tensor) -> bool:
    """Whether a weight is stored as integers or in 8 bits, or is of a class that a quantisation library has added."""
    return type(weight) not in _PLAIN_WEIGHTS or (weight.dtype.itemsize == 1 and weight.dtype != torch.bool)


def quantised_layers(network: nn.Module) -> list[str]:
    """Returns the classes of a network's modules that have quantised weights."""
    return sorted(
        {
            type(module).__name__
            for module in network.modules()
            for weight in (*module._parameters.values(), *module._buffers.values())
            if weight is not None and is_quantised(weight)
        }
    )


def is_lora_layer(module: nn.Module) -> bool:
    """Whether a module is a layer with LoRA adapters, as peft makes them."""
    return isinstance(getattr(module, "scaling", None), dict) and isinstance(
        getattr(module, "active_adapters", None), list
    )


def active_adapters(layer: Any) -> dict[str, float]:
    """Returns the active adapters of a LoRA layer, fused or not: name -> scale."""
    if layer.disable_adapters:
        return {}
    return {name: float(layer.scaling[name]) for name in layer.active_adapters if name in layer.scaling}


def acting_adapters(networks: Iterable[nn.Module]) -> tuple[object, ...]:
    """Returns a value that changes with what the LoRA layers of some networks do.

    It holds the name of each layer with its active adapters, their scales, and those that are fused.
    """
    return tuple(
        (place, name, tuple(active_adapters(layer).items()), tuple(getattr(layer, "merged_adapters", ())))
        for place, network in enumerate(networks)
        for name, layer in network.named_modules()
        if is_lora_layer(layer)
    )


SAFE = "file_"
"""What the name of an adapter begins with whose file is named as an attribute of peft's tables, such as ``train``."""
_TABLES = (nn.ModuleDict(), nn.ParameterDict())


def safe_name(name: str) -> str:
    """Returns the name of an adapter that peft keeps under a name; see ``SAFE``."""
    return f"{SAFE}{name}" if any(hasattr(table, name) for table in _TABLES) else name


def shown_name(adapter: str) -> str:
    """Returns the name under which an adapter is shown, which is that of its file: the inverse of ``safe_name``."""
    name = adapter.removeprefix(SAFE)
    return name if safe_name(name) == adapter else adapter


def adapters_of(networks: Iterable[nn.Module]) -> dict[str, list[float]]:
    """Returns the active LoRA adapters of some networks: name -> the scales of its layers, sorted by name.

    The names are those of ``shown_name``.
    """
    found: dict[str, list[float]] = {}
    for network in networks:
        for layer in filter(is_lora_layer, network.modules()):
            for name, scale in active_adapters(layer).items():
                found.setdefault(shown_name(name), []).append(scale)
    return dict(sorted(found.items()))
