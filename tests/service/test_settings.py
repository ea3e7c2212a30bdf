"""Settings: variables and flags, what stops the start, and the page that documents them."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from live import SERVE, Process

from service.cli import read_settings
from service.errors import SettingsError
from service.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()


def test_variables_and_flags_set_the_same_and_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OOD_PORT", "9001")
    monkeypatch.setenv("OOD_MODELS", "cifar10, traffic-signs@3")
    assert read_settings([], os.environ).port == 9001
    assert read_settings([], os.environ).models == ("cifar10", "traffic-signs@3")
    both = read_settings(["--port", "9002", "--models", "cifar10@1"], os.environ)
    assert (both.port, both.models) == (9002, ("cifar10@1",))


def test_origins_are_taken_as_browsers_send_them() -> None:
    given = "*, null, https://a.example, http://[::1]:3000"
    assert read_settings(["--cors-origins", given], {}).cors_origins == tuple(given.split(", "))


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        ([], {"OOD_PROT": "1"}, "unknown variables OOD_PROT; there are OOD_API_KEYS"),
        (["--port", "65536"], {}, "--port / OOD_PORT is '65536': Input should be less than or equal to 65535"),
        (["--port", "http"], {}, "--port / OOD_PORT is 'http'"),
        (["--max-batch-size", "0"], {}, "--max-batch-size / OOD_MAX_BATCH_SIZE is '0'"),
        (["--deadline-s", "nan"], {}, "--deadline-s / OOD_DEADLINE_S is 'nan'"),
        (["--deadline-s", "-1"], {}, "greater than 0"),
        (["--runtime", "triton"], {}, "'auto', 'torch-eager', 'torch-compiled', 'torch-graphs' or 'openvino'"),
        (["--models", ""], {}, "models is empty"),
        (["--models", "cifar10@x"], {}, "the version is 'x'; expected a positive integer"),
        (["--max-queue-images", "8"], {}, "max_images_per_request is 64, above max_queue_images 8"),
        (["--max-pending-bytes", "8"], {}, "max_request_bytes is 67108864, above max_pending_bytes 8"),
        (["--api-keys", "ok,"], {}, None),
        (["--api-keys", ""], {}, "api_keys is given and empty, which would open the server"),
        (["--api-keys", ", "], {}, "(hidden)"),
        (["--capture-dir", ""], {}, "--capture-dir / OOD_CAPTURE_DIR is ''"),
        (["--state-dir", ""], {}, "it is given and empty, which would be the working directory"),
        (["--store", ""], {}, "--store / OOD_STORE is ''"),
        (["--cors-origins", "*, example.com"], {}, "'example.com' is no origin that a browser sends"),
        (["--cors-origins", "https://*.example.com"], {}, "'https://*.example.com' is no origin that a browser sends"),
        (["--cors-origins", "https://example.com/"], {}, "'https://example.com/' is no origin that a browser sends"),
        (["--cors-origins", "https://Example.com"], {}, "in lower case and no more, as in https://example.com"),
        (["--log-level", "loud"], {}, "--log-level / OOD_LOG_LEVEL is 'loud'"),
    ],
)
def test_impossible_settings_are_refused_by_name(
    flags: list[str], environment: dict[str, str], message: str | None
) -> None:
    if message is None:
        assert len(read_settings(flags, environment).api_keys) == 1
        return
    with pytest.raises(SettingsError) as caught:
        read_settings(flags, environment)
    assert message in str(caught.value)


def test_who_has_no_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a container's user by number alone."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("OOD_CACHE_DIR", raising=False)
    with pytest.raises(SettingsError, match="no home directory; set OOD_CACHE_DIR"):
        read_settings([], os.environ)
    assert read_settings(["--cache-dir", "here"], os.environ).cache_dir == Path("here")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_server_that_still_loads_without_a_word(number: int) -> None:
    code = f"import signal, service.cli as c; c.serve = lambda _: signal.raise_signal({int(number)}); c.main()"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (128 + number, "")


def test_a_bad_setting_stops_the_start_with_one_line() -> None:
    finished = subprocess.run([SERVE], env=os.environ | {"OOD_PROT": "1"}, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stderr.startswith("ood-serve: unknown variables OOD_PROT")
    assert finished.stderr.count("\n") == 1
    assert finished.stdout == ""


def test_every_setting_is_documented_with_its_flag_and_default() -> None:
    rows = {row[0]: row for row in re.findall(r"^\| `(OOD_\w+)` \| `(--[\w-]+)` \| (.*?) \| (.*?) \|$", PAGE, re.M)}
    assert rows.keys() == {f"OOD_{name.upper()}" for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        _, flag, default, meaning = rows[f"OOD_{name.upper()}"]
        assert flag == f"--{name.replace('_', '-')}"
        assert meaning == field.description
        if field.default_factory is None and name != "store":
            value = field.default
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)
            assert default == (f"`{shown}`" if shown else ""), name


def test_flags_and_variables_reach_the_server(serve: Callable[..., AbstractContextManager[Process]]) -> None:
    with serve("--runtime", "torch-eager", OOD_MAX_IMAGE_PIXELS="1000", OOD_API_KEYS="secret-1,secret-2") as server:
        headers = {"Authorization": "Bearer secret-2"}
        info = httpx.get(f"{server.url}/info", headers=headers)
        assert info.json()["settings"]["max_image_pixels"] == 1000
        assert info.json()["settings"]["api_keys"] == ["***", "***"]
        assert info.json()["models"][0]["runtime"] == "torch-eager-float32-cpu"
        assert "secret" not in info.text
        assert "-H 'Authorization: Bearer KEY'" in server.greeting
        assert {"torch", "decoder", "openvino"} <= info.json()["libraries"].keys()
        assert "(alpha 5 %)  torch-eager-float32-cpu" in server.greeting
