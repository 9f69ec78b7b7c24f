"""Runs an editor on the codes of its sources: what ``edit`` does for the methods in ``ddim.EDITORS``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import InputError
from .._utils.tensors import in_groups
from .._utils.texts import parse_weights
from ..core.conditioning import Conditioning, PromptConditioning
from ..core.contracts import Inversion
from ..core.denoiser import Call
from ..core.guidance import Guidance
from ..core.noise import SeededNoise
from ..editing.editors import EDITORS, make_editor
from ..editing.editors.base import Concept, Editor, EditProblem, StepNoise, Usual
from ..editing.sides import Side
from ..editing.strength import Reach
from ..inversion.encoded import Encoded
from ..inversion.extras import TRAJECTORY, path_of
from ..inversion.latent_code import LatentCode
from ..models.base import Model
from ..solvers import make_solver
from .beside import with_facts
from .capabilities import check_acts, check_editor, check_guidance, check_negative
from .common import INVERSION_GUIDANCE, half_precision_hint, hold_of, is_encoded
from .events import ImagesEvent, OnEvent, engine_events
from .phases import Phases


@dataclass(frozen=True)
class Chosen:
    """An editor with its settings for a model.

    Attributes:
        editor: the editor.
        usual: its usual settings.
        source, target: the guidance of the sources and of the targets.
    """

    editor: Editor
    usual: Usual
    source: Guidance
    target: Guidance

    @staticmethod
    def of(
        model: Model,
        method: Any,
        options: Mapping[str, Any] | None,
        guidance: float | Guidance | None,
        code: LatentCode | None,
    ) -> "Chosen | None":
        """Returns what the arguments of ``edit`` choose; None if targets are sampled beside their sources.

        Raises:
            InputError: the editor does not work on the model, with this guidance, or on this code.
        """
        editor = _editor_for(method, options, code)
        if editor is None:
            return None
        check_editor(model, editor)
        source, target = editor.guidances(model.info, guidance)
        if code is not None and not editor.needs_trajectory:  # noise maps are those of the guidance of their inversion
            own = Guidance.of(code.guidance)
            source = replace(own.at(code.settings.get(INVERSION_GUIDANCE, own.weight)), embedded=source.embedded)
            if editor.from_source and source.weight != 1:
                raise InputError(
                    f"{editor.name!r} edits codes that were inverted without guidance, and this one has "
                    f"{source.weight:g}; give the images.",
                    parameter="method",
                )
        check_guidance(model, source)
        check_guidance(model, target.at(1.0) if editor.from_source else target)
        if isinstance(guidance, Guidance):
            check_acts(target)
        return Chosen(editor, editor.usual(model.info), source, target)

    def check_negative(self, model: Model, negative: str | None) -> None:
        """Raises InputError for a negative prompt from which neither the sources nor the targets are led away."""
        if negative and self.editor.from_source and self.source.weight == 1:
            raise InputError(
                f"{negative!r} has no effect, because the guidance of {self.editor.name!r} leads away from the prompt "
                "of the source; leave it out.",
                parameter="negative",
            )
        check_negative(model, negative, self.target.weight if self.source.weight == 1 else self.source.weight)

    def one_branch_a_call(self) -> "Chosen":
        """Returns a copy that asks for the two branches of guidance one after the other."""
        return replace(
            self, source=replace(self.source, batched_cfg=False), target=replace(self.target, batched_cfg=False)
        )

    def strengths(self, asked: Sequence[float | None]) -> tuple[float | None, ...]:
        """Returns the strengths that were asked for, of which None is the usual one."""
        return tuple(self.usual.strength if one is None else one for one in asked)

    @property
    def inversion(self) -> Inversion:
        """The inversion that makes the codes of the editor."""
        return self.editor.inversion() or Encoded(self.editor.name)


def _editor_for(method: Any, options: Mapping[str, Any] | None, code: LatentCode | None) -> Editor | None:
    """Returns the editor that the arguments of ``edit`` choose; None if targets are sampled beside their sources.

    A code of an editor without an inversion, which holds the encoded images, is edited by that editor.

    Raises:
        InputError: the editor cannot start from the code.
    """
    if method is None:
        if code is None or code.method not in EDITORS or not is_encoded(code):
            return None
        return make_editor(code.method, options)
    editor = make_editor(method, options)
    if editor is None or code is None:
        return editor
    inversion = editor.inversion()
    if inversion is None:
        if code.method != editor.name:
            raise InputError(
                f"{editor.name!r} edits images without an inversion, and this is a code of {code.method!r}; give the "
                "images.",
                parameter="method",
            )
        return editor
    missing = [name for name in inversion.stores if name not in code.extras]
    if missing or (editor.needs_trajectory and _trajectory(code) is None):
        kept = " and keep_trajectory=True" if editor.needs_trajectory else ""
        raise InputError(
            f"{editor.name!r} starts from the {', '.join(missing) or TRAJECTORY} of {inversion.name!r}, which this "
            f"code of {code.method!r} lacks; give the images, or invert them with method={inversion.name!r}{kept}.",
            parameter="method",
        )
    return editor


def _trajectory(code: LatentCode) -> Tensor | None:
    """Returns the samples of the inversion at all nodes, [N, S + 1, ...], if the code keeps them."""
    later = code.extras.get(TRAJECTORY, path_of(code.extras))
    return None if later is None else torch.cat([code.x[:, None].to(later), later], 1)


def _encoded(code: LatentCode) -> Tensor:
    """Returns the encoded images of a code: the end of its sampling or of its trajectory, or what it holds itself."""
    if "end" in code.extras:
        return code.extras["end"][:, 0]
    trajectory = _trajectory(code)
    return code.x if trajectory is None else trajectory[:, -1]


@dataclass(frozen=True)
class Parts:
    """The parts of the target prompts, as lists of equal length: ``[E][N K]``; see ``Editor.concepts``.

    Attributes:
        texts: the texts. A target of fewer parts repeats its first one.
        factors: their factors, 0 for what is repeated.
    """

    texts: tuple[tuple[str, ...], ...]
    factors: tuple[tuple[float, ...], ...]

    @staticmethod
    def of(concepts: Sequence[Sequence[Sequence[Concept]]]) -> "Parts":
        """Makes the lists from the concepts of the targets, ``[N][K]``."""
        rows = [one for row in concepts for one in row]
        places = range(max(len(one) for one in rows))
        padded = [[one[e] if e < len(one) else Concept(one[0].text, 0.0) for one in rows] for e in places]
        texts = tuple(tuple(concept.text for concept in part) for part in padded)
        return Parts(texts, tuple(tuple(concept.factor for concept in part) for part in padded))

    def plain(self) -> "Parts":
        """Returns the texts as the model reads them: without the backslashes that keep ``(word:2)`` as text."""
        return replace(self, texts=tuple(tuple(parse_weights(text)[0] for text in part) for part in self.texts))


def edited_by(
    model: Model,
    chosen: Chosen,
    code: LatentCode,
    targets: Sequence[Conditioning],
    factors: Sequence[Sequence[float]],
    reach: Reach,
    seed: int,
    mask: Tensor | None,
    batch: int,
    phases: Phases,
    on_event: OnEvent,
) -> tuple[Tensor, Tensor | None]:
    """Edits all sources by an editor, in batches.

    Args:
        model: the model.
        chosen: the editor and the guidance.
        code: of all N sources.
        targets: the conditions of each part of the targets' prompts, N * K rows, those of one image next to each other.
        factors: the factors of each part, N * K numbers.
        reach: the steps in which the targets may leave their source.
        seed: the seed of the first image.
        mask: where the targets may change on the latent, [N, K or 1, H, W], or None.
        batch, on_event: see ``edit``.
        phases: counts the steps.

    Returns:
        Images [N, 1 + K, C, H, W] in [0, 1], of which the first is the source's own latent decoded, and the mask,
        [N, K, H, W], or None.
    """
    many = len(factors[0]) // len(code)
    per = max(1, batch // (1 + many))
    chunks = [slice(k, min(k + per, len(code))) for k in range(0, len(code), per)]
    report = phases.sampling((code.grid.steps - reach.begin) * len(chunks))
    if mask is not None:
        mask = mask.to(model.device)
    parts: list[Tensor] = []
    for which in chunks:
        part = code[which]
        n, own = len(part), part.conditions.to(model.device)
        trajectory = _trajectory(part)
        x0 = _encoded(part).to(model.device, model.state_dtype)
        rows = slice(which.start * many, which.stop * many)
        away = own.cond if chosen.editor.from_source else own.uncond
        away = None if away is None else away.repeat(many)
        wanted = [with_facts(conditions[rows], own.cond, many) for conditions in targets]
        sides = [Side(PromptConditioning(conditions, away), chosen.target, n) for conditions in wanted]
        problem = EditProblem(
            model,
            part.grid,
            x0,
            Side(own, chosen.source, n),
            sides[0],
            StepNoise(SeededNoise([seed + k for k in range(which.start, which.stop)])),
            None if trajectory is None else trajectory.to(model.device, model.state_dtype),
            {name: t.to(model.device) for name, t in part.extras.items()},
            part.x.to(model.device, model.state_dtype),
            None if is_encoded(part) else make_solver(part.solver, part.options),
            [(side, torch.tensor(f[rows], device=model.device)) for side, f in zip(sides, factors, strict=True)],
            reach,
            None if mask is None else mask[which],
            hold_of(part),
            Call(on_engine=engine_events(on_event)),
        )
        with half_precision_hint(model):
            edits = chosen.editor.edit(problem, report)
        latents = torch.cat([x0[:, None], edits.unflatten(0, (n, many))], 1).flatten(0, 1)
        images = in_groups(model.decode(latents), n, 1 + many)
        parts.append(images)
        on_event(ImagesEvent(which.start, images))
    whole = torch.cat(parts)
    if mask is None:
        return whole, None
    return whole, torch.nn.functional.interpolate(mask.expand(-1, many, -1, -1), whole.shape[-2:])
