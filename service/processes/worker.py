"""An HTTP worker: it reads requests, decodes images, asks the engine's process and replies. It loads no network.

`python -m service.processes.worker DESCRIPTOR`, where the descriptor is that of its channel to the supervisor.
"""

import asyncio
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import FrameType

from fastapi import FastAPI

from service import interpreter, logs
from service.admission import make_admission
from service.app import make_app, route_templates
from service.bodies import PendingBytes
from service.capture.capture import make_capture
from service.counts import Held
from service.decoding import Decoder
from service.errors import NotReadyError, ServiceError, StartError
from service.processes.control import Control, Order, WorkerConfig, revived
from service.processes.frames import Kind
from service.processes.link import EngineLink, connect
from service.processes.loops import loop_factory
from service.processes.remote_engine import SILENT_S, remote_models
from service.processes.tally import CaptureTally, Tally
from service.schemas import WatchReply
from service.server import DrainingServer
from service.settings import Settings
from service.state import State

TELL_S = 0.1
"""How often counts are told; what a worker that is killed had counted since is lost."""
SCRAPE_S = 5.0
"""How long metrics are awaited; Prometheus itself gives up after 10 s."""
RECONNECT_S = 0.1
log = logging.getLogger(__name__)


def main() -> None:
    """Serve until the supervisor orders otherwise."""
    control = Control(int(sys.argv[1]))
    config = control.config(WorkerConfig)
    settings = revived(config.settings)
    logs.set_up(settings.log_level, process=f"worker {config.index}")
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            runner.run(serve(control, config, settings))
        except StartError as err:
            control.report("failed", str(err))
            raise SystemExit(1) from None


async def serve(control: Control, config: WorkerConfig, settings: Settings) -> None:
    """Connect to the engine's process, then accept until an order to leave; answer what was accepted."""
    pending, admission = pending_share(settings), make_admission(settings)
    captured = CaptureTally()
    capture = make_capture(settings, captured)

    def held() -> Held:
        unwritten = capture.unwritten if capture else 0
        return Held(pending_bytes=pending.held, waiting_requests=admission.in_line, unwritten_images=unwritten)

    remote = Remote(config, settings, Tally(route_templates(), held, captured))
    orders = control.orders(asyncio.get_running_loop())
    await remote.connect()
    state = State(
        settings=settings,
        metrics=remote,
        models=remote_models(remote.link, remote.tally, settings),
        decoder=Decoder(decode_share(settings, config.index), settings.decode_limits),
        pending=pending,
        admission=admission,
        capture=capture,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(work) for work in (remote.stay_connected(state), remote.tell(), control.live())]
        if state.capture:
            state.capture.start()
        yield
        if state.capture:
            await asyncio.to_thread(state.capture.close)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        state.decoder.close()
        await remote.link.close()

    server = WorkerServer(make_app(state, lifespan), state, control, orders)
    interpreter.prepare()
    await server.serve(sockets=[socket.socket(fileno=config.listener)])


def decode_share(settings: Settings, index: int) -> int:
    """Return how many images a worker decodes at once; those of all workers are the setting, or one each."""
    least, left = divmod(settings.decode_threads, settings.workers)
    return max(least + (index < left), 1)


def pending_share(settings: Settings) -> PendingBytes:
    """Return a worker's share of the memory for bodies, in which the largest request has room."""
    return PendingBytes(max(settings.max_pending_bytes // settings.workers, settings.max_request_bytes))


class Remote:
    """The engine's process, whichever it is: a new connection, and new models, whenever the last one is gone."""

    link: EngineLink

    def __init__(self, config: WorkerConfig, settings: Settings, tally: Tally) -> None:
        self.tally = tally
        self._path = config.engine
        self._settings = settings

    def count_request(self, path: str, status: int, code: str | None) -> None:
        """Count a request that was answered; `code` is that of its error."""
        self.tally.count_request(path, status, code)

    async def exposition(self) -> bytes:
        """Return every metric of the server, what all workers have counted by now among them.

        Raises:
            NotReadyError: the engine's process is gone, or does not answer.
        """
        return await self._request(Kind.SCRAPE)

    async def watched(self, name: str) -> WatchReply:
        """Return what is watched of a model, what all workers have counted by now taken in.

        Raises:
            NotReadyError: the engine's process is gone, or does not answer.
        """
        return WatchReply.model_validate_json(await self._request(Kind.WATCH, name.encode()))

    async def connect(self) -> None:
        """Wait for an engine's process and connect to it."""
        while True:
            with suppress(ServiceError, OSError):
                self.link = await connect(self._path, self._counts)
                return
            await asyncio.sleep(RECONNECT_S)

    async def stay_connected(self, state: State) -> None:
        """Whenever the engine's process is gone, wait for the next one and serve its models."""
        while True:
            await asyncio.shield(self.link.closed)
            log.warning("the engine's process is gone")
            await self.connect()
            self.tally.tell_all()
            state.models = remote_models(self.link, self.tally, self._settings)
            log.info("connected to a new engine's process")

    async def tell(self) -> None:
        """Tell the engine's process, again and again, what was counted, unless it hangs, to be replaced."""
        while True:
            await asyncio.sleep(TELL_S)
            if time.monotonic() - self.link.heard_at < SILENT_S:
                self.link.tell_counts()

    async def _request(self, kind: Kind, payload: bytes = b"") -> bytes:
        try:
            async with asyncio.timeout(SCRAPE_S):
                return await self.link.request(kind, (payload,))
        except TimeoutError:
            raise NotReadyError(f"the engine's process gave no metrics within {SCRAPE_S:g} s") from None

    def _counts(self) -> bytes:
        counts = self.tally.take()
        return b"" if counts is None else counts.model_dump_json().encode()


class WorkerServer(DrainingServer):
    """Begins and ends as the supervisor says."""

    def __init__(self, app: FastAPI, state: State, control: Control, orders: "asyncio.Queue[Order]") -> None:
        super().__init__(app, state)
        self._control = control
        self._orders = orders

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._control.report("ready")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Do nothing on a signal: it is the supervisor's."""

    async def on_tick(self, counter: int) -> bool:
        """Look, ten times a second, for orders."""
        while not self._orders.empty():
            order = self._orders.get_nowait()
            if order.kind == "leave":
                self.drain(order.delay_s)
        return await super().on_tick(counter)


if __name__ == "__main__":
    main()
