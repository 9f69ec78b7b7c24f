"""Stable Diffusion 1.x and 2.x: text-to-image in the diffusers format."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
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
from .engine.optimize import engine_of
from .engine.threads import min_rows, run_in_threads
from .fingerprint import fingerprint
from .info import ModelInfo
from .latent import LatentModel, code_of, read_autoencoder, read_text_unet, statistics_of
from .live import adapters_of, is_hooked, refuse_compiled, refuse_ip_adapter, require_eval_mode, require_parts
from .pixel import sides_of
from .scheduler_config import read_schedule
from .tokens import longest_prompt, read_tokenizer


class StableDiffusion(LatentModel):
    """A Stable Diffusion pipeline behind the library's interface; made by ``ddim.load``.

    Args:
        name: as it was asked for.
        pipeline: diffusers' StableDiffusionPipeline.
        device: where it computes; a live pipeline's own by default.
        dtype: what its networks compute in; the sampler's state is float32, or float64 when this is.
        owned: move, cast and freeze the parts, and lay them out as convolutions are fastest; False leaves a live
            pipeline as it is.

    Attributes:
        threads: on a CPU, share the rows of a large batch of the U-Net out among threads.
        prompt_length: tokens of a prompt, start and end among them.

    Raises:
        InputError: a pipeline whose scheduler or U-Net this version does not take.
    """

    family: ClassVar[str] = "latent text-to-image"
    usual_guidance: ClassVar[float] = 7.5
    told: ClassVar[tuple[str, ...]] = (TEXT,)
    """The conditions that its U-Net is told, by name."""
    addition: ClassVar[str | None] = None
    """The ``addition_embed_type`` of its U-Net."""
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
    ) -> None:
        unet, vae, scheduler = pipeline.unet, pipeline.vae, pipeline.scheduler
        if unet.config.in_channels != vae.config.latent_channels:
            raise InputError(
                f"the U-Net of {name!r} takes {unet.config.in_channels} channels, its autoencoder gives "
                f"{vae.config.latent_channels}: an inpainting or depth model, or InstructPix2Pix, which this version "
                "does not take.",
                parameter="model",
            )
        self.check_conditions(name, pipeline)
        # The pipelines of diffusers set steps_offset to 1 whatever the config says; so does loading one.
        self.schedule = read_schedule({"_class_name": type(scheduler).__name__, **scheduler.config})
        if isinstance(self.schedule.path, (VEPath, RectifiedFlow)):
            raise InputError(
                f"{name!r} has a {type(scheduler).__name__}, which this version does not take.", parameter="model"
            )
        multiple = 2 ** (len(vae.config.block_out_channels) - 1)
        if unet.config.sample_size is None:
            height, width = (s // multiple for s in sides_of(getattr(vae.config, "sample_size", None), name))
        else:
            height, width = sides_of(unet.config.sample_size, name)
        self.pipeline, self.network, self.vae = pipeline, unet, vae
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
        # of the weights as they come: a cast would change them
        self._fingerprint = self._fingerprint_now() if owned else None
        if owned:
            self._move_and_freeze(where, what)
        self.threads, self.least = not attention.is_compiled(unet), min_rows(unet)

    @classmethod
    def tokenizer_parts(cls) -> tuple[str, ...]:
        """The names of its tokenizers; that of each one's text encoder ends alike."""
        return tuple(part for part in cls.parts if part.startswith("tokenizer"))

    @classmethod
    def encoder_parts(cls) -> tuple[str, ...]:
        """The names of its text encoders, in the order of their tokenizers."""
        return tuple(part.replace("tokenizer", "text_encoder") for part in cls.tokenizer_parts())

    @property
    def tokenizer(self) -> Any:
        """Its first tokenizer, whose reading of a prompt is ``tokens``."""
        return self.tokenizers[0]

    @property
    def encoders(self) -> tuple[Any, ...]:
        """Its text encoders."""
        return tuple(getattr(self.pipeline, part) for part in self.encoder_parts())

    def networks(self) -> Mapping[str, nn.Module]:
        """U-Net, autoencoder, text encoders."""
        return {"unet": self.network, "vae": self.vae, **dict(zip(self.encoder_parts(), self.encoders, strict=True))}

    def _longest_prompt(self, name: str) -> int:
        """How many tokens its text encoders take. Raises InputError where they do not take equally many."""
        both = zip(self.tokenizers, self.encoders, strict=True)
        lengths = [longest_prompt(tokenizer, int(e.config.max_position_embeddings)) for tokenizer, e in both]
        if len({*lengths}) > 1:
            raise InputError(
                f"the tokenizers of {name!r} cut prompts to {' and '.join(map(str, lengths))} tokens; what their text "
                "encoders make of them goes together only if they are equally long.",
                parameter="model",
            )
        return lengths[0]

    def _move_and_freeze(self, device: torch.device, dtype: torch.dtype) -> None:
        """Moves and casts the parts, which are the model's own, and lays them out as convolutions are fastest."""
        for part in self.networks().values():
            own = self.autoencoder_dtype(dtype) if part is self.vae else dtype
            nn.Module.to(part, device=device, dtype=own)
            part.eval().requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)
        self.vae.to(memory_format=torch.channels_last)

    @property
    def fingerprint(self) -> str:
        """Of configs and weights as they came; of a live pipeline as it is now, adapters and their scales among it."""
        return self._fingerprint_now() if self._fingerprint is None else self._fingerprint

    @property
    def adapters(self) -> str:
        """The LoRA adapters that act, each with the scales of its layers: ``style 0.8``."""
        acting = adapters_of(self.networks().values()).items()
        return ", ".join(" ".join([name, *(f"{s:g}" for s in dict.fromkeys(scales))]) for name, scales in acting)

    @property
    def engine(self) -> str:
        """See ``Model``."""
        return engine_of(self.network, cut=self.threads)

    def _fingerprint_now(self) -> str:
        schedule = self.schedule
        hashes = [fingerprint(part, schedule.path, schedule.prediction) for part in self.networks().values()]
        adapters = [f"{name} {scales}" for name, scales in adapters_of(self.networks().values()).items()]
        return hashlib.sha256("".join([*hashes, *adapters]).encode()).hexdigest()

    @classmethod
    def check_conditions(cls, name: str, pipeline: Any) -> None:
        """Raises InputError for a U-Net that wants other conditions than these, or answers in other channels."""
        refuse_other_conditions(name, pipeline.unet.config, cls.addition)

    @classmethod
    def from_folder(cls, name: str, folder: Path, device: torch.device, dtype: torch.dtype) -> "StableDiffusion":
        """See ``Model``: parts put together one by one, without those that are not used."""
        model = cls(name, cls.read_pipeline(folder), device=device, dtype=dtype)
        model.check_shapes()
        return model

    @classmethod
    def read_pipeline(cls, folder: Path) -> Any:
        """The pipeline in a folder, each part held against its file first."""
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
        """The pipeline of these parts, with what its index says beside them."""
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        off: Any = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusionPipeline(**parts, **off)

    @classmethod
    def from_pipeline(cls, pipeline: Any, name: str | None = None) -> "StableDiffusion":
        """See ``Model``."""
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
        if is_hooked(model.network) or is_hooked(
            model.vae
        ):  # hooks are called one at a time, each with the whole batch
            model.threads, model.min_pictures = False, None
        return model

    def check_shapes(self) -> None:
        """Asks every part what it makes of its own shapes, without numbers.

        Raises:
            InputError: one does not take what the one before it makes, or answers in another shape.
        """
        shapes = self.condition_shapes()
        code, picture = (1, *self.shape), (1, *self.picture)

        def ask(network: Any, x: Tensor, time: Tensor, *conditions: Tensor) -> Tensor:
            wanted = self.network_conditions(dict(zip(shapes, conditions, strict=True)))
            return network(x, time, **wanted, return_dict=False)[0][:, : self.shape[0]]

        takes = f"codes of {self.shape} under words of {shapes[TEXT][1:]}"
        made = {
            "code": output_shape(self.vae, code_of, picture, takes=f"pictures of {self.picture}"),
            "picture": output_shape(self.vae, lambda n, x: n.decode(x).sample, code, takes=f"codes of {self.shape}"),
            "answer": output_shape(self.network, ask, code, (1,), *shapes.values(), takes=takes),
        }
        for what, expected in (("code", code), ("picture", picture), ("answer", code)):
            if made[what] != expected:
                raise InputError(
                    f"{self.name!r} makes {what}s of {made[what][1:]}, not of {expected[1:]}.", parameter="model"
                )

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each condition of one prompt: what the text encoders make of shapes, without numbers.

        Raises:
            InputError: a tokenizer that has more tokens than its encoder.
        """
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            rows = encoder.get_input_embeddings().num_embeddings
            if (most := max(tokenizer.get_vocab().values())) >= rows:
                raise InputError(
                    f"the tokenizer of {self.name!r} has tokens up to {most}, its text encoder knows {rows}.",
                    parameter="model",
                )
        words = [self.condition_shape(encoder, TEXT) for encoder in self.encoders]
        return {TEXT: (*words[0][:2], sum(shape[2] for shape in words))}

    def condition_shape(self, encoder: Any, name: str) -> tuple[int, ...]:
        """The shape of one condition that an encoder makes of one prompt."""
        length = self.prompt_length
        takes = f"prompts of {length} tokens"
        return output_shape(encoder, lambda n, x: self.embed(n, x.long(), None)[name], (1, length), takes=takes)

    def forward(self, x: Tensor, node: Node, cond: Conditioning, call: Call) -> Tensor:
        """See ``Model``; a learned variance in the upper half of the network's channels is left aside."""
        if TEXT not in cond:
            raise InputError(f"the model {self.name!r} needs a prompt; an empty one will do.", parameter="prompt")
        if lacking := [name for name in self.told if name not in cond]:
            raise InputError(
                f"the model {self.name!r} is told {', '.join(self.told)}, and {lacking[0]} is missing; give what "
                "model.condition returns.",
                parameter="conditioning",
            )
        network, label = self.network, scalar(self.schedule.timestep(node), x.device)
        told = attention.told(call)
        names = self.told
        tensors = [cond.tensors[name] for name in names]
        parts = [aligned(t.to(self.dtype) if t.is_floating_point() else t) for t in tensors]

        def ask(rows: Tensor, *tensors: Tensor) -> Tensor:
            wanted = self.network_conditions(dict(zip(names, tensors, strict=True)))
            return network(rows, label, **wanted, cross_attention_kwargs=told, return_dict=False)[0]

        if told is not None:  # attention control looks at the whole batch
            output = ask(x.to(self.dtype), *parts)
        else:
            least = self.least if self.threads else None
            output = run_in_threads(ask, x.to(self.dtype), *parts, least=least, layout=call.layout)
        return output[:, : self.shape[0]].to(x.dtype)

    def network_conditions(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Conditions as the U-Net's own arguments."""
        return {"encoder_hidden_states": tensors[TEXT]}

    def condition(
        self,
        labels: int | Sequence[int] | None,
        count: int,
        prompts: str | Sequence[str] | None = None,
        negative: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> PromptConditioning:
        """See ``Model``; encoded as diffusers' own pipeline does."""
        if labels is not None:
            raise InputError(f"the model {self.name!r} takes prompts, not class labels.", parameter="labels")
        several = texts_for("" if prompts is None else prompts, count, "prompt")
        opposite = self.negative_text(negative)
        texts = list(dict.fromkeys([*several] if opposite is None else [*several, opposite]))
        embedded = self.encode_prompt(texts, size)
        cond = embedded[[texts.index(text) for text in several]]
        if opposite is None:
            return PromptConditioning(cond, self.zero_conditioning(cond))
        return PromptConditioning(cond, embedded[[texts.index(opposite)] * count])

    def negative_text(self, negative: str | None) -> str | None:
        """The text of the unconditional branch; None where that is ``nothing`` and no text."""
        return "" if negative is None else check_text(negative, "negative")

    def zero_conditioning(self, cond: Conditioning) -> Conditioning:
        """The unconditional branch where no text stands for it: zeros for the words."""
        return cond.replace(**{TEXT: torch.zeros_like(cond.tensors[TEXT])})

    def tokens(self, prompt: str) -> Tokens:
        """A prompt as this model reads it: what the text encoder is handed, and where its words are in that.

        As diffusers' pipeline reads it: learnt words of several vectors are spelled out, what is too long is cut. Of
        several tokenizers the first one's reading.

        Raises:
            InputError: the tokenizers find the words at different places.
        """
        read = [self._read(tokenizer, prompt) for tokenizer in self.tokenizers]
        if any(other.spans != read[0].spans for other in read):
            raise InputError(
                f"the tokenizers of {self.name!r} cut {prompt!r} at different places, so that its words cannot be "
                "followed.",
                parameter="prompt",
            )
        return read[0]

    def _read(self, tokenizer: Any, prompt: str) -> Tokens:
        """A prompt as one of the tokenizers reads it."""
        with quiet():
            return tokens_of(
                tokenizer, prompt, self.prompt_length, partial(self.pipeline.maybe_convert_prompt, tokenizer=tokenizer)
            )

    def encode_prompt(self, prompts: Sequence[str], size: tuple[int, int] | None = None) -> Conditioning:
        """``text`` [N, L, D], that of several encoders side by side. Warns of a prompt that is cut, and where."""
        said: dict[str, list[Tensor]] = {}
        for k, (tokenizer, encoder) in enumerate(zip(self.tokenizers, self.encoders, strict=True)):
            read = [self._read(tokenizer, prompt) for prompt in prompts]
            for tokens in read if k == 0 else ():
                self._warn_if_cut(tokens)
            rows = torch.tensor([tokens.row for tokens in read], device=self.device)
            mask = None
            if getattr(encoder.config, "use_attention_mask", False):
                places = torch.arange(rows.shape[1], device=self.device)
                mask = torch.stack([(places >= t.first) & (places < t.stop) for t in read]).long()
            with torch.no_grad(), quiet():
                for name, tensor in self.embed(encoder, rows, mask).items():
                    said.setdefault(name, []).append(tensor.to(self.state_dtype))
        return Conditioning({name: torch.cat(tensors, -1) for name, tensors in said.items()})

    def embed(self, encoder: Any, rows: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """What one text encoder makes of tokens [N, L], by the names of conditions."""
        return {TEXT: encoder(rows, attention_mask=mask)[0]}

    def _warn_if_cut(self, tokens: Tokens) -> None:
        if tokens.lost:
            tokenizer, taken = self.tokenizer, tokens.end - tokens.begin
            kept = tokenizer.decode(tokens.row[tokens.begin : tokens.end]).strip()
            where = f"before {kept[:30]!r}" if tokenizer.truncation_side == "left" else f"after {kept[-30:]!r}"
            warnings.warn(
                f"The prompt has {taken + tokens.lost} tokens, the text encoder of {self.name!r} takes {taken}: "
                f"it was cut {where}.",
                DDIMWarning,
                stacklevel=4,
            )

    def attention_sites(self) -> tuple[AttentionSite, ...]:
        """See ``Model``."""
        refuse_compiled(self.network)
        return attention.sites(self.network)

    @contextmanager
    def controlled(self) -> Iterator[None]:
        """See ``Model``."""
        with attention.controlled(self.network):
            yield


def refuse_other_conditions(name: str, config: Mapping[str, Any], addition: str | None) -> None:
    """Raises InputError for a U-Net that wants other conditions than its family's, or answers in other channels.

    Args:
        name: of the model.
        config: the U-Net's.
        addition: what the family's ``addition_embed_type`` is; None is told the words alone.
    """
    none = ("num_class_embeds", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")
    usual: dict[str, str | None] = {**dict.fromkeys(none), "addition_embed_type": addition}
    asked = next((key for key, value in usual.items() if config.get(key) != value), None)
    if asked:
        kind = " It is a consistency model (LCM)." if asked == "time_cond_proj_dim" else ""
        raise InputError(
            f"the U-Net of {name!r} wants other conditions than a prompt ({asked} = {config.get(asked)!r}), which this "
            f"version does not take.{kind}",
            parameter="model",
        )
    if config["out_channels"] not in (config["in_channels"], 2 * config["in_channels"]):
        raise InputError(
            f"the U-Net of {name!r} has {config['out_channels']} output channels for {config['in_channels']} input "
            "channels.",
            parameter="model",
        )
