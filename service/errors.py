"""What can go wrong with a request, and the one table from error to HTTP status.

bytes -> body -> encoded images -> pixels -> queue -> verdicts
      |       |                 |         |        |
      |       |                 |         |        EngineDiedError, DeadlineExceededError
      |       |                 |         QueueFullError, NotReadyError
      |       |                 ImageError (model_store)
      |       EmptyBodyError, MalformedJsonError, MalformedMultipartError, InvalidBase64Error, TooManyImagesError,
      |       MalformedCompressionError, MalformedArrayError, UnfitArrayError, InvalidTensorError, ...
      LineFullError, MemoryFullError, LengthRequiredError, BodyTooLargeError, UnsupportedEncodingError,
      ClientLeftError, UnauthorizedError, ...
"""

from dataclasses import dataclass

from model_store.errors import (
    CorruptImageError,
    EmptyImageError,
    ImageError,
    ImageTooLargeError,
    TooManyPixelsError,
    UnsupportedImageError,
)


class SettingsError(Exception):
    """Settings with which the server does not start."""


class StartError(Exception):
    """No bundle could be loaded, or the port is taken."""


class CaptureError(Exception):
    """Captured images that can't be read, or what it takes to keep or read them is not installed."""


class ServiceError(Exception):
    """A request that is refused. The message goes to the client; it never holds what the client sent at length."""


class UnauthorizedError(ServiceError):
    """No bearer token, or an unknown one."""


class UnknownRouteError(ServiceError):
    """No such path."""


class UnknownModelError(ServiceError):
    """No such model, or no such version of it, on this server."""


class MethodNotAllowedError(ServiceError):
    """The path exists, the method does not."""


class BodyTimeoutError(ServiceError):
    """The body did not arrive in time."""


class ClientLeftError(ServiceError):
    """The client closed its connection before its answer; nobody reads the reply."""


class LengthRequiredError(ServiceError):
    """Neither Content-Length nor a chunked body."""


class BodyTooLargeError(ServiceError):
    """More bytes than a request may have."""


class TooManyImagesError(ServiceError):
    """More images than a request may have."""


class UnsupportedEncodingError(ServiceError):
    """A compressed body."""


class EmptyBodyError(ServiceError):
    """Zero bytes."""


class MalformedJsonError(ServiceError):
    """A body that should be JSON and is not."""


class MalformedMultipartError(ServiceError):
    """A multipart body that cannot be parsed, or that ends before its last boundary."""


class MalformedCompressionError(ServiceError):
    """A compressed body that is damaged, truncated or followed by something."""


class MalformedArrayError(ServiceError):
    """A body that should be an .npy file and is not, or not a whole one."""


class UnfitArrayError(ServiceError):
    """An array of another dtype, order or shape than the model takes."""


class InvalidTensorError(ServiceError):
    """A request of the Open Inference Protocol, or a tensor in it, that is not as the protocol or the model has it."""


class InvalidBase64Error(ServiceError):
    """An image in JSON that is not base64."""


class InvalidFieldError(ServiceError):
    """JSON or form fields other than `images`, or `images` of another type."""


class InvalidHeaderError(ServiceError):
    """A header of ours with a value that it can't have."""


class QueueFullError(ServiceError):
    """The model's queue, or what is before it, is full; in `retry_after_s` seconds it may not be."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LineFullError(QueueFullError):
    """The line of requests that wait unread is full."""


class MemoryFullError(QueueFullError):
    """The memory for bodies is full."""


class NotReadyError(ServiceError):
    """The model is not loaded, or its engine has died, or the server is leaving."""


class EngineDiedError(NotReadyError):
    """The engine died with the request in its queue."""


class DeadlineExceededError(ServiceError):
    """The request's time was up before its verdict."""


def full(model: str, why: str, retry_after_s: int) -> QueueFullError:
    """Return the refusal of images by a model whose queue has no room for them."""
    return QueueFullError(f"the queue of {model} is full: {why}; try again in {retry_after_s} s", retry_after_s)


def late(model: str) -> DeadlineExceededError:
    """Return the answer to a request whose time is up."""
    return DeadlineExceededError(f"{model} had no verdict within the deadline")


@dataclass(frozen=True)
class Answer:
    """How an error is answered: HTTP status and a code for programs; what it means stands in docs and OpenAPI."""

    status: int
    code: str
    meaning: str


ANSWERS: dict[type[Exception], Answer] = {
    EmptyBodyError: Answer(400, "empty_body", "The body has no bytes."),
    EmptyImageError: Answer(400, "empty_image", "An image has no bytes."),
    MalformedJsonError: Answer(400, "malformed_json", "The body is not valid JSON."),
    MalformedMultipartError: Answer(400, "malformed_multipart", "The multipart body cannot be parsed or is truncated."),
    MalformedCompressionError: Answer(400, "malformed_compression", "The compressed body is damaged or truncated."),
    MalformedArrayError: Answer(400, "malformed_array", "The array is no whole .npy file."),
    InvalidTensorError: Answer(400, "invalid_tensor", "The inference request or its tensor is not the model's."),
    InvalidBase64Error: Answer(400, "invalid_base64", "An image in JSON is not base64."),
    InvalidHeaderError: Answer(400, "invalid_header", "A header has a value that it cannot have."),
    UnauthorizedError: Answer(401, "unauthorized", "The bearer token is missing or unknown."),
    UnknownRouteError: Answer(404, "unknown_route", "There is no such path."),
    UnknownModelError: Answer(404, "unknown_model", "The model, or this version of it, is not served."),
    MethodNotAllowedError: Answer(405, "method_not_allowed", "The path does not take this method; see Allow."),
    BodyTimeoutError: Answer(408, "body_timeout", "The body did not arrive in time."),
    LengthRequiredError: Answer(411, "length_required", "The request has neither Content-Length nor a chunked body."),
    BodyTooLargeError: Answer(413, "body_too_large", "The body has more bytes than a request may have."),
    TooManyImagesError: Answer(413, "too_many_images", "The request has more images than allowed."),
    ImageTooLargeError: Answer(413, "image_too_large", "An image has more bytes than allowed."),
    TooManyPixelsError: Answer(413, "too_many_pixels", "An image has more pixels than allowed."),
    UnsupportedEncodingError: Answer(415, "unsupported_encoding", "The body is compressed in a way not read here."),
    UnsupportedImageError: Answer(415, "unsupported_image", "The content is no image of a format that is read."),
    CorruptImageError: Answer(422, "corrupt_image", "An image is truncated or damaged."),
    UnfitArrayError: Answer(422, "unfit_array", "The array has another dtype, order or shape than the model's."),
    InvalidFieldError: Answer(422, "invalid_field", "A field is missing, unknown or of another type."),
    ClientLeftError: Answer(499, "client_left", "The client left before its answer; for metrics and log alone."),
    LineFullError: Answer(429, "line_full", "Too many requests wait already; try again after Retry-After seconds."),
    MemoryFullError: Answer(429, "memory_full", "Bodies take too much memory; try again after Retry-After seconds."),
    QueueFullError: Answer(429, "queue_full", "Too many images wait already; try again after Retry-After seconds."),
    NotReadyError: Answer(503, "not_ready", "The model is not loaded, or the server is stopping; try another replica."),
    EngineDiedError: Answer(503, "engine_died", "The model's engine died; try again, or another replica."),
    DeadlineExceededError: Answer(504, "deadline_exceeded", "The verdict was not there within the deadline."),
}
INTERNAL = Answer(500, "internal_error", "A fault of the server; its log has the request id.")
"""For what no table foresees. Nothing that a client sends leads here."""


def answer_for(error: Exception) -> Answer:
    """Return the row of the table for an error, or for its nearest ancestor."""
    return next((ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS), INTERNAL)


class BadImageError(ServiceError):
    """One image of a request was refused; `index` counts the request's images from 0."""

    def __init__(self, index: int, cause: ImageError | ServiceError) -> None:
        super().__init__(str(cause))
        self.index = index
        self.cause = cause
