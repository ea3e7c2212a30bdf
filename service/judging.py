"""The way of a request that asks for verdicts: body -> pixels -> queue -> verdicts, within its deadline.

What a body looks like is the route's affair, and so is the reply.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from starlette.requests import Request

from service.arrival import arrival_of
from service.batcher import Waited
from service.bodies import Lease, read_body
from service.capture.capture import Answered
from service.engine_protocol import Engine, Pixels, Verdict
from service.errors import InvalidHeaderError, late
from service.stages import Stage
from service.state import state_of
from service.tracing import trace_of

DEADLINE_HEADER = "x-deadline-ms"


@dataclass(frozen=True)
class Question:
    """What a request asks: uint8 (H, W, 3) an image, fitted to the model, and what is wanted beside the verdicts.

    `sent` are the files that the images came in, none if they came as pixels.
    """

    pixels: Sequence[Pixels]
    sent: Sequence[bytes] = ()
    all_scores: bool = False
    logits: bool = False


Q = TypeVar("Q", bound=Question)


@dataclass(frozen=True)
class Judged(Generic[Q]):
    """A question, its verdicts in order, and the seconds that each stage took."""

    question: Q
    verdicts: list[Verdict]
    seconds: dict[Stage, float]


async def judge(
    request: Request,
    engine: Engine,
    read: Callable[[bytes, Lease], Awaitable[Q]],
    *,
    encodings: Sequence[str] = (),
) -> Judged[Q]:
    """Read a request's body, judge its images by an engine, and count them.

    Args:
        request: its body is not read yet.
        engine: the model's.
        read: makes the question of the body as it came; what it holds beside the body it adds to the lease.
        encodings: compressions that the body may have; `read` undoes them.

    Raises:
        ServiceError: whatever stands in the way, from the headers to the engine.
    """
    state, arrival = state_of(request), arrival_of(request)
    settings = state.settings
    budget_s = _budget_s(request, settings.deadline_s)
    engine.require_room()
    with state.pending.lease() as lease:
        body = await read_body(
            request,
            lease,
            max_bytes=settings.max_request_bytes,
            timeout_s=settings.body_timeout_s if arrival.whole_at is None else None,
            encodings=encodings,
        )
        begun = time.monotonic()
        arrived = arrival.whole_at or begun
        work = _ask(engine, lambda: read(body, lease), arrived + budget_s)
        question, waited, decode_s = await arrival.while_connected(work)
    seconds: dict[Stage, float] = {
        "decode": decode_s,
        "queue": begun - arrived + waited.queue_s,
        "forward": waited.forward_s,
        "total": time.monotonic() - arrived,
    }
    engine.count_answered(waited.results, seconds)
    if (trace := trace_of(request)) is not None:
        trace.judged(engine.name, len(waited.results), arrived, seconds)
    if state.capture is not None:
        answered = Answered(request.state.request_id, waited.results, question.sent, question.pixels)
        state.capture.offer(engine.bundle, answered)
    return Judged(question, waited.results, seconds)


async def _ask(engine: Engine, read: Callable[[], Awaitable[Q]], deadline: float) -> tuple[Q, Waited[Verdict], float]:
    begun = time.monotonic()
    try:
        async with asyncio.timeout(deadline - begun):
            question = await read()
            decode_s = time.monotonic() - begun
            waited = await engine.predict(
                question.pixels, deadline, all_scores=question.all_scores, logits=question.logits
            )
            return question, waited, decode_s
    except TimeoutError:
        raise late(engine.name) from None


def _budget_s(request: Request, longest: float) -> float:
    text = request.headers.get(DEADLINE_HEADER)
    if text is None:
        return longest
    try:
        wanted = float(text) / 1000
    except ValueError:
        wanted = math.nan
    if not (math.isfinite(wanted) and wanted > 0):
        raise InvalidHeaderError(f"X-Deadline-Ms is {text[:40]!r}; it must be a number above 0, in milliseconds")
    return min(wanted, longest)
