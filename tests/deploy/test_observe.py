"""A trial on one machine: what is replayed, what is said, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from benchmarks.servers import free_port
from deploy import observe
from deploy.alarms import Alarm, changes
from deploy.programs import MissingProgramError, PortTakenError, ProgramEndedError, find, require_free, running
from deploy.replay import Pools, load_pools, mixed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pools() -> Pools:
    return load_pools()


def test_replay_draws_the_share_and_each_image_whatever_came_before(pools: Pools) -> None:
    """Of 20,000 with a share of 0.3, within four standard deviations of sqrt(0.3 * 0.7 / 20,000) = 0.0032.

    Of 300 draws among 300 images 1 - (1 - 1/300)^300 = 0.633 are different, with a standard deviation below 0.02.
    """
    sent = list(islice(mixed(pools, 0.3, seed=1), 20_000))
    ood = set(pools.ood)
    assert abs(np.mean([image in ood for image in sent]) - 0.3) < 0.013
    known = [image for image in sent if image not in ood]
    different = [len(set(known[at : at + 300])) / 300 for at in range(0, len(known) - 300, 300)]
    assert all(abs(share - 0.633) < 0.08 for share in different)
    assert set(known) == set(pools.in_distribution)


def test_replay_without_ood_images_sends_none(pools: Pools) -> None:
    assert not set(islice(mixed(pools, 0.0, seed=1), 1000)) & set(pools.ood)
    assert (len(pools.in_distribution), len(pools.ood)) == (300, 78)


def _alarm(name: str, state: str, model: str = "m") -> Alarm:
    return Alarm(name, state, (("alertname", name), ("model", model)), f"{model} is odd")


def test_changes_of_alarms_are_told_once() -> None:
    a, b = _alarm("A", "pending"), _alarm("B", "firing")
    assert changes([], [a, b]) == ["A pending: m is odd", "B firing: m is odd"]
    assert changes([a, b], [a, b]) == []
    assert changes([a, b], [_alarm("A", "firing"), b]) == ["A firing: m is odd"]
    assert changes([a, b], []) == ["A no longer pending", "B resolved"]
    assert changes([b], [_alarm("B", "firing", "n"), b]) == ["B firing: n is odd"]


def test_missing_program_is_named_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingProgramError, match=r"^alertmanager is not installed: apt-get install prometheus"):
        find("alertmanager", "prometheus-alertmanager")
    assert observe.main([]) == 1
    assert capsys.readouterr().err.startswith("observe: prometheus is not installed: apt-get install")


def test_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"^port {port} can't be had .*: systemctl disable --now"):
            require_free("127.0.0.1", port)
    require_free("127.0.0.1", port)


def test_program_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no room')"]
    with (
        pytest.raises(ProgramEndedError, match="made up ended with status 1: no room"),
        running(command, ready=f"http://127.0.0.1:{free_port()}", log=tmp_path / "made up.log"),
    ):
        raise AssertionError("it never was ready")


@pytest.mark.parametrize("wrong", [["--ood-share", "1.2"], ["--images-per-s", "0"]])
def test_impossible_options_are_refused(wrong: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        observe.parse(wrong)
    assert "must be" in capsys.readouterr().err


@pytest.mark.slow
def test_make_observe_shows_an_alarm_and_ends_at_ctrl_c(openvino_cache: Path) -> None:
    ports = {name: str(free_port()) for name in ("PORT", "PROMETHEUS_PORT", "ALERTMANAGER_PORT")}
    told = {"SHARE": "0.5", "IMAGES_PER_S": "60", "INSTALLED": "", "BIN": str(Path(sys.executable).parent)}
    command = [
        "make",
        "--no-print-directory",
        "observe",
        *(f"{name}={value}" for name, value in (ports | told).items()),
    ]
    lines = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"OOD_CACHE_DIR": str(openvino_cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Not ignored, as it is in what a shell runs in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if "OodRateChanged firing" in line:
                os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C at a terminal does
    text = "".join(lines)
    assert f"sending 60 images/s, 50 % of them OOD\n  the server     http://127.0.0.1:{ports['PORT']}/\n" in text
    assert re.search(rf"alerts         http://127.0.0.1:{ports['PROMETHEUS_PORT']}/(classic/)?alerts\n", text), text
    assert "OodRateChanged firing: cifar10@3 flags more images than it does in distribution" in text
    assert "stopped" in text
    assert "Traceback" not in text
    for port in ports.values():
        require_free("127.0.0.1", int(port))
