"""Clients that leave at any moment, dawdle, or close one half of their connection."""

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random

import httpx
import numpy as np
import pytest
from bodies import FORMS, Answer, answer
from conftest import Alone, Serve
from live import Process, samples, wait_until
from memory import Memory
from wire import LEAVES, Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
AT_ONCE = 64
CLIENTS = 2000
WARM = 500
"""Clients before the memory is measured: by then allocators and caches hold what they need for such a crowd."""
GROWTH = 1.05


def test_two_thousand_clients_that_leave_disturb_nobody_and_leave_nothing(
    stressed: Serve, alone: Alone, ran: Callable[[str], None], seed: int
) -> None:
    with stressed("--body-timeout-s", "5", "--deadline-s", "30") as server:
        memory = Memory(server.process.pid)
        asyncio.run(crowd(server, alone, WARM, seed + 1))
        at_rest(server)
        before, files = memory.held_bytes, memory.open_files
        seen = asyncio.run(crowd(server, alone, CLIENTS, seed))
        at_rest(server)
        assert memory.held_bytes <= GROWTH * before
        wait_until(lambda: memory.open_files <= files)  # connections are closed in a moment of their own
        assert_right_at_once(server, alone)
        growth = memory.held_bytes / before - 1
        assert not [line for line in server.lines() if line["message"] == "request failed"]
    shown = ", ".join(f"{count} {what}" for what, count in sorted(seen.items()))
    ran(f"clients: {CLIENTS} after {WARM} ({shown}), RSS {growth:+.1%}")


async def crowd(server: Process, alone: Alone, clients: int, seed: int) -> Counter[str]:
    """Let so many clients come, AT_ONCE of them at a time; each that gets an answer gets the right one."""
    seen, room = Counter[str](), asyncio.Semaphore(AT_ONCE)

    async def come(random: Random) -> None:
        rows = random.choices(range(len(alone.pngs)), k=random.choice((1, 1, 1, 2, 9)))
        name, leave = random.choice(sorted(FORMS)), random.choice(LEAVES)
        rows = rows[:1] if name == "raw" else rows
        body = FORMS[name]([alone.pngs[row] for row in rows], alone.pixels[rows])
        async with room:
            reply = await Client(server.url, random).ask(body, leave)
        seen[leave] += 1
        if reply is None:
            assert leave != "stays"
            return
        assert reply.status in (200, 429, 503, 504)
        seen[f"answered {reply.status}"] += 1
        if reply.status == 200 and leave != "in_reply":
            assert_right(answer(body, reply.content), alone, rows)

    await asyncio.gather(*(come(Random(f"{seed} {number}")) for number in range(clients)))
    return seen


def assert_right(found: Answer, alone: Alone, rows: list[int]) -> None:
    assert found.class_id == alone.verdicts.class_id[rows].tolist()
    assert found.is_ood == alone.verdicts.is_ood[rows].tolist()
    np.testing.assert_allclose(found.negative_energy, alone.verdicts.negative_energy[rows], atol=1e-4)


def assert_right_at_once(server: Process, alone: Alone) -> None:
    """Every form is answered rightly, one request each, without a retry."""
    rows = list(range(4))
    for make in FORMS.values():
        body = make(alone.pngs[:4], alone.pixels[:4])
        reply = httpx.post(server.url + body.path, headers=body.headers, content=body.content, timeout=30)
        assert reply.status_code == 200, reply.text
        found = answer(body, reply.content)
        assert_right(found, alone, rows[: len(found.class_id)])


def at_rest(server: Process) -> None:
    """Wait until nothing is held and nothing waits."""

    def idle() -> bool:
        found = samples(server.url)
        waiting = [value for name, value in found.items() if name.startswith(("ood_queue_images", "ood_pending_bytes"))]
        assert waiting
        return not any(waiting)

    wait_until(idle, 60)
