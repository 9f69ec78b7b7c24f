"""The menus of the page, from the registries and from what works on a model."""

from dataclasses import dataclass
from typing import Any

from .._utils.choices import ATTENTIONS
from ..core.conditioning import REFERENCE
from ..editing.editors import EDITORS
from ..inversion import INVERSIONS, make_inversion
from ..models.base import Model
from ..pipelines.capabilities import CONTROLS, capabilities


@dataclass(frozen=True)
class Method:
    """A method of an edit.

    Attributes:
        name: its key in the registries.
        editor: whether it is an editor; otherwise it is an inversion.
        exact: whether it is an inversion that comes back to the bit.
        why_not: why it does not work on the model; None if it does.
    """

    name: str
    editor: bool
    exact: bool
    why_not: str | None

    @property
    def label(self) -> str:
        """Its name in the menu, with what kind of method it is."""
        return f"{self.name} · {'editor' if self.editor else 'exact inversion' if self.exact else 'inversion'}"


@dataclass(frozen=True)
class Settings:
    """The usual settings of a method on a model.

    Attributes:
        steps: the number of steps.
        guidance: the weight of guidance, or the scale that a distilled network takes; None if the model takes none.
        strength: from 0 to 1.
        fixed_steps: whether the method makes just this number of steps.
    """

    steps: int
    guidance: float | None
    strength: float
    fixed_steps: bool = False


def methods(model: Model) -> list[Method]:
    """Returns all methods, with the reason where one does not work on the model."""
    table, found = capabilities(model), inversions(model)
    editors = [Method(name, True, False, table["editors"][name]) for name in EDITORS]
    taken = {method.name for method in editors}  # an editor may have the name of its inversion, and is what edit uses
    return [*(one for one in found if one.name not in taken), *editors]


def inversions(model: Model) -> list[Method]:
    """Returns all inversions, with the reason where one does not work on the model."""
    why_not = capabilities(model)["inversions"]
    return [Method(name, False, make_inversion(name).exact, why_not[name]) for name in INVERSIONS]


def method_menu(model: Model) -> list[tuple[str, str]]:
    """Returns the methods that work on a model as (label, name)."""
    return _working(methods(model))


def inversion_menu(model: Model) -> list[tuple[str, str]]:
    """Returns the inversions that work on a model as (label, name)."""
    return _working(inversions(model))


def _working(found: list[Method]) -> list[tuple[str, str]]:
    return [(one.label, one.name) for one in found if one.why_not is None]


def usual_method(model: Model) -> str:
    """Returns the method that the page begins with.

    It is an editor by instructions where the network looks at a picture, ``flow-edit`` on rectified flow with distilled
    guidance or steps, ``turbo-edit`` on other models of few steps, and otherwise ``direct``, the default of ``edit``.
    """
    info, works = model.info, {one.name for one in methods(model) if one.why_not is None}
    wanted: list[str] = []
    if REFERENCE in info.optional_conditions:
        wanted += [name for name in EDITORS if EDITORS[name].looks][:1]
    if model.schedule.prediction == "flow":
        wanted += ["flow-edit"] if info.few_steps or takes_embedded(model) else []
    elif info.few_steps:
        wanted += ["turbo-edit"]
    return next((name for name in wanted if name in works), "direct")


def usual(model: Model, method: str) -> Settings:
    """Returns the usual settings of a method on a model."""
    info = model.info
    if method in EDITORS:
        editor = EDITORS[method]()
        own = editor.usual(info)
        steps = editor.usual_steps(info, None)
        guidance = own.embedded if takes_embedded(model) else own.guidance
        return Settings(steps, guidance if takes_guidance(model) else None, own.strength, editor.steps is not None)
    options = make_inversion(method).options
    skip = options.get("skip", 0)
    strength = 1 - skip if isinstance(skip, float) else 1.0
    guidance = info.embedded if takes_embedded(model) else info.guidance
    return Settings(info.steps, guidance if takes_guidance(model) else None, strength)


def takes_embedded(model: Model) -> bool:
    """Whether the guidance of a model is the scale that its network takes as an input."""
    return "embedded" in model.info.guidance_kinds


def takes_guidance(model: Model) -> bool:
    """Whether a number of guidance has an effect on a model."""
    return bool(model.info.guidance_kinds)


def takes_negative(model: Model) -> bool:
    """Whether a negative prompt has an effect on a model."""
    return model.text and "cfg" in model.info.guidance_kinds


def attention_menu(model: Model, method: str) -> list[str]:
    """Returns the kinds of attention control that work; empty where the method or the model has none."""
    table = capabilities(model)["controls"]
    if method in EDITORS or table["attention"] is not None:
        return []
    return [kind for kind in ATTENTIONS if kind != "plug-and-play" or table["features"] is None]


def about_model(model: Model) -> dict[str, Any]:
    """Returns the facts about a model by name, as the page shows them."""
    info = model.info
    facts: dict[str, Any] = {
        "family": info.family,
        "pictures": " x ".join(map(str, reversed(info.picture[1:]))) + (" grey" if info.picture[0] == 1 else ""),
        "other sizes": f"sides that are multiples of {info.multiple}" if info.multiple else "none",
        "conditions": "prompts" if info.text else f"{info.classes} classes" if info.classes else "none",
        "prediction": model.schedule.prediction,
        "weights": f"{info.parameters / 1e6:.1f} million",
        "usual steps": info.steps,
        "usual guidance": info.embedded if info.embedded is not None else info.guidance,
        "computes in": f"{str(info.dtype).removeprefix('torch.')} on {info.device}",
    }
    return facts


def capability_rows(model: Model) -> list[list[str]]:
    """Returns what works on a model, as rows of kind, name, ``yes`` or ``no``, and the reason of a no."""
    rows: list[list[str]] = []
    for kind, reasons in capabilities(model).items():
        for name, why_not in reasons.items():
            what = f"{name}: {CONTROLS[name][0]}" if kind == "controls" else name
            rows.append([kind.removesuffix("s"), what, "no" if why_not else "yes", why_not or ""])
    return rows
