"""What travels between a worker and the engine's process: length-prefixed frames, each of a kind and a request.

Both ends are processes of one server, of one version. What clients send is in them as pixels and numbers alone.
"""

import struct
from enum import IntEnum, auto
from typing import NamedTuple

HEADER = struct.Struct("<QBQ")
"""Bytes that follow, kind, request; little-endian, unpadded."""


class Kind(IntEnum):
    """What a frame says, and which end says it."""

    ASK = auto()
    """Worker: judge these images."""
    CANCEL = auto()
    """Worker: nobody waits for this request any more."""
    COUNTS = auto()
    """Worker: what it has counted; of itself (request 0), or since a FLUSH asks."""
    SCRAPE = auto()
    """Worker: give all metrics."""
    WATCH = auto()
    """Worker: give what is watched of a model, by its name."""
    WELCOME = auto()
    """Engine, first of all: which models there are."""
    STATUS = auto()
    """Engine: how each model does."""
    VERDICTS = auto()
    """Engine: the answer to ASK."""
    REFUSAL = auto()
    """Engine: the error that answers ASK."""
    FLUSH = auto()
    """Engine: send COUNTS now."""
    METRICS = auto()
    """Engine: the answer to SCRAPE."""
    WATCHED = auto()
    """Engine: the answer to WATCH."""


class Frame(NamedTuple):
    """One of them; request 0 is none."""

    kind: Kind
    request: int
    payload: bytes


def pack(kind: Kind, request: int, size: int) -> bytes:
    """Return what stands before a payload of `size` bytes."""
    return HEADER.pack(size, kind, request)


class FrameReader:
    """Cuts a stream into frames, however it comes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take what came; return the frames that are whole now.

        Raises:
            ValueError: a kind that there is not.
        """
        self._buffer += data
        frames, at, end = [], 0, len(self._buffer)
        with memoryview(self._buffer) as view:
            while end - at >= HEADER.size:
                size, kind, request = HEADER.unpack_from(view, at)
                after = at + HEADER.size + size
                if after > end:
                    break
                frames.append(Frame(Kind(kind), request, bytes(view[at + HEADER.size : after])))
                at = after
        del self._buffer[:at]
        return frames
