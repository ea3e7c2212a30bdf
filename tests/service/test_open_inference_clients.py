"""The Open Inference Protocol, as its real clients speak it, against a real server; verdicts are those of /predict."""

import asyncio
import base64
import io
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import kserve.inference_client as kserve
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from kserve import InferInput, InferRequest
from kserve.protocol.infer_type import RequestedOutput
from live import BUNDLE, VERSION, Gate, Running, running, samples, wait_until
from PIL import Image
from tritonclient.utils import InferenceServerException

import model_store
from model_store import images
from model_store.bundle import Bundle, load_bundle
from service.settings import Settings

N = 10
"""More than fit into one of the server's batches of four."""
OUTPUTS = ("LABEL", "LOGITS", "NEGATIVE_ENERGY", "IS_OOD")
DTYPES = {"LABEL": np.int64, "LOGITS": np.float32, "NEGATIVE_ENERGY": np.float32, "IS_OOD": np.bool_}
EXTENSIONS = ["binary_tensor_data", "model_configuration"]
METADATA = {
    "name": "cifar10",
    "versions": [str(VERSION)],
    "inputs": [{"name": "IMAGE", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}],
    "outputs": [
        {"name": "LABEL", "datatype": "INT64", "shape": [-1]},
        {"name": "LOGITS", "datatype": "FP32", "shape": [-1, 10]},
        {"name": "NEGATIVE_ENERGY", "datatype": "FP32", "shape": [-1]},
        {"name": "IS_OOD", "datatype": "BOOL", "shape": [-1]},
    ],
}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(BUNDLE)


@pytest.fixture(scope="module")
def files(pngs: list[bytes], image_sets: Path) -> list[bytes]:
    """In-distribution images and textures, so that both flags come up."""
    found = [pngs[at] for at in range(0, 100, 20)]
    for texture in np.load(image_sets / "textures" / "test.npz")["images"][: N - len(found)]:
        file = io.BytesIO()
        Image.fromarray(texture).save(file, "PNG")
        found.append(file.getvalue())
    return found


@pytest.fixture(scope="module")
def pixels(files: list[bytes], bundle: Bundle) -> np.ndarray:
    return np.stack([images.load(file, bundle.manifest.preprocess) for file in files])


@pytest.fixture(scope="module")
def predicted(server: Running, files: list[bytes]) -> list[dict[str, Any]]:
    """What POST /predict says of the same images."""
    reply = httpx.post(f"{server.url}/predict", files=[("images", ("i", file)) for file in files], timeout=60)
    predictions: list[dict[str, Any]] = reply.raise_for_status().json()["predictions"]
    assert {prediction["is_ood"] for prediction in predictions} == {True, False}
    return predictions


class Check(NamedTuple):
    """Compares outputs with those of /predict, and logits with the offline network's."""

    predicted: list[dict[str, Any]]
    logits: np.ndarray

    def __call__(self, found: Callable[[str], np.ndarray], parameters: dict[str, Any], bundle: Bundle) -> None:
        label, logits, energy, is_ood = (found(name) for name in OUTPUTS)
        for name in OUTPUTS:
            assert found(name).dtype == DTYPES[name]
        assert label.tolist() == [prediction["class_id"] for prediction in self.predicted]
        assert is_ood.tolist() == [prediction["is_ood"] for prediction in self.predicted]
        np.testing.assert_allclose(energy, [p["negative_energy"] for p in self.predicted], atol=1e-3)
        assert logits.shape == (N, 10)
        np.testing.assert_allclose(logits, self.logits, atol=1e-3)
        assert logits.argmax(axis=1).tolist() == label.tolist()
        np.testing.assert_allclose(np.logaddexp.reduce(logits, axis=1), energy, atol=1e-5)  # Eq. 4, T = 1
        threshold = bundle.manifest.calibrations["negative_energy"].threshold
        assert parameters == {"sha256": bundle.sha256, "verdict": "negative_energy", "threshold": threshold}
        assert is_ood.tolist() == (energy <= threshold).tolist()


@pytest.fixture(scope="module")
def check(predicted: list[dict[str, Any]], bundle: Bundle, pixels: np.ndarray) -> Check:
    return Check(predicted, bundle.predictor.scorer.score(pixels).logits.numpy())


@pytest.fixture(scope="module")
def sync(server: Running) -> Iterator[Any]:
    with triton.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=60) as client:
        yield client


def described(server: Running) -> dict[str, Any]:
    return METADATA | {"platform": server.state.models.engines[0].runtime_name}


def encoded(files: Sequence[bytes]) -> np.ndarray:
    return np.array(files, dtype=np.object_)


def in_base64(files: Sequence[bytes]) -> np.ndarray:
    return encoded([base64.b64encode(file) for file in files])


def triton_input(array: np.ndarray, binary: bool, module: Any = triton) -> Any:
    tensor = module.InferInput("IMAGE", list(array.shape), "BYTES" if array.dtype == np.object_ else "UINT8")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def test_triton_asks_what_is_there(server: Running, sync: Any) -> None:
    assert sync.is_server_live()
    assert sync.is_server_ready()
    assert sync.is_model_ready("cifar10")
    assert sync.is_model_ready("cifar10-bytes", str(VERSION))
    assert not sync.is_model_ready("mnist")
    assert not sync.is_model_ready("cifar10", "9")
    whole = {"name": "energy-ood", "version": model_store.__version__, "extensions": EXTENSIONS}
    assert sync.get_server_metadata() == whole
    assert sync.get_model_metadata("cifar10") == described(server)
    files = described(server) | {
        "name": "cifar10-bytes",
        "inputs": [{"name": "IMAGE", "datatype": "BYTES", "shape": [-1]}],
    }
    assert sync.get_model_metadata("cifar10-bytes", str(VERSION)) == files
    names = [
        entry | {"version": str(VERSION), "state": "READY", "reason": ""}
        for entry in ({"name": "cifar10"}, {"name": "cifar10-bytes"})
    ]
    assert sync.get_model_repository_index() == names


def test_triton_reads_the_configuration(sync: Any) -> None:
    config = sync.get_model_config("cifar10-bytes", str(VERSION))
    assert config["max_batch_size"] == 64
    assert config["input"] == [{"name": "IMAGE", "data_type": "TYPE_STRING", "dims": [1], "reshape": {"shape": []}}]
    assert sync.get_model_config("cifar10")["input"] == [
        {"name": "IMAGE", "data_type": "TYPE_UINT8", "dims": [32, 32, 3]}
    ]
    assert config["output"][1] == {"name": "LOGITS", "data_type": "TYPE_FP32", "dims": [10]}


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_output", [True, False])
@pytest.mark.parametrize("binary_input", [True, False])
def test_triton_infers_from_pixels(
    sync: Any,
    pixels: np.ndarray,
    bundle: Bundle,
    check: Check,
    binary_input: bool,
    binary_output: bool,
    compression: str | None,
) -> None:
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_output) for name in OUTPUTS]
    result = sync.infer(
        "cifar10",
        [triton_input(pixels, binary_input)],
        outputs=outputs,
        request_id="order 66",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    reply = result.get_response()
    assert (reply["id"], reply["model_name"], reply["model_version"]) == ("order 66", "cifar10", str(VERSION))
    assert all(("data" in output) is not binary_output for output in reply["outputs"])
    check(result.as_numpy, reply["parameters"], bundle)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_infers_from_files(sync: Any, files: list[bytes], bundle: Bundle, check: Check, binary: bool) -> None:
    """In JSON it can say what strings are for the whole request alone."""
    tensor = triton_input(encoded(files) if binary else in_base64(files), binary)
    parameters = None if binary else {"content_type": "base64"}
    result = sync.infer("cifar10-bytes", [tensor], model_version=str(VERSION), parameters=parameters)
    assert result.get_response()["model_name"] == "cifar10-bytes"
    check(result.as_numpy, result.get_response()["parameters"], bundle)


def test_triton_gets_the_outputs_that_it_asks_for(sync: Any, pixels: np.ndarray) -> None:
    outputs = [triton.InferRequestedOutput("IS_OOD", binary_data=False), triton.InferRequestedOutput("LABEL")]
    result = sync.infer("cifar10", [triton_input(pixels, binary=True)], outputs=outputs)
    found = result.get_response()["outputs"]
    assert [output["name"] for output in found] == ["IS_OOD", "LABEL"]
    assert "data" in found[0]
    assert found[1]["parameters"] == {"binary_data_size": 8 * N}
    assert result.as_numpy("LOGITS") is None


def test_triton_sees_what_went_wrong(sync: Any, pixels: np.ndarray) -> None:
    with pytest.raises(InferenceServerException, match="model 'mnist' is not served") as refusal:
        sync.infer("mnist", [triton_input(pixels, binary=True)])
    assert refusal.value.status() == "404"


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_triton_without_blocking(
    server: Running,
    pixels: np.ndarray,
    files: list[bytes],
    bundle: Bundle,
    check: Check,
    binary: bool,
    compression: str | None,
) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(server.url.removeprefix("http://")) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("cifar10")
            assert (await client.get_server_metadata())["extensions"] == EXTENSIONS
            assert await client.get_model_metadata("cifar10") == described(server)
            strings, parameters = (files, None) if binary else (list(in_base64(files)), {"content_type": "base64"})
            for name, array in (("cifar10", pixels), ("cifar10-bytes", encoded(strings))):
                outputs = [triton_aio.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
                result = await client.infer(
                    name,
                    [triton_input(array, binary, triton_aio)],
                    outputs=outputs,
                    request_compression_algorithm=compression,
                    parameters=parameters,
                )
                check(result.as_numpy, result.get_response()["parameters"], bundle)

    run(ask())


@pytest.mark.parametrize("binary_output", [True, False])
@pytest.mark.parametrize("binary_input", [True, False])
def test_kserve(
    server: Running,
    pixels: np.ndarray,
    files: list[bytes],
    bundle: Bundle,
    check: Check,
    binary_input: bool,
    binary_output: bool,
) -> None:
    async def ask() -> None:
        async with kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", timeout=60)) as client:
            assert await client.is_server_live(server.url)
            assert await client.is_server_ready(server.url)
            assert await client.is_model_ready(server.url, "cifar10")
            assert not await client.is_model_ready(server.url, "mnist")
            strings = encoded(files) if binary_input else in_base64(files)
            for name, array, datatype in (("cifar10", pixels, "UINT8"), ("cifar10-bytes", strings, "BYTES")):
                given = {"content_type": "base64"} if datatype == "BYTES" and not binary_input else {}
                tensor = InferInput("IMAGE", list(array.shape), datatype, parameters=given)
                tensor.set_data_from_numpy(array, binary_data=binary_input)
                request = InferRequest(
                    name, [tensor], request_id="order-66", parameters={"binary_data_output": binary_output}
                )
                reply = await client.infer(server.url, request, model_name=name)
                assert (reply.id, reply.model_name) == ("order-66", name)  # it reads no version
                check(lambda output, of=reply: of.get_output_by_name(output).as_numpy(), reply.parameters, bundle)  # type: ignore[misc]

    run(ask())


def test_kserve_gets_the_outputs_that_it_asks_for_and_sees_what_went_wrong(server: Running, pixels: np.ndarray) -> None:
    async def ask() -> None:
        async with kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2")) as client:
            tensor = InferInput("IMAGE", list(pixels.shape), "UINT8")
            tensor.set_data_from_numpy(pixels)
            outputs = [RequestedOutput("LABEL", {"binary_data": True}), RequestedOutput("IS_OOD")]
            request = InferRequest("cifar10", [tensor], request_outputs=outputs)
            reply = await client.infer(server.url, request, model_name="cifar10")
            assert [output.name for output in reply.outputs] == ["LABEL", "IS_OOD"]
            with pytest.raises(httpx.HTTPStatusError, match=r"model 'mnist' is not served.*404 Not Found"):
                await client.infer(server.url, request, model_name="mnist")

    run(ask())


@contextmanager
def stopped(server: Running) -> Iterator[None]:
    server.state.draining = True
    try:
        yield
    finally:
        server.state.draining = False


def test_readiness_falls_and_liveness_stays_while_draining(settings: Callable[..., Settings]) -> None:
    with running(settings()) as server, stopped(server):
        with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
            assert not client.is_model_ready("cifar10")
        reply = httpx.get(f"{server.url}/v2/health/ready")
        assert (reply.status_code, reply.json()) == (503, {"error": "the server is stopping"})


def test_a_dead_engine_is_seen_by_all(settings: Callable[..., Settings], gate: Gate, pngs: list[bytes]) -> None:
    with running(settings(stall_s=0.05)) as server:
        gate.close()
        with httpx.Client(base_url=server.url, timeout=30) as client:
            late = client.post("/predict", content=pngs[0], headers={"X-Deadline-Ms": "300"})
            assert late.status_code == 504
            wait_until(lambda: client.get("/readyz").status_code == 503)
            for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/cifar10/ready"):
                reply = client.get(path)
                assert reply.status_code == 503
                assert reply.json().keys() == {"error"}
            states = [entry["state"] for entry in client.post("/v2/repository/index").json()]
            assert states == ["UNAVAILABLE", "UNAVAILABLE"]
            assert client.post("/v2/repository/index", json={"ready": True}).json() == []
        gate.open.set()


def test_versions_and_failures_are_listed(settings: Callable[..., Settings], bundles: Path) -> None:
    with running(settings(store=bundles, models=("cifar10", "strict@2", "broken"), runtime="torch-eager")) as server:
        listed = httpx.post(f"{server.url}/v2/repository/index", json={}).json()
        assert [(e["name"], e["version"], e["state"]) for e in listed] == [
            ("cifar10", "1", "READY"),
            ("cifar10-bytes", "1", "READY"),
            ("strict", "2", "READY"),
            ("strict-bytes", "2", "READY"),
            ("broken", "", "UNAVAILABLE"),
            ("broken-bytes", "", "UNAVAILABLE"),
        ]
        assert "weights.safetensors has" in listed[4]["reason"]
        ready = httpx.post(f"{server.url}/v2/repository/index", json={"ready": True}).json()
        assert ready == listed[:4]
        for path in ("/v2/models/broken", "/v2/models/broken/ready", "/v2/models/broken-bytes/config"):
            assert httpx.get(server.url + path).status_code == 503
        assert httpx.get(f"{server.url}/v2/models/strict/versions/2").json()["versions"] == ["2"]


def test_images_and_requests_are_counted_under_closed_labels(
    settings: Callable[..., Settings], pixels: np.ndarray
) -> None:
    with running(settings()) as server:
        with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
            client.infer("cifar10", [triton_input(pixels, binary=True)])
            for model in ("a", "b", "c"):
                client.is_model_ready(model)
        httpx.get(f"{server.url}/v2/")
        found = samples(server.url)
        assert found[f'ood_p_value_count{{model="cifar10",version="{VERSION}"}}'] == N
        assert found['ood_http_requests_total{route="/v2/models/{model}/infer",status="200"}'] == 1
        assert found['ood_http_requests_total{route="/v2/models/{model}/ready",status="404"}'] == 3
        assert found['ood_http_requests_total{route="/v2",status="200"}'] == 1
        assert found['ood_http_requests_total{route="unmatched",status="200"}'] == 0


def test_a_deadline_holds_here_too(settings: Callable[..., Settings], gate: Gate, pixels: np.ndarray) -> None:
    with running(settings()) as server:
        gate.close()
        begun = time.monotonic()
        body = {"inputs": [{"name": "IMAGE", "shape": [1, 32, 32, 3], "datatype": "UINT8", "data": pixels[0].tolist()}]}
        body["inputs"][0]["data"] = [body["inputs"][0]["data"]]
        late = httpx.post(f"{server.url}/v2/models/cifar10/infer", json=body, headers={"X-Deadline-Ms": "200"})
        assert time.monotonic() - begun < 5
        assert late.status_code == 504
        assert late.json().keys() == {"error"}
        gate.open.set()
