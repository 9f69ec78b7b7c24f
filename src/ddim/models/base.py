"""``Model``, the interface between this library and a network; the adapter of each model family implements it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .._utils.errors import InputError, is_whole
from ..core import guidance as maths
from ..core.conditioning import Conditioning, PromptConditioning
from ..core.denoiser import PLAIN, Call, Layout, ModelDenoiser, aligned, ask_network
from ..core.guidance import Guidance, Prompts
from ..core.path import Node
from ..core.prediction import Hold
from ..core.schedule import Schedule
from ..editing.tokens import PromptTokens
from .engine.threads import engine_threads, least_rows, thread_limit
from .engine.work import Work
from .info import ModelInfo
from .live import quantised_layers

if TYPE_CHECKING:
    from ..editing.plan import AttentionSite
    from .additions import Additions
    from .loading import Loading


class Model(ABC):
    """A diffusion model: a network, its noise schedule, and the conversion between images and the diffused tensor x0.

    x0 is the image itself (pixel models) or its latent (latent models).

    Attributes:
        info: the facts about the model.
        schedule: its path, its prediction type and its grids.
        parts: for adapters of diffusers pipelines: name of a part that is read -> names of its supported classes.
        tf32: whether CUDA computes convolutions and matrix products in float32 with TF32; None is torch's own setting.
        low_memory: whether pipelines evaluate the two branches of guidance one after the other.
        threads: whether large batches of the network are split among threads on a CPU.
        work: the estimated work of the network's calls; None if it is unknown.
    """

    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    tf32: bool | None = None
    low_memory: bool = False
    info: ModelInfo
    schedule: Schedule
    threads: bool = True
    work: Work | None = None

    # --- facts ------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name, path or hub id that the model was loaded by."""
        return self.info.name

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the diffused tensor x0."""
        return self.info.shape

    @property
    def picture(self) -> tuple[int, int, int]:
        """(C, H, W) of its images in pixels."""
        return self.info.picture

    @property
    def multiple(self) -> int:
        """Images may have any size whose sides are multiples of this; 0 if ``picture`` is the only size."""
        return self.info.multiple

    @property
    def downscaling(self) -> int:
        """How many pixels of an image, along each side, belong to one position of x0; 1 for pixel models."""
        return self.picture[1] // self.shape[1]

    @property
    def text(self) -> bool:
        """Whether it is conditioned on prompts."""
        return self.info.text

    @property
    def classes(self) -> int:
        """How many classes it is conditioned on; 0 for none."""
        return self.info.classes

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that its network computes in."""
        return self.info.dtype

    @property
    def state_dtype(self) -> torch.dtype:
        """The dtype of the sampler's state: float64 if the network computes in float64, and otherwise float32."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return self.info.device

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of config and weights, the same on every machine; empty if they cannot be read."""

    @property
    def adapters(self) -> str:
        """The active LoRA adapters with their scales, such as ``style 0.8``; empty if there are none."""
        return ""

    @property
    def reference(self) -> Tensor | None:
        """The latents of a picture that the network looks at; None if there is none; see ``ReferenceModel``.

        Raises:
            InputError: a picture was set for a model that takes none.
        """
        return None

    @reference.setter
    def reference(self, picture: Any) -> None:
        if picture is not None:
            raise InputError(
                f"the model {self.name!r} takes no reference picture, as FLUX.1 Kontext and FLUX.2 klein do; leave it "
                "out.",
                parameter="reference",
            )

    @property
    def engine(self) -> str:
        """How its network computes, as far as it changes the last bits of the output; a latent code records it.

        Empty if nothing is known.
        """
        return ""

    @property
    def whole_timesteps(self) -> bool:
        """Whether its network takes only whole timesteps."""
        return False

    @property
    def quantised(self) -> Sequence[str]:
        """The classes of its network's layers that have quantised weights; empty if there are none."""
        network = getattr(self, "network", None)
        return quantised_layers(network) if isinstance(network, nn.Module) else ()

    # --- the network ------------------------------------------------------------------------------------------------

    def row_work(self, shape: Sequence[int] | None = None) -> float | None:
        """Returns the estimated multiply-adds of a network call for one row; None if they are unknown.

        Args:
            shape: (C, H, W) of x; by default ``self.shape``.
        """
        _, height, width = shape or self.shape
        return None if self.work is None else self.work.row(height * width)

    def exact_layout(self) -> Layout:
        """Returns the layout of calls whose bits must be reproducible on other machines.

        A batch is split into a part for each thread that may be used here, if the parts are large enough, and each part
        is computed by one thread.
        """
        return Layout(thread_limit(), 1, least_rows(self.row_work(), self.dtype))

    @contextmanager
    def in_threads(self) -> Iterator[None]:
        """A context for everything that a pipeline does with this model, which chooses torch's threads by its work.

        Outside, the calling thread has as many threads as before.
        """
        if self.device.type != "cpu":
            yield
            return
        with engine_threads(self.row_work(), self.dtype):
            yield

    @abstractmethod
    def forward(self, x: Tensor, node: Node, cond: Conditioning, call: Call) -> Tensor:
        """Calls the network once.

        Args:
            x: [N, C, H, W].
            node: the noise level of x.
            cond: N conditions, one for each row of x.
            call: attention controller, branches of guidance, and layout.

        Returns:
            The network's output [N, C, H, W], in x's dtype.

        Raises:
            InputError: a condition that the network needs is missing.
        """

    def ask(self, x: Tensor, node: Node, /, *conditionings: Conditioning, call: Call = PLAIN) -> Sequence[Tensor]:
        """Calls the network on x under one or more conditions; all of the library's calls go through here.

        Args:
            x: [N, ...] in ``state_dtype``.
            node: the noise level of x.
            conditionings: one for each of ``call.branches``, with N rows each.
            call: attention controller, branches of guidance, whether the conditions share a batch, and layout.

        Returns:
            The network's output for each condition, [N, ...] each.
        """

        def one(rows: Tensor, cond: Conditioning, one_call: Call) -> Tensor:
            return self.forward(aligned(rows), node, cond, one_call)

        return ask_network(one, x, conditionings, call)

    def combine(self, cond: Tensor, uncond: Tensor, guidance: Guidance, node: Node) -> Tensor:
        """Combines the outputs of the two branches of guidance: uncond + w (cond - uncond).

        Families whose pipeline combines them differently override this.
        """
        return maths.combine(cond, uncond, guidance)

    def guidance_of(self, guidance_scale: float) -> Guidance:
        """Translates the ``guidance_scale`` of the family's pipeline in diffusers to a guidance that samples the same.

        A network that takes the scale as an input gets it as ``Guidance.embedded``. Otherwise it is the weight
        (Qwen-Image's pipeline calls it ``true_cfg_scale``), and pipelines switch guidance off at 1 and below. Families
        whose pipeline counts differently override this.

        Raises:
            InputError: the model takes no prompts, or it is distilled to sample without guidance.
        """
        kinds = self.info.guidance_kinds
        if not self.text:
            raise InputError(
                f"it is a number of pipelines that take prompts, and the model {self.name!r} takes none; leave it out.",
                parameter="guidance_scale",
            )
        if "embedded" in kinds:
            return Guidance(embedded=guidance_scale)
        if "cfg" not in kinds and guidance_scale > 1:
            raise InputError(
                f"{guidance_scale:g} has no effect: the model {self.name!r} is distilled to sample without "
                "classifier-free guidance; use 0, or leave it out.",
                parameter="guidance_scale",
            )
        return Guidance(max(guidance_scale, 1.0))

    def guided(
        self,
        guidance: Guidance,
        prompts: Prompts,
        *,
        hold: Hold | None = None,
        call: Call = PLAIN,
        anchor: Tensor | None = None,
    ) -> ModelDenoiser:
        """Returns a denoiser that calls the network with guidance.

        Args:
            guidance: weight and further settings.
            prompts: the conditions of both branches.
            hold: how x0 is clipped or thresholded; by default as the model's config says.
            call: see ``ask``.
            anchor: the encoded images that reconstruction guidance pulls to, [N, ...]; see ``Proximal``.
        """
        hold = self.schedule.hold if hold is None else hold
        return maths.guided(self, guidance, prompts, hold=hold, call=call, anchor=anchor)

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
        """Makes the conditions of both branches of guidance, in ``state_dtype`` and on the model's device.

        Args:
            labels: class labels, for a class-conditional model: one for all samples, or one for each.
            count: the number of samples, N.
            prompts: prompts, for a model with text: one for all samples, or one for each.
            negative: the negative prompt; None is the family's own unconditional branch.
            size: (height, width) of the images in pixels; by default the model's own.

        Raises:
            InputError: the model takes no labels or no prompts, lacks one that it needs, or their number is wrong.
        """

    def tokens(self, prompt: str) -> PromptTokens:
        """Returns a prompt's tokens and the positions of its words. Raises InputError for a model without text."""
        raise self._no_text()

    def encode_prompt(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """Encodes prompts, for images of (height, width) ``size``: one condition for each prompt.

        Raises:
            InputError: the model has no text encoder.
        """
        raise self._no_text()

    def _no_text(self) -> InputError:
        return no_text(self.name, "prompt")

    # --- attention --------------------------------------------------------------------------------------------------

    def attention_sites(self) -> "tuple[AttentionSite, ...]":
        """Returns the attention layers that can be controlled.

        Raises:
            InputError: there are none, or a layer has a processor that does more than plain attention.
        """
        raise InputError(
            f"the attention of the model {self.name!r} cannot be controlled; use attention = 'none'.",
            parameter="attention",
        )

    def feature_sites(self) -> tuple[str, ...]:
        """Returns the names of the modules whose output plug-and-play takes over, in the order in which they run.

        Raises:
            InputError: the network is no U-Net with such features.
        """
        raise InputError(
            f"plug-and-play takes over features of a U-Net's residual block, and the model {self.name!r} has none; use "
            "another kind of attention control, such as 'masactrl'.",
            parameter="attention",
        )

    @contextmanager
    def controlled(self) -> Iterator[None]:
        """Inside the block, attention layers follow the controller of a call; afterwards the network is restored."""
        yield

    # --- pictures ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Converts images [N, C, H, W] in [0, 1] to x0 in ``state_dtype``."""

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """Converts x0 to float images [N, C, H, W] in [0, 1]."""

    def describe(self) -> dict[str, Any]:
        """Returns the facts about the model as plain values, for tables and JSON; without what does not apply to it."""
        info, schedule = self.info, self.schedule
        text = {"multiple": info.multiple, "prompt_tokens": info.prompt_tokens} if info.text else {}
        null = {} if info.null_class is None else {"null_class": info.null_class}
        return {
            "name": info.name,
            "kind": info.family,
            "shape": list(info.shape),
            **({"picture": list(info.picture)} if info.picture != info.shape else {}),
            **text,
            **({"classes": info.classes} if info.classes else {}),
            **null,
            "prediction": schedule.prediction,
            **({"sigma_data": schedule.sigma_data} if schedule.prediction in ("edm", "edm_v") else {}),
            "path": type(schedule.path).__name__,
            "levels": schedule.path.levels,
            "spacing": schedule.spacing,
            **({} if schedule.solver == "ddim" else {"solver": schedule.solver}),
            **({"solver_options": dict(schedule.solver_options)} if schedule.solver_options else {}),
            "steps": info.steps,
            **({"shift": schedule.shift.options} if schedule.shift.acts else {}),
            **({"guidance": guidance} if (guidance := self._guidance()) else {}),
            **({"hold": schedule.hold.options} if schedule.hold.acts else {}),
            "parameters": info.parameters,
            "dtype": str(info.dtype).removeprefix("torch."),
            "device": str(info.device),
            "fingerprint": self.fingerprint,
        }

    def _guidance(self) -> dict[str, Any]:
        """Returns the kinds of guidance that it takes, with the usual values of samples."""
        info = self.info
        weight = {"weight": info.guidance} if "cfg" in info.guidance_kinds else {}
        return {**weight, **({} if info.embedded is None else {"embedded": info.embedded})}

    # --- construction -----------------------------------------------------------------------------------------------

    @classmethod
    def from_folder(cls, name: str, folder: Path, how: "Loading") -> "Model":
        """Loads the model from a folder in the diffusers format, and checks every part against its config.

        Args:
            name: the name that errors and codes call it by.
            folder: the folder.
            how: what its networks compute with, and what is read.

        Raises:
            InputError: the folder does not hold such a model.
        """
        raise InputError(f"a {cls.__name__} cannot be loaded from a folder.", parameter="model")

    @classmethod
    def check_additions(cls, name: str, additions: "Additions") -> None:
        """Checks that such a model takes LoRAs and words of textual inversion, before any weights are read.

        Args:
            name: the name that errors call it by.
            additions: what is to be added.

        Raises:
            InputError: it does not.
        """
        if additions.any:
            raise InputError(
                f"{name!r} is not a text-to-image model, and only such models take it; leave it out.",
                parameter="lora" if additions.loras else "textual_inversion",
            )

    @classmethod
    def from_pipeline(cls, pipeline: Any, name: str | None = None) -> "Model":
        """Wraps a pipeline object of diffusers, which is not changed: not reloaded, moved, cast or optimized.

        Args:
            pipeline: the pipeline object.
            name: the name that errors and codes call it by; by default its class.

        Raises:
            InputError: the family does not support pipeline objects, or not this one.
        """
        raise InputError(
            f"a {type(pipeline).__name__} object is not supported; save it, and give its folder.", parameter="model"
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
        capturable: bool = False,
    ) -> "Model":
        """Wraps your own network as a model, so that ``ddim.sample``, ``ddim.invert`` and the others can use it.

        Args:
            network: called as ``network(x, t)``, or ``network(x, t, labels)`` with classes. x is [N, C, H, W] in
                ``dtype``, times ``schedule.input_scale(node)``; t is ``schedule.timestep(node)`` as [N], and labels are
                int64 [N]. It returns what ``schedule.prediction`` names, in x's shape.
            schedule: path and prediction type, such as ``ddim.Schedule(ddim.ddpm_linear(), "eps")``, or
                ``ddim.Schedule(ddim.VEPath(), "edm", "karras", clock="edm", prior="edm")`` for the network F of EDM.
            shape: (C, H, W) of its images; C is 1 or 3.
            range: the values that black and white have for the network.
            labels: the number of classes, without the null class; 0 for none.
            null_label: the label of the null class, which stands for no class; None if there is none.
            timestep_dtype: the dtype of t; by default int64 for whole timesteps of a table of noise levels, and
                otherwise float32.
            name: a name for error messages and latent codes.
            fingerprint: identifies its weights in latent codes; by default a hash over the weights of a
                ``torch.nn.Module``, and empty for other callables.
            device, dtype: what it computes with; by default those of its first parameter, or the CPU and float32.
            capturable: whether a CUDA device may record its calls as CUDA graphs and replay them, which is faster. The
                network must be a ``torch.nn.Module`` that computes the same operations in every call, and reads no
                value of a tensor in Python.

        Raises:
            InputError: an argument has the wrong type or is out of range.
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
            capturable=capturable,
        )


class ClassModel(Model):
    """A model without text: class-conditional or unconditional."""

    def condition(
        self,
        labels: int | Sequence[int] | None,
        count: int,
        prompts: str | Sequence[str] | None = None,
        negative: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> PromptConditioning:
        """Makes the conditions of both branches: class labels, int64 [count], and the null class if there is one.

        The conditions of an unconditional model are empty.

        Raises:
            InputError: a prompt was given; a class is missing, unknown, or given to an unconditional model; or the
                number of labels is neither 1 nor ``count``.
        """
        for key, words in (("prompt", prompts), ("negative", negative)):
            if words:
                raise no_text(self.name, key)
        info = self.info
        if labels is None:
            if info.classes:
                raise InputError(
                    f"the model {info.name!r} needs a class label from 0 to {info.classes - 1}.", parameter="labels"
                )
            return PromptConditioning()
        if not info.classes:
            raise InputError(f"the model {info.name!r} is unconditional; it takes no class labels.", parameter="labels")
        cond = Conditioning({"labels": class_labels(labels, count, info.classes, info.name).to(info.device)})
        if info.null_class is None:
            return PromptConditioning(cond)
        null = torch.full_like(cond.tensors["labels"], info.null_class)
        return PromptConditioning(cond, cond.replace(labels=null))


def scaled(x: Tensor, schedule: Schedule, node: Node) -> Tensor:
    """Returns the input of a network: x times ``Schedule.input_scale``, and x itself where that is 1."""
    factor = schedule.input_scale(node)
    return x if factor == 1 else x * factor


def scalar(timestep: float, device: torch.device) -> Tensor:
    """Converts a timestep for diffusers' networks: int64 if it is whole, since some networks use it as an index.

    Other timesteps become float32.
    """
    whole = timestep == int(timestep)
    # Filled on the device: a copy from the host would make the host wait for a GPU.
    return torch.full((), timestep, dtype=torch.int64 if whole else torch.float32, device=device)


def no_text(name: str, parameter: str) -> InputError:
    """Returns the error for a prompt of a model without text, given as the argument ``parameter``."""
    return InputError(f"the model {name!r} has no text encoder, so it takes no prompt.", parameter=parameter)


def no_negative(name: str, negative: str) -> InputError:
    """Returns the error for a negative prompt of a model that is distilled to sample without one."""
    return InputError(
        f"{negative!r} has no effect: the model {name!r} is distilled to sample without a negative prompt; leave it "
        "out.",
        parameter="negative",
    )


def class_labels(labels: Any, count: int, classes: int, name: str, *, parameter: str = "labels") -> Tensor:
    """Converts class labels to a tensor, int64 [count].

    Args:
        labels: one label for all images, or a sequence with one for each.
        count: the number of images.
        classes: the number of classes of ``name``.
        name: the model or classifier, for error messages.
        parameter: the argument that an error names.

    Raises:
        InputError: the number of labels is neither 1 nor ``count``, or one of them is not a class.
    """
    listed: list[Any] = list(labels) if isinstance(labels, Iterable) and not is_whole(labels) else [labels]
    each = listed * count if len(listed) == 1 else listed
    if len(each) != count:
        raise InputError(f"{len(each)} were given for {count} images.", parameter=parameter)
    wrong = [k for k in each if not is_whole(k) or not 0 <= k < classes]
    if wrong:
        raise InputError(f"{wrong[0]!r} is not a class of {name!r}; use 0 to {classes - 1}.", parameter=parameter)
    return torch.tensor([int(k) for k in each], dtype=torch.long)
