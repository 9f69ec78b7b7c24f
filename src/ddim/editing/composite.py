"""Pastes edits into photographs: outside of the mask every byte stays that of the photograph."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .._utils.errors import InputError, is_whole
from ..inversion.photograph import Crop, Photograph

_OPEN = (False, False, False, False)
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and ``read_images`` weight the channels


def bounding_box(mask: Tensor) -> Crop | None:
    """The (left, top, right, bottom) of the smallest box that contains all values above 0 of a mask [H, W].

    Returns None if there is no such value.
    """
    rows, columns = ((mask > 0).any(axis).nonzero()[:, 0] for axis in (1, 0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def on_crop(mask: Tensor, photograph: Photograph, size: tuple[int, int]) -> Tensor:
    """Brings a mask to the crop of a photograph: float [h, w] in [0, 1], at the photograph's resolution.

    Args:
        mask: [H, W] of the size of the photograph, of its crop, or of the model's image, in this order.
        photograph: with its crop, [h, w].
        size: (height, width) of the model's image.

    Raises:
        InputError: the mask has another size.
    """
    own = (mask.shape[0], mask.shape[1])
    if own == photograph.size:
        left, top, right, bottom = photograph.crop
        return mask[top:bottom, left:right]
    if own == photograph.crop_size:
        return mask
    if own == size:
        return enlarged(mask, photograph.crop_size)
    wanted = dict.fromkeys(f"{w}x{h}" for h, w in (photograph.size, photograph.crop_size, size))
    raise InputError(
        f"it is {own[1]}x{own[0]}; give a mask of the size of the photograph, of its crop or of the model's image: "
        f"{', '.join(wanted)}.",
        parameter="mask",
    )


def enlarged(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Brings a mask [H, W] to another (height, width) by nearest neighbour, so that 0 stays 0."""
    return interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0]


def usual_feather(mask: Tensor, size: tuple[int, int], multiple: int) -> int:
    """The default width of the soft edge, in pixels of the photograph.

    It is one pixel of the latent, because a blend on the latent cannot be finer, but at most an eighth of the shorter
    side of what may change.

    Args:
        mask: [h, w] on the crop.
        size: (height, width) of the model's image.
        multiple: pixels of the image per pixel of the latent; 0 for a model without a latent.
    """
    box = bounding_box(mask)
    if box is None:
        return 0
    pixel = max(multiple, 1) * min(mask.shape[0] / size[0], mask.shape[1] / size[1])
    return int(min(pixel, min(box[2] - box[0], box[3] - box[1]) / 8))


def checked_feather(feather: int) -> int:
    """Raises InputError if a feather is no whole number of pixels of at least 0."""
    if not is_whole(feather) or feather < 0:
        raise InputError(f"{feather!r} is not a number of pixels; use 0 for a hard edge, or more.", parameter="feather")
    return int(feather)


def feathered(mask: Tensor, width: int, closed: tuple[bool, bool, bool, bool] = _OPEN) -> Tensor:
    """Makes the edge of a mask soft on its inside; where the mask is 0 it stays 0.

    The mask is multiplied by min(1, d / (width + 1)), where d is the Euclidean distance, in pixels, to the nearest
    pixel at which the mask is 0: ``width`` pixels of a straight edge become soft.

    Args:
        mask: float [h, w] in [0, 1].
        width: in pixels, from 0.
        closed: whether the mask counts as 0 beyond its left, top, right and bottom border. It does where a crop ends
            inside its photograph, and does not at the photograph's own border.

    Returns:
        float32 [h, w] in [0, 1].
    """
    mask = mask.float()
    if width < 1:
        return mask
    left, top, right, bottom = closed
    outside = torch.nn.functional.pad(mask == 0, (int(left), int(right), int(top), int(bottom)), value=True)
    part = _distance(outside, width + 1) / (width + 1)
    return mask * part[int(top) : int(top) + mask.shape[0], int(left) : int(left) + mask.shape[1]]


def _distance(outside: Tensor, most: int) -> Tensor:
    """The Euclidean distance of each pixel [h, w] to the nearest one that is ``outside``, at most ``most``."""
    height, width = outside.shape
    rows = torch.arange(height, dtype=torch.float32)[:, None]
    far = float(height + most)
    above = torch.where(outside, rows, -far).cummax(0).values
    below = torch.where(outside, rows, rows.new_tensor(far + height)).flip(0).cummin(0).values.flip(0)
    squared = torch.minimum(rows - above, below - rows).clamp(max=most).square()
    nearest = squared.clone()
    for step in range(1, min(most, width)):
        left, right = nearest[:, step:], nearest[:, : width - step]
        torch.minimum(left, squared[:, : width - step] + step**2, out=left)
        torch.minimum(right, squared[:, step:] + step**2, out=right)
    return nearest.sqrt().clamp(max=most)


def pasted(photograph: Photograph, edited: Tensor, mask: Tensor, feather: int = 0) -> Tensor:
    """Pastes an edited image into the photograph that it is a crop of.

    The image is scaled to the crop (bicubic) and takes the photograph's place as far as the mask says. The result has
    the photograph's channels: an edit of a grey photograph becomes grey. Transparency stays that of the photograph;
    where a pixel is partly transparent, its colour is chosen so that it shows the edit on white, as the model saw it.

    Args:
        photograph: with its crop, [h, w].
        edited: the model's image, [C, H, W] in [0, 1].
        mask: float [h, w] in [0, 1]; where it is 0, every byte stays the photograph's.
        feather: the width of the soft edge inside the mask, in pixels of the photograph.

    Returns:
        uint8 of the photograph's shape.
    """
    out = photograph.pixels.detach().cpu().clone()
    box = bounding_box(mask)
    if box is None:
        return out
    left, top, right, bottom = box
    begin_x, begin_y, end_x, end_y = photograph.crop
    high, wide = photograph.size
    # The mask is 0 just outside of its box, unless the box ends where the photograph does.
    closed = (begin_x + left > 0, begin_y + top > 0, begin_x + right < wide, begin_y + bottom < high)
    inside = (slice(top, bottom), slice(left, right))
    weight = feathered(mask[inside].cpu(), feather, closed)
    image = _with_colours(edited.detach().cpu().float(), photograph.colours)
    if image.shape[1:] != photograph.crop_size:
        image = interpolate(image[None], photograph.crop_size, mode="bicubic", antialias=True)[0]
    region = out[:, begin_y:end_y, begin_x:end_x][:, inside[0], inside[1]]
    opaque = region[-1].float() / 255 if len(region) > photograph.colours else None
    for k in range(photograph.colours):
        before, after = region[k].float(), image[k][inside].clamp(0, 1) * 255
        if opaque is not None:
            after = torch.where(opaque > 0, (after - 255 * (1 - opaque)) / opaque.clamp(min=1 / 255), before)
        mixed = torch.lerp(before, after.clamp(0, 255), weight).round().clamp(0, 255).to(torch.uint8)
        region[k] = torch.where(weight > 0, mixed, region[k])
    return out


def _with_colours(image: Tensor, colours: int) -> Tensor:
    """Converts an image [C, H, W] to 1 or 3 channels."""
    if len(image) == colours:
        return image
    if colours == 3:
        return image.expand(3, -1, -1)
    return (image * image.new_tensor(_GREY)[:, None, None]).sum(0, keepdim=True)
