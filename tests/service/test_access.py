"""Bearer tokens and CORS."""

import base64
import io
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from live import running, samples
from PIL import Image
from pydantic import SecretStr

from service.settings import Settings

KEYS = {"api_keys": (SecretStr("first"), SecretStr("zweiter-schlüssel-à"))}


@pytest.mark.parametrize("authorization", [None, "Bearer", "Bearer wrong", "Basic first", "first", "Bearer firs"])
def test_without_a_known_token_everything_is_refused(
    settings: Callable[..., Settings], pngs: list[bytes], authorization: str | None
) -> None:
    headers = {"authorization": authorization} if authorization else {}
    with running(settings(**KEYS)) as server, httpx.Client(base_url=server.url, headers=headers) as client:
        for reply in (
            client.post("/predict", content=pngs[0]),
            client.get("/models"),
            client.get("/info"),
            client.get("/x"),
        ):
            assert reply.status_code == 401
            assert reply.json()["error"]["code"] == "unauthorized"
            assert reply.headers["www-authenticate"] == "Bearer"


def test_a_refused_request_counts_under_its_route(settings: Callable[..., Settings], pngs: list[bytes]) -> None:
    with running(settings(**KEYS)) as server:
        for path in ("/predict", "/models/cifar10/predict", "/else"):
            httpx.post(f"{server.url}{path}", content=pngs[0])
        found = samples(server.url)
        for route in ("/predict", "/models/{model}/predict", "unmatched"):
            assert found[f'ood_http_requests_total{{route="{route}",status="401"}}'] == 1


@pytest.mark.parametrize("token", [b"first", "zweiter-schlüssel-à".encode()])
def test_any_of_the_tokens_opens(settings: Callable[..., Settings], pngs: list[bytes], token: bytes) -> None:
    with running(settings(**KEYS)) as server:
        headers = {b"authorization": b"Bearer " + token}
        assert httpx.post(f"{server.url}/predict", content=pngs[0], headers=headers).status_code == 200
        assert httpx.get(f"{server.url}/info", headers=headers).json()["settings"]["api_keys"] == ["***", "***"]


@pytest.mark.parametrize(
    ("switches", "status"),
    [
        ({}, {"/metrics": 200, "/healthz": 200, "/readyz": 200}),
        ({"public_metrics": False}, {"/metrics": 401, "/healthz": 200, "/readyz": 200}),
        ({"public_health": False}, {"/metrics": 200, "/healthz": 401, "/readyz": 401}),
    ],
)
def test_metrics_and_health_have_their_own_switches(
    settings: Callable[..., Settings], switches: dict[str, bool], status: dict[str, int]
) -> None:
    with running(settings(**KEYS, **switches)) as server:
        assert {path: httpx.get(server.url + path).status_code for path in status} == status
        assert httpx.get(f"{server.url}/docs").status_code == 200


def test_the_public_schema_of_a_closed_server_holds_no_image_of_its_bundle(settings: Callable[..., Settings]) -> None:
    with running(settings(**KEYS)) as server:
        schema = httpx.get(f"{server.url}/openapi.json").json()
        content = schema["paths"]["/predict"]["post"]["requestBody"]["content"]
        example = base64.b64decode(content["application/json"]["example"]["images"][0])
        assert np.asarray(Image.open(io.BytesIO(example))).min() == 255
        assert schema["security"] == [{"key": []}]


def test_no_other_origin_is_allowed_unless_named(settings: Callable[..., Settings], pngs: list[bytes]) -> None:
    origin = {"origin": "https://app.example"}
    with running(settings()) as server:
        reply = httpx.post(f"{server.url}/predict", content=pngs[0], headers=origin)
        assert "access-control-allow-origin" not in reply.headers
    with running(settings(cors_origins=("https://app.example",))) as server:
        reply = httpx.post(f"{server.url}/predict", content=pngs[0], headers=origin)
        assert reply.headers["access-control-allow-origin"] == "https://app.example"
        other = httpx.post(f"{server.url}/predict", content=pngs[0], headers={"origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def test_a_page_may_ask_before_it_posts_with_a_token(settings: Callable[..., Settings]) -> None:
    """Browsers send no token with a preflight."""
    asked = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    with running(settings(cors_origins=("https://app.example",), **KEYS)) as server:
        reply = httpx.options(f"{server.url}/predict", headers=asked)
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == "https://app.example"
