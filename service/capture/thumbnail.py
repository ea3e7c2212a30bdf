"""Image files -> small pictures for a page, as data: URLs."""

import base64
import io
from typing import NamedTuple

from PIL import Image

from model_store import images

MAX_SIDE = 160
"""Pixels of the longer side; larger images are scaled down to it."""
_MAX_LOSSLESS_SIDE = 64
"""Images up to it are shown as they are, in at most 12 KiB; others as JPEG, of about 5 KiB, 20 at worst."""
_JPEG_QUALITY = 80


class Thumbnail(NamedTuple):
    """A picture's URL and its size in pixels."""

    url: str
    width: int
    height: int


def thumbnail(encoded: bytes) -> Thumbnail:
    """Make a picture of an image, whose own size it keeps where that is small.

    Raises:
        ImageError: it can't be decoded, or is larger than a server takes by default.
    """
    picture = Image.fromarray(images.decode(encoded, at_least=(MAX_SIDE, MAX_SIDE)))
    lossless = max(picture.size) <= _MAX_LOSSLESS_SIDE
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    if lossless:
        picture.save(file, "PNG")
    else:
        picture.save(file, "JPEG", quality=_JPEG_QUALITY)
    media_type = "image/png" if lossless else "image/jpeg"
    return Thumbnail(f"data:{media_type};base64,{base64.b64encode(file.getvalue()).decode()}", *picture.size)
