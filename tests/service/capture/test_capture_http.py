"""Capture in a server that runs: what requests bring is what lies on disk, whatever form it came in."""

import base64
import fcntl
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from live import Running, running, samples, wait_until
from PIL import Image

from service.capture.captured import CapturedImage, read_captured
from service.cli import main
from service.settings import Settings

Capturing = Callable[..., AbstractContextManager[Running]]


@pytest.fixture
def capturing(settings: Callable[..., Settings], bundles: Path, root: Path) -> Capturing:
    """Serve strict@2, which flags half of all, and capture every image at once unless something else is said."""
    ours = {
        "store": bundles,
        "models": ("strict@2",),
        "capture_dir": root,
        "capture_control_share": 1.0,
        "capture_images_per_minute": 10_000,
        "capture_flush_s": 0.01,
    }

    @contextmanager
    def serve(**changes: Any) -> Iterator[Running]:
        with running(settings(**(ours | changes))) as server:
            yield server

    return serve


def counts(server: Running) -> dict[str, float]:
    """Return the samples of capture that are not 0."""
    return {name: value for name, value in samples(server.url).items() if name.startswith("ood_capture") and value}


def of(found: list[CapturedImage], request_id: str) -> list[CapturedImage]:
    """Return the images of one request, in order."""
    chosen = [image for image in found if image.row.request_id == request_id]
    return sorted(chosen, key=lambda image: image.row.time)


def post(server: Running, request_id: str, path: str = "/predict", **body: Any) -> dict[str, Any]:
    body["headers"] = {"X-Request-Id": request_id, **body.get("headers", {})}
    return httpx.post(server.url + path, timeout=30, **body).raise_for_status().json()


def test_off_it_leaves_no_trace(capturing: Capturing, root: Path, pngs: list[bytes]) -> None:
    with capturing(capture_dir=None) as server:
        post(server, "a", content=pngs[0])
        assert counts(server) == {}
        assert samples(server.url)['ood_captured_images_total{kind="flagged"}'] == 0
        assert samples(server.url)['ood_capture_dropped_total{reason="rate"}'] == 0
        assert server.state.capture is None
    assert not root.exists()


def test_every_form_of_request_is_kept_as_it_came(capturing: Capturing, root: Path, pngs: list[bytes], encode) -> None:
    jpeg, pixels = encode(1, "JPEG", 50), np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8)
    array = io.BytesIO()
    np.save(array, pixels)
    tensor = {"name": "IMAGE", "shape": [3, 32, 32, 3], "datatype": "UINT8", "data": pixels.ravel().tolist()}
    texts = [base64.b64encode(content).decode() for content in (pngs[0], jpeg)]
    named = {"name": "IMAGE", "shape": [2], "datatype": "BYTES", "parameters": {"content_type": "base64"}}
    with capturing() as server:
        replies = {
            "raw": post(server, "raw", content=jpeg),
            "form": post(server, "form", files=[("images", ("../../x.png", one)) for one in (pngs[0], jpeg)]),
            "json": post(server, "json", json={"images": texts}),
            "npy": post(server, "npy", "/models/strict/predict", content=array.getvalue()),
        }
        post(server, "tensor", "/v2/models/strict/infer", json={"inputs": [tensor]})
        post(server, "bytes", "/v2/models/strict-bytes/infer", json={"inputs": [named | {"data": texts}]})
        wait_until(lambda: sum(n for name, n in counts(server).items() if "captured" in name) == 13)
        assert sum(n for name, n in counts(server).items() if "dropped" in name) == 0
        assert counts(server)["ood_capture_bytes"] == sum(
            -(-path.stat().st_size // 4096) * 4096 + (4096 if path.suffix == ".parquet" else 0)
            for path in root.rglob("2*/*")
        )
    found = read_captured(root).images
    assert [image.path.read_bytes() for image in of(found, "raw")] == [jpeg]
    for name in ("form", "json", "bytes"):
        contents = [image.path.read_bytes() for image in of(found, name)]
        assert sorted(contents) == sorted([pngs[0], jpeg]), name
        assert {image.row.sent_as for image in of(found, name)} == {"file"}
    for name in ("npy", "tensor"):
        kept = [np.asarray(Image.open(image.path)).tobytes() for image in of(found, name)]
        assert sorted(kept) == sorted(one.tobytes() for one in pixels), name
        assert {image.row.sent_as for image in of(found, name)} == {"pixels"}
    for name, reply in replies.items():
        rows = {image.row.negative_energy: image.row for image in of(found, name)}
        for prediction in reply["predictions"]:
            row = rows[prediction["negative_energy"]]
            assert {field: getattr(row, field) for field in prediction} == prediction
            assert row.kind == ("flagged" if prediction["is_ood"] else "control")
            assert (row.model, row.sha256) == ("strict@2", reply["model"]["sha256"])
    assert {image.row.is_ood for image in found} == {True, False}


def test_a_share_and_a_rate_bound_the_sample(capturing: Capturing, root: Path, pngs: list[bytes]) -> None:
    with capturing(capture_control_share=0.0, capture_images_per_minute=0.001) as server:
        flags = [
            prediction["is_ood"]
            for at in range(0, 60, 20)
            for prediction in post(server, "x", files=[("images", one) for one in pngs[at : at + 20]])["predictions"]
        ]
        assert 3 < sum(flags) < 57
        wait_until(lambda: 'ood_captured_images_total{kind="flagged"}' in counts(server))
        assert counts(server) == {
            'ood_captured_images_total{kind="flagged"}': 1,
            'ood_capture_dropped_total{reason="rate"}': sum(flags) - 1,
            "ood_capture_bytes": 3 * 4096,
        }
    (image,) = read_captured(root).images
    assert image.row.is_ood


def test_a_disk_that_hangs_holds_up_no_request(capturing: Capturing, root: Path, pngs: list[bytes]) -> None:
    """Another process holds the folder: what does not fit into the queue is dropped, and all else kept in the end."""
    root.mkdir()
    lock = os.open(root / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with capturing() as server:
        for _ in range(7):
            post(server, "x", files=[("images", one) for one in pngs[:50]])
        found = counts(server)
        # the thread waits to look through the folder; the queue has room for 256
        assert found == {'ood_capture_dropped_total{reason="queue_full"}': 350 - 256}
        os.close(lock)
        wait_until(lambda: sum(n for name, n in counts(server).items() if "captured" in name) == 256)
    assert len(read_captured(root).images) == 256


def test_an_unwritable_folder_costs_images_and_no_request(
    capturing: Capturing, tmp_path: Path, pngs: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with capturing(capture_dir=tmp_path / "file" / "below") as server:
        for _ in range(3):
            post(server, "x", files=[("images", one) for one in pngs[:10]])
        wait_until(lambda: counts(server) == {'ood_capture_dropped_total{reason="write_failed"}': 30})
    lines = [line for line in caplog.records if line.name == "service.capture.writer"]
    assert [(line.levelname, line.reason) for line in lines] == [("ERROR", "write_failed")]


def test_an_image_too_large_for_the_quota_is_dropped(capturing: Capturing, root: Path, encode) -> None:
    large = encode(3, "BMP", 400)  # 480 kB, of a quota of 1 MiB
    with capturing(capture_max_bytes=2**20) as server:
        post(server, "x", content=large)
        wait_until(lambda: counts(server) == {'ood_capture_dropped_total{reason="too_large"}': 1})
    assert read_captured(root).images == []


def test_what_is_gathered_is_written_when_the_server_ends(capturing: Capturing, root: Path, pngs: list[bytes]) -> None:
    with capturing(capture_flush_s=1000) as server:
        post(server, "x", files=[("images", one) for one in pngs[:10]])
        assert counts(server) == {}
    assert len(read_captured(root).images) == 10


def test_without_its_library_the_start_says_what_to_install(
    run_command: Callable[..., Any], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for arguments in (["--capture-dir", str(root)], ["review", str(root), "--out", "x.html"]):
        finished = run_command(main, *arguments)
        assert finished.returncode == 1
        assert "pip install 'energy-ood[capture]'" in finished.stderr
        assert finished.stderr.count("\n") == 1
    assert not root.exists()
