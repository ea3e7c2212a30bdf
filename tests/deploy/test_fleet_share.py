"""The fleet's share of true OOD, as Prometheus records it from counters, is what a server says of as many images."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rules import PROMETHEUS

from service.watching.share import ShareEstimator, false_flag_interval

K, N, DETECTION_RATE = 250, 5000, 0.89
SERVERS = 3
NEAR = 0.002
"""What Wilson's interval of the flag rate, of 600 images or more, moves the share by against Clopper and Pearson's."""


def _series(flagged: int, images: int) -> Iterator[tuple[str, str, float]]:
    """Yield (name, further labels, value) of one server; a counter's value is its growth in a minute."""
    yield "ood_images_total", 'decision="ood"', flagged / 60 / SERVERS
    yield "ood_images_total", 'decision="in_distribution"', (images - flagged) / 60 / SERVERS
    yield "ood_alpha", "", K / (N + 1)
    yield "ood_detection_rate", "", DETECTION_RATE
    for bound, rate in zip(("lower", "upper"), false_flag_interval(k=K, calibration_images=N), strict=True):
        yield "ood_false_flag_rate", f'bound="{bound}"', rate


@pytest.mark.parametrize(
    ("flagged", "images"),
    [(60, 600), (300, 600), (600, 600), (0, 6000), (300, 6000), (900, 6000), (3000, 60_000), (60_000, 1_200_000)],
)
def test_the_recorded_share_is_the_servers(flagged: int, images: int, tmp_path: Path) -> None:
    inputs = [
        {
            "series": f'{name}{{job="j", instance="{at}", model="m", version="1", {further}}}',
            "values": f"0+{value:.17g}x90" if name.endswith("_total") else f"{value:.17g}x90",
        }
        for at in range(SERVERS)
        for name, further, value in _series(flagged, images)
    ]
    share = ShareEstimator(k=K, calibration_images=N, detection_rate=DETECTION_RATE)(flagged, images)
    recorded = {
        "estimate": "job_model:ood_share:estimate_rate1h",
        "lower": 'job_model:ood_share:interval_rate1h{bound="lower"}',
        "upper": 'job_model:ood_share:interval_rate1h{bound="upper"}',
    }
    looks = [
        {
            "expr": f"sum(abs({series} - {getattr(share, bound):.17g}) < bool {NEAR})",
            "eval_time": "80m",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        for bound, series in recorded.items()
    ]
    rules = str(PROMETHEUS / "rules" / "recording.yml")
    case = {"interval": "1m", "input_series": inputs, "promql_expr_test": looks}
    (tmp_path / "case.yml").write_text(yaml.safe_dump({"rule_files": [rules], "tests": [case]}))
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "case.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (share, done.stdout + done.stderr)
