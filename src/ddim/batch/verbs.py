"""What a batch is computed by: ``invert``, ``edit``, ``reconstruct`` and ``sample``, each with all rows in one call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.images import png_bytes, to_pil
from ..evaluation.metrics import errors
from ..inversion.code_file import code_bytes
from ..models.base import Model
from ..pipelines.edit import edit
from ..pipelines.events import OnEvent
from ..pipelines.interpolate import join
from ..pipelines.invert import invert
from ..pipelines.reconstruct import reconstruct
from ..pipelines.sample import sample
from .items import Item
from .output import Row, code_of


@dataclass(frozen=True, eq=False)
class Call:
    """A batch as a pipeline takes it.

    Attributes:
        model: the model.
        items: the item of each row, filled up to the size of the batch.
        contents: the picture of each row as a tensor [C, H, W], the row of a code, or None.
        own: the rows whose results are used.
        first: the index of the item in row 0.
        arguments: of the pipeline.
        on_event: its callback.
    """

    model: Model
    items: Sequence[Item]
    contents: Sequence[Any]
    own: Sequence[int]
    first: int
    arguments: Mapping[str, Any]
    on_event: OnEvent

    @property
    def size(self) -> int:
        """The number of rows."""
        return len(self.items)

    @property
    def pixels(self) -> Tensor:
        """The pictures, [N, C, H, W] in [0, 1]."""
        return torch.stack(list(self.contents))

    def words(self, name: str, field: str) -> dict[str, Any]:
        """The argument ``name`` with a field of each item; empty if no item has one."""
        values = [getattr(item, field) for item in self.items]
        return {name: values} if any(value not in ("", None) for value in values) else {}


def run_invert(call: Call) -> list[Row]:
    """Inverts pictures, and unless ``check`` is False reconstructs them at once."""
    arguments = dict(call.arguments)
    check = arguments.pop("check", True)
    batched_cfg = arguments.pop("batched_cfg", True)
    arguments |= _seed(call) | call.words("prompt", "prompt") | call.words("labels", "label")
    code = invert(call.model, call.pixels, batch=call.size, on_event=call.on_event, **arguments)
    rows: list[Row] = [{"code": code_bytes(code[k])} for k in call.own]
    if not check:
        return rows
    again = reconstruct(call.model, code, batch=call.size, batched_cfg=batched_cfg, on_event=call.on_event)
    measured = errors(call.pixels, again)
    pictures = [png_bytes(to_pil(again[k])) for k in call.own]
    found = zip(rows, call.own, pictures, strict=True)
    return [{**row, **measured[k], "picture": picture} for row, k, picture in found]


def run_edit(call: Call) -> list[Row]:
    """Edits pictures to one target each; the reconstruction is compared with the picture."""
    arguments: dict[str, Any] = {**call.arguments, **_seed(call)}
    arguments |= call.words("source_prompt", "prompt") | call.words("source_labels", "label")
    for name, field in (("prompt", "target"), ("labels", "target_label")):
        for key, values in call.words(name, field).items():
            arguments[key] = [[value] for value in values]  # one target for each picture
    edited = edit(call.model, call.pixels, batch=2 * call.size, on_event=call.on_event, **arguments)
    measured = errors(call.pixels, edited.reconstruction)
    return [{**measured[k], "picture": png_bytes(to_pil(edited.edits[k, 0]))} for k in call.own]


def run_sample(call: Call) -> list[Row]:
    """Samples pictures from noise."""
    arguments: dict[str, Any] = {**call.arguments, **_seed(call)}
    arguments |= call.words("prompt", "prompt") | call.words("labels", "label")
    images = sample(call.model, call.size, batch=call.size, on_event=call.on_event, **arguments)
    return [{"picture": png_bytes(to_pil(images[k]))} for k in call.own]


def run_reconstruct(call: Call) -> list[Row]:
    """Reconstructs codes. Those that record their network calls share one call, as in their inversion."""
    codes = {k: code_of(call.contents[k]) for k in call.own}
    together = join(list(codes.values()))
    at = {k: n for n, k in enumerate(codes)}
    if not together.calls:  # others get as many rows as their inversion had
        together = together.take([at.get(k, 0) for k in range(call.size)])
        at = {k: k for k in codes}
    images = reconstruct(call.model, together, batch=call.size, on_event=call.on_event, **call.arguments)
    return [{"picture": png_bytes(to_pil(images[at[k]])), "prompt": call.contents[k]["prompt"]} for k in call.own]


VERBS: dict[str, Callable[[Call], list[Row]]] = {
    "invert": run_invert,
    "edit": run_edit,
    "reconstruct": run_reconstruct,
    "sample": run_sample,
}


def _seed(call: Call) -> dict[str, Any]:
    """The seed of row 0; the pipelines count on from it."""
    seed = call.arguments.get("seed")
    return {"seed": call.first + (0 if seed is None else int(seed))}
