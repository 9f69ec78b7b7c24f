"""The networks that score edits: CLIP, a DINO ViT and LPIPS. Weights of transformers are read from safetensors only."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..._utils.error_text import reason_of
from ..._utils.errors import DDIMError, InputError
from ...data.images import to_pil
from ...models import device_and_dtype
from ...models.tokens import checked_tokenizer, read_tokenizer
from ...models.weights import pretrained

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Clip:
    """CLIP, which measures how well an image fits a text.

    Args:
        name: a folder with a CLIPModel and its tokenizer, or a hub id.
        device: where it computes, in float32.

    Raises:
        InputError: it cannot be loaded, or is not a CLIP model.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu") -> None:
        where, _ = device_and_dtype(device, "float32")
        self.model = pretrained("CLIPModel", name, parameter="clip").to(where)
        here = Path(name).is_dir()
        self.tokenizer = (
            read_tokenizer(Path(name), parameter="clip") if here else checked_tokenizer(name, parameter="clip")
        )
        self.side = int(self.model.config.vision_config.image_size)
        self.longest = int(self.model.config.text_config.max_position_embeddings)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """max(100 cos(image, text), 0), float64 [N] (CLIPScore, Hessel et al. 2021, arXiv 2104.08718, times 40).

        Args:
            images: [N, 3, H, W] in [0, 1]; they are rounded to 8 bits, as in the files that CLIP was trained on.
            prompts: one for each image; a prompt that is too long for the text encoder is cut.
        """
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        )
        device = self.model.device
        with torch.no_grad():
            found = self.model(
                input_ids=tokens.input_ids.to(device),
                attention_mask=tokens.attention_mask.to(device),
                pixel_values=torch.stack([self._pixels(image) for image in images]).to(device),
            )
        cosine = (found.image_embeds.double() * found.text_embeds.double()).sum(1)
        return (100 * cosine).clamp(min=0).cpu()

    def _pixels(self, image: Tensor) -> Tensor:
        """CLIP's preprocessing: resize the shorter side to ``side`` (bicubic), crop the centre, standardise."""
        from PIL import Image

        picture, side = to_pil(image), self.side
        scale = side / min(picture.size)
        width, height = (side if s == min(picture.size) else int(s * scale) for s in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        data = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(side, side, 3)
        return _standardised(data.permute(2, 0, 1)[None].float() / 255, CLIP_MEAN, CLIP_STD)[0]


class Dino:
    """A DINO ViT, which measures how similar the parts of an image are, by the keys of its last layer.

    Args:
        name: a folder with a ViTModel, or a hub id.
        device: where it computes, in float32.

    Raises:
        InputError: it cannot be loaded, or is not a ViT.
        DDIMError: it has another number of attention layers than its config says.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu") -> None:
        where, _ = device_and_dtype(device, "float32")
        # weights that only come after the last layer's keys
        unused = ("pooler.", "classifier.")
        self.model = pretrained("ViTModel", name, parameter="dino", spare=unused, add_pooling_layer=False).to(where)
        # transformers 5 renamed attention.attention.key
        keys = [m for n, m in self.model.named_modules() if n.endswith((".k_proj", ".attention.key"))]
        if len(keys) != (expected := self.model.config.num_hidden_layers):
            raise DDIMError(f"{name} has {len(keys)} attention layers, not {expected}.")
        self.last = keys[-1]

    def similarity(self, images: Tensor, *, antialias: bool = True) -> Tensor:
        """Cosines between the keys of all tokens, including the class token, float64 [N, L, L] (Tumanyan et al. 2022,
        arXiv 2201.00424, section 3.1).

        Args:
            images: [N, 3, H, W] in [0, 1].
            antialias: whether to filter when resizing them to the network's size.
        """
        side, kept = self.model.config.image_size, []
        size = (side, side) if isinstance(side, int) else tuple(side)
        x = F.interpolate(images.float().to(self.model.device), size, mode="bilinear", antialias=antialias)
        handle = self.last.register_forward_hook(lambda module, inputs, keys: kept.append(keys))
        try:
            with torch.no_grad():
                self.model(_standardised(x, IMAGENET_MEAN, IMAGENET_STD))
        finally:
            handle.remove()
        (keys,) = kept
        unit = F.normalize(keys.double(), dim=-1)
        return (unit @ unit.transpose(1, 2)).cpu()


class Lpips:
    """LPIPS, a learned perceptual distance (Zhang et al. 2018, arXiv 1801.03924), with SqueezeNet, by torchmetrics.

    Args:
        device: where it computes, in float32.

    Raises:
        InputError: torchmetrics or torchvision is missing, or SqueezeNet's weights cannot be loaded.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        where, _ = device_and_dtype(device, "float32")
        try:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            net: Any = LearnedPerceptualImagePatchSimilarity(net_type="squeeze").net.to(where)
        except ImportError:
            raise InputError(
                "LPIPS needs more packages: pip install torchmetrics torchvision.", parameter="metric"
            ) from None
        except (
            Exception
        ) as error:  # torchvision downloads the weights, so any error of the network or the disk may occur
            raise InputError(
                f"LPIPS is not available, because SqueezeNet's weights did not load: {reason_of(error)}",
                parameter="metric",
            ) from None
        self.device, self.plain, self.spatial = where, net, copy.copy(net)
        self.spatial.spatial = True

    def distance(self, images: Tensor, others: Tensor) -> Tensor:
        """LPIPS of pairs of images [N, 3, H, W] in [0, 1], float64 [N]."""
        return self._of(self.plain, images, others).flatten()

    def map(self, images: Tensor, others: Tensor) -> Tensor:
        """LPIPS at each pixel, float64 [N, 1, H, W]: every layer's map is resized to the image, and they are added."""
        return self._of(self.spatial, images, others)

    def _of(self, net: Any, images: Tensor, others: Tensor) -> Tensor:
        with torch.no_grad():  # normalize: from [0, 1] to the [-1, 1] that it was trained on
            found = net(images.float().to(self.device), others.float().to(self.device), normalize=True)
        return found.double().cpu()


def _standardised(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (x - x.new_tensor(mean).view(1, 3, 1, 1)) / x.new_tensor(std).view(1, 3, 1, 1)
