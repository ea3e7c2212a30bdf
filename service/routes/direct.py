"""Endpoints that take a request as it is, reached without FastAPI, which documents them.

FastAPI's way to an endpoint, through its routers, exit stacks and dependencies, takes longer than any part of ours for
a small request but its decoding (`benchmarks.layers`); these endpoints use none of it.
"""

from collections.abc import Awaitable, Callable, Iterable

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request and the parts of the path, as text, and returns a response."""


class DirectRoutes:
    """Serves the direct routes of some routers, and leaves all else to the application behind it."""

    def __init__(self, app: ASGIApp, routers: Iterable[APIRouter]) -> None:
        found = [route for router in routers for route in router.routes if isinstance(route, DirectRoute)]
        self._app = app
        self._router = Router(
            [Route(route.path, _Endpoint(route.endpoint), methods=route.methods) for route in found],
            redirect_slashes=False,
            default=app,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find who answers; of its start and end the application itself is told."""
        await (self._router if scope["type"] == "http" else self._app)(scope, receive, send)


class _Endpoint:
    """An endpoint as an application."""

    def __init__(self, answer: Callable[..., Awaitable[Response]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._answer(Request(scope, receive, send), **scope["path_params"])
        await response(scope, receive, send)
