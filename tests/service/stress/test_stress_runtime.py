"""A device that fails under load: every request that waits gets an answer, and health says so."""

import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import pytest
from conftest import Alone, Serve
from live import Process, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
FAULTY = (sys.executable, str(Path(__file__).parent / "faulty.py"))
CLIENTS = 24
DEADLINE_S = 3.0
STALL_S = 1.0


@pytest.fixture
def server_flags() -> tuple[str, ...]:
    """One process, which ends with its engine; of several, the engine's is replaced (test_workers)."""
    return ()


def ask(server: Process, image: bytes) -> int:
    """Return the status of one request, 0 where nobody listens any more; never without an answer."""
    try:
        return httpx.post(f"{server.url}/predict", content=image, timeout=60).status_code
    except httpx.ConnectError:
        return 0


def load(server: Process, alone: Alone, white: bytes) -> tuple[Counter[int], int]:
    """Let clients post without pause, in the midst of it the white image; return all statuses, and the white one's."""
    over, seen = Event(), Counter[int]()

    def post(number: int) -> None:
        while not over.is_set():
            status = ask(server, alone.pngs[number])
            seen[status] += 1
            if status == 0:
                return

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(post, number) for number in range(CLIENTS)]
        wait_until(lambda: seen[200] > CLIENTS)
        status = ask(server, white)
        over.set()
        for client in clients:
            client.result(60)
    return seen, status


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_a_device_that_fails_leaves_nobody_waiting(
    stressed: Serve,
    alone: Alone,
    image_of: Callable[[int], bytes],
    ran: Callable[[str], None],
    fault: str,
) -> None:
    with stressed(command=FAULTY, FAULT=fault) as server:
        seen, status = load(server, alone, image_of(255))
        assert status == 503
        assert set(seen) <= {0, 200, 503}
        assert server.process.wait(30) == 1
        assert any("the engine died" in line["message"] for line in server.lines())
    ran(f"device, {fault}: {seen.total()} requests ({dict(sorted(seen.items()))})")


def test_a_device_that_hangs_leaves_nobody_waiting_and_health_red(
    stressed: Serve,
    alone: Alone,
    image_of: Callable[[int], bytes],
    ran: Callable[[str], None],
) -> None:
    with stressed(
        *("--deadline-s", str(DEADLINE_S), "--stall-s", str(STALL_S)), command=FAULTY, FAULT="hang"
    ) as server:
        seen, status = load(server, alone, image_of(255))
        assert status in (503, 504)
        assert set(seen) <= {200, 503, 504}
        assert httpx.get(f"{server.url}/healthz").status_code == 503
        assert httpx.get(f"{server.url}/readyz").status_code == 503
        assert ask(server, alone.pngs[0]) in (503, 504)
        server.process.terminate()
        assert server.process.wait(60) is not None
    ran(f"device, hang: {seen.total()} requests ({dict(sorted(seen.items()))})")
