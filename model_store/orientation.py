"""Which way up an image is to be shown: read out of its EXIF block, and applied to its pixels."""

import struct

import numpy as np
import numpy.typing as npt
from PIL import ExifTags

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom


def read_orientation(exif: bytes | None) -> int:
    """Read 1 to 8 out of an EXIF block, 1 where it has none or is broken. Pillow's reader parses all, and warns."""
    if not exif:
        return 1
    tiff = exif.removeprefix(b"Exif\0\0")
    order = ">" if tiff.startswith(b"MM") else "<"
    try:
        (first,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if tag == ExifTags.Base.Orientation:
                (value,) = struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], tiff, entry + 8)
                return int(value) if value in range(1, 9) else 1
    except (struct.error, KeyError):
        pass
    return 1


def upright(pixels: Pixels, box: Box, orientation: int) -> tuple[Pixels, Box]:
    """Undo the turns and mirrorings that EXIF numbers 1 to 8, of the pixels and of the box."""
    left, top, right, bottom = box
    if orientation in (5, 6, 7, 8):
        pixels, (left, top, right, bottom) = pixels.swapaxes(0, 1), (top, left, bottom, right)
    height, width = pixels.shape[:2]
    if orientation in (2, 3, 6, 7):
        pixels, left, right = pixels[:, ::-1], width - right, width - left
    if orientation in (3, 4, 7, 8):
        pixels, top, bottom = pixels[::-1], height - bottom, height - top
    return np.ascontiguousarray(pixels), (left, top, right, bottom)
