"""What is watched survives a restart, and nothing that lies in its folder stops a start."""

import asyncio
import errno
import hashlib
import json
import logging
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from live import BUNDLE, Process, Running, running, wait_until

from model_store.bundle import read_manifest
from service.app import create_app
from service.errors import StartError
from service.settings import Settings
from service.watching import state
from service.watching.expectations import WatchOptions
from service.watching.state import Watched, kept
from service.watching.watch import Watch


def watched(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/models/cifar10/watch").raise_for_status().json()
    return found


def post(server: Running | Process, images: list[bytes]) -> None:
    with httpx.Client() as client:
        for image in images:
            client.post(f"{server.url}/predict", content=image).raise_for_status()


def test_window_and_alarm_survive_a_restart(
    settings: Callable[..., Settings], tmp_path: Path, pngs: list[bytes], image_of: Callable[[int], bytes]
) -> None:
    ours = settings(state_dir=tmp_path / "new" / "state", watch_hours_between_false_alarms=0.001)
    with running(ours) as server:
        post(server, [*pngs[:20], *[image_of(level) for level in (0, 40, 80, 120, 160, 200)]])
        before = watched(server.url)
    assert before["cusum"]["statistic"] > 0
    with running(ours) as server:
        after = watched(server.url)
        assert after["window"] == before["window"]
        for name in ("statistic", "limit", "shifted"):
            assert after["cusum"][name] == before["cusum"][name]
        assert (after["images"], after["flagged"], after["cusum"]["shifts"]) == (0, 0, 0)
        post(server, pngs[20:22])
        assert watched(server.url)["window"]["images"] == 28
    (kept,) = ours.state_dir.iterdir()
    assert kept.name.startswith("cifar10@1-")


def fresh() -> Watched:
    return Watched("cifar10@1", "ab" * 32, Watch(read_manifest(BUNDLE), WatchOptions()))


def keep(folder: Path, watched: Watched, p_values: Sequence[float] = ()) -> None:
    """Start, judge images of these p-values, and end."""

    async def live() -> None:
        async with kept(folder, [watched]):
            watched.watch.judged(p_values, [at % 10 for at in range(len(p_values))])

    asyncio.run(live())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: json.dumps(state)[:-9], "Invalid JSON"),
        (lambda state: json.dumps(state)[:0], "Invalid JSON"),
        (lambda state: json.dumps(state | {"sha256": "0" * 64}), "with sha256 0000"),
        (lambda state: json.dumps(state | {"model": "cifar10@7"}), "it is of cifar10@7"),
        (lambda state: json.dumps(state | {"format": 3}), "format"),
        (lambda state: json.dumps(state | {"p_values": [0.5, 1.5]}), "less than or equal to 1"),
        (lambda state: json.dumps(state | {"energy_buckets": [-1]}), "greater than or equal to 0"),
        (
            lambda state: json.dumps(state | {"energy_buckets": [999]}),
            "energy_buckets go up to 999; the last bucket is",
        ),
        (lambda state: json.dumps(state | {"cusum": -1}), "greater than or equal to 0"),
    ],
)
def test_what_is_corrupt_or_foreign_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[dict[str, Any]], str], reason: str
) -> None:
    keep(tmp_path, fresh(), [0.3, 0.01])
    (file,) = tmp_path.iterdir()
    changed = change(json.loads(file.read_text()))
    file.write_text(changed)
    with caplog.at_level(logging.WARNING):
        again = fresh()
        keep(tmp_path, again)
    assert not again.watch.p_values
    assert not again.watch.energy_buckets
    (record,) = caplog.records
    assert record.message == "state set aside"
    assert reason in record.reason  # type: ignore[attr-defined]
    assert record.exc_info is None
    assert [path.read_text() for path in tmp_path.iterdir()] == [changed]
    assert not file.exists()


def test_a_server_starts_beside_a_corrupt_state(settings: Callable[..., Settings], tmp_path: Path) -> None:
    sha256 = hashlib.sha256((BUNDLE / "manifest.json").read_bytes()).hexdigest()
    file = tmp_path / f"cifar10@{BUNDLE.name}-{sha256[:16]}.json"
    file.write_bytes(b"\x00junk")
    with running(settings(models=(f"cifar10@{BUNDLE.name}",), state_dir=tmp_path)) as server:
        assert watched(server.url)["window"]["images"] == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".set-aside"]


def test_what_comes_while_it_is_saved_is_saved_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, writing, ended = state._save, Event(), Event()

    def slow(*arguments: Any) -> None:
        writing.set()
        assert ended.wait(30)
        save(*arguments)

    monkeypatch.setattr(state, "SAVE_S", 0.001)
    monkeypatch.setattr(state, "_save", slow)

    async def live() -> None:
        async with kept(tmp_path, [model := fresh()]):
            model.watch.judged([0.5], [1])
            await asyncio.to_thread(writing.wait, 30)
            model.watch.judged([0.25], [2])
            ended.set()

    asyncio.run(live())
    assert saved(tmp_path) == 2


def test_what_could_not_be_saved_is_saved_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Though no image has come since, and the server ends in good order."""
    fsync, tried, room = state.os.fsync, Event(), Event()

    def full(descriptor: int) -> None:
        if not room.is_set():
            tried.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(state, "SAVE_S", 0.001)
    monkeypatch.setattr(state.os, "fsync", full)

    async def live() -> None:
        async with kept(tmp_path, [model := fresh()]):
            model.watch.judged([0.5, 0.25], [1, 2])
            await asyncio.to_thread(tried.wait, 30)
            room.set()

    asyncio.run(live())
    assert caplog.records[0].message == "state not saved"
    assert saved(tmp_path) == 2
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_a_smaller_window_takes_the_last_images(tmp_path: Path) -> None:
    p_values = [at / 200 for at in range(1, 201)]
    keep(tmp_path, fresh(), p_values)
    smaller = Watched("cifar10@1", "ab" * 32, Watch(read_manifest(BUNDLE), WatchOptions(window_images=95)))
    keep(tmp_path, smaller)
    assert list(smaller.watch.p_values) == p_values[105:]
    assert list(smaller.watch.energy_buckets) == [at % 10 for at in range(105, 200)]


def test_a_state_of_the_former_format_goes_on_without_its_energies(tmp_path: Path) -> None:
    keep(tmp_path, fresh(), [0.3, 0.01])
    (file,) = tmp_path.iterdir()
    state = json.loads(file.read_text())
    del state["energy_buckets"]
    file.write_text(json.dumps(state | {"format": 1}))
    again = fresh()
    keep(tmp_path, again, [0.7])
    assert list(again.watch.p_values) == [0.3, 0.01, 0.7]
    assert sum(again.watch.energy_counts()) == 1
    assert json.loads(file.read_text())["format"] == 2


def test_it_is_saved_while_the_server_runs(
    settings: Callable[..., Settings], tmp_path: Path, pngs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "SAVE_S", 0.01)
    with running(settings(state_dir=tmp_path)) as server:
        for images in (1, 2):
            post(server, pngs[:1])
            wait_until(lambda images=images: saved(tmp_path) == images)  # type: ignore[misc]
        assert saved(tmp_path) == 2  # before the end, which saves too


def saved(folder: Path) -> int:
    return sum(len(json.loads(path.read_text())["p_values"]) for path in folder.glob("*.json"))


def test_a_folder_that_is_gone_costs_a_log_line(
    settings: Callable[..., Settings], tmp_path: Path, pngs: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "state"
    with running(settings(state_dir=folder)) as server:
        folder.rmdir()
        post(server, pngs[:1])
    (record,) = [record for record in caplog.records if record.name == state.__name__]
    assert record.message == "state not saved"


def test_a_folder_that_cannot_be_stops_the_start(settings: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=r"state_dir is .*file/state, which can't be written to \(Not a directory\)"):
        create_app(settings(state_dir=tmp_path / "file" / "state"))


def test_without_a_folder_nothing_is_written(
    settings: Callable[..., Settings], tmp_path: Path, pngs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with running(settings()) as server:
        post(server, pngs[:1])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_several_processes_keep_it_too_and_agree_with_one(
    serve: Callable[..., AbstractContextManager[Process]],
    settings: Callable[..., Settings],
    tmp_path: Path,
    pngs: list[bytes],
) -> None:
    """Each image's figures, whichever worker took it, are those of a server with one process."""
    chosen = {"watch_hours_between_false_alarms": 0.001, "watch_window_images": 100}
    flags = ("--watch-hours-between-false-alarms", "0.001", "--watch-window-images", "100")
    flags += ("--workers", "2", "--models", "cifar10@1", "--state-dir", str(tmp_path / "state"))
    with running(settings(**chosen)) as one, serve(*flags) as several:
        for png in pngs[:40]:
            post(one, [png])
            post(several, [png])
            expected, found = watched(one.url), watched(several.url)
            del expected["images_per_s"], found["images_per_s"]
            assert found == expected  # in the order of the requests, each of which is told alone
        several.process.send_signal(signal.SIGTERM)
        assert several.process.wait(30) == 0
    with serve(*flags) as again:
        assert watched(again.url)["window"] == expected["window"]
        assert watched(again.url)["cusum"]["statistic"] == expected["cusum"]["statistic"]
