"""Bodies that are NumPy .npy files."""

import io
import pickle
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy
from live import Gate, Running, running, samples
from numpy.lib import format as npy

from model_store.manifest import PreprocessSpec
from service.arrays import read_array
from service.errors import MalformedArrayError, ServiceError, answer_for
from service.settings import Settings

SPEC = PreprocessSpec(height=2, width=4, resize="stretch", interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1))
IMAGES = np.arange(3 * 2 * 4 * 3, dtype=np.uint8).reshape(3, 2, 4, 3)


def saved(array: Any, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    npy.write_array(file, np.asarray(array), version)
    return file.getvalue()


def with_header(text: str, data: bytes = b"", version: int = 1) -> bytes:
    header = text.encode("latin-1")
    return b"\x93NUMPY" + bytes([version, 0]) + len(header).to_bytes(2 if version == 1 else 4, "little") + header + data


def test_an_array_gets_the_verdicts_of_its_images(server: Running, pngs: list[bytes], pixels: np.ndarray) -> None:
    """64 images over batches of at most four, against the encoded files one by one."""
    found = httpx.post(
        f"{server.url}/predict", content=saved(pixels[:64]), headers={"content-type": "application/x-npy"}, timeout=30
    ).json()["predictions"]
    with httpx.Client(base_url=server.url, timeout=30) as client:
        alone = [client.post("/predict", content=png).json()["predictions"][0] for png in pngs[:64]]
    assert len(found) == 64
    for together, one in zip(found, alone, strict=True):
        assert (together["class_id"], together["is_ood"]) == (one["class_id"], one["is_ood"])
        assert together["negative_energy"] == pytest.approx(one["negative_energy"], abs=1e-3)
        assert together["confidence"] == pytest.approx(one["confidence"], abs=1e-5)


@pytest.mark.parametrize("path", ["/predict", "/models/cifar10/predict", "/models/cifar10@1/predict?scores=all"])
@pytest.mark.parametrize("content_type", ["application/x-npy", "application/json", "multipart/form-data", None])
def test_an_array_is_known_by_its_content(
    server: Running, pixels: np.ndarray, path: str, content_type: str | None
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    reply = httpx.post(server.url + path, content=saved(pixels[[0, 0]]), headers=headers)
    assert [p["class_name"] for p in reply.json()["predictions"]] == ["airplane", "airplane"]


def test_an_image_that_is_called_an_array_is_an_image(server: Running, pngs: list[bytes]) -> None:
    reply = httpx.post(f"{server.url}/predict", content=pngs[0], headers={"content-type": "application/x-npy"})
    assert reply.json()["predictions"][0]["class_name"] == "airplane"


def test_one_image_needs_no_first_side(server: Running, pixels: np.ndarray) -> None:
    one, several = (
        httpx.post(f"{server.url}/predict", content=saved(array)).json() for array in (pixels[5], pixels[5:6])
    )
    assert one["predictions"] == several["predictions"]
    assert len(one["predictions"]) == 1


def test_many_images_are_split_over_batches_and_counted_once(
    settings: Callable[..., Settings], gate: Gate, pixels: np.ndarray
) -> None:
    with running(settings(max_batch_size=4)) as server:
        gate.batches.clear()
        reply = httpx.post(f"{server.url}/predict", content=saved(pixels[:10]))
        assert len(reply.json()["predictions"]) == 10
        assert gate.batches == [4, 4, 2]
        assert samples(server.url)['ood_p_value_count{model="cifar10",version="1"}'] == 10


def test_nothing_is_copied() -> None:
    body = saved(IMAGES)
    found = read_array(body, SPEC, max_images=3)
    assert np.shares_memory(found, np.frombuffer(body, np.uint8))
    assert found.tolist() == IMAGES.tolist()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_is_read(version: tuple[int, int]) -> None:
    assert read_array(saved(IMAGES, version), SPEC, max_images=3).tolist() == IMAGES.tolist()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<u1', 'fortran_order': False, 'shape': (1, 2, 4, 3), }",  # as cnpy writes it
        '{"shape": (1,2,4,3), "fortran_order": False, "descr": "u1"}\n',
        "  {'shape':(1 , 2,4 ,3 ,),'descr':'>u1','fortran_order':False,}" + " " * 500 + "\n",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 4, 3), }",
    ],
)
def test_headers_of_other_writers_are_read(header: str) -> None:
    data = bytes(range(24))
    assert read_array(with_header(header, data), SPEC, max_images=1).tobytes() == data


def test_a_header_that_is_no_python_is_refused_as_numpy_refuses_it() -> None:
    body = with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 4, 3)\v }", bytes(24))
    with pytest.raises(ValueError, match="Cannot parse header"):
        npy.read_array(io.BytesIO(body))
    with pytest.raises(MalformedArrayError):
        read_array(body, SPEC, max_images=1)


class Explosive:
    """Unpickled, it would raise."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('a pickle was loaded')",)


GOOD = "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 2, 4, 3), }"
PICKLED = pickle.dumps(np.array([Explosive()], dtype=object))
REFUSED = {
    "objects": (with_header(GOOD.replace("u1", "O"), PICKLED), "unfit_array", "pickles and never read"),
    "structured": (
        saved(np.zeros((1, 2, 4, 3), [("r", "u1")])),
        "malformed_array",
        "'descr': '|u1'",
    ),
    "float": (saved(IMAGES.astype(np.float32)), "unfit_array", "dtype '<f4'; send '|u1'"),
    "int8": (saved(IMAGES.astype(np.int8)), "unfit_array", "dtype '|i1'"),
    "uint16": (saved(IMAGES.astype(">u2")), "unfit_array", "dtype '>u2'"),
    "bool": (saved(IMAGES > 3), "unfit_array", "dtype '|b1'"),
    "fortran": (saved(np.asfortranarray(IMAGES)), "unfit_array", "numpy.ascontiguousarray"),
    "channels first": (saved(IMAGES.transpose(0, 3, 1, 2).copy()), "unfit_array", "(3, 3, 2, 4); it must be (N, 2, 4"),
    "another size": (saved(np.zeros((1, 4, 4, 3), np.uint8)), "unfit_array", "resize first"),
    "five sides": (saved(IMAGES[None]), "unfit_array", "(1, 3, 2, 4, 3)"),
    "a scalar": (saved(np.uint8(3)), "unfit_array", "()"),
    "no images": (saved(IMAGES[:0]), "invalid_field", "at least one"),
    "too many": (saved(np.concatenate([IMAGES, IMAGES])), "too_many_images", "6 images, allowed are 5"),
    "more than there are atoms": (
        with_header(GOOD.replace("(1", "(9999999999")),
        "too_many_images",
        "9999999999 images",
    ),
    "truncated": (saved(IMAGES)[:-1], "malformed_array", "72 bytes, the body brings 71: it is truncated"),
    "leftover": (saved(IMAGES) + b"\0", "malformed_array", "the body brings 73: something follows it"),
    "two arrays": (saved(IMAGES) + saved(IMAGES), "malformed_array", "something follows it"),
    "magic alone": (b"\x93NUMPY", "malformed_array", "of version []"),
    "no length": (b"\x93NUMPY\1\0\5", "malformed_array", "ends within its header"),
    "half a header": (saved(IMAGES)[:40], "malformed_array", "ends within its header"),
    "version 4": (with_header(GOOD, bytes(24), version=4), "malformed_array", "version [4, 0]"),
    "endless header": (b"\x93NUMPY\2\0\xff\xff\xff\xff{", "malformed_array", "4,294,967,295 bytes"),
    "python": (with_header("__import__('os').abort()"), "malformed_array", "it must be like"),
    "a negative side": (with_header(GOOD.replace("(1", "(-1")), "malformed_array", "it must be like"),
    "a side of words": (with_header(GOOD.replace("(1", "(True")), "malformed_array", "it must be like"),
    "two numbers": (with_header(GOOD.replace("(1,", "(1 1,"), bytes(24)), "malformed_array", "it must be like"),
    "a key twice": (with_header(GOOD.replace("shape", "descr")), "malformed_array", "it must be like"),
    "a further key": (with_header(GOOD[:-1] + "'x': 1}"), "malformed_array", "it must be like"),
    "an order of numbers": (with_header(GOOD.replace("False", "0")), "malformed_array", "it must be like"),
    "blanks": (with_header("{" + " " * 4000), "malformed_array", "it must be like"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_array_of_the_model_is_refused(case: str) -> None:
    body, code, message = REFUSED[case]
    with pytest.raises(ServiceError) as refusal:
        read_array(body, SPEC, max_images=5)
    assert answer_for(refusal.value).code == code
    assert message in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_a_refusal_is_answered_with_its_code(server: Running) -> None:
    for body, status, code, message in (
        (saved(np.zeros((2, 32, 32, 3), np.int64)), 422, "unfit_array", "'<i8'"),
        (saved(np.zeros((2, 224, 224, 3), np.uint8)), 422, "unfit_array", "(N, 32, 32, 3)"),
        (saved(np.zeros((65, 32, 32, 3), np.uint8)), 413, "too_many_images", "65 images, allowed are 64"),
        (b"PK\x03\x04", 400, "malformed_array", "50 4b 03 04, which is no .npy file"),
    ):
        reply = httpx.post(f"{server.url}/predict", content=body, headers={"content-type": "application/x-npy; v=1"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
        assert message in reply.json()["error"]["message"]


@given(of_numpy.arrays(np.uint8, st.integers(1, 5).map(lambda count: (count, 2, 4, 3))))
def test_what_numpy_saves_comes_back(array: np.ndarray) -> None:
    np.testing.assert_array_equal(read_array(saved(array), SPEC, max_images=5), array)


@given(st.integers(0, 150), st.binary(max_size=6), st.integers(0, 8))
def test_a_damaged_file_is_refused_or_read_as_numpy_reads_it(at: int, patch: bytes, cut: int) -> None:
    """Bytes replaced, inserted or cut anywhere: an error of ours, or exactly what NumPy makes of it."""
    whole = saved(IMAGES)
    body = whole[:at] + patch + whole[at + cut :]
    try:
        found = read_array(body, SPEC, max_images=5)
    except ServiceError as err:
        refusal = answer_for(err)
    else:
        np.testing.assert_array_equal(found, np.load(io.BytesIO(body)).reshape(-1, 2, 4, 3))
        return
    assert 400 <= refusal.status < 500
