"""The rules load, pass their unit tests, and read what the server has; every alert is tested, documented and routed."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from rules import DEPLOY, PROMETHEUS, RULE_FILES, TEST_FILES, alert_names, dashboard_queries, rules, series_of

from deploy.runbook_page import PAGE, generate
from deploy.stack import ALERTMANAGER_CONFIG, Ports, write_config
from service.capture.record import DROP_REASONS
from service.settings import Settings

ROOT = Path(__file__).parents[2]
METRICS_PAGE = (ROOT / "docs" / "metrics.md").read_text()
MONITORING_PAGE = (ROOT / "docs" / "monitoring.md").read_text()
RUNBOOK = (DEPLOY / "runbook.md").read_text()
RUNBOOK_URL = '{{ or $externalLabels.runbook (print $externalURL "/user/runbook.html") }}'
ENTRIES = re.findall(r"^## (Ood\w+)$", RUNBOOK, re.MULTILINE)


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_its_configuration() -> None:
    checked = _run("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
    assert checked.count("rules found") == len(RULE_FILES)
    assert "WARNING" not in checked


def test_rules_pass_their_unit_tests() -> None:
    assert _run("promtool", "test", "rules", *TEST_FILES).count("SUCCESS") == len(TEST_FILES)


def _expected(name: str) -> list[int]:
    """Return how many alerts of a name are expected at each moment that the unit tests look at."""
    cases = [case for path in TEST_FILES for case in yaml.safe_load(path.read_text())["tests"]]
    looks = [look for case in cases for look in case.get("alert_rule_test", [])]
    return [len(look["exp_alerts"]) for look in looks if look["alertname"] == name]


@pytest.mark.parametrize("name", sorted(alert_names()))
def test_alert_has_unit_tests_in_which_it_fires_and_in_which_it_does_not(name: str) -> None:
    expected = _expected(name)
    assert 0 in expected
    assert max(expected) == sum(rule["alert"] == name for rule in rules("alert"))  # every severity of it


def test_alerts_and_runbook_are_of_one_mind() -> None:
    assert len(set(ENTRIES)) == len(ENTRIES)
    assert set(ENTRIES) == alert_names()
    for rule in rules("alert"):
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOK_URL}#{rule['alert'].lower()}"


def test_the_runbooks_page_is_the_runbook_with_an_anchor_for_each_alert() -> None:
    page = PAGE.read_text()
    assert page == generate()
    assert {name.lower() for name in alert_names()} == set(re.findall(r'<h2 id="(.*?)">', page))
    assert re.findall(r'(?:href|src)="(?!https?:)', page) == []  # beside it is nothing that it could lead to
    files = re.findall(r"<code>((?:deploy|docs)/.*?)</code>", page)
    assert len(files) == len(re.findall(r"\]\((?!https?:)", RUNBOOK))
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_runbook_entries_have_the_same_parts() -> None:
    for name, entry in zip(ENTRIES, re.split(r"^## Ood\w+$", RUNBOOK, flags=re.MULTILINE)[1:], strict=True):
        parts = re.findall(r"^\*\*(.*?)\.\*\*", entry, re.MULTILINE)
        assert parts == ["Meaning", "Look first", "Causes", "Do", "Silence"], name
    for target in re.findall(r"\]\(([^)#]+)", RUNBOOK):
        assert (DEPLOY / target).exists(), target


def test_rules_dashboards_and_runbook_read_what_is_there() -> None:
    families = re.findall(r"^\| `(\w+)` \| (\w+) \|", METRICS_PAGE, re.MULTILINE)
    endings = {"histogram": ("_bucket", "_sum", "_count")}
    known = {name + ending for name, kind in families for ending in endings.get(kind, ("",))}
    known |= {rule["record"] for rule in rules("record")} | {
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
    }
    asked = [rule["expr"] for rule in (*rules("alert"), *rules("record"))]
    asked += [*dashboard_queries(), *re.findall(r"```promql\n(.*?)```", RUNBOOK, re.DOTALL)]
    read = set().union(*map(series_of, asked))
    assert len(read) > 50
    assert read <= known, read - known


def test_a_trial_differs_from_what_ships_in_two_intervals_and_the_targets(tmp_path: Path) -> None:
    config = write_config(tmp_path / "prometheus", Ports(1, 2, 3), interval_s=7)
    shipped, ours = (path.read_text().splitlines() for path in (PROMETHEUS / "prometheus.yml", config))
    assert [(was, now) for was, now in zip(shipped, ours, strict=True) if was != now] == [
        ("  scrape_interval: 15s", "  scrape_interval: 7s"),
        ("  evaluation_interval: 15s", "  evaluation_interval: 7s"),
    ]
    for path in RULE_FILES:
        assert (config.parent / "rules" / path.name).read_bytes() == path.read_bytes()
    assert yaml.safe_load((config.parent / "targets" / "service.yml").read_text()) == [{"targets": ["127.0.0.1:1"]}]
    assert yaml.safe_load((config.parent / "targets" / "alertmanager.yml").read_text()) == [
        {"targets": ["127.0.0.1:3"]}
    ]


def test_alertmanager_takes_its_configuration() -> None:
    checked = _run("amtool", "check-config", ALERTMANAGER_CONFIG)
    config = yaml.safe_load(ALERTMANAGER_CONFIG.read_text())
    assert f" - {len(config['inhibit_rules'])} inhibit rules\n - {len(config['receivers'])} receivers\n" in checked


@pytest.mark.parametrize("rule", rules("alert"), ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_alert_reaches_whom_it_concerns(rule: dict) -> None:
    labels = [f"{name}={value}" for name, value in ({"alertname": rule["alert"]} | rule["labels"]).items()]
    told = _run("amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER_CONFIG}", *labels).strip()
    assert told == {"critical": "on-call", "warning": "team"}[rule["labels"]["severity"]]


def test_inhibitions_name_alerts_that_exist() -> None:
    config = yaml.safe_load(ALERTMANAGER_CONFIG.read_text())
    matchers = [one for rule in config["inhibit_rules"] for one in (*rule["source_matchers"], *rule["target_matchers"])]
    named = {name for matcher in matchers for name in re.findall(r"\bOod\w+", matcher)}
    assert named
    assert named <= alert_names()


def test_runbook_names_settings_and_log_lines_that_exist() -> None:
    settings = {f"OOD_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"\bOOD_[A-Z_]+\b", RUNBOOK))
    assert len(named) > 10
    assert named <= settings
    source = "".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    lines = set(re.findall(r"`([a-z]+(?: [a-z]+)+)`", RUNBOOK))
    assert len(lines) >= 5
    assert {line for line in lines if f'"{line}"' not in source} == set()


def test_capture_drops_images_for_the_reason_that_the_rule_leaves_out() -> None:
    (rule,) = [rule for rule in rules("alert") if rule["alert"] == "OodCaptureDropping"]
    assert set(re.findall(r'reason!="(.*?)"', rule["expr"])) < set(DROP_REASONS)
    assert rule["expr"].count("ood_capture_dropped_total{reason!=") == 3


def test_documentation_lists_every_alert_with_its_severities() -> None:
    listed = dict(re.findall(r"^\| `(Ood\w+)` \| ([a-z, ]+) \|", MONITORING_PAGE, re.MULTILINE))
    severities: dict[str, list[str]] = {}
    for rule in rules("alert"):
        severities.setdefault(rule["alert"], []).append(rule["labels"]["severity"])
    assert listed == {name: ", ".join(found) for name, found in severities.items()}
