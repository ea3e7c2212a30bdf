"""The fleet-wide figures of docs/monitoring.md, by promtool, from the counters of two servers."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from live import BUNDLE, VERSION

from model_store.bundle import read_manifest
from service.engine_protocol import Verdict
from service.metrics import P_VALUE_EDGES, Metrics

PAGE = (Path(__file__).parents[3] / "docs" / "monitoring.md").read_text()
MANIFEST = read_manifest(BUNDLE)
CALIBRATION = MANIFEST.calibrations["negative_energy"]
ALPHA = CALIBRATION.k / (CALIBRATION.n + 1)
USED = re.compile(r"ood_(images_total|alpha|detection_rate|p_value_bucket|p_value_count|p_value_uniform)")


def series_of(metrics: Metrics, server: str) -> Iterator[dict[str, str]]:
    """Give a server's series for promtool: counters that grow as evenly, from 0 to what they are, gauges that stand."""
    for family in metrics.registry.collect():
        for sample in family.samples:
            if USED.fullmatch(sample.name):
                labels = ",".join(f'{name}="{value}"' for name, value in (sample.labels | {"instance": server}).items())
                grows = family.type in ("counter", "histogram")
                values = f"0+{sample.value!r}x60" if grows else f"{sample.value!r}x60"
                yield {"series": f"{sample.name}{{{labels}}}", "values": values}


@pytest.mark.slow
def test_the_figures_of_two_servers_are_those_of_all_their_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    everything, series = [], []
    for server, (images, ood) in {"a": (700, 0.02), "b": (300, 0.4)}.items():
        p_values = np.where(rng.random(images) < ood, 1, rng.integers(1, 5002, images)) / 5001
        metrics = Metrics(["/predict"])
        metrics.model(MANIFEST).answered([Verdict(0, 0.9, 3.0, p, p <= ALPHA) for p in p_values.tolist()], {})
        everything += p_values.tolist()
        series += series_of(metrics, server)
    flag_rate = np.mean(np.array(everything) <= ALPHA)
    evaluation = MANIFEST.evaluation
    assert evaluation is not None
    detected = 1 - np.mean([evaluation.fine_tuned.ood[name].missed for name in evaluation.far_ood]) / 100
    distance = max(abs(np.mean(np.array(everything) <= edge) - edge) for edge in P_VALUE_EDGES)
    expected = (flag_rate, (flag_rate - ALPHA) / (detected - ALPHA), distance)

    queries = re.findall(r"```promql\n(.*?)```", PAGE, re.S)
    assert len(queries) == 3
    tests = [
        {
            "expr": f"round({query}, 1e-6)",
            "eval_time": "60m",
            "exp_samples": [{"labels": f'{{model="cifar10",version="{VERSION}"}}', "value": round(float(value), 6)}],
        }
        for query, value in zip(queries, expected, strict=True)
    ]
    rules = {"rule_files": [], "tests": [{"interval": "1m", "input_series": series, "promql_expr_test": tests}]}
    (tmp_path / "test.yml").write_text(json.dumps(rules))
    found = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
