"""Servers under stress: real processes, seeded chance, and what an image gets alone."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pytest
from live import BUNDLE, Process, serving
from numpy.typing import NDArray

from model_store import images
from model_store.bundle import load_bundle
from model_store.predictor import Predictions, Predictor

THREADS = "1"
Serve = Callable[..., AbstractContextManager[Process]]


@pytest.fixture(scope="session", params=[(), ("--workers", "2")], ids=["one-process", "workers"])
def server_flags(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """How the server is started; every test of this folder holds for each of them."""
    flags: tuple[str, ...] = request.param
    return flags


@pytest.fixture
def stressed(server_flags: tuple[str, ...], tmp_path: Path, cache_dir: Path) -> Serve:
    """Start a server, with further flags, or by another command."""
    return partial(serving, tmp_path / "log", cache_dir, *server_flags, "--threads", THREADS, "--runtime", "openvino")


@pytest.fixture(scope="session")
def seed() -> int:
    """What all chance comes from: STRESS_SEED, or 0."""
    return int(os.environ.get("STRESS_SEED", "0"))


@pytest.fixture
def ran(record_property: Callable[[str, object], None], seed: int) -> Callable[[str], None]:
    """Print, at the end of the run, what a test did how often."""
    return lambda text: record_property("ran", f"{text}; STRESS_SEED={seed}")


@dataclass
class Alone:
    """25 images of all classes, encoded and as pixels uint8 (25, 32, 32, 3), and the predictor that a server runs."""

    pngs: list[bytes]
    pixels: NDArray[np.uint8]
    predictor: Predictor

    @cached_property
    def verdicts(self) -> Predictions:
        """Each in a batch of its own kind."""
        return self.predictor.predict(self.pixels)

    def energy_in(self, size: int) -> NDArray[np.float32]:
        """The negative energy of each image in a batch of `size`, float32 (N,); its neighbours do not matter."""
        columns = [
            self.predictor.predict(np.roll(self.pixels, -at, axis=0)[:size]).negative_energy
            for at in range(0, len(self.pixels), size)
        ]
        return np.concatenate(columns)[: len(self.pixels)]


@pytest.fixture(scope="session")
def alone(pngs: list[bytes], cache_dir: Path) -> Alone:
    """What each image gets when nothing is beside it."""
    bundle = load_bundle(BUNDLE, runtime="openvino", cache_dir=cache_dir, threads=int(THREADS))
    spec = bundle.manifest.preprocess
    chosen = pngs[::4]
    return Alone(chosen, np.stack([images.load(png, spec) for png in chosen]), bundle.predictor)
