"""A body that is a NumPy .npy file -> uint8 (N, H, W, 3), a view of the body. Nothing in it is ever unpickled."""

import math
import re
import struct

import numpy as np
from numpy.typing import NDArray

from model_store.manifest import PreprocessSpec
from service.bodies import check_count
from service.errors import MalformedArrayError, UnfitArrayError

MEDIA_TYPE = "application/x-npy"
MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 4096
"""NumPy's own headers have 118; version 2 of the format could announce 4 GiB."""
_QUOTED = 120
# What stands between tokens in Python, as which NumPy reads a header: no vertical tab.
_GAP = r"[ \t\n\r\f]*+"
_TUPLE = r"\([\d \t\n\r\f,]*+\)"
_ENTRY = rf"""['"](descr|fortran_order|shape)['"]{_GAP}:{_GAP}('[^'"\\]*+'|"[^'"\\]*+"|True|False|{_TUPLE}){_GAP}"""
_HEADER = re.compile(rf"{_GAP}{{{_GAP}{_ENTRY},{_GAP}{_ENTRY},{_GAP}{_ENTRY},?+{_GAP}}}{_GAP}", re.ASCII)
_SHAPE = re.compile(rf"\((?:{_GAP}\d{{1,10}}{_GAP},)*+(?:{_GAP}\d{{1,10}})?+{_GAP}\)", re.ASCII)
_UINT8 = re.compile(r"[|<>=]?u1")


def looks_like_array(body: bytes) -> bool:
    """Return whether the first bytes are those of an .npy file."""
    return body.startswith(MAGIC)


def read_array(body: bytes, spec: PreprocessSpec, *, max_images: int) -> NDArray[np.uint8]:
    """Return the images of an .npy file, uint8 (N, H, W, 3) with N >= 1, of the model's own size; nothing is copied.

    The header is parsed by its grammar, not as Python.

    Args:
        body: a whole file, of version 1, 2 or 3, in C order: uint8 (N, H, W, 3), or (H, W, 3) of one image.
        spec: what the model's images are fitted to; pixels that come as such are not.
        max_images: most images that it may hold.

    Raises:
        MalformedArrayError: it is no such file, or has fewer or more bytes than its header says.
        UnfitArrayError: it has another dtype, order or shape.
        ServiceError: it holds no images or too many.
    """
    header, data_at = _split(body)
    descr, fortran_order, shape = _parse(header, spec)
    if not _UINT8.fullmatch(descr):
        raise UnfitArrayError(_unfit_dtype(descr))
    if shape[-3:] != (spec.height, spec.width, 3) or len(shape) not in (3, 4):
        raise UnfitArrayError(
            f"the array is uint8 {shape}; it must be (N, {spec.height}, {spec.width}, 3), or "
            f"({spec.height}, {spec.width}, 3) of one image: resize first, or send encoded images"
        )
    if fortran_order:
        raise UnfitArrayError("the array is in Fortran order; save numpy.ascontiguousarray(images)")
    check_count(shape[0] if len(shape) == 4 else 1, max_images)
    expected, found = math.prod(shape), len(body) - data_at
    if found != expected:
        fault = "it is truncated" if found < expected else "something follows it"
        raise MalformedArrayError(f"the array {shape} has {expected:,} bytes, the body brings {found:,}: {fault}")
    return np.frombuffer(body, np.uint8, offset=data_at).reshape(-1, *shape[-3:])


def _split(body: bytes) -> tuple[str, int]:
    """Return the header's text and where the data begin."""
    if not looks_like_array(body):
        raise MalformedArrayError(f"the body begins with the bytes {body[:8].hex(' ')}, which is no .npy file")
    version = body[len(MAGIC) : len(MAGIC) + 2]
    if version not in (b"\1\0", b"\2\0", b"\3\0"):
        raise MalformedArrayError(f"the .npy file is of version {list(version)}; read are [1, 0], [2, 0] and [3, 0]")
    length = struct.Struct("<H" if version == b"\1\0" else "<I")
    begin = len(MAGIC) + 2 + length.size
    if len(body) < begin:
        raise MalformedArrayError(f"the .npy file ends within its header, after {len(body)} bytes")
    (size,) = length.unpack_from(body, len(MAGIC) + 2)
    if size > _MAX_HEADER_BYTES:
        raise MalformedArrayError(f"the .npy header has {size:,} bytes, allowed are {_MAX_HEADER_BYTES:,}")
    if len(body) < begin + size:
        raise MalformedArrayError(f"the .npy file ends within its header, after {len(body)} bytes")
    return body[begin : begin + size].decode("latin-1"), begin + size


def _parse(header: str, spec: PreprocessSpec) -> tuple[str, bool, tuple[int, ...]]:
    match = _HEADER.fullmatch(header)
    entries = dict(zip(match.groups()[::2], match.groups()[1::2], strict=True)) if match else {}
    descr, order, shape = (entries.get(name, "") for name in ("descr", "fortran_order", "shape"))
    if descr[:1] not in ("'", '"') or order not in ("True", "False") or not _SHAPE.fullmatch(shape):
        raise MalformedArrayError(
            f"the .npy header is {header[:_QUOTED].strip()!r}; it must be like {{'descr': '|u1', "
            f"'fortran_order': False, 'shape': (8, {spec.height}, {spec.width}, 3)}}"
        )
    sides = tuple(int(side) for side in shape[1:-1].split(",") if side.strip())
    return descr[1:-1], order == "True", sides


def _unfit_dtype(descr: str) -> str:
    if descr.lstrip("|<>=").startswith("O"):
        return "the array holds Python objects, which are pickles and never read; send uint8"
    return f"the array is of dtype {descr[:_QUOTED]!r}; send '|u1', uint8 pixels from 0 to 255"
