"""A body, and how much of it is JSON -> the images of a request and the outputs that it wants.

Whatever is sent, a failure is a ServiceError.
"""

import math
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from service.bodies import BASE64, check_count, from_base64
from service.errors import InvalidTensorError, MalformedJsonError
from service.open_inference.model import INPUT, OUTPUTS, InputTensor, OutputName

_QUOTED = 80
_MAX_ID = 1000
_FURTHER_MARKS = 1000
"""Commas, brackets, colons or quotes of each kind that a request may have beside its numbers and files."""
_MAX_SIDES = 8
_SIZES = 10**18
"""Bytes of a binary tensor are fewer, so that a reply says as many digits at most."""
_FIELDS = ("id", "parameters", "inputs", "outputs", "model_name", "model_version")
_LENGTH = struct.Struct("<I")
Name = TypeVar("Name", bound=str)


@dataclass(frozen=True)
class WantedOutput:
    """An output, and whether it is to come in binary."""

    name: OutputName
    binary: bool


@dataclass(frozen=True)
class ParsedRequest:
    """What a request holds: pixels uint8 (N, H, W, 3), or N encoded files, and what is to come back."""

    id: str | None
    images: NDArray[np.uint8] | list[bytes]
    outputs: tuple[WantedOutput, ...]


@dataclass(frozen=True)
class _Tensor:
    """A request's one input, apart from its content."""

    shape: tuple[int, ...]
    binary_size: int | None
    base64: bool
    data: list[Any] | None


def parse(body: bytes, json_bytes: int | None, tensor: InputTensor, *, max_images: int) -> ParsedRequest:
    """Take a request apart. Pixels in binary are a view of the body.

    Args:
        body: JSON, and behind it what is sent in binary.
        json_bytes: how many of its bytes are JSON; None for all.
        tensor: what the model takes.
        max_images: most images that it may hold.

    Raises:
        MalformedJsonError: the JSON is none, or has more in it than such a request can have.
        TooManyImagesError: it holds more images than allowed.
        InvalidTensorError: anything else that the protocol or the model does not allow.
    """
    if json_bytes is not None and json_bytes > len(body):
        raise InvalidTensorError(f"Inference-Header-Content-Length is {json_bytes}; the body has {len(body):,} bytes")
    message = _message(body if json_bytes is None else body[:json_bytes], tensor, max_images)
    parameters = _parameters(message, "the request")
    found = _input(message, tensor, parameters, max_images)
    outputs = _outputs(message, _flag(parameters, "binary_data_output", "the request") or False)
    at = len(body) if json_bytes is None else json_bytes
    if found.binary_size is not None and json_bytes is None:
        raise InvalidTensorError(
            f"{INPUT} has binary_data_size, but there is no header Inference-Header-Content-Length, which says where "
            "the JSON ends"
        )
    if len(body) - at != (found.binary_size or 0):
        raise InvalidTensorError(
            f"{len(body) - at:,} bytes follow the JSON; binary_data_size of {INPUT} is {found.binary_size or 0:,}"
        )
    return ParsedRequest(_id(message), _content(found, body, at, tensor), outputs)


def _message(text: bytes, tensor: InputTensor, max_images: int) -> dict[str, Any]:
    """Parse the JSON, which holds up every thread, once it is sure that it has no more parts than images can have."""
    for mark, an_image in _marks_of_an_image(tensor).items():
        if text.count(mark) > _FURTHER_MARKS + max_images * an_image:
            raise MalformedJsonError(f"the JSON has more {mark.decode()} than {max_images} images can have")
    try:
        message = from_json(text, allow_inf_nan=False)
    except (ValueError, RecursionError) as err:
        raise MalformedJsonError(f"the request is not JSON: {str(err)[:120]}") from None
    return _object(message, _FIELDS, "the request")


def _marks_of_an_image(tensor: InputTensor) -> dict[bytes, int]:
    if tensor.datatype == "BYTES":
        return {b'"': 2, b",": 1, b"[": 0, b"{": 0, b":": 0}
    lists = sum(math.prod(tensor.sides[:depth]) for depth in range(len(tensor.sides)))
    return {b'"': 0, b",": math.prod(tensor.sides), b"[": lists, b"{": 0, b":": 0}


def _object(value: object, fields: Collection[str], subject: str) -> dict[str, Any]:
    """Return an object without those of its fields that are null, as some clients send them."""
    if not isinstance(value, dict):
        raise InvalidTensorError(f"{subject} is {_kind(value)}; it must be an object with {', '.join(fields)}")
    if (unknown := next((name for name in value if name not in fields), None)) is not None:
        raise InvalidTensorError(f"{subject} has a field {_quote(unknown)}; there are {', '.join(fields)}")
    return {name: found for name, found in value.items() if found is not None}


def _parameters(owner: Mapping[str, Any], subject: str) -> dict[str, Any]:
    found = owner.get("parameters", {})
    if not isinstance(found, dict):
        raise InvalidTensorError(f"the parameters of {subject} are {_kind(found)}; they must be an object")
    if shared := next((name for name in found if name.startswith("shared_memory")), None):
        raise InvalidTensorError(f"{subject} has the parameter {_quote(shared)}; shared memory is not offered")
    return found


def _flag(parameters: Mapping[str, Any], name: str, subject: str) -> bool | None:
    found = parameters.get(name)
    if found is not None and not isinstance(found, bool):
        raise InvalidTensorError(f"{name} of {subject} is {_kind(found)}; it must be true or false")
    return found


def _id(message: Mapping[str, Any]) -> str | None:
    found = message.get("id")
    if found is not None and not (isinstance(found, str) and len(found) <= _MAX_ID):
        raise InvalidTensorError(f"id is {_kind(found)}; it must be a text of at most {_MAX_ID} characters")
    return found


def _named(message: Mapping[str, Any], kind: str, known: Collection[Name]) -> Iterator[tuple[Name, Any]]:
    """Give the entries of `inputs` or `outputs` with their names, each of which is known and comes once."""
    found = message.get(kind, [])
    if not isinstance(found, list):
        raise InvalidTensorError(f"{kind} is {_kind(found)}; it must be a list")
    seen: set[str] = set()
    for entry in found:
        sent = entry.get("name") if isinstance(entry, dict) else None
        name = next((each for each in known if each == sent), None)
        if name is None:
            shown = _quote(sent) if isinstance(sent, str) else _kind(sent)
            raise InvalidTensorError(f"{kind} has one whose name is {shown}; there are {', '.join(known)}")
        if name in seen:
            raise InvalidTensorError(f"{kind} has {name} twice")
        seen.add(name)
        yield name, entry


def _input(
    message: Mapping[str, Any], tensor: InputTensor, request_parameters: Mapping[str, Any], max_images: int
) -> _Tensor:
    entries = [entry for _, entry in _named(message, "inputs", (INPUT,))]
    if not entries:
        raise InvalidTensorError(f"inputs is missing or empty; the model takes {INPUT}")
    entry = _object(entries[0], ("name", "shape", "datatype", "parameters", "data"), INPUT)
    parameters = _parameters(entry, INPUT)
    if entry.get("datatype") != tensor.datatype:
        shown = _quote(entry.get("datatype"))
        raise InvalidTensorError(f"the datatype of {INPUT} is {shown}; this model takes {tensor.datatype}")
    shape, size = _shape(entry.get("shape"), tensor, max_images), parameters.get("binary_data_size")
    if size is not None and (type(size) is not int or not 0 <= size < _SIZES):
        raise InvalidTensorError(
            f"binary_data_size of {INPUT} is {_quote(size)}; it must be an integer from 0 to {_SIZES - 1:,}"
        )
    data = entry.get("data")
    if (data is None) == (size is None):
        raise InvalidTensorError(f"{INPUT} must have either data or the parameter binary_data_size")
    if data is not None and not isinstance(data, list):
        raise InvalidTensorError(f"the data of {INPUT} is {_kind(data)}; it must be a list")
    content_type = parameters.get("content_type", request_parameters.get("content_type"))
    return _Tensor(shape, size, content_type == "base64", data)


def _shape(found: object, tensor: InputTensor, max_images: int) -> tuple[int, ...]:
    sides = tuple(found) if isinstance(found, list) and len(found) <= _MAX_SIDES else ()
    if not sides or not all(type(side) is int for side in sides) or sides[1:] != tensor.sides or sides[0] < 0:
        raise InvalidTensorError(
            f"the shape of {INPUT} is {_quote(found)}; it must be {tensor.shape}, where -1 is the number of images"
        )
    if sides[0] == 0:
        raise InvalidTensorError(f"the shape of {INPUT} is {_quote(found)}; send at least one image")
    check_count(sides[0], max_images)
    return sides


def _outputs(message: Mapping[str, Any], binary: bool) -> tuple[WantedOutput, ...]:
    wanted = []
    for name, entry in _named(message, "outputs", OUTPUTS):
        parameters = _parameters(_object(entry, ("name", "parameters"), name), name)
        if "classification" in parameters:
            raise InvalidTensorError(f"{name} has the parameter classification; that extension is not offered")
        chosen = _flag(parameters, "binary_data", name)
        wanted.append(WantedOutput(name, binary if chosen is None else chosen))
    return tuple(wanted) or tuple(WantedOutput(name, binary) for name in OUTPUTS)


def _content(found: _Tensor, body: bytes, at: int, tensor: InputTensor) -> NDArray[np.uint8] | list[bytes]:
    if tensor.datatype == "BYTES":
        return _decoded(found) if found.data is not None else _elements(body, at, found.shape[0])
    if found.data is not None:
        return np.frombuffer(_pixels(found.data, found.shape), np.uint8).reshape(found.shape)
    if found.binary_size != math.prod(found.shape):
        raise InvalidTensorError(
            f"binary_data_size of {INPUT} is {found.binary_size:,}; its shape {list(found.shape)} has "
            f"{math.prod(found.shape):,} bytes"
        )
    return np.frombuffer(body, np.uint8, offset=at).reshape(found.shape)


def _elements(body: bytes, at: int, count: int) -> list[bytes]:
    """Take apart BYTES in binary: each element a uint32 length and as many bytes."""
    found = []
    for index in range(count):
        if len(body) - at < _LENGTH.size:
            raise InvalidTensorError(f"the bytes of {INPUT} end before the length of element {index} of {count}")
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        if len(body) - at < length:
            raise InvalidTensorError(
                f"element {index} of {INPUT} announces {length:,} bytes; {len(body) - at:,} are left of the body"
            )
        found.append(body[at : at + length])
        at += length
    if at != len(body):
        raise InvalidTensorError(f"{len(body) - at:,} bytes follow the {count} elements of {INPUT}")
    return found


def _decoded(found: _Tensor) -> list[bytes]:
    if not found.base64:
        raise InvalidTensorError(
            f'{INPUT} is BYTES in JSON, which can hold files in base64 alone, with the parameter "content_type": '
            '"base64"; or send it in binary'
        )
    texts = found.data or []
    if len(texts) != found.shape[0]:
        raise InvalidTensorError(f"the data of {INPUT} has {len(texts)} elements; its shape is {list(found.shape)}")
    return [_from_base64(text, index) for index, text in enumerate(texts)]


def _from_base64(text: object, index: int) -> bytes:
    if not isinstance(text, str):
        raise InvalidTensorError(f"element {index} of {INPUT} is {_kind(text)}; it must be a text in base64")
    try:
        return from_base64(text)
    except ValueError as err:
        raise InvalidTensorError(f"element {index} of {INPUT} is not base64 ({BASE64}): {err}") from None


def _pixels(data: list[Any], shape: tuple[int, ...]) -> bytes:
    """Flatten numbers, given flat or nested as the shape is, and check that each is an integer from 0 to 255."""
    if data and isinstance(data[0], list):
        for depth, length in enumerate(shape):
            if depth > 0:
                data = _one_level_flatter(data, length, shape)
            elif len(data) != length:
                raise InvalidTensorError(f"the data of {INPUT} has {len(data)} entries; its shape is {list(shape)}")
    if len(data) != math.prod(shape):
        raise InvalidTensorError(
            f"the data of {INPUT} has {len(data):,} values; its shape {list(shape)} has {math.prod(shape):,}"
        )
    if not {*map(type, data)} <= {int}:
        odd = next(value for value in data if type(value) is not int)
        raise InvalidTensorError(f"the data of {INPUT} has {_quote(odd)}; its values must be integers from 0 to 255")
    try:
        return bytes(data)
    except ValueError:
        odd = next(value for value in data if not 0 <= value <= 255)
        raise InvalidTensorError(
            f"the data of {INPUT} has {_quote(odd)}; its values must be integers from 0 to 255"
        ) from None


def _one_level_flatter(data: list[Any], length: int, shape: tuple[int, ...]) -> list[Any]:
    if not all(isinstance(part, list) and len(part) == length for part in data):
        raise InvalidTensorError(f"the data of {INPUT} is nested, and not as its shape {list(shape)}")
    return list(chain.from_iterable(data))


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "missing"}
    return names.get(type(value), "a number")


def _quote(value: object) -> str:
    """Show what was sent, never at length."""
    return repr(value)[:_QUOTED]
