"""Bodies that are small on the wire and large once they are taken apart: refused within bounded memory."""

import base64
import gzip
import http.client
import io
import json
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache

import httpx
import pytest
from bodies import BOUNDARY, LENGTH, Body
from conftest import Alone, Serve
from live import Process
from memory import Memory
from PIL import Image
from test_stress_clients import assert_right_at_once, at_rest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MAX_REQUEST_BYTES = 8 * 2**20
MAX_PENDING_BYTES = 32 * 2**20
MAX_IMAGE_PIXELS = 10**6
AT_ONCE = 8
ALLOWED_BYTES = 4 * MAX_PENDING_BYTES
"""More than rest that all of it may take at its peak: bodies, what they are parsed into, and the network's own."""
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
JSON = {"Content-Type": "application/json"}
INFER = "/v2/models/cifar10/infer"
INFER_FILES = "/v2/models/cifar10-bytes/infer"


@cache
def zeros(size: int, wbits: int) -> bytes:
    """Compress so many zeros."""
    stream, block = zlib.compressobj(9, zlib.DEFLATED, wbits), bytes(2**20)
    return b"".join([stream.compress(block) for _ in range(size // len(block))] + [stream.flush()])


def compressed() -> Iterator[Body]:
    for name, wbits in (("gzip", 31), ("deflate", 15)):
        bomb = zeros(256 * 2**20, wbits)
        assert len(bomb) < 300_000
        yield Body(f"256 MiB of {name}", INFER, {"Content-Encoding": name}, bomb)
        yield Body(f"{name} at /predict", "/predict", {"Content-Encoding": name}, bomb)
    yield Body("gzip of gzip", INFER, {"Content-Encoding": "gzip"}, gzip.compress(zeros(256 * 2**20, 31)))
    many = gzip.compress(b"") * 100_000
    yield Body("100,000 streams of gzip", INFER, {"Content-Encoding": "gzip"}, many)


def forms() -> Iterator[Body]:
    start = f"--{BOUNDARY}\r\n".encode()
    end = f"--{BOUNDARY}--\r\n".encode()
    named = start + b'Content-Disposition: form-data; name="images"\r\n\r\n\r\n'
    other = start + b'Content-Disposition: form-data; name="x"\r\n\r\n\r\n'
    for name, content in (
        ("100,000 images of nothing", named * 100_000 + end),
        ("parts of another name", other * 100_000 + end),
        ("100,000 parts without a head", (start + b"\r\n\r\n") * 100_000 + end),
        ("100,000 headers of a part", start + b"A: b\r\n" * 100_000 + b"\r\n\r\n" + end),
        ("a header of 4 MB", start + b"A: " + b"b" * 4_000_000 + b"\r\n\r\n\r\n" + end),
        ("a name of 4 MB", start + b'Content-Disposition: form-data; name="' + b"x" * 4_000_000 + b'"\r\n\r\n' + end),
        ("parameters without end", start + b"Content-Disposition: form-data" + b";a=b" * 500_000 + b"\r\n\r\n" + end),
        ("boundaries that almost are", named + b"\r\n--" * 1_000_000 + end),
    ):
        yield Body(name, "/predict", FORM, content)


def json_bodies() -> Iterator[Body]:
    texts = {
        "lists in lists": b"[" * 4_000_000,
        "lists in the list of images": b'{"images":' + b"[" * 2_000_000 + b"]" * 2_000_000 + b"}",
        "objects in objects": b'{"images":' + b'{"a":' * 700_000,
        "a million images of nothing": b'{"images":["' + b'","' * 1_000_000 + b'"]}',
        "a number of 4 million digits": b'{"images":' + b"9" * 4_000_000 + b"}",
        "a million keys": b"{" + b",".join(b'"%d":0' % key for key in range(350_000)) + b"}",
        "4 MB of escapes": b'{"images":["' + b"\\u0041" * 600_000 + b'"]}',
    }
    for name, text in texts.items():
        yield Body(name, "/predict", JSON, text)
        yield Body(f"{name}, protocol", INFER, JSON, text.replace(b'"images"', b'"inputs"'))
    tensor = {"name": "IMAGE", "datatype": "UINT8", "shape": [64, 32, 32, 3], "data": [0] * 1_000_000}
    yield Body("a million numbers", INFER, JSON, json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode())
    yield Body("a million lists", INFER, JSON, b'{"inputs":[{"name":"IMAGE","data":[' + b"[]," * 1_000_000 + b"[]]}]}")


def binaries() -> Iterator[Body]:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (4000000000, 32, 32, 3), }\n"
    magic = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header))
    yield Body("an array of 4 billion images", "/predict", {}, magic + header)
    yield Body("an array with a header of 4 GiB", "/predict", {}, b"\x93NUMPY\x02\0\xff\xff\xff\xff" + b"(" * 4_000_000)
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [64], "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [tensor]}).encode()
    yield Body("a file of 4 GiB", INFER_FILES, {LENGTH: str(len(head))}, head + b"\xff" * 8)


def pictures() -> Iterator[Body]:
    for name, keywords in {"PNG": {}, "GIF": {}, "TIFF": {"compression": "tiff_deflate"}, "WEBP": {}}.items():
        file = io.BytesIO()
        Image.new("L", (5000, 5000)).save(file, name, **keywords)
        yield Body(f"25 million pixels as {name}", "/predict", {}, file.getvalue())
        files = {"images": [base64.b64encode(file.getvalue()).decode()] * 8}
        yield Body(f"8 of them as {name}", "/predict", JSON, json.dumps(files).encode())
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    for kind, intro in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")):
        data = intro + zeros(256 * 2**20, 15)
        chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        yield Body(f"256 MiB in {kind.decode()}", "/predict", {}, file.getvalue()[:33] + chunk + file.getvalue()[33:])


def heads() -> Iterator[Body]:
    yield Body("a header of 200 kB", "/predict", {"X": "x" * 200_000}, b"x")
    yield Body("10,000 headers", "/predict", {f"X-{number}": "x" for number in range(10_000)}, b"x")
    yield Body("a path of 200 kB", "/models/" + "x" * 200_000 + "/predict", {}, b"x")
    yield Body(
        "a boundary of 60 kB", "/predict", {"Content-Type": "multipart/form-data; boundary=" + "-" * 60_000}, b"-"
    )
    yield Body("parameters of a type", "/predict", {"Content-Type": "multipart/form-data" + ";a*0=b" * 9_000}, b"x")


@pytest.fixture(scope="module")
def bombs() -> list[Body]:
    made = [*compressed(), *forms(), *json_bodies(), *binaries(), *pictures(), *heads()]
    assert all(len(body.content) <= MAX_REQUEST_BYTES for body in made), "the size alone would be refused"
    return made


def test_bodies_that_explode_are_refused_within_bounded_memory(
    stressed: Serve, alone: Alone, bombs: list[Body], ran: Callable[[str], None]
) -> None:
    limits = {
        "--max-request-bytes": MAX_REQUEST_BYTES,
        "--max-pending-bytes": MAX_PENDING_BYTES,
        "--max-image-pixels": MAX_IMAGE_PIXELS,
    }
    flags = [str(part) for pair in limits.items() for part in pair]
    with stressed(*flags) as server:
        memory = Memory(server.process.pid)
        assert_right_at_once(server, alone)
        before, seen, worst = memory.held_bytes, Counter[int](), (0, "")
        for body in bombs:
            memory.forget_peak()
            held = memory.held_bytes
            seen += send(server, body)
            at_rest(server)
            worst = max(worst, (memory.peak_bytes - held, body.form))
            assert memory.peak_bytes - before <= ALLOWED_BYTES, body.form
        assert_right_at_once(server, alone)
        assert not [line for line in server.lines() if line["message"] == "request failed"]
    shown = ", ".join(f"{status}: {count}" for status, count in sorted(seen.items()))
    ran(f"bombs: {seen.total()} of {len(bombs)} kinds ({shown}), peak {worst[0] / 2**20:+.0f} MiB by {worst[1]!r}")


def send(server: Process, body: Body) -> Counter[int]:
    """Send a bomb AT_ONCE times at once; each is refused, on the wire (0) or by a status of its own fault."""

    def post(_: int) -> int:
        connection = http.client.HTTPConnection(httpx.URL(server.url).netloc.decode(), timeout=60)
        with closing(connection):
            try:
                connection.request("POST", body.path, body.content, body.headers)
                return connection.getresponse().status
            except (ConnectionError, http.client.BadStatusLine):  # closed while it was still sent
                return 0

    with ThreadPoolExecutor(AT_ONCE) as pool:
        seen = Counter(pool.map(post, range(AT_ONCE)))
    refused = {400, 404, 413, 415, 422, 429, 431}
    assert set(seen) <= refused | ({0} if body.content == b"x" else set()), (body.form, seen)
    return seen
