"""The cost of scores, measured small; and the bound that it is held to."""

from typing import get_args

import pytest

from benchmarks import scores
from model_store.score_specs import ScoreName


def test_all_scores_cost_at_most_a_tenth_of_a_forward_pass() -> None:
    cost = scores.measure("cifar10", "torch-eager", batch_size=64, repeats=5)
    assert list(cost.each_s) == list(get_args(ScoreName))
    assert 0 < cost.each_s["max_logit"] < cost.all_s <= 0.1 * cost.forward_s


def test_table_shows_every_score_as_a_share_of_the_forward_pass(capsys: pytest.CaptureFixture[str]) -> None:
    scores.main(["--batch", "2", "--repeats", "1", "--runtimes", "torch-eager"])
    conditions, blank, *rows = capsys.readouterr().out.splitlines()
    assert "cifar10, batch 2, medians of 1" in conditions
    assert blank == ""
    cells = [row.strip("| ").split(" | ") for row in rows]
    assert cells[0][0] == "torch-eager-float32-cpu"
    assert [row[0] for row in cells[2:]] == ["forward pass", "all scores, p-values and flags", *get_args(ScoreName)]
    forward_ms = float(cells[2][1])
    for _, ms, share in cells[2:]:
        assert float(share) == pytest.approx(100 * float(ms) / forward_ms, abs=0.1)
