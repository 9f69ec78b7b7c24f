"""The table of what works on which kind of model, from the checks of the library and the facts of each family.

The facts are those of the adapters, so that no weights are loaded. ``tests/docs/test_capability_table.py`` compares
every row with a tiny model of its kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ddim import EDITORS, FAMILIES, Model, ModelInfo, RectifiedFlow, Schedule, capabilities, ddpm_linear
from ddim.core.conditioning import REFERENCE
from ddim.pipelines.capabilities import CONTROLS

CFG, EMBEDDED = frozenset({"cfg"}), frozenset({"cfg", "embedded"})
LOOKS = {"text": True, "prediction": "flow", "optional_conditions": (REFERENCE,)}
"""The facts of a model that looks at a reference picture."""
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "pixel model": ("DDPMPipeline", {}),
    "pixel model, x0": ("DDPMPipeline", {"prediction": "x0"}),
    "classes": ("DDPMPipeline", {"classes": 10, "null_class": 10}),
    "SD 1, 2": ("StableDiffusionPipeline", {"text": True}),
    "SDXL": ("StableDiffusionXLPipeline", {"text": True}),
    "SD 3, 3.5": ("StableDiffusion3Pipeline", {"text": True, "prediction": "flow", "skip_layers": 24}),
    "FLUX.1 dev": ("FluxPipeline", {"text": True, "prediction": "flow", "guidance_kinds": EMBEDDED, "embedded": 3.5}),
    "FLUX.1 schnell": ("FluxPipeline", {"text": True, "prediction": "flow", "guidance_kinds": frozenset(), "steps": 4}),
    "FLUX.1 de-distilled": ("FluxPipeline", {"text": True, "prediction": "flow"}),
    "FLUX.1 Kontext": ("FluxKontextPipeline", {**LOOKS, "guidance_kinds": EMBEDDED, "embedded": 3.5}),
    "FLUX.2 klein": ("Flux2KleinPipeline", {**LOOKS, "guidance_kinds": frozenset(), "steps": 4}),
    "FLUX.2 klein base": ("Flux2KleinPipeline", LOOKS),
    "Chroma": ("ChromaPipeline", {"text": True, "prediction": "flow"}),
    "Qwen-Image": ("QwenImagePipeline", {"text": True, "prediction": "flow", "rescales": False}),
    "Z-Image": ("ZImagePipeline", {"text": True, "prediction": "flow"}),
    "Lumina 2": ("Lumina2Pipeline", {"text": True, "prediction": "flow", "rescales": False}),
    "Sana": ("SanaPipeline", {"text": True, "prediction": "flow"}),
}
"""Title of a column -> the pipeline class of its adapter, and the facts that its columns differ in."""


@dataclass(frozen=True)
class Example:
    """A kind of model without a network: the facts that decide what works on it."""

    info: ModelInfo
    schedule: Schedule
    adapter: type[Model]
    whole_timesteps: bool = False

    @property
    def name(self) -> str:
        """The title of its column."""
        return self.info.name

    def attention_sites(self) -> Sequence[Any]:
        """No layer, if the adapter of the family lists its attention layers; otherwise the error of ``Model``."""
        if self.adapter.attention_sites is Model.attention_sites:
            return Model.attention_sites(self)  # type: ignore[arg-type]
        return ()

    def feature_sites(self) -> Sequence[str]:
        """No module, if the adapter of the family names modules with features; otherwise the error of ``Model``."""
        if self.adapter.feature_sites is Model.feature_sites:
            return Model.feature_sites(self)  # type: ignore[arg-type]
        return ()


def example(title: str) -> Example:
    """The example of a column."""
    kind, facts = KINDS[title]
    own = {key: value for key, value in facts.items() if key != "prediction"}
    prediction = facts.get("prediction", "eps")
    info = ModelInfo(title, title, (3, 8, 8), (3, 8, 8), 0, torch.float32, torch.device("cpu"), **own)
    path = RectifiedFlow() if prediction == "flow" else ddpm_linear()
    return Example(info, Schedule(path, prediction), FAMILIES[kind])


def table() -> str:
    """The Markdown: methods and controls as rows, kinds of models as columns, and numbered reasons below."""
    known = {title: capabilities(example(title)) for title in KINDS}
    reasons: list[str] = []

    def cell(title: str, kind: str, name: str) -> str:
        reason = known[title][kind][name]
        if reason is None:
            return "yes"
        sentence = reason.replace(f"the model {title!r}", "this model").replace(repr(title), "this model")
        if sentence not in reasons:
            reasons.append(sentence)
        return f"no ({reasons.index(sentence) + 1})"

    first = next(iter(known.values()))
    lines = [["", *KINDS], ["---"] * (len(KINDS) + 1)]
    rows = {"solvers": "sample by `{}`", "inversions": "invert by `{}`", "editors": "edit by `{}`", "controls": "{}"}
    for kind, words in rows.items():
        for name in first[kind]:
            shown = words.format(CONTROLS[name][0] if kind == "controls" else name)
            lines.append([shown, *(cell(title, kind, name) for title in KINDS)])
    notes = [f"{number}. {sentence[0].upper()}{sentence[1:]}" for number, sentence in enumerate(reasons, 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + "\n".join(notes) + "\n"


def strengths() -> str:
    """The Markdown: editors as rows, kinds of models that take prompts as columns, and usual strengths as cells."""
    kinds = {title: example(title) for title in KINDS if example(title).info.text}
    works = {title: capabilities(one)["editors"] for title, one in kinds.items()}
    lines = [["editor", *kinds], ["---"] * (len(kinds) + 1)]
    for name, kind in EDITORS.items():
        usual = {title: kind().usual(one.info).strength for title, one in kinds.items() if works[title][name] is None}
        cells = [f"{usual[title]:.3g}" if title in usual else "–" for title in kinds]
        lines.append([f"`{name}`", *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
