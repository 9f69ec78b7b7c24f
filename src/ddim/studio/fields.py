"""Groups of fields that several tabs have."""

from contextlib import nullcontext
from typing import Any

import gradio as gr

from .._utils.errors import is_number
from ..models import bundled_models, bundled_test_images
from ..models.base import Model


def number(label: str, elem_id: str, value: float | None = None, visible: bool = True) -> gr.Number:
    """Returns a field for a number.

    It has no bounds: Gradio would answer an error of its own, and round fractions. ``requests`` and the library say
    what does not fit.
    """
    return gr.Number(value, label=label, elem_id=elem_id, visible=visible, min_width=90)


class Words:
    """What the picture shows and, for an edit, what it is to show: in words, or as classes.

    Args:
        prefix: the beginning of the ids of the fields.
        targets: whether there are fields for a target.
        describe: whether there is a button that describes the picture.
    """

    describe: gr.Button | None = None

    def __init__(self, prefix: str, targets: bool = True, describe: bool = False) -> None:
        with gr.Row(elem_classes="beside") if describe else nullcontext():
            self.source_prompt = gr.Textbox(label="What it shows", elem_id=f"{prefix}-from", max_lines=3, min_width=160)
            if describe:
                self.describe = gr.Button("Describe it", size="sm", scale=0, min_width=96, elem_id=f"{prefix}-describe")
        self.prompt = gr.Textbox(label="What it is to show", elem_id=f"{prefix}-to", max_lines=3, visible=targets)
        with gr.Row(visible=False) as self.labels:
            self.source_label = number("Its class", f"{prefix}-from-label", visible=False)
            self.label = number("The class to edit to", f"{prefix}-to-label", visible=False)
        self.targets = targets

    @property
    def parts(self) -> list[Any]:
        """The fields."""
        return [self.source_prompt, self.prompt, self.source_label, self.label]

    def updates(self, model: Model) -> dict[Any, Any]:
        """Returns what the fields become for a model."""
        more = {} if self.describe is None else {self.describe: gr.update(visible=model.text)}
        return {
            **more,
            self.source_prompt: gr.update(visible=model.text),
            self.prompt: gr.update(visible=model.text and self.targets),
            self.labels: gr.update(visible=bool(model.classes)),
            self.source_label: gr.update(visible=bool(model.classes)),
            self.label: gr.update(visible=bool(model.classes) and self.targets),
        }


def sample(name: str, which: int = 0) -> tuple[str, str, str]:
    """Returns a picture that a bundled model was not trained on: its file, what it shows, and a target.

    Args:
        name: the model; of one that is not bundled, those of ``emoji`` are taken.
        which: the number of the picture.
    """
    files = bundled_test_images(name if name in bundled_models() else "emoji")
    smiling = [file for file in files if file.stem == "noto_slightly-smiling-face"]
    files = [*smiling, *(file for file in files if file not in smiling)]
    file = files[which]
    if "_" not in file.stem or file.stem[0].isdigit():  # a photograph of a class has no prompt
        return str(file), "", ""
    shows = file.stem.replace("_", " ").replace("-", " ")
    return str(file), shows, "noto smiling face with sunglasses" if smiling and which == 0 else ""


def sample_folders() -> list[str]:
    """Returns the folders of the pictures that ``sample`` offers; Gradio serves no other file of this machine."""
    return sorted({str(bundled_test_images(name)[0].parent) for name in bundled_models()})


def whole(value: Any) -> Any:
    """Returns the value of a field as an integer if it is a whole number, and others as they are."""
    return int(value) if is_number(value) and float(value).is_integer() else value
