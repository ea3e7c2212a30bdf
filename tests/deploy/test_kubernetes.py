"""The manifests as kustomize builds them: valid, consistent with one another, with the server and its settings."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor

from model_store import __version__
from service.processes.supervisor import GRACE_S
from service.routes import health
from service.settings import PREFIX, Settings
from service.watching.expectations import WatchOptions

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
OLDEST, NEWEST = "1.31", "1.37"
MEBIBYTES = {"Mi": 1, "Gi": 1024}
pytestmark = pytest.mark.slow  # not for its time: it needs kubectl

Built = Mapping[str, Any]


@pytest.fixture(scope="module", params=["base", "overlays/gpu"])
def built(request: pytest.FixtureRequest) -> Built:
    """What kustomize makes of one folder, by kind."""
    finished = subprocess.run(
        ["kubectl", "kustomize", KUBERNETES / request.param], capture_output=True, text=True, check=True
    )
    assert finished.stderr == ""  # nothing deprecated
    objects = list(yaml.safe_load_all(finished.stdout))
    assert len({found["kind"] for found in objects}) == len(objects)
    return {found["kind"]: found for found in objects}


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
