"""Random changes of training images, per image, on the images' own device."""

import math
from functools import lru_cache

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from training.augment_spec import AugmentSpec, JpegShare, ResizeAugment
from training.resampling import KERNELS, rescale

GREY = 128
"""The level that normalisation brings near zero."""


def augment(images: Tensor, spec: AugmentSpec, generator: Generator) -> Tensor:
    """Return changed copies of uint8 (N, H, W, 3); each draws its own resize, flip, crop, square, noise, quality.

    In the order in which it happens to a photograph. Resized after the crop, the edge of its padding would be blurred,
    which no image brings along; after the noise, it would be averaged away; after JPEG, so would the blocks.
    """
    if spec.resize is not None:
        images = _resize_share(images, spec.resize, generator)
    images = _flip_and_crop(images, spec, generator)
    if spec.cutout is not None:
        images = _without_square(images, spec.cutout, generator)
    if spec.noise_sd_max > 0:
        images = _noisy(images, spec.noise_sd_max, generator)
    return images if spec.jpeg is None else _jpeg_share(images, spec.jpeg, generator)


def _resize_share(images: Tensor, spec: ResizeAugment, generator: Generator) -> Tensor:
    chosen = _share(images, spec.share, generator)
    unit = torch.rand(chosen.shape, generator=generator, device=images.device)
    kernel = torch.randint(len(KERNELS), chosen.shape, generator=generator, device=images.device)
    scale = spec.scale_min + (spec.scale_max - spec.scale_min) * unit
    return images.index_copy(0, chosen, rescale(images[chosen], scale, kernel))


def _share(images: Tensor, share: float, generator: Generator) -> Tensor:
    return torch.randperm(len(images), generator=generator, device=images.device)[: round(share * len(images))]


def _flip_and_crop(images: Tensor, spec: AugmentSpec, generator: Generator) -> Tensor:
    n, height, width, _ = images.shape
    device, padding = images.device, spec.crop_padding

    def draw(high: int) -> Tensor:
        return torch.randint(high, (n, 1), generator=generator, device=device)

    rows = draw(2 * padding + 1) + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(n, width)
    if spec.flip:
        columns = torch.where(draw(2) == 1, width - 1 - columns, columns)
    columns = columns + draw(2 * padding + 1)
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    return padded[torch.arange(n, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _without_square(images: Tensor, side: int, generator: Generator) -> Tensor:
    """Return copies with a grey square around a pixel of each; near an edge less than the whole square is seen."""
    n, height, width, _ = images.shape
    device = images.device

    def covered(length: int) -> Tensor:
        first = torch.randint(length, (n, 1), generator=generator, device=device) - side // 2
        at = torch.arange(length, device=device)
        return (first <= at) & (at < first + side)

    square = covered(height)[:, :, None] & covered(width)[:, None, :]
    return images.masked_fill(square[..., None], GREY)


def _noisy(images: Tensor, sd_max: float, generator: Generator) -> Tensor:
    sd = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) * sd_max
    noisy = torch.randn(images.shape, generator=generator, device=images.device).mul_(sd).add_(images)
    return noisy.round_().clamp_(0, 255).to(torch.uint8)


def _jpeg_share(images: Tensor, spec: JpegShare, generator: Generator) -> Tensor:
    chosen = _share(images, spec.share, generator)
    quality = torch.randint(
        spec.quality_min, spec.quality_max + 1, chosen.shape, generator=generator, device=images.device
    )
    return images.index_copy(0, chosen, jpeg(images[chosen], quality))


# The example tables of the JPEG standard (ITU-T T.81, Annex K.1), which libjpeg and so Pillow scale by the quality.
_LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
# ITU-T T.871 (JFIF): rows Y, Cb, Cr of R, G, B; the chroma rows are centred on 128 afterwards.
_RGB_TO_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
_YCBCR_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


def jpeg(images: Tensor, quality: Tensor) -> Tensor:
    """Return uint8 (N, H, W, 3) as a JPEG encoder with 4:2:0 chroma and a decoder would leave them.

    quality: int (N,) in 1 to 100, as libjpeg scales it. Runs on the images' device; there is no entropy coding,
    which loses nothing. Within rounding of libjpeg: it computes the transforms in integers.
    """
    height, width = images.shape[1:3]
    pixels = images.permute(0, 3, 1, 2).float()
    pixels = F.pad(pixels, (0, -width % 16, 0, -height % 16), mode="replicate")
    luma, chroma = _to_ycbcr(pixels)
    luma = _through_dct(luma, _quantisation(_LUMA_TABLE, quality))
    chroma = _through_dct(_halved(chroma), _quantisation(_CHROMA_TABLE, quality))
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear").round()  # libjpeg's "fancy" triangle filter
    restored = _to_rgb(torch.cat([luma, chroma], dim=1))
    return restored[:, :, :height, :width].permute(0, 2, 3, 1).contiguous()


def _to_ycbcr(pixels: Tensor) -> tuple[Tensor, Tensor]:
    ycbcr = torch.einsum("dc,nchw->ndhw", _constant(_RGB_TO_YCBCR, pixels.device), pixels).round()
    return ycbcr[:, :1] - 128, ycbcr[:, 1:]


def _to_rgb(ycbcr: Tensor) -> Tensor:
    centred = ycbcr + _constant((128.0, 0.0, 0.0), ycbcr.device).view(3, 1, 1)
    rgb = torch.einsum("dc,nchw->ndhw", _constant(_YCBCR_TO_RGB, ycbcr.device), centred)
    return rgb.round().clamp(0, 255).to(torch.uint8)


def _halved(chroma: Tensor) -> Tensor:
    """Average 2x2 pixels; halves go up in odd columns and down in even ones, as libjpeg dithers them."""
    mean = F.avg_pool2d(chroma, 2)
    bias = _constant((0.25, 0.5), mean.device).repeat(mean.shape[-1] // 2)
    return (mean + bias).floor()


def _quantisation(table: tuple[tuple[int, ...], ...], quality: Tensor) -> Tensor:
    """Return libjpeg's quantisation steps for each quality, float32 (N, 1, 1, 8, 1, 8)."""
    scale = torch.where(quality < 50, 5000 // quality, 200 - 2 * quality).view(-1, 1, 1)
    steps = ((_constant(table, quality.device) * scale + 50) // 100).clamp(1, 255)
    return steps.float().view(-1, 1, 1, 8, 1, 8)


def _through_dct(plane: Tensor, steps: Tensor) -> Tensor:
    """Quantise the 8x8 DCT of centred planes float32 (N, C, H, W) and transform back, clamped to [-128, 127]."""
    n, channels, height, width = plane.shape
    dct = _dct_matrix(plane.device)
    blocks = plane.view(n, channels, height // 8, 8, width // 8, 8)
    coefficients = torch.einsum("ui,ncaibj,vj->ncaubv", dct, blocks, dct)
    coefficients = (coefficients * 8).round() / 8  # libjpeg keeps three bits; then halves go away from zero
    coefficients = (coefficients.abs() / steps + 0.5).floor() * coefficients.sign() * steps
    blocks = torch.einsum("ui,ncaubv,vj->ncaibj", dct, coefficients, dct)
    return blocks.reshape(n, channels, height, width).round().clamp(-128, 127)


@lru_cache
def _constant(values: tuple[float, ...] | tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """Return numbers on a device, copied there once: a copy waits until the device has done all it was given."""
    return torch.tensor(values, device=device)


@lru_cache
def _dct_matrix(device: torch.device) -> Tensor:
    """Return the orthonormal DCT-II of 8 points, float32 (frequency, position)."""
    frequency = torch.arange(8, device=device, dtype=torch.float32).view(8, 1)
    position = torch.arange(8, device=device, dtype=torch.float32)
    matrix = torch.cos((2 * position + 1) * frequency * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix
