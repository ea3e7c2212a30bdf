"""Encoded bytes -> uint8 (H, W, 3) RGB, fitted to a PreprocessSpec. Whatever is sent, a failure is an ImageError.

Pillow decodes. Its plugins are called directly rather than through `Image.open`, so that only the formats below are
ever parsed and the limits are ours, not the process-wide `Image.MAX_IMAGE_PIXELS` (the WebP, GIF and TIFF plugins
still refuse more than twice that by themselves, which the default limits never reach). Small JPEGs go to its codec
without a plugin (`small_jpeg`). The first frame of an animation counts. Embedded colour profiles are not applied, as in
the data sets that networks are trained on.

Pillow warns of broken metadata in TIFF and AVIF, and logs; who makes errors of warnings sees such images refused.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, __version__, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TILELENGTH, TILEWIDTH, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from model_store import small_jpeg
from model_store.errors import (
    CorruptImageError,
    EmptyImageError,
    ImageError,
    ImageTooLargeError,
    TooManyPixelsError,
    UnsupportedImageError,
)
from model_store.manifest import PreprocessSpec
from model_store.orientation import Box, Pixels, read_orientation, upright

Encoding = Literal["jpeg", "webp", "avif", "jpeg2000", "lossless"]

DECODER = f"Pillow {__version__} (libjpeg-turbo {features.version_feature('libjpeg_turbo')})"

# The longest side of a JPEG. Resampling holds up to 48 bytes per pixel of a side, which must not become the bomb.
_MAX_SIDE = 65_535
# Encoders write about ten scans, each a pass over the whole image however few its bytes, and one block of EXIF;
# Pillow joins blocks in quadratic time.
_MAX_JPEG_PARTS = 100
# A 20 MiB PNG in chunks of 1 KiB, three reads each, is below a quarter of it; Pillow takes about 1 us per read.
_MAX_READS = 2**18
# Shorter files, read by the byte, are below _MAX_READS; to count their reads takes a good part of a small image's time.
_MANY_BYTES = 2**16
# Converted at once; to convert a whole image would double its memory.
_STRIP_PIXELS = 2**18
# How much larger than needed a JPEG stays that is scaled down while decoding. The result then differs from that of
# the full decode by about 0.2 levels of 255 on average; at 2 it is 0.4.
_DRAFT_MARGIN = 3
# Longer images are cut to it around their centre before they are resized: 1 x 5000 would become 224 x 1,120,000.
_MAX_RATIO = 8
# Pillow decodes run-length encoded BMP in Python, at up to 0.25 us per pixel.
_MAX_RLE_PIXELS = 2**22


@dataclass(frozen=True)
class DecodeLimits:
    """What `decode` and `load` accept; checked on the header, before any pixel is decoded.

    Attributes:
        max_bytes: of the encoded image. 20 MiB: the best JPEG of a 24-megapixel camera has about 15.
        max_pixels: width times height. 8192 x 6144 is what phones call 50 megapixels.
        max_memory_bytes: estimated peak of a decode, result included. 256 MiB hold all of `max_pixels` in a 4:2:0 JPEG
            that `load` scales down, 24 megapixels in one that stays as it is, 33 of PNG, GIF or BMP, 20 of TIFF, 13 of
            WebP or AVIF, 10 of JPEG 2000. Metadata is not counted, and the AV1 stream inside an AVIF can be larger
            than its header says, up to libavif's own limit of 16,384 x 16,384.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 8192 * 6144
    max_memory_bytes: int = 256 * 2**20


def load(encoded: bytes, spec: PreprocessSpec, limits: DecodeLimits = DecodeLimits()) -> Pixels:
    """Decode and fit; a JPEG far larger than needed is scaled down while it is decoded.

    Returns:
        uint8 (spec.height, spec.width, 3), RGB.

    Raises:
        ImageError: as `decode`.
    """
    return load_and_tell(encoded, spec, limits)[0]


def load_and_tell(encoded: bytes, spec: PreprocessSpec, limits: DecodeLimits = DecodeLimits()) -> tuple[Pixels, bool]:
    """Return what `load` does, and whether the image had another size and so was fitted.

    Raises:
        ImageError: as `decode`.
    """
    needed = spec.resize_to or max(spec.height, spec.width)
    pixels, box = _decode(encoded, limits, _DRAFT_MARGIN * needed)
    return _fit(pixels, box, spec), pixels.shape[:2] != (spec.height, spec.width)


def decode(encoded: bytes, limits: DecodeLimits = DecodeLimits(), *, at_least: tuple[int, int] | None = None) -> Pixels:
    """Decode the first frame, upright as EXIF says, over white where it is transparent.

    16-bit samples keep their high byte. Float samples are read from 0 (black) to 1 (white), 32-bit integers as
    16-bit values; outside of these ranges a sample has no agreed meaning, and the image is refused.

    Args:
        encoded: a whole image file.
        limits: what is accepted.
        at_least: (height, width) that suffices; a far larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size.

    Returns:
        uint8 (H, W, 3), RGB, of any size.

    Raises:
        EmptyImageError: zero bytes.
        ImageTooLargeError: more bytes than allowed.
        UnsupportedImageError: no image, or a format or range of samples that is not read.
        TooManyPixelsError: more pixels than allowed, or than the memory allowed can hold.
        CorruptImageError: truncated or damaged.
    """
    return _decode(encoded, limits, max(at_least) if at_least else None)[0]


def looks_like_image(encoded: bytes) -> bool:
    """Return whether the first bytes are those of a format that is read."""
    return _ANY_MAGIC.match(encoded) is not None


def suffix(encoded: bytes) -> str:
    """Return how the name of such a file ends, as `.jpg`; `encoded` is an image of a format that is read."""
    return next(kind.suffix for kind in _FORMATS if kind.magic.match(encoded))


def encoding(encoded: bytes) -> Encoding:
    """Return the lossy codec that an image file's pixels have gone through, or "lossless".

    A TIFF counts as lossless, whatever it holds.
    """
    kind = next((kind for kind in _FORMATS if kind.magic.match(encoded)), None)
    if kind is None or (kind.name == "WebP" and not _is_lossy_webp(encoded)):
        return "lossless"
    return _LOSSY.get(kind.name, "lossless")


def fit(image: Pixels, spec: PreprocessSpec) -> Pixels:
    """Resize and crop, bit for bit as torchvision's Resize and CenterCrop do with PIL images of up to 8:1.

    Args:
        image: uint8 (H, W, 3).
        spec: size, resize rule and interpolation.

    Returns:
        uint8 (spec.height, spec.width, 3); `image` itself if it has this size, so that to fit twice changes nothing.
    """
    return _fit(image, (0, 0, image.shape[1], image.shape[0]), spec)


def _fit(image: Pixels, box: Box, spec: PreprocessSpec) -> Pixels:
    """Fit the part of the image inside the box, whose edges need not be whole pixels."""
    if image.shape == (spec.height, spec.width, 3):
        return image
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    size = (spec.width, spec.height)
    if spec.resize_to is not None:
        across, down = min(width, _MAX_RATIO * height), min(height, _MAX_RATIO * width)
        left, top = left + (width - across) / 2, top + (height - down) / 2
        box = (left, top, left + across, top + down)
        longer = int(spec.resize_to * max(across, down) / min(across, down))
        size = (spec.resize_to, longer) if across <= down else (longer, spec.resize_to)
    resampling = Image.Resampling[spec.interpolation.upper()]
    resized = np.asarray(Image.fromarray(image).resize(size, resampling, box))
    y, x = round((size[1] - spec.height) / 2), round((size[0] - spec.width) / 2)
    return resized[y : y + spec.height, x : x + spec.width].copy()


class _Source(io.BytesIO):
    """Bytes that may be read only so often: millions of tiny chunks would hold the interpreter for a minute."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > _MAX_READS:
            raise CorruptImageError(f"the image is in over {_MAX_READS:,} pieces, more than are read; save it again")
        return super().read(size)


class _Jpeg(JpegImageFile):
    """A JPEG, or the first image of an MPO, whose EXIF is not parsed for a resolution that nobody asks for."""

    def _read_dpi_from_exif(self) -> None:
        """Do nothing: the parser takes longer than a small image's pixels, and warns of broken EXIF."""


class _Png(PngImageFile):
    """A PNG whose transparent colour is scaled to 8 bits as its samples are; Pillow compares it unscaled."""

    def _open(self) -> None:
        super()._open()
        key, depth = self.info.get("transparency"), self.tile[0].args
        if isinstance(key, int) and depth in ("L;2", "L;4"):
            self.info["transparency"] = (key & 3) * 85 if depth == "L;2" else (key & 15) * 17
        elif isinstance(key, tuple) and depth == "RGB;16B":
            self.info["transparency"] = tuple(sample >> 8 for sample in key)


class _Format(NamedTuple):
    name: str
    suffix: str
    magic: re.Pattern[bytes]
    file: Callable[[io.BytesIO], ImageFile]
    # Peak, result included, measured over modes and bit depths and rounded up; 4 are Pillow's pixels, 3 the result's.
    bytes_per_pixel: int


_FORMATS = (
    _Format("JPEG", ".jpg", re.compile(rb"\xff\xd8\xff"), _Jpeg, 8),
    _Format("PNG", ".png", re.compile(rb"\x89PNG\r\n\x1a\n"), _Png, 8),
    _Format("WebP", ".webp", re.compile(rb"RIFF.{4}WEBP", re.DOTALL), WebPImageFile, 20),
    _Format("GIF", ".gif", re.compile(rb"GIF8[79]a"), GifImageFile, 8),
    _Format("BMP", ".bmp", re.compile(rb"BM"), BmpImageFile, 8),
    _Format("TIFF", ".tiff", re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile, 13),
    _Format("AVIF", ".avif", re.compile(rb".{4}ftyp(avi|m[is]f1.{0,64}avi)[fs]", re.DOTALL), AvifImageFile, 20),
    _Format("JPEG 2000", ".jp2", re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  "), Jpeg2KImageFile, 25),
)
_ANY_MAGIC = re.compile(b"|".join(kind.magic.pattern for kind in _FORMATS), re.DOTALL)


_LOSSY: dict[str, Encoding] = {"JPEG": "jpeg", "WebP": "webp", "AVIF": "avif", "JPEG 2000": "jpeg2000"}


def _is_lossy_webp(encoded: bytes) -> bool:
    """Tell by the first chunk; one with metadata, transparency or frames has the pixels in a later one."""
    return encoded[12:16] == b"VP8 " or (encoded[12:16] == b"VP8X" and b"VP8 " in encoded)


def _decode(encoded: bytes, limits: DecodeLimits, at_least: int | None) -> tuple[Pixels, Box]:
    """Decode; the box is the part of the pixels that the image covers: a scaled JPEG's last row and column overhang."""
    kind = _sniff(encoded, limits)
    with _refusing(f"the {kind.name} image of {len(encoded):,} bytes"):
        pixels, box, orientation = _read(kind, encoded, limits, at_least)
    return upright(pixels, box, orientation)


def _read(kind: _Format, encoded: bytes, limits: DecodeLimits, at_least: int | None) -> tuple[Pixels, Box, int]:
    if kind.name == "JPEG" and (small := _read_small_jpeg(encoded, limits, at_least)):
        return small
    image = kind.file(io.BytesIO(encoded) if len(encoded) < _MANY_BYTES else _Source(encoded))
    stored = _check_pixels(image, limits)
    drafted = image.draft(None, (at_least, at_least)) if at_least else None
    box = drafted[1] if drafted else (0, 0, *image.size)
    _check_memory(image, stored, kind.bytes_per_pixel, limits)
    image.load()
    return _to_rgb(image), box, read_orientation(image.info.get("exif"))


def _read_small_jpeg(encoded: bytes, limits: DecodeLimits, at_least: int | None) -> tuple[Pixels, Box, int] | None:
    """Read as `_read` goes on to, in half the time; None leaves it to that to read the image, or to refuse it."""
    header = small_jpeg.read_header(encoded)
    if header is None or limits.max_memory_bytes < small_jpeg.MAX_MEMORY_BYTES:
        return None
    width, height, exif = header
    if width * height > limits.max_pixels or (at_least and min(width, height) >= 2 * at_least):
        return None
    pixels = small_jpeg.decode(encoded, header)
    return None if pixels is None else (pixels, (0, 0, width, height), read_orientation(exif))


def _sniff(encoded: bytes, limits: DecodeLimits) -> _Format:
    """Find the format by the first bytes, and check what can be checked without its parser."""
    if not encoded:
        raise EmptyImageError("the image has 0 bytes; send the content of an image file")
    if len(encoded) > limits.max_bytes:
        raise ImageTooLargeError(f"the image has {len(encoded):,} bytes, allowed are {limits.max_bytes:,}; shrink it")
    kind = next((kind for kind in _FORMATS if kind.magic.match(encoded)), None)
    if kind is None:
        raise UnsupportedImageError(
            f"the content begins with the bytes {encoded[:8].hex(' ')}, which is no image of a format that is read; "
            f"send one of {', '.join(kind.name for kind in _FORMATS)}"
        )
    if kind.name == "JPEG" and max(encoded.count(b"\xff\xda"), encoded.count(b"Exif\0\0")) > _MAX_JPEG_PARTS:
        raise CorruptImageError(f"the JPEG image has over {_MAX_JPEG_PARTS} scans or EXIF blocks; save it again")
    return kind


@contextmanager
def _refusing(subject: str) -> Iterator[None]:
    """Turn whatever Pillow and its codecs raise into an ImageError; a dozen types are known, no list is complete."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        reason = str(err).partition(",")[0]
        raise TooManyPixelsError(f"{subject} announces too many pixels: {reason}; scale it down") from err
    except MemoryError as err:
        raise TooManyPixelsError(f"{subject} needs more memory than there is; scale it down") from err
    except Exception as err:
        raise CorruptImageError(
            f"{subject} is truncated, damaged or of a kind that is not read; send the whole file, or save it again"
        ) from err


def _check_pixels(image: ImageFile, limits: DecodeLimits) -> int:
    """Return the pixels that the decoder allocates for: the image's, or one tile's of a TIFF, which may be larger."""
    stored = image.width * image.height
    if isinstance(image, TiffImageFile):
        stored = max(stored, int(image.tag_v2.get(TILEWIDTH, 0)) * int(image.tag_v2.get(TILELENGTH, 0)))
    allowed = limits.max_pixels
    if isinstance(image, BmpImageFile) and image.info["compression"] in (1, 2):
        allowed = min(allowed, _MAX_RLE_PIXELS)
    if stored > allowed or max(image.size) > _MAX_SIDE:
        raise TooManyPixelsError(
            f"the {image.format} image is {image.width:,} x {image.height:,} and holds {stored:,} pixels at once; "
            f"allowed are {allowed:,}, and {_MAX_SIDE:,} a side; scale it down"
        )
    return stored


def _check_memory(image: ImageFile, stored: int, bytes_per_pixel: int, limits: DecodeLimits) -> None:
    memory = bytes_per_pixel * stored
    if isinstance(image, JpegImageFile):
        # libjpeg may hold all coefficients, 2 bytes each, whatever the scale of the pixels.
        samples = [vertical * horizontal for _, vertical, horizontal, _ in image.layer]
        memory = 2 * stored * sum(samples) // max(samples) + bytes_per_pixel * image.width * image.height
    if memory > limits.max_memory_bytes:
        raise TooManyPixelsError(
            f"the {image.format} image holds {stored:,} pixels, whose decoding may take {memory >> 20:,} MiB; "
            f"allowed are {limits.max_memory_bytes >> 20:,} MiB; scale it down"
        )


def _to_rgb(image: ImageFile) -> Pixels:
    """Convert strip by strip."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    convert = _deep_grey(image) if image.mode in ("I", "F") or image.mode.startswith("I;16") else _colour
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        # A resize to the same size is a crop; Image.crop asks Image.MAX_IMAGE_PIXELS.
        strip = image if rows >= height else image.resize((width, box[3] - top), Image.Resampling.NEAREST, box)
        pixels[top : box[3]] = convert(strip)
    return pixels


def _colour(image: Image.Image) -> Pixels:
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGB", image.size, "white")
        paper.paste(image, mask=image)
        return np.asarray(paper)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _deep_grey(image: ImageFile) -> Callable[[Image.Image], Pixels]:
    """Make the conversion for samples of more than 8 bits, which Pillow's own would clip and never invert."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    shift = 4 if tags.get(BITSPERSAMPLE) == (12,) else 8
    white = 1.0 if image.mode == "F" else 65_535
    transparent = image.info.get("transparency")

    def convert(strip: Image.Image) -> Pixels:
        samples = np.asarray(strip)
        low, high = samples.min(), samples.max()
        if not (low >= 0 and high <= white):  # true also of NaN
            raise UnsupportedImageError(
                f"the {image.format} image has samples from {low} to {high}, allowed are 0 to {white}; scale them"
            )
        grey = (np.rint(samples * 255) if image.mode == "F" else samples >> shift).astype(np.uint8)
        if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:
            grey = ~grey
        if transparent is not None:
            grey[samples == transparent] = 255
        return grey[:, :, None]

    return convert
