"""The answer to a request that is turned away unread: any refusal's, counted as one, made of parts that are kept.

What overload costs is the refusals; the application's own way to one takes six times as long (`benchmarks.layers`).
"""

import asyncio
import logging
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from service.admission import Admission
from service.cors import cors
from service.errors import LineFullError, answer_for
from service.middleware import error_reply, request_id_of
from service.open_inference.errors import ROOT, speaks, without_slash
from service.state import State

TELL_S = 1.0
"""The log gets a line for all that were turned away in so long; one for each would cost more than its refusal."""
_ID = "the-request-id"
log = logging.getLogger("service.access")


class _Parts(NamedTuple):
    """An answer without what differs from request to request; the body is to be joined by the request's id."""

    head: bytes
    body: list[bytes]


class TurningAway:
    """Refuses requests for a server whose places are taken and whose line is full."""

    def __init__(self, state: State, admission: Admission) -> None:
        self._state = state
        self._full = f"{admission.served} requests are being served and {admission.waiting} wait, which is all that may"
        self._answer = answer_for(LineFullError(""))
        self._parts = lru_cache(maxsize=64)(self._make_parts)
        self._cors = cors(_nothing, state.settings)
        self._untold = 0

    @property
    def draining(self) -> bool:
        """Whether clients are to look for another server."""
        return self._state.draining

    def answer(self, scope: Scope, retry_after_s: int, *, keep_alive: bool) -> bytes:
        """Count a request; return its response, from the status line on, without the headers that every response has.

        scope: the request's, as ASGI has it.
        """
        headers, path = Headers(scope=scope), scope["path"]
        parts, name = self._parts(speaks(path), retry_after_s), request_id_of(headers).encode()
        body = name.join(parts.body)
        self._count(without_slash(path))
        return b"%bcontent-length: %d\r\nx-request-id: %b\r\n%b%b\r\n%b" % (
            parts.head,
            len(body),
            name,
            self._for_origin(headers.get("origin")),
            b"" if keep_alive else b"connection: close\r\n",
            body,
        )

    def _make_parts(self, open_inference: bool, retry_after_s: int) -> _Parts:
        request = Request({"type": "http", "path": ROOT if open_inference else "/", "headers": []})
        request.state.request_id = _ID
        error = LineFullError(f"{self._full}; try again in {retry_after_s} s", retry_after_s)
        reply = error_reply(request, error)
        lines = [b"HTTP/1.1 %d %b" % (reply.status_code, HTTPStatus(reply.status_code).phrase.encode())]
        lines += [b"%b: %b" % header for header in reply.raw_headers if header[0] != b"content-length"]
        return _Parts(b"\r\n".join([*lines, b""]), bytes(reply.body).split(_ID.encode()))

    def _for_origin(self, origin: str | None) -> bytes:
        if self._cors is None or origin is None or not self._cors.is_allowed_origin(origin):
            return b""
        headers = MutableHeaders(self._cors.simple_headers)
        self._cors.allow_explicit_origin(headers, origin)
        return b"".join(b"%b: %b\r\n" % header for header in headers.raw)

    def _count(self, path: str) -> None:
        self._state.metrics.count_request(path, self._answer.status, self._answer.code)
        if not self._untold:
            asyncio.get_running_loop().call_later(TELL_S, self._tell)
        self._untold += 1

    def _tell(self) -> None:
        log.warning("requests turned away", extra={"requests": self._untold, "code": self._answer.code})
        self._untold = 0


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand for the application, which an answer here has none of."""
