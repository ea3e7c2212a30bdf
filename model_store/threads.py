"""How many threads PyTorch computes with, for as long as it matters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

FOR_SCORES = 1
"""Scores of a batch take one thread microseconds.

Left alone PyTorch gives a softmax or a product of two rows to all cores. The threads that help keep spinning for
milliseconds afterwards, on the cores that OpenVINO computes the next batch on: measured on two cores with WRN-40-2,
batches of 2 to 8 images took up to twice as long.
"""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch compute with so many threads meanwhile, in the thread that calls; also a decorator."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
