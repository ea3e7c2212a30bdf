"""How errors look under /v2: the Open Inference Protocol has one form for them, and 400 for all bad input."""

from service.errors import Answer
from service.open_inference.schemas import ProtocolError

ROOT = "/v2"


def speaks(path: str) -> bool:
    """Return whether a path is the protocol's."""
    return path == ROOT or path.startswith(f"{ROOT}/")


def without_slash(path: str) -> str:
    """Return a path without the slash that some clients send at the end of the protocol's; others as they are."""
    return path.removesuffix("/") if speaks(path) else path


def status_of(answer: Answer) -> int:
    """Return the status under /v2 of an error: 400 where the input's type or content is refused."""
    return 400 if answer.status in (415, 422) else answer.status


def error_body(message: str, index: int | None) -> str:
    """Return the body of an error, as JSON; `index` is that of the image which it is about."""
    return ProtocolError(error=message if index is None else f"image {index}: {message}").model_dump_json()
