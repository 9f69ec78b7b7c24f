"""What works on a model and what does not. Pipelines refuse by the same functions that the tables are made of.

Each function named ``check_...`` raises an InputError with one sentence if something does not work on a model, by facts
about the model and the method and by no name of a family. ``capabilities`` collects these sentences.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from .._utils.errors import InputError
from ..core.contracts import Inversion, Solver
from ..core.guidance import Guidance, SkipLayers
from ..core.schedule import Schedule
from ..editing.editors import EDITORS
from ..editing.editors.base import Editor
from ..inversion import INVERSIONS, make_inversion
from ..inversion.extras import ANCHOR
from ..models.base import no_negative, no_text
from ..models.info import ModelInfo
from ..solvers import SOLVERS, make_solver


class Described(Protocol):
    """The facts about a model that decide what works on it. Every ``Model`` has them."""

    @property
    def info(self) -> ModelInfo:
        """The facts about the model."""
        ...

    @property
    def schedule(self) -> Schedule:
        """Its path and its prediction type."""
        ...

    @property
    def whole_timesteps(self) -> bool:
        """Whether its network takes only whole timesteps."""
        ...

    def attention_sites(self) -> Sequence[Any]:
        """Returns the attention layers that can be controlled. Raises InputError if there are none."""
        ...

    def feature_sites(self) -> Sequence[str]:
        """Returns the modules whose features can be taken over. Raises InputError if there are none."""
        ...


# --- solvers and inversions -----------------------------------------------------------------------------------------


def check_solver(model: Described, solver: Solver, parameter: str = "solver") -> None:
    """Raises InputError if a solver calls a network at nodes where it cannot answer.

    These are the data node without noise, for a network that predicts x0, and nodes inside a step, for a network that
    takes only whole timesteps.

    Args:
        model: the model.
        solver: the solver.
        parameter: the argument that chose the solver.
    """
    name, schedule = model.info.name, model.schedule
    if solver.asks_data and schedule.prediction == "x0" and schedule.path.node(0).sigma == 0:
        raise InputError(
            f"{solver.name!r} calls the network at the data, where the model {name!r}, which predicts x0, says "
            "nothing about the noise; use 'bdia', 'belm' or 'edict'.",
            parameter=parameter,
        )
    if solver.asks_between and model.whole_timesteps:
        raise InputError(
            f"{solver.name!r} calls the network between timesteps, but the model {name!r} takes only whole ones "
            "(timestep_dtype); use 'ddim', 'bdia', 'belm' or 'edict', or 'rex' with tableau = 'euler'.",
            parameter=parameter,
        )


def check_inversion(model: Described, inversion: Inversion) -> None:
    """Raises InputError if an inversion needs conditions that a model does not have, or if its solver does not work."""
    kinds = model.info.guidance_kinds
    inversion.check_conditions(text=model.info.text, uncond="cfg" in kinds, distilled="embedded" in kinds)
    check_solver(model, inversion.solver(), "method")


def check_editor(model: Described, editor: Editor) -> None:
    """Raises InputError if an editor or its inversion does not work on a model."""
    editor.check(model.info)
    inversion = editor.inversion()
    if inversion is not None:
        check_inversion(model, inversion)


# --- guidance -------------------------------------------------------------------------------------------------------


def check_guidance(model: Described, guidance: Guidance) -> None:
    """Raises InputError if a model does not take a guidance: its weight, its embedded scale, or another setting."""
    info = model.info
    if guidance.embedded is not None and "embedded" not in info.guidance_kinds:
        raise InputError(
            f"{guidance.embedded:g} is an input of guidance-distilled networks, which the model {info.name!r} does not "
            "take; leave it out.",
            parameter="embedded",
        )
    if info.text:
        check_weight(model, guidance.weight, "guidance")
    if guidance.rescale and not info.rescales:
        raise InputError(
            f"{guidance.rescale:g} has no effect, because the guidance of the model {info.name!r} keeps the lengths of "
            "its output without guidance; leave it out.",
            parameter="rescale",
        )
    if guidance.skip is not None:
        _check_skip(info, guidance.skip.layers)
    if "cfg" not in info.guidance_kinds:
        _refuse_idle(guidance, f"the model {info.name!r} is sampled without classifier-free guidance")


def _check_skip(info: ModelInfo, layers: Sequence[int]) -> None:
    """Raises InputError if a network cannot leave out these layers."""
    if not info.skip_layers:
        raise InputError(
            f"the network of the model {info.name!r} cannot leave out layers, such as {layers[0]}; do without.",
            parameter="skip_layers",
        )
    if wrong := [k for k in layers if k >= info.skip_layers]:
        raise InputError(
            f"{wrong[0]} is no layer of the model {info.name!r}; use 0 to {info.skip_layers - 1}.",
            parameter="skip_layers",
        )


def check_pull(guidance: float | Guidance | None, kept: Iterable[str] = ()) -> None:
    """Raises InputError for reconstruction guidance where there is no image to pull to.

    Args:
        guidance: what was asked for.
        kept: the names of what the inversion or the code stores.
    """
    proximal = guidance.proximal if isinstance(guidance, Guidance) else None
    if proximal is not None and proximal.pull and ANCHOR not in kept:
        raise InputError(
            f"{proximal.pull:g} pulls to the image in a code of 'prox-npi', and there is none here; use 0.",
            parameter="pull",
        )


def check_acts(guidance: Guidance, own: Guidance | None = None) -> None:
    """Raises InputError if a setting of guidance has no effect, because its weight is 1.

    Args:
        guidance: the guidance that was asked for.
        own: the guidance of a code; settings that are the code's own may stay.
    """
    if guidance.weight == 1:
        _refuse_idle(guidance, "the guidance is 1", own)


def _refuse_idle(guidance: Guidance, why: str, own: Guidance | None = None) -> None:
    """Raises InputError for a setting, other than those of ``own``, that acts only beside a weight other than 1."""
    settings, kept = (
        {
            "rescale": one.rescale,
            "skip_layers": one.skip and one.skip.layers,
            "proximal": one.proximal and repr(one.proximal.kind),
            "interval": tuple(one.interval) != (0, 1) and tuple(one.interval),
        }
        for one in (guidance, Guidance() if own is None else own)
    )
    for name, value in settings.items():
        if value and value != kept[name]:
            raise InputError(f"{value} has no effect, because {why}; leave it out.", parameter=name)


def check_weight(model: Described, weight: float, parameter: str) -> None:
    """Raises InputError for a weight other than 1 of a model that is sampled without classifier-free guidance.

    Args:
        model: a model with conditions.
        weight: the weight of classifier-free guidance.
        parameter: the argument that gave it.
    """
    if weight != 1 and "cfg" not in model.info.guidance_kinds:
        raise InputError(
            f"{weight:g} has no effect: the model {model.info.name!r} is distilled to sample without classifier-free "
            "guidance; use 1, or leave it out.",
            parameter=parameter,
        )


def check_negative(model: Described, negative: str | None, weight: float | None = None) -> None:
    """Raises InputError for a negative prompt without effect: of a distilled model, or at the guidance weight 1.

    Args:
        model: the model.
        negative: the negative prompt, if any.
        weight: the weight of guidance; None if it is not known yet.
    """
    if not negative or not model.info.text:
        return
    if "cfg" not in model.info.guidance_kinds:
        raise no_negative(model.info.name, negative)
    if weight == 1:
        raise InputError(f"{negative!r} has no effect, because the guidance is 1.", parameter="negative")


# --- edits ----------------------------------------------------------------------------------------------------------


def check_prompt_edit(model: Described) -> None:
    """Raises InputError if a model takes no prompts, so that words cannot edit."""
    if model.info.text:
        return
    if not model.info.classes:
        raise _no_edit(model.info)
    raise InputError(
        f"the model {model.info.name!r} takes no prompts; give classes as labels, or use a text model.",
        parameter="model",
    )


def check_class_edit(model: Described) -> None:
    """Raises InputError if a model takes no classes, so that a class cannot edit."""
    if model.info.text:
        raise InputError(f"the model {model.info.name!r} takes prompts, not class labels.", parameter="labels")
    if not model.info.classes:
        raise _no_edit(model.info)


def _no_edit(info: ModelInfo) -> InputError:
    return InputError(
        f"the model {info.name!r} takes neither prompts nor classes, so it cannot edit; use a text model.",
        parameter="model",
    )


def _check_attention(model: Described) -> None:
    check_prompt_edit(model)
    model.attention_sites()


def _check_features(model: Described) -> None:
    _check_attention(model)
    model.feature_sites()


def _check_cfg(model: Described) -> None:
    """Raises InputError if no weight of guidance but 1 works."""
    kinds, info = model.info.guidance_kinds, model.info
    if "cfg" in kinds:
        return
    if info.text:
        check_weight(model, 2.0, "guidance")
    raise no_guidance(info)


def no_guidance(info: ModelInfo) -> InputError:
    """Returns the error for guidance of a model that has nothing to lead towards, or nothing to lead away from."""
    towards, lacks = ("a class", "has no null class") if info.classes else ("a prompt", "takes none")
    return InputError(
        f"it leads towards {towards}, and the model {info.name!r} {lacks}; leave it out.", parameter="guidance"
    )


def _check_negative(model: Described) -> None:
    if not model.info.text:
        raise no_text(model.info.name, "negative")
    check_negative(model, "grey")


def _check_rescaling(model: Described) -> None:
    _check_cfg(model)
    check_guidance(model, Guidance(2.0, rescale=0.5))


def _check_embedded(model: Described) -> None:
    check_guidance(model, Guidance(embedded=1.0))


def _check_skipping(model: Described) -> None:
    check_guidance(model, Guidance(2.0, skip=SkipLayers((0,))))


CONTROLS: dict[str, tuple[str, Callable[[Described], None]]] = {
    "prompt": ("an edit by a prompt", check_prompt_edit),
    "class": ("an edit by a class", check_class_edit),
    "attention": ("attention control, word weights and blend words", _check_attention),
    "features": ("the features of a U-Net's residual block", _check_features),
    "guidance": ("a weight of classifier-free guidance other than 1", _check_cfg),
    "rescale": ("a rescaled guidance", _check_rescaling),
    "negative": ("a negative prompt", _check_negative),
    "embedded": ("the guidance scale that a distilled network takes as an input", _check_embedded),
    "skip": ("skip-layer guidance", _check_skipping),
}
"""The controls of samples and edits: name -> what it is, and its check."""


# --- the table ------------------------------------------------------------------------------------------------------


def capabilities(model: Described) -> dict[str, dict[str, str | None]]:
    """Tells what works on a model: each solver, inversion and editor with its default options, and each control.

    Returns:
        ``solvers``, ``inversions``, ``editors`` and ``controls``, each a mapping from a name to None if it works, or
        else to the sentence that says why it does not.
    """
    return {
        "solvers": {name: _why_not(check_solver, model, make_solver(name)) for name in SOLVERS},
        "inversions": {name: _why_not(check_inversion, model, make_inversion(name)) for name in INVERSIONS},
        "editors": {name: _why_not(check_editor, model, EDITORS[name]()) for name in EDITORS},
        "controls": {name: _why_not(check, model) for name, (_, check) in CONTROLS.items()},
    }


def _why_not(check: Callable[..., None], *arguments: Any) -> str | None:
    try:
        check(*arguments)
    except InputError as error:
        return error.message
    return None
