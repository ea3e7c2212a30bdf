"""What waits of many requests, in an order that neither lets large ones hold up small ones nor starves them.

Two lanes: requests of few parts, and of many. Each is first come, first served. While both wait, of every four parts
that are taken one is of the large requests and three are of the small ones; while one lane waits, it gets all. So,
counted in parts taken from the moment that a request of n parts comes, with b parts before it in its own lane:

- a small request is taken whole within the next ceil(4 (b + n) / 3) + 1 parts, however many large ones wait;
- a large request is taken whole within the next 4 (b + n) parts, however many small ones come;

each rounded up to the end of the `take` in which that part goes. Every operation is O(1), beside what it gives out.
"""

from collections import OrderedDict
from typing import Generic, NamedTuple, Protocol, TypeVar

LARGE_SHARE = 4
"""One part of so many is of large requests, while both kinds wait."""


class Waiting(Protocol):
    """A request: how many parts it has, and how many of them were taken, which the queue counts."""

    taken: int

    @property
    def size(self) -> int:
        """Its parts, at least 1."""


W = TypeVar("W", bound=Waiting)


class Share(NamedTuple, Generic[W]):
    """So many parts of a request, from `start` on."""

    request: W
    start: int
    parts: int


class FairQueue(Generic[W]):
    """The queue. Not thread-safe: who shares it holds a lock."""

    def __init__(self, *, largest_small: int) -> None:
        """Make an empty queue; requests of up to `largest_small` parts are small."""
        self.largest_small = largest_small
        self._small: _Lane[W] = _Lane()
        self._large: _Lane[W] = _Lane()
        self._carried = 0

    def __len__(self) -> int:
        """Parts that wait."""
        return self._small.parts + self._large.parts

    def waiting_beside(self, size: int) -> int:
        """Return the parts that wait in the lane of a request of `size` parts."""
        return self._lane(size).parts

    def push(self, request: W) -> None:
        """Add a request of which nothing is taken, behind those of its kind."""
        self._lane(request.size).push(request)

    def remove(self, request: W) -> bool:
        """Take out what waits of a request, wherever it stands; return whether anything did."""
        return self._lane(request.size).remove(request)

    def take(self, parts: int) -> list[Share[W]]:
        """Take out `parts` parts, as many as wait at most; of a request in order, and without gaps."""
        large = self._large_places(parts)
        return [*self._small.take(parts - large), *self._large.take(large)]

    def clear(self) -> None:
        """Forget all that waits."""
        self._small, self._large = _Lane(), _Lane()

    def _lane(self, size: int) -> "_Lane[W]":
        return self._small if size <= self.largest_small else self._large

    def _large_places(self, parts: int) -> int:
        """Return how many of the next parts are of large requests; fractions are carried to the next time."""
        if self._small.parts == 0 or self._large.parts == 0:
            return min(parts, self._large.parts)
        places, self._carried = divmod(parts + self._carried, LARGE_SHARE)
        return max(min(places, self._large.parts), parts - self._small.parts)


class _Lane(Generic[W]):
    """Requests of one kind, first come, first served."""

    def __init__(self) -> None:
        self.parts = 0
        self._requests: OrderedDict[W, None] = OrderedDict()

    def push(self, request: W) -> None:
        self._requests[request] = None
        self.parts += request.size

    def remove(self, request: W) -> bool:
        if request not in self._requests:
            return False
        del self._requests[request]
        self.parts -= request.size - request.taken
        return True

    def take(self, parts: int) -> list[Share[W]]:
        shares = []
        self.parts -= parts
        while parts:
            request = next(iter(self._requests))
            shares.append(Share(request, request.taken, min(parts, request.size - request.taken)))
            request.taken += shares[-1].parts
            parts -= shares[-1].parts
            if request.taken == request.size:
                del self._requests[request]
        return shares
