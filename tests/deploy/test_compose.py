"""The compose file: valid, its files there, its settings the server's, nothing allowed that is not needed."""

import json
import re
from pathlib import Path

import pytest
import yaml
from compose_spec import PyCompose

from model_store import __version__
from service.server import HEAR_OUT_S
from service.settings import PREFIX, Settings

FILE = Path(__file__).parents[2] / "deploy" / "compose.yaml"
CAPTURE_FILE = FILE.with_name("compose.capture.yaml")
DOCKERFILE = (FILE.parents[1] / "Dockerfile").read_text()
COMPOSE = yaml.safe_load(FILE.read_text())
SERVICES = COMPOSE["services"]
MIB = {"m": 1, "g": 1024}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in SERVICES["service"]["environment"].items():
        monkeypatch.setenv(name, value)
    return Settings()


def volumes(name: str) -> list[list[str]]:
    return [mount.split(":") for mount in SERVICES[name].get("volumes", [])]


def test_it_is_a_compose_file() -> None:
    """Anchors are YAML's, so they are resolved first; an unknown key is refused."""
    assert set(PyCompose.from_json(json.dumps(COMPOSE)).to_dict()["services"]) == set(SERVICES)
    with pytest.raises(ValueError, match="readonly"):
        PyCompose.from_json(json.dumps({"services": {"one": {"image": "x", "readonly": True}}}))


def test_every_mounted_file_and_volume_is_there() -> None:
    named = set()
    for name in SERVICES:
        for source, _, *mode in volumes(name):
            if source.startswith("."):
                assert (FILE.parent / source).exists(), source
                assert mode == ["ro"]
            else:
                named.add(source)
    assert named == set(COMPOSE["volumes"])


def test_every_setting_exists(settings: Settings) -> None:
    environment = SERVICES["service"]["environment"]
    assert set(environment) <= {PREFIX + name.upper() for name in Settings.model_fields}
    assert all(isinstance(value, str) for value in environment.values())
    limit = SERVICES["service"]["deploy"]["resources"]["limits"]["cpus"]
    assert settings.threads == settings.decode_threads == int(limit)


def test_it_may_stop_later_than_it_drains(settings: Settings) -> None:
    (seconds,) = re.fullmatch(r"(\d+)s", SERVICES["service"]["stop_grace_period"]).groups()  # type: ignore[union-attr]
    assert int(seconds) > settings.drain_delay_s + HEAR_OUT_S + settings.drain_timeout_s


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_allowed_that_is_not_needed(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["healthcheck"]["test"][0] == "CMD"
    limits = service["deploy"]["resources"]["limits"]
    assert set(limits) == {"cpus", "memory"}
    if name != "service":  # its image says who runs it
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])


def test_who_watches_does_not_wait_for_who_is_watched() -> None:
    waited_for = {name: set(service.get("depends_on", {})) for name, service in SERVICES.items()}
    assert not waited_for["prometheus"] | waited_for["alertmanager"]
    assert not any("service" in names for names in waited_for.values())


@pytest.mark.parametrize("name", ["prometheus", "alertmanager"])
def test_links_in_alerts_lead_to_the_published_port(name: str) -> None:
    (flag,) = [flag for flag in SERVICES[name]["command"] if flag.startswith("--web.external-url=")]
    (published,) = SERVICES[name]["ports"]
    assert flag == f"--web.external-url=http://{published.rpartition(':')[0]}/"


def test_prometheus_serves_the_runbook() -> None:
    (flag,) = [flag for flag in SERVICES["prometheus"]["command"] if flag.startswith("--web.user-assets=")]
    ((source, target),) = [mount[:2] for mount in volumes("prometheus") if mount[0].startswith(".")]
    served = Path(flag.partition("=")[2]).relative_to(target)
    assert (FILE.parent / source / served / "runbook.html").is_file()


def test_capture_is_a_file_of_its_own_with_a_volume_that_the_server_may_write_to() -> None:
    """A new volume begins with the folder of the image that it is mounted on, its owner included."""
    capture = yaml.safe_load(CAPTURE_FILE.read_text())
    PyCompose.from_json(json.dumps(capture))
    assert set(capture["services"]) == {"service"}
    added = capture["services"]["service"]
    assert set(added["environment"]) <= {PREFIX + name.upper() for name in Settings.model_fields}
    assert "OOD_CAPTURE_DIR" not in SERVICES["service"]["environment"]
    folder = added["environment"]["OOD_CAPTURE_DIR"]
    assert added["volumes"] == [f"captured:{folder}"]
    assert set(capture["volumes"]) == {"captured"}
    (owned,) = re.findall(r"^RUN install --directory --owner ood --group ood (.*)$", DOCKERFILE, re.MULTILINE)
    assert folder in owned.split()


def test_images_are_of_one_version() -> None:
    images = {name: service["image"] for name, service in SERVICES.items()}
    assert images["service"] == f"energy-ood:{__version__}-cpu"
    assert all(re.search(r":v?\d+\.\d+\.\d+", image) for image in images.values())
