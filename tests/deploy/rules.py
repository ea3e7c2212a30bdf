"""The shipped rules, their unit tests and dashboards, as data."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
RULE_FILES = sorted((PROMETHEUS / "rules").glob("*.yml"))
TEST_FILES = sorted((PROMETHEUS / "tests").glob("*.yml"))
DASHBOARD_FILES = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))


def rules(kind: str) -> list[dict[str, Any]]:
    """Return the rules that are an `alert`, or a `record`."""
    groups = [group for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def alert_names() -> set[str]:
    return {rule["alert"] for rule in rules("alert")}


def dashboards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in DASHBOARD_FILES}


def dashboard_queries() -> Iterator[str]:
    for dashboard in dashboards().values():
        for panel in dashboard["panels"]:
            yield from (target["expr"] for target in panel.get("targets", []))


def series_of(expression: str) -> set[str]:
    """Return the names of the series that an expression reads."""
    without_labels = re.sub(r"\{[^}]*\}", "{", expression)
    without_grouping = re.sub(r"\b(by|on|without|ignoring|group_left|group_right) *\([^)]*\)", "", without_labels)
    names = re.findall(r"\b(?:job\w*:\w+:\w+|\w+)\b(?! *\()", without_grouping)
    return {name for name in names if "_" in name} - {"__rate_interval", "group_left"}
