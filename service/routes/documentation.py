"""What OpenAPI says beyond types: the forms of a body, and every error with its codes."""

from typing import Any

from service.errors import ANSWERS
from service.schemas import ErrorReply, ImagesRequest

_BINARY = {"type": "string", "format": "binary"}

PREDICT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image file as it is, whatever the Content-Type; or any number in a form, in JSON, or as a "
        "NumPy .npy file of uint8 (N, H, W, 3) in the model's size.",
        "content": {
            "application/json": {"schema": ImagesRequest.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {"images": {"type": "array", "items": _BINARY}},
                }
            },
            "application/octet-stream": {"schema": _BINARY},
            "application/x-npy": {"schema": _BINARY},
        },
    },
    "parameters": [
        {
            "name": "scores",
            "in": "query",
            "required": False,
            "description": "`all` adds every score of the bundle to each prediction, with p-value and flag, from the "
            "same forward pass. ODIN and Mahalanobis with perturbed input are offline only.",
            "schema": {"type": "string", "enum": ["all"]},
        },
        {
            "name": "X-Deadline-Ms",
            "in": "header",
            "required": False,
            "description": "Milliseconds that the answer may take; at most the server's own deadline.",
            "schema": {"type": "number", "exclusiveMinimum": 0},
        },
        {
            "name": "X-Request-Id",
            "in": "header",
            "required": False,
            "description": "1 to 128 of A-Z a-z 0-9 . _ -; comes back in the reply, and stands in the log.",
            "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
        },
    ],
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of these statuses, each with the codes that it may carry."""
    return {
        status: {
            "model": ErrorReply,
            "description": " ".join(f"`{a.code}`: {a.meaning}" for a in ANSWERS.values() if a.status == status),
        }
        for status in statuses
    }
