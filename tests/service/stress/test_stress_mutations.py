"""Requests that were valid once, and requests drawn from the OpenAPI document."""

import http.client
import json
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random

import httpx
import hypothesis
import pytest
import schemathesis
from bodies import BOUNDARY, FORMS, Body, jpeg
from conftest import Alone, Serve
from hypothesis import HealthCheck, given
from live import Process
from memory import Memory
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from test_stress_clients import assert_right_at_once, at_rest

from service.errors import ANSWERS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MUTATED = 8000
WARM = 1000
DRAWN = 2000
GROWTH = 1.05
THREADS = 8
STATUSES = {200} | {answer.status for answer in ANSWERS.values()} - {499}
CODES = {answer.code for answer in ANSWERS.values()}


def test_ten_thousand_mutated_requests_are_refused_or_answered(
    stressed: Serve, alone: Alone, ran: Callable[[str], None], seed: int
) -> None:
    """8,000 whose bytes were changed, and 2,000 drawn from the schema: no status but those of the documented table."""
    with stressed() as server:
        memory = Memory(server.process.pid)
        mutate(server, alone, WARM, seed + 1)
        draw(server, 200, seed + 1)
        at_rest(server)
        before = memory.held_bytes
        seen = mutate(server, alone, MUTATED, seed)
        drawn = draw(server, DRAWN, seed)
        at_rest(server)
        assert memory.held_bytes <= GROWTH * before
        assert_right_at_once(server, alone)
        growth = memory.held_bytes / before - 1
        assert not [line for line in server.lines() if line["message"] == "request failed"]
    shown = ", ".join(f"{status}: {count}" for status, count in sorted(seen.items()))
    ran(f"mutations: {seen.total()} ({shown}); drawn from OpenAPI: {drawn.total()} in {len(drawn)} operations")
    ran(f"mutations: RSS {growth:+.1%}")


def mutate(server: Process, alone: Alone, requests: int, seed: int) -> Counter[int]:
    """Send so many mutated requests from THREADS connections; count the statuses."""

    def send(thread: int) -> Counter[int]:
        random, seen = Random(f"{seed} {thread}"), Counter[int]()
        connection = http.client.HTTPConnection(httpx.URL(server.url).netloc.decode(), timeout=60)
        for _ in range(requests // THREADS):
            body = mutated(valid(alone, random), random)
            status, content = post(connection, body)
            assert status in STATUSES, (status, content, body)
            if status != 200:
                assert_refusal(body, content)
            seen[status] += 1
        connection.close()
        return seen

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(send, range(THREADS)), Counter())


def valid(alone: Alone, random: Random) -> Body:
    rows = [random.randrange(len(alone.pngs)) for _ in range(random.choice((1, 1, 2)))]
    files = [alone.pngs[row] if random.random() < 0.5 else jpeg(alone.pixels[row]) for row in rows]
    return random.choice(list(FORMS.values()))(files, alone.pixels[rows])


def mutated(body: Body, random: Random) -> Body:
    content = body.content
    for _ in range(random.choice((1, 1, 2, 8))):
        content = random.choice(MUTATIONS)(content, random)
    headers = dict(body.headers)
    if random.random() < 0.2:
        name = random.choice(("Content-Type", "Content-Encoding", "Inference-Header-Content-Length", "X-Deadline-Ms"))
        headers[name] = random.choice(HEADERS)
    return body._replace(headers=headers, content=content)


def _flip(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + random.randbytes(random.choice((1, 1, 4))) + content[at + 1 :]


def _flip_in_head(content: bytes, random: Random) -> bytes:
    at = random.randrange(min(len(content), 100) + 1)
    return content[:at] + random.randbytes(1) + content[at + 1 :]


def _cut(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + content[at + random.choice((1, 10, len(content))) :]


def _repeat(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + content[at : at + 200] * random.choice((2, 3, 50)) + content[at + 200 :]


def _insert(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + random.choice(NASTY) + content[at:]


def _count_otherwise(content: bytes, random: Random) -> bytes:
    """Change a digit near the front, where lengths and shapes are."""
    digits = [at for at in range(min(len(content), 400)) if content[at : at + 1].isdigit()]
    if not digits:
        return content
    at = random.choice(digits)
    return content[:at] + str(random.choice((0, 9, -1, 10**6, 2**63, 1e400))).encode() + content[at + 1 :]


MUTATIONS = (_flip, _flip_in_head, _cut, _repeat, _insert, _count_otherwise)
HEADERS = (
    *("", "image/png", "application/json", f"multipart/form-data; boundary={BOUNDARY}", "application/x-npy"),
    *("gzip", "deflate", "0", "-1", "7", "99999999999999999999", "nan"),
)
NASTY = (
    *(b"\0", b"\xff\xff\xff\xff", b"\xed\xa0\x80", b"\r\n", b'"', b"[", b"{", b"}", b"[" * 500, b'{"a":' * 500),
    *(b"null", b"NaN", b"-1", b"1e999", b"true", b"9" * 5000, f"--{BOUNDARY}".encode(), f"--{BOUNDARY}--".encode()),
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x93NUMPY\x01\0", b"\x1f\x8b\x08\0"),
)


def post(connection: http.client.HTTPConnection, body: Body) -> tuple[int, bytes]:
    """Send a request on a connection that was used, which the server may have closed after a refusal."""
    for _ in range(2):
        try:
            connection.request("POST", body.path, body.content, body.headers)
            reply = connection.getresponse()
            return reply.status, reply.read()
        except (ConnectionError, http.client.BadStatusLine):
            connection.close()
    raise AssertionError(f"no answer to {body}")


def assert_refusal(body: Body, content: bytes) -> None:
    """The error body is the documented one."""
    error = json.loads(content)["error"]
    if body.path.startswith("/v2"):
        assert isinstance(error, str)
    else:
        assert error["code"] in CODES
        assert 0 < len(error["message"]) < 1000


def draw(server: Process, requests: int, seed: int) -> Counter[str]:
    """Send requests drawn from the document, about so many; replies are as it says. Count them by operation."""
    seen = Counter[str]()
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json", timeout=60)
    operations = [found.ok() for found in document.get_all_operations()]

    def check(case: schemathesis.Case) -> None:
        reply = case.call(timeout=60)
        seen[case.operation.label] += 1
        unavailable = reply.status_code in (503, 504)
        checks = [content_type_conformance, response_schema_conformance, status_code_conformance]
        case.validate_response(reply, checks=checks if unavailable else [not_a_server_error, *checks])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for operation in operations:
            limits = hypothesis.settings(
                max_examples=requests // 10,  # about half of the operations have anything to draw
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            hypothesis.seed(seed)(limits(given(operation.as_strategy())(check)))()
    return seen
