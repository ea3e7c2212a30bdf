"""What the routes of one server share."""

from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request

from service.admission import Admission
from service.bodies import PendingBytes
from service.capture.capture import Capture
from service.decoding import Decoder
from service.schemas import WatchReply
from service.served_models import Models
from service.settings import Settings


class RequestMetrics(Protocol):
    """Where requests are counted."""

    def count_request(self, path: str, status: int, code: str | None) -> None:
        """Count a request that was answered; `code` is that of its error."""

    async def exposition(self) -> bytes:
        """Return every metric of the server as Prometheus reads it."""

    async def watched(self, name: str) -> WatchReply:
        """Return what is watched of a model that is served, `name@version`."""


@dataclass
class State:
    """One server's parts; `models` is replaced as a whole, `draining` is set once."""

    settings: Settings
    metrics: RequestMetrics
    models: Models
    decoder: Decoder
    pending: PendingBytes
    admission: Admission
    capture: Capture | None = None
    draining: bool = False


def state_of(request: Request) -> State:
    """Return the state of the server that got a request."""
    state: State = request.app.state.service
    return state
