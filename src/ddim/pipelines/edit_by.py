"""Runs an editor on the codes of its sources: what ``edit`` does for the methods in ``ddim.EDITORS``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._utils.errors import InputError, UnknownName
from .._utils.tensors import in_groups
from .._utils.texts import parse_weights
from ..core.conditioning import Conditioning, PromptConditioning
from ..core.contracts import Inversion, OnStep
from ..core.denoiser import Call
from ..core.guidance import Guidance
from ..core.noise import SeededNoise
from ..editing.editors import EDITORS, make_editor
from ..editing.editors.base import Concept, Editor, EditProblem, StepNoise, Usual
from ..editing.sides import Side
from ..editing.strength import Reach
from ..inversion import INVERSIONS
from ..inversion.encoded import Encoded
from ..inversion.extras import TRAJECTORY, path_of
from ..inversion.latent_code import LatentCode
from ..models.base import Model
from ..solvers import SOLVERS, make_solver
from .capabilities import check_acts, check_editor, check_guidance, check_negative, check_pull
from .common import INVERSION_GUIDANCE, encoded_images, half_precision_hint, hold_of, is_encoded
from .events import engine_events
from .target_batches import Made, TargetBatches, with_facts


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
        check_pull(guidance)
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
    if isinstance(method, str) and editor is None and method not in INVERSIONS and method not in SOLVERS:
        raise UnknownName("method", method, list(dict.fromkeys([*INVERSIONS, *EDITORS])))
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
        usual = type(inversion)().options
        own = {name: value for name, value in inversion.options.items() if value != usual[name]}
        kept = (f", options={own}" if own else "") + (", keep_trajectory=True" if editor.needs_trajectory else "")
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


@dataclass(frozen=True, eq=False)
class ByEditor:
    """Edits N sources to K targets each by an editor.

    Attributes:
        model: the model.
        chosen: the editor and the guidance.
        code: of all sources.
        targets: the conditions of each part of the targets' prompts, N * K rows, those of one image next to each other.
        factors: the factors of each part, N * K numbers.
        seed: the seed of the first image.
        mask: where the targets may change on the latent, [N, K or 1, H, W], on the model's device, or None.
        batches: how many sources and targets are edited at once, and what is reported.
    """

    model: Model
    chosen: Chosen
    code: LatentCode
    targets: Sequence[Conditioning]
    factors: Sequence[Sequence[float]]
    seed: int
    mask: Tensor | None
    batches: TargetBatches

    def __call__(self, reach: Reach) -> Made:
        """Edits all sources; the first image of each is its own latent decoded.

        Args:
            reach: the steps in which the targets may leave their source.
        """

        def make(sources: slice, report: OnStep) -> Made:
            problem, many = self._problem(sources, reach), self.batches.many
            n, mask = len(problem.x0), problem.mask
            with half_precision_hint(self.model):
                edits = self.chosen.editor.edit(problem, report)
            latents = torch.cat([problem.x0[:, None], edits.unflatten(0, (n, many))], 1).flatten(0, 1)
            images = in_groups(self.model.decode(latents), n, 1 + many)
            return images, None if mask is None else mask.expand(-1, many, -1, -1)

        return self.batches.run(self.code.grid.steps - reach.begin, make)

    def _problem(self, sources: slice, reach: Reach) -> EditProblem:
        """Returns what the editor is given for some of the sources."""
        code, many, rows = self.code[sources], self.batches.many, self.batches.targets_of(sources)
        device, dtype = self.model.device, self.model.state_dtype
        n, own, trajectory, x0 = len(code), code.conditions.to(device), _trajectory(code), encoded_images(code)
        assert x0 is not None  # what an editor starts from ends at the image
        away = own.cond if self.chosen.editor.from_source else own.uncond
        away = None if away is None else away.repeat(many)
        wanted = [with_facts(conditions[rows], own.cond, many) for conditions in self.targets]
        sides = [Side(PromptConditioning(conditions, away), self.chosen.target, n) for conditions in wanted]
        factors = [torch.tensor(f[rows], device=device) for f in self.factors]
        return EditProblem(
            self.model,
            code.grid,
            x0=x0.to(device, dtype),
            source=Side(own, self.chosen.source, n),
            target=sides[0],
            noise=StepNoise(SeededNoise([self.seed + k for k in range(sources.start, sources.stop)])),
            trajectory=None if trajectory is None else trajectory.to(device, dtype),
            extras={name: t.to(device) for name, t in code.extras.items()},
            noisy=code.x.to(device, dtype),
            solver=None if is_encoded(code) else make_solver(code.solver, code.options),
            concepts=list(zip(sides, factors, strict=True)),
            reach=reach,
            mask=None if self.mask is None else self.mask[sources],
            hold=hold_of(code),
            call=Call(on_engine=engine_events(self.batches.on_event)),
        )
