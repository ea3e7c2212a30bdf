"""What the Open Inference Protocol's endpoints refuse, and how: always {"error": text}, never a 5xx for bad input."""

import asyncio
import base64
import gzip
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import Gate, Running, running, samples
from pydantic import SecretStr

from service.errors import BodyTooLargeError
from service.inflate import ENCODINGS, inflate
from service.settings import Settings

PIXELS = bytes(range(256)) * 12  # one image of 32 x 32 x 3
INFER = "/v2/models/cifar10/infer"
FILES = "/v2/models/cifar10-bytes/infer"
HEADER = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as made:
        yield made


def tensor(**changes: Any) -> dict[str, Any]:
    """One image in JSON; a change to `...` takes a field away."""
    whole = {"name": "IMAGE", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": list(PIXELS)} | changes
    return {name: value for name, value in whole.items() if value is not ...}


def whole(*inputs: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({"inputs": list(inputs) or [tensor()]} | changes).encode()


def binary(head: dict[str, Any], data: bytes, length: int | str | None = None) -> dict[str, Any]:
    text = json.dumps(head).encode()
    return {"content": text + data, "headers": {HEADER: str(len(text) if length is None else length)}}


def pixels(size: Any = 3072, data: bytes = PIXELS, length: int | str | None = None, **changes: Any) -> dict[str, Any]:
    parameters = {"parameters": {"binary_data_size": size}, "data": ...}
    return binary({"inputs": [tensor(**(parameters | changes))]}, data, length)


def elements(*contents: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(content)) + content for content in contents)


def files(data: bytes, count: int = 1) -> dict[str, Any]:
    entry = {"name": "IMAGE", "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    return binary({"inputs": [entry]}, data)


def base64_files(*data: Any, count: int | None = None, **changes: Any) -> dict[str, Any]:
    parameters = {"content_type": "base64"}
    entry = {"name": "IMAGE", "shape": [len(data) if count is None else count], "datatype": "BYTES"}
    return {"json": {"inputs": [entry | {"parameters": parameters, "data": list(data)} | changes]}}


def compressed(encoding: str, body: bytes) -> dict[str, Any]:
    return {"content": body, "headers": {"content-encoding": encoding}}


class Bad(NamedTuple):
    message: str
    request: dict[str, Any]
    path: str = INFER
    status: int = 400
    method: str = "POST"


def raw(body: bytes) -> dict[str, Any]:
    return {"content": body}


NESTED = [[[[0, 0, 0]] * 32] * 32]
BAD = [
    # JSON
    Bad("0 bytes", raw(b"")),
    Bad("not JSON", raw(b"hello")),
    Bad("not JSON", raw(b'{"inputs": [')),
    Bad("not JSON", raw(whole() + b"x")),
    Bad("not JSON", raw(b'{"inputs": [\xff]}')),
    Bad("not JSON", raw(b"[" * 900 + b"]" * 900)),
    Bad("not JSON", raw(whole(tensor(data=[float("nan")] * 3072)))),
    Bad("not JSON", raw(whole(tensor(data=[float("inf")] * 3072)))),
    Bad("not JSON", raw(whole().replace(b"1, 32", b"1" * 5000 + b", 32"))),
    Bad("it must be an object", raw(b"[]")),
    Bad("it must be an object", raw(b'"inputs"')),
    Bad("more [ than 64 images can have", raw(b"[" * 100_000)),
    Bad("more { than 64 images can have", raw(b"{" * 20_000)),
    Bad("more , than 64 images can have", raw(whole(tensor(data=[0] * 300_000)))),
    Bad('more " than 64 images can have', raw(whole(tensor(data=["a"] * 3072)))),
    Bad("a field 'input'", raw(b'{"input": []}')),
    Bad("a field ''", raw(b'{"": 1, "inputs": []}')),
    Bad("a field 'raw'", raw(whole(tensor(raw=1)))),
    Bad("id is a number", raw(whole(id=7))),
    Bad("at most 1000 characters", raw(whole(id="x" * 1001))),
    Bad("parameters of the request are a list", raw(whole(parameters=[]))),
    # inputs
    Bad("inputs is missing or empty", raw(b"{}")),
    Bad("inputs is missing or empty", raw(b'{"inputs": []}')),
    Bad("inputs is a text", raw(b'{"inputs": "IMAGE"}')),
    Bad("name is missing", raw(b'{"inputs": [5]}')),
    Bad("name is 'PICTURE'; there are IMAGE", raw(whole(tensor(name="PICTURE")))),
    Bad("name is missing", raw(whole(tensor(name=...)))),
    Bad("IMAGE twice", raw(whole(tensor(), tensor()))),
    Bad("is 'FP32'; this model takes UINT8", raw(whole(tensor(datatype="FP32")))),
    Bad("is 'BYTES'; this model takes UINT8", raw(whole(tensor(datatype="BYTES")))),
    Bad("is None; this model takes UINT8", raw(whole(tensor(datatype=...)))),
    Bad("this model takes BYTES", raw(whole(tensor(data=[]))), FILES),
    # shape
    *(
        Bad("it must be [-1, 32, 32, 3]", raw(whole(tensor(shape=shape))))
        for shape in (
            ...,
            None,
            [],
            "1",
            [1, 32, 32],
            [32, 32, 3],
            [1, 3, 32, 32],
            [1, 33, 32, 3],
            [-1, 32, 32, 3],
            [1.0, 32, 32, 3],
            [True, 32, 32, 3],
            ["1", 32, 32, 3],
            [1, 32, 32, 3, 1],
            [1] * 500,
        )
    ),
    Bad("at least one image", raw(whole(tensor(shape=[0, 32, 32, 3], data=[])))),
    Bad("65 images, allowed are 64", raw(whole(tensor(shape=[65, 32, 32, 3]))), status=413),
    Bad("images, allowed are 64", raw(whole(tensor(shape=[10**30, 32, 32, 3]))), status=413),
    Bad("more images, allowed are 64", raw(whole(tensor(shape=[10**1000, 32, 32, 3]))), status=413),
    # numbers
    Bad("either data or the parameter binary_data_size", raw(whole(tensor(data=...)))),
    Bad("the data of IMAGE is a text", raw(whole(tensor(data="AAAA")))),
    Bad("has 3,071 values", raw(whole(tensor(data=[0] * 3071)))),
    Bad("has 0 values", raw(whole(tensor(data=[])))),
    Bad("has 300; its values must be integers from 0 to 255", raw(whole(tensor(data=[0] * 3071 + [300])))),
    Bad("has -1;", raw(whole(tensor(data=[-1] + [0] * 3071)))),
    Bad("has 1000000000", raw(whole(tensor(data=[10**100] + [0] * 3071)))),
    Bad("has 1.0;", raw(whole(tensor(data=[0] * 3071 + [1.0])))),
    Bad("has inf;", raw(whole(tensor(data=[0] * 3072)).replace(b"[0, 0, ", b"[1e999, 0, "))),
    Bad("has True;", raw(whole(tensor(data=[0] * 3071 + [True])))),
    Bad("has None;", raw(whole(tensor(data=[0] * 3071 + [None])))),
    Bad("has '7';", raw(whole(tensor(data=[0] * 3071 + ["7"])))),
    Bad("nested, and not as its shape", raw(whole(tensor(data=[[0] * 3072])))),
    Bad("nested, and not as its shape", raw(whole(tensor(data=[[[[0, 0]] * 48] * 32])))),
    Bad("nested, and not as its shape", raw(whole(tensor(data=[[[[0, 0, 0]] * 32] * 31 + [[[0, 0, 0]] * 31]])))),
    Bad("has 2 entries", raw(whole(tensor(data=NESTED * 2)))),
    Bad("has [0];", raw(whole(tensor(data=[[[[[0], [0], [0]]] * 32] * 32])))),
    # binary
    Bad("the body has", pixels(length=10**9)),
    *(Bad("must be an integer, 0 or more", pixels(length=bad)) for bad in ("-1", "1e3", "0x10", "", "1_0", "+5", "٣")),
    Bad("not JSON", pixels(length=0)),
    Bad("not JSON", pixels(length=50)),
    Bad("no header Inference-Header-Content-Length", raw(whole(tensor(data=..., parameters={"binary_data_size": 1})))),
    Bad("3,071 bytes follow the JSON; binary_data_size of IMAGE is 3,072", pixels(data=PIXELS[:-1])),
    Bad("3,073 bytes follow the JSON; binary_data_size of IMAGE is 3,072", pixels(data=PIXELS + b"\0")),
    Bad("3,072 bytes follow the JSON; binary_data_size of IMAGE is 0", binary({"inputs": [tensor()]}, PIXELS)),
    Bad("binary_data_size of IMAGE is 3,000; its shape [1, 32, 32, 3]", pixels(3000, PIXELS[:3000])),
    Bad("binary_data_size of IMAGE is 0; its shape", pixels(0, b"")),
    Bad("binary_data_size of IMAGE is -1", pixels(-1)),
    Bad("binary_data_size of IMAGE is 1000", pixels(10**1000)),
    Bad("binary_data_size of IMAGE is True", pixels(True)),
    Bad("binary_data_size of IMAGE is 3072.0", pixels(3072.0)),
    Bad("binary_data_size of IMAGE is '3072'", pixels("3072")),
    Bad("either data or the parameter", binary({"inputs": [tensor(parameters={"binary_data_size": 3072})]}, PIXELS)),
    Bad("shared memory is not offered", pixels(parameters={"shared_memory_region": "a"})),
    # encoded files
    Bad("end before the length of element 1 of 2", files(elements(b"abc"), 2), FILES),
    Bad("2 elements of IMAGE", files(elements(b"a", b"b", b"c"), 2), FILES),
    Bad("announces 4,294,967,295 bytes; 3 are left", files(b"\xff\xff\xff\xffabc"), FILES),
    Bad("end before the length of element 0", files(b""), FILES),
    Bad("it must be [-1], where", raw(whole(tensor(datatype="BYTES", data=[]))), FILES),
    Bad("at least one image", files(b"", 0), FILES),
    Bad("65 images, allowed are 64", files(elements(*[b"x"] * 65), 65), FILES, 413),
    Bad("image 0: the image has 0 bytes", files(elements(b"")), FILES),
    Bad("image 0: the content begins with", files(elements(b"%PDF-1.4", b"GIF89a"), 2), FILES),
    Bad("image 0: the GIF image", files(elements(b"GIF89a", b"%PDF-1.4"), 2), FILES),
    Bad("has 1 elements; its shape is [2]", base64_files("AAAA", count=2), FILES),
    Bad("element 0 of IMAGE is not base64", base64_files("?"), FILES),
    Bad("characters outside ASCII", base64_files("ü"), FILES),
    Bad("element 1 of IMAGE is a number", base64_files("AAAA", 5), FILES),
    Bad("element 0 of IMAGE is a list", base64_files(["AAAA"]), FILES),
    Bad("can hold files in base64 alone", base64_files("AAAA", parameters={}), FILES),
    Bad("can hold files in base64 alone", base64_files("AAAA", parameters={"content_type": "str"}), FILES),
    # outputs
    Bad("outputs is an object", raw(whole(outputs={}))),
    Bad("name is 'PROBABILITY'; there are LABEL, LOGITS", raw(whole(outputs=[{"name": "PROBABILITY"}]))),
    Bad("outputs has LABEL twice", raw(whole(outputs=[{"name": "LABEL"}, {"name": "LABEL"}]))),
    Bad("name is missing", raw(whole(outputs=["LABEL"]))),
    Bad("a field 'binary'", raw(whole(outputs=[{"name": "LABEL", "binary": True}]))),
    Bad(
        "binary_data of LABEL is a number",
        raw(whole(outputs=[{"name": "LABEL", "parameters": {"binary_data": 1}}])),
    ),
    Bad("binary_data_output of the request is a text", raw(whole(parameters={"binary_data_output": "yes"}))),
    Bad(
        "classification; that extension is not offered",
        raw(whole(outputs=[{"name": "LABEL", "parameters": {"classification": 3}}])),
    ),
    Bad(
        "shared memory is not offered",
        raw(whole(outputs=[{"name": "LABEL", "parameters": {"shared_memory_region": "a"}}])),
    ),
    # compression
    Bad("not gzip", compressed("gzip", whole())),
    Bad("not deflate", compressed("deflate", whole())),
    Bad("not deflate", compressed("deflate", gzip.compress(whole()))),
    Bad("is truncated", compressed("gzip", gzip.compress(whole())[:-1])),
    Bad("is truncated", compressed("deflate", zlib.compress(whole())[:40])),
    Bad("not gzip", compressed("gzip", gzip.compress(whole())[:-8] + bytes(8))),
    Bad("followed by 1 bytes", compressed("gzip", gzip.compress(whole()) + b"\0")),
    Bad("followed by", compressed("gzip", gzip.compress(whole()) * 2)),
    Bad("'br'; send the body as it is, or compressed by gzip or deflate", compressed("br", whole())),
    Bad("'gzip, gzip'", compressed("gzip, gzip", gzip.compress(gzip.compress(whole())))),
    Bad("not JSON", compressed("gzip", gzip.compress(b""))),
    # the framework's, and the models'
    Bad("/docs shows", raw(whole()), "/v2/nothing", 404),
    Bad("/docs shows", {}, "/v2/models/cifar10/stats", 404, "GET"),
    Bad("/docs shows", raw(b"{}"), "/v2/repository/models/cifar10/load", 404),
    Bad("/docs shows", raw(whole()), "/v2//", 404),
    Bad("takes POST", {}, INFER, 405, "GET"),
    Bad("takes GET", raw(b""), "/v2", 405),
    Bad("takes GET", raw(b""), "/v2/health/live/", 405),
    Bad("'mnist' is not served", raw(whole()), "/v2/models/mnist/infer", 404),
    Bad("is not served", {}, "/v2/models/-bytes", 404, "GET"),
    Bad("is not served", {}, "/v2/models/cifar10-bytes-bytes", 404, "GET"),
    Bad("/versions/ of the path", raw(whole()), "/v2/models/cifar10@1/infer", 404),
    Bad("is not served", raw(whole()), "/v2/models/cifar10/versions/9/infer", 404),
    Bad("positive integer", {}, "/v2/models/cifar10/versions/newest/ready", 404, "GET"),
    Bad("positive integer", {}, "/v2/models/cifar10/versions/-1", 404, "GET"),
    Bad("X-Deadline-Ms", {"content": whole(), "headers": {"x-deadline-ms": "soon"}}),
    Bad("not JSON", raw(b"x"), "/v2/repository/index"),
    Bad('must be {"ready": true}', raw(b'{"ready": 1}'), "/v2/repository/index"),
    Bad('must be {"ready": true}', raw(b"[]"), "/v2/repository/index"),
    Bad("allowed are 1,000", raw(b" " * 1001), "/v2/repository/index", 413),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.message)
def test_a_bad_request_is_refused_in_the_protocols_form(client: httpx.Client, bad: Bad) -> None:
    given = dict(bad.request)
    if "headers" in given:
        given["headers"] = {name: value.encode() for name, value in given["headers"].items()}
    reply = client.request(bad.method, bad.path, **given)
    assert reply.status_code == bad.status, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert reply.json().keys() == {"error"}
    assert bad.message in reply.json()["error"]
    assert len(reply.json()["error"]) < 500


@pytest.mark.parametrize(
    "good",
    [
        raw(whole()),
        raw(whole(tensor(data=NESTED))),
        raw(whole(id=None, parameters=None, outputs=None, model_name="x", model_version="7")),
        raw(whole(outputs=[], parameters={"priority": 3, "custom": {"a": [1.5]}})),
        pixels(),
        pixels() | {"headers": {HEADER: pixels()["headers"][HEADER], "content-type": "application/json"}},
        compressed("GZIP", gzip.compress(whole())),
        compressed("identity", whole()),
    ],
    ids=range(8),
)
def test_what_is_allowed_gets_its_four_outputs(client: httpx.Client, good: dict[str, Any]) -> None:
    for path in (INFER, f"{INFER}/", "/v2/models/cifar10/versions/1/infer"):
        reply = client.post(path, **good)
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"] == "application/json"
        assert reply.json().keys() == {"model_name", "model_version", "parameters", "outputs"}
        assert [output["shape"] for output in reply.json()["outputs"]] == [[1], [1, 10], [1], [1]]


def test_a_body_of_unknown_length_is_read(client: httpx.Client) -> None:
    request = pixels()
    chunks = iter([request["content"][:100], request["content"][100:]])
    assert client.post(INFER, content=chunks, headers=request["headers"]).status_code == 200


def test_an_output_may_come_in_binary_beside_others_in_json(client: httpx.Client) -> None:
    outputs = [{"name": "LABEL", "parameters": {"binary_data": False}}, {"name": "LOGITS"}, {"name": "IS_OOD"}]
    reply = client.post(INFER, content=whole(outputs=outputs, parameters={"binary_data_output": True}))
    assert reply.headers["content-type"] == "application/octet-stream"
    length = int(reply.headers[HEADER])
    label, logits, is_ood = json.loads(reply.content[:length])["outputs"]
    assert label["shape"] == [1]
    assert "parameters" not in label
    assert logits == {
        "name": "LOGITS",
        "datatype": "FP32",
        "shape": [1, 10],
        "parameters": {"binary_data_size": 40},
    }
    assert is_ood["parameters"] == {"binary_data_size": 1}
    values = struct.unpack("<10f", reply.content[length : length + 40])
    assert values.index(max(values)) == label["data"][0]
    assert reply.content[length + 40 :] in (b"\0", b"\1")


def bomb(encoding: str) -> bytes:
    """A GiB of zeros, less than its end, in about 1 MiB: a flushed piece may be repeated."""
    pack = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    first, second = (pack.compress(bytes(2**20)) + pack.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    packed = first + second * 1023
    assert len(packed) < 2**21
    return packed


def test_a_body_that_explodes_is_refused(settings: Callable[..., Settings]) -> None:
    with running(settings(max_request_bytes=2**22)) as server:
        begun = time.monotonic()
        reply = httpx.post(server.url + INFER, **compressed("gzip", bomb("gzip")), timeout=30)
        assert time.monotonic() - begun < 5
        assert (reply.status_code, reply.json().keys()) == (413, {"error"})
        assert "allowed are 4,194,304" in reply.json()["error"]
        assert server.state.pending.held == 0


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_more_than_a_piece_beyond_the_limit_is_unpacked(encoding: str) -> None:
    packed, unpacked, held = bomb(encoding), [], []

    async def run(work: Callable[[], bytes]) -> bytes:
        unpacked.append(len(work()))
        return bytes(unpacked[-1])

    with pytest.raises(BodyTooLargeError, match="allowed are 10,000,000"):
        asyncio.run(inflate(packed, encoding, max_bytes=10_000_000, run=run, grow=held.append))
    assert sum(unpacked) <= 10_000_000 + 2**20
    assert max(unpacked) <= 2**20
    assert held == [len(packed) + sum(unpacked[: at + 1]) for at in range(len(held))]
    assert held[-1] <= len(packed) + 10_000_000


@given(st.binary(max_size=3000), st.sampled_from(ENCODINGS), st.integers(1, 50))
def test_what_was_compressed_comes_back(data: bytes, encoding: str, repeat: int) -> None:
    """Also over several pieces of either side."""
    packed = (gzip if encoding == "gzip" else zlib).compress(data * repeat)

    async def run(work: Callable[[], bytes]) -> bytes:
        return work()

    size = len(data) * repeat
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.inflate._TAKEN_BYTES", 7)
        patch.setattr("service.inflate._GIVEN_BYTES", 100)
        found = asyncio.run(inflate(packed, encoding, max_bytes=size, run=run, grow=lambda _: None))
    assert found == data * repeat


def test_a_key_is_asked_for_and_health_is_public(settings: Callable[..., Settings]) -> None:
    with running(settings(api_keys=(SecretStr("key"),))) as server, httpx.Client(base_url=server.url) as client:
        for path in ("/v2", "/v2/models/cifar10", "/v2/models/cifar10/ready"):
            reply = client.get(path)
            assert (reply.status_code, reply.json().keys()) == (401, {"error"})
            assert reply.headers["www-authenticate"] == "Bearer"
            assert client.get(path, headers={"authorization": "Bearer key"}).status_code == 200
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/health/live/"):
            assert client.get(path).status_code == 200


def test_a_full_queue_and_a_dead_engine_are_said_in_the_protocols_form(
    settings: Callable[..., Settings], gate: Gate
) -> None:
    with running(settings()) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        batcher = server.state.models.engines[0]._batcher
        batcher.max_items, most = 0, batcher.max_items
        reply = client.post(INFER, content=whole())
        assert (reply.status_code, reply.json().keys()) == (429, {"error"})
        assert int(reply.headers["retry-after"]) >= 1
        batcher.max_items, gate.broken = most, True
        reply = client.post(INFER, content=whole())
        assert (reply.status_code, reply.json().keys()) == (503, {"error"})


def test_files_in_base64_get_their_verdicts(client: httpx.Client, pngs: list[bytes]) -> None:
    request = base64_files(*(base64.b64encode(png).decode() for png in pngs[:3]))
    labels = client.post(FILES, **request).json()["outputs"][0]["data"]
    form = [("images", ("i", png)) for png in pngs[:3]]
    assert labels == [p["class_id"] for p in client.post("/predict", files=form).json()["predictions"]]


def test_nothing_of_this_got_a_500(server: Running) -> None:
    """Runs last in this file: over all of the above."""
    found = {key: value for key, value in samples(server.url).items() if 'status="500"' in key and value}
    assert found == {}
