"""Every form of a request, and every error."""

import base64
import io
import json
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from live import BUNDLE, VERSION, Running, running, samples
from PIL import Image

from model_store import images
from model_store.bundle import load_bundle
from service.errors import ANSWERS
from service.schemas import PredictReply
from service.settings import Settings


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as made:
        yield made


@pytest.fixture(scope="module")
def expected(pngs: list[bytes]) -> list[dict[str, Any]]:
    """What the offline predictor, eager PyTorch, says of the test images."""
    bundle = load_bundle(BUNDLE)
    spec = bundle.manifest.preprocess
    found = bundle.predictor.predict(np.stack([images.load(png, spec) for png in pngs]))
    return [
        {
            "class_id": int(found.class_id[row]),
            "class_name": bundle.manifest.classes[found.class_id[row]],
            "confidence": pytest.approx(float(found.confidence[row]), abs=1e-5),
            "negative_energy": pytest.approx(float(found.negative_energy[row]), abs=1e-3),
            "p_value": pytest.approx(float(found.p_value[row]), abs=1e-3),
            "is_ood": bool(found.is_ood[row]),
        }
        for row in range(len(pngs))
    ]


def as_json(files: list[bytes]) -> dict[str, Any]:
    return {"json": {"images": [base64.b64encode(file).decode() for file in files]}}


def as_form(files: list[bytes]) -> dict[str, Any]:
    return {"files": [("images", (f"{at}.png", file, "image/png")) for at, file in enumerate(files)]}


def as_raw(content_type: str | None) -> Callable[[list[bytes]], dict[str, Any]]:
    return lambda files: {"content": files[0], "headers": {"content-type": content_type} if content_type else {}}


def chunked(files: list[bytes]) -> dict[str, Any]:
    return {"content": iter([files[0][:100], files[0][100:]])}


@pytest.mark.parametrize("path", ["/predict", "/models/cifar10/predict", f"/models/cifar10@{VERSION}/predict"])
@pytest.mark.parametrize(
    "form",
    [
        as_raw(None),
        as_raw("image/png"),
        as_raw("image/jpeg"),
        as_raw("application/x-www-form-urlencoded"),
        as_raw("application/json"),
        as_raw("text/plain; charset=x"),
        chunked,
        as_json,
        as_form,
    ],
)
def test_every_form_of_one_image_gets_the_offline_verdict(
    client: httpx.Client, pngs: list[bytes], expected: list[dict[str, Any]], form: Any, path: str
) -> None:
    reply = client.post(path, **form(pngs[:1]))
    assert reply.status_code == 200, reply.text
    assert reply.json()["predictions"] == expected[:1]


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=b", "text/plain"])
@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "WEBP", "PNG"])
def test_an_image_is_known_by_its_content(
    client: httpx.Client, pngs: list[bytes], kind: str, content_type: str
) -> None:
    """Also where its first letters could begin a word of JSON."""
    file = io.BytesIO()
    Image.open(io.BytesIO(pngs[0])).save(file, kind)
    reply = client.post("/predict", content=file.getvalue(), headers={"content-type": content_type})
    assert reply.status_code == 200
    assert reply.json()["predictions"][0]["class_name"] == "airplane"


@pytest.mark.parametrize("form", [as_json, as_form])
def test_many_images_get_their_verdicts_in_order(
    client: httpx.Client, pngs: list[bytes], expected: list[dict[str, Any]], form: Any
) -> None:
    reply = client.post("/predict", **form(pngs[:64]))
    assert reply.json()["predictions"] == expected[:64]


def test_json_is_known_by_its_first_character(client: httpx.Client, pngs: list[bytes]) -> None:
    body = " \n" + json.dumps(as_json(pngs[:2])["json"])
    reply = client.post("/predict", content=body, headers={"content-type": "application/x-www-form-urlencoded"})
    assert len(reply.json()["predictions"]) == 2


def test_a_reply_is_as_its_schema_has_it(client: httpx.Client, pngs: list[bytes]) -> None:
    """No field more or less, in its order, and numbers to the digit as the schema's own serialiser writes them."""
    for body in (client.post("/predict", content=pngs[0]), client.post("/predict", **as_form(pngs[:3]))):
        reply = PredictReply.model_validate_json(body.content, strict=True)
        assert body.content == reply.model_dump_json(exclude_none=True).encode()


def test_a_reply_names_model_threshold_times_and_request(client: httpx.Client, pngs: list[bytes]) -> None:
    reply = client.post("/predict", content=pngs[0], headers={"X-Request-Id": "order-66.b_c"})
    body, bundle = reply.json(), load_bundle(BUNDLE)
    assert body.keys() == {"model", "threshold", "predictions", "timing_ms", "request_id"}
    assert body["model"] == {"name": "cifar10", "version": VERSION, "sha256": bundle.sha256}
    assert body["threshold"] == bundle.manifest.calibrations["negative_energy"].threshold
    assert body["request_id"] == reply.headers["x-request-id"] == "order-66.b_c"
    times = body["timing_ms"]
    assert times.keys() == {"decode", "queue", "forward", "total"}
    assert 0 < times["decode"] + times["queue"] + times["forward"] <= times["total"] + 0.01


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "ü", 'a"b', "%s"])
def test_an_unfit_request_id_is_replaced(client: httpx.Client, pngs: list[bytes], given: str) -> None:
    reply = client.post("/predict", content=pngs[0], headers={"X-Request-Id": given.encode()})
    assert re.fullmatch("[0-9a-f]{32}", reply.headers["x-request-id"])


def multipart(*parts: bytes, end: bytes = b"--b--\r\n") -> dict[str, Any]:
    content = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + end
    return {"content": content, "headers": {"content-type": "multipart/form-data; boundary=b"}}


IMAGES_PART = b'Content-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
CONTRADICTORY = b"Content-Disposition: form-data; name*=a; name*0=b\r\n\r\n"
TYPED_JSON = {"content-type": "application/json"}


class Bad(NamedTuple):
    status: int
    code: str
    message: str
    request: Callable[[bytes], dict[str, Any]]
    index: int | None = None
    path: str = "/predict"
    method: str = "POST"


BAD = [
    Bad(400, "empty_body", "0 bytes", lambda _: {"content": b""}),
    Bad(400, "empty_image", "0 bytes", lambda png: as_form([png, b""]), index=1),
    Bad(400, "empty_image", "0 bytes", lambda png: as_json([png, b"", b""]), index=1),
    Bad(400, "malformed_json", "not JSON", lambda _: {"content": b'{"images": [', "headers": TYPED_JSON}),
    Bad(400, "malformed_json", "not JSON", lambda _: {"content": b"not json", "headers": TYPED_JSON}),
    Bad(400, "malformed_json", "more brackets", lambda _: {"content": b"{" * 100_000, "headers": TYPED_JSON}),
    Bad(400, "malformed_json", "more brackets", lambda _: {"content": b'{"images": [' + b"[]," * 1000 + b"[]]}"}),
    Bad(400, "malformed_json", "not JSON", lambda _: {"content": b"{" * 900, "headers": TYPED_JSON}),
    Bad(400, "malformed_multipart", "no Content-Disposition", lambda png: multipart(CONTRADICTORY + png)),
    Bad(
        400,
        "malformed_multipart",
        "no boundary",
        lambda _: {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary*=a; boundary*0=b"}},
    ),
    Bad(
        415,
        "unsupported_image",
        "no image of a format",
        lambda _: {"content": b"x", "headers": {"content-type": f"text/plain; x*{'1' * 5000}=b"}},
        index=0,
    ),
    Bad(
        404,
        "unknown_model",
        "positive integer",
        lambda png: {"content": png},
        path=f"/models/cifar10@{'1' * 5000}/predict",
    ),
    Bad(404, "unknown_route", "/docs", lambda png: {"content": png}, path="/predict/"),
    Bad(400, "malformed_json", "not JSON", lambda _: {"content": b'{"images": ["\xff"]}', "headers": TYPED_JSON}),
    Bad(400, "malformed_multipart", "truncated", lambda png: multipart(IMAGES_PART + png, end=b"")),
    Bad(400, "malformed_multipart", "truncated", lambda png: multipart(IMAGES_PART + png, end=b"--b")),
    Bad(400, "malformed_multipart", "malformed", lambda png: multipart(b"no header\r\n\r\n" + png)),
    Bad(400, "malformed_multipart", "no Content-Disposition", lambda png: multipart(b"X: y\r\n\r\n" + png)),
    Bad(400, "malformed_multipart", "malformed", lambda _: multipart() | {"content": b"no form"}),
    Bad(
        400,
        "malformed_multipart",
        "no boundary",
        lambda _: {"content": b"no form", "headers": {"content-type": "multipart/form-data"}},
    ),
    Bad(
        400,
        "invalid_base64",
        "images[1]",
        lambda png: {"json": {"images": [as_json([png])["json"]["images"][0], "?"]}},
        1,
    ),
    Bad(400, "invalid_base64", "images[0]", lambda _: {"json": {"images": ["data:image/png;base64,AAAA"]}}, index=0),
    Bad(400, "invalid_base64", "ASCII", lambda _: {"json": {"images": ["ü"]}}, index=0),
    Bad(400, "invalid_header", "X-Deadline-Ms", lambda png: {"content": png, "headers": {"X-Deadline-Ms": "soon"}}),
    Bad(400, "invalid_header", "X-Deadline-Ms", lambda png: {"content": png, "headers": {"X-Deadline-Ms": "-1"}}),
    Bad(400, "invalid_header", "X-Deadline-Ms", lambda png: {"content": png, "headers": {"X-Deadline-Ms": "nan"}}),
    Bad(404, "unknown_route", "/docs", lambda _: {}, path="/predictions"),
    Bad(
        404,
        "unknown_model",
        "there are: cifar10@",
        lambda png: {"content": png},
        path="/models/mnist/predict",
    ),
    Bad(
        404,
        "unknown_model",
        "there are: cifar10@",
        lambda png: {"content": png},
        path="/models/cifar10@999/predict",
    ),
    Bad(404, "unknown_model", "positive integer", lambda png: {"content": png}, path="/models/cifar10@/predict"),
    Bad(404, "unknown_model", "positive integer", lambda png: {"content": png}, path="/models/cifar10@-1/predict"),
    Bad(405, "method_not_allowed", "POST", lambda _: {}, method="GET"),
    Bad(405, "method_not_allowed", "GET", lambda png: {"content": png}, path="/models"),
    Bad(413, "too_many_images", "images, allowed are 64", lambda png: as_form([png] * 65)),
    Bad(413, "too_many_images", "65 images, allowed are 64", lambda png: as_json([png] * 65)),
    Bad(415, "unsupported_image", "no image of a format", lambda _: {"content": b"hello"}, index=0),
    Bad(415, "unsupported_image", "no image of a format", lambda png: as_form([png, png, b"%PDF-1.4"]), index=2),
    Bad(
        415,
        "unsupported_encoding",
        "'gzip'",
        lambda png: {"content": png, "headers": {"content-encoding": "gzip"}},
    ),
    Bad(422, "corrupt_image", "PNG", lambda png: {"content": png[:-100]}, index=0),
    Bad(422, "corrupt_image", "PNG", lambda png: as_json([png[:-100], png, png[:-50]]), index=0),
    Bad(422, "invalid_field", "'image'", lambda png: {"files": {"image": png}}),
    Bad(422, "invalid_field", "at least one", lambda _: multipart()),
    Bad(422, "invalid_field", "scores is 'knn'", lambda png: {"content": png}, path="/predict?scores=knn"),
    Bad(422, "invalid_field", "scores is ''", lambda png: {"content": png}, path="/models/cifar10/predict?scores="),
    Bad(422, "invalid_field", "'all, all'", lambda png: {"content": png}, path="/predict?scores=all&scores=all"),
    Bad(422, "invalid_field", "odin is offline only", lambda png: {"content": png}, path="/predict?scores=odin"),
    Bad(
        422,
        "invalid_field",
        "perturbed_mahalanobis is offline only",
        lambda png: {"content": png},
        path="/models/cifar10/predict?scores=perturbed_mahalanobis",
    ),
    Bad(422, "invalid_field", "must be", lambda _: {"json": {"pictures": []}}),
    Bad(422, "invalid_field", "must be", lambda _: {"json": {"images": ["AAAA"], "top_k": 5}}),
    Bad(422, "invalid_field", "must be", lambda _: {"json": ["AAAA"]}),
    Bad(422, "invalid_field", "list of base64", lambda _: {"json": {"images": "AAAA"}}),
    Bad(422, "invalid_field", "list of base64", lambda _: {"json": {"images": [1]}}),
    Bad(422, "invalid_field", "at least one", lambda _: {"json": {"images": []}}),
]
ELSEWHERE = {
    "body_too_large", "image_too_large", "too_many_pixels",  # test_limits, below
    "length_required", "body_timeout", "client_left",  # test_connections
    "unauthorized",  # test_access
    "line_full",  # test_admission
    "memory_full",  # test_connections
    "queue_full", "not_ready", "engine_died", "deadline_exceeded",  # test_engine
    "malformed_array", "unfit_array",  # test_arrays
    "malformed_compression", "invalid_tensor",  # test_open_inference_refusals
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad.code}-{bad.path[:30]}")
def test_a_bad_request_gets_its_error(client: httpx.Client, pngs: list[bytes], bad: Bad) -> None:
    reply = client.request(bad.method, bad.path, **bad.request(pngs[0]))
    assert_error(reply, bad.status, bad.code, bad.message)
    assert reply.json()["error"].get("index") == bad.index


def test_every_error_of_the_table_is_tested() -> None:
    assert {bad.code for bad in BAD} | ELSEWHERE == {answer.code for answer in ANSWERS.values()}
    assert not {bad.code for bad in BAD} & ELSEWHERE


def assert_error(reply: httpx.Response, status: int, code: str, message: str) -> None:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert reply.json().keys() == {"error"}
    assert error["code"] == code
    assert message in error["message"]
    assert error["request_id"] == reply.headers["x-request-id"]
    assert "Traceback" not in reply.text
    assert "site-packages" not in reply.text


@pytest.mark.parametrize(
    ("change", "form", "code", "message"),
    [
        ({"max_request_bytes": 1000}, as_raw(None), "body_too_large", "allowed are 1,000"),
        ({"max_request_bytes": 1000}, chunked, "body_too_large", "allowed are 1,000"),
        ({"max_image_bytes": 1000}, as_form, "image_too_large", "allowed are 1,000"),
        ({"max_image_pixels": 1023}, as_json, "too_many_pixels", "1,023"),
        ({"max_images_per_request": 1}, lambda files: as_json(files * 2), "too_many_images", "allowed are 1;"),
    ],
)
def test_limits_can_be_set(
    settings: Callable[..., Settings], pngs: list[bytes], change: dict[str, int], form: Any, code: str, message: str
) -> None:
    with running(settings(**change)) as server:
        assert_error(httpx.post(f"{server.url}/predict", **form(pngs[:1])), 413, code, message)


def test_what_a_client_does_wrong_is_no_fault_in_the_log(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/predict", "/models/cifar10/predict", "/v2/models/cifar10/infer"):
        assert client.get(path).status_code == 405
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_long_content_type_takes_no_time(client: httpx.Client) -> None:
    """The standard library takes seconds to look for a boundary in it, and all other requests would wait."""
    begun = time.process_time()
    found = client.post(
        "/predict", content=b"x", headers={"Content-Type": 'multipart/form-data; boundary="' + ";" * 60_000}
    )
    assert time.process_time() - begun < 0.5
    assert_error(found, 400, "malformed_multipart", "boundary")


def test_an_allowed_header_comes_with_405(client: httpx.Client) -> None:
    assert client.get("/predict").headers["allow"] == "POST"


def test_one_bad_image_leaves_requests_beside_it_alone(
    client: httpx.Client, pngs: list[bytes], expected: list[dict[str, Any]]
) -> None:
    refused = client.post("/predict", **as_form([pngs[0], pngs[1][:-100]]))
    assert refused.json()["error"]["index"] == 1
    assert client.post("/predict", **as_form(pngs[:2])).json()["predictions"] == expected[:2]


def test_uploads_of_every_kind_are_answered(client: httpx.Client) -> None:
    """Real files of every format, good and bad: a verdict or a 4xx, never a 5xx."""
    files = sorted(path for path in (Path(__file__).parents[1] / "data" / "uploads").iterdir() if path.is_file())
    assert len(files) > 5
    statuses = [client.post("/predict", content=path.read_bytes()).status_code for path in files]
    assert set(statuses) <= {200, 413, 415, 422}
    assert 200 in statuses


@pytest.mark.parametrize("junk", [b"\0" * 50, b"GET / HTTP/1.1\r\n\r\n", b"POST /predict HTTP/9.9\r\n\r\n"])
def test_what_is_not_http_does_not_disturb(
    server: Running, client: httpx.Client, pngs: list[bytes], junk: bytes
) -> None:
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 0)) as raw:
        raw.sendall(junk)
        raw.settimeout(10)
        raw.recv(4096)
    assert client.post("/predict", content=pngs[0]).status_code == 200


def test_nothing_a_client_sent_got_a_500(server: Running) -> None:
    """Runs last in this file: over all of the above."""
    found = {key: value for key, value in samples(server.url).items() if 'status="500"' in key and value}
    assert found == {}
