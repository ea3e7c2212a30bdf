"""The manifests as kustomize builds them: valid, consistent with one another, with the server and its settings."""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor
from rules import DASHBOARD_FILES, RULE_FILES

from deploy import prometheus_rule
from model_store import __version__
from service.processes.supervisor import GRACE_S
from service.routes import health
from service.settings import PREFIX, Settings
from service.watching.expectations import WatchOptions

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
OLDEST, NEWEST = "1.31", "1.37"
DASHBOARDS = "energy-ood-dashboards"
MEBIBYTES = {"Mi": 1, "Gi": 1024}
pytestmark = pytest.mark.slow  # not for its time: it needs kubectl

Built = Mapping[str, Any]


def kustomize(folder: Path) -> list[Built]:
    finished = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
    assert finished.stderr == ""  # nothing deprecated
    return list(yaml.safe_load_all(finished.stdout))


@pytest.fixture(scope="module", params=["base", "overlays/gpu"])
def built(request: pytest.FixtureRequest) -> Built:
    """What kustomize makes of one folder, by kind."""
    objects = kustomize(KUBERNETES / request.param)
    assert len({found["kind"] for found in objects}) == len(objects)
    return {found["kind"]: found for found in objects}


@pytest.fixture(scope="module", params=["base", "overlays/gpu"])
def with_components(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """What an overlay with both components makes of one folder, by kind; the dashboards under their name."""
    overlay = tmp_path_factory.mktemp("overlay")
    there = os.path.relpath(KUBERNETES, overlay)
    components = [f"{there}/components/{name}" for name in ("capture", "monitoring")]
    (overlay / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": [f"{there}/{request.param}"], "components": components})
    )
    objects = kustomize(overlay)
    found = {one["metadata"]["name"] if one["metadata"]["name"] == DASHBOARDS else one["kind"]: one for one in objects}
    assert len(found) == len(objects)
    return found


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> bool:
    return request.node.callspec.params["built"] == "overlays/gpu"


def pod(built: Built) -> Any:
    return built["Deployment"]["spec"]["template"]


def container(built: Built) -> Any:
    (only,) = pod(built)["spec"]["containers"]
    return only


def settings_of(built: Built, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in built["ConfigMap"]["data"].items():
        monkeypatch.setenv(name, value)
    return Settings()


def mebibytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * MEBIBYTES[unit]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_is_valid(built: Built, version: str) -> None:
    assert set(built) == {
        "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget", "Service",
        "ServiceMonitor",
    }  # fmt: skip
    for kind, found in built.items():
        if kind != "ServiceMonitor":
            kubernetes_validate.validate(found, version, strict=True)


def test_service_monitor_is_valid(built: Built) -> None:
    """The model drops what it does not know, so nothing may be missing afterwards."""
    found = built["ServiceMonitor"]
    model = ServiceMonitor.model_validate(found)
    assert model.model_dump(mode="json", by_alias=True, exclude_none=True) == found


def test_every_selector_finds_the_pods(built: Built) -> None:
    labels = pod(built)["metadata"]["labels"]
    assert labels == built["Service"]["metadata"]["labels"]
    spec = {kind: found.get("spec", {}) for kind, found in built.items()}
    selectors = [
        spec["Deployment"]["selector"]["matchLabels"],
        spec["Service"]["selector"],
        spec["ServiceMonitor"]["selector"]["matchLabels"],
        spec["PodDisruptionBudget"]["selector"]["matchLabels"],
        spec["NetworkPolicy"]["podSelector"]["matchLabels"],
        *(found["labelSelector"]["matchLabels"] for found in pod(built)["spec"]["topologySpreadConstraints"]),
    ]
    assert all(selector == labels for selector in selectors)
    target = spec["HorizontalPodAutoscaler"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", built["Deployment"]["metadata"]["name"])


def test_every_port_is_the_one_of_the_container(built: Built) -> None:
    (port,) = container(built)["ports"]
    assert port == {"name": "http", "containerPort": Settings.model_fields["port"].default}
    (service,) = built["Service"]["spec"]["ports"]
    assert service["targetPort"] == port["name"]
    assert [endpoint["port"] for endpoint in built["ServiceMonitor"]["spec"]["endpoints"]] == [service["name"]]
    assert built["NetworkPolicy"]["spec"]["ingress"] == [{"ports": [{"protocol": "TCP", "port": port["name"]}]}]


def test_every_path_is_a_route(built: Built) -> None:
    routes = {getattr(route, "path", None) for route in health.router.routes}
    probes = {kind: container(built)[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz",
    }  # fmt: skip
    scraped = {endpoint["path"] for endpoint in built["ServiceMonitor"]["spec"]["endpoints"]}
    assert scraped == {"/metrics"}
    assert scraped | {probe["path"] for probe in probes.values()} <= routes
    assert all(probe["port"] == "http" for probe in probes.values())


def test_every_setting_exists_and_is_possible(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(built["ConfigMap"]["data"]) <= {PREFIX + name.upper() for name in Settings.model_fields}
    settings = settings_of(built, monkeypatch)
    assert settings.public_health  # the kubelet has no key
    assert pod(built)["spec"]["enableServiceLinks"] is False
    (config_map, keys) = container(built)["envFrom"]
    assert config_map["configMapRef"]["name"] == built["ConfigMap"]["metadata"]["name"]
    assert keys["secretRef"]["optional"] is True


def test_termination_is_longer_than_the_drain(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(built, monkeypatch)
    longest_s = settings.drain_delay_s + settings.drain_timeout_s + 2 * GRACE_S  # workers, then the engine, are killed
    assert pod(built)["spec"]["terminationGracePeriodSeconds"] > longest_s


def test_readiness_forgives_one_slow_reply_and_fails_before_the_listener_closes(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe begins a period after the one before, or when that has ended, at the latest after its timeout."""
    readiness = container(built)["readinessProbe"]
    assert readiness["failureThreshold"] >= 2
    assert readiness["timeoutSeconds"] >= 2
    longest_s = readiness["periodSeconds"] + readiness["failureThreshold"] * max(
        readiness["periodSeconds"], readiness["timeoutSeconds"]
    )
    assert settings_of(built, monkeypatch).drain_delay_s >= longest_s + 2


def test_false_alarms_of_all_pods_together_are_as_rare_as_promised_of_one(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods = built["HorizontalPodAutoscaler"]["spec"]["maxReplicas"]
    watch = settings_of(built, monkeypatch).watch_options
    assert watch.images_between_false_alarms == pods * WatchOptions().images_between_false_alarms


def test_resources_are_what_the_settings_take(built: Built, gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory that the settings bound, beside what the server has before the first request."""
    settings = settings_of(built, monkeypatch)
    limits = container(built)["resources"]["limits"]
    assert settings.decode_threads == int(limits["cpu"])
    bounded = settings.max_pending_bytes + settings.decode_threads * settings.max_decode_memory_bytes
    idle_mib = 3072 if gpu else 600
    assert mebibytes(limits["memory"]) >= idle_mib + bounded / 2**20
    assert limits.get("nvidia.com/gpu") == ("1" if gpu else None)
    assert gpu or settings.threads == int(limits["cpu"])


def test_nothing_is_allowed_that_is_not_needed(built: Built) -> None:
    spec = pod(built)["spec"]
    assert spec["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert container(built)["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert spec["automountServiceAccountToken"] is False
    assert {mount["name"] for mount in container(built)["volumeMounts"]} == {
        volume["name"] for volume in spec["volumes"]
    }


def test_image_is_of_this_version(built: Built, gpu: bool) -> None:
    assert container(built)["image"] == f"energy-ood:{__version__}-{'cuda' if gpu else 'cpu'}"


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_components_add_what_is_valid(with_components: Built, version: str) -> None:
    assert {DASHBOARDS, "PrometheusRule", "ServiceMonitor"} <= set(with_components)
    for kind, found in with_components.items():
        if kind not in {"PrometheusRule", "ServiceMonitor"}:
            kubernetes_validate.validate(found, version, strict=True)


def test_capture_has_a_volume_of_its_own_that_its_quota_fits_into(
    with_components: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(with_components, monkeypatch)
    (mount,) = [one for one in container(with_components)["volumeMounts"] if one["name"] == "captured"]
    (volume,) = [one for one in pod(with_components)["spec"]["volumes"] if one["name"] == "captured"]
    assert mount["mountPath"] == str(settings.capture_dir)
    claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert mebibytes(claim["resources"]["requests"]["storage"]) >= 1.25 * settings.capture_max_bytes / 2**20
    assert {mount["name"] for mount in container(with_components)["volumeMounts"]} == {
        volume["name"] for volume in pod(with_components)["spec"]["volumes"]
    }


def test_capture_is_off_without_its_component(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_of(built, monkeypatch).capture_dir is None


def test_the_operator_gets_every_rule(with_components: Built) -> None:
    """`make rules` renews the manifest. The model drops what it does not know, so nothing may be missing afterwards."""
    assert prometheus_rule.MANIFEST.read_text() == prometheus_rule.generate()
    found = with_components["PrometheusRule"]
    groups = [group for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"]]
    assert found["spec"]["groups"] == groups
    assert PrometheusRule.model_validate(found).model_dump(mode="json", by_alias=True, exclude_none=True) == found


def test_alerts_know_the_servers_by_the_job_that_the_operator_gives_them(with_components: Built) -> None:
    """Without a `jobLabel` that is the Service's name."""
    assert "jobLabel" not in with_components["ServiceMonitor"]["spec"]
    jobs = set(re.findall(r'up\{job="(.*?)"', str(with_components["PrometheusRule"])))
    assert jobs == {with_components["Service"]["metadata"]["name"]}


def test_grafanas_sidecar_finds_every_dashboard(with_components: Built) -> None:
    found = with_components[DASHBOARDS]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["data"] == {path.name: path.read_text() for path in DASHBOARD_FILES}
    assert len(json.dumps(found)) < 2**18  # `kubectl apply` keeps it in an annotation
