"""The server, Prometheus and Alertmanager on loopback, from the files that ship; for a trial, and for the tests."""

import os
import re
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.programs import find, require_free, running

HERE = Path(__file__).parent
RULES = HERE / "prometheus" / "rules"
USER_ASSETS = HERE / "prometheus" / "user"
ALERTMANAGER_CONFIG = HERE / "alertmanager" / "alertmanager.yml"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """Where each listens, on loopback."""

    service: int = 8000
    prometheus: int = 9090
    alertmanager: int = 9093


@dataclass(frozen=True)
class Stack:
    """The URLs of what runs, and the folder of its data and logs."""

    service: str
    prometheus: str
    alertmanager: str
    folder: Path


@contextmanager
def running_stack(folder: Path, ports: Ports, *, interval_s: int, settings: Mapping[str, str]) -> Iterator[Stack]:
    """Run all three from when they are ready to the end of the block.

    Args:
        folder: where configuration, data and logs go.
        ports: where they listen.
        interval_s: how often Prometheus scrapes and evaluates, in place of what the shipped file says.
        settings: `OOD_*` variables of the server, which those of the environment precede.

    Raises:
        MissingProgramError: Prometheus or Alertmanager is not installed.
        PortTakenError: somebody listens already at one of the ports.
        ProgramEndedError: one of them could not be started.
    """
    prometheus, alertmanager = find("prometheus"), find("alertmanager", "prometheus-alertmanager")
    for port in vars(ports).values():
        require_free(LOOPBACK, port)
    service = str(Path(sysconfig.get_path("scripts"), "ood-serve"))
    config = write_config(folder / "prometheus", ports, interval_s)
    url = {name: f"http://{LOOPBACK}:{port}" for name, port in vars(ports).items()}
    commands = {
        "service": ([service, "--host", LOOPBACK, "--port", str(ports.service)], "/readyz"),
        "alertmanager": (
            [
                alertmanager,
                f"--config.file={ALERTMANAGER_CONFIG}",
                f"--storage.path={folder / 'alertmanager-data'}",
                f"--web.listen-address={LOOPBACK}:{ports.alertmanager}",
                "--cluster.listen-address=",
            ],
            "/-/ready",
        ),
        "prometheus": (
            [
                prometheus,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'prometheus-data'}",
                f"--web.listen-address={LOOPBACK}:{ports.prometheus}",
                f"--web.external-url={url['prometheus']}",
                f"--web.user-assets={USER_ASSETS}",
            ],
            "/-/ready",
        ),
    }
    with ExitStack() as programs:
        for name, (command, path) in commands.items():
            programs.enter_context(
                running(
                    command,
                    ready=url[name] + path,
                    log=folder / f"{name}.log",
                    environment={**settings, **os.environ},
                )
            )
        yield Stack(**url, folder=folder)


def write_config(folder: Path, ports: Ports, interval_s: int) -> Path:
    """Write Prometheus's configuration into a folder: as it ships, but for the two intervals and where all listen."""
    shutil.copytree(RULES, folder / "rules")
    shipped = (HERE / "prometheus" / "prometheus.yml").read_text()
    config = folder / "prometheus.yml"
    config.write_text(re.sub(r"(scrape|evaluation)_interval: \w+", rf"\1_interval: {interval_s}s", shipped))
    targets = folder / "targets"
    targets.mkdir()
    for name in ("service", "alertmanager"):
        (targets / f"{name}.yml").write_text(f'- targets: ["{LOOPBACK}:{getattr(ports, name)}"]\n')
    return config
