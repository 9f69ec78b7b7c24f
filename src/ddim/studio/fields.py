"""Groups of fields that several tabs have."""

from typing import Any

import gradio as gr

from ..models import bundled_models, bundled_test_images
from ..models.base import Model


class Words:
    """What the picture shows and, for an edit, what it is to show: in words, or as classes.

    Args:
        prefix: the beginning of the ids of the fields.
        targets: whether there are fields for a target.
    """

    def __init__(self, prefix: str, targets: bool = True) -> None:
        self.source_prompt = gr.Textbox(label="What it shows", elem_id=f"{prefix}-from", max_lines=3)
        self.prompt = gr.Textbox(label="What it is to show", elem_id=f"{prefix}-to", max_lines=3, visible=targets)
        with gr.Row():
            self.source_label = gr.Number(
                label="Its class", precision=0, visible=False, elem_id=f"{prefix}-from-label", min_width=120
            )
            self.label = gr.Number(
                label="The class to edit to", precision=0, visible=False, elem_id=f"{prefix}-to-label", min_width=120
            )
        self.targets = targets

    @property
    def parts(self) -> list[Any]:
        """The fields."""
        return [self.source_prompt, self.prompt, self.source_label, self.label]

    def updates(self, model: Model) -> dict[Any, Any]:
        """Returns what the fields become for a model."""
        classes: dict[str, Any] = {"maximum": max(model.classes - 1, 0), "minimum": 0}
        return {
            self.source_prompt: gr.update(visible=model.text),
            self.prompt: gr.update(visible=model.text and self.targets),
            self.source_label: gr.update(visible=bool(model.classes), **classes),
            self.label: gr.update(visible=bool(model.classes) and self.targets, **classes),
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


def whole(value: float | None) -> Any:
    """Returns a number of a field as an integer if it is one; the library refuses the others."""
    return int(value) if value is not None and float(value).is_integer() else value
