"""Whatever runs beside it, an image gets the verdict that it gets alone."""

import asyncio
from collections import Counter
from collections.abc import Callable

import httpx
import hypothesis
import numpy as np
import pytest
from bodies import FORMS, Body, answer
from conftest import Alone, Serve
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from service.engine import batch_sizes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LARGEST = 16
ACROSS = 1e-4
"""Most that the negative energy of an image differs between batch sizes, whose kernels may add in another order."""
JITTER_S = 0.004


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, list[int], int]:
    """A form, the images in it, and how many steps later than the first it is sent."""
    name = draw(st.sampled_from(sorted(FORMS)))
    many = st.lists(st.integers(0, 24), min_size=1, max_size=1 if name == "raw" else 12)
    return name, draw(many), draw(st.integers(0, 5))


def test_any_interleaving_gives_each_image_the_verdict_it_gets_alone(
    stressed: Serve, alone: Alone, ran: Callable[[str], None], seed: int
) -> None:
    """Bitwise one of those that it gets in batches of each size, and those lie within ACROSS."""
    by_size = np.stack([alone.energy_in(size) for size in batch_sizes(LARGEST)])
    assert np.abs(by_size - by_size[0]).max() <= ACROSS
    expected, counts = alone.verdicts, Counter[str]()

    async def ask(client: httpx.AsyncClient, body: Body, later: int) -> bytes:
        await asyncio.sleep(later * JITTER_S)
        reply = await client.post(body.path, headers=body.headers, content=body.content)
        assert reply.status_code == 200, reply.text
        return reply.content

    async def ask_all(url: str, bodies: list[tuple[Body, int]]) -> list[bytes]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            return await asyncio.gather(*(ask(client, body, later) for body, later in bodies))

    def check(url: str, asked: list[tuple[str, list[int], int]]) -> None:
        bodies = [(FORMS[name]([alone.pngs[row] for row in rows], alone.pixels[rows]), at) for name, rows, at in asked]
        for (body, _), (_, rows, _), reply in zip(bodies, asked, asyncio.run(ask_all(url, bodies)), strict=True):
            found = answer(body, reply)
            energies = np.float32(found.negative_energy)
            assert (energies == by_size[:, rows]).any(axis=0).all()
            assert found.class_id == expected.class_id[rows].tolist()
            assert found.is_ood == expected.is_ood[rows].tolist()
            counts.update(requests=1, images=len(rows))
        counts.update(examples=1)

    with stressed("--max-batch-size", str(LARGEST)) as server:
        strategy = given(st.lists(requests(), min_size=2, max_size=10))
        limits = hypothesis.settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
        hypothesis.seed(seed)(limits(strategy(lambda asked: check(server.url, asked))))()
    ran(f"verdicts: {counts['examples']} interleavings of {counts['requests']} requests, {counts['images']} images")
