"""The pool that decodes, with real images; the order of decoding is the order in which bytes are asked for."""

import asyncio
import gc
import io
import math
from collections.abc import Awaitable, Callable, Iterator
from threading import Barrier, Event
from typing import overload

import numpy as np
import pytest
from live import BUNDLE, wait_until
from PIL import Image

from model_store import images
from model_store.bundle import read_manifest
from model_store.images import DecodeLimits
from model_store.manifest import PreprocessSpec
from service.decoding import QUICK_BYTES, QUICK_PIXELS, Decoder
from service.errors import BadImageError

QUICK_SIDE = math.isqrt(QUICK_PIXELS)
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


def png(side: int) -> bytes:
    """Return a plain image, of few bytes whatever its size."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (7, 80, 190)).save(file, "PNG")
    return file.getvalue()


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


@pytest.mark.parametrize(
    ("side", "more", "at_once"),
    [(32, 0, True), (QUICK_SIDE, 0, True), (QUICK_SIDE + 1, 0, False), (32, QUICK_BYTES, False)],
)
def test_a_small_image_is_decoded_while_the_pool_is_busy(decoder: Decoder, side: int, more: int, at_once: bool) -> None:
    """Small in pixels and in bytes: here it has more of them behind its end."""
    free = Event()
    encoded = png(side) + bytes(more)

    async def ask() -> object:
        busy = asyncio.ensure_future(decoder.run(free.wait))
        asked = asyncio.ensure_future(decoder.decode([encoded], SPEC))
        await asyncio.sleep(0)
        assert asked.done() == at_once
        free.set()
        return (await asyncio.gather(busy, asked))[1]

    np.testing.assert_array_equal(asyncio.run(ask()), [images.load(encoded, SPEC)])


LARGE = SPEC.model_copy(update={"height": QUICK_SIDE + 1, "width": QUICK_SIDE, "resize_to": None})


@pytest.mark.parametrize(("kind", "spec"), [("PNG", LARGE), ("AVIF", SPEC)])
def test_a_small_image_that_may_take_long_is_left_to_the_pool(
    decoder: Decoder, kind: str, spec: PreprocessSpec
) -> None:
    """By the network's size, to which it is made larger; or as an AVIF, which may hold more pixels than it says."""
    free, file = Event(), io.BytesIO()
    Image.new("RGB", (32, 32), (7, 80, 190)).save(file, kind)

    async def ask() -> bool:
        busy = asyncio.ensure_future(decoder.run(free.wait))
        asked = asyncio.ensure_future(decoder.decode([file.getvalue()], spec))
        await asyncio.sleep(0)
        waits = not asked.done()
        free.set()
        await asyncio.gather(busy, asked)
        return waits

    assert asyncio.run(ask())


def test_limits_below_those_of_a_small_image_hold(pngs: list[bytes]) -> None:
    decoder = Decoder(1, DecodeLimits(max_pixels=1023))
    with pytest.raises(BadImageError, match="allowed are 1,023") as found:
        asyncio.run(decoder.decode(pngs[:1], SPEC))
    decoder.close()
    assert found.value.index == 0


def test_many_images_have_a_quarter_of_the_pool_under_a_flood_of_single_ones(
    decoder: Decoder, pngs: list[bytes]
) -> None:
    """Of single ones too large to be decoded without the pool, for which each is looked at when it is asked for."""
    log: list[str] = []
    single = [lambda: decoder.decode(Watched("single", [png(QUICK_SIDE + 1)], log), SPEC)] * 60
    while_busy(decoder, *single, lambda: decoder.decode(Watched("bulk", pngs[:9], log), SPEC))
    assert log[60:96] == ["single", "single", "single", "bulk"] * 9


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
    free, log = Event(), list[str]()

    async def leave() -> None:
        busy = asyncio.ensure_future(decoder.run(free.wait))
        asked = asyncio.ensure_future(decoder.decode(Watched("image", pngs, log), SPEC))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        free.set()
        await busy
        await decoder.run(list)

    asyncio.run(leave())
    assert log == []


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
