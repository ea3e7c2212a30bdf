"""A request's body -> encoded images. Three forms: one image as it is, JSON with base64, a multipart form."""

import asyncio
import binascii
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from starlette.requests import ClientDisconnect, Request

from service.errors import (
    BadImageError,
    BodyTimeoutError,
    BodyTooLargeError,
    ClientLeftError,
    EmptyBodyError,
    InvalidBase64Error,
    InvalidFieldError,
    LengthRequiredError,
    MalformedJsonError,
    MalformedMultipartError,
    MemoryFullError,
    TooManyImagesError,
    UnsupportedEncodingError,
)

FIELD = "images"
IDENTITY = "identity"
BASE64 = "RFC 4648, padded, no line breaks, no data: prefix"
_JSON_MARKS = 1000
"""Brackets, commas and colons that JSON may have beside two an image."""
_LONGEST_MEDIA_TYPE = 1000
"""Characters of a Content-Type; a boundary has 70 at most (RFC 2046, 5.1.1)."""
_SHOWN = 10**18
"""A greater number of images is told as more than allowed, not digit by digit."""
_QUOTED = 40
"""Characters of what a client sent that a message may repeat."""


@dataclass
class PendingBytes:
    """The memory for bodies, shared by all requests; one thread uses it."""

    limit: int
    held: int = 0

    @contextmanager
    def lease(self) -> Iterator["Lease"]:
        """Account for one request's body until its answer."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self.held -= lease.bytes


@dataclass
class Lease:
    """What one request holds."""

    pending: PendingBytes
    bytes: int = 0

    def grow(self, to: int) -> None:
        """Hold `to` bytes in all, if more than now.

        Raises:
            MemoryFullError: other requests hold too much.
        """
        more = max(to - self.bytes, 0)
        if self.pending.held + more > self.pending.limit:
            raise MemoryFullError(
                f"bodies of {self.pending.held:,} bytes are being served, {more:,} more are above the "
                f"{self.pending.limit:,} allowed; try again in a second"
            )
        self.pending.held += more
        self.bytes += more


async def read_body(
    request: Request, lease: Lease, *, max_bytes: int, timeout_s: float | None, encodings: Sequence[str] = ()
) -> bytes:
    """Read a body as it was sent, at most `max_bytes`, within `timeout_s`; `encodings` are those it may have.

    timeout_s: None if all of it is here.

    Raises:
        ServiceError: no length, too large, empty, compressed otherwise, incomplete, late, or no memory left for it.
    """
    _require_encoding(request, encodings)
    declared = _declared_length(request)
    if declared is not None and declared > max_bytes:
        raise too_large(declared, max_bytes)
    chunks, received = [], 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                received += len(chunk)
                if received > max_bytes:
                    raise too_large(received, max_bytes)
                lease.grow(received)
                chunks.append(chunk)
    except ClientDisconnect:
        raise ClientLeftError(f"the client left after {received:,} bytes of the body") from None
    except TimeoutError:
        raise BodyTimeoutError(f"{received:,} bytes of the body came in {timeout_s:g} s; send it faster") from None
    if not received:
        raise EmptyBodyError("the body has 0 bytes; /docs shows what can be sent")
    return b"".join(chunks)


def encoded_images(body: bytes, content_type: str, *, max_images: int) -> list[bytes]:
    """Split a body that is no image into encoded images.

    A form is known by its Content-Type, JSON by that or by its first character; anything else is for the decoder to
    refuse.

    Raises:
        ServiceError: the form or JSON is malformed, has other fields, or holds no images or too many.
    """
    media_type, boundary = _media_type(content_type)
    if media_type == "multipart/form-data":
        return _from_multipart(body, boundary, max_images)
    if media_type == "application/json" or re.match(rb"\s*{", body):
        return _from_json(body, max_images)
    return [body]


def content_encoding(request: Request) -> str:
    """Return how a body is compressed, in lower case; `identity` if it is not."""
    return request.headers.get("content-encoding", IDENTITY).lower()


def _require_encoding(request: Request, encodings: Sequence[str]) -> None:
    if (encoding := content_encoding(request)) not in (IDENTITY, *encodings):
        others = f", or compressed by {' or '.join(encodings)}" if encodings else ""
        raise UnsupportedEncodingError(f"Content-Encoding is {encoding[:_QUOTED]!r}; send the body as it is{others}")


def _declared_length(request: Request) -> int | None:
    if "chunked" in request.headers.get("transfer-encoding", "").lower():
        return None
    declared = request.headers.get("content-length")
    if declared is None:
        raise LengthRequiredError("there is neither Content-Length nor Transfer-Encoding: chunked; send a body")
    return int(declared)  # the HTTP parser has refused what is no number


def too_large(found: int, allowed: int) -> BodyTooLargeError:
    """Return the refusal of a body of `found` bytes or more."""
    return BodyTooLargeError(f"the body has {found:,} bytes or more, allowed are {allowed:,}; send fewer images")


def _media_type(content_type: str) -> tuple[str, str]:
    bare = content_type[:_LONGEST_MEDIA_TYPE].partition(";")[0].strip().lower()
    if len(content_type) > _LONGEST_MEDIA_TYPE:  # what parses it takes time by the square of its parts
        return bare, ""
    try:
        message = Message()
        message["content-type"] = content_type
        boundary = message.get_param("boundary", "")
        return message.get_content_type() if content_type else "", boundary if isinstance(boundary, str) else ""
    except (TypeError, ValueError, LookupError):  # what email raises of parameters that contradict RFC 2231
        return bare, ""


def _from_json(body: bytes, max_images: int) -> list[bytes]:
    # The parser holds up every thread while it runs. Base64 has none of these marks, so a good request has few.
    if sum(body.count(mark) for mark in (b"[", b"{", b",", b":")) > _JSON_MARKS + 2 * max_images:
        raise MalformedJsonError("the JSON has more brackets, commas and colons than a list of images can have")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as err:
        raise MalformedJsonError(f"the body is not JSON: {str(err)[:120]}") from None
    if not isinstance(value, dict) or value.keys() != {FIELD}:
        found = sorted(value)[:5] if isinstance(value, dict) else type(value).__name__
        raise InvalidFieldError(f'the JSON has {str(found)[:200]}; it must be {{"{FIELD}": ["<base64>", ...]}}')
    texts = value[FIELD]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InvalidFieldError(f"{FIELD} must be a list of base64 strings")
    check_count(len(texts), max_images)
    return [_from_base64(text, index) for index, text in enumerate(texts)]


def _from_base64(text: str, index: int) -> bytes:
    try:
        return from_base64(text)
    except ValueError as err:
        cause = InvalidBase64Error(f"{FIELD}[{index}] is not base64 ({BASE64}): {err}")
        raise BadImageError(index, cause) from None


def from_base64(text: str) -> bytes:
    """Return what a text in base64 holds.

    Raises:
        ValueError: it is not in BASE64's form; the message says why.
    """
    if not text.isascii():
        raise ValueError("it has characters outside ASCII")
    return binascii.a2b_base64(text, strict_mode=True)


def _from_multipart(body: bytes, boundary: str, max_images: int) -> list[bytes]:
    if not boundary:
        raise MalformedMultipartError("the Content-Type multipart/form-data has no boundary; let the client set it")
    contents = _Form(body, boundary, max_images).contents
    check_count(len(contents), max_images)
    return contents


class _Form:
    """The contents of a multipart form, in order; refused at its first part too many, or of another name."""

    def __init__(self, body: bytes, boundary: str, max_images: int) -> None:
        self.contents: list[bytes] = []
        self._max_images = max_images
        self._pieces: list[bytes] = []
        self._header = b""
        self._value = b""
        self._name: str | None = None
        self._complete = False
        try:
            parser = MultipartParser(
                boundary.encode("latin-1"),
                {
                    "on_part_begin": self._begin,
                    "on_header_begin": self._begin_header,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._end_header,
                    "on_part_data": self._data,
                    "on_part_end": self._end,
                    "on_end": self._finish,
                },
            )
            parser.write(body)
            parser.finalize()
        except (FormParserError, ValueError) as err:
            raise MalformedMultipartError(f"the multipart body is malformed: {str(err)[:120]}") from None
        if not self._complete:
            raise MalformedMultipartError("the multipart body ends before its last boundary; it is truncated")

    def _begin(self) -> None:
        self._pieces, self._name = [], None

    def _begin_header(self) -> None:
        self._header = self._value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            message = Message()
            message["content-disposition"] = self._value.decode("utf-8", "replace")
            try:
                name = message.get_param("name", header="content-disposition")
            except (TypeError, ValueError, LookupError):
                name = None
            self._name = name if isinstance(name, str) else None

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def _end(self) -> None:
        if self._name is None:
            raise MalformedMultipartError("a part of the form has no Content-Disposition with a name")
        if self._name != FIELD:
            raise InvalidFieldError(
                f"the form has a field {self._name[:_QUOTED]!r}; its fields must be named {FIELD!r}"
            )
        self.contents.append(b"".join(self._pieces))
        if len(self.contents) > self._max_images:
            raise _too_many("more", self._max_images)

    def _finish(self) -> None:
        self._complete = True


def check_count(images: int, max_images: int) -> None:
    """Let a request pass that has images, and not too many.

    Raises:
        InvalidFieldError: it has none.
        TooManyImagesError: it has more than allowed.
    """
    if images == 0:
        raise InvalidFieldError(f"{FIELD} is empty; send at least one image")
    if images > max_images:
        raise _too_many(str(images) if images < _SHOWN else "more", max_images)


def _too_many(found: str, allowed: int) -> TooManyImagesError:
    return TooManyImagesError(f"the request has {found} images, allowed are {allowed}; send several requests")
