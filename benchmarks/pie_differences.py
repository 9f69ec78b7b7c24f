"""What each difference between PIE-Bench as published and this package's default does to its figures.

    python benchmarks/pie_differences.py --out runs/pie_differences

Makes a set in PIE-Bench's format from the drawings that the package carries, enlarged to 512x512: each pair of drawings
of one style is an edit from one's name to the other's, and may change where they differ. Edits it with `emoji` and
scores it with one difference at a time, at the model's size (what the command does) and enlarged to 512 (where the
published figures were measured). The networks are small and random: their columns say how far a metric moves when its
input changes, and nothing of how good an edit is. The set stays in the folder, for ``ddim evaluate pie-bench --data``.
"""

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from common import decibels
from torch import Tensor
from torch.nn import functional as F

import ddim
from ddim._utils.files import write_whole
from ddim.data.images import read_images, save_image, to_pil
from ddim.evaluation.edit_settings import edit_pairs
from ddim.evaluation.eval_images import recipe_images
from ddim.evaluation.metrics.networks import Clip, Dino
from ddim.evaluation.metrics.pairwise import agreement
from ddim.evaluation.metrics.scores import METRICS, ScoredEdits, Scorer, through_jpeg
from ddim.evaluation.pie_entries import MAPPING, PICTURES, SIDE, Entry, read_entries
from ddim.evaluation.tables import machine
from ddim.models import bundled_models
from ddim.training import load_config

METHODS = ("direct", "ddim")
EDITS: tuple[tuple[str, dict[str, Any], int | None], ...] = (
    ("`direct`", {"method": "direct"}, None),
    ("`direct`, blend words", {"method": "direct", "blend": True}, 0),
    ("`direct`, blend words, the target's weighs 2", {"method": "direct", "blend": True, "weight": 2.0}, 1),
    ("`edit-friendly`, seed 0", {"method": "edit-friendly"}, None),
    ("`edit-friendly`, seed 1234", {"method": "edit-friendly", "seed": 1234}, 3),
)
"""What the published runs set otherwise when they edit: a title, the setting, the row that it is compared with."""
Pair = tuple[Tensor, str, Tensor, str]
"""Source, its prompt, answer, its prompt; pictures [3, H, W]."""


@dataclass(frozen=True)
class Way:
    """One way to score; a field is one difference, False as the package has it."""

    jpeg: bool = field(default=False, metadata={"title": "the edit out of a JPEG strip"})
    black: bool = field(default=False, metadata={"title": "edited area black, mean over all pixels"})
    scaled: bool = field(default=False, metadata={"title": "the ViT is fed 0 to 255"})
    aliased: bool = field(default=False, metadata={"title": "the ViT's picture shrunk without antialiasing"})
    bordered: bool = field(default=False, metadata={"title": "(border of the mask as annotated)"})


PUBLISHED = Way(jpeg=True, black=True, scaled=True, aliased=True)
PICTURE = ("jpeg", "black", "bordered")
TOUCHES = {
    **dict.fromkeys(("psnr", "lpips", "mse", "ssim"), PICTURE),
    "structure": ("jpeg", "scaled", "aliased"),
    "clip": ("jpeg",),
    "clip-edited": ("jpeg", "bordered"),
}
"""Which differences can change a metric; of the others its column stays empty."""


class RandomLpips:
    """LPIPS's formula over three random convolutions."""

    def __init__(self) -> None:
        self.layers = [torch.nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 16), (16, 32), (32, 64))]

    def map(self, images: Tensor, others: Tensor) -> Tensor:
        size, out = images.shape[2:], torch.zeros(len(images), 1, *images.shape[2:])
        return out + sum(F.interpolate(m, size, mode="bilinear") for m in self.maps(images, others))

    def distance(self, images: Tensor, others: Tensor) -> Tensor:
        return torch.stack([m.mean((1, 2, 3)) for m in self.maps(images, others)]).sum(0)

    def maps(self, images: Tensor, others: Tensor) -> Iterator[Tensor]:
        x, y = 2 * images - 1, 2 * others - 1
        for layer in self.layers:
            with torch.no_grad():
                x, y = F.relu(layer(x)), F.relu(layer(y))
            yield (F.normalize(x) - F.normalize(y)).square().mean(1, keepdim=True)


def random_networks(folder: Path) -> dict[str, Any]:
    """What judges, small and random; written to a folder, for it is opened as the real ones are."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }
    words = CLIPTokenizer.from_pretrained(bundled_models()["emoji"] / "tokenizer")
    text = {**size, "vocab_size": len(words), "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    seen = {**size, "image_size": 224, "patch_size": 16}
    ViTModel(ViTConfig(**seen), add_pooling_layer=False).save_pretrained(folder / "vit")
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=seen))
    clip.text_projection.weight.data *= -1  # this seed's scores would all lie below 0, where they are cut
    clip.save_pretrained(folder / "clip")
    words.save_pretrained(folder / "clip")
    judges = {"dino": Dino(str(folder / "vit")), "clip": Clip(str(folder / "clip")), "lpips": RandomLpips()}
    return {"": None, "torchmetrics": None, **judges}


def carried_pairs() -> list[Pair]:
    """Ordered pairs of carried drawings of one style."""
    folder = bundled_models()["emoji"]
    with (folder / "pictures.csv").open(newline="") as file:
        prompts = {row["file"]: row["prompt"] for row in csv.DictReader(file) if row["file"]}
    pictures = {p: read_images(folder / name, (3, 64, 64))[0] for name, p in prompts.items()}
    return [(pictures[a], a, pictures[b], b) for a, b in permutations(pictures, 2) if a.split()[0] == b.split()[0]]


def recipe_pairs(recipe: Path) -> list[Pair]:
    """PinnedSolver-out drawings of a recipe, each with another of its style."""
    pairs = edit_pairs(recipe_images(load_config(recipe)), words=1, styles=0)
    return [(p.source.pixels, p.source.prompt, p.answer.pixels, p.answer.prompt) for p in pairs]


def write_set(pairs: Sequence[Pair], folder: Path) -> dict[str, Tensor]:
    """A set in the published format; and the masks as annotated, before any border is freed, bool [1, 1, 64, 64]."""
    mapping, masks = {}, {}
    for k, (source, prompt, answer, target) in enumerate(pairs):
        key, image = f"{k:012d}", f"1_change_object_80/{k:012d}.png"
        may = ~agreement(source[None], answer[None])
        large = F.interpolate(may.float(), (SIDE, SIDE), mode="nearest")[0, 0].flatten().int()
        edges = F.pad(large, (1, 1)).diff().nonzero()[:, 0].tolist()
        words = [_own_word(prompt, target), _own_word(target, prompt)]
        path = folder / PICTURES / image
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(enlarged(source[None])[0], path)
        mapping[key] = {
            "image_path": image,
            "original_prompt": prompt,
            "editing_prompt": target,
            "editing_instruction": "",
            "editing_type_id": "1",
            "blended_word": " ".join(words) if all(words) else "",
            "mask": [n for a, b in zip(edges[::2], edges[1::2], strict=True) for n in (a, b - a)],
        }
        masks[key] = may
    (folder / MAPPING).write_text(json.dumps(mapping))
    return masks


def _own_word(prompt: str, other: str) -> str:
    """The first word that the other prompt lacks, or nothing."""
    return next((word for word in prompt.split() if word not in other.split()), "")


def enlarged(images: Tensor, side: int = SIDE) -> Tensor:
    """[N, 3, H, W] in 8 bits at another size, by Pillow's Lanczos; as they are where they have it."""
    return torch.cat([read_images(to_pil(image), (3, side, side), resize=True) for image in images])


@dataclass(frozen=True, eq=False)
class Case:
    """An edit to be scored, pictures and masks [1, C, H, W]: ``mask`` with its border free, ``annotated`` without."""

    source: Tensor
    back: Tensor
    edit: Tensor
    mask: Tensor
    annotated: Tensor
    prompt: str


def edited(
    model: Any, entry: Entry, annotated: Tensor, arguments: dict[str, Any], *, blend: bool = False, weight: float = 1
) -> Case:
    """An entry's edit as the command makes it, at the model's size; with its blend words, the target's weighed."""
    source, words = read_images(entry.image, model.picture, resize=True), entry.blend if blend else None
    weights = {words[1]: weight} if words and weight != 1 else None
    made = ddim.edit(
        model,
        source,
        entry.target_prompt,
        source_prompt=entry.source_prompt,
        blend=words,
        weights=weights,
        **arguments,
    )
    back, edit = (enlarged(x, source.shape[-1]) for x in (made.reconstruction, made.edits[:, 0]))
    return at(Case(source, back, edit, annotated, annotated, entry.target_prompt), entry, source.shape[-1])


def at(case: Case, entry: Entry, side: int) -> Case:
    """The case at another size, its masks by the nearest pixel."""
    source = read_images(entry.image, (3, side, side), resize=True)
    annotated = F.interpolate(case.annotated.float(), (side, side), mode="nearest") > 0
    back, edit = enlarged(case.back, side), enlarged(case.edit, side)
    return Case(source, back, edit, entry.mask_at((side, side)), annotated, case.prompt)


def measured(networks: dict[str, Any], case: Case, way: Way, name: str) -> float:
    """One metric of one case, one way."""
    edit = through_jpeg(case.source, case.back, case.edit) if way.jpeg else case.edit
    network = networks[METRICS[name].needs]
    if name == "structure":
        scale = 255 if way.scaled else 1
        a, b = (network.similarity(scale * x, antialias=not way.aliased) for x in (case.source, edit))
        return (a - b).square().mean().item()
    scene = ScoredEdits(case.source, edit, case.annotated if way.bordered else case.mask, [case.prompt], way.black)
    return METRICS[name].measure(network, scene).item()


def mean(networks: dict[str, Any], cases: Sequence[Case], way: Way, name: str) -> float:
    """A metric over the cases where it is finite, in the table's unit."""
    each = torch.tensor([measured(networks, case, way, name) for case in cases], dtype=torch.float64)
    return float(each[each.isfinite()].mean()) * METRICS[name].factor


def score_rows(networks: dict[str, Any], cases: Sequence[Case], method: str) -> list[str]:
    """Lines of Markdown: each metric's mean in each way, and its change; only those that the way can change."""
    ways = [("default", Way()), *((f.metadata["title"], Way(**{f.name: True})) for f in fields(Way))]
    out, means = [], {}
    for title, way in (*ways, ("all of `--as-published`", PUBLISHED)):
        cells = [f"`{method}`", title]
        for name in METRICS:
            own = Way(**{f: getattr(way, f) for f in TOUCHES[name]})
            if (name, own) not in means:
                means[name, own] = mean(networks, cases, own, name)
            value = f"{means[name, own]:.2f}"
            change = "" if own == Way() else f" ({means[name, own] - means[name, Way()]:+.2f})"
            cells.append(value + change if change or way == Way() else "")
        out.append(f"| {' | '.join(cells)} |")
    return out


def agree(networks: dict[str, Any], cases: Sequence[Case]) -> None:
    """Stops where no difference, or all of them, is not what the package's scorer says."""
    for way, published in ((Way(), False), (PUBLISHED, True)):
        scorer = Scorer(tuple(METRICS), networks, {}, published)
        for c in cases:
            for name, value in scorer.score(c.source, c.back, c.edit, c.mask, [c.prompt]).items():
                here = torch.tensor(measured(networks, c, way, name)).double()
                torch.testing.assert_close(value[0], here, rtol=1e-5, atol=1e-7, equal_nan=True)


def edit_rows(
    networks: dict[str, Any], model: Any, entries: Sequence[Entry], masks: dict[str, Tensor], common: dict[str, Any]
) -> list[str]:
    """Lines of Markdown: means of three metrics for each of ``EDITS``; and how many of its edits are others than those
    of the row that it is compared with, and their PSNR against these."""
    out, made = [], []
    for title, setting, beside in EDITS:
        arguments = common | {k: v for k, v in setting.items() if k in ("method", "seed")}
        own = {k: v for k, v in setting.items() if k in ("blend", "weight")}
        made.append([edited(model, e, masks[e.key], arguments, **own) for e in entries])
        cells = [title, *(f"{mean(networks, made[-1], Way(), name):.2f}" for name in ("psnr", "mse", "ssim")), ""]
        if beside is not None:
            near = [decibels(a.edit, b.edit).item() for a, b in zip(made[-1], made[beside], strict=True)]
            changed = [v for v in near if v < 200]
            cells[-1] = f"{len(changed)} of {len(near)}" + (f", {sum(changed) / len(changed):.1f}" if changed else "")
        out.append(f"| {' | '.join(cells)} |")
        print(title, flush=True)
    return out


def header(*titles: str) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, help="whose held-out drawings are taken; left out, those carried")
    parser.add_argument("--pairs", type=int, default=30, help="spread over all there are")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, SIDE], help="where edits are scored")
    parser.add_argument("--out", type=Path, default=Path("runs/pie_differences"))
    args = parser.parse_args()
    pairs = carried_pairs() if args.recipe is None else recipe_pairs(args.recipe)
    pairs = [pairs[k * len(pairs) // args.pairs] for k in range(args.pairs)] if args.pairs < len(pairs) else pairs
    masks = write_set(pairs, args.out / "set")
    entries = read_entries(args.out / "set")
    networks, model = random_networks(args.out), ddim.load("emoji")
    common = {"steps": args.steps, "guidance": args.guidance}
    cases = {m: [edited(model, e, masks[e.key], {**common, "method": m}) for e in entries] for m in METHODS}
    shares = torch.cat([c.mask.float().mean((1, 2, 3)) for c in cases[METHODS[0]]])
    lines = [f"{len(entries)} edits, S = {args.steps}, w = {args.guidance:g}; {machine()}"]
    lines += [f"May change: {shares.mean():.0%} of a picture, {shares.min():.0%} to {shares.max():.0%}."]
    titles = [m.title + " (random net)" * (m.needs in ("dino", "lpips", "clip")) for m in METRICS.values()]
    for side in args.sizes:
        lines += ["", f"At {side}x{side}:", "", *header("method", "scored", *titles)]
        for method in METHODS:
            here = [at(c, e, side) for c, e in zip(cases[method], entries, strict=True)]
            agree(networks, here[:4])
            lines += score_rows(networks, here, method)
            print(f"{method} at {side}", flush=True)
    lines += ["", *header("edited", *(METRICS[n].title for n in ("psnr", "mse", "ssim")), "other edits, PSNR to them")]
    lines += edit_rows(networks, model, entries, masks, common)
    write_whole(args.out / "differences.md", "\n".join([*lines, ""]).encode())
    print("\n".join(lines))


if __name__ == "__main__":
    main()
