"""Live pipelines, as their owner set them up: what of them is taken, and what is refused by name."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from .._utils.errors import InputError

PLAIN = (
    *("AttnProcessor", "AttnProcessor2_0", "XFormersAttnProcessor", "SlicedAttnProcessor", "FusedAttnProcessor2_0"),
    "ControlledAttention",
)
"""Processors of diffusers that compute plain attention, and that ours may therefore stand in for."""


def require_eval_mode(network: nn.Module, part: str) -> None:
    """Raises InputError for a network in training, whose dropout would answer each call otherwise."""
    if network.training:
        raise InputError(
            f"the {part} of the pipeline is in training; call pipeline.{part}.eval() first.", parameter="model"
        )


def require_parts(pipeline: Any, parts: Mapping[str, tuple[str, ...]]) -> None:
    """Raises InputError for a pipeline that lacks one of these parts, or has one of another class."""
    for part, kinds in parts.items():
        found: Any = getattr(pipeline, part, None)
        found = getattr(found, "_orig_mod", found)  # compiled
        if found is None:
            raise InputError(
                f"the {type(pipeline).__name__} has no {part}; load it with one, such as a {kinds[0]}.",
                parameter="model",
            )
        if not {kind.__name__ for kind in type(found).__mro__} & set(kinds):
            raise InputError(
                f"the {part} of the pipeline is a {type(found).__name__}; {' or '.join(kinds)} is taken.",
                parameter="model",
            )


def refuse_ip_adapter(pipeline: Any) -> None:
    """Raises InputError for a pipeline with parts that a code could not say: IP-Adapters, image encoders in use."""
    unet: Any = pipeline.unet
    if getattr(unet.config, "encoder_hid_dim_type", None) == "ip_image_proj":
        raise InputError(
            "the pipeline has an IP-Adapter, whose picture is no part of a code; call pipeline.unload_ip_adapter() "
            "first.",
            parameter="model",
        )


def is_compiled(network: nn.Module) -> bool:
    """Whether torch.compile stands around a network, or in its own call."""
    return hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None) is not None


def refuse_compiled(network: nn.Module) -> None:
    """Raises InputError for a compiled network, whose attention cannot be controlled call by call."""
    if is_compiled(network):
        raise InputError(
            "the U-Net is compiled, and compiled code has no place for a controller; load it without compile, or use "
            "attention = 'none'.",
            parameter="attention",
        )


def is_hooked(network: nn.Module) -> bool:
    """Whether something of its owner's, or of accelerate's, is called with each call of one of its modules."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")
        for module in network.modules()
    )


def adapters_of(networks: Iterable[nn.Module]) -> dict[str, list[float]]:
    """The LoRA adapters that act in some networks: name to its layers' scales, in order of name."""
    found: dict[str, list[float]] = {}
    for network in networks:
        for module in network.modules():
            scaling, active = getattr(module, "scaling", None), getattr(module, "active_adapters", None)
            if (
                isinstance(scaling, dict)
                and isinstance(active, list)
                and not getattr(module, "disable_adapters", False)
            ):
                for name in active:
                    if name in scaling:
                        found.setdefault(name, []).append(float(scaling[name]))
    return dict(sorted(found.items()))
