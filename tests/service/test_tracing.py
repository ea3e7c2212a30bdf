"""Traces, as a real OTLP receiver gets them."""

import gzip
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest
from live import Process, running, wait_until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from service.errors import StartError
from service.settings import Settings
from service.tracing import is_wanted, require_usable

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Receiver:
    """An OTLP/HTTP endpoint, and what it was sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                receiver.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, sent: ExportTraceServiceRequest) -> None:
        for resource in sent.resource_spans:
            self.resources.append(attributes(resource.resource))
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


def attributes(holder: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in holder.attributes}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_a_request_and_its_stages_are_spans_under_the_callers(
    settings: Callable[..., Settings], receiver: Receiver, monkeypatch: pytest.MonkeyPatch, pngs: list[bytes]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    with running(settings()) as server:
        headers = {"traceparent": PARENT, "X-Request-Id": "a-1"}
        files = [("images", ("i", png)) for png in pngs[:3]]
        reply = httpx.post(f"{server.url}/models/cifar10/predict", files=files, headers=headers).json()
        alone = httpx.post(f"{server.url}/predict", content=pngs[0])
        assert alone.status_code == 200
        assert httpx.post(f"{server.url}/predict", content=b"junk").status_code == 415
        httpx.get(f"{server.url}/healthz")
    assert {span.name for span in receiver.spans} == {
        "POST /models/{model}/predict", "POST /predict", "decode", "queue", "forward"
    }  # fmt: skip
    (span,) = receiver.named("POST /models/{model}/predict")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == tuple(PARENT.split("-")[1:3])
    assert span.kind == Span.SPAN_KIND_SERVER
    assert attributes(span) == {
        "http.request.method": "POST",
        "http.route": "/models/{model}/predict",
        "http.response.status_code": 200,
        "ood.model": "cifar10@1",
        "ood.images": 3,
        "ood.request_id": "a-1",
    }
    stages = [s for s in receiver.spans if s.parent_span_id == span.span_id]
    assert [s.name for s in stages] == ["decode", "queue", "forward"]
    end = span.start_time_unix_nano
    for stage in stages:
        assert stage.trace_id == span.trace_id
        assert end <= stage.start_time_unix_nano
        end = stage.end_time_unix_nano
        spent_ms = (end - stage.start_time_unix_nano) / 1e6
        assert spent_ms == pytest.approx(reply["timing_ms"][stage.name], abs=1e-3)
    assert end <= span.end_time_unix_nano
    own, refused = receiver.named("POST /predict")
    assert own.parent_span_id == b""
    assert own.trace_id != span.trace_id
    assert attributes(refused)["http.response.status_code"] == 415
    assert refused.status.code == Status.STATUS_CODE_UNSET
    assert receiver.resources[0]["service.name"] == "energy-ood"


def test_the_servers_faults_are_marked_and_the_service_is_named_by_its_variable(
    settings: Callable[..., Settings], receiver: Receiver, monkeypatch: pytest.MonkeyPatch, pngs: list[bytes]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{receiver.url}/v1/traces")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "front")
    with running(settings(deadline_s=1e-9)) as server:
        assert httpx.post(f"{server.url}/predict", content=pngs[0]).status_code == 504
    (span,) = receiver.spans
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert receiver.resources[0]["service.name"] == "front"


def test_a_collector_that_is_gone_holds_up_nobody(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, pngs: list[bytes]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("service.tracing.CLOSE_S", 0.1)
    with running(settings()) as server:
        assert httpx.post(f"{server.url}/predict", content=pngs[0]).status_code == 200


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "front"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_SDK_DISABLED": "True", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
    ],
)
def test_the_standard_variables_say_whether(environment: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environment) == wanted


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin'; it must be 'otlp' or 'none'"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "the OTLP protocol is 'grpc'; it must be 'http/protobuf'",
        ),
    ],
)
def test_what_is_not_known_here_stops_the_start(environment: dict[str, str], message: str) -> None:
    with pytest.raises(StartError, match=message):
        is_wanted(environment)


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "100000"), ("OTEL_BSP_SCHEDULE_DELAY", "-1")]
)
def test_what_the_sdk_does_not_take_stops_the_start(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    require_usable(os.environ)
    monkeypatch.setenv(name, value)
    with pytest.raises(StartError, match=r"does not take the OTEL_\* variables that are set"):
        require_usable(os.environ)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_without_the_extra_the_start_says_so() -> None:
    code = (
        "import sys; sys.modules['opentelemetry.exporter'] = None; sys.argv = ['x']; import service.cli as c; c.main()"
    )
    found = python(code, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318")
    assert found.returncode == 1
    assert found.stderr.startswith("ood-serve: OTEL_* variables ask for traces")
    assert "energy-ood[tracing]" in found.stderr
    assert found.stderr.count("\n") == 1


def test_the_sdk_is_imported_only_where_traces_are_asked_for() -> None:
    """What an HTTP worker imports, and the application that it makes."""
    code = """if True:
        import sys
        import service.processes.worker
        from service.app import make_app
        from service.settings import Settings
        from service.state import State
        make_app(State(Settings(), None, None, None, None, None), lambda app: None)
        print(any(name.startswith(("opentelemetry.sdk", "opentelemetry.exporter")) for name in sys.modules))
    """
    assert python(code).stdout == "False\n"
    assert python(code, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9").stdout == "True\n"


@pytest.mark.slow
def test_workers_trace_their_requests(
    serve: Callable[..., AbstractContextManager[Process]], receiver: Receiver, pngs: list[bytes]
) -> None:
    with serve("--workers", "2", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url) as server:
        for png in pngs[:5]:
            assert httpx.post(f"{server.url}/predict", content=png, headers={"traceparent": PARENT}).status_code == 200
        server.process.terminate()
        assert server.process.wait(30) == 0
    wait_until(lambda: len(receiver.named("POST /predict")) == 5)
    assert {span.trace_id.hex() for span in receiver.spans} == {PARENT.split("-")[1]}
    assert len(receiver.named("forward")) == 5
