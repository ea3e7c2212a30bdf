"""Metrics add up to the replies that were sent, and the page lists them all."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import httpx
import pytest
from live import BUNDLE, MODEL, VERSION, Running, running, samples
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from model_store.bundle import read_manifest
from service.engine import LocalEngine
from service.histogram import BucketHistogram, Buckets
from service.metrics import MODEL_LABELS, P_VALUE_EDGES, Metrics
from service.processes.control import Control
from service.processes.engine import EngineProcess
from service.processes.hub import Hub
from service.served_models import Models
from service.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


@pytest.fixture
def fresh(settings: Callable[..., Settings], pngs: list[bytes]) -> Running:  # type: ignore[misc]
    with running(settings()) as server:
        yield server


def test_metrics_add_up_to_the_replies(fresh: Running, pngs: list[bytes]) -> None:
    predictions, totals = [], []
    for at in range(0, 90, 3):
        files = [("images", ("i", png)) for png in pngs[at : at + 1 + at % 3 + (at % 2)]]
        reply = httpx.post(f"{fresh.url}/predict", files=files).json()
        predictions += reply["predictions"]
        totals.append(reply["timing_ms"]["total"] / 1000)
    for bad in (b"", b"junk", pngs[0][:-50]):
        httpx.post(f"{fresh.url}/models/cifar10/predict", content=bad)
    httpx.get(f"{fresh.url}/anything")
    found = samples(fresh.url)

    flags = [p["is_ood"] for p in predictions]
    assert found[f'ood_images_total{{decision="ood",{MODEL}}}'] == sum(flags)
    assert found[f'ood_images_total{{decision="in_distribution",{MODEL}}}'] == len(flags) - sum(flags)
    assert found['ood_http_requests_total{route="/predict",status="200"}'] == 30
    for status in ("400", "415", "422"):
        assert found[f'ood_http_requests_total{{route="/models/{{model}}/predict",status="{status}"}}'] == 1
    assert found['ood_http_requests_total{route="unmatched",status="404"}'] == 1
    for code in ("empty_body", "unsupported_image", "corrupt_image", "unknown_route"):
        assert found[f'ood_refused_requests_total{{code="{code}"}}'] == 1

    p_values = [p["p_value"] for p in predictions]
    for edge in P_VALUE_EDGES:
        expected = sum(p <= edge for p in p_values)
        assert found[f'ood_p_value_bucket{{le="{edge}",{MODEL}}}'] == expected, edge
    assert found[f"ood_p_value_count{{{MODEL}}}"] == len(p_values)
    assert found[f"ood_p_value_sum{{{MODEL}}}"] == pytest.approx(sum(p_values))

    threshold = found[f"ood_threshold{{{MODEL}}}"]
    assert found[f'ood_negative_energy_bucket{{le="{threshold}",{MODEL}}}'] == sum(flags)
    assert found[f'ood_negative_energy_bucket{{le="+Inf",{MODEL}}}'] == len(flags)
    assert f"ood_negative_energy_sum{{{MODEL}}}" not in found  # energies may be negative

    for stage in ("decode", "queue", "forward", "total"):
        series = f'ood_stage_seconds_count{{model="cifar10",stage="{stage}",version="{VERSION}"}}'
        assert found[series] == 30
    total = f'ood_stage_seconds_sum{{model="cifar10",stage="total",version="{VERSION}"}}'
    assert found[total] == pytest.approx(sum(totals), abs=1e-3 * len(totals))
    assert found[f"ood_batch_images_sum{{{MODEL}}}"] == len(flags)
    assert found[f"ood_batch_seconds_count{{{MODEL}}}"] == found[f"ood_batch_images_count{{{MODEL}}}"]
    assert found["ood_pending_bytes"] == 0


def test_series_stand_at_zero_from_the_start(fresh: Running) -> None:
    found = samples(fresh.url)
    for series in (
        f'ood_images_total{{decision="ood",{MODEL}}}',
        f'ood_dropped_requests_total{{model="cifar10",reason="client_left",version="{VERSION}"}}',
        'ood_refused_requests_total{code="queue_full"}',
        'ood_http_requests_total{route="/predict",status="429"}',
        f'ood_p_value_bucket{{le="0.05",{MODEL}}}',
        f'ood_negative_energy_bucket{{le="+Inf",{MODEL}}}',
        f'ood_stage_seconds_count{{model="cifar10",stage="queue",version="{VERSION}"}}',
        f"ood_queue_images{{{MODEL}}}",
    ):
        assert found[series] == 0, series
    manifest = read_manifest(BUNDLE)
    assert found[f"ood_threshold{{{MODEL}}}"] == manifest.calibrations["negative_energy"].threshold
    assert found[f"ood_model_up{{{MODEL}}}"] == 1
    assert any(key.startswith('ood_model_info{model="cifar10",runtime="openvino') for key in found)
    assert any(key.startswith("process_resident_memory_bytes") for key in found)


def test_what_clients_send_reaches_no_label(fresh: Running, pngs: list[bytes]) -> None:
    before = samples(fresh.url).keys()
    httpx.post(f"{fresh.url}/models/evil-name/predict", content=pngs[0], headers={"X-Request-Id": "evil-id"})
    httpx.get(f"{fresh.url}/evil-path", headers={"user-agent": "evil-agent"})
    httpx.request("EVIL", f"{fresh.url}/predict")
    assert samples(fresh.url).keys() == before
    assert "evil" not in httpx.get(f"{fresh.url}/metrics").text


def test_the_exposition_parses_and_its_names_are_prometheus_like(fresh: Running) -> None:
    families = list(text_string_to_metric_families(httpx.get(f"{fresh.url}/metrics").text))
    assert len({family.name for family in families}) == len(families)
    for family in families:
        assert family.documentation, family.name
        if family.name.startswith("ood_"):
            assert re.fullmatch(r"[a-z][a-z_]+[a-z]", family.name)


def test_the_page_lists_every_metric_with_its_type_and_labels(fresh: Running) -> None:
    rows = re.findall(r"^\| `(ood_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    listed = {name: (kind, set(re.findall(r"`(\w+)`", labels)), meaning) for name, kind, labels, meaning in rows}
    assert len(listed) == len(rows)
    found = {}
    for family in text_string_to_metric_families(httpx.get(f"{fresh.url}/metrics").text):
        if family.name.startswith("ood_"):
            labels = set().union(*(sample.labels.keys() for sample in family.samples)) - (
                {"le"} if family.type == "histogram" else set()
            )
            suffix = "_total" if family.type == "counter" else ""
            found[family.name + suffix] = (family.type, labels, family.documentation)
    assert listed == found


def test_buckets_are_closed_above() -> None:
    buckets = Buckets([1.0, 2.0, 4.0])
    buckets.observe([0.0, 1.0, 1.5, 2.0, 2.0, 5.0])
    assert buckets.cumulative() == [("1.0", 2), ("2.0", 5), ("4.0", 5), ("+Inf", 6)]
    assert buckets.sum == 11.5


def test_models_have_their_own_edges() -> None:
    registry, histogram = CollectorRegistry(), BucketHistogram("energy", "by model", MODEL_LABELS)
    registry.register(histogram)
    histogram.add(("a", "1"), [0.0, 1.0]).observe([0.5])
    histogram.add(("b", "2"), [10.0]).observe([0.5])
    assert registry.get_sample_value("energy_bucket", {"model": "a", "version": "1", "le": "1.0"}) == 1
    assert registry.get_sample_value("energy_bucket", {"model": "b", "version": "2", "le": "10.0"}) == 1
    assert registry.get_sample_value("energy_bucket", {"model": "b", "version": "2", "le": "1.0"}) is None


def test_an_engine_that_replaces_another_counts_on_from_what_was_replaced_before(
    settings: Callable[..., Settings],
) -> None:
    """Prometheus takes a counter at 0 for one that began anew, and would count what it comes back to once more."""
    metrics, control = Metrics(["/predict"]), Mock(spec=Control)
    EngineProcess(settings(), control, Models(()), metrics, asyncio.Queue(), {"engine": 2, "worker": 1})
    assert metrics.registry.get_sample_value("ood_process_restarts_total", {"process": "engine"}) == 2
    assert metrics.registry.get_sample_value("ood_process_restarts_total", {"process": "worker"}) == 1


def test_the_last_word_of_an_engine_s_process_is_that_a_model_died(settings: Callable[..., Settings]) -> None:
    """The queues of the other models are closed next, which may take seconds; workers are not ready meanwhile."""
    died, other = Mock(spec=LocalEngine, health="died"), Mock(spec=LocalEngine, health="ready")
    control, hub, models = Mock(spec=Control), Mock(spec=Hub), Mock(spec=Models, engines=(other, died))
    died.name = "a@1"
    process = EngineProcess(settings(), control, models, Metrics(["/predict"]), asyncio.Queue(), {})
    assert asyncio.run(process._watch(hub)) == 1
    control.report.assert_called_once_with("failed", "the engine of a@1 died")
    hub.tell_statuses.assert_called_once_with()


def test_two_servers_in_a_process_share_nothing() -> None:
    first, second = Metrics(["/predict"]), Metrics(["/predict"])
    first.refused.labels("queue_full").inc()
    assert second.registry.get_sample_value("ood_refused_requests_total", {"code": "queue_full"}) == 0
