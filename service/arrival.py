"""What the connection knows of a request, and the application can't see: when it was whole, whether its client left."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from starlette.requests import HTTPConnection

from service.errors import ClientLeftError

T = TypeVar("T")
_KEY = "arrival"


@dataclass
class Arrival:
    """One request's coming.

    `whole_at` is the `time.monotonic()` at which all of it was here; None if it is read while it is served.
    """

    whole_at: float | None = None
    _left: bool = False
    _tell: Callable[[], object] | None = field(default=None, repr=False)

    def leave(self) -> None:
        """Note that the client has left."""
        self._left = True
        if self._tell is not None:
            self._tell()

    async def while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`; cancel it if the client leaves, so that what it queued is never computed.

        Who left before, the body's reader has found out.

        Raises:
            ClientLeftError: it has left.
        """
        asking = cast("asyncio.Task[Any]", asyncio.current_task())
        self._tell = asking.cancel
        try:
            return await work
        except asyncio.CancelledError:
            if not self._left:  # it is the server that stops
                raise
            asking.uncancel()
            raise ClientLeftError("the client left before the answer") from None
        finally:
            self._tell = None


def announce(scope: Any, arrival: Arrival) -> None:
    """Hand it to whoever is asked about the request of an ASGI scope."""
    scope["state"][_KEY] = arrival


def arrival_of(request: HTTPConnection) -> Arrival:
    """Return what is known of a request's coming; nothing, behind another server's protocol."""
    found = request.scope.get("state", {}).get(_KEY)
    return found if isinstance(found, Arrival) else Arrival()
