"""The dashboards are what their code makes, can be read by Grafana's own types, and explain themselves."""

import json
import re
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from rules import DASHBOARD_FILES, DEPLOY, dashboards

from deploy.grafana.generate import generate
from deploy.grafana.overview import OOD_SHARE
from service.settings import Settings

PANELS = [
    pytest.param(panel, id=f"{name}-{panel['title']}")
    for name, dashboard in dashboards().items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
]


def test_dashboards_are_what_their_code_makes() -> None:
    """`make dashboards` renews them."""
    assert generate() == {path.stem: path.read_text() for path in DASHBOARD_FILES}


def _kept(ours: Any, read: Any) -> bool:
    """Whether all that we wrote was understood; what was left out may have got a default."""
    if isinstance(ours, dict):
        return all(name in read and _kept(value, read[name]) for name, value in ours.items())
    if isinstance(ours, list):
        return len(ours) == len(read) and all(map(_kept, ours, read))
    return bool(ours == read)


@pytest.mark.parametrize("name", dashboards())
def test_dashboard_is_of_grafanas_types(name: str) -> None:
    plugins.register_default_plugins()
    ours = dashboards()[name]
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(ours)))
    assert _kept(ours, read)
    ours["panels"][1]["targets"][0]["expression"] = "up"
    assert not _kept(ours, json.loads(JSONEncoder().encode(Dashboard.from_json(ours))))


@pytest.mark.parametrize("panel", PANELS)
def test_panel_explains_itself(panel: dict[str, Any]) -> None:
    assert len(panel["title"]) <= 30
    assert panel["description"].endswith(".")
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"]
    if panel["type"] != "heatmap":
        assert defaults["thresholds"]["steps"][0] == {"color": "green", "value": None}
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize("name", dashboards())
def test_panels_fill_the_width_and_are_numbered(name: str) -> None:
    panels = dashboards()[name]["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    widths: dict[int, int] = {}
    for panel in panels:
        widths[panel["gridPos"]["y"]] = widths.get(panel["gridPos"]["y"], 0) + panel["gridPos"]["w"]
    assert set(widths.values()) == {24}


def test_dashboards_have_names_of_their_own_and_variables_that_are_used() -> None:
    found = dashboards()
    assert len({dashboard["uid"] for dashboard in found.values()}) == len(found) == 3
    for dashboard in found.values():
        used = set(re.findall(r"\$\{?(\w+)", str([dashboard["panels"], dashboard["templating"]]))) - {"__rate_interval"}
        assert used == {variable["name"] for variable in dashboard["templating"]["list"]}


def test_overview_has_the_ood_rate_and_share_at_a_glance() -> None:
    figures = {panel["title"]: panel for panel in dashboards()["overview"]["panels"] if panel["type"] == "stat"}
    asked = {title: panel["targets"][0]["expr"] for title, panel in figures.items()}
    assert asked["Flagged"] == "max(job_model:ood_images_flagged:ratio_rate5m)"
    assert asked["Truly OOD"] == "max(job_model:ood_share:estimate_rate1h)"
    assert asked["Truly OOD, at least"] == 'max(job_model:ood_share:interval_rate1h{bound="lower"})'
    assert Settings.model_fields["watch_ood_share"].default == OOD_SHARE
    red = figures["Truly OOD"]["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]
    assert red == {"color": "red", "value": OOD_SHARE}


def test_grafana_is_provisioned_with_a_source_and_the_dashboards() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    source, provider = (
        yaml.safe_load((provisioning / path).read_text())
        for path in ("datasources/prometheus.yml", "dashboards/dashboards.yml")
    )
    assert [(one["type"], one["isDefault"]) for one in source["datasources"]] == [("prometheus", True)]
    shipped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert source["datasources"][0]["jsonData"]["timeInterval"] == shipped["global"]["scrape_interval"]
    assert provider["providers"][0]["options"]["path"] == "/etc/grafana/dashboards"
