"""Capture in servers that are processes: two workers, kills, restarts."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from live import Process, samples, wait_until

from service.capture.captured import read_captured
from service.capture.folder import segments

pytestmark = pytest.mark.slow
Serve = Callable[..., AbstractContextManager[Process]]


@pytest.fixture
def flags(root: Path) -> list[str]:
    """Capture all at once."""
    return [
        *("--capture-dir", str(root), "--capture-control-share", "1"),
        *("--capture-images-per-minute", "100000", "--capture-flush-s", "0.01"),
    ]


def post(url: str, pngs: list[bytes], number: int) -> bool:
    """Post one image under an id of its own; return whether it was answered."""
    try:
        headers = {"X-Request-Id": f"n-{number}"}
        reply = httpx.post(
            f"{url}/predict", content=pngs[number % len(pngs)], headers=headers, timeout=30, verify=False
        )
    except httpx.TransportError:
        return False
    return reply.status_code == 200


def captured(url: str) -> float:
    found = samples(url)
    assert sum(value for name, value in found.items() if name.startswith("ood_capture_dropped")) == 0
    return sum(value for name, value in found.items() if name.startswith("ood_captured_images"))


def require_whole(root: Path, pngs: list[bytes]) -> list[str]:
    """See that every row has its image and every image its row, as it was sent; return the requests' ids."""
    captured = read_captured(root)
    assert captured.damaged == []
    for image in captured.images:
        assert image.path.read_bytes() == pngs[int(image.row.request_id[2:]) % len(pngs)]
    lying = [path for segment in segments(root) for path in segment.glob("*.png")]
    assert sorted(lying) == sorted(image.path for image in captured.images)
    ids = [image.row.request_id for image in captured.images]
    assert len(set(ids)) == len(ids)
    return ids


def test_two_workers_share_a_folder_and_a_killed_one_leaves_nothing_in_part(
    serve: Serve, root: Path, flags: list[str], pngs: list[bytes]
) -> None:
    with serve("--workers", "2", *flags) as server, ThreadPoolExecutor(8) as pool:
        first = list(pool.map(lambda number: post(server.url, pngs, number), range(100)))
        assert all(first)
        wait_until(lambda: captured(server.url) == 100)
        ready = [line for line in server.lines() if line["message"] == "process ready"]
        worker = next(line["pid"] for line in ready if line["child"] == "worker 0")
        load = [pool.submit(post, server.url, pngs, number) for number in range(100, 400)]
        wait_until(lambda: sum(one.done() for one in load) > 50)
        os.kill(worker, signal.SIGKILL)
        answered = {number for number, one in enumerate(load, 100) if one.result()} | set(range(100))
        wait_until(lambda: sum("process ready" in line["message"] for line in server.lines()) == 4)
        assert all(pool.map(lambda number: post(server.url, pngs, number), range(400, 450)))
        answered |= set(range(400, 450))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    ids = {int(name[2:]) for name in require_whole(root, pngs)}
    assert set(range(100)) | set(range(400, 450)) <= ids
    assert len(answered - ids) < 50  # what the killed worker had gathered, and no more
    assert list((root / ".writing").iterdir()) == []


def test_what_killed_workers_had_gathered_is_counted(serve: Serve, root: Path, pngs: list[bytes]) -> None:
    flags = ("--capture-dir", str(root), "--capture-control-share", "1", "--capture-images-per-minute", "100000")
    with serve("--workers", "2", *flags, "--capture-flush-s", "1000") as server:
        assert all(post(server.url, pngs, number) for number in range(20))
        assert captured(server.url) == 0  # asked for, every worker tells what it holds
        for line in server.lines():
            if line["message"] == "process ready" and line["child"].startswith("worker"):
                os.kill(line["pid"], signal.SIGKILL)
        wait_until(lambda: sum("process ready" in line["message"] for line in server.lines()) == 5)
        found = {name: value for name, value in samples(server.url).items() if "ood_capture_dropped" in name and value}
        assert found == {'ood_capture_dropped_total{reason="killed"}': 20}
        assert post(server.url, pngs, 20)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    assert require_whole(root, pngs) == ["n-20"]


def test_a_killed_server_goes_on_with_the_same_folder(
    serve: Serve, root: Path, flags: list[str], pngs: list[bytes]
) -> None:
    with serve(*flags) as server, ThreadPoolExecutor(8) as pool:
        load = [pool.submit(post, server.url, pngs, number) for number in range(300)]
        wait_until(lambda: captured(server.url) > 30)
        server.process.kill()
        done = sum(one.result() for one in load)
    before = require_whole(root, pngs)
    assert 30 < len(before) <= done + 8
    taken = sum(1 for _ in segments(root))
    (root / ".writing" / "left").mkdir(parents=True, exist_ok=True)
    with serve(*flags, "--capture-max-bytes", str(2**20)) as server:  # less than what is there
        wait_until(lambda: samples(server.url)["ood_capture_bytes"] > 0)
        assert samples(server.url)["ood_capture_bytes"] <= 2**20
        assert not (root / ".writing").exists() or list((root / ".writing").iterdir()) == []
        assert post(server.url, pngs, 1000)
        wait_until(lambda: captured(server.url) == 1)
    after = require_whole(root, pngs)
    assert after[-1] == "n-1000" or "n-1000" in after
    assert set(after) - {"n-1000"} <= set(before)
    assert sum(1 for _ in segments(root)) <= taken + 1
