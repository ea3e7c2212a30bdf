"""One run of the serving benchmark: peers' settings are tried, then all take turns in rounds."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import engine
from benchmarks.bundles import BFLOAT16_TOLERANCE, bundle_name
from benchmarks.contenders import Contender, EngineKind, Load
from benchmarks.open_loop import Opened, percentile_ms, run_open_loop
from benchmarks.processor import Cores, ProcessorTimes
from benchmarks.results import (
    ClosedLoad,
    EngineTurn,
    Entrant,
    Failure,
    Knobs,
    OpenLoad,
    Results,
    Start,
    Trial,
    Turn,
)
from benchmarks.servers import RunningServer, ServerEndedError, free_port, running
from benchmarks.wrk import Closed, WrkError, run_wrk
from model_store.bundle import load_bundle
from model_store.images import load
from model_store.store import BundleRef, Store

CHECKED_IMAGES = 8
FLOAT32_TOLERANCE = 0.01
"""Of negative energies of some 10, between runtimes."""
CORES_A_WRK_THREAD = 8
"""wrk gets a thread for so many cores: one on a small machine, where it must not be in the way."""
SETTLED_CORES, SETTLE_STEP_S, SETTLE_STEPS = 0.25, 0.2, 50
"""A server that keeps less than this busy over a step has nothing left to do; after so many steps it is left alone."""


class AnswersDifferError(Exception):
    """A server does not say what the network says."""


FAILURES = (
    AnswersDifferError,
    engine.EngineError,
    httpx.HTTPError,
    KeyError,
    OSError,
    ServerEndedError,
    subprocess.SubprocessError,
    ValueError,
    WrkError,
)
"""What one contender may do wrong without an end to the run; an answer of another form is a KeyError or ValueError."""


@dataclass(frozen=True)
class Plan:
    """How long everything takes, in seconds; `quiet_cores` of other processes and more make a load be repeated."""

    rounds: int
    closed_s: float
    open_s: float
    trial_s: float
    engine_s: float
    warm_up_s: float
    attempts: int
    quiet_cores: float = 0.15


FULL = Plan(rounds=3, closed_s=4, open_s=5, trial_s=2, engine_s=0.6, warm_up_s=1, attempts=3)
"""A quarter of an hour on two cores that have nothing else to do."""
SMALL = Plan(rounds=1, closed_s=1, open_s=1, trial_s=1, engine_s=0.1, warm_up_s=1, attempts=1)
"""To see that everything works; its figures mean nothing."""


@dataclass
class Run:
    """A run under way. `store` holds the bundles; `cache` the conversions, which the first start of ours makes."""

    plan: Plan
    contenders: list[Contender]
    pixels: NDArray[np.uint8]
    store: Store
    cache: Path
    say: Callable[[str], None]
    trials: list[Trial] = field(default_factory=list)
    first_starts: dict[str, Start] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    engines: list[EngineTurn] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    _entrants: dict[str, Entrant] = field(default_factory=dict)
    _expected: dict[str, list[tuple[str, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._entrants = {contender.name: contender.entrant for contender in self.contenders}

    def prepare(self) -> None:
        """Start ours with an empty cache, and choose the peers' settings; who fails is left out from then on."""
        prepared = []
        for contender in self.contenders:
            with self._failing(contender.name, 0):
                prepared.append(self._prepared(contender))
        self.contenders = prepared
        self._entrants |= {contender.name: contender.entrant for contender in prepared}

    def round(self, number: int) -> None:
        """Give everyone a turn; who is first changes from round to round."""
        jobs: list[Contender | EngineKind] = [*self._engine_kinds(), *self.contenders]
        first = (number - 1) * len(jobs) // self.plan.rounds
        for job in [*jobs[first:], *jobs[:first]]:
            name = job.label if isinstance(job, EngineKind) else job.name
            with self._failing(name, number):
                if isinstance(job, EngineKind):
                    self.engines.append(self._engine_turn(job, number))
                elif job in self.contenders:
                    self.turns.append(self._turn(job, number))

    def results(self, conditions: Mapping[str, Any]) -> Results:
        """Return what was measured so far."""
        return Results(
            conditions=dict(conditions),
            entrants=tuple(self._entrants.values()),
            trials=tuple(self.trials),
            first_starts=self.first_starts,
            turns=tuple(self.turns),
            engines=tuple(self.engines),
            failures=tuple(self.failures),
        )

    @contextmanager
    def _failing(self, name: str, number: int) -> Iterator[None]:
        try:
            yield
        except FAILURES as err:
            self.failures.append(Failure(entrant=name, round=number, error=last_words(err)))
            self.contenders = [contender for contender in self.contenders if contender.name != name]
            self.say(f"{name}: FAILED: {last_words(err)}")

    def _engine_kinds(self) -> list[EngineKind]:
        failed = {failure.entrant for failure in self.failures}
        kinds = dict.fromkeys(contender.kind for contender in self.contenders if contender.entrant.is_ours)
        return [kind for kind in kinds if kind.label not in failed]

    def _prepared(self, contender: Contender) -> Contender:
        if contender.entrant.is_ours:
            with self._started(contender) as server:
                self.first_starts[contender.name] = _start(server)
                self.say(f"{contender.name}: ready after {server.start_s:.1f} s with an empty cache")
            return contender
        if not contender.candidates:
            return contender
        if len(contender.candidates) == 1:
            return contender.with_knobs(contender.candidates[0])
        return contender.with_knobs(self._best_knobs(contender))

    def _best_knobs(self, contender: Contender) -> Knobs:
        tried = [self._trial(contender.with_knobs(knobs)) for knobs in contender.candidates]
        self.trials += tried
        measured = [trial for trial in tried if trial.requests_per_s is not None]
        if not measured:
            raise ServerEndedError(tried[-1].error or "no setting works")
        return max(measured, key=lambda trial: trial.requests_per_s or 0.0).knobs

    def _trial(self, contender: Contender) -> Trial:
        knobs = contender.entrant.knobs
        assert knobs is not None
        most = contender.fullest
        try:
            with self._started(contender) as server:
                self._wrk(server, most, self.plan.warm_up_s)
                found, _ = self._wrk(server, most, self.plan.trial_s)
        except FAILURES as err:
            return Trial(entrant=contender.name, knobs=knobs, requests_per_s=None, error=last_words(err))
        self.say(f"{contender.name}, {knobs}: {found.requests_per_s:,.0f} requests/s")
        return Trial(entrant=contender.name, knobs=knobs, requests_per_s=round(found.requests_per_s, 1))

    def _turn(self, contender: Contender, number: int) -> Turn:
        with self._started(contender) as server:
            start = _start(server)
            self._wrk(server, contender.fullest, self.plan.warm_up_s)
            closed = {each.name: self._closed(server, each) for each in contender.loads}
            capacity = closed[contender.fullest.name].images_per_s
            opened = {
                name: self._open(server, contender.single, share * capacity, number)
                for name, share in contender.open_loads.items()
            }
            self.say(f"round {number}: {contender.name}: {_speeds(closed)}")
            return Turn(
                entrant=contender.name,
                round=number,
                start=start,
                closed=closed,
                open=opened,
                memory_after_mib=round(server.memory_mib(), 1),
            )

    def _engine_turn(self, kind: EngineKind, number: int) -> EngineTurn:
        found = engine.measure_apart(
            self.store.root,
            bundle_name(kind.precision),
            kind.runtime,
            self.cache,
            batch_sizes=kind.batch_sizes,
            seconds=self.plan.engine_s,
        )
        self.say(f"round {number}: {found.runtime} alone: {max(found.images_per_s.values()):,.0f} images/s")
        return EngineTurn(
            entrant=kind.label,
            round=number,
            runtime=found.runtime,
            images_per_s=found.images_per_s,
            one_image_ms=found.one_image_ms,
        )

    @contextmanager
    def _started(self, contender: Contender) -> Iterator[RunningServer]:
        """Run a server that judges images as the network does."""
        port = free_port()
        command = contender.command(port, self.store.root, self.cache)
        with running(command, port, contender.probe(0)) as server:
            self._check(server, contender)
            yield server

    def _check(self, server: RunningServer, contender: Contender) -> None:
        tolerance = FLOAT32_TOLERANCE if contender.kind.precision == "float32" else BFLOAT16_TOLERANCE
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for image, (class_name, energy) in enumerate(self._expected_of(contender)):
                reply = contender.probe(image).send(client).raise_for_status().json()
                found_class, found_energy = contender.verdict(reply)
                same_class = found_class == class_name or contender.kind.precision == "bfloat16"  # near ties
                if not (same_class and abs(found_energy - energy) <= tolerance):
                    raise AnswersDifferError(
                        f"image {image} is {found_class}, negative energy {found_energy}; expected {class_name}, "
                        f"{energy} within {tolerance}"
                    )

    def _expected_of(self, contender: Contender) -> list[tuple[str, float]]:
        if contender.name not in self._expected:
            self._expected[contender.name] = expected_verdicts(self.store, contender)
        return self._expected[contender.name]

    def _closed(self, server: RunningServer, each: Load) -> ClosedLoad:
        """Load a server, and again while other processes disturb it, which leaves the choice to no figure of ours."""
        for _ in range(self.plan.attempts):
            found, cores = self._wrk(server, each, self.plan.closed_s)
            if cores.others <= self.plan.quiet_cores:
                break
        return ClosedLoad(
            images_per_s=round(each.images_per_request * found.requests_per_s, 1),
            answered=found.answered,
            p50_ms=round(found.p50_ms, 3),
            p90_ms=round(found.p90_ms, 3),
            p99_ms=round(found.p99_ms, 3),
            failures=found.failures,
            cores=cores,
        )

    def _wrk(self, server: RunningServer, each: Load, seconds: float) -> tuple[Closed, Cores]:
        before = ProcessorTimes.now(server.pid)
        threads = max(1, min(len(os.sched_getaffinity(0)) // CORES_A_WRK_THREAD, each.connections))
        found = run_wrk(server.url, each.requests, connections=each.connections, seconds=seconds, threads=threads)
        cores = before.until(ProcessorTimes.now(server.pid))
        _settle(server)
        return found, cores

    def _open(self, server: RunningServer, requests: Sequence[bytes], rate_per_s: float, seed: int) -> OpenLoad:
        before = ProcessorTimes.now(server.pid)
        found = run_open_loop(server.url, requests, rate_per_s=rate_per_s, seconds=self.plan.open_s, seed=seed)
        return open_load(found, rate_per_s, before.until(ProcessorTimes.now(server.pid)))


def open_load(found: Opened, rate_per_s: float, cores: Cores) -> OpenLoad:
    """Sum up what an open loop met."""
    return OpenLoad(
        offered_per_s=round(rate_per_s, 1),
        seconds=found.seconds,
        sent=found.sent,
        goodput_per_s=round(found.goodput_per_s, 1),
        answered=len(found.answered_s),
        p50_ms=percentile_ms(found.answered_s, 50),
        p99_ms=percentile_ms(found.answered_s, 99),
        rejected=len(found.rejected_s),
        rejected_p50_ms=percentile_ms(found.rejected_s, 50),
        rejected_p99_ms=percentile_ms(found.rejected_s, 99),
        late_p99_ms=percentile_ms(found.late_s, 99),
        failures=found.failures,
        cores=cores,
    )


def expected_verdicts(store: Store, contender: Contender) -> list[tuple[str, float]]:
    """Return class and negative energy of the first images that a contender is sent, by eager PyTorch on the CPU."""
    folder = store.resolve(BundleRef.parse(contender.model))
    bundle = load_bundle(folder, runtime="torch-eager", device=torch.device("cpu"))
    files = contender.files[:CHECKED_IMAGES]
    found = bundle.predictor.predict(np.stack([load(file, bundle.manifest.preprocess) for file in files]))
    names = [bundle.manifest.classes[class_id] for class_id in found.class_id]
    return list(zip(names, found.negative_energy.tolist(), strict=True))


def last_words(error: BaseException) -> str:
    """Return the last line of an error, where servers and processes say what is wrong; at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[-300:]


def _settle(server: RunningServer) -> None:
    """Wait until a server is idle: most go on with requests whose clients have left, as wrk's have when it ends."""
    for _ in range(SETTLE_STEPS):
        before = ProcessorTimes.now(server.pid)
        time.sleep(SETTLE_STEP_S)
        if before.until(ProcessorTimes.now(server.pid)).server < SETTLED_CORES:
            return


def _start(server: RunningServer) -> Start:
    return Start(seconds=round(server.start_s, 2), memory_mib=round(server.memory_mib(), 1))


def _speeds(closed: Mapping[str, ClosedLoad]) -> str:
    return "; ".join(f"{name} {found.images_per_s:,.0f} images/s" for name, found in closed.items())
