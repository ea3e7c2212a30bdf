"""What the server is held to, and whether a run reaches it. Every figure comes from the run's results, none by hand."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from benchmarks.contenders import CUDA, CUDA_BFLOAT16, EAGER, OPENVINO, OPENVINO_BFLOAT16, EngineKind, load_name
from benchmarks.results import ClosedLoad, Results
from benchmarks.spread import spread

ByRound = Mapping[int, float]
A = TypeVar("A")
B = TypeVar("B")
FULL, MIDDLE, ALONE = load_name(64), load_name(16), load_name(1)
ARRAYS = load_name(4, 64)
MODERATE, OVERLOAD = "70 % of capacity", "300 % of capacity"
NOT_MEASURED = "not measured"
REJECTED = "429"
"""The status, as failures have it, by which a full queue refuses."""


@dataclass(frozen=True)
class Judged:
    """A target beside what was reached: figures by round, whose median counts; None where a part was not measured."""

    text: str
    bound: float
    sense: Literal["at least", "at most", "below"]
    digits: int
    reached: ByRound | None
    against: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the median is within the bound."""
        if not self.reached:
            return None
        median = statistics.median(self.reached.values())
        match self.sense:
            case "at least":
                return median >= self.bound
            case "at most":
                return median <= self.bound
            case "below":
                return median < self.bound

    def row(self) -> list[str]:
        """Return target, bound, what was reached and whether that meets it, as cells."""
        met = {True: "yes", False: "**no**", None: NOT_MEASURED}[self.is_met]
        reached = spread(list(self.reached.values()), self.digits) if self.reached else NOT_MEASURED
        return [self.text, f"{self.sense} {self.bound:,.{self.digits}f}", reached, self.against, met]


def judge(results: Results) -> list[Judged]:
    """Return every target of a run on a CPU, or on a GPU; those of a precision one after the other."""
    on_a_gpu = {"fp32": CUDA, "bf16": CUDA_BFLOAT16}
    found = [target for name, kind in on_a_gpu.items() for target in _on_a_gpu(results, kind, name)]
    if found:
        return [*found, _failed_requests(results)]
    kinds = {"fp32": (OPENVINO, 1.8), "bf16": (OPENVINO_BFLOAT16, 3.3)}
    for precision, (kind, times) in kinds.items():
        ours = _ours(results, kind)
        found += [
            *_beside_peers(results, ours, kind, precision, times),
            *_beside_the_engine(results, ours, kind, precision),
            *_open_loop(results, ours, kind, precision),
        ]
    return [*found, _failed_requests(results)]


def best_peer(
    results: Results, engine: str, load: str, figure: Callable[[ClosedLoad], float], *, most: bool
) -> str | None:
    """Return the peer with that engine inside whose median figure is the most, or else the least."""
    medians = {
        entrant.name: statistics.median(figure(found) for found in measured.values())
        for entrant in results.entrants
        if not entrant.is_ours and entrant.engine == engine and (measured := results.closed(entrant.name, load))
    }
    return (max if most else min)(medians, key=lambda name: medians[name], default=None)


def _ours(results: Results, kind: EngineKind) -> str:
    names = [entrant.name for entrant in results.entrants if entrant.is_ours and entrant.engine == kind.label]
    return names[0] if names else ""


def _beside_peers(results: Results, ours: str, kind: EngineKind, precision: str, times: float) -> list[Judged]:
    def compared(text: str, load: str, engine: str, figure: Callable[[ClosedLoad], float], bound: float) -> Judged:
        at_least = bound >= 1
        peer = best_peer(results, engine, load, figure, most=at_least)
        reached = None
        if peer is not None:
            pairs = _rounds(results.closed(ours, load), results.closed(peer, load))
            reached = {number: figure(a) / figure(b) for number, (a, b) in pairs.items() if figure(b)}
        return Judged(f"{precision}, {text}", bound, "at least" if at_least else "at most", 2, reached, peer or "")

    return [
        compared(f"{FULL}: requests/s, of the best peer's, eager", FULL, EAGER.label, _speed, times),
        compared(f"{FULL}: requests/s, of the best peer's, same model", FULL, kind.label, _speed, 1.2),
        compared(f"{ALONE}: median latency, of the best peer's, eager", ALONE, EAGER.label, lambda x: x.p50_ms, 1 / 3),
        compared(f"{MIDDLE}: p99 latency, of the best peer's, eager", MIDDLE, EAGER.label, lambda x: x.p99_ms, 0.5),
    ]


def _beside_the_engine(results: Results, ours: str, kind: EngineKind, precision: str) -> list[Judged]:
    engines = results.engine(kind.label)

    def share(load: str) -> ByRound:
        pairs = _rounds(results.closed(ours, load), engines)
        return {number: 100 * a.images_per_s / b.best_images_per_s for number, (a, b) in pairs.items()}

    added = {
        number: served.p50_ms - alone.one_image_ms
        for number, (served, alone) in _rounds(results.closed(ours, ALONE), engines).items()
    }
    ready = {number: start.seconds for number, start in results.starts(ours).items()}
    return [
        Judged(f"{precision}, JPEG at {FULL}: images/s, % of the engine's alone", 85, "at least", 1, share(FULL)),
        Judged(f"{precision}, .npy of 64 images: images/s, % of the engine's alone", 95, "at least", 1, share(ARRAYS)),
        Judged(f"{precision}, {ALONE}: queue, HTTP and decoding add at the median, ms", 2, "at most", 2, added),
        Judged(f"{precision}, start to the first answer, warm cache, s", 8, "at most", 1, ready),
    ]


def _open_loop(results: Results, ours: str, kind: EngineKind, precision: str) -> list[Judged]:
    engines, peak = results.engine(kind.label), results.closed(ours, FULL)
    moderate, overload = results.open(ours, MODERATE), results.open(ours, OVERLOAD)
    times = {
        number: found.p99_ms / alone.one_image_ms
        for number, (found, alone) in _rounds(moderate, engines).items()
        if found.p99_ms is not None
    }
    goodput = {
        number: 100 * found.goodput_per_s / most.images_per_s
        for number, (found, most) in _rounds(overload, peak).items()
        if most.images_per_s
    }
    rejected = {
        number: found.rejected_p99_ms for number, found in overload.items() if found.rejected_p99_ms is not None
    }
    share = [f"{found.cores.generator:.2f}" for found in overload.values()]
    cores = f"generator on the same cores: {', '.join(share)} cores" if share else ""
    return [
        Judged(f"{precision}, Poisson at {MODERATE}: p99, in latencies of one image alone", 10, "at most", 1, times),
        Judged(f"{precision}, Poisson at {OVERLOAD}: goodput, % of the peak", 75, "at least", 1, goodput, cores),
        Judged(f"{precision}, Poisson at {OVERLOAD}: p99 of rejections, ms", 20, "below", 1, rejected),
    ]


def _on_a_gpu(results: Results, kind: EngineKind, precision: str) -> list[Judged]:
    """Return the targets of a kind of engine on a GPU; none if no server was measured with it."""
    by_workers = {
        workers: entrant.name
        for entrant in results.entrants
        for workers in (1, 16)
        if entrant.engine == kind.label and entrant.name.endswith(f", {workers} HTTP worker{'s' * (workers > 1)}")
    }
    if not by_workers:
        return []
    engine = {number: turn.best_images_per_s for number, turn in results.engine(kind.label).items()}

    def fastest(workers: int, *, arrays: bool) -> ByRound:
        return {
            turn.round: max(load.images_per_s for name, load in turn.closed.items() if (".npy" in name) == arrays)
            for turn in results.turns
            if turn.entrant == by_workers.get(workers)
        }

    return [
        Judged(f"{precision}, engine alone: images/s", 150_000, "at least", 0, engine),
        Judged(f"{precision}, 1 HTTP worker: requests/s of one JPEG", 3_000, "at least", 0, fastest(1, arrays=False)),
        Judged(
            f"{precision}, 16 HTTP workers: requests/s of one JPEG", 25_000, "at least", 0, fastest(16, arrays=False)
        ),
        Judged(f"{precision}, 1 HTTP worker: images/s, .npy of 256", 60_000, "at least", 0, fastest(1, arrays=True)),
    ]


def _failed_requests(results: Results) -> Judged:
    ours = {entrant.name for entrant in results.entrants if entrant.is_ours}
    failed: dict[int, float] = {}
    for turn in results.turns:
        if turn.entrant in ours:
            loads = [load.failures for load in turn.closed.values()] + [load.failures for load in turn.open.values()]
            counts = [count for failures in loads for cause, count in failures.items() if cause != REJECTED]
            failed[turn.round] = failed.get(turn.round, 0) + sum(counts)
    return Judged("requests that failed, rejections aside", 0, "at most", 0, failed)


def _rounds(ours: Mapping[int, A], theirs: Mapping[int, B]) -> dict[int, tuple[A, B]]:
    return {number: (ours[number], theirs[number]) for number in ours if number in theirs}


def _speed(load: ClosedLoad) -> float:
    return load.images_per_s
