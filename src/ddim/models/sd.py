"""Latent text-to-image models: Stable Diffusion 1.x and 2.x in the diffusers format."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.errors import DDIMError, DDIMWarning, InputError, is_number
from .._utils.foreign import read_json
from .._utils.silence import quiet
from .._utils.texts import check_text, texts_for
from ..core.denoiser import Cond, Denoiser, aligned
from ..core.guidance import WORDS
from ..core.path import Node, RectifiedFlow, VEPath
from ..core.prediction import Pair, to_pair
from ..editing.tokens import Tokens, tokens_of
from . import where_and_what
from .engine.side_by_side import least_rows, side_by_side
from .pixel import fingerprint, sides_of
from .schedule import read_schedule, timestep
from .tokens import longest_prompt
from .trial import answered
from .weights import diffusers_part

ATTENTION = "attention"
"""In a ``Cond``: an object that the attention processors of ``ddim.editing`` are handed with every call."""


_LEAST_PICTURES = 4  # of a thread, in the autoencoder


class LatentTextModel:
    """A Stable Diffusion pipeline behind the library's interface; made by ``ddim.load``.

    Args:
        name: as it was asked for.
        pipeline: diffusers' StableDiffusionPipeline; its parts are put into eval mode and moved.
        device: where it computes.
        dtype: what its networks compute in; the sampler's state is float32, or float64 when this is.

    Attributes:
        threads: on a CPU, share the rows of a large batch of the U-Net out among threads.

    Raises:
        InputError: a pipeline whose scheduler or U-Net this version does not take.
    """

    classes = 0
    text = True

    def __init__(
        self, name: str, pipeline: Any, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        unet, vae, scheduler = pipeline.unet, pipeline.vae, pipeline.scheduler.config
        if unet.config.in_channels != vae.config.latent_channels:
            raise InputError(
                f"the U-Net of {name!r} takes {unet.config.in_channels} channels, its autoencoder gives "
                f"{vae.config.latent_channels}: an inpainting or depth model, which this version does not take.",
                parameter="model",
            )
        _need_text_alone(name, unet.config)
        self.name = name
        # The pipelines of diffusers set steps_offset to 1 whatever the config says; so does loading one.
        self.path, self.prediction, self.spacing, self.offset, self.hold = read_schedule(scheduler)
        if isinstance(self.path, (VEPath, RectifiedFlow)):
            raise InputError(
                f"{name!r} has a {scheduler['_class_name']}, which this version does not take.", parameter="model"
            )
        self.multiple = 2 ** (len(vae.config.block_out_channels) - 1)
        if unet.config.sample_size is None:
            height, width = (s // self.multiple for s in sides_of(getattr(vae.config, "sample_size", None), name))
        else:
            height, width = sides_of(unet.config.sample_size, name)
        self.shape = (int(vae.config.latent_channels), height, width)
        self.picture = (int(vae.config.in_channels), height * self.multiple, width * self.multiple)
        self.device, self.dtype = where_and_what(device, dtype)
        self.state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        parts = [unet, vae, pipeline.text_encoder]
        self.parameters = sum(p.numel() for part in parts for p in part.parameters())
        # of the weights as they come: a cast would change them
        hashes = [fingerprint(part, self.path, self.prediction) for part in parts]
        self.fingerprint = hashlib.sha256("".join(hashes).encode()).hexdigest()
        self.scale = scale_of(vae.config, name)
        self.shift = shift_of(vae.config, name)
        for part in parts:
            nn.Module.to(part, device=self.device, dtype=dtype)
            part.eval().requires_grad_(False)
        unet.to(memory_format=torch.channels_last)
        vae.to(memory_format=torch.channels_last)
        self.pipeline, self.network, self.vae = pipeline, unet, vae
        self.tokenizer: Any = pipeline.tokenizer
        positions = int(pipeline.text_encoder.config.max_position_embeddings)
        self.tokenizer.model_max_length = longest_prompt(self.tokenizer, positions)
        self.threads, self.least = True, least_rows(unet)

    def try_out(self) -> None:
        """Asks every part what it makes of its own shapes, without numbers.

        Raises:
            InputError: one does not take what the one before it makes, or answers in another shape.
        """
        encoder, length = self.pipeline.text_encoder, int(self.tokenizer.model_max_length)
        rows = encoder.get_input_embeddings().num_embeddings
        if (most := max(self.tokenizer.get_vocab().values())) >= rows:
            raise InputError(
                f"the tokenizer of {self.name!r} has tokens up to {most}, its text encoder knows {rows}.",
                parameter="model",
            )
        words = answered(encoder, lambda n, x: n(x.long())[0], (1, length), takes=f"prompts of {length} tokens")
        code, picture = (1, *self.shape), (1, *self.picture)
        takes = f"codes of {self.shape} under words of {words[1:]}"
        made = {
            "code": answered(self.vae, code_of, picture, takes=f"pictures of {self.picture}"),
            "picture": answered(self.vae, lambda n, x: n.decode(x).sample, code, takes=f"codes of {self.shape}"),
            "answer": answered(
                self.network,
                lambda n, *x: n(*x, return_dict=False)[0][:, : self.shape[0]],
                code,
                (1,),
                words,
                takes=takes,
            ),
        }
        for what, expected in (("code", code), ("picture", picture), ("answer", code)):
            if made[what] != expected:
                raise InputError(
                    f"{self.name!r} makes {what}s of {made[what][1:]}, not of {expected[1:]}.", parameter="model"
                )

    def denoiser(self) -> Denoiser:
        """The U-Net as a denoiser under ``cond["words"]``, without guidance.

        A learned variance in the upper half of its channels is left aside.
        """
        network, path, prediction, dtype = self.network, self.path, self.prediction, self.dtype
        channels = self.shape[0]

        def denoise(x: Tensor, node: Node, cond: Cond | None = None) -> Pair:
            if not cond or WORDS not in cond:
                raise InputError(f"the model {self.name!r} needs a prompt; an empty one will do.", parameter="prompt")
            control, label = cond.get(ATTENTION), timestep(path, node, x.device)
            told = None if control is None else {"control": control, "half": cond.get("half")}

            def ask(rows: Tensor, words: Tensor) -> Tensor:
                return network(
                    rows, label, encoder_hidden_states=words, cross_attention_kwargs=told, return_dict=False
                )[0]

            x, words = aligned(x), aligned(cond[WORDS].to(dtype))
            shared = self.threads and control is None  # attention control looks at the whole batch
            output = side_by_side(ask, x.to(dtype), words, least=self.least) if shared else ask(x.to(dtype), words)
            return to_pair(prediction, output[:, :channels].to(x.dtype), x, node)

        return denoise

    def condition(
        self,
        labels: int | Sequence[int] | None,
        count: int,
        prompts: str | Sequence[str] | None = None,
        negative: str = "",
    ) -> Cond:
        """``words`` and ``null``, [count, L, D] each, in the state's dtype; encoded as diffusers' own pipeline does."""
        if labels is not None:
            raise InputError(f"the model {self.name!r} takes prompts, not class labels.", parameter="labels")
        several = texts_for("" if prompts is None else prompts, count, "prompt")
        check_text(negative, "negative")
        words = self.embed([*dict.fromkeys([*several, negative])])
        return {
            "words": torch.stack([words[prompt] for prompt in several]),
            "null": torch.stack([words[negative]] * count),
        }

    def tokens(self, prompt: str) -> Tokens:
        """A prompt as this model reads it: what ``embed`` hands the text encoder, and where its words are in that.

        As diffusers' pipeline reads it: learnt words of several vectors are spelled out, what is too long is cut.
        """
        convert = partial(self.pipeline.maybe_convert_prompt, tokenizer=self.tokenizer)
        with quiet():
            return tokens_of(self.tokenizer, prompt, int(self.tokenizer.model_max_length), convert)

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Each prompt with its embedding [L, D]. Warns of a prompt that is cut, and where."""
        read = [self.tokens(prompt) for prompt in prompts]
        for tokens in read:
            self._warn_if_cut(tokens)
        encoder = self.pipeline.text_encoder
        rows = torch.tensor([tokens.row for tokens in read], device=self.device)
        mask = None
        if getattr(encoder.config, "use_attention_mask", False):
            places = torch.arange(rows.shape[1], device=self.device)
            mask = torch.stack([(places >= t.first) & (places < t.stop) for t in read]).long()
        with torch.no_grad(), quiet():
            embedded = encoder(rows, attention_mask=mask)[0]
        return dict(zip(prompts, embedded.to(self.state_dtype), strict=True))

    def _warn_if_cut(self, tokens: Tokens) -> None:
        if tokens.lost:
            taken = tokens.end - tokens.begin
            kept = self.tokenizer.decode(tokens.row[tokens.begin : tokens.end]).strip()
            where = f"before {kept[:30]!r}" if self.tokenizer.truncation_side == "left" else f"after {kept[-30:]!r}"
            warnings.warn(
                f"The prompt has {taken + tokens.lost} tokens, the text encoder of {self.name!r} takes {taken}: "
                f"it was cut {where}.",
                DDIMWarning,
                stacklevel=4,
            )

    def encode(self, images: Tensor) -> Tensor:
        """[0, 1] to the mean of the autoencoder's code, shifted and scaled by its config.

        Raises:
            DDIMError: the autoencoder returned NaN or infinity.
        """
        x = images.to(device=self.device, dtype=self.dtype) * 2 - 1
        with torch.no_grad():
            code = side_by_side(lambda rows: code_of(self.vae, rows), x, least=_LEAST_PICTURES)
            code = self._finite(code, "encoded a picture")
        return (code.to(self.state_dtype) - self.shift) * self.scale

    def decode(self, x0: Tensor) -> Tensor:
        """A code to an image in [0, 1], what lies outside cut.

        Raises:
            DDIMError: the autoencoder returned NaN or infinity.
        """
        with torch.no_grad():
            code = (x0 / self.scale + self.shift).to(self.dtype)
            image = side_by_side(lambda rows: self.vae.decode(rows).sample, code, least=_LEAST_PICTURES)
            image = self._finite(image, "decoded a sample")
        return ((image.to(self.state_dtype) + 1) / 2).clamp(0, 1)

    def _finite(self, x: Tensor, did: str) -> Tensor:
        """What the autoencoder returned, once it is seen to be numbers."""
        if not bool(torch.isfinite(x).all()):
            half = " float16 overflows above 65504; load the model with bfloat16 or float32."
            raise DDIMError(
                f"The autoencoder of {self.name!r} returned NaN or infinity when it {did}."
                + (half if self.dtype == torch.float16 else "")
            )
        return x

    def describe(self) -> dict[str, Any]:
        """Name, kind, shapes, prediction, path, spacing, parameters, fingerprint."""
        return {
            "name": self.name,
            "kind": "latent text-to-image",
            "shape": list(self.shape),
            "picture": list(self.picture),
            "multiple": self.multiple,
            "classes": 0,
            "prompt_tokens": int(self.tokenizer.model_max_length) - 2,
            "prediction": self.prediction,
            "path": type(self.path).__name__,
            "levels": self.path.levels,
            "spacing": self.spacing,
            "hold": self.hold.options,
            "parameters": self.parameters,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "fingerprint": self.fingerprint,
        }


def read_autoencoder(folder: Path, *, parameter: str = "model") -> Any:
    """The AutoencoderKL or AutoencoderTiny of a folder, on the CPU and in its file's dtype.

    Raises:
        InputError: another autoencoder, or weights that do not fit; see ``weights.diffusers_part``.
        DDIMError: the files are broken.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    kinds = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny)}
    named = _class_of(folder, parameter)
    if named not in kinds:
        raise InputError(f"{folder} is a {named}; {' or '.join(kinds)} is taken.", parameter=parameter)
    return diffusers_part(kinds[named], folder, parameter=parameter)


def read_text_unet(folder: Path) -> Any:
    """The UNet2DConditionModel of a folder; as ``read_autoencoder``."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    if (named := _class_of(folder, "model")) != UNet2DConditionModel.__name__:
        raise InputError(f"{folder} is a {named}; a UNet2DConditionModel is taken.", parameter="model")
    return diffusers_part(UNet2DConditionModel, folder)


def _class_of(folder: Path, parameter: str) -> str:
    """The class that a network's config names."""
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} holds no weights; a diffusers folder with config.json and .safetensors weights is needed.",
            parameter=parameter,
        )
    return str(read_json(folder / "config.json").get("_class_name"))


def code_of(autoencoder: Any, x: Tensor) -> Tensor:
    """Pictures [N, C, H, W] in [-1, 1] to codes, not yet shifted and scaled; of a distribution the mean."""
    found = autoencoder.encode(x)
    return found.latent_dist.mean if hasattr(found, "latent_dist") else found.latents


def scale_of(config: Mapping[str, Any], name: str, *, parameter: str = "model") -> float:
    """An autoencoder's ``scaling_factor``. Raises InputError where it is none."""
    scale = config.get("scaling_factor")
    if not is_number(scale) or float(scale) == 0:  # type: ignore[arg-type]
        raise InputError(
            f"the scaling_factor of {name!r}, {scale!r}, is not a number other than 0.", parameter=parameter
        )
    return float(scale)  # type: ignore[arg-type]


def shift_of(config: Mapping[str, Any], name: str) -> float:
    """An autoencoder's ``shift_factor``; 0 where it has none. Raises InputError where it is no number."""
    shift = config.get("shift_factor")
    if shift is not None and not is_number(shift):
        raise InputError(f"the shift_factor of {name!r}, {shift!r}, is not a number.", parameter="model")
    return float(shift or 0.0)


def _need_text_alone(name: str, config: Mapping[str, Any]) -> None:
    """Raises InputError for a U-Net that wants more than words, or answers in other channels."""
    wants = {key: config.get(key) for key in ("num_class_embeds", "class_embed_type", "addition_embed_type")}
    wants |= {key: config.get(key) for key in ("encoder_hid_dim_type", "time_cond_proj_dim")}
    asked = next(((key, value) for key, value in wants.items() if value is not None), None)
    if asked:
        raise InputError(
            f"the U-Net of {name!r} wants more than a prompt ({asked[0]} = {asked[1]!r}); this version takes those "
            "that are told the words alone.",
            parameter="model",
        )
    if config["out_channels"] not in (config["in_channels"], 2 * config["in_channels"]):
        raise InputError(
            f"the U-Net of {name!r} has {config['out_channels']} output channels for {config['in_channels']} input "
            "channels.",
            parameter="model",
        )
