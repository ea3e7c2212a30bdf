"""What `GET /models/{model}/watch` and the metrics say, beside the replies that they are of."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from live import BUNDLE, Running, running, samples
from scipy import stats

from model_store.bundle import read_manifest
from service.counts import ModelCounts, Observed
from service.engine_protocol import Verdict
from service.metrics import P_VALUE_EDGES, Metrics
from service.settings import Settings
from service.watching import expectations
from service.watching.expectations import WatchOptions
from service.watching.throughput import Throughput

MANIFEST = read_manifest(BUNDLE)
EDGES = MANIFEST.calibrations["negative_energy"].histogram_edges
K, N = MANIFEST.calibrations["negative_energy"].k, MANIFEST.calibrations["negative_energy"].n


@pytest.fixture
def fresh(settings: Callable[..., Settings], bundles: Path) -> Iterator[Running]:
    options: dict[str, Any] = {"watch_window_images": 100, "watch_hours_between_false_alarms": 0.01}
    with running(settings(store=bundles, models=("cifar10@1", "strict@2"), **options)) as server:
        yield server


def watched(server: Running, model: str) -> dict[str, Any]:
    reply: dict[str, Any] = httpx.get(f"{server.url}/models/{model}/watch").raise_for_status().json()
    return reply


def test_it_says_what_the_replies_and_the_metrics_say(fresh: Running, pngs: list[bytes]) -> None:
    predictions = []
    for at in (0, 40, 80, 20):  # 140 images, of which the window holds the last 100
        files = [("images", ("i", png)) for png in [*pngs, *pngs][at : at + 35]]
        predictions += httpx.post(f"{fresh.url}/models/strict/predict", files=files).json()["predictions"]
        samples(fresh.url)  # what was told once is not told again
    found, exposed = watched(fresh, "strict"), samples(fresh.url)
    labels = 'model="strict",version="2"'

    assert (found["model"], found["images"], found["flagged"]) == (
        "strict@2",
        140,
        sum(p["is_ood"] for p in predictions),
    )
    assert exposed[f'ood_images_total{{decision="ood",{labels}}}'] == found["flagged"]
    last = [p["p_value"] for p in predictions[-100:]]
    window = found["window"]
    assert window["images"] == exposed[f"ood_window_images{{{labels}}}"] == 100
    assert window["flagged_ratio"] == sum(p["is_ood"] for p in predictions[-100:]) / 100
    assert window["ks_distance"] == pytest.approx(stats.kstest(last, "uniform").statistic)
    looks = 0.01 * 10_000
    limit = math.sqrt(math.log(2 * looks) / 200) + math.sqrt(math.log(40) / (2 * N)) + 1 / (N + 1)
    assert window["ks_limit"] == pytest.approx(limit)
    for name in ("flagged_ratio", "ks_distance", "ks_limit"):
        assert exposed[f"ood_window_{name}{{{labels}}}"] == window[name]
    for bound, value in window["ood_share"].items():
        assert exposed[f'ood_window_ood_share{{bound="{bound}",{labels}}}'] == value

    cusum = found["cusum"]
    assert cusum["limit"] == exposed[f"ood_cusum_limit{{{labels}}}"] == pytest.approx(math.log(looks))
    assert cusum["statistic"] == exposed[f"ood_cusum{{{labels}}}"]
    assert cusum["shifted"] == exposed[f"ood_shift{{{labels}}}"]
    assert cusum["shifts"] == exposed[f"ood_shifts_total{{{labels}}}"]

    p_value, energy = found["p_value"], found["negative_energy"]
    assert p_value["edges"] == list(P_VALUE_EDGES)
    for histogram, name in ((p_value, "p_value"), (energy, "negative_energy")):
        values = [p[name] for p in predictions]
        bounds = [-math.inf, *histogram["edges"], math.inf]
        counted = [sum(low < v <= high for v in values) for low, high in pairwise(bounds)]
        assert histogram["counts"] == counted
    for name in ("p_value", "negative_energy"):  # of the last 100 images, beside those of all 140
        values, edges = [p[name] for p in predictions[-100:]], found[name]["edges"]
        bounds = [-math.inf, *edges, math.inf]
        counted = [sum(low < v <= high for v in values) for low, high in pairwise(bounds)]
        assert window[name] == {"edges": edges, "counts": counted}
    for row in found["classes"]:
        for key, flag in (("in_distribution", False), ("ood", True)):
            count = sum(p["class_name"] == row["name"] and p["is_ood"] == flag for p in predictions)
            assert row[key] == count
            assert exposed[f'ood_class_images_total{{class="{row["name"]}",decision="{key}",{labels}}}'] == count
    assert [row["name"] for row in found["classes"]] == list(MANIFEST.classes)
    assert 0 < found["images_per_s"] <= 140
    assert "exchangeable" in found["assumption"]
    assert watched(fresh, "cifar10")["images"] == 0


def test_before_the_first_image_nothing_is_known(fresh: Running) -> None:
    found, exposed = watched(fresh, "cifar10@1"), samples(fresh.url)
    assert found["window"] == {
        "images": 0,
        "flagged_ratio": None,
        "ood_share": None,
        "ks_distance": None,
        "ks_limit": None,
        "p_value": found["p_value"],
        "negative_energy": found["negative_energy"],
    }
    assert not any(found["p_value"]["counts"] + found["negative_energy"]["counts"])
    assert found["cusum"]["statistic"] == found["images"] == found["images_per_s"] == 0
    labels = 'model="cifar10",version="1"'
    assert exposed[f"ood_window_ks_limit{{{labels}}}"] == 1
    assert exposed[f'ood_window_ood_share{{bound="upper",{labels}}}'] == 1
    for name in ("ood_window_images", "ood_window_ks_distance", "ood_cusum", "ood_shift", "ood_shifts_total"):
        assert exposed[f"{name}{{{labels}}}"] == 0
    assert exposed[f"ood_alpha{{{labels}}}"] == K / (N + 1)
    for bound, probability in (("lower", 0.0125), ("upper", 0.9875)):
        rate = stats.beta.ppf(probability, K, N + 1 - K)
        assert exposed[f'ood_false_flag_rate{{bound="{bound}",{labels}}}'] == pytest.approx(rate)
    assert exposed['ood_p_value_uniform{le="0.05"}'] == 0.05


def test_a_model_that_is_not_served_is_404(server: Running) -> None:
    reply = httpx.get(f"{server.url}/models/other/watch")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_model")


def test_a_rise_is_told_and_its_end(fresh: Running, pngs: list[bytes], image_of: Callable[[int], bytes]) -> None:
    """Flagged images until the alarm, then others until it is over; and once more."""
    with httpx.Client(base_url=fresh.url) as client:

        def is_flagged(image: bytes) -> bool:
            flag: bool = client.post("/predict", content=image).json()["predictions"][0]["is_ood"]
            return flag

        normal = next(png for png in pngs if not is_flagged(png))
        odd = next(image_of(level) for level in range(0, 255, 20) if is_flagged(image_of(level)))
        shifted = []
        for image in [normal] * 60 + [odd] * 6 + [normal] * 60 + [odd] * 6:  # 100 images between alarms: five flags
            client.post("/predict", content=image)
            shifted.append(client.get("/models/cifar10/watch").json()["cusum"]["shifted"])
    changes = [(at, after) for at, (before, after) in enumerate(pairwise(shifted), 1) if before != after]
    (rise, up), (fall, down), (again, up_again) = changes
    assert (up, down, up_again) == (True, False, True)
    assert 60 <= rise < 66 <= fall < 126 <= again
    assert [samples(fresh.url)['ood_shifts_total{model="cifar10",version="1"}'] for _ in range(2)] == [2, 2]


def test_what_is_expected_of_a_bundle_follows_from_its_manifest() -> None:
    assert expectations.stated_rate(MANIFEST) == K / (N + 1)
    assert expectations.highest_rate(MANIFEST) == pytest.approx(stats.beta.ppf(0.95, K, N + 1 - K))
    evaluation = MANIFEST.evaluation
    assert evaluation is not None
    missed = [evaluation.fine_tuned.ood[name].missed for name in evaluation.far_ood]
    detected = expectations.detection_rate(MANIFEST)
    assert detected == pytest.approx(1 - np.mean(missed) / 100)
    highest = expectations.highest_rate(MANIFEST)
    assert expectations.shifted_rate(MANIFEST, 0.2) == pytest.approx(0.8 * highest + 0.2 * detected)


def test_flagged_is_what_the_verdicts_say_at_the_very_threshold() -> None:
    series = Metrics(["/predict"]).model(MANIFEST)
    ranks = np.arange(K - 2, K + 3)
    series.answered(
        [Verdict(0, 0.9, 3.0, p, bool(rank <= K)) for rank, p in zip(ranks, ranks / (N + 1), strict=True)], {}
    )
    found = series.watched()
    assert found.classes is not None
    assert found.flagged == found.classes[0].ood == 3
    assert found.window.flagged_ratio == 0.6


def test_a_bundle_without_evaluation_has_no_share_but_an_alarm() -> None:
    manifest, metrics = MANIFEST.model_copy(update={"evaluation": None}), Metrics(["/predict"])
    series = metrics.model(manifest)
    series.answered([Verdict(0, 0.9, 3.0, 0.01, True)], {})
    assert series.watched().window.ood_share is None
    for name in ("ood_detection_rate", "ood_window_ood_share"):
        (family,) = [family for family in metrics.registry.collect() if family.name == name]
        assert not family.samples
    highest = expectations.highest_rate(manifest)
    assert expectations.shifted_rate(manifest, 0.1) == pytest.approx(highest + 0.1 * (1 - highest) / 2)
    assert series.watched().cusum.statistic > 0


def test_the_stated_detection_is_the_verdicts(scored_bundles: Path) -> None:
    """By KNN, of a bundle whose evaluation has figures for each score; without them nothing is known of KNN's."""
    manifest = read_manifest(scored_bundles / "by-knn" / "1")
    assert manifest.verdict == "knn"
    assert expectations.detection_rate(manifest.model_copy(update={"evaluation": MANIFEST.evaluation})) is None


def test_classes_are_counted_up_to_a_hundred() -> None:
    for classes, counted in ((100, True), (101, False)):
        manifest = MANIFEST.model_copy(update={"classes": tuple(f"class {at}" for at in range(classes))})
        metrics = Metrics(["/predict"])
        series = metrics.model(manifest)
        series.answered([Verdict(classes - 1, 0.9, 3.0, 0.5, False)], {})
        shown = series.watched().classes
        assert (shown[-1].in_distribution if shown else None) == (1 if counted else None)


def test_what_begins_after_ten_million_images_stands_out_in_the_window() -> None:
    """10,000 images that are OOD are a thousandth of all, and every one of the window."""
    series = Metrics(["/predict"]).model(MANIFEST)
    known = ModelCounts(
        in_distribution=10**7,
        ood=0,
        p_value=Observed(counts=[0] * len(P_VALUE_EDGES) + [10**7], sum=0),
        negative_energy=Observed(counts=[0] * len(EDGES) + [10**7], sum=0),
        stages={},
        p_values=[0.5] * 10_000,
        energy_buckets=[len(EDGES)] * 10_000,
        classes=[[0, 0]] * len(MANIFEST.classes),
    )
    series.add(known)
    series.answered([Verdict(0, 0.9, EDGES[0], 0.0002, True)] * 10_000, {})
    window = series.watched().window
    assert window.negative_energy.counts == [10_000] + [0] * len(EDGES)
    assert window.p_value.counts == [10_000] + [0] * len(P_VALUE_EDGES)


def test_throughput_is_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.5]
    monkeypatch.setattr("service.watching.throughput.time.monotonic", lambda: now[0])
    throughput = Throughput()
    throughput.count(30)
    assert throughput.images_per_s == 30
    for _ in range(90):
        now[0] += 1
        throughput.count(2)
    assert throughput.images_per_s == 2
    now[0] += 30
    assert throughput.images_per_s == 1
    now[0] += 60
    assert throughput.images_per_s == 0


def test_options_are_the_settings() -> None:
    chosen = Settings(
        watch_window_images=500, watch_hours_between_false_alarms=24, watch_images_per_hour=50, watch_ood_share=0.3
    )
    assert chosen.watch_options == WatchOptions(500, 24, 50, 0.3)
    assert chosen.watch_options.images_between_false_alarms == 1200
    assert Settings().watch_options == WatchOptions()
    with pytest.raises(ValueError, match="images between false alarms, must be at least 2"):
        Settings(watch_images_per_hour=0.001)
