"""Which pages of other origins may call the server, and what they may read of its answers."""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from service.judging import DEADLINE_HEADER
from service.open_inference.reply import JSON_LENGTH_HEADER
from service.settings import Settings


def cors(app: ASGIApp, settings: Settings) -> CORSMiddleware | None:
    """Put the rules of the settings around an application; None where they allow no origin."""
    if not settings.cors_origins:
        return None
    return CORSMiddleware(
        app,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("Authorization", "Content-Type", DEADLINE_HEADER, "X-Request-Id", JSON_LENGTH_HEADER),
        expose_headers=("X-Request-Id", "Retry-After", JSON_LENGTH_HEADER),
    )
