"""SIGTERM while much waits: bulk that takes many batches, connections that are kept."""

import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from time import monotonic

import httpx
import pytest
from bodies import FORMS, answer
from conftest import Alone, Serve
from live import wait_until
from test_stress_clients import assert_right

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
DRAIN_DELAY_S = 1.0
CLIENTS = 12


def test_sigterm_loses_nothing_of_what_waits(stressed: Serve, alone: Alone, ran: Callable[[str], None]) -> None:
    """Readiness fails before the listener closes; kept connections and bulk requests get their right answers."""
    flags = ("--drain-delay-s", str(DRAIN_DELAY_S), "--max-batch-size", "8", "--deadline-s", "60")
    with stressed(*flags) as server, ThreadPoolExecutor(CLIENTS + 1) as pool:
        stopping, seen, refused_at, unready_at = Event(), Counter[str](), [], []

        def post_until_refused(number: int) -> None:
            rows = [(number + step) % len(alone.pngs) for step in range(64 if number % 3 == 0 else 1)]
            name = sorted(FORMS)[number % len(FORMS)]
            rows = rows[:1] if name == "raw" else rows
            body = FORMS[name]([alone.pngs[row] for row in rows], alone.pixels[rows])
            with httpx.Client(base_url=server.url, timeout=60) as client:
                while True:
                    try:
                        reply = client.post(body.path, content=body.content, headers=body.headers)
                    except httpx.ConnectError:
                        assert stopping.is_set()
                        refused_at.append(monotonic())
                        return
                    assert reply.status_code == 200, reply.text
                    assert_right(answer(body, reply.content), alone, rows)
                    seen["after the signal" if stopping.is_set() else "before"] += 1

        def watch_readiness() -> None:
            wait_until(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
            unready_at.append(monotonic())

        clients = [pool.submit(post_until_refused, number) for number in range(CLIENTS)]
        wait_until(lambda: seen.total() > 2 * CLIENTS, 60)
        stopping.set()
        server.process.send_signal(signal.SIGTERM)
        watcher = pool.submit(watch_readiness)
        for client in [watcher, *clients]:
            client.result(90)
        assert server.process.wait(30) == 0
        assert unready_at[0] < min(refused_at)
        assert seen["after the signal"] >= CLIENTS
    ran(f"SIGTERM: {seen['before']} answers before it, {seen['after the signal']} after, none lost")
