"""The command by which an image says whether its server is alive, beside real ones."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
from live import Gate, Running, running, wait_until
from pydantic import SecretStr

from service.settings import Settings

HEALTHCHECK = Path(__file__).parents[2] / "deploy" / "image" / "healthcheck.py"


def check(url: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    port = {"OOD_PORT": str(httpx.URL(url).port)}
    return subprocess.run(
        [sys.executable, HEALTHCHECK], env=os.environ | port | environment, capture_output=True, text=True
    )


def test_a_server_that_answers_is_healthy(server: Running) -> None:
    found = check(server.url, http_proxy="http://127.0.0.1:9")  # a container's proxy is not for its own port
    assert (found.returncode, found.stderr) == (0, "")


def test_a_closed_server_is_asked_with_a_key(settings: Callable[..., Settings]) -> None:
    with running(settings(api_keys=(SecretStr("schlüssel"), SecretStr("second")), public_health=False)) as server:
        assert check(server.url).stderr.startswith("401 ")
        assert check(server.url, OOD_API_KEYS="schlüssel,second").returncode == 0


def test_a_server_whose_engine_has_died_is_not(
    settings: Callable[..., Settings], gate: Gate, pngs: list[bytes]
) -> None:
    with running(settings(drain_timeout_s=1)) as server:
        gate.broken = True
        httpx.post(f"{server.url}/predict", content=pngs[0])
        wait_until(lambda: server.server.engine_died)
        assert check(server.url).returncode == 1


def test_no_server_is_not() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        found = check(f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert found.returncode == 1
    assert "ConnectionRefusedError" in found.stderr
