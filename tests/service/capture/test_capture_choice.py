"""Which images are in the sample, and how they wait for the thread that writes."""

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from live import wait_until

from service.capture.hand_over import Bounds, HandOver
from service.capture.record import Record
from service.capture.sampler import Choice, Sampler

Make = Callable[..., Record]
PASSED, TAKEN, OVER_RATE = Choice.PASSED, Choice.TAKEN, Choice.OVER_RATE


def test_each_kind_has_its_share() -> None:
    """10,000 draws of a share of 0.2: 2,000 with a standard deviation of 40."""
    sampler = Sampler({"flagged": 0.2, "control": 0.0}, 1e9, draw=random.Random(1).random)
    chosen = Counter(sampler.choose("flagged") for _ in range(10_000))
    assert chosen[TAKEN] + chosen[PASSED] == 10_000
    assert 1840 < chosen[TAKEN] < 2160
    assert {sampler.choose("control") for _ in range(1000)} == {PASSED}
    every = Sampler({"flagged": 1.0, "control": 1.0}, 1e9)
    assert {every.choose("control") for _ in range(1000)} == {TAKEN}


def test_a_minute_brings_so_many_of_each_kind() -> None:
    now = [100.0]
    sampler = Sampler({"flagged": 1.0, "control": 1.0}, 3, clock=lambda: now[0])
    assert [sampler.choose("flagged") for _ in range(5)] == [TAKEN] * 3 + [OVER_RATE] * 2
    assert [sampler.choose("control") for _ in range(4)] == [TAKEN] * 3 + [OVER_RATE]
    now[0] += 19.9  # one of three a minute takes 20 s
    assert sampler.choose("flagged") is OVER_RATE
    now[0] += 0.2
    assert [sampler.choose("flagged") for _ in range(2)] == [TAKEN, OVER_RATE]
    now[0] += 3600
    assert [sampler.choose("flagged") for _ in range(4)] == [TAKEN] * 3 + [OVER_RATE]


def test_less_than_one_a_minute_still_brings_one_now_and_then() -> None:
    now = [0.0]
    sampler = Sampler({"flagged": 1.0, "control": 1.0}, 0.5, clock=lambda: now[0])
    assert [sampler.choose("flagged") for _ in range(2)] == [TAKEN, OVER_RATE]
    now[0] += 121
    assert [sampler.choose("flagged") for _ in range(2)] == [TAKEN, OVER_RATE]


SMALL = Bounds(4, 10**6)


def hand_over(images: int = 100, size: int = 10**6, batch: Bounds = SMALL, wait_s: float = 0.0) -> HandOver:
    return HandOver(waiting=Bounds(images, size), batch=batch, wait_s=wait_s)


def test_more_images_than_may_wait_are_refused(record: Make) -> None:
    queue = hand_over(images=3)
    assert [queue.put(record(at)) for at in range(5)] == [True, True, True, False, False]
    assert [one.request_id for one in queue.gather(0) or ()] == ["request-0", "request-1", "request-2"]
    assert queue.put(record(5))


def test_more_bytes_than_may_wait_are_refused_of_files_and_of_pixels(record: Make) -> None:
    queue = hand_over(size=3000)
    pixels = np.zeros((10, 10, 3), np.uint8)  # 300 bytes
    assert queue.put(record(content=b"x" * 2700))
    assert queue.put(record(content=pixels))
    assert not queue.put(record(content=b"x"))
    assert len(queue.gather(0) or ()) == 2
    assert queue.put(record(content=b"x" * 3000))


def test_a_batch_is_bounded_in_images_and_bytes_and_has_one_at_least(record: Make) -> None:
    queue = hand_over(batch=Bounds(3, 1000))
    for size in (10, 10, 10, 10, 5000, 600, 400, 1):
        assert queue.put(record(content=b"x" * size))
    batches = [[one.bytes for one in queue.gather(0) or ()] for _ in range(4)]
    assert batches == [[10, 10, 10], [10], [5000], [600, 400]]


def test_a_batch_waits_for_others_until_it_is_full(record: Make) -> None:
    queue = hand_over(batch=Bounds(3, 10**6), wait_s=1000)
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(queue.gather, 1000)
        try:
            for at in range(3):
                wait_until(lambda: queue._changed._waiters)
                assert queue.put(record(at))
            assert len(batch.result(20) or ()) == 3
        finally:
            queue.close()


def test_records_are_unwritten_until_the_next_batch_is_asked_for(record: Make) -> None:
    queue = hand_over(batch=Bounds(2, 10**6))
    for at in range(3):
        queue.put(record(at))
    queue.close()
    left = [queue.unwritten]
    for _ in range(3):
        queue.gather(0)
        left.append(queue.unwritten)
    assert left == [3, 3, 1, 0]


def test_a_closed_one_hands_out_what_is_left_at_once(record: Make) -> None:
    queue = hand_over(wait_s=1000)
    queue.put(record())
    queue.close()
    assert not queue.put(record(1))
    assert [one.request_id for one in queue.gather(1000) or ()] == ["request-0"]
    assert queue.gather(1000) is None


def test_nothing_comes_of_an_idle_one(record: Make) -> None:
    assert hand_over().gather(0.0) == []


@pytest.mark.parametrize("batch", [Bounds(2, 10**6), Bounds(100, 2000)])
def test_a_full_batch_does_not_wait(record: Make, batch: Bounds) -> None:
    queue = hand_over(batch=batch, wait_s=1000)
    for at in range(2):
        queue.put(record(at, content=b"x" * 1000))
    assert len(queue.gather(0) or ()) == 2
