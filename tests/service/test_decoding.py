"""The pool that decodes, with real images; the order of decoding is the order in which bytes are asked for."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from threading import Barrier, Event
from typing import overload

import numpy as np
import pytest
from live import BUNDLE, wait_until

from model_store import images
from model_store.bundle import read_manifest
from model_store.images import DecodeLimits
from service.decoding import Decoder
from service.errors import BadImageError

SPEC = read_manifest(BUNDLE).preprocess


class Watched(list[bytes]):
    """Images that write down when each of them is decoded."""

    def __init__(self, name: str, encoded: list[bytes], log: list[str]) -> None:
        super().__init__(encoded)
        self.name = name
        self.log = log

    @overload  # type: ignore[override]
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        self.log.append(self.name)
        return super().__getitem__(index)


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    made = Decoder(1, DecodeLimits())
    yield made
    made.close()


def while_busy(decoder: Decoder, *asked: Callable[[], Awaitable[object]]) -> list[object]:
    """Ask for all of it, in this order, while the one thread is busy; return what came of each."""
    free = Event()

    async def ask() -> list[object]:
        tasks = [asyncio.ensure_future(decoder.run(free.wait))]
        for each in asked:
            tasks.append(asyncio.ensure_future(each()))
            await asyncio.sleep(0)
        free.set()
        return (await asyncio.gather(*tasks, return_exceptions=True))[1:]

    return asyncio.run(ask())


def test_images_come_back_in_order(pngs: list[bytes]) -> None:
    decoder = Decoder(4, DecodeLimits())
    found = asyncio.run(decoder.decode(pngs, SPEC))
    decoder.close()
    np.testing.assert_array_equal(found, [images.load(png, SPEC) for png in pngs])


def test_one_image_does_not_wait_for_the_64_of_requests_before_it(decoder: Decoder, pngs: list[bytes]) -> None:
    log: list[str] = []
    bulk = [lambda: decoder.decode(Watched("bulk", pngs[:64], log), SPEC)] * 3
    while_busy(decoder, *bulk, lambda: decoder.decode(Watched("single", pngs[:1], log), SPEC))
    assert log.index("single") <= 1
    assert len(log) == 3 * 64 + 1


def test_many_images_have_a_quarter_of_the_pool_under_a_flood_of_single_ones(
    decoder: Decoder, pngs: list[bytes]
) -> None:
    log: list[str] = []
    single = [lambda: decoder.decode(Watched("single", pngs[:1], log), SPEC)] * 60
    while_busy(decoder, *single, lambda: decoder.decode(Watched("bulk", pngs[:9], log), SPEC))
    assert log[:36] == ["single", "single", "single", "bulk"] * 9


def test_the_first_bad_image_is_named_and_none_after_it_is_begun(decoder: Decoder, pngs: list[bytes]) -> None:
    log: list[str] = []
    encoded = Watched("image", [pngs[0], b"", pngs[1], b"no image", *pngs[:50]], log)
    (error,) = while_busy(decoder, lambda: decoder.decode(encoded, SPEC))
    assert isinstance(error, BadImageError)
    assert error.index == 1
    assert len(log) == 2


def test_of_two_bad_images_at_once_the_first_is_named() -> None:
    both = Barrier(2)

    class Bad(list[bytes]):
        def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
            both.wait(30)
            return b""

    decoder = Decoder(2, DecodeLimits())
    with pytest.raises(BadImageError) as found:
        asyncio.run(decoder.decode(Bad([b""] * 2), SPEC))
    decoder.close()
    assert found.value.index == 0


def test_what_nobody_awaits_any_more_is_not_decoded(decoder: Decoder, pngs: list[bytes]) -> None:
    log: list[str] = []

    async def leave() -> None:
        asked = asyncio.ensure_future(decoder.decode(Watched("image", pngs, log), SPEC))
        await asyncio.sleep(0)
        asked.cancel()

    while_busy(decoder, leave, lambda: decoder.decode(Watched("next", pngs[:1], log), SPEC))
    assert log == ["next"]


def test_a_refused_image_is_let_go_without_the_collector(decoder: Decoder, pngs: list[bytes]) -> None:
    """A storm of bad images would be kept until the garbage collector's last generation else."""
    dead = []

    class Body(list[bytes]):
        def __del__(self) -> None:
            dead.append(True)

    async def refuse() -> None:
        with pytest.raises(BadImageError):
            await decoder.decode(Body([b"no image"]), SPEC)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(refuse())
        wait_until(lambda: bool(dead))
    finally:
        gc.enable()
