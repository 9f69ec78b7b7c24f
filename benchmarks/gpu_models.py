"""What benchmarks/gpu.py measures on: random networks of the real shapes, made on the device in seconds, offline."""

import copy
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import ddim
from ddim._utils.silence import quiet

SOURCE, TARGET, OTHER = "a red cat on a mat", "a red tiger on a mat", "a blue dog in the snow"
"""Prompts of one token a word. The second differs from the first in one word, so that attention control has work."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHANGE = 0.05
"""How far another prompt should move the network's output, as a part of it; random weights alone hardly look at it."""
SENSITIVE = 10.0
"""How much more than usual a U-Net makes of a text embedding, which is as much smaller."""
LEAST_CHANGE = 1e-3
"""Below this the prompt counts as ignored, and no ratio is printed."""


@dataclass(frozen=True)
class Shape:
    """The configs of a text-to-image pipeline.

    Attributes:
        name: of the shape.
        unet, vae: what differs from the defaults of diffusers.
        texts: one config for each text encoder.
        vocabulary: tokens of the tokenizers, which is what the text encoders have embeddings for.
    """

    name: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    texts: tuple[Mapping[str, Any], ...]
    vocabulary: int = 49408
    length: int = 77

    @property
    def large(self) -> bool:
        """Whether it is SDXL: two text encoders."""
        return len(self.texts) > 1


def _vae(sides: tuple[int, ...], **config: Any) -> dict[str, Any]:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * len(sides)}
    blocks["up_block_types"] = ("UpDecoderBlock2D",) * len(sides)
    return {"block_out_channels": sides, "latent_channels": 4, **blocks, **config}


_XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
_WIDE = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
_VIT_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_SMALL = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}

SD15 = Shape(
    "SD 1.5",
    {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    _vae((128, 256, 512, 512), layers_per_block=2, sample_size=512),
    ({**_VIT_L, "hidden_act": "quick_gelu", "projection_dim": 768},),
)
SDXL = Shape(
    "SDXL",
    {
        **_XL,
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + 1280,
    },
    _vae((128, 256, 512, 512), layers_per_block=2, sample_size=1024, scaling_factor=0.13025, force_upcast=True),
    ({**_VIT_L, "hidden_act": "quick_gelu", "projection_dim": 768}, {**_WIDE, "projection_dim": 1280}),
)
TINY_SD15 = Shape(
    "tiny SD 1.5",
    {
        "sample_size": 16,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
    },
    _vae((8, 8), norm_num_groups=4, sample_size=32),
    (_SMALL,),
    vocabulary=300,
    length=16,
)
TINY_SDXL = Shape(
    "tiny SDXL",
    {
        **_XL,
        "sample_size": 16,
        "layers_per_block": 1,
        "block_out_channels": (8, 16, 16),
        "norm_num_groups": 4,
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (1, 2, 2),
        "cross_attention_dim": 24,
        "addition_time_embed_dim": 6,
        "projection_class_embeddings_input_dim": 6 * 6 + 10,
    },
    _vae((8, 8), norm_num_groups=4, sample_size=32, scaling_factor=0.13025),
    (_SMALL, {**_SMALL, "projection_dim": 10}),
    vocabulary=300,
    length=16,
)


def imported() -> None:
    """Imports what sections need, so that each forked process finds it there."""
    with quiet():
        import diffusers
        import transformers

        for name in ("DDIMScheduler", "StableDiffusionPipeline", "StableDiffusionXLPipeline", "UNet2DConditionModel"):
            getattr(diffusers, name)
        for name in ("CLIPTokenizer", "CLIPTextConfig", "CLIPTextModel", "CLIPTextModelWithProjection"):
            getattr(transformers, name)


def tokenizer(size: int, length: int) -> Any:
    """A CLIP tokenizer of ``size`` tokens: letters, the words of the prompts, and fillers that no prompt has."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    vocab = {piece: k for k, piece in enumerate(p for letter in letters for p in (letter, f"{letter}</w>"))}
    merges: list[tuple[str, str]] = []
    for word in dict.fromkeys(" ".join((SOURCE, TARGET, OTHER)).split()):
        left, rest = word[0], [*word[1:-1], f"{word[-1]}</w>"] if len(word) > 1 else []
        for piece in rest:
            if (left, piece) not in merges:
                merges.append((left, piece))
            left += piece
            vocab.setdefault(left, len(vocab))
    vocab |= {f"filler{k}": k for k in range(len(vocab), size - 2)}
    vocab |= {"<|startoftext|>": size - 2, "<|endoftext|>": size - 1}
    made = CLIPTokenizer(vocab=vocab, merges=merges)  # type: ignore[arg-type]
    made.model_max_length = length
    return made


def text_encoder(shape: Shape, k: int) -> Any:
    """The k-th text encoder of a shape, on the current default device.

    Its words are spread wide, so that prompts are told apart. Its output is a tenth of usual, and ``sharpen`` makes the
    U-Net ten times as sensitive to it: so ten updates of null-text move an embedding by its own size, and the loss of a
    random network falls as that of a trained one does.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    ends = {"bos_token_id": shape.vocabulary - 2, "eos_token_id": shape.vocabulary - 1}
    config = CLIPTextConfig(
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.length,
        pad_token_id=shape.vocabulary - 1,
        **ends,
        **shape.texts[k],
    )
    made: Any = CLIPTextModelWithProjection(config) if k else CLIPTextModel(config)
    made.get_input_embeddings().weight.data *= 25
    getattr(made, "text_model", made).final_layer_norm.weight.data /= SENSITIVE
    return made


def pipeline(shape: Shape, device: torch.device, seed: int = 0) -> Any:
    """A random pipeline in float32, made on the device, in eval mode and frozen, with a DDIMScheduler.

    Its U-Net looks at the prompt (``sharpen``), so that a run that ignored it would be seen.
    """
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(seed)
    with torch.device(device), quiet():
        unet, vae = UNet2DConditionModel(**shape.unet), AutoencoderKL(**shape.vae)
        encoders = [text_encoder(shape, k) for k in range(len(shape.texts))]
    for part in (unet, vae, *encoders):
        part.to(device).eval().requires_grad_(False)
    words = tokenizer(shape.vocabulary, shape.length)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )
    parts = {"unet": unet, "vae": vae, "text_encoder": encoders[0], "tokenizer": words, "scheduler": scheduler}
    with quiet():
        if shape.large:
            second = {"text_encoder_2": encoders[1], "tokenizer_2": tokenizer(shape.vocabulary, shape.length)}
            made: Any = StableDiffusionXLPipeline(**parts, **second, add_watermarker=False)
        else:
            off: Any = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            made = StableDiffusionPipeline(**parts, **off)
    made.set_progress_bar_config(disable=True)
    sharpen(made)
    with torch.no_grad():
        code = vae.encode(pictures(1, shape).to(device) * 2 - 1).latent_dist.mean
    vae.register_to_config(scaling_factor=float(1 / code.std()))  # latents of pictures get the usual size
    return made


def sharpen(pipe: Any) -> float:
    """Scales a random U-Net so that another prompt changes its output by about ``CHANGE``, and its output has std 1.

    Peaked attention maps come from larger queries and keys. The prompt's weight is that of the cross-attention's
    output, which is scaled until the change is right.

    Returns:
        the change that was reached, as a part of the output.
    """
    unet = pipe.unet
    outs = []
    for name, weight in unet.named_parameters():
        if name.endswith(("to_q.weight", "to_k.weight")):
            weight.data *= 3
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            weight.data *= SENSITIVE
        if name.endswith("attn2.to_out.0.weight"):
            outs.append(weight)
    one, other = (asked_of(pipe, [prompt], side=16) for prompt in (SOURCE, OTHER))
    change = 0.0
    for _ in range(8):
        a, b = (unet(**asked, return_dict=False)[0] for asked in (one, other))
        change = distance(b, a)
        if not 0 < change < float("inf") or CHANGE / 1.3 < change < CHANGE * 1.3:
            break
        for weight in outs:
            weight.data *= min(max(CHANGE / change, 0.1), 10)
    spread = float(unet(**one, return_dict=False)[0].std())
    unet.conv_out.weight.data /= spread
    unet.conv_out.bias.data /= spread
    return change


def asked_of(pipe: Any, prompts: list[str], side: int | None = None, seed: int = 0, rows: int = 1) -> dict[str, Any]:
    """The U-Net's arguments for ``rows`` rows of the same latent, each with one of the prompts in turn.

    Args:
        pipe: the pipeline.
        prompts: as many as ``rows`` divides by.
        side: of the latent; by default the U-Net's own.
        seed: of the latent.
        rows: in all.
    """
    unet = pipe.unet
    device, dtype = unet.device, unet.dtype
    side = side or int(unet.config.sample_size)
    x = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
    with torch.no_grad():
        said = pipe.encode_prompt(
            prompt=[prompts[k % len(prompts)] for k in range(rows)],
            device=device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
    about = {"encoder_hidden_states": said[0].to(dtype)}
    if hasattr(pipe, "text_encoder_2"):
        pixels = float(side * pipe.vae_scale_factor)
        ids = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]] * rows, device=device, dtype=dtype)
        about["added_cond_kwargs"] = {"text_embeds": said[2].to(dtype), "time_ids": ids}
    return {"sample": x.repeat(rows, 1, 1, 1), "timestep": torch.tensor(501, device=device), **about}


def distance(a: Tensor, b: Tensor) -> float:
    """How far ``a`` is from ``b``, as a part of ``b``: the root mean square of the difference by that of ``b``."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


def trusted(change: float) -> bool:
    """Whether the prompt moved the output enough for a ratio to mean something; NaN does not count."""
    return LEAST_CHANGE <= change < float("inf")


def copied(network: nn.Module, dtype: torch.dtype) -> Any:
    """A copy of a network in another dtype."""
    return nn.Module.to(copy.deepcopy(network), dtype)


def cast(pipe: Any, dtype: torch.dtype) -> Any:
    """A copy of a pipeline in another dtype, with weights of its own."""
    parts = {
        name: copied(part, dtype) if isinstance(part, nn.Module) else copy.deepcopy(part)
        for name, part in pipe.components.items()
        if part is not None
    }
    made = type(pipe)(**{**dict.fromkeys(pipe.components), **parts}, **_options(pipe))
    made.set_progress_bar_config(disable=True)
    return made


def _options(pipe: Any) -> dict[str, Any]:
    return {"add_watermarker": False} if hasattr(pipe, "text_encoder_2") else {"requires_safety_checker": False}


def owned(pipe: Any) -> ddim.Model:
    """A pipeline as a model that belongs to the library, as ``ddim.load`` makes one of a folder: it may be changed."""
    from ddim.models.engine.optimize import optimize
    from ddim.models.families import FAMILIES

    adapter: Any = FAMILIES[type(pipe).__name__]
    made = adapter("random", pipe, device=pipe.unet.device, dtype=pipe.unet.dtype)
    optimize(made)
    return made


def synchronize(device: torch.device) -> None:
    """Waits until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Wall-clock seconds of one run, as the mean of ``times`` in a row."""
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(times):
        run()
    synchronize(device)
    return (time.perf_counter() - begin) / times


def free() -> None:
    """Gives memory of objects that are gone back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@dataclass
class Peak:
    """Peak memory of the device in a block, in MB: what was allocated, and what was reserved, graphs' pools among it.

    Both are None without a GPU. The block must contain the first call: a CUDA graph allocates when it is captured,
    and not when it is replayed.
    """

    device: torch.device
    allocated: float | None = field(default=None, init=False)
    reserved: float | None = field(default=None, init=False)

    def __enter__(self) -> "Peak":
        free()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, *error: object) -> None:
        if self.device.type == "cuda":
            self.allocated = torch.cuda.max_memory_allocated(self.device) / 2**20
            self.reserved = torch.cuda.max_memory_reserved(self.device) / 2**20


def part_of(peak: Peak, other: Peak) -> float | None:
    """What was allocated in one block, as a part of what was in the other."""
    return None if peak.allocated is None or not other.allocated else peak.allocated / other.allocated


def graphed(call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """A CUDA graph of a call on fixed tensors: what replays it, and the tensor that it writes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = call()

    def replay(call: Callable[[], Tensor] = call) -> None:  # the graph reads the tensors of ``call``, so they must live
        graph.replay()

    return replay, output


def pictures(count: int, shape: Shape) -> Tensor:
    """Smooth random pictures of a shape's size, [count, 3, H, W] in [0, 1]."""
    side = int(shape.vae["sample_size"])
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(noise, (side, side), mode="bilinear").clamp(0, 1)
