"""What a comparison of servers measures in each of its rounds, and the table of medians over them."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.load import Outcome
from benchmarks.processor import ProcessorUse

NOTHING = "-"


@dataclass(frozen=True)
class Measured:
    """One load on one server. Latencies are of whole requests, however many images each has."""

    images_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    cores: ProcessorUse
    failures: dict[str, int]

    @classmethod
    def of(cls, outcome: Outcome, images_per_request: int, cores: ProcessorUse) -> "Measured":
        """Sum up what a load met."""
        return cls(
            images_per_s=round(images_per_request * outcome.requests_per_s, 1),
            p50_ms=round(outcome.latency_ms(50), 3),
            p90_ms=round(outcome.latency_ms(90), 3),
            p99_ms=round(outcome.latency_ms(99), 3),
            cores=cores,
            failures=outcome.failures,
        )


@dataclass(frozen=True)
class Start:
    """One start of a server, with the memory that it has once it is ready, before any request."""

    seconds: float
    rss_mib: float


@dataclass(frozen=True)
class Round:
    """One server's turn: a start with an empty cache, then one with what that left in it, which gets every load."""

    server: str
    first_start: Start
    start: Start
    loads: dict[str, Measured]
    rss_after_mib: float

    @property
    def failures(self) -> int:
        """Requests of all loads that were not answered with 200."""
        return sum(sum(load.failures.values()) for load in self.loads.values())

    def most_cores(self, user: str) -> float:
        """Return the cores that `generator`, `server` or `others` kept busy, of the load where it was most."""
        return float(max(getattr(load.cores, user) for load in self.loads.values()))

    def __str__(self) -> str:
        speeds = ", ".join(f"{name} {load.images_per_s:,.0f} images/s" for name, load in self.loads.items())
        return f"{self.server}: {speeds}"


class Row(NamedTuple):
    """A row of the table: what it shows, with how many decimals, and whether servers are compared by it."""

    label: str
    digits: int
    figure: Callable[[Round], float | None]
    compared: bool = True


def table(rounds: Sequence[Round]) -> str:
    """Return each server's medians, spread, and medians in relation to the first server's, as Markdown."""
    servers = list(dict.fromkeys(entry.server for entry in rounds))
    lines = [f"| | {' | '.join(servers)} |", "| --- |" + " --- |" * len(servers)]
    for row in _rows(rounds):
        columns = [_values(row, rounds, server) for server in servers]
        cells = [_cell(values, columns[0] if row.compared else values, row.digits) for values in columns]
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rows(rounds: Sequence[Round]) -> list[Row]:
    loads = dict.fromkeys(name for entry in rounds for name in entry.loads)
    return [
        *(row for name in loads for row in _rows_of_load(name)),
        Row("start to ready, s", 1, lambda entry: entry.start.seconds),
        Row("start to ready with an empty cache, s", 1, lambda entry: entry.first_start.seconds),
        Row("memory at rest, MiB", 0, lambda entry: entry.start.rss_mib),
        Row("memory at rest after a start with an empty cache, MiB", 0, lambda entry: entry.first_start.rss_mib),
        Row("memory after the loads, MiB", 0, lambda entry: entry.rss_after_mib),
        Row("failed requests", 0, lambda entry: entry.failures, False),
        Row("cores busy with the load generator, at most", 2, lambda entry: entry.most_cores("generator"), False),
        Row("cores busy with other processes, at most", 2, lambda entry: entry.most_cores("others"), False),
    ]


def _rows_of_load(name: str) -> list[Row]:
    def of_load(field: str) -> Callable[[Round], float | None]:
        return lambda entry: getattr(entry.loads[name], field) if name in entry.loads else None

    return [
        Row(f"{name}: images/s", 0, of_load("images_per_s")),
        Row(f"{name}: latency p50, ms", 1, of_load("p50_ms")),
        Row(f"{name}: latency p90, ms", 1, of_load("p90_ms")),
        Row(f"{name}: latency p99, ms", 1, of_load("p99_ms")),
    ]


def _values(row: Row, rounds: Sequence[Round], server: str) -> list[float]:
    found = [row.figure(entry) for entry in rounds if entry.server == server]
    return [value for value in found if value is not None]


def _cell(values: Sequence[float], reference: Sequence[float], digits: int) -> str:
    if not values:
        return NOTHING
    if values is reference or not reference:
        return spread(values, digits)
    return f"{spread(values, digits)}, x {statistics.median(values) / statistics.median(reference):.2f}"


def spread(values: Sequence[float], digits: int) -> str:
    """Return the median of `values` and, where they differ, the least and the greatest in brackets."""
    median, least, most = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return median if least == most else f"{median} ({least} to {most})"
