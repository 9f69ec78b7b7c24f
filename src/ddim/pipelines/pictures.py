"""Reads the images that ``invert`` and ``edit`` are given, and the photographs that they are crops of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .._utils.errors import InputError, warn
from ..data.images import ImageLike, read_images
from ..data.photographs import CropLike, checked_crops, is_taken_whole, read_photographs, scaled_crops, window
from ..editing.blend import MaskLike, read_masks
from ..editing.composite import bounding_box, on_crop
from ..inversion.photograph import Crop, Photograph
from ..models.base import Model


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images as a model takes them.

    ``invert`` and ``edit`` accept it in place of images, so that a file is read only once.

    It was read with its crop and its masks: ``crop``, ``resize`` and ``mask`` beside it are errors.

    Attributes:
        pixels: [N, C, H, W] in [0, 1].
        photographs: the photographs of which they are crops; empty if nobody needs them. Without them ``invert`` keeps
            no source, and ``edit`` pastes nothing.
        masks: the user's mask for each image, [H, W] at its own size; empty without masks.
    """

    pixels: Tensor
    photographs: tuple[Photograph, ...] = ()
    masks: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return self.pixels.shape[2], self.pixels.shape[3]


def read_pictures(
    model: Model,
    images: "ImageLike | Pictures",
    *,
    crop: CropLike | None = None,
    resize: bool = False,
    keep: bool = False,
    mask: MaskLike | None = None,
) -> Pictures:
    """Reads images of any size.

    If neither a crop is given nor the photographs are needed, images are read by ``read_images``, which refuses other
    sizes unless ``resize`` is set. Otherwise a crop of each photograph is scaled to the size of the model.

    Args:
        model: for its size.
        images: as for ``invert``, or what this function returned, which is returned unchanged.
        crop: see ``invert``. By default images of one size that the model takes are whole, and of others ``window``
            chooses the crop: around the mask if that is of the photograph's size, else at the centre.
        resize: see ``invert``; the crop is then the one that ``read_images`` takes, rounded to whole pixels.
        keep: whether the photographs are needed. A mask needs them too.
        mask: see ``edit``.

    Raises:
        InputError: an image or a mask cannot be read, a crop is none or does not go with ``resize``, the crops have
            different aspect ratios, or a crop, ``resize`` or a mask is given for images that were read already.
    """
    if isinstance(images, Pictures):
        asked = {"crop": crop is not None, "resize": resize, "mask": mask is not None}
        if idle := [name for name, given in asked.items() if given]:
            raise InputError(
                "it says how to read images, and Pictures are read already; give the images themselves, or leave it "
                "out.",
                parameter=idle[0],
            )
        return images
    if crop is not None and resize:
        raise InputError("it does not go with resize, which takes the centre; leave one out.", parameter="crop")
    shape, multiple = model.picture, model.multiple
    if crop is None and mask is None and not keep:
        return Pictures(read_images(images, shape, resize=resize, multiple=multiple))
    read = read_photographs(images)
    masks = () if mask is None else tuple(read_masks(mask, len(read)))
    whole = [Photograph(pixels, (0, 0, pixels.shape[2], pixels.shape[1]), icc) for pixels, icc in read]
    crops = _crops_of(whole, model, crop, resize, masks)
    photographs = tuple(replace(photograph, crop=one) for photograph, one in zip(whole, crops, strict=True))
    channels = {len(one.pixels) for one in photographs}
    if crop is None and (resize or (channels == {shape[0]} and is_taken_whole(photographs, shape, multiple))):
        pixels = read_images(images, shape, resize=resize, multiple=multiple)  # tensors keep their precision
    else:
        pixels = scaled_crops(photographs, shape, multiple)
    return Pictures(pixels, photographs if keep or masks else (), masks)


def _crops_of(
    photographs: Sequence[Photograph], model: Model, crop: CropLike | None, resize: bool, masks: Sequence[Tensor]
) -> list[Crop]:
    """The crop of each whole photograph; see ``read_pictures``.

    Args:
        photographs, masks: one mask for each photograph, or none.
        model, crop, resize: as for ``read_pictures``.

    Raises:
        InputError: ``crop`` is no crop of the photographs.
    """
    if crop is not None:
        return checked_crops(crop, [one.size for one in photographs])
    if resize:
        return [window(one.size, model.picture) for one in photographs]
    if is_taken_whole(photographs, model.picture, model.multiple):
        return [one.crop for one in photographs]
    boxes = [bounding_box(m) if m.shape == p.size else None for p, m in zip(photographs, masks, strict=False)]
    boxes = boxes or [None] * len(photographs)
    return [window(one.size, model.picture, box) for one, box in zip(photographs, boxes, strict=True)]


def _warn_of_mask_beyond(photograph: Photograph, mask: Tensor) -> None:
    """Warns if a mask of the photograph's size lets something change beyond the crop, which cannot change."""
    box = bounding_box(mask) if tuple(mask.shape) == photograph.size else None
    left, top, right, bottom = photograph.crop
    if box is not None and (box[0] < left or box[1] < top or box[2] > right or box[3] > bottom):
        warn(
            f"The mask reaches from {box[:2]} to {box[2:]}, beyond the crop from {(left, top)} to {(right, bottom)}; "
            "nothing changes outside of the crop."
        )


def model_mask(masks: Sequence[Tensor], photographs: Sequence[Photograph], size: tuple[int, int]) -> Tensor:
    """Brings masks to the model's size: float32 [N, 1, H, W], the mean over the area of each pixel.

    Args:
        masks: [H, W] each, of the photograph's size, its crop's or the model's.
        photographs: one for each mask; none if only the model's size is known.
        size: (height, width) of the model's images.

    Raises:
        InputError: a mask has another size.

    Warns:
        DDIMWarning: a mask reaches beyond the crop.
    """
    fitted: list[Tensor] = []
    for k, mask in enumerate(masks):
        own = (mask.shape[0], mask.shape[1])
        if photographs and (own != size or own == photographs[k].size):
            _warn_of_mask_beyond(photographs[k], mask)
            mask = on_crop(mask, photographs[k], size)
        elif own != size:
            raise InputError(
                f"it is {own[1]}x{own[0]}, the picture {size[1]}x{size[0]}; give a mask of the same size, or keep the "
                "photograph in the code by keep_source.",
                parameter="mask",
            )
        fitted.append(torch.nn.functional.adaptive_avg_pool2d(mask[None], size).clamp(0, 1))
    return torch.stack(fitted)
