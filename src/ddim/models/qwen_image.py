"""The adapter for Qwen-Image in the diffusers format (Wu et al. 2025, arXiv 2508.02324)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._utils.errors import InputError
from ..core.path import Node
from ..core.schedule import Clock
from .attention.mmdit import qwen_layers
from .attention.processors import Layer
from .flow import packed, rounded_sigma, unpacked
from .kept_lengths import KeptLengths
from .latent import code_of, statistics_of
from .masked_text import MaskedTextModel

_MARK = "{}"


class QwenImage(KeptLengths, MaskedTextModel):
    """A Qwen-Image model; ``ddim.load`` makes it from a folder, the hub or a pipeline object.

    The language model Qwen2.5-VL embeds each prompt inside a template, whose first 34 tokens are then left out. The
    pipeline uses guidance only if it gets a negative prompt, and its documentation recommends " ", one space: that is
    the unconditional branch here if there is no negative prompt.

    Guidance is not linear: each token of the guided output, 2x2 positions of the latent, gets the length that it has in
    the conditional output. So the weight 1 is the conditional model, but 0 is not exactly the unconditional one.
    """

    family: ClassVar[str] = "Qwen-Image text-to-image"
    pipeline_class: ClassVar[str] = "QwenImagePipeline"
    part: ClassVar[str] = "token"
    usual_guidance: ClassVar[float] = 4.0
    clock: ClassVar[Clock | None] = "sigma"
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "transformer": ("QwenImageTransformer2DModel",),
        "vae": ("AutoencoderKLQwenImage",),
        "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
        "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast"),
    }
    vae_threads = False  # the autoencoder keeps what its convolutions have seen in itself during a call

    @classmethod
    def check_pipeline(cls, name: str, pipeline: Any) -> None:
        """Raises InputError for a network that takes other channels or further inputs, or is guidance-distilled."""
        network, vae = pipeline.transformer.config, pipeline.vae.config
        channels = cls.patch**2 * vae.z_dim
        if network.patch_size != cls.patch or {network.in_channels, 4 * (network.out_channels or 0)} != {channels}:
            raise InputError(
                f"the transformer of {name!r} takes {network.in_channels} channels for each token and makes "
                f"{4 * (network.out_channels or 0)}, but 2x2 positions of its autoencoder's latent have {channels}; "
                "give a text-to-image model.",
                parameter="model",
            )
        if vae.get("input_channels", 3) != 3:
            raise InputError(
                f"the autoencoder of {name!r} takes images of {vae.input_channels} channels; this version supports 3.",
                parameter="model",
            )
        further = [key for key in ("use_additional_t_cond", "use_layer3d_rope") if network.get(key)]
        if further:
            raise InputError(
                f"the transformer of {name!r} draws several layers of an image ({further[0]}), which this version does "
                "not support; give a text-to-image model.",
                parameter="model",
            )
        if network.get("guidance_embeds"):
            raise InputError(
                f"the transformer of {name!r} takes the guidance scale as an input (guidance_embeds), which the "
                "transformer of diffusers does not implement.",
                parameter="model",
            )

    def pixels_per_latent(self) -> int:
        """Returns how many pixels of an image, along each side, belong to one position of the latent."""
        return 2 ** len(self.vae.config.temperal_downsample)

    def latent_channels(self) -> int:
        """Returns the number of channels of the latent."""
        return int(self.vae.config.z_dim)

    def latent_statistics(self, name: str, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
        """Returns ``1 / latents_std`` and ``latents_mean``, [1, C, 1, 1]. Raises InputError if one is missing."""
        config = self.vae.config
        if missing := [key for key in ("latents_mean", "latents_std") if config.get(key) is None]:
            raise InputError(f"the autoencoder of {name!r} has no {missing[0]} in its config.", parameter="model")
        return statistics_of({**config, "scaling_factor": 1.0, "latent_channels": config.z_dim}, name, like)

    def encoded(self, vae: Any, x: Tensor) -> Tensor:
        """Encodes images [N, C, H, W] in [-1, 1] as videos of one frame, without shift and scale."""
        return code_of(vae, x.unsqueeze(2)).squeeze(2)

    def decoded(self, vae: Any, code: Tensor) -> Tensor:
        """Decodes what ``from_code`` has returned to images [N, C, H, W] in [-1, 1]."""
        return vae.decode(code.unsqueeze(2)).sample[:, :, 0]

    # --- prompts ----------------------------------------------------------------------------------------------------

    def template(self) -> tuple[str, str, int]:
        """Returns the parts of the pipeline's template around the prompt, and how many tokens are left out."""
        before, _, after = self.pipeline.prompt_template_encode.partition(_MARK)
        return before, after, int(self.pipeline.prompt_template_encode_start_idx)

    def encode_one(self, prompt: str) -> Tensor:
        """Encodes one prompt, [L, D]: the last hidden states of the language model, without the first 34 tokens."""
        text, _ = self.pipeline.encode_prompt([prompt], max_sequence_length=self.most_tokens)
        return text[0]

    def text_width(self) -> tuple[int, int]:
        """Returns ``hidden_size`` of the language model and ``joint_attention_dim`` of the transformer."""
        encoder = self.pipeline.text_encoder.config
        return int(encoder.get_text_config().hidden_size), int(self.network.config.joint_attention_dim)

    def negative_text(self, negative: str | None) -> str | None:
        """Returns the text of the unconditional branch: the negative prompt, or one space."""
        return super().negative_text(" " if negative is None else negative)

    # --- calls ------------------------------------------------------------------------------------------------------

    def timestep(self, node: Node, x: Tensor) -> Tensor:
        """Returns the timestep of a call as a scalar in the network's dtype; see ``rounded_sigma``."""
        return rounded_sigma(node, x, self.dtype)

    def call_rows(
        self,
        network: Any,
        x: Tensor,
        timestep: Tensor,
        text: Tensor,
        lengths: Sequence[int],
        control: dict[str, Any] | None,
    ) -> Tensor:
        """Calls a transformer; see ``MaskedTextModel.call_rows``."""
        rows, _, height, width = x.shape
        longest, mask = max(lengths), None
        if min(lengths) < longest:
            counts = torch.tensor(lengths, device=text.device).unsqueeze(1)
            mask = torch.arange(longest, device=text.device) < counts
        output = network(
            hidden_states=packed(x),
            timestep=timestep.expand(rows),
            encoder_hidden_states=text[:, :longest],
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, height // self.patch, width // self.patch)]] * rows,
            attention_kwargs=control,
            return_dict=False,
        )[0]
        return unpacked(output, height, width)

    def attention_layers(self) -> Iterable[Layer]:
        """Returns the attention layers of the transformer; see ``FlowModel.attention_layers``."""
        return qwen_layers(self.network, self.patch)

    # --- guidance ---------------------------------------------------------------------------------------------------

    def grouped(self, x: Tensor) -> Tensor:
        """Packs an output into tokens, each of which keeps its length."""
        return packed(x)

    def ungrouped(self, parts: Tensor, like: Tensor) -> Tensor:
        """Inverts ``grouped``."""
        return unpacked(parts, *like.shape[2:])
