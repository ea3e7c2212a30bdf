"""The engine's process: it loads the bundles, owns their queues, runtimes, health and every metric, and serves workers.

`python -m service.processes.engine DESCRIPTOR`, where the descriptor is that of its channel to the supervisor.
"""

import asyncio
import logging
import os
import socket
import sys

from service import interpreter, logs
from service.app import route_templates
from service.errors import StartError
from service.greeting import greeting
from service.metrics import Metrics
from service.models import load_models, watched
from service.processes.control import Control, EngineConfig, Order, revived
from service.processes.hub import Hub, WorkerEnd
from service.processes.loops import loop_factory
from service.served_models import Models
from service.settings import Settings
from service.watching.state import kept

TICK_S = 0.1
"""How often workers are told how the models do, and how soon a dead or hung one is seen."""
log = logging.getLogger(__name__)


def main() -> None:
    """Load, then serve workers until the supervisor says otherwise or a model dies or hangs."""
    control = Control(int(sys.argv[1]))
    config = control.config(EngineConfig)
    settings = revived(config.settings)
    logs.set_up(settings.log_level, process="engine")
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        orders = control.orders(runner.get_loop())
        metrics = Metrics(route_templates(), settings.watch_options)
        try:
            models = load_models(settings, metrics)
        except StartError as err:
            control.report("failed", str(err))
            leave(1)
        hello = greeting(models, config.url, closed=bool(settings.api_keys), workers=settings.workers)
        interpreter.prepare()
        process = EngineProcess(settings, control, models, metrics, orders, config.restarts)
        leave(runner.run(process.serve(socket.socket(fileno=config.listener), hello)))


def leave(status: int) -> None:
    """End the process at once, whatever its threads, which may hang in a device, are doing."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class EngineProcess:
    """Serves workers, and watches the models."""

    def __init__(
        self,
        settings: Settings,
        control: Control,
        models: Models,
        metrics: Metrics,
        orders: "asyncio.Queue[Order]",
        restarts: dict[str, int],
    ) -> None:
        """Make one; `restarts` is how often processes were replaced before this one, by kind."""
        self._settings = settings
        self._control = control
        self._models = models
        self._metrics = metrics
        self._orders = orders
        self._restarts: dict[str, int] = {}
        self._count_restarts(restarts)  # before anybody asks: a counter that was at 0 again would count them anew

    async def serve(self, listener: socket.socket, hello: str) -> int:
        """Serve until it is time to leave; answer what waits, and return the exit status."""
        async with kept(self._settings.state_dir, watched(self._models, self._metrics)):
            hub = Hub(self._models, self._metrics)
            await asyncio.get_running_loop().create_unix_server(lambda: WorkerEnd(hub), sock=listener)
            self._control.report("ready", hello)
            living = asyncio.ensure_future(self._control.live())
            status = await self._watch(hub)
            await asyncio.to_thread(self._models.close)
            await hub.close()
        living.cancel()
        return status

    async def _watch(self, hub: Hub) -> int:
        while True:
            while not self._orders.empty():
                order = self._orders.get_nowait()
                if order.kind == "leave":
                    return 0
                self._count_restarts(order.restarts)
            for engine in self._models.engines:
                if engine.health == "stalled":
                    self._control.report("failed", f"a batch of {engine.name} hangs in the device")
                    log.error("engine hangs", extra={"model": engine.name})
                    leave(1)
                if engine.health == "died":
                    self._control.report("failed", f"the engine of {engine.name} died")
                    hub.tell_statuses()  # the last: workers are not ready from here on
                    return 1
            hub.tell_statuses()
            await asyncio.sleep(TICK_S)

    def _count_restarts(self, restarts: dict[str, int]) -> None:
        for process, total in restarts.items():
            self._metrics.restarts.labels(process).inc(total - self._restarts.get(process, 0))
        self._restarts = restarts


if __name__ == "__main__":
    main()
