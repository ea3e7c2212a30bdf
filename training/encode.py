"""Pixels to the files that users send."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store.manifest import PreprocessSpec


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


def photograph(image: NDArray[np.uint8], preprocess: PreprocessSpec, shorter_side: int, quality: int) -> bytes:
    """Return a fitted image, uint8 (height, width, 3), as the enlarged JPEG of which `preprocess` makes it again.

    What a crop has cut off is made up by repeating the edge, or the image would be cropped a second time.
    """
    return enlarged_jpeg(_uncropped(image, preprocess), shorter_side, quality)


def _uncropped(image: NDArray[np.uint8], preprocess: PreprocessSpec) -> NDArray[np.uint8]:
    if preprocess.resize_to is None:
        return image
    cut = [preprocess.resize_to - side for side in image.shape[:2]]
    before = [round(pixels / 2) for pixels in cut]  # as `images.fit` crops
    return np.pad(image, [*((first, both - first) for first, both in zip(before, cut, strict=True)), (0, 0)], "edge")


def _save(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
