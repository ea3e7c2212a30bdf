"""Both kinds of requests are served within the bounds that the queue states, whatever comes; and first come, first
served within a kind."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.fair_queue import FairQueue

SMALL = 4


@dataclass(eq=False)
class Ask:
    size: int
    taken: int = 0
    due: float = math.inf
    """The count of parts taken by which all of it must be, as the docstring of the queue has it."""

    @property
    def small(self) -> bool:
        return self.size <= SMALL


class Simulation(RuleBasedStateMachine):
    """Requests come, leave and are taken in any order; a list of them, and a bound for each, is the model."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[Ask] = FairQueue(largest_small=SMALL)
        self.waiting: list[Ask] = []
        self.served = 0

    @rule(size=st.integers(1, 12))
    def push(self, size: int) -> None:
        ask = Ask(size)
        before = sum(other.size - other.taken for other in self.waiting if other.small == ask.small)
        assert self.queue.waiting_beside(size) == before
        due = math.ceil(4 * (before + size) / 3) + 1 if ask.small else 4 * (before + size)
        ask.due = self.served + due
        self.queue.push(ask)
        self.waiting.append(ask)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.waiting:
            ask = data.draw(st.sampled_from(self.waiting))
            assert self.queue.remove(ask)
            assert not self.queue.remove(ask)
            self.waiting.remove(ask)

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        parts = data.draw(st.integers(0, len(self.queue)))
        before = {ask: ask.taken for ask in self.waiting}
        shares = self.queue.take(parts)
        assert sum(share.parts for share in shares) == parts
        for ask, start, count in shares:
            assert start == before[ask]
            assert ask.taken == start + count
            assert 0 < count <= ask.size - start
        for small in (True, False):
            kind = [ask for ask in self.waiting if ask.small is small]
            left = [ask for ask in kind if ask.taken < ask.size]
            assert kind[len(kind) - len(left) :] == left, "a later one went before an earlier one"
            assert all(ask.taken == before[ask] for ask in left[1:]), "one was begun before another was done"
        self.served += parts
        self.waiting = [ask for ask in self.waiting if ask.taken < ask.size]

    @invariant()
    def nothing_is_lost_and_nothing_is_late(self) -> None:
        assert len(self.queue) == sum(ask.size - ask.taken for ask in self.waiting)
        assert all(ask.due > self.served for ask in self.waiting)


TestSimulation = Simulation.TestCase
TestSimulation.settings = settings(max_examples=30, stateful_step_count=40)


def push(queue: "FairQueue[Ask]", *sizes: int) -> list[Ask]:
    asks = [Ask(size) for size in sizes]
    for ask in asks:
        queue.push(ask)
    return asks


def test_of_four_places_one_is_bulk() -> None:
    """Worked out by hand: 10 places are 2 of bulk and half a place carried, then 3."""
    queue: FairQueue[Ask] = FairQueue(largest_small=SMALL)
    push(queue, 100)
    push(queue, *[1] * 100)
    taken = [sum(share.parts for share in queue.take(10) if not share.request.small) for _ in range(4)]
    assert taken == [2, 3, 2, 3]


def test_places_of_one_are_shared_in_turn() -> None:
    """A largest batch of 1 has no quarter: every fourth batch is bulk."""
    queue: FairQueue[Ask] = FairQueue(largest_small=SMALL)
    push(queue, 10)
    push(queue, *[1] * 10)
    assert [queue.take(1)[0].request.small for _ in range(8)] == [True, True, True, False] * 2


@given(st.integers(1, 64), st.integers(0, 40), st.integers(1, SMALL))
def test_a_small_request_behind_a_flood_of_bulk_is_served_in_few_batches(batch: int, before: int, size: int) -> None:
    queue: FairQueue[Ask] = FairQueue(largest_small=SMALL)
    push(queue, *[64] * 20)
    (ask,) = push(queue, *[1] * before, size)[-1:]
    for _ in range(math.ceil((4 * (before + size) + 3) / (3 * batch))):
        queue.take(batch)
        push(queue, 64)  # bulk keeps coming
    assert ask.taken == size


@given(st.integers(1, 64), st.integers(0, 3), st.integers(SMALL + 1, 64))
def test_bulk_under_a_flood_of_small_requests_has_a_quarter_of_the_places(batch: int, before: int, size: int) -> None:
    queue: FairQueue[Ask] = FairQueue(largest_small=SMALL)
    push(queue, *[1] * 64)
    *_, ask = push(queue, *[size] * before, size)
    for batches in range(1, math.ceil(4 * (before + 1) * size / batch) + 1):
        queue.take(batch)
        push(queue, *[1] * batch)
        assert before * size + ask.taken >= min(batches * batch // 4, (before + 1) * size)
    assert ask.taken == size


@pytest.mark.parametrize("sizes", [(1, 1, 1), (64, 64, 64), (1, 4, 2), (5, 64, 7)])
def test_one_kind_alone_gets_every_place(sizes: tuple[int, ...]) -> None:
    queue: FairQueue[Ask] = FairQueue(largest_small=SMALL)
    asks = push(queue, *sizes)
    taken = [ask for _ in range(sum(sizes)) for ask, *_ in queue.take(1)]
    assert taken == [ask for ask in asks for _ in range(ask.size)]
