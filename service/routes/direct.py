"""The endpoints that take a request as it is, reached directly; FastAPI documents them, and serves all else.

FastAPI's way to an endpoint, through routers, exit stacks and dependencies that these do not have, takes longer than
all the rest that is done for a small request (benchmarks/layers.py).
"""

from collections.abc import Awaitable, Callable, Iterable

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send


class DirectRoutes(Router):
    """Serves the routes of some routers, and leaves whatever is none of them to the application behind it."""

    def __init__(self, app: ASGIApp, routers: Iterable[APIRouter]) -> None:
        """Take over the routes of `routers`, whose endpoints take the request and the parts of the path as text."""
        documented = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
        super().__init__([_direct(route) for route in documented], redirect_slashes=False, default=app)


def _direct(route: APIRoute) -> Route:
    return Route(route.path, _Endpoint(route.endpoint), methods=route.methods)


class _Endpoint:
    """An endpoint as an application."""

    def __init__(self, answer: Callable[..., Awaitable[Response]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        response = await self._answer(Request(scope, receive, send), **scope["path_params"])
        await response(scope, receive, send)
