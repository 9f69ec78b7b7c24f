"""The adapter for Stable Diffusion 1.x and 2.x in the diffusers format."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .._utils.errors import DDIMWarning, InputError
from .._utils.files import read_json
from .._utils.silence import loading, quiet
from .._utils.texts import check_text, texts_for
from ..core.conditioning import TEXT, Conditioning, PromptConditioning
from ..core.denoiser import Call, aligned
from ..core.path import Node, RectifiedFlow, VEPath
from ..editing.plan import AttentionSite
from ..editing.tokens import Tokens, tokens_of
from .attention import unet as attention
from .base import scalar
from .device import device_and_dtype
from .dry_run import output_shape
from .engine.graphs import Graphs
from .engine.kernels import kernels
from .engine.layout import memory_format
from .engine.optimize import engine_of
from .engine.run import run
from .engine.work import Work
from .fingerprint import fingerprint
from .info import ModelInfo
from .latent import LatentModel, code_of, read_autoencoder, read_text_unet, statistics_of
from .live import adapters_of, is_hooked, refuse_compiled, refuse_ip_adapter, require_eval_mode, require_parts
from .pixel import sides_of
from .scheduler_config import read_schedule
from .tokens import longest_prompt, read_tokenizer


class StableDiffusion(LatentModel):
    """A Stable Diffusion model; ``ddim.load`` makes it from a folder, the hub or a pipeline object.

    Args:
        name: the name that errors and codes call it by.
        pipeline: a StableDiffusionPipeline of diffusers.
        device: the device that it computes on.
        dtype: the dtype that its networks compute in.
        owned: whether the pipeline belongs to this model, which then moves, casts and freezes its parts and converts
            them to their fastest memory layout. False leaves a user's pipeline as it is.
        low_memory: leaves the weights of an owned pipeline on the CPU, for ``save_memory``.

    Attributes:
        threads: whether large batches of the U-Net are split among threads on a CPU.
        prompt_length: the number of tokens of a prompt, with start and end token.

    Raises:
        InputError: the pipeline's scheduler or U-Net is not supported.
    """

    family: ClassVar[str] = "latent text-to-image"
    usual_guidance: ClassVar[float] = 7.5
    conditions: ClassVar[tuple[str, ...]] = (TEXT,)
    """Names of the conditions that the U-Net takes."""
    addition: ClassVar[str | None] = None
    """The ``addition_embed_type`` in the U-Net's config."""
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    }

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
        unet, vae, scheduler = pipeline.unet, pipeline.vae, pipeline.scheduler
        if unet.config.in_channels != vae.config.latent_channels:
            raise InputError(
                f"the U-Net of {name!r} takes {unet.config.in_channels} channels, but its autoencoder makes "
                f"{vae.config.latent_channels}: it is an inpainting or depth model or InstructPix2Pix, which this "
                "version does not support.",
                parameter="model",
            )
        self.check_conditions(name, pipeline)
        # scheduler.config and not the file: diffusers' pipelines set steps_offset to 1 whatever the file says.
        self.schedule = read_schedule({"_class_name": type(scheduler).__name__, **scheduler.config})
        if isinstance(self.schedule.path, (VEPath, RectifiedFlow)):
            raise InputError(
                f"{name!r} has a {type(scheduler).__name__}, which this version does not support.", parameter="model"
            )
        multiple = 2 ** (len(vae.config.block_out_channels) - 1)
        if unet.config.sample_size is None:
            height, width = (s // multiple for s in sides_of(getattr(vae.config, "sample_size", None), name))
        else:
            height, width = sides_of(unet.config.sample_size, name)
        self.pipeline, self.network, self.vae = pipeline, unet, vae
        self.graphs: Graphs | None = Graphs(unet)
        self.tokenizers: tuple[Any, ...] = tuple(getattr(pipeline, part) for part in self.tokenizer_parts())
        self.prompt_length = self._longest_prompt(name)
        where, what = device_and_dtype(device, dtype)
        self.info = ModelInfo(
            name=name,
            family=self.family,
            shape=(int(vae.config.latent_channels), height, width),
            picture=(int(vae.config.in_channels), height * multiple, width * multiple),
            parameters=sum(p.numel() for part in self.networks().values() for p in part.parameters()),
            dtype=what,
            device=where,
            multiple=multiple,
            text=True,
            guidance=self.usual_guidance,
            prompt_tokens=self.prompt_length - 2,
        )
        like = torch.empty(0, dtype=self.state_dtype, device=where)
        self.scale, self.shift = statistics_of(vae.config, name, like)
        # computed before _move_and_freeze, because a cast changes the weights
        self._fingerprint = self._fingerprint_now() if owned else None
        self.low_memory = low_memory
        if owned:
            self._move_and_freeze(torch.device("cpu") if low_memory else where, what)
        self.threads, self.work = not attention.is_compiled(unet), Work.of(unet)

    @classmethod
    def tokenizer_parts(cls) -> tuple[str, ...]:
        """Names of its tokenizers in the pipeline, such as ``tokenizer`` and ``tokenizer_2``."""
        return tuple(part for part in cls.parts if part.startswith("tokenizer"))

    @classmethod
    def encoder_parts(cls) -> tuple[str, ...]:
        """Names of its text encoders in the pipeline, in the order of their tokenizers."""
        return tuple(part.replace("tokenizer", "text_encoder") for part in cls.tokenizer_parts())

    @property
    def tokenizer(self) -> Any:
        """Its first tokenizer, which ``tokens`` uses."""
        return self.tokenizers[0]

    @property
    def encoders(self) -> tuple[Any, ...]:
        """Its text encoders, in the order of their tokenizers."""
        return tuple(getattr(self.pipeline, part) for part in self.encoder_parts())

    def networks(self) -> Mapping[str, nn.Module]:
        """Returns the U-Net, the autoencoder and the text encoders, by their names in the pipeline."""
        return {"unet": self.network, "vae": self.vae, **dict(zip(self.encoder_parts(), self.encoders, strict=True))}

    def _longest_prompt(self, name: str) -> int:
        """Returns the largest number of tokens of a prompt. Raises InputError if its text encoders differ in it."""
        both = zip(self.tokenizers, self.encoders, strict=True)
        lengths = [longest_prompt(tokenizer, int(e.config.max_position_embeddings)) for tokenizer, e in both]
        if len({*lengths}) > 1:
            raise InputError(
                f"the tokenizers of {name!r} cut prompts to {' and '.join(map(str, lengths))} tokens; these lengths "
                "must be equal, because the outputs of the text encoders are joined.",
                parameter="model",
            )
        return lengths[0]

    def _move_and_freeze(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves, casts and freezes all networks, and converts the convolutional ones to their fastest layout."""
        for part in self.networks().values():
            own = self.autoencoder_dtype(dtype) if part is self.vae else dtype
            nn.Module.to(part, device=device, dtype=own)
            part.eval().requires_grad_(False)
        layout = memory_format(self.device, self.shape)
        self.network.to(memory_format=layout)
        self.vae.to(memory_format=layout)

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

    @property
    def fingerprint(self) -> str:
        """A hash of configs and weights as they were loaded.

        Of a pipeline object: as they are now, with the active LoRA adapters and their scales.
        """
        return self._fingerprint_now() if self._fingerprint is None else self._fingerprint

    @property
    def adapters(self) -> str:
        """The active LoRA adapters, each with the scales of its layers, such as ``style 0.8``; empty without."""
        acting = adapters_of(self.networks().values()).items()
        return ", ".join(" ".join([name, *(f"{s:g}" for s in dict.fromkeys(scales))]) for name, scales in acting)

    @property
    def engine(self) -> str:
        """How the U-Net computes, as far as it changes the last bits of its output."""
        return engine_of(self.network, split=self.threads, device=self.device)

    def _fingerprint_now(self) -> str:
        schedule = self.schedule
        hashes = [fingerprint(part, schedule.path, schedule.prediction) for part in self.networks().values()]
        adapters = [f"{name} {scales}" for name, scales in adapters_of(self.networks().values()).items()]
        return hashlib.sha256("".join([*hashes, *adapters]).encode()).hexdigest()

    @classmethod
    def check_conditions(cls, name: str, pipeline: Any) -> None:
        """Raises InputError for a U-Net that needs other conditions, or has an unexpected number of output channels."""
        refuse_other_conditions(name, pipeline.unet.config, cls.addition)

    @classmethod
    def from_folder(
        cls, name: str, folder: Path, device: torch.device, dtype: torch.dtype, *, low_memory: bool = False
    ) -> "StableDiffusion":
        """Loads the parts that are used, one by one (no safety checker), and checks that they fit together.

        Raises:
            InputError: a part is missing, unsupported, or does not fit the others.
            DDIMError: a file is damaged.
        """
        model = cls(name, cls.read_pipeline(folder), device=device, dtype=dtype, low_memory=low_memory)
        model.check_shapes()
        if low_memory:
            model.save_memory()
        return model

    @classmethod
    def read_pipeline(cls, folder: Path) -> Any:
        """Makes the pipeline of a folder, after checking each part's weights against its config."""
        with loading():
            import transformers
        from .model_folder import INDEX, part_class
        from .scheduler_file import read_scheduler
        from .weights import transformers_part

        classes = {part: part_class(folder, part, cls.parts) for part in (*cls.parts, "scheduler")}
        parts = {part: read_tokenizer(folder / part) for part in cls.tokenizer_parts()}
        parts["scheduler"] = read_scheduler(folder / "scheduler", classes["scheduler"])
        for part in cls.encoder_parts():
            parts[part] = transformers_part(getattr(transformers, classes[part]), folder / part)
        parts |= {"vae": read_autoencoder(folder / "vae"), "unet": read_text_unet(folder / "unet")}
        with loading():
            pipeline = cls.make_pipeline(parts, read_json(folder / INDEX))
            pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @classmethod
    def make_pipeline(cls, parts: Mapping[str, Any], index: Mapping[str, Any]) -> Any:
        """Makes a pipeline from its parts.

        Args:
            parts: name -> part.
            index: the content of ``model_index.json``, for options of the pipeline.
        """
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        off: Any = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusionPipeline(**parts, **off)

    @classmethod
    def from_pipeline(cls, pipeline: Any, name: str | None = None) -> "StableDiffusion":
        """Wraps a pipeline object, which is not changed.

        Raises:
            InputError: a part is missing or unsupported, a network is in training mode, or there is an IP-Adapter.
        """
        require_parts(pipeline, cls.parts)
        refuse_ip_adapter(pipeline)
        model = cls(
            name or type(pipeline).__name__,
            pipeline,
            device=pipeline._execution_device,
            dtype=pipeline.unet.dtype,
            owned=False,
        )
        for part, network in model.networks().items():
            require_eval_mode(network, part)
        if is_hooked(model.network) or is_hooked(model.vae):
            # Hooks may not be thread-safe, and may expect the whole batch.
            model.threads = model.vae_threads = False
        return model

    def check_shapes(self) -> None:
        """Checks on the meta device, without computing anything, that the parts fit together.

        Raises:
            InputError: a part does not accept the output of the one before it, or returns another shape.
        """
        shapes = self.condition_shapes()
        code, picture = (1, *self.shape), (1, *self.picture)

        def ask(network: Any, x: Tensor, time: Tensor, *conditions: Tensor) -> Tensor:
            wanted = self.network_conditions(dict(zip(shapes, conditions, strict=True)))
            return network(x, time, **wanted, return_dict=False)[0][:, : self.shape[0]]

        takes = f"latents of {self.shape} with text of {shapes[TEXT][1:]}"
        made = {
            "latent": output_shape(self.vae, code_of, picture, takes=f"images of {self.picture}"),
            "image": output_shape(self.vae, lambda n, x: n.decode(x).sample, code, takes=f"latents of {self.shape}"),
            "output": output_shape(self.network, ask, code, (1,), *shapes.values(), takes=takes),
        }
        for what, expected in (("latent", code), ("image", picture), ("output", code)):
            if made[what] != expected:
                raise InputError(
                    f"{self.name!r} makes {what}s of shape {made[what][1:]} instead of {expected[1:]}.",
                    parameter="model",
                )

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each condition for one prompt, found on the meta device.

        Raises:
            InputError: a tokenizer has more tokens than its text encoder.
        """
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            rows = encoder.get_input_embeddings().num_embeddings
            if (most := max(tokenizer.get_vocab().values())) >= rows:
                raise InputError(
                    f"the tokenizer of {self.name!r} has token ids up to {most}, but its text encoder has only {rows} "
                    "embeddings.",
                    parameter="model",
                )
        words = [self.condition_shape(encoder, TEXT) for encoder in self.encoders]
        return {TEXT: (*words[0][:2], sum(shape[2] for shape in words))}

    def condition_shape(self, encoder: Any, name: str) -> tuple[int, ...]:
        """Returns the shape of the condition ``name`` that a text encoder makes from one prompt."""
        length = self.prompt_length
        takes = f"prompts of {length} tokens"
        return output_shape(encoder, lambda n, x: self.embed(n, x.long(), None)[name], (1, length), takes=takes)

    def forward(self, x: Tensor, node: Node, cond: Conditioning, call: Call) -> Tensor:
        """Calls the U-Net once; see ``Model.forward``. Extra output channels (a learned variance) are ignored."""
        if TEXT not in cond:
            raise InputError(f"the model {self.name!r} needs a prompt, which may be empty.", parameter="prompt")
        if lacking := [name for name in self.conditions if name not in cond]:
            raise InputError(
                f"the model {self.name!r} needs the conditions {', '.join(self.conditions)}, but {lacking[0]} is "
                "missing; use what model.condition returns.",
                parameter="conditioning",
            )
        timestep, names = scalar(self.schedule.timestep(node), x.device), self.conditions
        tensors = [cond.tensors[name] for name in names]
        parts = [aligned(t.to(self.dtype) if t.is_floating_point() else t) for t in tensors]
        inputs = (x.to(self.dtype), timestep, *parts)

        def ask(rows: Tensor, timestep: Tensor, *tensors: Tensor, controller: Any = None) -> Tensor:
            wanted = self.network_conditions(dict(zip(names, tensors, strict=True)))
            wanted["cross_attention_kwargs"] = attention.attention_kwargs(replace(call, controller=controller))
            return self.network(rows, timestep, **wanted, return_dict=False)[0]

        if call.controller is not None:
            output = self._controlled_call(ask, inputs, call)
        else:
            work, split = self.row_work(x.shape[1:]), self.threads
            output = run(ask, *inputs, call=call, graphs=self.graphs, tf32=self.tf32, row_work=work, split=split)
        return output[:, : self.shape[0]].to(x.dtype)

    def _controlled_call(self, ask: Callable[..., Tensor], inputs: Sequence[Tensor], call: Call) -> Tensor:
        """Calls the U-Net with the attention controller of a call, in one piece: it relates rows to each other.

        Args:
            ask: called with ``inputs`` and the keyword ``controller``.
            inputs: the inputs of the U-Net.
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

    def network_conditions(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Converts conditions, by name, to keyword arguments of the U-Net."""
        return {"encoder_hidden_states": tensors[TEXT]}

    def condition(
        self,
        labels: int | Sequence[int] | None,
        count: int,
        prompts: str | Sequence[str] | None = None,
        negative: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> PromptConditioning:
        """Encodes prompts for both branches of guidance as diffusers' own pipeline does; see ``Model.condition``."""
        if labels is not None:
            raise InputError(f"the model {self.name!r} takes prompts, not class labels.", parameter="labels")
        positive = texts_for("" if prompts is None else prompts, count, "prompt")
        negative = self.negative_text(negative)
        texts = list(dict.fromkeys([*positive] if negative is None else [*positive, negative]))  # each text once
        embedded = self.encode_prompt(texts, size)
        cond = embedded[[texts.index(text) for text in positive]]
        if negative is None:
            return PromptConditioning(cond, self.zero_conditioning(cond))
        return PromptConditioning(cond, embedded[[texts.index(negative)] * count])

    def negative_text(self, negative: str | None) -> str | None:
        """Returns the text of the unconditional branch; None if that branch is ``zero_conditioning``, not a text."""
        return "" if negative is None else check_text(negative, "negative")

    def zero_conditioning(self, cond: Conditioning) -> Conditioning:
        """Returns an unconditional branch without text: zeros in place of the text embeddings."""
        return cond.replace(**{TEXT: torch.zeros_like(cond.tensors[TEXT])})

    def tokens(self, prompt: str) -> Tokens:
        """Tokenizes a prompt as diffusers' pipeline does, and finds the positions of its words among the tokens.

        A word of textual inversion that has several vectors becomes several tokens, and a prompt that is too long is
        cut. If there are several tokenizers, the tokens are those of the first one.

        Raises:
            InputError: the tokenizers put the words at different positions.
        """
        read = [self._read(tokenizer, prompt) for tokenizer in self.tokenizers]
        if any(other.spans != read[0].spans for other in read):
            raise InputError(
                f"the tokenizers of {self.name!r} split {prompt!r} differently, so that its words have no common "
                "positions.",
                parameter="prompt",
            )
        return read[0]

    def _read(self, tokenizer: Any, prompt: str) -> Tokens:
        """Tokenizes a prompt with one of the tokenizers."""
        with quiet():
            return tokens_of(
                tokenizer, prompt, self.prompt_length, partial(self.pipeline.maybe_convert_prompt, tokenizer=tokenizer)
            )

    def encode_prompt(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """Encodes prompts to ``text`` [N, L, D]; the outputs of several encoders are joined along D.

        Warns (DDIMWarning) if a prompt is too long, and says where it is cut.
        """
        outputs: dict[str, list[Tensor]] = {}
        for k, (tokenizer, encoder) in enumerate(zip(self.tokenizers, self.encoders, strict=True)):
            read = [self._read(tokenizer, prompt) for prompt in prompts]
            for tokens in read if k == 0 else ():
                self._warn_if_cut(tokens)
            rows = torch.tensor([tokens.row for tokens in read], device=self.device)
            mask = None
            if getattr(encoder.config, "use_attention_mask", False):
                positions = torch.arange(rows.shape[1], device=self.device)
                mask = torch.stack([(positions >= t.first) & (positions < t.stop) for t in read]).long()
            with torch.no_grad(), quiet():
                for name, tensor in self.embed(encoder, rows, mask).items():
                    outputs.setdefault(name, []).append(tensor.to(self.state_dtype))
        return Conditioning({name: torch.cat(tensors, -1) for name, tensors in outputs.items()})

    def embed(self, encoder: Any, rows: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Encodes token ids [N, L] with one text encoder; returns name of a condition -> tensor."""
        return {TEXT: encoder(rows, attention_mask=mask)[0]}

    def _warn_if_cut(self, tokens: Tokens) -> None:
        """Warns if a prompt was too long and had to be cut."""
        if tokens.lost:
            tokenizer, taken = self.tokenizer, tokens.end - tokens.begin
            kept = tokenizer.decode(tokens.row[tokens.begin : tokens.end]).strip()
            where = f"before {kept[:30]!r}" if tokenizer.truncation_side == "left" else f"after {kept[-30:]!r}"
            warnings.warn(
                f"The prompt has {taken + tokens.lost} tokens, but the text encoder of {self.name!r} takes {taken}: "
                f"it was cut {where}.",
                DDIMWarning,
                stacklevel=4,
            )

    def attention_sites(self) -> tuple[AttentionSite, ...]:
        """Returns the U-Net's attention layers; see ``Model.attention_sites``."""
        refuse_compiled(self.network)
        return attention.sites(self.network)

    @contextmanager
    def controlled(self) -> Iterator[None]:
        """Inside the block, the U-Net's attention layers follow the controller of a call."""
        with attention.controlled(self.network):
            yield


def refuse_other_conditions(name: str, config: Mapping[str, Any], addition: str | None) -> None:
    """Raises InputError for a U-Net that needs other conditions than its family's, or has other output channels.

    Args:
        name: the model's name, for error messages.
        config: the U-Net's config.
        addition: the family's ``addition_embed_type``; None for U-Nets that take the text embeddings only.
    """
    none = ("num_class_embeds", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")
    usual: dict[str, str | None] = {**dict.fromkeys(none), "addition_embed_type": addition}
    other = next((key for key, value in usual.items() if config.get(key) != value), None)
    if other:
        kind = " It is a consistency model (LCM)." if other == "time_cond_proj_dim" else ""
        raise InputError(
            f"the U-Net of {name!r} needs other conditions than a prompt ({other} = {config.get(other)!r}), which this "
            f"version does not support.{kind}",
            parameter="model",
        )
    if config["out_channels"] not in (config["in_channels"], 2 * config["in_channels"]):
        raise InputError(
            f"the U-Net of {name!r} has {config['out_channels']} output channels for {config['in_channels']} input "
            "channels.",
            parameter="model",
        )
