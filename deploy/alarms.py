"""What Prometheus and Alertmanager say of alerts, over their HTTP APIs."""

from dataclasses import dataclass
from typing import Any, Literal

import httpx

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Alarm:
    """An alert of Prometheus's: pending until it has held for the rule's time, then firing."""

    name: str
    state: Literal["pending", "firing"]
    labels: tuple[tuple[str, str], ...]
    """What tells it from others, whatever its state."""
    summary: str


def alarms(prometheus: str) -> list[Alarm]:
    """Return the alerts that are pending or firing."""
    found = _get(f"{prometheus}/api/v1/alerts")["data"]["alerts"]
    return [
        Alarm(
            name=alert["labels"]["alertname"],
            state=alert["state"],
            labels=tuple(sorted(alert["labels"].items())),
            summary=alert["annotations"]["summary"],
        )
        for alert in found
    ]


def notified(alertmanager: str) -> list[str]:
    """Return the names of the alerts that Alertmanager has and that are not resolved, sorted."""
    return sorted(alert["labels"]["alertname"] for alert in _get(f"{alertmanager}/api/v2/alerts"))


def _get(url: str) -> Any:
    return httpx.get(url, timeout=TIMEOUT_S).raise_for_status().json()


def changes(before: list[Alarm], now: list[Alarm]) -> list[str]:
    """Return a line for each alert that began, fired or ended between two looks."""
    old, new = ({alarm.labels: alarm for alarm in look} for look in (before, now))
    begun = [
        f"{alarm.name} {alarm.state}: {alarm.summary}"
        for labels, alarm in new.items()
        if labels not in old or old[labels].state != alarm.state
    ]
    ended = [
        f"{alarm.name} {'resolved' if alarm.state == 'firing' else 'no longer pending'}"
        for labels, alarm in old.items()
        if labels not in new
    ]
    return begun + ended
