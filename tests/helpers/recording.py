"""What a network is called with, seen from outside."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def recorded(network: Any, run: Callable[[], object]) -> list[Mapping[str, Any]]:
    """The arguments of every call of a network while ``run`` runs, by the names in its ``forward``."""
    calls: list[Mapping[str, Any]] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(inspect.signature(module.forward).bind(*args, **kwargs).arguments)

    handle = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    return calls
