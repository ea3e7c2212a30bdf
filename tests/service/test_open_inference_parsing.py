"""Requests of the Open Inference Protocol: what is valid comes back as it was, what is mutated is refused or valid."""

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy
from live import Running

from service.engine import Verdict
from service.errors import ServiceError, answer_for
from service.open_inference.model import OUTPUTS, InputTensor
from service.open_inference.reply import column
from service.open_inference.request import ParsedRequest, parse

PIXELS = InputTensor("UINT8", (2, 4, 3))
FILES = InputTensor("BYTES", ())
MOST = 4

arrays = of_numpy.arrays(np.uint8, st.integers(1, MOST).map(lambda count: (count, 2, 4, 3)))
contents = st.lists(st.binary(max_size=30), min_size=1, max_size=MOST)
outputs = st.lists(
    st.tuples(st.sampled_from(list(OUTPUTS)), st.sampled_from([None, False, True])),
    max_size=4,
    unique_by=lambda o: o[0],
)
identifiers = st.none() | st.text(st.characters(codec="utf-8"), max_size=20)
parameters = st.dictionaries(st.sampled_from(["priority", "timeout", "custom"]), st.integers() | st.text(max_size=5))


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as made:
        yield made


def request(
    tensor: dict[str, Any], data: bytes, wanted: Any, by_default: bool | None, identifier: str | None, others: Any
) -> tuple[bytes, int]:
    message: dict[str, Any] = {"inputs": [tensor], "parameters": dict(others)}
    if by_default is not None:
        message["parameters"]["binary_data_output"] = by_default
    if identifier is not None:
        message["id"] = identifier
    if wanted:
        message["outputs"] = [
            {"name": name} if binary is None else {"name": name, "parameters": {"binary_data": binary}}
            for name, binary in wanted
        ]
    head = json.dumps(message).encode()
    return head + data, len(head)


def assert_rest(parsed: ParsedRequest, wanted: Any, by_default: bool | None, identifier: str | None) -> None:
    assert parsed.id == identifier
    expected = wanted or [(name, None) for name in OUTPUTS]
    found = [(output.name, output.binary) for output in parsed.outputs]
    assert found == [(name, bool(by_default) if binary is None else binary) for name, binary in expected]


@settings(max_examples=40)
@given(
    arrays,
    st.sampled_from(["flat", "nested", "binary"]),
    outputs,
    st.sampled_from([None, False, True]),
    identifiers,
    parameters,
)
def test_pixels_come_back_however_they_are_sent(
    array: np.ndarray, form: str, wanted: Any, by_default: bool | None, identifier: str | None, others: Any
) -> None:
    tensor: dict[str, Any] = {"name": "IMAGE", "shape": list(array.shape), "datatype": "UINT8"}
    if form == "binary":
        tensor["parameters"] = {"binary_data_size": array.nbytes}
    else:
        tensor["data"] = array.tolist() if form == "nested" else array.ravel().tolist()
    data = array.tobytes() if form == "binary" else b""
    body, head = request(tensor, data, wanted, by_default, identifier, others)
    for length in (head,) if data else (head, None):
        parsed = parse(body, length, PIXELS, max_images=MOST)
        np.testing.assert_array_equal(parsed.images, array)
        assert_rest(parsed, wanted, by_default, identifier)
        if data:
            assert np.shares_memory(np.asarray(parsed.images), np.frombuffer(body, np.uint8))


@given(contents, st.booleans(), outputs, st.sampled_from([None, False, True]), identifiers, parameters)
def test_files_come_back_however_they_are_sent(
    files: list[bytes], binary: bool, wanted: Any, by_default: bool | None, identifier: str | None, others: Any
) -> None:
    data = b"".join(struct.pack("<I", len(file)) + file for file in files) if binary else b""
    tensor: dict[str, Any] = {"name": "IMAGE", "shape": [len(files)], "datatype": "BYTES"}
    if binary:
        tensor["parameters"] = {"binary_data_size": len(data)}
    else:
        tensor |= {
            "parameters": {"content_type": "base64"},
            "data": [base64.b64encode(file).decode() for file in files],
        }
    body, head = request(tensor, data, wanted, by_default, identifier, others)
    parsed = parse(body, head, FILES, max_images=MOST)
    assert parsed.images == files
    assert_rest(parsed, wanted, by_default, identifier)


def valid_requests() -> list[tuple[bytes, int, InputTensor]]:
    array = np.arange(2 * 2 * 4 * 3, dtype=np.uint8).reshape(2, 2, 4, 3)
    tensor = {"name": "IMAGE", "shape": [2, 2, 4, 3], "datatype": "UINT8"}
    wanted = [("LABEL", True), ("LOGITS", None)]
    binary = request(tensor | {"parameters": {"binary_data_size": 48}}, array.tobytes(), wanted, True, "i", {"a": 1})
    flat = request(tensor | {"data": array.ravel().tolist()}, b"", wanted, None, "i", {})
    nested = request(tensor | {"data": array.tolist()}, b"", [], False, None, {})
    elements = b"\3\0\0\0abc\0\0\0\0"
    files = {"name": "IMAGE", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(elements)}}
    texts = {"name": "IMAGE", "shape": [2], "datatype": "BYTES", "data": ["YWJj", ""]}
    in_binary = request(files, elements, wanted, True, "i", {})
    in_base64 = request(texts, b"", [], None, None, {"content_type": "base64"})
    return [(*r, PIXELS) for r in (binary, flat, nested)] + [(*r, FILES) for r in (in_binary, in_base64)]


VALID = valid_requests()


@settings(max_examples=250)
@given(
    st.sampled_from(VALID),
    st.integers(0, 10_000),
    st.integers(0, 6),
    st.binary(max_size=6),
    st.sampled_from([0, 0, 0, -1, 1, 7]),
)
def test_mutated_bytes_are_refused_or_a_valid_request(
    valid: tuple[bytes, int, InputTensor], at: int, cut: int, patch: bytes, shift: int
) -> None:
    """Whatever it makes of them, it has the shape that the model takes, or the error is the client's."""
    body, head, tensor = valid
    at %= len(body)
    mutated = body[:at] + patch + body[at + cut :]
    check_refused_or_fit(mutated, max(head + shift + (len(mutated) - len(body) if at < head else 0), 0), tensor)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=250)
@given(st.sampled_from(VALID), st.data())
def test_mutated_values_are_refused_or_a_valid_request(valid: tuple[bytes, int, InputTensor], data: Any) -> None:
    """Any value at any depth replaced by any other, or taken away."""
    body, head, tensor = valid
    message = json.loads(body[:head])
    node: Any = message
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
            node = node[key]
            continue
        if data.draw(st.booleans()):
            node[key] = data.draw(JSON_VALUES)
        else:
            del node[key]
        break
    text = json.dumps(message).encode()
    check_refused_or_fit(text + body[head:], len(text), tensor)


def check_refused_or_fit(body: bytes, head: int, tensor: InputTensor) -> None:
    try:
        parsed = parse(body, head, tensor, max_images=MOST)
    except ServiceError as err:
        refusal, text = answer_for(err), str(err)
    else:
        count = len(parsed.images)
        assert 1 <= count <= MOST
        if tensor is PIXELS:
            assert isinstance(parsed.images, np.ndarray)
            assert (parsed.images.dtype, parsed.images.shape) == (np.uint8, (count, 2, 4, 3))
        else:
            assert all(isinstance(file, bytes) for file in parsed.images)
        return
    assert 400 <= refusal.status < 500
    assert len(text) < 500


@settings(max_examples=60, deadline=None)
@given(
    at=st.integers(0, 10_000),
    cut=st.integers(0, 40),
    patch=st.binary(max_size=12),
    length=st.sampled_from(["right", "wrong", "missing", "9" * 18]),
    encoding=st.sampled_from([None, None, None, "gzip", "deflate"]),
)
def test_a_server_answers_mutated_bodies_with_verdicts_or_4xx(
    client: httpx.Client, at: int, cut: int, patch: bytes, length: str, encoding: str | None
) -> None:
    tensor = {"name": "IMAGE", "shape": [1, 32, 32, 3], "datatype": "UINT8", "parameters": {"binary_data_size": 3072}}
    body, head = request(tensor, bytes(3072), [("LOGITS", True)], None, "i", {})
    at %= len(body)
    body = body[:at] + patch + body[at + cut :]
    assume(body)
    lengths = {"right": str(head), "wrong": str(head + 1), "missing": None}
    headers = {"Inference-Header-Content-Length": lengths.get(length, length), "Content-Encoding": encoding}
    sent = {name: value for name, value in headers.items() if value is not None}
    reply = client.post("/v2/models/cifar10/infer", content=body, headers=sent)
    assert reply.status_code == 200 or 400 <= reply.status_code < 500
    if reply.status_code != 200:
        assert reply.json().keys() == {"error"}


@pytest.mark.parametrize("count", [1, 3])
def test_columns_are_little_endian_and_in_order(count: int) -> None:
    logits = [np.array([row, -1.5, 2.0**-140], np.float32) for row in range(count)]
    found = [
        Verdict(
            class_id=7 + row,
            confidence=0.5,
            negative_energy=0.25 + row,
            p_value=0.1,
            is_ood=row == 1,
            logits=logits[row],
        )
        for row in range(count)
    ]
    assert column("LABEL", found).tobytes() == struct.pack(f"<{count}q", *range(7, 7 + count))
    expected = b"".join(struct.pack("<3f", row, -1.5, 2.0**-140) for row in range(count))
    assert column("LOGITS", found).tobytes() == expected
    assert column("LOGITS", found).shape == (count, 3)
    assert column("NEGATIVE_ENERGY", found).tobytes() == struct.pack(f"<{count}f", *(0.25 + r for r in range(count)))
    assert column("IS_OOD", found).tobytes() == bytes(row == 1 for row in range(count))
