"""Every form of a valid request, and what its reply says."""

import base64
import gzip
import io
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LENGTH = "Inference-Header-Content-Length"
BOUNDARY = "fedcba9876543210"


class Body(NamedTuple):
    """A request with a body, and the form that it has."""

    form: str
    path: str
    headers: dict[str, str]
    content: bytes

    def head(self, host: str = "x") -> bytes:
        """Its first bytes on the wire, up to the body."""
        lines = [f"POST {self.path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(self.content)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode()


class Answer(NamedTuple):
    """What a reply says of each image."""

    class_id: list[int]
    negative_energy: list[float]
    is_ood: list[bool]


def raw(files: Sequence[bytes], pixels: NDArray[np.uint8]) -> Body:
    return Body("raw", "/predict", {}, files[0])


def form(files: Sequence[bytes], pixels: NDArray[np.uint8]) -> Body:
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="i.png"\r\n\r\n'.encode()
    content = b"".join(part + file + b"\r\n" for file in files) + f"--{BOUNDARY}--\r\n".encode()
    return Body("form", "/predict", {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, content)


def base64_json(files: Sequence[bytes], pixels: NDArray[np.uint8]) -> Body:
    content = json.dumps({"images": [base64.b64encode(file).decode() for file in files]}).encode()
    return Body("json", "/models/cifar10/predict", {"Content-Type": "application/json"}, content)


def npy(files: Sequence[bytes], pixels: NDArray[np.uint8]) -> Body:
    file = io.BytesIO()
    np.save(file, pixels)
    return Body("npy", "/predict", {"Content-Type": "application/x-npy"}, file.getvalue())


def protocol_json(files: Sequence[bytes], pixels: NDArray[np.uint8]) -> Body:
    tensor = _tensor("BYTES", [len(files)], content_type="base64")
    tensor["data"] = [base64.b64encode(file).decode() for file in files]
    return Body("protocol-json", "/v2/models/cifar10-bytes/infer", {}, json.dumps({"inputs": [tensor]}).encode())


def protocol_numbers(files: Sequence[bytes], pixels: NDArray[np.uint8]) -> Body:
    tensor = _tensor("UINT8", list(pixels.shape)) | {"data": pixels.tolist()}
    return Body("protocol-numbers", "/v2/models/cifar10/infer", {}, json.dumps({"inputs": [tensor]}).encode())


def protocol_binary(files: Sequence[bytes], pixels: NDArray[np.uint8]) -> Body:
    return _binary("protocol-binary", "cifar10", _tensor("UINT8", list(pixels.shape)), pixels.tobytes())


def protocol_files(files: Sequence[bytes], pixels: NDArray[np.uint8]) -> Body:
    elements = b"".join(struct.pack("<I", len(file)) + file for file in files)
    return _binary("protocol-files", "cifar10-bytes", _tensor("BYTES", [len(files)]), elements)


def zipped(files: Sequence[bytes], pixels: NDArray[np.uint8]) -> Body:
    plain = protocol_numbers(files, pixels)
    return plain._replace(form="zipped", headers={"Content-Encoding": "gzip"}, content=gzip.compress(plain.content))


FORMS: dict[str, Callable[[Sequence[bytes], NDArray[np.uint8]], Body]] = {
    make.__name__: make
    for make in (
        raw,
        form,
        base64_json,
        npy,
        protocol_json,
        protocol_numbers,
        protocol_binary,
        protocol_files,
        zipped,
    )
}


def answer(body: Body, reply: bytes) -> Answer:
    """Read a reply of status 200."""
    found = json.loads(reply)
    if "outputs" in found:
        by_name = {output["name"]: output["data"] for output in found["outputs"]}
        return Answer(by_name["LABEL"], by_name["NEGATIVE_ENERGY"], by_name["IS_OOD"])
    rows = found["predictions"]
    return Answer(*([row[name] for row in rows] for name in Answer._fields))


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Encode one image."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def _tensor(datatype: str, shape: list[int], **parameters: Any) -> dict[str, Any]:
    return {"name": "IMAGE", "datatype": datatype, "shape": shape, "parameters": parameters}


def _binary(form: str, model: str, tensor: dict[str, Any], data: bytes) -> Body:
    tensor["parameters"]["binary_data_size"] = len(data)
    head = json.dumps({"inputs": [tensor]}).encode()
    return Body(form, f"/v2/models/{model}/infer", {LENGTH: str(len(head))}, head + data)
