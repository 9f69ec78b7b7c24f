"""What a reversible solver's states are made of, seen from outside: integers at the data end, before and after."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ddim
from ddim.inversion.calls import recorded_calls
from ddim.models.engine import threads as engine
from ddim.models.engine.thread_table import Least
from ddim.pipelines import reconstruct as pipeline
from ddim.solvers.lattice import ReversibleSolver

Integers = Mapping[str, Tensor]


def same(a: Integers, b: Integers) -> bool:
    """Whether two states are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def rows(integers: Integers, which: Sequence[int]) -> Integers:
    """Those of some images."""
    return {key: value[list(which)] for key, value in integers.items()}


def inverted(model: Any, images: Tensor, **settings: Any) -> tuple[ddim.LatentCode, Integers]:
    """The code of images, and what they were at the data end."""
    begun: list[Integers] = []
    from_image = ReversibleSolver.from_image

    def watch(self: ReversibleSolver, *a: Any) -> Any:
        begun.append(from_image(self, *a))
        return begun[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReversibleSolver, "from_image", watch)
        code = ddim.invert(model, images, **settings)
    return code, {key: torch.cat([part[key] for part in begun]) for key in begun[0]}


def returned(model: Any, code: ddim.LatentCode, **settings: Any) -> tuple[Tensor, Integers]:
    """The images of a code, and what they are at the data end."""
    ended: list[Integers] = []
    replay = pipeline.replay

    def watch(*a: Any, **k: Any) -> Any:
        ended.append(replay(*a, **k))
        return ended[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "replay", watch)
        images = ddim.reconstruct(model, code, **settings)
    placed: dict[int, Integers] = {}
    for call, end in zip(recorded_calls(code.calls), ended, strict=True):
        placed |= {image: rows(end, [row]) for row, image in call.own}
    return images, {key: torch.cat([placed[k][key] for k in range(len(code))]) for key in ended[0]}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch has so many threads inside, the machine as many cores, and one row is work enough for a thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "usable_cores", lambda: count)
            patch.setattr(engine, "CPU", {"float32": Least(part=1.0, layer=1e18)})
            yield
    finally:
        torch.set_num_threads(before)


def main(folder: Path) -> None:
    """In another process: every code of a folder comes back, and what came back is written beside it."""
    import tiny_text

    models: dict[tuple[str, str], Any] = {}
    for file in sorted(folder.glob("*.code")):
        code = ddim.LatentCode.load(file)
        key = code.model, code.dtype
        if key not in models:
            bundled = code.model in ddim.bundled_models()
            dtype = getattr(torch, code.dtype)
            models[key] = ddim.load(code.model, device="cpu", dtype=dtype) if bundled else tiny_text.model(dtype=dtype)
        images, ended = returned(models[key], code, strict=True)
        torch.save((images, dict(ended)), file.with_suffix(".back"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
