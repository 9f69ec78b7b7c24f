"""The adapter for Stable Diffusion 1.x and 2.x in the diffusers format."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from .._utils.errors import InputError
from .._utils.silence import quiet
from ..core.conditioning import EMBEDDED, TEXT, Conditioning
from ..core.path import RectifiedFlow
from ..core.schedule import Schedule
from ..editing.plan import AttentionSite
from ..editing.tokens import Tokens, agreed, tokens_of
from .attention import unet as attention
from .dry_run import output_shape
from .engine.layout import memory_format
from .info import ModelInfo
from .live import refuse_compiled
from .pipeline_model import PipelineModel
from .pixel import sides_of
from .scheduler_config import read_schedule
from .tokens import longest_prompt, warn_if_cut

USUAL_SCALE = 8.5
"""The guidance scale that the pipeline of latent consistency models gives its network by default."""
FEW = 4
"""The usual number of steps of a model that is distilled to a few; most are made for 1 to 8."""


class StableDiffusion(PipelineModel):
    """A Stable Diffusion model; ``ddim.load`` makes it from a folder, the hub or a pipeline object.

    See ``PipelineModel`` for its arguments. A latent consistency model whose U-Net takes the guidance scale as an input
    (``time_cond_proj_dim``) is guidance-distilled: it gets ``Guidance.embedded``, and takes no negative prompt. Models
    that are distilled to a few steps (LCM, TCD, Turbo, Lightning) are sampled without guidance by default; they are
    recognised by their scheduler, see ``few_step``.

    Attributes:
        prompt_length: the number of tokens of a prompt, with start and end token.
    """

    family: ClassVar[str] = "latent text-to-image"
    pipeline_class: ClassVar[str] = "StableDiffusionPipeline"
    addition: ClassVar[str | None] = None
    """The ``addition_embed_type`` in the U-Net's config."""
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    }

    @classmethod
    def check_pipeline(cls, name: str, pipeline: Any) -> None:
        """Raises InputError for a U-Net that needs other conditions, or has an unexpected number of channels."""
        unet, vae = pipeline.unet, pipeline.vae
        if unet.config.in_channels != vae.config.latent_channels:
            raise InputError(
                f"the U-Net of {name!r} takes {unet.config.in_channels} channels, but its autoencoder makes "
                f"{vae.config.latent_channels}: it is an inpainting or depth model or InstructPix2Pix, which this "
                "version does not support.",
                parameter="model",
            )
        refuse_other_conditions(name, unet.config, cls.addition)

    def schedule_of(self, name: str, config: Mapping[str, Any]) -> Schedule:
        """Makes the schedule, on a table of noise levels or for EDM's preconditioning (Playground v2.5).

        Raises:
            InputError: the scheduler is for another kind of network.
        """
        schedule = read_schedule(config)
        if isinstance(schedule.path, RectifiedFlow) or schedule.prediction == "score":
            raise InputError(
                f"{name!r} has a {config['_class_name']}, which this version does not support.", parameter="model"
            )
        return schedule

    @property
    def few_step(self) -> bool:
        """Whether the model is taken for one that is distilled to a few steps, by its scheduler.

        LCM's and TCD's are for such models alone. An Euler scheduler that begins at the noisiest level (``trailing``)
        is that of Turbo and Lightning. A table without signal at its end needs that spacing in any number of steps, and
        does not count.
        """
        schedule = self.schedule
        last = schedule.path.node(schedule.path.t_max)
        like_turbo = schedule.prior == "euler" and schedule.spacing == "trailing" and last.alpha > 0
        return schedule.solver != "ddim" or like_turbo

    def read_info(self, name: str, device: torch.device, dtype: torch.dtype) -> ModelInfo:
        """Collects the facts about the model. Raises InputError if its tokenizers cut prompts to different lengths."""
        unet, vae = self.network.config, self.vae.config
        multiple = 2 ** (len(vae.block_out_channels) - 1)
        if unet.sample_size is None:
            height, width = (s // multiple for s in sides_of(getattr(vae, "sample_size", None), name))
        else:
            height, width = sides_of(unet.sample_size, name)
        self.prompt_length = self._longest_prompt(name)
        distilled = unet.time_cond_proj_dim is not None
        assumed = ""
        if self.few_step and self.schedule.solver == "ddim":
            assumed = (
                f"{name!r} has an Euler scheduler with timestep_spacing = 'trailing', as Turbo and Lightning have, and "
                f"is sampled by default as a model that is distilled to a few steps: in {FEW} steps, without guidance. "
                "If it is none, give steps and guidance."
            )
        return ModelInfo(
            name=name,
            family=self.family,
            shape=(int(vae.latent_channels), height, width),
            picture=(int(vae.in_channels), height * multiple, width * multiple),
            parameters=self.count_parameters(),
            dtype=dtype,
            device=device,
            multiple=multiple,
            text=True,
            guidance=1.0 if distilled or self.few_step else self.usual_guidance,
            guidance_kinds=frozenset({"embedded"} if distilled else {"cfg"}),
            embedded=USUAL_SCALE if distilled else None,
            steps=FEW if self.few_step else self.usual_steps,
            assumed=assumed,
            prompt_tokens=self.prompt_length - 2,
        )

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

    def convert_layout(self) -> None:
        """Converts the U-Net and the autoencoder to the layout in which their convolutions are fastest."""
        layout = memory_format(self.device, self.shape)
        self.network.to(memory_format=layout)
        self.vae.to(memory_format=layout)

    @classmethod
    def pipeline_options(cls, index: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the options of a StableDiffusionPipeline without safety checker."""
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}

    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each condition for one prompt, found on the meta device.

        Raises:
            InputError: a tokenizer has more tokens than its text encoder.
        """
        words = [self.condition_shape(encoder, TEXT) for encoder in self.encoders]
        scale = {} if self.info.embedded is None else {EMBEDDED: (1,)}
        return {TEXT: (*words[0][:2], sum(shape[2] for shape in words)), **scale}

    def condition_shape(self, encoder: Any, name: str) -> tuple[int, ...]:
        """Returns the shape of the condition ``name`` that a text encoder makes from one prompt."""
        length = self.prompt_length
        takes = f"prompts of {length} tokens"
        return output_shape(encoder, lambda n, x: self.embed(n, x.long(), None)[name], (1, length), takes=takes)

    def call_network(
        self,
        network: Any,
        x: Tensor,
        timestep: Tensor,
        conditions: Mapping[str, Tensor],
        control: dict[str, Any] | None,
    ) -> Tensor:
        """Calls a U-Net; see ``PipelineModel.call_network``."""
        wanted = self.network_conditions(conditions)
        if EMBEDDED in conditions:
            wanted["timestep_cond"] = self._embedded_scale(conditions[EMBEDDED]).to(x.dtype)
        with attention.following_features(network, control):
            return network(x, timestep, **wanted, cross_attention_kwargs=control, return_dict=False)[0]

    def _embedded_scale(self, scale: Tensor) -> Tensor:
        """Embeds guidance scales [N] as the pipelines do, [N, D], for a U-Net that takes them beside the timestep.

        The network was distilled on the weight w = scale - 1 (section 4.2 of arXiv 2310.04378).
        """
        size = int(self.network.config.time_cond_proj_dim)
        angles = ((scale - 1) * 1000)[:, None] * _frequencies(size // 2, scale.device)
        return functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, size % 2))

    def network_conditions(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Converts conditions, by name, to keyword arguments of the U-Net."""
        return {"encoder_hidden_states": tensors[TEXT]}

    def tokens(self, prompt: str) -> Tokens:
        """Tokenizes a prompt as diffusers' pipeline does, and finds the positions of its words among the tokens.

        A word of textual inversion that has several vectors becomes several tokens, and a prompt that is too long is
        cut. If there are several tokenizers, the tokens are those of the first one.

        Raises:
            InputError: the tokenizers put the words at different positions.
        """
        return agreed(self.name, [self._read(tokenizer, prompt) for tokenizer in self.tokenizers])

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
                warn_if_cut(tokens, self.tokenizer, self.name)
            rows = torch.tensor([tokens.row for tokens in read], device=self.device)
            mask = None
            if getattr(encoder.config, "use_attention_mask", False):
                positions = torch.arange(rows.shape[1], device=self.device)
                mask = torch.stack([(positions >= t.first) & (positions < t.stop) for t in read]).long()
            with torch.no_grad(), quiet():
                for name, tensor in self.embed(encoder, rows, mask).items():
                    outputs.setdefault(name, []).append(tensor.to(self.state_dtype))
        cond = Conditioning({name: torch.cat(tensors, -1) for name, tensors in outputs.items()})
        return self.with_usual_scale(cond, len(prompts))

    def embed(self, encoder: Any, rows: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Encodes token ids [N, L] with one text encoder; returns name of a condition -> tensor."""
        return {TEXT: encoder(rows, attention_mask=mask)[0]}

    def attention_sites(self) -> tuple[AttentionSite, ...]:
        """Returns the U-Net's attention layers; see ``Model.attention_sites``."""
        refuse_compiled(self.network)
        return attention.sites(self.network)

    def feature_sites(self) -> tuple[str, ...]:
        """Returns the names of the U-Net's modules whose output can be taken over; see ``Model.feature_sites``."""
        return attention.feature_sites(self.network)

    @contextmanager
    def controlled(self) -> Iterator[None]:
        """Inside the block, the U-Net's attention layers follow the controller of a call."""
        with attention.controlled(self.network):
            yield


@cache
def _frequencies(count: int, device: torch.device) -> Tensor:
    """Returns the frequencies of the embedded guidance scale, [count].

    They are computed on the CPU, in the operations of the pipelines: the angles are so large that another last bit of a
    frequency would be seen. They are kept, because a CUDA graph cannot record a copy from the host.
    """
    return torch.exp(torch.arange(count) * -(torch.log(torch.tensor(10000.0)) / (count - 1))).to(device)


def refuse_other_conditions(name: str, config: Mapping[str, Any], addition: str | None) -> None:
    """Raises InputError for a U-Net that needs other conditions than its family's, or has other output channels.

    Args:
        name: the model's name, for error messages.
        config: the U-Net's config.
        addition: the family's ``addition_embed_type``; None for U-Nets that take the text embeddings only.
    """
    none = ("num_class_embeds", "class_embed_type", "encoder_hid_dim_type")
    usual: dict[str, str | None] = {**dict.fromkeys(none), "addition_embed_type": addition}
    other = next((key for key, value in usual.items() if config.get(key) != value), None)
    if other:
        raise InputError(
            f"the U-Net of {name!r} needs other conditions than a prompt ({other} = {config.get(other)!r}), which this "
            "version does not support.",
            parameter="model",
        )
    if config["out_channels"] not in (config["in_channels"], 2 * config["in_channels"]):
        raise InputError(
            f"the U-Net of {name!r} has {config['out_channels']} output channels for {config['in_channels']} input "
            "channels.",
            parameter="model",
        )
