"""Small JPEGs of the usual kind, decoded by Pillow's codec without its parser, which takes as long as their pixels.

Pillow's JPEG plugin reads a file's segments one by one, in Python, for metadata that nobody asks for here. Its codec
reads the whole file anyway, so that it gives the same pixels without. What is not of the usual kind, or not whole, is
left to the plugin: that it is refused, and why, is decided in one place.
"""

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

MAX_BYTES = 2**16
"""Of a file that the plugin hands its codec in one piece (`ImageFile.MAXBLOCK`), as is done here."""
MAX_PIXELS = 128 * 128
"""Its codec takes several times as long for an image of this size as what is spared."""
MAX_MEMORY_BYTES = 14 * MAX_PIXELS
"""Of a decode: Pillow's pixels, the result's, and coefficients of three full components."""

_SEGMENT = struct.Struct(">HH")  # marker; bytes that follow it, these two included
_FRAME = struct.Struct(">BHHB")  # bits per sample, height, width, components
_EXIF_SEGMENT = 0xFFE1
_SCAN_SEGMENT = 0xFFDA
_FRAME_SEGMENTS = (0xFFC0, 0xFFC1, 0xFFC2)  # baseline, extended, progressive
_RGB_FRAME_LENGTH = 17
# The shortest of each kind in which the plugin finds all that it looks for; in a shorter one it may fail.
_SHORTEST = {
    0xFFC4: 2,  # Huffman tables
    0xFFDB: 2,  # quantisation tables
    0xFFDD: 2,  # restart interval
    0xFFE0: 9,  # JFIF with its version
    _EXIF_SEGMENT: 2,  # or XMP
    0xFFE2: 16,  # a piece of a colour profile, with its number
    0xFFEE: 9,  # Adobe with its version
    0xFFFE: 2,  # a comment
}
_UNUSUAL = 2**16


class Header(NamedTuple):
    """What stands before the pixels: the image's size, and its EXIF block as Pillow gives it."""

    width: int
    height: int
    exif: bytes | None


def read_header(encoded: bytes) -> Header | None:
    """Read up to the first scan; None of a file that is large, damaged or not of the usual kind.

    The codec writes rows as wide as the one frame says into a buffer as wide as `Header` says. It steps from segment
    to segment by their lengths as is done here, so that both mean the same frame.

    Args:
        encoded: a file that begins as JPEG files do.
    """
    if len(encoded) > MAX_BYTES:
        return None
    size, exif, at = None, None, 2
    try:
        while True:
            marker, length = _SEGMENT.unpack_from(encoded, at)
            if marker == _SCAN_SEGMENT:
                break
            if marker in _FRAME_SEGMENTS:
                bits, height, width, components = _FRAME.unpack_from(encoded, at + 4)
                if size or (length, bits, components) != (_RGB_FRAME_LENGTH, 8, 3):
                    return None
                size = width, height
            elif length < _SHORTEST.get(marker, _UNUSUAL):
                return None
            elif marker == _EXIF_SEGMENT and encoded.startswith(b"Exif\0\0", at + 4):
                if exif is not None:
                    return None
                exif = encoded[at + 4 : at + 2 + length]
            at += 2 + length
    except struct.error:
        return None
    return Header(*size, exif) if size and 0 < size[0] * size[1] <= MAX_PIXELS else None


def decode(encoded: bytes, header: Header) -> npt.NDArray[np.uint8] | None:
    """Decode a whole file, uint8 (H, W, 3) RGB; None of one that the codec refuses or that ends too early.

    Args:
        encoded: the file.
        header: what `read_header` gave of it.
    """
    try:
        return np.array(Image.frombytes("RGB", (header.width, header.height), encoded, "jpeg", "RGB", ""))
    except ValueError:
        return None
