"""The section ``edit`` of benchmarks/gpu.py: ddim.edit against the order of work of prompt-to-prompt.

The reference is written plainly from the papers (Hertz et al. 2022, arXiv 2208.01626; Ju et al. 2023, arXiv 2310.01506,
direct inversion): S calls of one row to noise, then S calls of four rows (unconditional source and target, conditional
source and target) with attention processors that make every attention map and then edit it. After each step the source
is put back on its trajectory. Both sides have the same weights, grid, windows and prompts.
"""

import statistics
from dataclasses import dataclass
from typing import Any

import gpu_models as models
import torch
from gpu_bench import Bench, median_ratio
from gpu_models import SD15, SOURCE, TARGET, TINY_SD15
from rounds import in_turns
from torch import Tensor

import ddim
from ddim.core.tf32 import with_tf32
from ddim.editing.plan import AttentionEdit, within
from ddim.models.counted import Counted
from ddim.pipelines.common import grid_for

WEIGHT = 7.5
OURS, REFERENCE = "ddim.edit", "prompt-to-prompt's order of work"
CHANGED = 3
"""The token of the word that differs between the prompts: start, "a", "red", and then it."""


@dataclass(frozen=True)
class Plain:
    """A diffusers pipeline with the nodes of a grid, and the arithmetic of DDIM in the plainest form."""

    pipe: Any
    grid: ddim.Grid
    timesteps: tuple[float, ...]

    @classmethod
    def of(cls, pipe: Any, model: ddim.Model, steps: int) -> "Plain":
        """For a pipeline, on the grid that the library's model has."""
        grid = grid_for(model, steps, None)
        return cls(pipe, grid, tuple(float(model.schedule.timestep(grid[i])) for i in range(steps)))

    @property
    def steps(self) -> int:
        """S."""
        return len(self.timesteps)

    def text(self, prompts: list[str]) -> Tensor:
        """The embeddings of prompts, [N, L, D]."""
        with torch.no_grad():
            return self.pipe.encode_prompt(prompts, self.pipe.unet.device, 1, False)[0]

    def eps(self, x: Tensor, i: int, text: Tensor, **about: Any) -> Tensor:
        """The network's output at ``grid[i]``, in x's dtype."""
        unet = self.pipe.unet
        t = torch.tensor(int(self.timesteps[i]), device=x.device)
        return unet(x.to(unet.dtype), t, text.to(unet.dtype), return_dict=False, **about)[0].to(x.dtype)

    def move(self, x: Tensor, noise: Tensor, a: int, b: int) -> Tensor:
        """DDIM's step from ``grid[a]`` to ``grid[b]``."""
        s, t = self.grid[a], self.grid[b]
        return t.alpha * (x - s.sigma * noise) / s.alpha + t.sigma * noise

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents of pictures in [0, 1], in float32."""
        vae = self.pipe.vae
        with torch.no_grad():
            x = pictures.to(vae.device, vae.dtype) * 2 - 1
            return vae.encode(x).latent_dist.mean.float() * vae.config.scaling_factor

    def decode(self, x: Tensor) -> Tensor:
        """Pictures in [0, 1] of latents."""
        vae = self.pipe.vae
        with torch.no_grad():
            made = vae.decode((x / vae.config.scaling_factor).to(vae.dtype)).sample
        return ((made.float() + 1) / 2).clamp(0, 1)

    def pivot(self, x0: Tensor, text: Tensor) -> list[Tensor]:
        """The trajectory of DDIM inversion without guidance, from the data (last) to the noise (first)."""
        found = [x0]
        with torch.no_grad():
            for i in range(self.steps - 1, -1, -1):
                found.append(self.move(found[-1], self.eps(found[-1], i, text), i + 1, i))
        return found[::-1]


class Maps:
    """An attention processor that makes every attention map, and edits those of the conditional target (row 3).

    Attributes:
        cross, own: whether this call takes over the source's cross- and self-attention maps.
        positions: the largest number of positions of a self-attention map that is taken over.
    """

    def __init__(self, positions: int) -> None:
        self.cross = self.own = False
        self.positions = positions

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rows, heads = len(hidden_states), attn.heads
        query, key, value = (
            y.view(rows, -1, heads, y.shape[-1] // heads).transpose(1, 2)
            for y in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        maps = (query @ key.transpose(-1, -2) * attn.scale).softmax(-1)
        if rows == 4:
            maps = self.edited(maps, encoder_hidden_states is not None)
        out = (maps @ value).transpose(1, 2).reshape(rows, -1, heads * value.shape[-1])
        return attn.to_out[1](attn.to_out[0](out))

    def edited(self, maps: Tensor, cross: bool) -> Tensor:
        """The maps with the target's replaced where this call replaces them."""
        if cross and self.cross:
            kept = torch.zeros(maps.shape[-1], dtype=maps.dtype, device=maps.device)
            kept[CHANGED] = 1
            target = maps[2] * (1 - kept) + maps[3] * kept
            return torch.cat([maps[:3], target[None]])
        if not cross and self.own and maps.shape[-2] <= self.positions:
            return torch.cat([maps[:3], maps[2:3]])
        return maps


def reference(pipe: Any, model: ddim.Model, picture: Tensor, steps: int, edit: AttentionEdit) -> Tensor:
    """The source and the target, [2, 3, H, W] in [0, 1]."""
    plain = Plain.of(pipe, model, steps)
    texts = plain.text(["", "", SOURCE, TARGET])
    side = model.shape[1]
    control = Maps(edit.self_positions or (side // 2) ** 2)
    before = pipe.unet.attn_processors
    pivot = plain.pivot(plain.encode(picture), texts[2:3])
    pipe.unet.set_attn_processor(control)
    try:
        x = pivot[0].repeat(2, 1, 1, 1)
        with torch.no_grad():
            for i in range(steps):
                control.cross, control.own = within(edit.cross_steps, i, steps), within(edit.self_steps, i, steps)
                uncond, cond = plain.eps(x.repeat(2, 1, 1, 1), i, texts).chunk(2)
                x = plain.move(x, uncond + WEIGHT * (cond - uncond), i, i + 1)
                x[0] = pivot[i + 1][0]
    finally:
        pipe.unet.set_attn_processor(dict(before))
    return plain.decode(x)


def edit(bench: Bench) -> None:
    """One picture, one target."""
    shape, steps = (TINY_SD15, 5) if bench.tiny else (SD15, 50)
    whole = models.pipeline(shape, bench.device)
    picture = models.pictures(1, shape)
    how = AttentionEdit()

    def ours(model: ddim.Model, count: int, attention: str = "refine") -> Tensor:
        found = ddim.edit(
            model,
            picture,
            TARGET,
            source_prompt=SOURCE,
            steps=count,
            guidance=WEIGHT,
            attention=attention,
        )
        return torch.stack([found.reconstruction[0], found.edits[0, 0]])

    few = min(steps, 5)
    with with_tf32(False):
        model = models.owned(models.cast(whole, torch.float32))
        agree = models.distance(ours(model, few), reference(whole, model, picture, few, how))
        control = models.distance(ours(model, few, "none")[1], ours(model, few)[1])
    del model
    pipe = models.cast(whole, torch.bfloat16)
    del whole
    models.free()
    model = models.owned(models.cast(pipe, torch.bfloat16))
    counted = Counted(model)
    near = models.distance(ours(counted, few), reference(pipe, model, picture, few, how))
    calls = counted.calls(1) * steps / few
    runs = {
        REFERENCE: lambda: reference(pipe, model, picture, steps, how),
        OURS: lambda: ours(model, steps),
    }
    times = in_turns(runs, 1 if bench.tiny or not bench.more(60) else 2)
    usable = models.trusted(control) and agree < 2e-2
    bench.row(
        "edit",
        shape=shape.name,
        pixels=model.picture[1],
        method="direct, refine",
        S=steps,
        w=WEIGHT,
        dtype="bfloat16",
        **{f"{name}, s": statistics.median(some) for name, some in times.items()},
        **{
            "ratio": median_ratio(times, OURS, REFERENCE) if usable else None,
            "evaluations, ours": calls,
            "theirs": 5 * steps,
            "float32 pictures differ by": agree,
            "bfloat16 pictures differ by": near,
            "attention control changes": control,
        },
    )
    if not usable:
        bench.note(f"edit: no ratio: control changes {control:.2g}, float32 differs by {agree:.2g}.")
