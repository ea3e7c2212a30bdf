"""What an execution backend offers."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model_store.networks import NetworkOutput


class Runtime(Protocol):
    """Runs one network in two steps, so that the next batch can travel while one is computed.

    Both steps are called from one thread at a time; tickets are finished in the order in which they were started.
    What `finish` returns stays valid whatever is started later.

    `in_flight` is how many batches are worth having under way once `start` has returned: none where `start` computes;
    1 where others compute, on the processor that prepares the next batch; 2 where a batch can travel while another is
    computed. More may be started; it gains nothing.
    """

    name: str
    in_flight: int

    def start(self, images: NDArray[np.uint8]) -> Any:
        """Begin a forward pass over uint8 (N, H, W, 3), N >= 1; return a ticket for `finish`."""
        ...

    def finish(self, ticket: Any) -> NetworkOutput:
        """Wait for a ticket; return logits float32 (N, K) and features float32 (N, D) on the host."""
        ...
