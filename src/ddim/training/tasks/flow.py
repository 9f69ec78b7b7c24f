"""Trains a small Stable Diffusion 3: a transformer on rectified flow, for a frozen autoencoder and text encoder."""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..._utils.errors import InputError
from ..._utils.silence import loading, quiet
from ...core.conditioning import POOLED, TEXT, Conditioning, PromptConditioning
from ...core.denoiser import timestep_tensor
from ...core.grid import make_grid
from ...core.guidance import Guidance, guided
from ...core.path import Node, RectifiedFlow
from ...core.schedule import Schedule
from ...core.solve import solve
from ...data.images import sheet
from ...models import bundled_models
from ...models.about_file import write_about
from ...models.attention.counted import CountedAttention, last_key_counted
from ...models.latent import code_of
from ...models.tokens import read_tokenizer
from ...models.weights import diffusers_part, transformers_part
from ...solvers.ddim import DDIM
from .. import draws
from ..config import TrainConfig
from ..data import Batch, Images
from ..loss import flow_loss
from .base import Draw, Task, build_network, check_options, declare_float32, first_output, weights_checksum
from .text import SHEET_GUIDANCE, Codes, SheetNetwork, chosen_codes, emptied

if TYPE_CHECKING:
    from PIL import Image

PATH = RectifiedFlow()
"""The path that is trained on; its timestep is 1000 sigma, as SD 3 expects it."""
SECOND_WIDTH = 8
"""The width of the second text encoder, which the pipeline of SD 3 requires. Its weights are zeros."""
_FIXED = ("in_channels", "out_channels", "joint_attention_dim", "pooled_projection_dim", "caption_projection_dim")
"""Options of the transformer that follow from the autoencoder and the text encoder."""


class Statistics(NamedTuple):
    """The mean and the standard deviation of each channel, float32 [C]."""

    mean: Tensor
    std: Tensor

    @staticmethod
    def of(values: Tensor, counts: Tensor | None = None) -> "Statistics":
        """Computes the statistics of values [N, C, ...], in float64. A constant channel has the std 1.

        Args:
            values: the values.
            counts: how often each of the N rows counts; None counts each once.
        """
        rows = values.double().flatten(2) if values.dim() > 2 else values.double()[..., None]
        weight = torch.ones(len(rows), dtype=torch.float64) if counts is None else counts.double()
        weight = (weight / weight.sum() / rows.shape[2]).view(-1, 1, 1)
        mean = (weight * rows).sum((0, 2))
        std = (weight * (rows - mean[:, None]).square()).sum((0, 2)).sqrt()
        return Statistics(mean.float(), torch.where(std > 1e-6, std, 1.0).float())


class FlowNetwork(nn.Module):
    """The transformer in training. One token stands for all the zero tokens that a pipeline adds to the prompt.

    The zero tokens are equal and have no positions, so they stay equal in every block: one of them, counted n times as
    a key of the attention, gives the same image as n of them.

    Args:
        transformer: an SD3Transformer2DModel.
        zero: what the network sees in place of a zero token, [D]: 0 after the words' statistics have been applied.
    """

    def __init__(self, transformer: nn.Module, zero: Tensor) -> None:
        super().__init__()
        self.transformer = transformer
        self.register_buffer("zero", zero, persistent=False)
        transformer.set_attn_processor(CountedAttention())  # type: ignore[operator]

    def forward(self, x: Tensor, timestep: Tensor, words: Tensor, pooled: Tensor, zeros: Tensor) -> Tensor:
        """Predicts the velocity.

        Args:
            x: noisy latents [N, C, h, w].
            timestep: 1000 sigma, [N].
            words: embedded prompts with unit statistics, [N, L, D].
            pooled: one embedding of each whole prompt, [N, D'].
            zeros: the number of zero tokens after each prompt, float32 [N].

        Returns:
            eps - x0, [N, C, h, w].
        """
        words = torch.cat([words, self.zero.expand(len(words), 1, -1)], 1)  # type: ignore[operator]
        bias = last_key_counted(zeros, x, words, self.transformer.config.patch_size)  # type: ignore[union-attr]
        return self.transformer(
            x,
            encoder_hidden_states=words,
            pooled_projections=pooled,
            timestep=timestep,
            joint_attention_kwargs={"attention_mask": bias},
            return_dict=False,
        )[0]


class Base(NamedTuple):
    """The parts of a text-to-image model that a flow model takes over.

    Attributes:
        vae: an AutoencoderKL.
        text_encoder: a CLIPTextModel.
        tokenizer: a CLIPTokenizer.
    """

    vae: Any
    text_encoder: Any
    tokenizer: Any


class FlowTask(Task):
    """Trains an SD3Transformer2DModel with ``loss.flow_loss`` on latents with unit statistics.

    The embedded prompts also have unit statistics in training. The exported pipeline contains both kinds of statistics
    in its weights: those of the latents in the autoencoder, those of the prompts in the transformer's first layer.
    """

    plain_attention: ClassVar[bool] = True

    def __init__(self, config: TrainConfig) -> None:
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

        super().__init__(config)
        check_options(SD3Transformer2DModel, config.model, "model")
        for key in _FIXED:
            if key in config.model:
                raise InputError("it follows from flow.base; remove it.", parameter=f"model.{key}")
        if not all(source.prompt for source in config.data.sources):
            raise InputError(
                "a text-to-image model needs a prompt template such as '{text}', for every source of images.",
                parameter="data.prompt",
            )
        self.base = load_base(config.flow.base, config.data.channels, config.flow.length)
        self.text_encoder, self.second = sd3_text_encoders(self.base.text_encoder, config.flow.length)

    def prepare(self, images: Images, device: torch.device) -> Images:
        """Encodes all images to latents, and all prompts."""
        super().prepare(images, device)
        self.base.vae.to(device)
        codes = Codes(images, self._encode, self.config.data.flip)
        counts = torch.bincount(torch.tensor(codes.rows), minlength=len(codes.codes))
        self.latents = Statistics.of(codes.codes.transpose(1, 2), counts)
        mean, std = (part.view(-1, 1, 1) for part in self.latents)
        codes.codes = (codes.codes - mean) / std
        prompts = sorted({"", *codes.prompts})
        self.numbers = {prompt: number for number, prompt in enumerate(prompts)}
        words, self.pooled = self._embedded(prompts)
        self.words_statistics = Statistics.of(words.transpose(1, 2))
        self.words = (words - self.words_statistics.mean) / self.words_statistics.std
        at = torch.linspace(0, len(codes) - 1, self.config.output.samples).long().tolist()
        self.shown = [codes.prompts[row] for row in at]
        self.code_shape = tuple(codes.codes.shape[2:])
        return codes

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        x = pixels.to(self.device, torch.float32) / 127.5 - 1
        return code_of(self.base.vae, x).cpu()

    @torch.no_grad()
    def _embedded(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeds prompts as the pipeline of SD 3 does, without the zero tokens: [P, L, D] and [P, D]."""
        words, pooled = list[Tensor](), list[Tensor]()
        options = {"padding": "max_length", "truncation": True, "max_length": self.config.flow.length}
        for start in range(0, len(prompts), 64):
            ids = self.base.tokenizer(prompts[start : start + 64], return_tensors="pt", **options).input_ids
            both = [encoder(ids, output_hidden_states=True) for encoder in (self.text_encoder, self.second)]
            words.append(torch.cat([output.hidden_states[-2] for output in both], -1))
            pooled.append(torch.cat([output.text_embeds for output in both], -1))
        return torch.cat(words), torch.cat(pooled)

    def build(self) -> nn.Module:
        """Builds the transformer of ``[model]`` as a ``FlowNetwork``.

        Its modulations and its last layer begin at zero, so that every block begins as the identity (Peebles & Xie
        2023, arXiv 2212.09748), which diffusers leaves to the training.
        """
        transformer = self._transformer()
        for name, layer in transformer.named_modules():
            if isinstance(layer, nn.Linear) and (".norm1" in name or name.startswith(("norm_out", "proj_out"))):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        network = FlowNetwork(transformer, -self.words_statistics.mean / self.words_statistics.std)
        x, one = torch.zeros(1, *self.code_shape), torch.ones(1)
        takes = f"latents of shape {self.code_shape}"
        shape = first_output(lambda: network(x, one, self.words[:1], self.pooled[:1], one), takes).shape
        if shape != x.shape:
            raise InputError(
                f"the network turns latents of shape {self.code_shape} into {tuple(shape[1:])}.", parameter="model"
            )
        return network

    def _transformer(self) -> Any:
        from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

        channels, side = self.code_shape[0], self.code_shape[-1]
        given = self.config.model
        if given.get("sample_size", side) != side:
            raise InputError(
                f"the latents have {side} pixels, not {given['sample_size']}.", parameter="model.sample_size"
            )
        defaults = {"num_attention_heads": 18, "attention_head_dim": 64}
        width = math.prod(int(given.get(key, value)) for key, value in defaults.items())
        fixed = {"sample_size": side, "in_channels": channels, "out_channels": channels}
        fixed |= {"joint_attention_dim": self.words.shape[-1], "pooled_projection_dim": self.pooled.shape[-1]}
        return build_network(SD3Transformer2DModel, {**given, **fixed, "caption_projection_dim": width})

    def checksums(self) -> dict[str, int | None]:
        """Returns a checksum of the weights of the autoencoder and the text encoder."""
        return {"base": weights_checksum(self.base.vae, self.base.text_encoder)}

    def inputs(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        """Draws flips, noise and levels, and empties prompts; see ``Task.inputs``."""
        settings = self.config.flow
        flips, noise = draw.flips_and_noise(batch.pixels.shape[2:])
        rows = torch.tensor([self.numbers[prompt] for prompt in emptied(batch, draw, settings.empty)])
        # The levels ascend with the position, so the step is added: each position takes every number in turn.
        zeros = [settings.zeros[(position + draw.step) % len(settings.zeros)] for position in draw.positions]
        return {
            "x0": chosen_codes(batch, flips),
            "noise": noise,
            "sigma": draw.logit_normal(),
            "words": self.words[rows],
            "pooled": self.pooled[rows],
            "zeros": torch.tensor(zeros, dtype=torch.float32),
        }

    def loss(self, forward: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Computes the flow-matching loss; see ``loss.flow_loss``."""
        words, pooled, zeros = (inputs[name] for name in ("words", "pooled", "zeros"))
        return flow_loss(
            lambda x, timestep: forward(x, timestep, words, pooled, zeros),
            inputs["x0"],
            inputs["noise"],
            inputs["sigma"],
            PATH,
        )

    @torch.no_grad()
    def sheet(self, network: nn.Module) -> "Image.Image":
        """Samples images for prompts of the training set, always from the same noise.

        It uses Euler steps, which are those of DDIM on this path, with guidance weight 3 and the largest number of
        zero tokens.
        """
        output = self.config.output
        rows = torch.tensor([self.numbers[prompt] for prompt in self.shown])
        empty = torch.full_like(rows, self.numbers[""])
        cond, uncond = (Conditioning({TEXT: self.words[at], POOLED: self.pooled[at]}) for at in (rows, empty))
        prompts = PromptConditioning(cond.to(self.device), uncond.to(self.device))
        schedule, zeros = Schedule(PATH, "flow"), float(max(self.config.flow.zeros))

        def call(x: Tensor, node: Node, cond: Conditioning) -> Tensor:
            label = timestep_tensor(schedule.timestep(node), x, looked_up=False)
            return network(x, label, cond.tensors[TEXT], cond.tensors[POOLED], x.new_full((len(x),), zeros))

        shown = SheetNetwork(schedule, call)
        noise = draws.sheet_noise(self.config.train.seed, output.samples, self.code_shape).to(self.device)
        solver, grid = DDIM(), make_grid(PATH, output.sample_steps, "trailing")
        state = solve(guided(shown, Guidance(SHEET_GUIDANCE), prompts), solver, {"x": noise}, grid)
        mean, std = (part.view(-1, 1, 1).to(self.device) for part in self.latents)
        images = [self.base.vae.decode(part * std + mean).sample for part in solver.read(state).split(16)]
        return sheet((torch.cat(images).clamp(-1, 1) + 1) / 2)

    def export(self, network: nn.Module, folder: Path) -> None:
        """Writes a folder that StableDiffusion3Pipeline loads, and the usual guidance to ``ddim.json`` in it."""
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        with loading():
            from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

        transformer = self._transformer()
        transformer.load_state_dict(network.transformer.state_dict())  # type: ignore[union-attr]
        fold_statistics(transformer.context_embedder, self.words_statistics)
        vae = copy.deepcopy(self.base.vae)
        fold_into_autoencoder(vae, self.latents)
        parts = {"transformer": transformer, "vae": vae}
        parts |= {"text_encoder": copy.deepcopy(self.text_encoder), "text_encoder_2": copy.deepcopy(self.second)}
        dtype = getattr(torch, self.config.output.export_dtype)
        for part in parts.values():
            nn.Module.to(part, dtype=dtype)  # diffusers' own method ``to`` would warn of a cast
        pipeline = StableDiffusion3Pipeline(
            **parts,
            tokenizer=self.base.tokenizer,
            tokenizer_2=self.base.tokenizer,
            text_encoder_3=None,  # type: ignore[arg-type]
            tokenizer_3=None,  # type: ignore[arg-type]
            scheduler=FlowMatchEulerDiscreteScheduler(shift=self.config.flow.shift),
        )
        with quiet():
            pipeline.save_pretrained(folder)
        for part in ("text_encoder", "text_encoder_2"):
            declare_float32(folder / part / "config.json")
        if self.config.flow.guidance:
            write_about(folder, guidance=self.config.flow.guidance)


def load_base(name: str, channels: int, length: int) -> Base:
    """Loads the parts of a text-to-image model, in float32, in eval mode and without gradients.

    Args:
        name: a bundled model, or the folder of a StableDiffusionPipeline.
        channels: the number of channels of the images.
        length: the number of tokens of a prompt, which becomes the limit of the tokenizer.

    Raises:
        InputError: there is no such model, a part is missing or of another kind, or it does not fit the images or the
            length.
        DDIMError: the files are damaged.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers import CLIPTextModel

    key = "flow.base"
    folder = bundled_models().get(name, Path(name))
    if not name or not folder.is_dir():
        raise InputError(
            f"there is no model {name!r}; give a bundled text-to-image model such as 'emoji', or the folder of one "
            "(task = 'text' trains one).",
            parameter=key,
        )
    lacking = [part for part in ("vae", "text_encoder", "tokenizer") if not (folder / part).is_dir()]
    if lacking:
        raise InputError(f"{name!r} is no text-to-image model: it has no {lacking[0]}.", parameter=key)
    vae: Any = diffusers_part(AutoencoderKL, folder / "vae", parameter=key)
    nn.Module.float(vae)  # diffusers' own method ``float`` would warn
    if vae.quant_conv is None or vae.post_quant_conv is None:
        raise InputError(
            f"the autoencoder of {name!r} has no quant_conv and post_quant_conv, which take the statistics of the "
            "latents.",
            parameter=key,
        )
    if vae.config["in_channels"] != channels:
        raise InputError(
            f"the autoencoder of {name!r} takes {vae.config['in_channels']} channels, but data.channels is {channels}.",
            parameter=key,
        )
    encoder: Any = transformers_part(CLIPTextModel, folder / "text_encoder", parameter=key)
    if length > (most := encoder.config.max_position_embeddings):
        raise InputError(f"the text encoder of {name!r} takes {most} tokens, not {length}.", parameter="flow.length")
    tokenizer = read_tokenizer(folder / "tokenizer", parameter=key)
    tokenizer.model_max_length = length
    return Base(vae.eval().requires_grad_(False), encoder.eval().requires_grad_(False), tokenizer)


def sd3_text_encoders(encoder: Any, length: int) -> tuple[Any, Any]:
    """Makes the two text encoders of SD 3 from one CLIPTextModel.

    SD 3 reads the words before the last layer of an encoder, and one embedding of the prompt after its projection. So
    the first encoder has one more layer, which adds zero, and its projection is the identity. The second encoder has
    zero weights and returns zeros.

    Args:
        encoder: the CLIPTextModel.
        length: the number of tokens of a prompt, at most that of the encoder.

    Returns:
        Two CLIPTextModelWithProjection in eval mode, without gradients.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    given = encoder.config.to_dict()
    width, layers = given["hidden_size"], given["num_hidden_layers"]
    longer = {"num_hidden_layers": layers + 1, "projection_dim": width, "max_position_embeddings": length}
    small = {"hidden_size": SECOND_WIDTH, "intermediate_size": SECOND_WIDTH, "projection_dim": SECOND_WIDTH}
    small |= {"num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": length}
    given = {name: value for name, value in given.items() if name not in ("architectures", "dtype", "torch_dtype")}
    with loading(), torch.random.fork_rng(devices=[]):
        first: Any = CLIPTextModelWithProjection(CLIPTextConfig(**{**given, **longer}))
        second: Any = CLIPTextModelWithProjection(CLIPTextConfig(**{**given, **small}))
    weights = {f"text_model.{name}": value for name, value in encoder.state_dict().items()}
    table = "text_model.embeddings.position_embedding.weight"
    weights[table] = weights[table][:length]
    added = f"text_model.encoder.layers.{layers}."
    for name, value in first.state_dict().items():
        if name.startswith(added):
            ones = "layer_norm" in name and name.endswith("weight")
            weights[name] = torch.ones_like(value) if ones else torch.zeros_like(value)
    weights["text_projection.weight"] = torch.eye(width)
    spare = set(weights) - set(first.state_dict())
    first.load_state_dict({name: value for name, value in weights.items() if name not in spare})
    for parameter in second.parameters():
        nn.init.zeros_(parameter)
    return tuple(network.float().eval().requires_grad_(False) for network in (first, second))


@torch.no_grad()
def fold_statistics(layer: nn.Linear, statistics: Statistics) -> None:
    """Changes a linear layer for inputs with unit statistics, so that it takes the inputs as they were before."""
    weight = layer.weight.double() / statistics.std.double()
    layer.bias.copy_(layer.bias.double() - weight @ statistics.mean.double())
    layer.weight.copy_(weight)


@torch.no_grad()
def fold_into_autoencoder(vae: Any, statistics: Statistics) -> None:
    """Changes an AutoencoderKL so that its latents, unscaled, have mean 0 and std 1 in each channel.

    Its convolutions ``quant_conv`` and ``post_quant_conv``, which are 1x1, take the shift and the scale; so
    ``scaling_factor`` becomes 1 and ``shift_factor`` 0. It decodes the new latents as it decoded the old ones.

    Args:
        vae: the autoencoder.
        statistics: those of its latents, without its own scale and shift.
    """
    mean, std = (part.double() for part in statistics)
    before, after = vae.quant_conv, vae.post_quant_conv
    # ``quant_conv`` returns the mean and the log variance of each channel.
    scale, shift = torch.cat([1 / std, torch.ones_like(std)]), torch.cat([-mean / std, -2 * std.log()])
    before.weight.copy_(before.weight.double() * scale.view(-1, 1, 1, 1))
    before.bias.copy_(before.bias.double() * scale + shift)
    after.bias.copy_(after.bias.double() + after.weight.double()[..., 0, 0] @ mean)
    after.weight.copy_(after.weight.double() * std.view(1, -1, 1, 1))
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.0, latents_mean=None, latents_std=None)
