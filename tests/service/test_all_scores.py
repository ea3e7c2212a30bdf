"""`?scores=all`: every score of a bundle, from the forward pass that the verdict comes from."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, get_args

import httpx
import numpy as np
import pytest
from live import Gate, Process, Running, running, samples, wait_until

from model_store import images
from model_store.bundle import Bundle, load_bundle
from model_store.predictor import Predictor
from model_store.score_specs import ScoreName
from service.schemas import PredictReply
from service.settings import Settings

DEPTH = 'ood_queue_images{model="every",version="1"}'
PLAIN = {"class_id", "class_name", "confidence", "negative_energy", "p_value", "is_ood"}


@pytest.fixture(scope="module")
def scored(settings: Callable[..., Settings], scored_bundles: Path) -> Iterator[Running]:
    with running(settings(store=scored_bundles, models=("every", "by-knn"))) as server:
        yield server


def offline(store: Path, name: str) -> Bundle:
    return load_bundle(store / name / "1")


def pixels_of(bundle: Bundle, pngs: list[bytes]) -> np.ndarray:
    return np.stack([images.load(png, bundle.manifest.preprocess) for png in pngs])


def form(pngs: list[bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", ("i", png)) for png in pngs]


@pytest.mark.parametrize("path", ["/predict?scores=all", "/models/by-knn/predict"])
def test_a_reply_of_further_scores_is_as_its_schema_has_it(scored: Running, pngs: list[bytes], path: str) -> None:
    content = httpx.post(scored.url + path, content=pngs[0], timeout=60).content
    reply = PredictReply.model_validate_json(content, strict=True)
    assert reply.verdict is not None
    assert (reply.thresholds is None) == (reply.predictions[0].scores is None) == ("all" not in path)
    assert content == reply.model_dump_json(exclude_none=True).encode()


@pytest.mark.parametrize(("path", "name"), [("/predict", "every"), ("/models/by-knn@1/predict", "by-knn")])
def test_every_score_is_the_offline_one(
    scored: Running, scored_bundles: Path, pngs: list[bytes], path: str, name: str
) -> None:
    """All 100 test images: values within the golden tolerance, flags the same."""
    bundle = offline(scored_bundles, name)
    expected = bundle.predictor.predict_by_all(pixels_of(bundle, pngs))
    found: list[dict[str, Any]] = []
    for at in range(0, 100, 50):
        reply = httpx.post(f"{scored.url}{path}?scores=all", files=form(pngs[at : at + 50]), timeout=60).json()
        found += reply["predictions"]
        calibrations = bundle.manifest.calibrations
        assert reply["thresholds"] == {score: calibrations[score].threshold for score in bundle.manifest.score_names}
        assert reply["verdict"] == bundle.manifest.verdict
        assert reply["threshold"] == reply["thresholds"][reply["verdict"]]
    execution = bundle.manifest.execution
    for score, verdicts in expected.items():
        values = [prediction["scores"][score]["value"] for prediction in found]
        tolerance = execution.score_tolerances.get(score, execution.tolerance)
        np.testing.assert_allclose(values, verdicts.value, atol=tolerance, err_msg=score)
        assert [prediction["scores"][score]["is_ood"] for prediction in found] == verdicts.is_ood.tolist(), score
        p_values = [prediction["scores"][score]["p_value"] for prediction in found]
        np.testing.assert_allclose(p_values, verdicts.p_value, atol=1.5 / 101, err_msg=score)  # one score passed by
        flagged = [value <= calibrations[score].threshold for value in values]
        assert flagged == verdicts.is_ood.tolist()
    for prediction in found:
        verdict = prediction["scores"][bundle.manifest.verdict]
        assert (prediction["p_value"], prediction["is_ood"]) == (verdict["p_value"], verdict["is_ood"])
        assert prediction["negative_energy"] == prediction["scores"]["negative_energy"]["value"]
        assert list(prediction["scores"]) == list(expected)
    assert any(prediction["is_ood"] for prediction in found)


def test_who_does_not_ask_gets_the_reply_without(scored: Running, pngs: list[bytes]) -> None:
    reply = httpx.post(f"{scored.url}/predict", files=form(pngs[:3])).json()
    assert reply.keys() == {"model", "threshold", "predictions", "timing_ms", "request_id"}
    assert all(prediction.keys() == PLAIN for prediction in reply["predictions"])
    asked = httpx.post(f"{scored.url}/predict?scores=all", files=form(pngs[:3])).json()
    assert asked.keys() == reply.keys() | {"verdict", "thresholds"}
    for with_scores, without in zip(asked["predictions"], reply["predictions"], strict=True):
        assert {key: with_scores[key] for key in PLAIN} == without


def test_a_verdict_that_is_not_negative_energy_is_always_named(
    scored: Running, scored_bundles: Path, pngs: list[bytes]
) -> None:
    bundle = offline(scored_bundles, "by-knn")
    reply = httpx.post(f"{scored.url}/models/by-knn/predict", files=form(pngs[:20])).json()
    assert reply.keys() == {"model", "threshold", "verdict", "predictions", "timing_ms", "request_id"}
    assert reply["verdict"] == "knn"
    assert reply["threshold"] == bundle.manifest.calibrations["knn"].threshold
    expected = bundle.predictor.predict(pixels_of(bundle, pngs[:20]))
    assert [prediction["is_ood"] for prediction in reply["predictions"]] == expected.is_ood.tolist()
    energies = [prediction["negative_energy"] for prediction in reply["predictions"]]
    np.testing.assert_allclose(energies, expected.negative_energy, atol=1e-3)


def test_the_list_of_models_has_verdicts_and_thresholds(scored: Running, scored_bundles: Path) -> None:
    listed = {model["name"]: model for model in httpx.get(f"{scored.url}/models").json()["models"]}
    for name, verdict in (("every", "negative_energy"), ("by-knn", "knn")):
        calibrations = offline(scored_bundles, name).manifest.calibrations
        assert listed[name]["verdict"] == verdict
        assert listed[name]["thresholds"] == {score: spec.threshold for score, spec in calibrations.items()}
        assert listed[name]["threshold"] == calibrations[verdict].threshold


def test_a_bundle_without_further_scores_gives_its_one(server: Running, pngs: list[bytes]) -> None:
    reply = httpx.post(f"{server.url}/predict?scores=all", content=pngs[0]).json()
    (prediction,) = reply["predictions"]
    expected = {"value": prediction["negative_energy"], "p_value": prediction["p_value"], "is_ood": False}
    assert prediction["scores"] == {"negative_energy": expected}
    assert reply["thresholds"] == {"negative_energy": reply["threshold"]}


def test_a_batch_of_some_who_ask_gives_each_what_they_asked_for(
    settings: Callable[..., Settings], scored_bundles: Path, gate: Gate, pngs: list[bytes], monkeypatch: Any
) -> None:
    """One forward pass for both, and the further scores only for batches in which someone wants them."""
    computed: list[int] = []
    judge = Predictor.judge_by_all

    def counted(self: Predictor, found: Any) -> Any:
        computed.append(len(found.negative_energy))
        return judge(self, found)

    with (
        running(settings(store=scored_bundles, models=("every",), max_batch_size=4)) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        monkeypatch.setattr(Predictor, "judge_by_all", counted)
        alone = [client.post("/predict?scores=all", content=png).json()["predictions"] for png in pngs[:5]]
        assert computed == [1] * 5
        computed.clear()
        gate.close()
        held = pool.submit(client.post, "/predict", content=pngs[0])
        assert gate.entered.wait(10)
        waiting = []
        for at, query in enumerate(("", "?scores=all", "", "?scores=all"), start=1):
            waiting.append(pool.submit(client.post, f"/predict{query}", content=pngs[at]))
            wait_until(lambda wanted=at: samples(server.url)[DEPTH] == wanted)  # type: ignore[misc]
        gate.open.set()
        first, *others = [future.result().json()["predictions"] for future in (held, *waiting)]
        assert gate.batches == [1, 4]
        assert computed == [4]  # not for the first
        for at, found in enumerate((first, *others)):
            assert found[0].keys() == PLAIN | ({"scores"} if at in (2, 4) else set())
            for key in ("class_id", "is_ood"):
                assert found[0][key] == alone[at][0][key]
            for name, score in found[0].get("scores", {}).items():
                assert score["value"] == pytest.approx(alone[at][0]["scores"][name]["value"], rel=1e-3, abs=1e-4)


def test_a_request_cut_over_batches_has_all_scores_of_all_images(scored: Running, pngs: list[bytes]) -> None:
    """Ten images in batches of at most four."""
    found = httpx.post(f"{scored.url}/predict?scores=all", files=form(pngs[:10])).json()["predictions"]
    assert [len(prediction["scores"]) for prediction in found] == [len(get_args(ScoreName))] * 10


def test_metrics_are_of_the_verdict_whoever_asks(
    settings: Callable[..., Settings], scored_bundles: Path, pngs: list[bytes]
) -> None:
    series = '{model="by-knn",version="1"}'
    with running(settings(store=scored_bundles, models=("by-knn",))) as server:
        replies = [
            httpx.post(f"{server.url}/predict{query}", files=form(pngs[:30])).json() for query in ("", "?scores=all")
        ]
        predictions = [prediction for reply in replies for prediction in reply["predictions"]]
        found = samples(server.url)
        assert found[f"ood_p_value_count{series}"] == 60
        assert found[f"ood_p_value_sum{series}"] == pytest.approx(sum(p["p_value"] for p in predictions))
        flags = sum(p["is_ood"] for p in predictions)
        assert found['ood_images_total{decision="ood",model="by-knn",version="1"}'] == flags
        assert found[f"ood_threshold{series}"] == replies[0]["threshold"]
        edge = replies[1]["thresholds"]["negative_energy"]
        below = sum(p["negative_energy"] <= edge for p in predictions)
        assert found[f'ood_negative_energy_bucket{{le="{edge}",model="by-knn",version="1"}}'] == below


def test_the_greeting_names_the_verdict(
    serve: Callable[..., AbstractContextManager[Process]], scored_bundles: Path
) -> None:
    with serve("--store", str(scored_bundles), "--models", "by-knn") as server:
        threshold = json.loads((scored_bundles / "by-knn/1/manifest.json").read_text())["calibrations"]["knn"]
        assert f"by-knn@1  flags knn <= {threshold['threshold']:.4f} (alpha 20 %)" in server.greeting
