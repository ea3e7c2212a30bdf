"""What the routes of one server share."""

from dataclasses import dataclass

from starlette.requests import Request

from service.bodies import PendingBytes
from service.decoding import Decoder
from service.metrics import Metrics
from service.models import Models
from service.settings import Settings


@dataclass
class State:
    """One server's parts; `models` is replaced as a whole, `draining` is set once."""

    settings: Settings
    metrics: Metrics
    models: Models
    decoder: Decoder
    pending: PendingBytes
    draining: bool = False


def state_of(request: Request) -> State:
    """Return the state of the server that got a request."""
    state: State = request.app.state.service
    return state
