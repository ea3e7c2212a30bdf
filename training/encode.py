"""Pixels to the files that users send."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def png(image: NDArray[np.uint8]) -> bytes:
    """Return uint8 (H, W, 3) as PNG, lossless."""
    return _save(Image.fromarray(image), "PNG")


def jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """Return uint8 (H, W, 3) as JPEG of `quality` 1 to 100 with 4:2:0 chroma, as most software writes it."""
    return _save(Image.fromarray(image), "JPEG", quality=quality, subsampling="4:2:0")


def enlarged_jpeg(image: NDArray[np.uint8], shorter_side: int, quality: int) -> bytes:
    """Return uint8 (H, W, 3) enlarged bicubically to `shorter_side` pixels, as JPEG: a photograph of the same thing."""
    height, width = image.shape[:2]
    scale = shorter_side / min(height, width)
    size = (round(width * scale), round(height * scale))
    return jpeg(np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)), quality)


def _save(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
