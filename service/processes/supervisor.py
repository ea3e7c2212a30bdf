"""The parent of all: it claims the address, starts the engine's process and the workers, replaces and ends them.

It holds no model and serves nobody, so there is little in it that can fail. When it is killed, its children end by
themselves.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Coroutine, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from service.errors import StartError
from service.greeting import address
from service.processes.child import Child
from service.processes.control import EngineConfig, Message, Order, WorkerConfig, plain
from service.processes.keeper import Keeper
from service.settings import Settings

SILENCE_S = 10.0
"""Beyond `stall_s`: a child that says nothing for so long hangs."""
GRACE_S = 10.0
"""Beyond what a child may take to end; one that takes longer is killed."""
log = logging.getLogger(__name__)


def supervise(settings: Settings, listener: socket.socket) -> int:
    """Serve with several processes until a signal; return the exit status.

    Args:
        settings: `workers` says how many accept.
        listener: bound, not listening.

    Raises:
        StartError: the models or a worker do not start, at first or after they were gone; or there is no place for
            the socket between them.
    """
    with TemporaryDirectory(prefix="ood-serve-") as folder:  # mode 0700: nobody else reaches the socket in it
        path = Path(folder) / "engine"
        with socket.socket(socket.AF_UNIX) as inner:
            _bind(inner, path)
            inner.listen(settings.workers)
            return asyncio.run(_run(settings, listener, inner, path))


def _bind(inner: socket.socket, path: Path) -> None:
    try:
        inner.bind(str(path))
    except OSError as err:  # there are systems on which 104 bytes are too many
        raise StartError(f"cannot make a socket at {path} ({err}); set TMPDIR to a shorter folder") from err


class Supervisor:
    """Starts, replaces and ends the processes of one server."""

    def __init__(self, settings: Settings, listener: socket.socket, inner: socket.socket, path: Path) -> None:
        """Take the sockets; `inner`, at `path`, is the one between workers and whichever engine's process there is."""
        self._settings = settings
        self._listener = listener
        self._inner = inner
        self._path = path
        self._signals: asyncio.Queue[int] = asyncio.Queue()
        self._engine = Keeper("engine", self._start_engine, self._tell_restarts)
        self._workers = [
            Keeper(f"worker {index}", partial(self._start_worker, index), self._tell_restarts)
            for index in range(settings.workers)
        ]
        self._keepers = [self._engine, *self._workers]

    async def run(self) -> int:
        """Serve until a signal, then drain; return the exit status.

        Raises:
            StartError: some process does not start.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signals.put_nowait, number)
        try:
            received = await self._or_signal(self._serve())
            return await self._drain(self._settings.drain_delay_s if received == signal.SIGTERM else 0.0)
        except StartError:
            await self._drain(0.0)
            raise
        finally:
            await self._kill()

    async def _serve(self) -> None:
        self._engine.begin()
        hello = await self._engine.first()
        for worker in self._workers:
            worker.begin()
        try:
            async with asyncio.TaskGroup() as given_up:  # workers whose engine's process is gone for good wait for ever
                for keeper in self._keepers:
                    given_up.create_task(keeper.gave_up())
                for worker in self._workers:
                    await worker.first()
                print(hello, flush=True)  # noqa: T201
        except* StartError as group:
            raise group.exceptions[0] from None

    async def _drain(self, delay_s: float) -> int:
        """End the workers, who answer what they have accepted, then the engine's process; return the exit status.

        The address is closed here at once, so that it is closed for good when the last worker closes it.
        """
        for keeper in self._keepers:
            keeper.stop()
        self._listener.close()
        limit_s = delay_s + self._settings.drain_timeout_s + GRACE_S
        for keepers, wait_s, last_s in ((self._workers, delay_s, limit_s), ([self._engine], 0.0, GRACE_S)):
            children = [keeper.child for keeper in keepers if keeper.child]
            for child in children:
                child.order(Order(kind="leave", delay_s=wait_s)) if child.is_ready else child.kill()
            try:
                async with asyncio.timeout(last_s):
                    if await self._or_signal(_all_ended(children)) is not None:
                        return 0
            except TimeoutError:
                log.error("processes do not end", extra={"children": [child.pid for child in children]})
                return 1
        return 0

    async def _kill(self) -> None:
        children = [keeper.child for keeper in self._keepers if keeper.child]
        for child in children:
            child.kill()
        await _all_ended(children)

    async def _or_signal(self, work: Coroutine[Any, Any, None]) -> int | None:
        """Await `work`, or the next signal; return which, after cancelling `work`."""
        doing, signalled = asyncio.ensure_future(work), asyncio.ensure_future(self._signals.get())
        try:
            await asyncio.wait({doing, signalled}, return_when=asyncio.FIRST_COMPLETED)
            if signalled.done():
                return signalled.result()
            return doing.result()
        finally:
            doing.cancel()
            signalled.cancel()

    async def _start_engine(self) -> Child:
        listener = self._inner.fileno()
        url = address(self._listener)
        config = EngineConfig(settings=plain(self._settings), url=url, listener=listener, restarts=self._restarts)
        return await self._start("engine", config, self._inner)

    async def _start_worker(self, index: int) -> Child:
        listener = self._listener.fileno()
        config = WorkerConfig(settings=plain(self._settings), index=index, listener=listener, engine=self._path)
        return await self._start("worker", config, self._listener)

    async def _start(self, module: str, config: Message, inherited: socket.socket) -> Child:
        silence_s = self._settings.stall_s + SILENCE_S
        return await Child.start(f"service.processes.{module}", config, inherited, silence_s=silence_s)

    def _tell_restarts(self) -> None:
        """Tell the engine's process, which has the metrics, how often what was replaced."""
        if self._engine.child and self._engine.child.is_ready:
            self._engine.child.order(Order(kind="restarts", restarts=self._restarts))

    @property
    def _restarts(self) -> dict[str, int]:
        return {"engine": self._engine.restarts, "worker": sum(worker.restarts for worker in self._workers)}


async def _all_ended(children: Sequence[Child]) -> None:
    await asyncio.gather(*(child.ended() for child in children))


async def _run(settings: Settings, listener: socket.socket, inner: socket.socket, path: Path) -> int:
    return await Supervisor(settings, listener, inner, path).run()
