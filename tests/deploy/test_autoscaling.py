"""The metric that scales: prometheus-adapter's query, filled in as the adapter does, asked by promtool."""

import subprocess
from pathlib import Path

import pytest
import yaml

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
(RULE,) = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
SCALER = yaml.safe_load((KUBERNETES / "base" / "horizontal-pod-autoscaler.yaml").read_text())["spec"]
METRIC = RULE["name"]["as"]


def query() -> str:
    pods = {"<<.GroupBy>>": "pod", "<<.LabelMatchers>>": 'namespace="here",pod=~"busy|idle|new"'}
    filled = RULE["metricsQuery"]
    for template, value in pods.items():
        filled = filled.replace(template, value)
    assert "<<" not in filled
    return filled


def series(pod: str, stage: str, seconds: str, count: str, namespace: str = "here") -> list[dict[str, str]]:
    labels = f'{{namespace="{namespace}",pod="{pod}",model="cifar10",version="2",stage="{stage}"}}'
    return [
        {"series": f"ood_stage_seconds_sum{labels}", "values": seconds},
        {"series": f"ood_stage_seconds_count{labels}", "values": count},
    ]


def test_the_scaler_asks_for_the_metric_that_the_rule_makes() -> None:
    (metric,) = SCALER["metrics"]
    assert metric["pods"]["metric"]["name"] == METRIC
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "20m"}
    assert {"namespace", "pod"} == set(RULE["resources"]["overrides"])


@pytest.mark.slow  # not for its time: it needs promtool
def test_the_metric_is_the_mean_time_in_the_queue(tmp_path: Path) -> None:
    """10 requests a second that wait 0.2 s each: their sum grows by 2 a second. Other stages and spaces don't count."""
    (tmp_path / "rules.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "g", "rules": [{"record": METRIC, "expr": query()}]}]})
    )
    inputs = [
        *series("busy", "queue", "0+30x20", "0+150x20"),
        *series("busy", "total", "0+150x20", "0+150x20"),
        *series("idle", "queue", "7+0x20", "500+0x20"),
        *series("new", "queue", "0+0x20", "0+0x20"),
        *series("busy", "queue", "0+900x20", "0+150x20", namespace="elsewhere"),
    ]
    expected = [{"labels": f'{METRIC}{{pod="{pod}"}}', "value": value} for pod, value in
                (("busy", 0.2), ("idle", 0.0), ("new", 0.0))]  # fmt: skip
    asked = {"expr": METRIC, "eval_time": "4m", "exp_samples": expected}
    case = {"interval": "15s", "input_series": inputs, "promql_expr_test": [asked]}
    (tmp_path / "test.yml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "15s", "tests": [case]})
    )
    command = ["promtool", "test", "rules", "test.yml"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
