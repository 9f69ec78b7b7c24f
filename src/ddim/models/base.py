"""What the pipelines ask of a model: the class that every family's adapter is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError, is_whole
from ..core import guidance as maths
from ..core.conditioning import Conditioning, PromptConditioning
from ..core.denoiser import PLAIN, Call, ModelDenoiser, aligned, asked
from ..core.guidance import Guidance, Prompts
from ..core.path import Node
from ..core.prediction import Hold
from ..core.schedule import Schedule
from ..editing.tokens import Tokens
from .info import ModelInfo

if TYPE_CHECKING:
    from ..editing.plan import AttentionSite


class Model(ABC):
    """A network with its schedule and its pictures; it works on the pictures themselves, or on their codes.

    Attributes:
        info: its facts.
        schedule: its path, what it predicts, its grids.
        parts: a pipeline's parts that an adapter reads from a folder, and the classes of each that it takes.
    """

    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    info: ModelInfo
    schedule: Schedule

    # --- facts ------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """As it was asked for."""
        return self.info.name

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what it diffuses."""
        return self.info.shape

    @property
    def picture(self) -> tuple[int, int, int]:
        """(C, H, W) of its pictures, in pixels."""
        return self.info.picture

    @property
    def multiple(self) -> int:
        """It takes any picture whose sides are multiples of this; 0 where ``picture`` is the only size."""
        return self.info.multiple

    @property
    def text(self) -> bool:
        """Whether prompts condition it."""
        return self.info.text

    @property
    def classes(self) -> int:
        """How many classes it is conditioned on; 0 without."""
        return self.info.classes

    @property
    def dtype(self) -> torch.dtype:
        """What its network computes in."""
        return self.info.dtype

    @property
    def state_dtype(self) -> torch.dtype:
        """The sampler's dtype: float32, or float64 when the network computes in it."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.info.device

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of config and weights, the same on every machine; empty where they cannot be read."""

    @property
    def adapters(self) -> str:
        """The LoRA adapters that act and their scales, as ``style 0.8``; empty without."""
        return ""

    @property
    def engine(self) -> str:
        """How its network computes, where that decides last bits: a code's machine keeps it. Empty says nothing."""
        return ""

    # --- the network ------------------------------------------------------------------------------------------------

    @abstractmethod
    def forward(self, x: Tensor, node: Node, cond: Conditioning, call: Call) -> Tensor:
        """What the network says of x [N, C, H, W] under N conditions, [N, C, H, W] in x's dtype.

        Raises:
            InputError: a condition that it needs is missing.
        """

    def ask(self, x: Tensor, node: Node, /, *conditionings: Conditioning, call: Call = PLAIN) -> Sequence[Tensor]:
        """What the network says of x [N, ...] under each condition, [N, ...] each: the only way to it.

        Args:
            x: in ``state_dtype``.
            node: where x lies.
            conditionings: one for each of ``call.branches``, N rows each.
            call: controller, branches, one batch or several, layout.
        """

        def one(rows: Tensor, cond: Conditioning, told: Call) -> Tensor:
            return self.forward(aligned(rows), node, cond, told)

        return asked(one, x, conditionings, call)

    def combine(self, cond: Tensor, uncond: Tensor, guidance: Guidance, node: Node) -> Tensor:
        """The guided output from the two branches' outputs; uncond + w (cond - uncond) unless a family differs."""
        return maths.combine(cond, uncond, guidance)

    def guided(
        self, guidance: Guidance, prompts: Prompts, *, hold: Hold | None = None, call: Call = PLAIN
    ) -> ModelDenoiser:
        """The network under guidance as a denoiser; x0 held, by default as the model's config says."""
        return maths.guided(self, guidance, prompts, hold=self.schedule.hold if hold is None else hold, call=call)

    # --- conditions -------------------------------------------------------------------------------------------------

    @abstractmethod
    def condition(
        self,
        labels: int | Sequence[int] | None,
        count: int,
        prompts: str | Sequence[str] | None = None,
        negative: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> PromptConditioning:
        """Both branches of guidance for ``count`` samples, in the state's dtype and on the model's device.

        Args:
            labels: of a class-conditional model, one or one a sample.
            count: N.
            prompts: of a model with text, one or one a sample.
            negative: what guidance leads away from; None is the family's own unconditional branch.
            size: (height, width) of the pictures in pixels; the model's own by default.

        Raises:
            InputError: labels, prompts and model do not go together.
        """

    def tokens(self, prompt: str) -> Tokens:
        """A prompt as it is embedded, and where its words are. Raises InputError for a model without text."""
        raise self._no_text()

    def encode_prompt(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """One condition a prompt, for pictures of this size. Raises InputError for a model without text."""
        raise self._no_text()

    def _no_text(self) -> InputError:
        return InputError(f"the model {self.name!r} has no text encoder, so it takes no prompt.", parameter="prompt")

    # --- attention --------------------------------------------------------------------------------------------------

    def attention_sites(self) -> "tuple[AttentionSite, ...]":
        """Where its attention can be controlled.

        Raises:
            InputError: nowhere, or processors stand there that do more than attend.
        """
        raise InputError(
            f"the attention of {self.name!r} cannot be controlled; use attention = 'none'.", parameter="attention"
        )

    @contextmanager
    def controlled(self) -> Iterator[None]:
        """Inside, attention heeds the controller of a call; afterwards the network is as it was."""
        yield

    # --- pictures ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] in [0, 1] to x0 in the model's range, ``state_dtype``."""

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """x0 to images in [0, 1], as the network made them: float."""

    def describe(self) -> dict[str, Any]:
        """What it is, for people and for JSON."""
        info, schedule = self.info, self.schedule
        text = {"multiple": info.multiple, "prompt_tokens": info.prompt_tokens} if info.text else {}
        null = {} if info.null_class is None else {"null_class": info.null_class}
        return {
            "name": info.name,
            "kind": info.family,
            "shape": list(info.shape),
            **({"picture": list(info.picture)} if info.picture != info.shape else {}),
            **text,
            "classes": info.classes,
            **null,
            "prediction": schedule.prediction,
            "path": type(schedule.path).__name__,
            "levels": schedule.path.levels,
            "spacing": schedule.spacing,
            "hold": schedule.hold.options,
            "parameters": info.parameters,
            "dtype": str(info.dtype).removeprefix("torch."),
            "device": str(info.device),
            "fingerprint": self.fingerprint,
        }

    # --- how one is made --------------------------------------------------------------------------------------------

    @classmethod
    def from_folder(cls, name: str, folder: Path, device: torch.device, dtype: torch.dtype) -> "Model":
        """From a folder in the diffusers format, each part held against its config first; a family says how."""
        raise InputError(f"a {cls.__name__} is not read from a folder.", parameter="model")

    @classmethod
    def from_pipeline(cls, pipeline: Any, name: str | None = None) -> "Model":
        """A live pipeline as its owner set it up: it is neither loaded anew, moved nor cast, and stays as it is."""
        raise InputError(
            f"a live {type(pipeline).__name__} is not taken; save it, and give its folder.", parameter="model"
        )

    @staticmethod
    def from_network(
        network: Callable[..., Tensor],
        schedule: Schedule,
        *,
        shape: tuple[int, int, int],
        range: tuple[float, float] = (-1.0, 1.0),
        labels: int = 0,
        null_label: int | None = None,
        timestep_dtype: torch.dtype | None = None,
        name: str = "network",
        fingerprint: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> "Model":
        """A model from a network of one's own, for every pipeline.

        Args:
            network: called as ``network(x, t)``, or ``network(x, t, labels)`` with classes; x is [N, C, H, W] in
                ``dtype``, t [N] what ``schedule.timestep`` gives, labels int64 [N]; it returns what
                ``schedule.prediction`` names, of x's shape.
            schedule: path and prediction, ``ddim.Schedule(ddim.ddpm_linear(), "eps")``.
            shape: (C, H, W) of its pictures; C is 1 or 3.
            range: what black and white are for it.
            labels: how many classes it takes, 0 for none, the null class left out.
            null_label: the label that stands for no class; None where there is none.
            timestep_dtype: of t; by default int64 for whole timesteps of a table, float32 else.
            name: for people and codes.
            fingerprint: of its weights; by default a hash over those of a ``torch.nn.Module``, and nothing for another
                callable.
            device, dtype: where and in what it computes; by default its first parameter's, or the CPU and float32.

        Raises:
            InputError: a value out of its range.
        """
        from .network import NetworkModel

        return NetworkModel(
            network,
            schedule,
            shape=shape,
            values=range,
            labels=labels,
            null_label=null_label,
            timestep_dtype=timestep_dtype,
            name=name,
            fingerprint=fingerprint,
            device=device,
            dtype=dtype,
        )


class ClassModel(Model):
    """A model without text: of some classes, or unconditional."""

    def condition(
        self,
        labels: int | Sequence[int] | None,
        count: int,
        prompts: str | Sequence[str] | None = None,
        negative: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> PromptConditioning:
        """Class labels [count], one for all or one each, and the null class; of an unconditional model nothing."""
        for key, words in (("prompt", prompts), ("negative", negative)):
            if words:
                raise InputError(f"the model {self.name!r} has no text encoder, so it takes no prompt.", parameter=key)
        info = self.info
        if labels is None:
            if info.classes:
                raise InputError(
                    f"the model {info.name!r} needs a class, from 0 to {info.classes - 1}.", parameter="labels"
                )
            return PromptConditioning()
        if not info.classes:
            raise InputError(f"the model {info.name!r} is unconditional; it takes no class labels.", parameter="labels")
        cond = Conditioning({"labels": class_labels(labels, count, info.classes, info.name).to(info.device)})
        if info.null_class is None:
            return PromptConditioning(cond)
        null = torch.full_like(cond.tensors["labels"], info.null_class)
        return PromptConditioning(cond, cond.replace(labels=null))


def scalar(timestep: float, device: torch.device) -> Tensor:
    """A timestep as diffusers' networks take it: whole ones as int64, since some look them up, others as float32."""
    return torch.tensor(int(timestep) if timestep == int(timestep) else timestep, device=device)


def class_labels(labels: Any, count: int, classes: int, name: str, *, parameter: str = "labels") -> Tensor:
    """Class labels as a tensor, int64 [count]; one label serves for all.

    Args:
        labels: a number, or a sequence of them.
        count: how many images.
        classes: how many classes ``name``, a model or a classifier, knows.

    Raises:
        InputError: a number of labels that does not fit, or one that is not a class.
    """
    several: list[Any] = list(labels) if isinstance(labels, Iterable) and not is_whole(labels) else [labels]
    given = several * count if len(several) == 1 else several
    if len(given) != count:
        raise InputError(f"{len(given)} were given for {count} images.", parameter=parameter)
    wrong = [k for k in given if not is_whole(k) or not 0 <= k < classes]
    if wrong:
        raise InputError(f"{wrong[0]!r} is not a class of {name!r}; use 0 to {classes - 1}.", parameter=parameter)
    return torch.tensor([int(k) for k in given], dtype=torch.long)
