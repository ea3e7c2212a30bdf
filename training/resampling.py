"""Images scaled down and back up, each by a factor and a kernel of its own, as Pillow would, on the images' device."""

import torch
from torch import Tensor

KERNELS = ("nearest", "area", "bilinear", "bicubic")


def rescale(images: Tensor, scale: Tensor, kernel: Tensor) -> Tensor:
    """Return uint8 (N, H, W, 3) scaled to a share of each side, rounded to whole pixels and levels, and back.

    Scaling down averages over what a pixel covers (antialiased, as Pillow does), except for the nearest kernel. Within
    rounding of Pillow's `resize`, and where the nearest pixel or the end of an area is a tie, it may fall otherwise.

    Args:
        images: uint8 (N, H, W, 3).
        scale: float32 (N,) in (0, 1].
        kernel: int64 (N,), an index of KERNELS, for both ways.
    """
    height, width = images.shape[1:3]
    rows, columns = (_round_trip(side, scale, kernel) for side in (height, width))
    pixels = images.permute(0, 3, 1, 2).float()
    for vertical, horizontal in zip(rows, columns, strict=True):
        pixels = _to_levels(vertical[:, None] @ _to_levels(pixels @ horizontal.mT[:, None]))
    return pixels.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def _round_trip(side: int, scale: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of the way down and of the way back, float32 (N, side, side) each.

    The small image is padded with zeros to the full side, so that sizes do not depend on what was drawn.
    """
    full = torch.full_like(scale, side, dtype=torch.float64)
    small = (full * scale).round().clamp(min=1)
    return _weights(side, full, small, kernel).float(), _weights(side, small, full, kernel).float()


def _weights(side: int, size_in: Tensor, size_out: Tensor, kernel: Tensor) -> Tensor:
    """Return how much of each input pixel (columns) goes into each output pixel (rows); 0 beyond either size.

    In float64, and dividing last: a kernel often ends on the very edge between two pixels.
    """
    position = torch.arange(side, device=size_in.device, dtype=size_in.dtype)
    size_in, size_out = size_in[:, None, None], size_out[:, None, None]
    centre = (position[:, None] + 0.5) * size_in / size_out
    distance = (position + 0.5 - centre) / (size_in / size_out).clamp(min=1)
    by_kernel = torch.stack(
        [
            (position == centre.floor()).to(distance.dtype),
            ((distance > -0.5) & (distance <= 0.5)).to(distance.dtype),
            (1 - distance.abs()).clamp(min=0),
            _cubic(distance.abs()),
        ]
    )
    chosen = by_kernel[kernel, torch.arange(len(kernel), device=kernel.device)]
    inside = (position < size_in) & (position[:, None] < size_out)
    chosen = chosen * inside
    return chosen / chosen.sum(dim=2, keepdim=True).where(inside.any(dim=2, keepdim=True), 1)


def _cubic(distance: Tensor) -> Tensor:
    """Return Keys' cubic convolution with a = -1/2, Pillow's, of distances of 0 or above."""
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return near.where(distance < 1, far.where(distance < 2, 0))


def _to_levels(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255)
