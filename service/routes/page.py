"""The page: try images and watch the traffic. Its files are `service/web/`, and the same on every server."""

import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from fastapi import APIRouter, Request, Response

from service.errors import UnknownRouteError

MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "jpg": "image/jpeg",
    "js": "text/javascript; charset=utf-8",
    "png": "image/png",
    "svg": "image/svg+xml",
}
HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked for by ETag before each use: an update shows at once
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
router = APIRouter(include_in_schema=False)


class Asset(NamedTuple):
    """A file of the page."""

    content: bytes
    media_type: str
    etag: str


@cache
def assets() -> dict[str, Asset]:
    """Return every file of the page, by name."""
    contents = {file.name: file.read_bytes() for file in (files("service") / "web").iterdir()}
    return {
        name: Asset(content, MEDIA_TYPES[name.rpartition(".")[2]], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
        for name, content in contents.items()
    }


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """Give the page, to whoever asks."""
    return _reply(request, assets()["index.html"])


@router.api_route("/web/{file}", methods=["GET", "HEAD"])
async def asset(request: Request, file: str) -> Response:
    """Give a file that the page needs."""
    if file not in assets():
        raise UnknownRouteError("the page has no such file")
    return _reply(request, assets()[file])


def _reply(request: Request, asset: Asset) -> Response:
    headers = HEADERS | {"ETag": asset.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.etag in known or known == ["*"]:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.media_type)
