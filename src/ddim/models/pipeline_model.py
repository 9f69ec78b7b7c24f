"""The part that text-to-image pipelines of diffusers share, whatever their network: loading, fingerprint, calls."""

import hashlib
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .._utils.errors import InputError
from .._utils.texts import check_text, texts_for
from ..core.conditioning import EMBEDDED, POOLED, TEXT, Conditioning, PromptConditioning
from ..core.denoiser import Call, aligned
from ..core.path import Node
from ..core.schedule import Clock, Schedule
from .about_file import about_file, usual_guidance
from .additions import Additions, add
from .base import no_negative, scalar, scaled
from .device import device_and_dtype
from .dry_run import output_shape
from .engine.graphs import Graphs
from .engine.kernels import kernels
from .engine.optimize import engine_of
from .engine.run import run
from .engine.work import Work
from .fingerprint import added_words, fingerprint, middles, words_fingerprint
from .info import ModelInfo
from .latent import LatentModel, statistics_of
from .live import (
    acting_adapters,
    adapters_of,
    is_compiled,
    is_hooked,
    refuse_ip_adapter,
    require_eval_mode,
    require_parts,
)
from .loading import Loading
from .pipeline_folder import read_pipeline

if TYPE_CHECKING:
    from typing_extensions import Self


class PipelineModel(LatentModel):
    """A text-to-image pipeline of diffusers; ``ddim.load`` makes it from a folder, the hub or a pipeline object.

    A family states which parts its pipeline has, how it encodes prompts, and how its network is called.

    Args:
        name: the name that errors and codes call it by.
        pipeline: a pipeline of diffusers.
        device: the device that it computes on.
        dtype: the dtype that its networks compute in.
        owned: whether the pipeline belongs to this model, which then moves, casts and freezes its parts and converts
            them to their fastest memory layout. False leaves a user's pipeline as it is.
        low_memory: leaves the weights of an owned pipeline on the CPU, for ``save_memory``.

    Attributes:
        network: the denoising network.
        threads: whether large batches of the network are split among threads on a CPU.

    Raises:
        InputError: the pipeline's scheduler or network is not supported.
    """

    family: ClassVar[str]
    """What ``ModelInfo.family`` is."""
    usual_steps: ClassVar[int] = 50
    """The usual number of steps of its samples."""
    usual_guidance: ClassVar[float] = 7.5
    """The usual guidance of its samples; a folder's own is in ``ddim.json``."""
    conditions: ClassVar[tuple[str, ...]] = (TEXT,)
    """Names of the conditions that the network takes."""
    network_part: ClassVar[str] = "unet"
    """The network's name in the pipeline."""
    clock: ClassVar[Clock | None] = None
    """The timestep that every network of the family takes (see ``Schedule``); None if the scheduler decides it."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """Names of parts that a pipeline may lack."""
    capturable: ClassVar[bool] = True
    """Whether a call of the network can be recorded as a CUDA graph: it takes no decision by the values of tensors."""
    untold: ClassVar[str] = ""
    """What ``model_index.json`` alone says of a pipeline, so that a folder without it is refused; empty for nothing."""
    assumed: ClassVar[str] = ""
    """What is assumed of a folder without ``model_index.json``, with a warning; empty for nothing."""
    pipeline_class: ClassVar[str]
    """The class of diffusers that ``from_folder`` makes."""
    network: Any

    def __init__(
        self,
        name: str,
        pipeline: Any,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        owned: bool = True,
        low_memory: bool = False,
    ) -> None:
        self.pipeline, self.network, self.vae = pipeline, getattr(pipeline, self.network_part), pipeline.vae
        self.check_pipeline(name, pipeline)
        # scheduler.config and not the file: some pipelines of diffusers change it when they are made.
        scheduler = pipeline.scheduler
        self.schedule = self.schedule_of(name, {"_class_name": type(scheduler).__name__, **scheduler.config})
        self.graphs: Graphs | None = Graphs(self.network) if self.capturable else None
        where, what = device_and_dtype(device, dtype)
        self.info = self.read_info(name, where, what)
        like = torch.empty(0, dtype=self.state_dtype, device=where)
        self.scale, self.shift = self.latent_statistics(name, like)
        # computed before _move_and_freeze, because a cast changes the weights
        own = self._fingerprint_now() if owned else ""
        self.low_memory = low_memory
        if owned:
            self._move_and_freeze(torch.device("cpu") if low_memory else where, what)
        self._frozen = (self._trace(), own) if owned else None
        self.threads, self.work = not is_compiled(self.network), self.estimate_work()

    # --- what a family states ---------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def check_pipeline(cls, name: str, pipeline: Any) -> None:
        """Raises InputError if the pipeline's network needs other inputs than this family gives it."""

    @abstractmethod
    def schedule_of(self, name: str, config: Mapping[str, Any]) -> Schedule:
        """Makes the schedule. Raises InputError if the scheduler does not fit the family.

        Args:
            name: the name of the model, for errors.
            config: the scheduler's config, with its class under ``_class_name``.
        """

    @abstractmethod
    def read_info(self, name: str, device: torch.device, dtype: torch.dtype) -> ModelInfo:
        """Collects the facts about the model. Raises InputError if its parts contradict each other."""

    @abstractmethod
    def encode_prompt(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """Encodes prompts to the tensors named in ``conditions``; see ``Model.encode_prompt``."""

    @abstractmethod
    def call_network(
        self,
        network: Any,
        x: Tensor,
        timestep: Tensor,
        conditions: Mapping[str, Tensor],
        control: dict[str, Any] | None,
    ) -> Tensor:
        """Calls a network of this family.

        Args:
            network: the network, or its copy on the meta device.
            x: [N, C, H, W] in the network's dtype.
            timestep: what ``timestep`` has returned.
            conditions: the tensors named in ``conditions``.
            control: what a controlled attention layer gets, or None; see ``models.attention``.

        Returns:
            [N, C, H, W], or more channels, of which the first C are used.
        """

    def timestep(self, node: Node, x: Tensor) -> Tensor:
        """Returns the timestep of a call as a scalar tensor on the device of x, int64 if it is a whole number."""
        return scalar(self.schedule.timestep(node), x.device)

    def latent_statistics(self, name: str, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Returns scale and shift of the latents; see ``latent.statistics_of``."""
        return statistics_of(self.vae.config, name, like)

    def estimate_work(self) -> Work:
        """Estimates the work of the network's calls."""
        return Work.of(self.network)

    def convert_layout(self) -> None:
        """Converts the networks to their fastest memory layout; by default there is no other."""

    # --- its parts --------------------------------------------------------------------------------------------------

    @classmethod
    def tokenizer_parts(cls) -> tuple[str, ...]:
        """Names of its tokenizers in the pipeline, such as ``tokenizer`` and ``tokenizer_2``."""
        return tuple(part for part in cls.parts if part.startswith("tokenizer"))

    @classmethod
    def encoder_parts(cls) -> tuple[str, ...]:
        """Names of its text encoders in the pipeline, in the order of their tokenizers."""
        return tuple(part.replace("tokenizer", "text_encoder") for part in cls.tokenizer_parts())

    @property
    def tokenizers(self) -> tuple[Any, ...]:
        """Its tokenizers, except those that an optional text encoder lacks."""
        both = zip(self.tokenizer_parts(), self.encoder_parts(), strict=True)
        return tuple(getattr(self.pipeline, tokenizer) for tokenizer, part in both if _has(self.pipeline, part))

    @property
    def tokenizer(self) -> Any:
        """Its first tokenizer."""
        return self.tokenizers[0]

    @property
    def encoders(self) -> tuple[Any, ...]:
        """Its text encoders, in the order of their tokenizers."""
        return tuple(getattr(self.pipeline, part) for part in self.encoder_parts() if _has(self.pipeline, part))

    def networks(self) -> Mapping[str, nn.Module]:
        """Returns the denoising network, the autoencoder and the text encoders, by their names in the pipeline."""
        named = {part: getattr(self.pipeline, part) for part in self.encoder_parts() if _has(self.pipeline, part)}
        return {self.network_part: self.network, "vae": self.vae, **named}

    def count_parameters(self) -> int:
        """Returns the number of weights of all networks."""
        return sum(p.numel() for part in self.networks().values() for p in part.parameters())

    def _move_and_freeze(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves, casts and freezes all networks, and converts them to their fastest layout."""
        for part in self.networks().values():
            cast(part, self.autoencoder_dtype(dtype) if part is self.vae else dtype)
            nn.Module.to(part, device=device)
            for weight in part.parameters():  # as loading it from another file would have placed it
                weight.data = aligned(weight.data)
            part.eval().requires_grad_(False)
        self.convert_layout()

    def save_memory(self) -> None:
        """Lets the autoencoder work on single images and on tiles, and brings each network to a GPU only for its calls.

        Raises:
            InputError: the device is a GPU, and accelerate is not installed.
        """
        self.vae.enable_slicing()
        self.vae.enable_tiling()
        self.vae_threads = False
        if self.device.type == "cpu":
            return
        if find_spec("accelerate") is None:
            raise InputError("it needs accelerate: pip install accelerate.", parameter="low_memory")
        self.pipeline.enable_model_cpu_offload(device=self.device)

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """A hash of configs and weights as they were loaded.

        Of a pipeline object: as they are now, with the active LoRA adapters and their scales. So it is for a loaded
        model whose adapters, weights, or words of textual inversion are others than at its loading. A LoRA gives the
        same hash whatever its adapter is called, and a fused one gives that of the fused weights.
        """
        if self._frozen is not None and self._frozen[0] == self._trace():
            return self._frozen[1]
        return self._fingerprint_now()

    @property
    def adapters(self) -> str:
        """The active LoRA adapters, each with the scales of its layers, and the words of textual inversion.

        Such as ``style 0.8, <cat-toy>``; empty without any.
        """
        active = adapters_of(self.networks().values()).items()
        loras = [" ".join([name, *(f"{s:g}" for s in dict.fromkeys(scales))]) for name, scales in active]
        return ", ".join([*loras, *self.learned_words()])

    @property
    def takes_words(self) -> bool:
        """Whether textual inversion can add words to its pipeline."""
        return hasattr(self.pipeline, "load_textual_inversion")

    def learned_words(self) -> list[str]:
        """Returns the words that textual inversion has added to its first tokenizer, each once, sorted."""
        added = added_words(self.tokenizer) if self.takes_words else []
        # A word of several vectors consists of the tokens <toy>, <toy>_1, <toy>_2 ...
        vectors = {word for word in added if (part := re.fullmatch(r"(.+)_\d+", word)) and part[1] in added}
        return [word for word in added if word not in vectors]

    @property
    def engine(self) -> str:
        """How the network computes, as far as it changes the last bits of its output."""
        device = None if self.graphs is None else self.device
        return engine_of(self.network, split=self.threads, device=device)

    def _trace(self) -> object:
        """What changes with the adapters, with a fused one, and with the words: cheaper than a fingerprint."""
        words = [tuple(added_words(tokenizer)) for tokenizer in self.tokenizers] if self.takes_words else []
        networks = [*self.networks().values()]
        return acting_adapters(networks), [middles(network) for network in networks], words

    def _fingerprint_now(self) -> str:
        schedule = self.schedule
        hashes = [fingerprint(part, schedule.path, schedule.predicts(self.clock)) for part in self.networks().values()]
        pairs = zip(self.tokenizers, self.encoders, strict=True) if self.takes_words else ()
        words = [words_fingerprint(tokenizer, encoder.get_input_embeddings()) for tokenizer, encoder in pairs]
        return hashlib.sha256("".join([*hashes, *words]).encode()).hexdigest()

    # --- construction -----------------------------------------------------------------------------------------------

    @classmethod
    def from_folder(cls, name: str, folder: Path, how: Loading) -> "Self":
        """Loads the parts that are used, one by one, and checks that they fit together; see ``Model.from_folder``.

        The usual guidance is that of ``ddim.json`` in the folder, or else the family's.

        Raises:
            InputError: a part is missing, unsupported, or does not fit the others; ``ddim.json`` names a guidance that
                is none; or an addition does not fit the pipeline.
            DDIMError: a file is damaged.
        """
        usual = usual_guidance(folder)
        pipeline = cls.read_pipeline(folder, how)
        add(pipeline, how.additions, cls.network_part)
        model = cls(name, pipeline, device=how.device, dtype=how.dtype, low_memory=how.low_memory)
        if usual is not None:
            if usual != 1 and "cfg" not in model.info.guidance_kinds:
                raise InputError(
                    f"{about_file(folder)} names the usual guidance {usual:g}, but the model is distilled to sample "
                    "without classifier-free guidance; leave it out.",
                    parameter="model",
                )
            model.info = replace(model.info, guidance=usual, assumed="")
        model.check_shapes()
        if how.low_memory:
            model.save_memory()
        return model

    @classmethod
    def check_additions(cls, name: str, additions: Additions) -> None:
        """Raises InputError for words of textual inversion, which only pipelines with a U-Net take."""
        if additions.words and cls.network_part != "unet":
            raise InputError(
                f"a {cls.pipeline_class} takes no words of textual inversion; Stable Diffusion 1, 2 and XL do.",
                parameter="textual_inversion",
            )

    @classmethod
    def read_pipeline(cls, folder: Path, how: Loading) -> Any:
        """Makes the pipeline of a folder; see ``pipeline_folder.read_pipeline``."""
        return read_pipeline(cls, folder, how)

    @classmethod
    def pipeline_options(cls, index: Mapping[str, Any]) -> dict[str, Any]:
        """Returns further arguments of the pipeline's constructor, from the content of ``model_index.json``."""
        return {}

    @classmethod
    def from_pipeline(cls, pipeline: Any, name: str | None = None) -> "Self":
        """Wraps a pipeline object, which is not changed.

        Raises:
            InputError: a part is missing or unsupported, a network is in training mode, or there is an IP-Adapter.
        """
        encoder = {part: part.replace("tokenizer", "text_encoder") for part in cls.parts}  # a tokenizer goes with it
        needed = [part for part in cls.parts if part not in cls.optional or _has(pipeline, encoder[part])]
        require_parts(pipeline, {part: cls.parts[part] for part in needed})
        refuse_ip_adapter(getattr(pipeline, cls.network_part))
        model = cls(
            name or type(pipeline).__name__,
            pipeline,
            device=pipeline._execution_device,
            dtype=getattr(pipeline, cls.network_part).dtype,
            owned=False,
        )
        for part, network in model.networks().items():
            require_eval_mode(network, part)
        if is_hooked(model.network) or is_hooked(model.vae) or model.quantised:
            # Hooks and quantised layers may not be thread-safe, and hooks may expect the whole batch.
            model.threads = model.vae_threads = False
        return model

    def check_shapes(self) -> None:
        """Checks on the meta device, without computing anything, that the parts fit together.

        Raises:
            InputError: a part does not accept the output of the one before it, or returns another shape.
        """
        self.check_vocabularies()
        shapes = self.condition_shapes()
        code, picture = (1, *self.shape), (1, *self.picture)

        def ask(network: Any, x: Tensor, time: Tensor, *conditions: Tensor) -> Tensor:
            wanted = dict(zip(shapes, conditions, strict=True))
            return self.call_network(network, x, time, wanted, None)[:, : self.shape[0]]

        takes = f"latents of {self.shape} with text of {shapes[TEXT][1:]}"
        made = {
            "latent": output_shape(self.vae, self.encoded, picture, takes=f"images of {self.picture}"),
            "image": output_shape(self.vae, self.decoded, code, takes=f"latents of {self.shape}"),
            "output": output_shape(self.network, ask, code, (1,), *shapes.values(), takes=takes),
        }
        for what, expected in (("latent", code), ("image", picture), ("output", code)):
            if made[what] != expected:
                raise InputError(
                    f"{self.name!r} makes {what}s of shape {made[what][1:]} instead of {expected[1:]}.",
                    parameter="model",
                )

    @abstractmethod
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each condition for one prompt. Raises InputError if a text encoder does not fit."""

    def check_vocabularies(self) -> None:
        """Raises InputError if a tokenizer has more tokens than its text encoder has embeddings."""
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            rows = encoder.get_input_embeddings().num_embeddings
            if (most := max(tokenizer.get_vocab().values())) >= rows:
                raise InputError(
                    f"the tokenizer of {self.name!r} has token ids up to {most}, but its text encoder has only {rows} "
                    "embeddings.",
                    parameter="model",
                )

    # --- calls ------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, node: Node, cond: Conditioning, call: Call) -> Tensor:
        """Calls the network once; see ``Model.forward``. Extra output channels (a learned variance) are ignored."""
        names = self.names_of(cond)
        tensors = [cond.tensors[name] for name in names]
        # Pipelines cast no guidance scale; a network that takes it casts it itself.
        kept = [name == EMBEDDED or not t.is_floating_point() for name, t in zip(names, tensors, strict=True)]
        parts = [aligned(t if as_is else t.to(self.dtype)) for t, as_is in zip(tensors, kept, strict=True)]
        inputs = (scaled(x, self.schedule, node).to(self.dtype), self.timestep(node, x), *parts)

        def ask(rows: Tensor, timestep: Tensor, *tensors: Tensor, controller: Any = None) -> Tensor:
            control, told = attention_arguments(replace(call, controller=controller)), zip(names, tensors, strict=True)
            more = {"skip": call.skip} if call.skip else {}  # of families that have such layers
            return self.call_network(self.network, rows, timestep, dict(told), control, **more)

        if call.controller is not None:
            output = self._controlled_call(ask, inputs, call)
        else:
            work, split = self.row_work(x.shape[1:]), self.threads
            output = run(ask, *inputs, call=call, graphs=self.graphs, tf32=self.tf32, row_work=work, split=split)
        return output[:, : self.shape[0]].to(x.dtype)

    def required_conditions(self) -> tuple[str, ...]:
        """Returns the names of the conditions that every call of the network takes.

        A guidance-distilled network takes ``guidance``, the scale, besides those of its family.
        """
        return self.conditions if self.info.embedded is None else (*self.conditions, EMBEDDED)

    def with_usual_scale(self, cond: Conditioning, count: int) -> Conditioning:
        """Adds ``guidance`` [count], the usual scale, to the conditions of a guidance-distilled network."""
        if self.info.embedded is None:
            return cond
        return cond.replace(**{EMBEDDED: torch.full((count,), self.info.embedded, device=self.device)})

    def names_of(self, cond: Conditioning) -> tuple[str, ...]:
        """Returns the names of the conditions that the network gets from ``cond``, in the order of its inputs.

        Raises:
            InputError: ``cond`` lacks one that the network needs.
        """
        if TEXT not in cond:
            raise InputError(f"the model {self.name!r} needs a prompt, which may be empty.", parameter="prompt")
        needed = self.required_conditions()
        if lacking := [name for name in needed if name not in cond]:
            raise InputError(
                f"the model {self.name!r} needs the conditions {', '.join(needed)}, but {lacking[0]} is "
                "missing; use what model.condition returns.",
                parameter="conditioning",
            )
        return (*needed, *(name for name in self.info.optional_conditions if name in cond))

    def _controlled_call(self, ask: Callable[..., Tensor], inputs: Sequence[Tensor], call: Call) -> Tensor:
        """Calls the network with the attention controller of a call, in one piece: it relates rows to each other.

        Args:
            ask: called with ``inputs`` and the keyword ``controller``.
            inputs: the inputs of the network.
            call: the arguments of the call.
        """
        controller, many = call.controller, len(inputs)

        # A CUDA graph also reads the tensors of the plan as inputs, so that other edits of the same shapes can use it.
        def controlled(*tensors: Tensor) -> tuple[tuple[Tensor, ...], Any]:
            own = controller.with_tensors(tensors[many:])
            output = ask(*tensors[:many], controller=own)
            return (output,) if own.maps is None else (output, own.maps), own.seen

        every = (*inputs, *controller.plan.tensors)
        with kernels(inputs[0].device, self.tf32):
            if self.graphs is not None and inputs[0].is_cuda:
                key = (controller.key, call.branches)
                (output, *maps), seen = self.graphs(controlled, *every, key=key, from_use=2, notify=call.on_engine)
            else:
                (output, *maps), seen = controlled(*every)
        controller.adopt(seen, maps[0] if maps else None)
        return output

    # --- conditions -------------------------------------------------------------------------------------------------

    def condition(
        self,
        labels: int | Sequence[int] | None,
        count: int,
        prompts: str | Sequence[str] | None = None,
        negative: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> PromptConditioning:
        """Encodes prompts for both branches of guidance as diffusers' own pipeline does; see ``Model.condition``.

        A model that is distilled to sample without classifier-free guidance has no unconditional branch.
        """
        if labels is not None:
            raise InputError(f"the model {self.name!r} takes prompts, not class labels.", parameter="labels")
        positive = texts_for("" if prompts is None else prompts, count, "prompt")
        guided = "cfg" in self.info.guidance_kinds
        if negative and not guided:
            raise no_negative(self.name, negative)
        negative = self.negative_text(negative) if guided else None
        cond, uncond = self.encode_branches(positive, negative, size)
        if guided and uncond is None:
            uncond = self.zero_conditioning(cond)
        return PromptConditioning(cond, uncond)

    def encode_branches(
        self, prompts: Sequence[str], negative: str | None, size: tuple[int, int] | None
    ) -> tuple[Conditioning, Conditioning | None]:
        """Encodes N prompts, and a negative prompt for each of them; each text is encoded once.

        Args:
            prompts: the prompts.
            negative: the negative prompt; None for none.
            size: see ``Model.encode_prompt``.

        Returns:
            The conditions of the prompts and of the negative prompt, N rows each and of the same shapes; None without
            a negative prompt.
        """
        texts = list(dict.fromkeys([*prompts] if negative is None else [*prompts, negative]))
        embedded = self.encode_prompt(texts, size)
        cond = embedded[[texts.index(text) for text in prompts]]
        return cond, None if negative is None else embedded[[texts.index(negative)] * len(prompts)]

    def negative_text(self, negative: str | None) -> str | None:
        """Returns the text of the unconditional branch; None if that branch is ``zero_conditioning``, not a text."""
        return "" if negative is None else check_text(negative, "negative")

    def zero_conditioning(self, cond: Conditioning) -> Conditioning:
        """Returns an unconditional branch without text: zeros in place of the embeddings of the prompt."""
        return cond.replace(**{k: torch.zeros_like(cond.tensors[k]) for k in (TEXT, POOLED) if k in cond})


def attention_arguments(call: Call) -> dict[str, Any] | None:
    """Returns what a controlled attention layer gets: the controller of a call, and the branch of guidance of its rows.

    None without a controller.
    """
    if call.controller is None:
        return None
    return {"control": call.controller, "cfg_branch": call.branches[0] if len(call.branches) == 1 else "both"}


def cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Casts the weights of a network to a dtype, in place, as loading it in that dtype would have done.

    Buffers that no file contains, such as the frequencies of rotary embeddings, keep their dtype: transformers keeps
    them in float32. In float16, so do the weights that a network names as too large for it (T5's).
    """
    wide: Sequence[str] = (getattr(network, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else ()
    stored = set(network.state_dict())
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if name in stored and tensor.is_floating_point():
            own = torch.float32 if any(part in name.split(".") for part in wide) else dtype
            tensor.data = tensor.data.to(own)


def _has(pipeline: Any, part: str) -> bool:
    return getattr(pipeline, part, None) is not None
