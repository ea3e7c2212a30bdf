"""Endpoints that are reached without FastAPI, and documented by it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Message

from service.app import ROUTERS
from service.routes.direct import DirectRoute, DirectRoutes


@pytest.fixture(scope="module")
def app() -> FastAPI:
    """Two endpoints, one of them direct, that tell whether FastAPI has led the way to them."""
    direct, other = APIRouter(route_class=DirectRoute), APIRouter()

    @direct.post("/direct/{part}")
    async def of_part(request: Request, part: str) -> Response:
        return Response(f"{part} {'fastapi_inner_astack' in request.scope}")

    @other.post("/other")
    async def of_other(request: Request) -> Response:
        return Response(f"other {'fastapi_inner_astack' in request.scope}")

    made = FastAPI()
    made.include_router(direct)
    made.include_router(other)
    made.add_middleware(DirectRoutes, routers=(direct, other))
    return made


def ask(app: Any, method: str, path: str) -> httpx.Response:
    async def asked() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.request(method, path)

    return asyncio.run(asked())


def test_a_direct_endpoint_gets_the_request_and_the_parts_of_its_path(app: FastAPI) -> None:
    assert ask(app, "POST", "/direct/a%20b").text == "a b False"


def test_all_else_goes_through_fastapi(app: FastAPI) -> None:
    assert ask(app, "POST", "/other").text == "other True"
    assert ask(app, "POST", "/direct").status_code == 404
    assert app.openapi()["paths"].keys() == {"/direct/{part}", "/other"}


def test_another_method_is_refused_as_elsewhere(app: FastAPI) -> None:
    with pytest.raises(HTTPException) as found:
        ask(app, "GET", "/direct/a")
    assert (found.value.status_code, found.value.headers) == (405, {"Allow": "POST"})


def test_the_application_starts_and_ends(app: FastAPI) -> None:
    seen = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        seen.append("start")
        yield
        seen.append("end")

    made = FastAPI(lifespan=lifespan)
    made.add_middleware(DirectRoutes, routers=(app.router,))
    told = iter(({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}))

    async def receive() -> Message:
        return next(told)

    async def send(_: Message) -> None:
        pass

    asyncio.run(made({"type": "lifespan", "app": made}, receive, send))
    assert seen == ["start", "end"]


def test_what_judges_images_is_direct() -> None:
    direct = {route.path for router in ROUTERS for route in router.routes if isinstance(route, DirectRoute)}
    infer = {"/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"}
    assert direct == {"/predict", "/models/{model}/predict"} | infer
