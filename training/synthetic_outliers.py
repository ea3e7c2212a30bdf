"""Outliers made of in-distribution images, for training without a set of outliers and for validation without one.

Each maker takes uint8 (N, H, W, 3) on any device and returns as many of the same shape, uint8, rounded; what is drawn
comes from a generator of that device. The kinds are those of Hendrycks et al. 2019, by which Liu et al. 2020 choose
their margins, and a warp.
"""

from itertools import permutations
from typing import Literal, assert_never, get_args

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

Kind = Literal[
    "uniform_noise",
    "arithmetic_mean",
    "geometric_mean",
    "jigsaw",
    "speckle",
    "pixelation",
    "rgb_ghost",
    "inversion",
    "warp",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
MIXED: tuple[Kind, ...] = ("arithmetic_mean", "geometric_mean")
"""Those of two images."""

PIXELATION = 0.2
WARP_KNOTS = 4
WARP_SD = 0.4
"""Of half the image's side: at 32 pixels a knot moves by 6.4, about the size of an object's parts."""
_DERANGEMENTS = tuple(order for order in permutations(range(4)) if all(order[at] != at for at in range(4)))


def synthetic_outliers(images: Tensor, count: int, generator: Generator) -> Tensor:
    """Return `count` outliers uint8 (count, H, W, 3) made of a batch of images, drawn by `generator`.

    Every kind takes an equal part of them, and which image becomes which kind is drawn; each image is used equally
    often. One image alone is not mixed.
    """
    kinds = KINDS if len(images) > 1 else tuple(kind for kind in KINDS if kind not in MIXED)
    order = torch.randperm(len(images), generator=generator, device=images.device)
    position = torch.arange(count, device=images.device)
    sources, others = images[order[position % len(images)]], images[order[(position + 1) % len(images)]]
    parts = zip(kinds, sources.tensor_split(len(kinds)), others.tensor_split(len(kinds)), strict=True)
    return torch.cat([make_outliers(kind, source, other, generator) for kind, source, other in parts])


def make_outliers(kind: Kind, images: Tensor, others: Tensor, generator: Generator) -> Tensor:
    """Return one outlier of a kind for each image; `others`, a different image for each, are what it is mixed with."""
    match kind:
        case "uniform_noise":
            return uniform_noise(images, generator)
        case "arithmetic_mean":
            return _to_uint8((images.float() + others.float()) / 2)
        case "geometric_mean":
            return _to_uint8((images.float() * others.float()).sqrt())
        case "jigsaw":
            return jigsaw(images, generator)
        case "speckle":
            return speckle(images, generator)
        case "pixelation":
            return pixelation(images)
        case "rgb_ghost":
            return rgb_ghost(images)
        case "inversion":
            return inversion(images)
        case "warp":
            return warp(images, generator)
        case _:
            assert_never(kind)


def uniform_noise(images: Tensor, generator: Generator) -> Tensor:
    """Return noise, each channel uniform within one standard deviation of the images' mean in that channel.

    That is uniform in [-1, 1] where images are normalised by their own mean and deviation, as in the paper.
    """
    pixels = images.flatten(0, 2).float()
    unit = 2 * torch.rand(images.shape, generator=generator, device=images.device) - 1
    return _to_uint8(pixels.mean(dim=0) + pixels.std(dim=0, correction=0) * unit)


def jigsaw(images: Tensor, generator: Generator) -> Tensor:
    """Return images whose quarters have changed places, none staying where it was; of an odd side the middle stays."""
    n, height, width, _ = images.shape
    rows, columns = height // 2, width // 2
    corners = [(top, left) for top in (0, height - rows) for left in (0, width - columns)]
    quarters = torch.stack([images[:, top : top + rows, left : left + columns] for top, left in corners], dim=1)
    orders = torch.tensor(_DERANGEMENTS, device=images.device)
    drawn = orders[torch.randint(len(orders), (n,), generator=generator, device=images.device)]
    moved = quarters[torch.arange(n, device=images.device)[:, None], drawn]
    puzzle = images.clone()
    for place, (top, left) in enumerate(corners):
        puzzle[:, top : top + rows, left : left + columns] = moved[:, place]
    return puzzle


def speckle(images: Tensor, generator: Generator) -> Tensor:
    """Return x + x e with e standard normal for every value: noise as strong as the image is bright."""
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return _to_uint8(images * (1 + noise))


def pixelation(images: Tensor) -> Tensor:
    """Return images scaled to a fifth by averaging, at least one pixel, and back by repetition."""
    height, width = images.shape[1:3]
    small = (max(1, int(height * PIXELATION)), max(1, int(width * PIXELATION)))
    pixels = F.interpolate(images.permute(0, 3, 1, 2).float(), small, mode="area")
    return _to_uint8(F.interpolate(pixels, (height, width), mode="nearest-exact").permute(0, 2, 3, 1))


def rgb_ghost(images: Tensor) -> Tensor:
    """Return images with their channels reordered, the green one mirrored and shown as red."""
    red, green, blue = images.unbind(dim=3)
    return torch.stack([green.flip(2), blue, red], dim=3)


def inversion(images: Tensor) -> Tensor:
    """Return images with green and blue inverted; not red, which would leave a mere negative."""
    red, green, blue = images.unbind(dim=3)
    return torch.stack([red, 255 - green, 255 - blue], dim=3)


def warp(images: Tensor, generator: Generator) -> Tensor:
    """Return images pulled about by a smooth random field, strong enough to tear the object's shape."""
    n, height, width, _ = images.shape
    knots = torch.randn(n, 2, WARP_KNOTS, WARP_KNOTS, generator=generator, device=images.device) * WARP_SD
    field = F.interpolate(knots, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    grid = F.affine_grid(torch.eye(2, 3, device=images.device).expand(n, 2, 3), [n, 3, height, width], False)
    pixels = images.permute(0, 3, 1, 2).float()
    warped = F.grid_sample(pixels, grid + field, padding_mode="reflection", align_corners=False)
    return _to_uint8(warped.permute(0, 2, 3, 1))


def _to_uint8(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)
