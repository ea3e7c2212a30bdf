"""Compressed bodies -> what they hold, in pieces, so that one that explodes is refused before it does."""

import zlib
from collections.abc import Awaitable, Callable

from service.bodies import too_large
from service.errors import MalformedCompressionError

_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""RFC 9110: `deflate` is the zlib format."""
ENCODINGS = tuple(_WINDOW_BITS)
_TAKEN_BYTES = 2**18
_GIVEN_BYTES = 2**20


async def inflate(
    body: bytes,
    encoding: str,
    *,
    max_bytes: int,
    run: Callable[[Callable[[], bytes]], Awaitable[bytes]],
    grow: Callable[[int], None],
) -> bytes:
    """Return what a body of one of ENCODINGS holds: one stream, whole, of at most `max_bytes`.

    Args:
        body: the compressed bytes.
        encoding: how, as Content-Encoding names it.
        max_bytes: most that it may hold.
        run: does a piece of work off the event loop.
        grow: told of all bytes that are held, compressed ones included, before there are more; it may refuse.

    Raises:
        BodyTooLargeError: it holds more.
        MalformedCompressionError: it is damaged, ends early or is followed by something.
    """
    stream = zlib.decompressobj(_WINDOW_BITS[encoding])
    pieces: list[bytes] = []
    size, at, rest = 0, 0, b""
    while not stream.eof and (rest or at < len(body)):
        if not rest:
            rest, at = body[at : at + _TAKEN_BYTES], at + _TAKEN_BYTES
        pieces.append(await run(lambda taken=rest: _decompress(stream, taken, encoding)))  # type: ignore[misc]
        size += len(pieces[-1])
        if size > max_bytes:
            raise too_large(size, max_bytes)
        grow(len(body) + size)
        rest = stream.unconsumed_tail
    if not stream.eof:
        raise MalformedCompressionError(f"the {encoding} body of {len(body):,} bytes is truncated")
    if followed := len(stream.unused_data) + max(len(body) - at, 0):
        raise MalformedCompressionError(f"the {encoding} stream is followed by {followed:,} bytes; send one stream")
    return b"".join(pieces)


def _decompress(stream: "zlib._Decompress", taken: bytes, encoding: str) -> bytes:
    try:
        return stream.decompress(taken, _GIVEN_BYTES)
    except zlib.error as err:
        raise MalformedCompressionError(f"the body is not {encoding}: {err}") from None
