"""What a page asks for, as arguments of the library, as a line of the command, and as Python."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .._utils.choices import ATTENTIONS
from .._utils.errors import InputError, is_number, is_whole
from ..core.noise import checked_seed
from ..data.photographs import Crop
from ..editing.editors import EDITORS
from ..editing.strength import checked_strength
from ..models.base import Model, class_labels
from .menus import takes_embedded, takes_guidance, takes_negative, usual


@dataclass(frozen=True)
class EditRequest:
    """The settings of one edit.

    Attributes:
        model: the name of the model.
        source_prompt, prompt: what the picture shows, and what it is to show; for a model with text.
        source_label, label: its class, and the class to edit to; for a model with classes.
        method: an inversion or an editor.
        strength: from 0 to 1.
        guidance: the weight of guidance, or the scale that a distilled network takes.
        steps: the number of steps.
        seed: the seed; None is an empty field, also of the other numbers.
        attention: the attention control; empty is the usual one of the method.
        negative: the prompt that guidance leads away from; empty for none.
    """

    model: str
    source_prompt: str = ""
    prompt: str = ""
    source_label: int | None = None
    label: int | None = None
    method: str = "direct"
    strength: float | None = 1.0
    guidance: float | None = None
    steps: int | None = None
    seed: int | None = 0
    attention: str = ""
    negative: str = ""

    def check(self, model: Model, most_steps: int) -> None:
        """Checks what only the page can know, before any work; the library checks the rest.

        Args:
            model: the model.
            most_steps: the largest number of steps of this page.

        Raises:
            InputError: a prompt is missing, or a number does not fit.
        """
        self.check_words(model)
        self.check_numbers(model, most_steps)

    def check_words(self, model: Model) -> None:
        """Checks that the prompts which the method needs are there; raises InputError if one is missing."""
        if model.text and not self.prompt.strip():
            raise InputError("it is missing; describe the result in words.", parameter="prompt")
        needs = self.method not in EDITORS or bool(EDITORS[self.method].needs)
        if model.text and needs and not self.source_prompt.strip():
            raise InputError("it is missing; describe the picture as it is in words.", parameter="source_prompt")

    def check_numbers(self, model: Model, most_steps: int, *, guidance: bool = True, target: bool = True) -> None:
        """Checks the numbers, before any work: none may be missing, and each must fit the model and the page.

        Args:
            model: the model.
            most_steps: the largest number of steps of this page.
            guidance: whether the guidance is asked for, if the model takes one.
            target: whether the class to edit to is asked for, if the model has classes.

        Raises:
            InputError: a number is missing, or does not fit.
        """
        for parameter, label in (("source_labels", self.source_label), ("labels", self.label)):
            if model.classes and (target or parameter == "source_labels"):
                if label is None:
                    raise InputError(f"it is missing; name a class from 0 to {model.classes - 1}.", parameter=parameter)
                class_labels(label, 1, model.classes, model.name, parameter=parameter)
        if self.strength is None:
            raise InputError("it is missing; use a number from 0 to 1.", parameter="strength")
        checked_strength(self.strength)
        if guidance and takes_guidance(model) and not is_number(self.guidance):
            what = "it is missing" if self.guidance is None else f"{self.guidance!r} is not a number"
            raise InputError(f"{what}; {self._usual_guidance(model):g} is usual here.", parameter="guidance")
        if self.steps is None or not is_whole(self.steps) or not 1 <= self.steps <= most_steps:
            what = "it is missing" if self.steps is None else f"{self.steps!r} does not fit"
            raise InputError(f"{what}; use a whole number from 1 to {most_steps}.", parameter="steps")
        if self.seed is None:
            raise InputError("it is missing; 0 is usual.", parameter="seed")
        checked_seed(self.seed)

    @staticmethod
    def _usual_guidance(model: Model) -> float:
        return model.info.guidance if model.info.embedded is None else model.info.embedded

    def arguments(self, model: Model) -> dict[str, Any]:
        """Returns the arguments of ``ddim.edit`` beside the model and the picture; usual values are left out."""
        found: dict[str, Any] = {}
        own = usual(model, self.method)
        if model.text:
            found["prompt"] = self.prompt.strip()
            if self.source_prompt.strip():
                found["source_prompt"] = self.source_prompt.strip()
        elif self.label is not None:
            found |= {"labels": self.label, "source_labels": self.source_label}
        found["method"] = self.method
        if self.steps is not None and not own.fixed_steps:
            found["steps"] = self.steps
        if self.guidance is not None and takes_guidance(model):
            found["guidance_scale" if takes_embedded(model) else "guidance"] = float(self.guidance)
        if self.strength is not None and self.strength != own.strength:
            found["strength"] = float(self.strength)
        if self.attention and self.attention != ATTENTIONS[0] and self.method not in EDITORS and model.text:
            found["attention"] = self.attention
        if self.negative.strip() and takes_negative(model):  # else it is from another model, and hidden now
            found["negative"] = self.negative.strip()
        if self.seed:
            found["seed"] = self.seed
        return found

    def inversion_arguments(self, model: Model) -> dict[str, Any]:
        """Returns the arguments of ``ddim.invert`` beside the model and the picture."""
        found: dict[str, Any] = {"method": self.method}
        if model.text and self.source_prompt.strip():
            found["prompt"] = self.source_prompt.strip()
        if model.classes:
            found["labels"] = self.source_label
        if self.steps is not None:
            found["steps"] = self.steps
        if self.guidance is not None and self.guidance != 1 and takes_guidance(model) and not takes_embedded(model):
            found["guidance"] = float(self.guidance)
        if self.seed:
            found["seed"] = self.seed
        return found


_FLAGS = {
    "prompt": "--to",
    "source_prompt": "--from",
    "labels": "--to-label",
    "source_labels": "--from-label",
}


@dataclass(frozen=True)
class Repeat:
    """How a call of the library is made again.

    Attributes:
        verb: the function of the library, which is also the command: ``edit``.
        model: the name of the model.
        files: the pictures, by name.
        arguments: the arguments of the function.
        loading: those of ``ddim.load``; None is one that was not given.
    """

    verb: str
    model: str
    files: tuple[str, ...]
    arguments: Mapping[str, Any]
    loading: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def given(self) -> dict[str, Any]:
        """The arguments of ``ddim.load`` that were given."""
        return {name: value for name, value in self.loading.items() if value is not None}

    @property
    def load_line(self) -> str:
        """The line of Python that loads the model."""
        loading = "".join(f", {name}={value!r}" for name, value in self.given.items())
        return f"model = ddim.load({self.model!r}{loading})"

    @property
    def command(self) -> str:
        """The line of the command."""
        words = ["ddim", self.verb, *self.files, "--model", self.model]
        for name, value in {**self.arguments, **self.given}.items():
            flag = _FLAGS[name] if self.verb == "edit" and name in _FLAGS else f"--{name.replace('_', '-')}"
            flag = "--label" if flag == "--labels" else flag
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            words += [flag] if value is True else [flag, f"{text:.15g}" if isinstance(text, float) else str(text)]
        return shlex.join(words)

    def python(self, ending: str) -> str:
        """Returns the lines of Python.

        Args:
            ending: lines that do something with ``edited``.
        """
        rest = {name: value for name, value in self.arguments.items() if name not in ("prompt", "labels")}
        target = [repr(self.arguments["prompt"])] if "prompt" in self.arguments else []
        target += [f"labels={self.arguments['labels']!r}"] if "labels" in self.arguments else []
        lines = [f"    {part}," for part in (*target, *(f"{name}={value!r}" for name, value in rest.items()))]
        call = "\n".join([f"edited = ddim.{self.verb}(", f"    model, {self.files[0]!r},", *lines, ")"])
        return f"import ddim\n\n{self.load_line}\n{call}\n{ending}\n"


def repeat_edit(
    request: EditRequest,
    model: Model,
    picture: str,
    *,
    mask: str | None,
    crop: Crop | None,
    loading: Mapping[str, Any],
) -> Repeat:
    """Returns how an edit is made again, from files of these names.

    Args:
        request: the settings.
        model: the model.
        picture, mask: the names of the files.
        crop: the region that is edited, if there is no mask.
        loading: the keyword arguments of ``ddim.load``.
    """
    where = {"mask": mask} if mask else {"crop": crop}
    return Repeat("edit", request.model, (picture,), {**request.arguments(model), **where}, loading)
