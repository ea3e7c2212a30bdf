"""Several bundles in one server, good and bad."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from live import SERVE, Process, Running, running, samples

from service.errors import StartError
from service.settings import Settings


@pytest.fixture(scope="module")
def two(settings: Callable[..., Settings], bundles: Path) -> Iterator[Running]:
    with running(settings(store=bundles, models=("cifar10", "strict@2", "broken"))) as server:
        yield server


def test_each_model_judges_by_its_own_threshold(two: Running, pngs: list[bytes]) -> None:
    form = [("images", ("i", png)) for png in pngs[:64]]
    default = httpx.post(f"{two.url}/predict", files=form).json()
    strict = httpx.post(f"{two.url}/models/strict/predict", files=form).json()
    assert default["model"]["name"] == "cifar10"
    assert (strict["model"]["name"], strict["model"]["version"]) == ("strict", 2)
    assert strict["threshold"] > default["threshold"]
    for easy, hard in zip(default["predictions"], strict["predictions"], strict=True):
        assert easy["negative_energy"] == pytest.approx(hard["negative_energy"], abs=1e-4)
        assert easy["is_ood"] == (easy["negative_energy"] <= default["threshold"])
        assert hard["is_ood"] == (hard["negative_energy"] <= strict["threshold"])
    assert sum(p["is_ood"] for p in strict["predictions"]) > sum(p["is_ood"] for p in default["predictions"])


def test_metrics_keep_models_apart(two: Running, pngs: list[bytes]) -> None:
    key = 'ood_p_value_count{{model="{}",version="{}"}}'
    before = samples(two.url)
    httpx.post(f"{two.url}/models/strict@2/predict", content=pngs[0])
    after = samples(two.url)
    assert after[key.format("strict", 2)] - before[key.format("strict", 2)] == 1
    assert after[key.format("cifar10", 1)] == before[key.format("cifar10", 1)]


def test_the_list_shows_all_and_why_one_failed(two: Running) -> None:
    listed = httpx.get(f"{two.url}/models").json()["models"]
    assert [(m["name"], m["version"], m["state"], m["default"]) for m in listed] == [
        ("cifar10", 1, "ready", True),
        ("strict", 2, "ready", False),
        ("broken", None, "failed", False),
    ]
    assert "weights.safetensors has" in listed[2]["reason"]
    assert listed[0]["alpha"] == 0.05
    assert listed[0]["input"] == "32 x 32 pixels, RGB"
    assert len(listed[0]["sha256"]) == 64


def test_a_failed_model_answers_503_and_the_others_go_on(two: Running, pngs: list[bytes]) -> None:
    failed = httpx.post(f"{two.url}/models/broken/predict", content=pngs[0])
    assert failed.status_code == 503
    assert failed.json()["error"]["code"] == "not_ready"
    assert "could not be loaded" in failed.json()["error"]["message"]
    assert int(failed.headers["retry-after"]) >= 1
    assert httpx.get(f"{two.url}/readyz").status_code == 200
    assert httpx.get(f"{two.url}/readyz").json()["models"]["broken"] == "failed"
    assert samples(two.url)['ood_model_up{model="broken",version=""}'] == 0


def test_a_failed_default_model_does_not_hand_its_requests_to_another(
    settings: Callable[..., Settings], bundles: Path, pngs: list[bytes]
) -> None:
    with running(settings(store=bundles, models=("broken", "strict"))) as server:
        assert httpx.post(f"{server.url}/predict", content=pngs[0]).status_code == 503
        assert httpx.post(f"{server.url}/models/strict/predict", content=pngs[0]).status_code == 200


def test_a_name_is_its_newest_version_that_is_loaded(
    settings: Callable[..., Settings], bundles: Path, tmp_path: Path, pngs: list[bytes]
) -> None:
    shutil.copytree(bundles / "strict", tmp_path / "strict")
    shutil.copytree(tmp_path / "strict" / "2", tmp_path / "strict" / "3")  # holds strict@2, so it is refused as @3
    with running(settings(store=tmp_path, models=("strict@3", "strict@2"))) as server:
        reply = httpx.post(f"{server.url}/models/strict/predict", content=pngs[0])
        assert reply.json()["model"]["version"] == 2
        assert httpx.post(f"{server.url}/models/strict@3/predict", content=pngs[0]).status_code == 503


def test_a_server_without_one_good_model_does_not_start(bundles: Path, cache_dir: Path) -> None:
    finished = subprocess.run(
        [SERVE, "--port", "0", "--store", bundles, "--models", "broken,missing"],
        env=os.environ | {"OOD_CACHE_DIR": str(cache_dir)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("ood-serve: broken: ")
    assert "weights.safetensors has" in last
    assert "missing: no bundle missing in" in last
    assert finished.stdout == ""


def test_a_model_named_twice_is_refused(settings: Callable[..., Settings], bundles: Path) -> None:
    with (
        pytest.raises(StartError, match="cifar10@1 twice"),
        running(settings(store=bundles, models=("cifar10", "cifar10@1"))),
    ):
        pass


def test_the_greeting_names_every_model(serve: Callable[..., AbstractContextManager[Process]], bundles: Path) -> None:
    with serve("--store", str(bundles), "--models", "strict,broken") as server:
        assert "strict@2  flags negative energy <= " in server.greeting
        assert "broken  not loaded: " in server.greeting
        assert str(bundles / "strict" / "2" / "golden" / "000.png") in server.greeting
