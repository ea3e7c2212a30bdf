"""The queue alone: plain integers as items, and no network."""

import time
from concurrent.futures import CancelledError, Future
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batcher import Batch, Batcher, ClosedError, ExpiredError, FullError, Waited

SIZES = (1, 2, 4, 8)
LATE = float("inf")


def batcher(**changes: object) -> "Batcher[int, int]":
    return Batcher(**({"sizes": SIZES, "max_items": 100} | changes))


def squares(batch: "Batch[int, int]") -> list[int]:
    return [item * item for item in batch.items]


def run_dry(queue: "Batcher[int, int]") -> list[int]:
    """Serve all that waits; return the sizes of the batches."""
    sizes = []
    while (batch := queue.take(wait=False)) is not None:
        sizes.append(len(batch))
        queue.finish(batch, squares(batch), forward_s=0.5)
    return sizes


@given(st.lists(st.lists(st.integers(), min_size=1, max_size=20), max_size=30), st.integers(0, 5))
def test_every_submission_gets_its_own_results_in_order(submissions: list[list[int]], every: int) -> None:
    queue, futures = batcher(max_items=1000), []
    for at, items in enumerate(submissions):
        futures.append(queue.submit(items, LATE))
        if every and at % every == 0:  # some batches run while others still arrive
            batch = queue.take(wait=False)
            assert batch is not None
            queue.finish(batch, squares(batch), 0.0)
    run_dry(queue)
    assert [future.result(0).results for future in futures] == [[i * i for i in items] for items in submissions]
    assert queue.depth == 0


@pytest.mark.parametrize(("waiting", "expected"), [(1, [1]), (3, [2, 1]), (7, [4, 2, 1]), (8, [8]), (21, [8, 8, 4, 1])])
def test_a_batch_is_the_largest_size_that_what_waits_fills(waiting: int, expected: list[int]) -> None:
    queue = batcher()
    for item in range(waiting):
        queue.submit([item], LATE)
    assert run_dry(queue) == expected


def test_an_idle_queue_gives_a_single_item_at_once() -> None:
    queue = batcher()
    queue.submit([1], LATE)
    begun = time.monotonic()
    assert queue.take(wait=True) is not None
    assert time.monotonic() - begun < 0.05


def test_take_waits_for_the_first_item() -> None:
    queue, taken = batcher(), []
    thread = Thread(target=lambda: taken.append(queue.take(wait=True)))
    thread.start()
    queue.submit([7], LATE)
    thread.join(5)
    assert [batch.items for batch in taken] == [[7]]


def test_a_request_that_does_not_fit_is_refused_whole() -> None:
    queue = batcher(max_items=5)
    queue.submit([1, 2, 3], LATE)
    with pytest.raises(FullError, match="3 images wait, 3 more are above the 5 allowed"):
        queue.submit([4, 5, 6], LATE)
    queue.submit([4, 5], LATE)
    assert queue.depth == 5


@pytest.mark.parametrize(
    ("flood", "other", "refused"),
    [
        (8, 1, "64 images of requests of more than 1 wait, which is their part of the 80 allowed"),
        (1, 16, "60 images of requests of up to 1 wait, which is their part of the 80 allowed"),
    ],
)
def test_neither_kind_of_request_takes_all_of_the_queue(flood: int, other: int, refused: str) -> None:
    """One that floods it is refused at three quarters of it (60 of 80); the rest has room for the other kind."""
    queue = batcher(max_items=80)
    while queue.depth < 60:
        queue.submit([0] * flood, LATE)
    with pytest.raises(FullError, match=refused):
        queue.submit([0] * flood, LATE)
    queue.submit([1] * other, LATE)


def test_a_request_as_large_as_the_queue_fits_into_an_empty_one() -> None:
    queue = batcher(max_items=80)
    queue.submit(list(range(80)), LATE)
    assert queue.depth == 80


def test_what_was_taken_makes_room() -> None:
    queue = batcher(max_items=4)
    queue.submit([1, 2, 3, 4], LATE)
    queue.take(wait=False)
    queue.submit([5, 6, 7, 8], LATE)
    assert queue.depth == 4


def test_a_cancelled_submission_never_runs_and_is_counted() -> None:
    dropped: list[str] = []
    queue = batcher(on_drop=dropped.append)
    first, second = queue.submit([1, 2], LATE), queue.submit([3], LATE)
    assert first.cancel()
    assert queue.depth == 1  # its place is free at once
    batch = queue.take(wait=False)
    assert batch is not None
    assert batch.items == [3]
    assert dropped == ["client_left"]
    assert queue.depth == 0
    queue.finish(batch, [9], 0.0)
    assert second.result(0).results == [9]


def test_a_submission_cancelled_half_way_loses_only_its_rest() -> None:
    queue = batcher(sizes=(1, 2))
    future, neighbour = queue.submit([1, 2, 3], LATE), queue.submit([4, 5], LATE)
    batch = queue.take(wait=False)
    assert batch is not None
    assert batch.items == [1, 2]
    future.cancel()
    assert queue.depth == 2
    queue.finish(batch, [1, 4], 0.0)
    rest = queue.take(wait=False)
    assert rest is not None
    assert rest.items == [4, 5]
    queue.finish(rest, [16, 25], 0.0)
    assert neighbour.result(0).results == [16, 25]
    with pytest.raises(CancelledError):
        future.result(0)


def test_a_submission_whose_deadline_passed_is_dropped_with_an_error() -> None:
    dropped: list[str] = []
    queue = batcher(on_drop=dropped.append)
    future = queue.submit([1], deadline=time.monotonic() - 1)
    assert queue.take(wait=False) is None
    assert dropped == ["deadline"]
    with pytest.raises(ExpiredError):
        future.result(0)


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["stay", "late", "leave", "take"])), max_size=60))
@settings(max_examples=50)
def test_whatever_leaves_or_expires_batches_are_as_large_as_what_is_left_fills(events: list[tuple[int, str]]) -> None:
    dropped: list[str] = []
    queue, gone, live = batcher(max_items=1000, on_drop=dropped.append), 0, 0
    for number, (size, fate) in enumerate(events):
        if fate == "take":
            batch = queue.take(wait=False)
            assert len(batch or ()) == max((each for each in SIZES if each <= live), default=0)
            assert batch is None or not {events[item][1] for item in batch.items} & {"late", "leave"}
            live -= len(batch or ())
            continue
        future = queue.submit([number] * size, time.monotonic() - 1 if fate == "late" else LATE)
        gone += fate != "stay"
        live += size if fate == "stay" else 0
        if fate == "leave":
            future.cancel()
    assert queue.take(wait=False) is None or live > 0
    assert len(dropped) == gone


def test_what_is_known_of_submissions_that_are_gone_does_not_grow() -> None:
    queue = batcher()
    for _ in range(1000):
        queue.submit([1], LATE).cancel()
        queue.submit([1], LATE)
        run_dry(queue)
    assert len(queue._deadlines) <= 2 + 64
    assert not queue._unresolved


def test_times_are_those_of_the_queue_and_of_all_its_batches() -> None:
    queue = batcher(sizes=(1, 2))
    future = queue.submit([1, 2, 3], LATE)
    time.sleep(0.02)
    run_dry(queue)
    waited = future.result(0)
    assert isinstance(waited, Waited)
    assert 0.02 <= waited.queue_s < 1
    assert waited.forward_s == 1.0  # two batches of half a second


def test_a_closed_queue_takes_nothing_and_gives_what_it_has() -> None:
    queue = batcher()
    future = queue.submit([5], LATE)
    queue.close()
    with pytest.raises(ClosedError):
        queue.submit([6], LATE)
    assert run_dry(queue) == [1]
    assert future.result(0).results == [25]
    assert queue.take(wait=True) is None


def test_closing_wakes_who_waits() -> None:
    queue = batcher()
    thread = Thread(target=lambda: queue.take(wait=True))
    thread.start()
    queue.close()
    thread.join(5)
    assert not thread.is_alive()


def test_death_fails_what_waits_and_what_runs() -> None:
    queue = batcher(sizes=(1, 2))
    futures: list[Future[Waited[int]]] = [queue.submit([1, 2], LATE), queue.submit([3, 4, 5], LATE)]
    queue.take(wait=False)
    queue.die(RuntimeError("gone"))
    for future in futures:
        with pytest.raises(RuntimeError, match="gone"):
            future.result(0)
    assert queue.depth == 0
    with pytest.raises(ClosedError):
        queue.submit([6], LATE)


@pytest.mark.parametrize("sizes", [(), (2, 4), (1, 4, 2), (1, 2, 2)])
def test_sizes_must_ascend_from_one(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ascend from 1"):
        batcher(sizes=sizes)


def test_an_empty_submission_is_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        batcher().submit([], LATE)
