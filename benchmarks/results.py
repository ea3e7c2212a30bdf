"""What `make bench` keeps of a run, in results.json: every figure of every turn, and its conditions."""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from benchmarks.processor import Cores
from model_store.frozen import Frozen


class ResultsError(Exception):
    """There are no results, or they are of another version of the benchmark."""


class Knobs(Frozen):
    """What a peer's users set: images a batch, how long one is waited for, processes, CPU threads of each."""

    batch_size: int
    wait_ms: int
    workers: int
    threads: int | None

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {self.threads} threads each"
        workers = "1 process" if self.workers == 1 else f"{self.workers} processes"
        return f"batches of {self.batch_size}, waiting {self.wait_ms} ms, {workers}{threads}"


class Entrant(Frozen):
    """A server with what runs the network in it; `knobs` are the ones it was measured with, None if it has none."""

    name: str
    server: str
    engine: str
    is_ours: bool
    knobs: Knobs | None = None


class Trial(Frozen):
    """A peer with one setting of its knobs, before the rounds: requests/s, or what went wrong."""

    entrant: str
    knobs: Knobs
    requests_per_s: float | None
    error: str | None = None


class ClosedLoad(Frozen):
    """A load where each connection asks again when it is answered. Latencies are of requests, images of whole ones."""

    images_per_s: float
    answered: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    failures: dict[str, int]
    cores: Cores


class OpenLoad(Frozen):
    """A load of Poisson arrivals. Latencies are from when requests were due, None where there was no such request.

    goodput_per_s: answers of status 200 a second while requests came. rejected: those of status 429.
    """

    offered_per_s: float
    seconds: float
    sent: int
    goodput_per_s: float
    answered: int
    p50_ms: float | None
    p99_ms: float | None
    rejected: int
    rejected_p50_ms: float | None
    rejected_p99_ms: float | None
    late_p99_ms: float | None
    failures: dict[str, int]
    cores: Cores


class Start(Frozen):
    """One start of a server, till the first answer of status 200, and the memory that it has then."""

    seconds: float
    memory_mib: float


class Turn(Frozen):
    """One server's turn of a round: a start with a warm cache, and every load by name."""

    entrant: str
    round: int
    start: Start
    closed: dict[str, ClosedLoad]
    open: dict[str, OpenLoad]
    memory_after_mib: float


class EngineTurn(Frozen):
    """One turn of what runs the network, without a server: images/s by batch size, and the median time of one image."""

    entrant: str
    round: int
    runtime: str
    images_per_s: dict[int, float]
    one_image_ms: float

    @property
    def best_images_per_s(self) -> float:
        """At the batch size that is best."""
        return max(self.images_per_s.values())


class Failure(Frozen):
    """What could not be measured; an entrant that failed is left out of what comes after. Round 0 is preparation."""

    entrant: str
    round: int
    error: str


class Results(Frozen):
    """One run."""

    conditions: dict[str, Any]
    entrants: tuple[Entrant, ...]
    trials: tuple[Trial, ...] = ()
    first_starts: dict[str, Start] = Field(default_factory=dict)
    turns: tuple[Turn, ...] = ()
    engines: tuple[EngineTurn, ...] = ()
    failures: tuple[Failure, ...] = ()

    def closed(self, entrant: str, load: str) -> dict[int, ClosedLoad]:
        """Return a server's measurements of a load, by round; those without any answer are none."""
        found = {turn.round: turn.closed.get(load) for turn in self._of(entrant)}
        return {number: measured for number, measured in found.items() if measured is not None and measured.answered}

    def open(self, entrant: str, load: str) -> dict[int, OpenLoad]:
        """Return a server's measurements of an open load, by round."""
        return {turn.round: turn.open[load] for turn in self._of(entrant) if load in turn.open}

    def engine(self, entrant: str) -> dict[int, EngineTurn]:
        """Return the bare engine's measurements, by round."""
        return {turn.round: turn for turn in self.engines if turn.entrant == entrant}

    def starts(self, entrant: str) -> dict[int, Start]:
        """Return a server's starts, by round."""
        return {turn.round: turn.start for turn in self._of(entrant)}

    def _of(self, entrant: str) -> list[Turn]:
        return [turn for turn in self.turns if turn.entrant == entrant]


def read_results(path: Path) -> Results:
    """Read results.json.

    Raises:
        ResultsError: there is none, or it has other fields.
    """
    try:
        return Results.model_validate_json(path.read_bytes())
    except OSError as err:
        raise ResultsError(f"{path} cannot be read ({err.strerror}): run `make bench`") from err
    except ValidationError as err:
        raise ResultsError(f"{path} is of another version of the benchmark: run `make bench`; {err}") from err


def write_results(path: Path, results: Results) -> None:
    """Write results.json whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    incoming = path.with_suffix(".incoming")
    incoming.write_text(results.model_dump_json(indent=1) + "\n")
    incoming.replace(path)
