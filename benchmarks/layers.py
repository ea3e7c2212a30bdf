"""What a small request costs in Python, layer by layer: CPU time of the whole process, without sockets.

Every application is asked by turns through the server's own protocol (`benchmarks.in_process`). Images are judged by
an engine that answers at once, or by the real one with a runtime that waits as long as a fast device takes and computes
nothing, so that what is left of the engine is its queue, its thread and its verdicts.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import Depends, FastAPI
from fastapi import Request as FastAPIRequest
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.http_requests import as_arrays, as_body, jpegs, sample_images
from benchmarks.in_process import Frontend
from benchmarks.spread import spread
from model_store import images
from model_store.networks import NetworkOutput
from service import logs
from service.admission import Admission
from service.app import create_app
from service.batcher import Waited
from service.bodies import read_body
from service.engine import LocalEngine
from service.engine_protocol import Engine, Pixels, Verdict
from service.middleware import RequestScope
from service.schemas import ModelName, Prediction, PredictReply, Timing
from service.served_models import Models
from service.settings import Settings
from service.stages import Stage
from service.state import State
from service.turning_away import TurningAway
from service.watching.class_counts import ClassCounts
from service.watching.expectations import WatchOptions
from service.watching.watch import Watch

FORWARD_S = 0.005
"""A forward pass of the waiting runtime."""
CONNECTIONS = (1, 64)
IMAGES_PER_REQUEST = 64
TIMES = 100
"""What is too short to be told from what is around it is done so often."""
QUEUE_IMAGES = 2 * max(CONNECTIONS) * IMAGES_PER_REQUEST
VERDICT = Verdict(class_id=3, confidence=0.97, negative_energy=12.503654479980469, p_value=0.41, is_ood=False)
SECONDS: dict[Stage, float] = {"decode": 0.0001, "queue": 0.0002, "forward": 0.002, "total": 0.0025}
REPLY_BODY = PredictReply(
    model=ModelName(name="cifar10", version=1, sha256="0" * 64),
    threshold=VERDICT.negative_energy,
    predictions=[Prediction(class_name="cat", **{k: v for k, v in VERDICT._asdict().items() if k != "logits"})],
    timing_ms=Timing(**{stage: 1000 * value for stage, value in SECONDS.items()}),
    request_id="0" * 32,
)
REPLY = REPLY_BODY.model_dump(exclude_none=True)
REPLY_BYTES = to_json(REPLY)
Work = Callable[[Request], Any]


@dataclass(frozen=True)
class Layer:
    """An application that is measured: what it is sent, what it is to answer, and by which engine it judges."""

    name: str
    app: ASGIApp
    request: bytes
    engine: Engine | None = None
    status: int = 200
    turning_away: TurningAway | None = None


class WaitingRuntime:
    """Gives each batch the same logits and features, after FORWARD_S in which it leaves the processor to others."""

    name = "waiting"
    in_flight = 2

    def __init__(self, output: NetworkOutput) -> None:
        self._output = output

    def start(self, batch: Pixels) -> int:
        """Take a batch."""
        return len(batch)

    def finish(self, ticket: int) -> NetworkOutput:
        """Wait for it."""
        time.sleep(FORWARD_S)
        return NetworkOutput(*(tensor[:ticket] for tensor in self._output))


class InstantEngine(LocalEngine):
    """An engine that gives the same verdict at once, without a queue or a thread."""

    async def predict(self, images: Sequence[Pixels], *_: Any, **__: Any) -> Waited[Verdict]:
        """Answer."""
        return Waited([VERDICT] * len(images), SECONDS["queue"], SECONDS["forward"])


async def raw(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with constant bytes: what the protocol costs."""
    await Response(REPLY_BYTES, media_type="application/json")(scope, receive, send)


def on_raw(work: Work) -> ASGIApp:
    """Return an application that does some work before the constant answer."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await work(Request(scope, receive))
        await raw(scope, receive, send)

    return app


def frameworks() -> Iterator[tuple[str, ASGIApp]]:
    """Give applications that answer the same, each written as its framework wants it."""

    async def constant(request: FastAPIRequest) -> Response:  # noqa: ARG001
        return Response(REPLY_BYTES, media_type="application/json")

    async def needs(request: FastAPIRequest) -> str:
        return request.method

    async def depending(needed: Annotated[str, Depends(needs)]) -> Response:  # noqa: ARG001
        return Response(REPLY_BYTES, media_type="application/json")

    async def modelled() -> Any:
        return PredictReply(**REPLY)

    async def dumped(request: FastAPIRequest) -> Response:  # noqa: ARG001
        return Response(PredictReply(**REPLY).model_dump_json(exclude_none=True), media_type="application/json")

    yield "Starlette", Starlette(routes=[Route("/predict", constant, methods=["POST"])])
    for name, endpoint, options in (
        ("FastAPI", constant, {}),
        ("FastAPI, a dependency", depending, {}),
        ("FastAPI, a pydantic model dumped by the endpoint", dumped, {}),
        ("FastAPI, a pydantic model as response_model", modelled, {"response_model": PredictReply}),
    ):
        app = FastAPI()
        app.post("/predict", **options)(endpoint)
        yield name, app


def parts(state: State, engine: Engine, jpeg: bytes) -> Iterator[tuple[str, ASGIApp]]:
    """Give our parts, each alone before the constant answer."""
    spec = engine.bundle.manifest.preprocess
    pixels = [images.load(jpeg, spec)]

    async def read(request: Request) -> None:
        with state.pending.lease() as lease:
            await read_body(request, lease, max_bytes=2**20, timeout_s=30)

    async def as_json(_: Request) -> None:
        to_json(REPLY)

    async def as_model(_: Request) -> None:
        PredictReply(**REPLY).model_dump_json(exclude_none=True)

    async def decode(_: Request) -> None:
        await state.decoder.decode([jpeg], spec)

    async def decode_on_a_thread(_: Request) -> None:
        await state.decoder.run(lambda: images.load(jpeg, spec))

    async def predict(_: Request) -> None:
        await engine.predict(pixels, time.monotonic() + 10)

    async def count(_: Request) -> None:
        engine.count_answered([VERDICT], SECONDS)

    watch, classes = Watch(engine.bundle.manifest, WatchOptions()), ClassCounts(len(engine.bundle.manifest.classes))

    def watch_alone(number: int) -> Work:
        found, energy_buckets = [VERDICT] * number, [20] * number

        async def often(_: Request) -> None:
            for _ in range(TIMES):
                watch.judged([verdict.p_value for verdict in found], energy_buckets)
                classes.count(found)

        return often

    yield "id, token, log line, count", RequestScope(raw, lambda: state)
    yield "reading the body", on_raw(read)
    yield "JPEG decoded at once", on_raw(decode)
    yield "JPEG decoded on a thread", on_raw(decode_on_a_thread)
    yield "queue, engine's thread, verdicts", on_raw(predict)
    yield "metrics of verdicts and stages", on_raw(count)
    yield f"of these, window, alarm and classes, {TIMES} times", on_raw(watch_alone(1))
    yield f"the same of {IMAGES_PER_REQUEST} images, {TIMES} times", on_raw(watch_alone(IMAGES_PER_REQUEST))
    yield "reply as JSON", on_raw(as_json)
    yield "reply as a pydantic model, then JSON", on_raw(as_model)


def whole(app: ASGIApp, engine: Engine, bodies: dict[str, bytes]) -> Iterator[Layer]:
    """Give requests to the whole application."""

    def made(most: int) -> InstantEngine:
        series = app.state.service.metrics.model(engine.bundle.manifest)
        return InstantEngine(engine.bundle, series, max_batch_size=1, max_queue_images=most, stall_s=60)

    instant, full = made(QUEUE_IMAGES), made(0)
    for name, request in bodies.items():
        yield Layer(f"/predict, {name}, engine that answers at once", app, request, instant)
    for name, request in bodies.items():
        yield Layer(f"/predict, {name}, engine that waits", app, request, engine)
    request = next(iter(bodies.values()))
    yield Layer("/predict, refused: the queue is full", app, request, full, status=429)
    turning_away = TurningAway(app.state.service, Admission(served=0, waiting=0))
    yield Layer("/predict, turned away unread", app, request, status=429, turning_away=turning_away)


@contextmanager
def application(model: str) -> Iterator[FastAPI]:
    """Make ours, with a runtime that waits; its log lines are written, and go nowhere."""
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        logs.set_up("info")
        app = create_app(Settings(models=(model,), runtime="torch-eager", max_queue_images=QUEUE_IMAGES))
        state: State = app.state.service
        engine = state.models.engines[0]
        scorer = engine.bundle.predictor.scorer
        side = engine.bundle.manifest.preprocess
        blank = np.zeros((IMAGES_PER_REQUEST, side.height, side.width, 3), np.uint8)
        scorer.runtime = WaitingRuntime(scorer.runtime.finish(scorer.runtime.start(blank)))
        try:
            yield app
        finally:
            engine.close()
            state.decoder.close()


def layers(app: FastAPI) -> list[Layer]:
    """Return all that is measured, the raw application first."""
    state: State = app.state.service
    engine, pixels = state.models.engines[0], sample_images()
    jpeg = jpegs(pixels[:1])[0]
    bodies = {
        "JPEG": as_body([jpeg])[0],
        "npy of 1": as_arrays(pixels, 1)[0],
        f"npy of {IMAGES_PER_REQUEST}": as_arrays(pixels, IMAGES_PER_REQUEST)[0],
    }
    simple = itertools.chain([("raw ASGI application", raw)], frameworks(), parts(state, engine, jpeg))
    return [*(Layer(name, each, bodies["JPEG"]) for name, each in simple), *whole(app, engine, bodies)]


def measure(app: FastAPI, found: Sequence[Layer], rounds: int, requests: int) -> dict[str, dict[int, list[float]]]:
    """Return CPU microseconds a request, by layer, connections and round; a first round warms up and does not count."""
    frontends = [Frontend(layer.app, layer.turning_away) for layer in found]
    results: dict[str, dict[int, list[float]]] = {layer.name: {n: [] for n in CONNECTIONS} for layer in found}
    state: State = app.state.service
    served = state.models
    for turn in range(rounds + 1):
        for layer, frontend in zip(found, frontends, strict=True):
            state.models = Models((layer.engine,)) if layer.engine else served
            for connections in CONNECTIONS:
                spent = frontend.cpu_us(layer.request, status=layer.status, connections=connections, requests=requests)
                if turn:
                    results[layer.name][connections].append(spent)
    state.models = served
    return results


def table(results: dict[str, dict[int, list[float]]]) -> str:
    """Return medians over the rounds with their spread, and what each median is above the raw application's."""
    first = next(iter(results.values()))
    heads = [f"{n} connection{'s' if n > 1 else ''}, us | above raw, us" for n in CONNECTIONS]
    lines = [f"| | {' | '.join(heads)} |", "| --- |" + " --- | --- |" * len(CONNECTIONS)]
    for name, by_connections in results.items():
        cells = [
            f"{spread(values, 0)} | {statistics.median(values) - statistics.median(first[n]):,.0f}"
            for n, values in by_connections.items()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="layers", description=__doc__)
    parser.add_argument("--model", default="cifar10", help="the bundle, of those that ship for 32x32 images")
    parser.add_argument("--rounds", type=int, default=9, help="how often each application has its turn")
    parser.add_argument("--requests", type=int, default=300, help="how many it gets in a turn")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with application(options.model) as app:
        results = measure(app, layers(app), options.rounds, options.requests)
    print(table(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
