"""The cost of a request's layers, measured small; and that requests really reach the application that they measure."""

import asyncio

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from benchmarks import layers
from benchmarks.http_requests import http_post
from benchmarks.in_process import Frontend

REQUEST = http_post("/predict", "image/jpeg", b"body")


def test_every_request_reaches_the_application() -> None:
    bodies: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        bodies.append((await receive())["body"])
        await Response(b"{}")(scope, receive, send)

    assert Frontend(app).cpu_us(REQUEST, status=200, connections=4, requests=30) > 0
    assert bodies == [b"body"] * 30


@pytest.mark.parametrize("connections", [1, 4])
def test_so_many_requests_are_under_way_as_there_are_connections(connections: int) -> None:
    begun: list[int] = []
    ended: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.append(len(begun) + 1 - len(ended))
        await asyncio.sleep(0.001)
        await Response(b"{}")(scope, receive, send)
        ended.append(1)

    Frontend(app).cpu_us(REQUEST, status=200, connections=connections, requests=12)
    assert max(begun) == connections


def test_another_status_than_expected_is_no_figure() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"{}", 503)(scope, receive, send)

    with pytest.raises(RuntimeError, match="503 Service Unavailable"):
        Frontend(app).cpu_us(REQUEST, status=200, connections=1, requests=1)


def number(cell: str) -> float:
    """Return the median of a cell that may have its spread in brackets."""
    return float(cell.partition(" ")[0].replace(",", ""))


@pytest.mark.slow
def test_the_table_has_every_layer_and_what_is_above_the_raw_application(capsys: pytest.CaptureFixture[str]) -> None:
    assert layers.main(["--model", "cifar10@1", "--rounds", "1", "--requests", "64"]) == 0
    _, _, *rows = capsys.readouterr().out.splitlines()
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert cells[0][0] == "raw ASGI application"
    assert "/predict, JPEG, engine that waits" in [name for name, *_ in cells]
    for _, *figures in cells:
        assert len(figures) == 2 * len(layers.CONNECTIONS)
        for spent, above, raw in zip(figures[::2], figures[1::2], cells[0][1::2], strict=True):
            assert number(above) == pytest.approx(number(spent) - number(raw), abs=1)
