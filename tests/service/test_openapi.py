"""The interface as documented: every path, status and code, and examples that can be sent as they are."""

from typing import Any

import httpx
import pytest
from live import Running

from service.errors import ANSWERS


@pytest.fixture(scope="module")
def schema(server: Running) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").raise_for_status().json()
    return found


def test_every_path_is_there(schema: dict[str, Any]) -> None:
    paths = {"/predict", "/models/{model}/predict", "/models", "/info", "/healthz", "/readyz", "/metrics"}
    paths |= {"/models/{model}", "/models/{model}/watch"}
    protocol = {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/repository/index"} | {
        f"/v2/models/{{model}}{version}{part}"
        for version in ("", "/versions/{version}")
        for part in ("", "/ready", "/config", "/infer")
    }
    assert schema["paths"].keys() == paths | protocol


@pytest.mark.parametrize("path", ["/predict", "/models/{model}/predict"])
def test_every_error_is_documented_with_its_code(schema: dict[str, Any], path: str) -> None:
    responses = schema["paths"][path]["post"]["responses"]
    for answer in ANSWERS.values():
        if answer.status == 499:  # nobody is left to read it
            continue
        assert f"`{answer.code}`: {answer.meaning}" in responses[str(answer.status)]["description"]
        reference = responses[str(answer.status)]["content"]["application/json"]["schema"]["$ref"]
        assert reference.endswith("/ErrorReply")


@pytest.mark.parametrize("path", ["/predict", "/models/{model}/predict"])
def test_the_example_works_when_sent(server: Running, schema: dict[str, Any], path: str) -> None:
    operation = schema["paths"][path]["post"]
    content = operation["requestBody"]["content"]
    assert next(iter(content)) == "application/json"  # what the page offers first
    named = {p["name"]: p.get("example") for p in operation.get("parameters", [])}
    reply = httpx.post(server.url + path.format(model=named.get("model")), json=content["application/json"]["example"])
    assert reply.status_code == 200
    assert reply.json()["predictions"][0]["class_name"] == "airplane"
    forms = {"application/json", "multipart/form-data", "application/octet-stream", "application/x-npy"}
    assert content.keys() == forms


@pytest.mark.parametrize("path", ["/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"])
def test_the_protocols_example_works_when_sent(server: Running, schema: dict[str, Any], path: str) -> None:
    operation = schema["paths"][path]["post"]
    content = operation["requestBody"]["content"]
    assert content.keys() == {"application/json", "application/octet-stream"}
    named = {p["name"]: p["example"] for p in operation["parameters"] if p["in"] == "path"}
    reply = httpx.post(server.url + path.format(**named), json=content["application/json"]["example"]).json()
    assert reply["outputs"][0] == {"name": "LABEL", "datatype": "INT64", "shape": [1], "data": [0]}


def test_the_protocols_replies_match_their_schemas(server: Running, schema: dict[str, Any]) -> None:
    documented = schema["components"]["schemas"]
    for path, operations in schema["paths"].items():
        if not path.startswith("/v2") or "get" not in operations:
            continue
        named = {p["name"]: p["example"] for p in operations["get"].get("parameters", [])}
        reply = httpx.get(server.url + path.format(**named)).raise_for_status().json()
        reference = operations["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
        assert reply.keys() == documented[reference.rpartition("/")[2]]["properties"].keys()
        errors = [r for status, r in operations["get"]["responses"].items() if int(status) >= 400]
        assert errors
        for error in errors:
            assert error["content"]["application/json"]["schema"]["$ref"].endswith("/ProtocolError")


def test_replies_match_their_documented_schema(server: Running, schema: dict[str, Any], pngs: list[bytes]) -> None:
    reply = httpx.post(f"{server.url}/predict?scores=all", content=pngs[0]).json()
    documented = schema["components"]["schemas"]
    assert reply.keys() == documented["PredictReply"]["properties"].keys()
    assert reply["predictions"][0].keys() == documented["Prediction"]["properties"].keys()
    score = reply["predictions"][0]["scores"]["negative_energy"]
    assert score.keys() == documented["ScorePrediction"]["properties"].keys()
    assert reply["timing_ms"].keys() == documented["Timing"]["properties"].keys()


def test_the_page_needs_no_other_server(server: Running) -> None:
    page = httpx.get(f"{server.url}/docs").raise_for_status().text
    assert "cdn" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert f"/static-offline-docs/{asset}" in page
        assert len(httpx.get(f"{server.url}/static-offline-docs/{asset}").raise_for_status().content) > 10_000


@pytest.mark.parametrize("path", ["/predict", "/models/{model}/predict"])
def test_the_parameter_for_all_scores_is_documented(schema: dict[str, Any], path: str) -> None:
    (found,) = [p for p in schema["paths"][path]["post"]["parameters"] if p["name"] == "scores"]
    assert (found["in"], found["required"], found["schema"]) == ("query", False, {"type": "string", "enum": ["all"]})
    assert "ODIN" in found["description"]
    assert "offline only" in found["description"]
