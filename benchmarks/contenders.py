"""Who is compared: our server and its peers, each with what may run the network in it, and what each is asked."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bundles import Precision, bundle_name
from benchmarks.http_requests import as_arrays, as_body, as_json, jpegs
from benchmarks.results import Entrant, Knobs
from benchmarks.servers import Probe, ood_serve
from model_store.runtimes import RuntimeChoice

OURS = "energy-ood"
PEERS_PYTHON = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
CONNECTIONS = (1, 16, 64)
MOSEC_TIMEOUT_MS = 60_000
"""mosec's own 3 s would turn slow answers into errors."""
OPEN_LOADS = {"70 % of capacity": 0.7, "300 % of capacity": 3.0}
"""Poisson arrivals, in shares of the images/s at the most connections."""


@dataclass(frozen=True)
class EngineKind:
    """What runs the network: `runtime` as load_bundle has it, which bundle, and batches that it is tried with alone."""

    label: str
    runtime: RuntimeChoice
    precision: Precision
    batch_sizes: tuple[int, ...] = (1, 8, 16, 32, 64)


EAGER = EngineKind("eager torch float32", "torch-eager", "float32")
OPENVINO = EngineKind("OpenVINO float32", "openvino", "float32")
OPENVINO_BFLOAT16 = EngineKind("OpenVINO bfloat16", "openvino", "bfloat16")
CUDA = EngineKind("CUDA float32", "auto", "float32", (1, 64, 256, 1024))
CUDA_BFLOAT16 = EngineKind("CUDA bfloat16", "auto", "bfloat16", (1, 64, 256, 1024))


@dataclass(frozen=True)
class Load:
    """A closed loop: `requests` in turn over so many connections, each of so many images."""

    connections: int
    images_per_request: int
    requests: Sequence[bytes]

    @property
    def name(self) -> str:
        """What it is called in results."""
        return load_name(self.connections, self.images_per_request)


def load_name(connections: int, images_per_request: int = 1) -> str:
    """Return what a closed loop is called in results."""
    plural = "s" if connections > 1 else ""
    arrays = f", .npy of {images_per_request} images" if images_per_request > 1 else ""
    return f"{connections} connection{plural}{arrays}"


@dataclass(frozen=True)
class Contender:
    """A server with what runs the network in it: its command, what it is asked, and which settings are tried first.

    files: the images that are sent. single: a request of one image each. loads: the closed loops. open_loads: shares of
    the capacity, by name.
    """

    entrant: Entrant
    kind: EngineKind
    module: str
    files: Sequence[bytes]
    single: Sequence[bytes]
    loads: Sequence[Load]
    open_loads: Mapping[str, float]
    candidates: Sequence[Knobs]
    options: Sequence[str] = ()

    @property
    def name(self) -> str:
        """What it is called in results."""
        return self.entrant.name

    @property
    def model(self) -> str:
        """The bundle's name."""
        return bundle_name(self.kind.precision)

    def with_knobs(self, knobs: Knobs) -> "Contender":
        """Return the same with other settings."""
        return replace(self, entrant=self.entrant.model_copy(update={"knobs": knobs}))

    def command(self, port: int, store: Path, cache: Path) -> list[str]:
        """Return what starts it."""
        bundle = ["--runtime", self.kind.runtime, "--store", str(store), "--cache-dir", str(cache)]
        if self.entrant.is_ours:
            return ood_serve(port, "--models", self.model, *bundle, *self.options)
        python = [str(PEERS_PYTHON), "-m", f"benchmarks.peers.{self.module}", "--port", str(port)]
        return [*python, "--model", self.model, *bundle, *self.options, *_flags(self.entrant.knobs)]

    @property
    def fullest(self) -> Load:
        """The load of single images over the most connections, which is its capacity."""
        return max((load for load in self.loads if load.images_per_request == 1), key=lambda load: load.connections)

    def probe(self, image: int) -> Probe:
        """Return what asks it for one of the images, the first of `single` is 0: it is ready when it judges it."""
        head, _, body = self.single[image].partition(b"\r\n\r\n")
        content_type = next(line for line in head.decode().split("\r\n") if line.startswith("Content-Type: "))
        return Probe("/predict", content_type.removeprefix("Content-Type: "), body)

    def verdict(self, reply: Mapping[str, Any]) -> tuple[str, float]:
        """Return class and negative energy of an answer to one image."""
        found = reply["predictions"][0] if self.entrant.is_ours else reply
        return found["class_name"], found["negative_energy"]


def cpu_contenders(pixels: NDArray[np.uint8]) -> list[Contender]:
    """Return who is compared on a CPU; `pixels` uint8 (N, H, W, 3) are what is sent."""
    ours = [our_server(kind, pixels) for kind in (OPENVINO, OPENVINO_BFLOAT16)]
    return ours + [peer(server, kind, pixels) for kind, server in product((EAGER, OPENVINO, OPENVINO_BFLOAT16), PEERS)]


def cuda_contenders(pixels: NDArray[np.uint8]) -> list[Contender]:
    """Return who is measured on a GPU: ours, with one HTTP worker and with sixteen, and 256 images a request."""
    found = []
    for kind, workers in product((CUDA, CUDA_BFLOAT16), (1, 16)):
        ours = our_server(kind, pixels)
        name = f"{ours.name}, {workers} HTTP worker{'s' * (workers > 1)}"
        single = [Load(connections, 1, ours.single) for connections in (1, 64, 256)]
        arrays = Load(4 * workers, 256, as_arrays(pixels, 256))
        found.append(
            replace(
                ours,
                entrant=ours.entrant.model_copy(update={"name": name}),
                loads=[*single, arrays],
                open_loads={},
                options=("--max-images-per-request", "256", "--max-batch-size", "256")
                + (("--workers", str(workers)) if workers > 1 else ()),
            )
        )
    return found


def our_server(kind: EngineKind, pixels: NDArray[np.uint8]) -> Contender:
    """Return ours, at its defaults."""
    files = jpegs(pixels)
    single = as_body(files)
    return Contender(
        Entrant(name=f"{OURS}, {kind.label}", server=OURS, engine=kind.label, is_ours=True),
        kind,
        module="",
        files=files,
        single=single,
        loads=[*(Load(n, 1, single) for n in CONNECTIONS), Load(4, 64, as_arrays(pixels, 64))],
        open_loads=OPEN_LOADS,
        candidates=(),
    )


PEERS = ("plain FastAPI", "LitServe", "mosec")
_MODULES = {"plain FastAPI": "plain_fastapi", "LitServe": "litserve_server", "mosec": "mosec_server"}


def peer(server: str, kind: EngineKind, pixels: NDArray[np.uint8]) -> Contender:
    """Return a peer. With the model of ours inside it is asked over the most connections only, where batches fill."""
    files = jpegs(pixels)
    single = as_json(files) if server == "LitServe" else as_body(files)
    connections = CONNECTIONS if kind is EAGER else CONNECTIONS[-1:]
    return Contender(
        Entrant(name=f"{server}, {kind.label}", server=server, engine=kind.label, is_ours=False),
        kind,
        module=_MODULES[server],
        files=files,
        single=single,
        loads=[Load(n, 1, single) for n in connections],
        open_loads={},
        candidates=() if server == "plain FastAPI" else candidates(),
        options=("--timeout", str(MOSEC_TIMEOUT_MS), "--address", "127.0.0.1", "--log-level", "warning")
        if server == "mosec"
        else (),
    )


def candidates() -> tuple[Knobs, ...]:
    """Return the settings that a peer with batches is tried with: small and large batches; a process a core."""
    cores = len(os.sched_getaffinity(0))
    return (
        Knobs(batch_size=8, wait_ms=5, workers=1, threads=None),
        Knobs(batch_size=32, wait_ms=10, workers=1, threads=None),
        Knobs(batch_size=16, wait_ms=5, workers=cores, threads=1),
    )


def _flags(knobs: Knobs | None) -> list[str]:
    if knobs is None:
        return []
    given = knobs.model_dump(exclude_none=True)
    return [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
