"""The rows of an .npy, one after the other: np.load reads a member of an .npz whole."""

import math
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

BLOCK_BYTES = 32 * 2**20
"""Rows are put in order this much at a time, where they do not lie one after the other."""
_HEADER_READERS = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
    (3, 0): npy_format.read_array_header_2_0,  # the same in UTF-8, for the names of fields
}


class Header(NamedTuple):
    """What an .npy says before its data; in Fortran order the first axis lies innermost."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]


def read_header(file: IO[bytes]) -> Header:
    """Read up to where the data begin.

    Raises:
        ValueError: no .npy, or of a version that numpy does not know.
    """
    version = npy_format.read_magic(file)
    if version not in _HEADER_READERS:
        raise ValueError(f"version {version} of the .npy format; known are {', '.join(map(str, _HEADER_READERS))}")
    return Header(*_HEADER_READERS[version](file))


def read_rows(file: IO[bytes], shape: tuple[int, ...]) -> Iterator[NDArray[np.uint8]]:
    """Yield data uint8 in C order as shape[0] arrays of shape[1:].

    Raises:
        ValueError: the file ends before.
    """
    size = math.prod(shape[1:])
    for _ in range(shape[0]):
        yield np.frombuffer(file.read(size), np.uint8, size).reshape(shape[1:])


def fortran_rows(stored: NDArray[np.uint8], shape: tuple[int, ...]) -> Iterator[NDArray[np.uint8]]:
    """Yield as shape[0] arrays of shape[1:] what `stored`, contiguous and of any shape, holds in Fortran order.

    A row's bytes lie shape[0] apart. Taken in blocks, each page of a memory map is read once a block, not once a row.
    """
    size = math.prod(shape[1:])
    columns = stored.reshape(size, shape[0])
    rows = max(1, BLOCK_BYTES // size)
    for start in range(0, shape[0], rows):
        for row in np.ascontiguousarray(columns[:, start : start + rows].T):
            yield row.reshape(shape[:0:-1]).T
