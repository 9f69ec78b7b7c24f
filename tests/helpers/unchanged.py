"""Whether a pipeline object is as it was before the library worked with it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def networks(pipeline: Any) -> dict[str, nn.Module]:
    """The networks of a pipeline, by the names of its parts."""
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def processors(network: nn.Module) -> list[Any]:
    """The attention processors of a network."""
    return [module.processor for module in network.modules() if hasattr(module, "processor")]


def _all_processors(pipeline: Any) -> list[Any]:
    return [one for network in networks(pipeline).values() for one in processors(network)]


def _plain(config: Any) -> dict[str, Any]:
    known = config.to_dict() if hasattr(config, "to_dict") else dict(config)  # of transformers, of diffusers
    return json.loads(json.dumps({k: v for k, v in known.items() if not k.startswith("_")}, default=str))


def _numbers(pipeline: Any) -> dict[tuple[str, str], torch.Tensor]:
    return {
        (part, name): tensor
        for part, network in networks(pipeline).items()
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]
    }


class Kept:
    """All that a pipeline is, to be held against what it is later.

    Args:
        pipeline: the pipeline.
        moves: whether accelerate moves its tensors at each call, so that they lie elsewhere afterwards.
    """

    def __init__(self, pipeline: Any, moves: bool = False) -> None:
        self.pipeline, self.moves = pipeline, moves
        self.tensors = {
            key: (tensor, tensor.detach().clone(), tensor.stride(), tensor.data_ptr(), tensor.requires_grad)
            for key, tensor in _numbers(pipeline).items()
        }
        self.modules = self.of_modules()
        self.processors = _all_processors(pipeline)
        self.facts = self.of_facts()

    def of_modules(self) -> dict[tuple[str, str], tuple[Any, ...]]:
        """Of each module: itself, whether it is in training, its hooks, and what stands in its dictionary."""
        return {
            (part, name): (
                id(module),
                module.training,
                [list(hooks) for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)],
                sorted(module.__dict__),
                id(getattr(module, "_hf_hook", None)),
                module.__dict__.get("forward"),
            )
            for part, network in networks(self.pipeline).items()
            for name, module in network.named_modules()
        }

    def of_facts(self) -> dict[str, Any]:
        """Of the parts that are no networks: their configs, and what the pipeline holds."""
        pipeline = self.pipeline
        tokenizers = [part for name, part in pipeline.components.items() if name.startswith("tokenizer") and part]
        facts = ("model_max_length", "padding_side", "truncation_side", "pad_token_id", "chat_template")
        return {
            "configs": {name: _plain(getattr(part, "config", {})) for name, part in pipeline.components.items()},
            "scheduler": (id(pipeline.scheduler), type(pipeline.scheduler), sorted(pipeline.scheduler.__dict__)),
            "timesteps": pipeline.scheduler.timesteps.tolist(),
            "tokenizers": [(id(t), len(t), *(getattr(t, fact, None) for fact in facts)) for t in tokenizers],
            "parts": {name: id(part) for name, part in pipeline.components.items()},
            "device": (str(pipeline.device), str(pipeline.dtype)),
            "own": sorted(pipeline.__dict__),
            "threads": torch.get_num_threads(),
        }

    def is_still(self) -> None:
        """Fails where something is not as it was."""
        found = _numbers(self.pipeline)
        assert found.keys() == self.tensors.keys()
        for key, (itself, copy, stride, place, wants) in self.tensors.items():
            now = found[key]
            assert now.is_meta == copy.is_meta, key
            if not now.is_meta:  # accelerate makes an empty parameter anew after each call
                assert torch.equal(now, copy), key
                assert self.moves or (now is itself and now.data_ptr() == place), key
            assert (now.dtype, now.device) == (copy.dtype, copy.device), key
            assert (now.stride(), now.requires_grad) == (stride, wants), key
            assert now.grad is None, key
        modules = self.of_modules()
        assert modules.keys() == self.modules.keys()
        for key, now in modules.items():
            assert now == self.modules[key], key
        assert all(a is b for a, b in zip(_all_processors(self.pipeline), self.processors, strict=True))
        assert self.of_facts() == self.facts


@contextmanager
def unchanged(pipeline: Any, moves: bool = False) -> Iterator[None]:
    """Whatever ends the block, the pipeline is as it was; see ``Kept``."""
    kept = Kept(pipeline, moves)
    try:
        yield
    finally:
        kept.is_still()
