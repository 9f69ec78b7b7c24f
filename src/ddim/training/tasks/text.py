"""Trains a small Stable Diffusion: a tokenizer, text encoder and U-Net on the latents of a frozen autoencoder."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..._utils.errors import InputError
from ..._utils.silence import loading, quiet
from ...core.conditioning import TEXT, Conditioning, PromptConditioning
from ...core.denoiser import PLAIN, Call, ask_network, timestep_tensor
from ...core.grid import make_grid
from ...core.guidance import Guidance, combine, guided
from ...core.path import Node
from ...core.schedule import Schedule
from ...core.solve import solve
from ...data.images import sheet
from ...models.about_file import write_about
from ...models.latent import code_of, read_autoencoder, scale_of
from ...solvers.ddim import DDIM
from .. import draws
from ..config import TextConfig, TrainConfig
from ..data import Batch, Images
from ..loss import checksum, diffusion_loss, levels_of, path_of
from .base import (
    Draw,
    Task,
    build_network,
    check_options,
    copy_in_dtype,
    declare_float32,
    first_output,
    scheduler_options,
    weights_checksum,
)

if TYPE_CHECKING:
    from PIL import Image


SHEET_GUIDANCE = 3.0  # guidance weight of the sample sheets


class TextToImage(nn.Module):
    """The text encoder and the U-Net as one module, so that both are trained together."""

    def __init__(self, text_encoder: nn.Module, unet: nn.Module) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, x: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        """Predicts from noisy latents [N, C, h, w], timesteps ([N] or a scalar) and token ids [N, L]: [N, C, h, w]."""
        words = self.text_encoder(tokens)[0]
        return self.unet(x, timestep, encoder_hidden_states=words).sample


class SheetNetwork:
    """A network in training, with the interface that guidance needs.

    Args:
        schedule: its schedule.
        call: calls the network: ``(x, node, condition) -> output``.
    """

    def __init__(self, schedule: Schedule, call: Callable[[Tensor, Node, Conditioning], Tensor]) -> None:
        self.schedule, self.call = schedule, call

    def ask(self, x: Tensor, node: Node, /, *conditionings: Conditioning, call: Call = PLAIN) -> Sequence[Tensor]:
        """Calls the network for each condition; see ``Model.ask``."""
        return ask_network(lambda rows, cond, _: self.call(rows, node, cond).float(), x, conditionings, call)

    def combine(self, cond: Tensor, uncond: Tensor, guidance: Guidance, node: Node) -> Tensor:
        """Combines the two branches of guidance: uncond + w (cond - uncond)."""
        return combine(cond, uncond, guidance)


class Codes:
    """The images as an autoencoder's scaled latents (the posterior's mean), computed once and kept in memory.

    Args:
        images: the images, which are encoded in batches of 64.
        encode: encodes a batch, uint8 [N, C, H, W] -> float32 [N, c, h, w].
        flip: also encode the mirror image of each.
    """

    def __init__(self, images: Images, encode: Callable[[Tensor], Tensor], flip: bool) -> None:
        self.skipped, self.classes, self.class_names = images.skipped, images.classes, images.class_names
        self.prompts: list[str] = []
        self.rows: list[int] = []
        known: dict[bytes, int] = {}  # an epoch may visit an image several times, but it is encoded only once
        codes: list[Tensor] = []
        for batch in images.stream(part.tolist() for part in torch.arange(len(images)).split(64)):
            new: list[Tensor] = []
            for image in batch.pixels:
                key = hashlib.sha256(image.numpy().tobytes()).digest()
                if key not in known:
                    known[key] = len(known)
                    new.append(image)
                self.rows.append(known[key])
            self.prompts += batch.prompts
            if new:
                pixels = torch.stack(new)
                both = [encode(pixels), encode(pixels.flip(-1))] if flip else [encode(pixels)]
                codes.append(torch.stack(both, 1))
        self.codes = torch.cat(codes)

    def __len__(self) -> int:
        return len(self.rows)

    def stream(self, batches: Iterable[list[int]]) -> Iterator[Batch]:
        """Yields one ``Batch`` for each list of indices.

        Its ``pixels`` are latents [N, 1, c, h, w], or [N, 2, c, h, w] with those of the mirrored images.
        """
        for batch in batches:
            yield Batch(self.codes[[self.rows[i] for i in batch]], tuple(self.prompts[i] for i in batch))


def chosen_codes(batch: Batch, flips: Tensor) -> Tensor:
    """Returns the latents of a batch of ``Codes``, [N, c, h, w]: of the mirrored images where ``flips`` is set."""
    which = flips.long() if batch.pixels.shape[1] == 2 else torch.zeros(len(flips), dtype=torch.int64)
    return batch.pixels[torch.arange(len(which)), which]


def emptied(batch: Batch, draw: Draw, share: float) -> list[str]:
    """Returns the prompts of a batch, a share of which is replaced by the empty prompt."""
    return ["" if gone else prompt for gone, prompt in zip(draw.dropped(share).tolist(), batch.prompts, strict=True)]


class TextTask(Task):
    """Trains a text-to-image model with ``loss.diffusion_loss`` on scaled latents.

    A share of the prompts, ``text.empty``, is replaced by the empty prompt.
    """

    def __init__(self, config: TrainConfig) -> None:
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from transformers import CLIPTextConfig

        super().__init__(config)
        check_options(UNet2DConditionModel, config.model, "model")
        check_options(CLIPTextConfig, config.text.encoder, "text.encoder")
        if not all(source.prompt for source in config.data.sources):
            raise InputError(
                "a text-to-image model needs a prompt template such as '{text}', for every source of images.",
                parameter="data.prompt",
            )
        self.levels = levels_of(config.schedule, config.loss)
        self.autoencoder = load_autoencoder(config.text.autoencoder, config.data.channels)
        self.scale = scale_of(self.autoencoder.config, config.text.autoencoder, parameter="text.autoencoder")

    def prepare(self, images: Images, device: torch.device) -> Images:
        """Encodes all images to latents, and trains the tokenizer on their prompts."""
        super().prepare(images, device)
        self.levels = self.levels.to(device)
        self.autoencoder.to(device)
        codes = Codes(images, self._encode, self.config.data.flip)
        self.tokenizer = train_tokenizer(codes.prompts, self.config.text)
        self.tokens = {prompt: self._tokens(prompt) for prompt in {"", *codes.prompts}}
        at = torch.linspace(0, len(codes) - 1, self.config.output.samples).long().tolist()
        self.shown = [codes.prompts[row] for row in at]
        self.code_shape = tuple(codes.codes.shape[2:])
        return codes

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        x = pixels.to(self.device, torch.float32) / 127.5 - 1
        return code_of(self.autoencoder, x).cpu() * self.scale

    def _tokens(self, prompt: str) -> Tensor:
        options = {"padding": "max_length", "truncation": True, "max_length": self.config.text.length}
        return self.tokenizer(prompt, return_tensors="pt", **options).input_ids[0]

    def build(self) -> nn.Module:
        """Builds the text encoder of ``[text.encoder]`` and the U-Net of ``[model]`` as a ``TextToImage``."""
        network = self._network()
        x, tokens = torch.zeros(1, *self.code_shape), self.tokens[""][None]
        takes = f"latents of shape {tuple(x.shape[1:])}"
        shape = first_output(lambda: network(x, torch.zeros(1, dtype=torch.int64), tokens), takes).shape
        if shape != x.shape:
            raise InputError(
                f"the network turns latents of shape {tuple(x.shape[1:])} into {tuple(shape[1:])}.", parameter="model"
            )
        return network

    def _network(self) -> "TextToImage":
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        ids = {f"{name}_token_id": getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        fixed = {"vocab_size": len(self.tokenizer), "max_position_embeddings": self.config.text.length, **ids}
        encoder = build_network(
            lambda **options: CLIPTextModel(CLIPTextConfig(**options)),
            {**self.config.text.encoder, **fixed},
            "text.encoder",
            "transformers",
        )
        channels, side = self.code_shape[0], self.code_shape[-1]
        sides = {"sample_size": side, "in_channels": channels, "out_channels": channels}
        width = encoder.get_input_embeddings().embedding_dim  # type: ignore[operator]
        unet = build_network(UNet2DConditionModel, {**self.config.model, **sides, "cross_attention_dim": width})
        return TextToImage(encoder, unet)

    def checksums(self) -> dict[str, int | None]:
        """Returns checksums of the autoencoder's weights and of the user's own loss weights."""
        return {"weights": checksum(self.config.loss, self.levels), "autoencoder": weights_checksum(self.autoencoder)}

    def inputs(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        """Draws flips, noise and levels, and empties prompts; see ``Task.inputs``."""
        flips, noise = draw.flips_and_noise(batch.pixels.shape[2:])
        x0 = chosen_codes(batch, flips)
        tokens = torch.stack([self.tokens[prompt] for prompt in emptied(batch, draw, self.config.text.empty)])
        t = draw.times(len(self.levels.alpha), self.config.loss.times)
        return {"x0": x0, "noise": noise, "t": t, "tokens": tokens}

    def loss(self, forward: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Computes the diffusion loss; see ``loss.diffusion_loss``."""
        return diffusion_loss(
            lambda x, label: forward(x, label, inputs["tokens"]),
            inputs["x0"],
            inputs["noise"],
            inputs["t"],
            self.levels,
            self.config.loss.prediction,
        )

    @torch.no_grad()
    def sheet(self, network: nn.Module) -> "Image.Image":
        """Samples images for prompts of the training set, always from the same noise.

        It uses DDIM with eta = 0, trailing spacing and guidance weight 3.
        """
        output, path = self.config.output, path_of(self.config.schedule)
        words = torch.stack([self.tokens[prompt] for prompt in self.shown]).to(self.device)
        empty = self.tokens[""].to(self.device).expand_as(words)
        prompts = PromptConditioning(Conditioning({TEXT: words}), Conditioning({TEXT: empty}))
        schedule = Schedule(path, self.config.loss.prediction)

        def call(x: Tensor, node: Node, cond: Conditioning) -> Tensor:
            return network(x, timestep_tensor(schedule.timestep(node), x, looked_up=True), cond.tensors[TEXT])

        shown = SheetNetwork(schedule, call)
        noise = draws.sheet_noise(self.config.train.seed, output.samples, self.code_shape).to(self.device)
        solver, grid = DDIM(), make_grid(path, output.sample_steps, "trailing")
        state = solve(guided(shown, Guidance(SHEET_GUIDANCE), prompts), solver, {"x": noise}, grid)
        images = [self.autoencoder.decode(part / self.scale).sample for part in solver.read(state).split(16)]
        return sheet((torch.cat(images).clamp(-1, 1) + 1) / 2)

    def export(self, network: nn.Module, folder: Path) -> None:
        """Writes a folder that StableDiffusionPipeline loads, and the usual guidance to ``ddim.json`` in it."""
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        with loading():
            from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        parts = copy_in_dtype(network, self._network(), self.config)
        dtype = getattr(torch, self.config.output.export_dtype)
        options = scheduler_options(self.config.schedule, self.config.loss.prediction)
        pipeline = StableDiffusionPipeline(
            vae=nn.Module.to(self.autoencoder, dtype=dtype),  # type: ignore[arg-type]
            text_encoder=parts.text_encoder,
            tokenizer=self.tokenizer,
            unet=parts.unet,
            scheduler=DDIMScheduler(set_alpha_to_one=False, steps_offset=1, **options),  # type: ignore[arg-type]
            safety_checker=None,  # type: ignore[arg-type]
            feature_extractor=None,  # type: ignore[arg-type]
            requires_safety_checker=False,
        )
        with quiet():
            pipeline.save_pretrained(folder)
        declare_float32(folder / "text_encoder" / "config.json")
        if self.config.text.guidance:
            write_about(folder, guidance=self.config.text.guidance)


def load_autoencoder(folder: str, channels: int) -> Any:
    """Loads an AutoencoderKL or AutoencoderTiny in float32, in eval mode and without gradients.

    Args:
        folder: a folder in the diffusers format, or one with such a subfolder ``vae``.
        channels: the number of channels of the images.

    Raises:
        InputError: there is no autoencoder, its weights do not fit, or it takes images with other channels.
        DDIMError: the files are damaged.
    """
    path = Path(folder) / "vae" if (Path(folder) / "vae").is_dir() else Path(folder)
    if not folder or not path.is_dir():
        raise InputError(
            f"there is no folder {folder!r}; give that of an autoencoder, or train one first (task = 'autoencoder').",
            parameter="text.autoencoder",
        )
    network = read_autoencoder(path, parameter="text.autoencoder")
    nn.Module.float(network)  # diffusers' own method ``float`` would warn
    takes = network.config["in_channels"]
    if takes != channels:
        raise InputError(
            f"the autoencoder in {path} takes {takes} channels, but data.channels is {channels}.",
            parameter="text.autoencoder",
        )
    return network.eval().requires_grad_(False)


def train_tokenizer(prompts: Sequence[str], config: TextConfig) -> Any:
    """Trains CLIP's byte-pair tokenizer (Sennrich et al. 2016, arXiv 1508.07909) on prompts.

    The same prompts give the same tokenizer. Words that do not occur in them are split into shorter tokens, down to
    single letters. CLIP has separate tokens for the last letter of a word; if no word of the prompts ends in that
    letter, it becomes the unknown token.

    Args:
        prompts: the prompts; each is counted once.
        config: the largest vocabulary, and the number of tokens of a prompt.
    """
    from transformers import CLIPTokenizer

    texts, untrained = sorted(set(prompts)), CLIPTokenizer()
    steps = untrained.backend_tokenizer
    words = {
        word for text in texts for word, _ in steps.pre_tokenizer.pre_tokenize_str(steps.normalizer.normalize_str(text))
    }
    # The trainer numbers the tokens of last letters in the order of a hash map, which changes from run to run. As
    # special tokens they get their numbers first and in our order; a resumed run then trains the same tokenizer.
    ends = [f"{letter}</w>" for letter in sorted({word[-1] for word in words})]
    trained = untrained.train_new_from_iterator(
        [texts], config.vocabulary, show_progress=False, new_special_tokens=ends
    )
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    tokenizer = CLIPTokenizer(vocab=model["vocab"], merges=merges)
    tokenizer.model_max_length = config.length
    return tokenizer
