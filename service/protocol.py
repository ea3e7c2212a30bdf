"""HTTP/1.1 on a connection: uvicorn's protocol, with bounds on requests and on their heads, and deaf to upgrades."""

import re
import time
from asyncio import Task, TimerHandle, Transport
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.admission import Admission
from service.arrival import Arrival, announce
from service.turning_away import TurningAway

MAX_HEAD_BYTES = 64 * 1024
"""Of a head, and of whatever else comes without a byte of a body: trailers, what a chunk says beside its size."""
HEAD_TIMEOUT_S = 30.0
"""For a head, and for the rest of a body whose request is answered already."""
SMALL_BYTES = 32 * 1024
"""Of a body; the protocol below holds twice as much before it stops reading."""
UNREAD_S = 30.0
"""How long a client may take nothing of an answer that waits for it; it would hold its place, and memory, for ever."""
WHOLE_S = 0.05
"""How long a small body is waited for. Clients send it with the head, if often in a packet of its own."""
_UPGRADE = re.compile(rb"\nupgrade:", re.IGNORECASE)
_HEAD_END = re.compile(rb"\n\r?\n")
_UNSURE = (b"upgrade:", b"\r")
"""Lines that say what is to be done only once they are whole."""
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass
class _Request:
    """A request whose head is here: what answers it, by which application, and what waits for its body."""

    cycle: RequestResponseCycle
    app: ASGI3Application
    arrival: Arrival
    timer: TimerHandle | None = None


class Protocol(HttpToolsProtocol):
    """Closes connections whose request line and headers are endless, in bytes or in time, or whose answer is not read.

    A request that offers an upgrade (`curl --http2`, Java's client) is served as HTTP/1.1, as RFC 9110 allows: the
    parser below would take its body for the other protocol, so the offer is renamed before it gets there.

    A POST whose small body comes with it is admitted, waits or is turned away, once it is whole. Any other request is
    served at once: it holds no place while its client is slow, and what it takes is bounded elsewhere.
    """

    def __init__(self, *args: Any, admission: Admission, turning_away: TurningAway, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._admission = admission
        self._turning_away = turning_away
        self._held: _Request | None = None
        self._serving: _Request | None = None
        self._is_receiving = False
        self._bytes_beside_bodies = 0
        self._in_head = True
        self._begun_line = b""
        self._late: TimerHandle | None = None
        self._unread: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Start the clock for the first request's head."""
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks and tell who serves; a client that has left in its body is served, and so counted."""
        self._stop_clock()
        self._stop_waiting_for_its_reading()
        if self._serving is not None:  # the protocol below tells the last request of a pipeline alone
            self._serving.cycle.disconnected = not self._serving.cycle.response_complete
            self._serving.cycle.message_event.set()
        super().connection_lost(exc)
        if self._held is not None:
            self._serve_held()
        if self._serving is not None:
            self._serving.arrival.leave()

    def data_received(self, data: bytes) -> None:
        """Take what came, and give up on what grows without end."""
        self._bytes_beside_bodies += len(data)
        if self._in_head:
            data = self._without_upgrade(data)
        self._is_receiving = True
        super().data_received(data)
        self._is_receiving = False
        if self._held is not None:
            self._consider(self._held)
        if self._bytes_beside_bodies > MAX_HEAD_BYTES:
            if self._in_head:
                self.transport.write(_TOO_LARGE)
            self.transport.close()
        elif self._waits_without_a_clock:
            self._start_clock()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; not a trailer, which is none and which nothing here reads (RFC 9110, 6.5.1)."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head, self._bytes_beside_bodies = False, 0
        self._stop_clock()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Some of the body is here."""
        self._bytes_beside_bodies = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """What comes next is another head; a connection whose request was answered before its end is idle from now."""
        self._in_head, self._bytes_beside_bodies = True, 0
        super().on_message_complete()
        if self.cycle.response_complete and self.timeout_keep_alive_task is None:
            self._stop_clock()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """An answer is written; nothing more is read while requests that were read wait for theirs."""
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()

    def pause_writing(self) -> None:
        """More of an answer waits than the client takes."""
        super().pause_writing()
        self._wait_for_its_reading()

    def resume_writing(self) -> None:
        """The client has taken it."""
        super().resume_writing()
        self._stop_waiting_for_its_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Hold a request until its body is here, or is not to be waited for."""
        self._held = _Request(cycle, app, Arrival())
        if not self._is_receiving:  # later: a pipeline of requests that are all turned away would recurse
            self.loop.call_soon(self._consider, self._held)

    def _consider(self, held: "_Request") -> None:
        cycle = held.cycle
        if held is not self._held:
            return
        if cycle.scope["method"] != "POST" or cycle.waiting_for_100_continue or len(cycle.body) > SMALL_BYTES:
            self._serve_held()
        elif not cycle.more_body:
            self._release()
            held.arrival.whole_at = time.monotonic()
            if not self._admission.enter(partial(self._serve, held)):
                self._turn_away(cycle)
        elif held.timer is None:
            held.timer = self.loop.call_later(WHOLE_S, self._serve_held)

    def _release(self) -> "_Request":
        held, self._held = cast("_Request", self._held), None
        if held.timer is not None:
            held.timer.cancel()
        return held

    def _serve_held(self) -> None:
        """Serve a request outside of the places."""
        held = self._release()
        self._announce(held)
        super()._start_asgi_task(held.cycle, held.app)

    def _serve(self, held: _Request) -> None:
        self._announce(held)
        task = self.loop.create_task(held.cycle.run_asgi(held.app))
        self.tasks.add(task)
        task.add_done_callback(self._leave)

    def _leave(self, task: "Task[None]") -> None:
        self.tasks.discard(task)
        self._admission.leave()

    def _announce(self, held: _Request) -> None:
        announce(held.cycle.scope, held.arrival)
        self._serving = held

    def _turn_away(self, cycle: RequestResponseCycle) -> None:
        reads = not self.flow.write_paused  # else refusals would pile up
        scope, keep_alive = cast(Scope, cycle.scope), cycle.keep_alive and reads and not self._turning_away.draining
        answer = self._turning_away.answer(scope, self._admission.retry_after_s, keep_alive=keep_alive)
        line, headers = answer.split(b"\r\n", 1)
        shared = [b"%b: %b" % header for header in self.server_state.default_headers]
        self.transport.write(b"\r\n".join([line, *shared, headers]))
        if not keep_alive:
            self.transport.close()
        cycle.response_complete = True
        self.on_response_complete()

    def _without_upgrade(self, data: bytes) -> bytes:
        """Rename the offer in the part of `data` that is a request's head.

        A line that has only begun, and may become the offer or the end of the head, has to wait for its rest.
        """
        data = self._begun_line + data
        whole, last = _HEAD_END.search(data), data.rfind(b"\n")
        begun = not whole and last >= 0 and any(line.startswith(data[last + 1 :].lower()) for line in _UNSURE)
        end = whole.start() if whole else last if begun else len(data)
        self._begun_line = data[end:] if begun else b""
        return _UPGRADE.sub(b"\nx-upgrade:", data[:end]) + (data[end:] if whole else b"")

    def _wait_for_its_reading(self) -> None:
        self._unread = self.loop.call_later(UNREAD_S, self._require_reading, self.transport.get_write_buffer_size())

    def _require_reading(self, unread: int) -> None:
        if self.transport.get_write_buffer_size() < unread:
            self._wait_for_its_reading()
        else:
            self.transport.abort()  # close would wait for it to be read

    def _stop_waiting_for_its_reading(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    @property
    def _waits_without_a_clock(self) -> bool:
        """Whether the client alone can go on: no answer is due, and it has begun what the next one is to."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and self._late is None and self.timeout_keep_alive_task is None

    def _start_clock(self) -> None:
        self._late = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _stop_clock(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
