"""What a person sees of a run, by a clock of our own."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from training.progress import ConsoleProgress
from training.stage_specs import ExecutionSpec, OptimisationSpec
from training.trainer import Figures, Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Two epochs of 50 steps."""
    batches: Any = range(50)
    spec = OptimisationSpec(epochs=2, batch_size=2, learning_rate=0.1)
    return Stage("pretrain", lambda output, _: output.logits.sum(), batches, spec, ExecutionSpec(), 0, tmp_path)


def test_bar_shows_loss_accuracy_speed_and_time_left(stage: Stage) -> None:
    now = 0.0
    shown = io.StringIO()
    with ConsoleProgress(Console(file=shown, width=150, get_time=lambda: now)) as progress:
        for step in (0, 10, 20):  # a step a second, so after 20 of 100 there are 80 seconds left
            now = float(step)
            progress(stage, 0, step, Figures(loss=2.0 - step / 100, accuracy=step / 80, images_per_s=1234.5))
    last = shown.getvalue().splitlines()[-1]
    for part in ("pretrain", "20 %", "loss 1.8000  accuracy 25.00%  1,234 images/s", "0:00:20", "left:", "0:01:20"):
        assert part in last
    assert "epoch" not in shown.getvalue()


def test_end_of_an_epoch_leaves_a_line(stage: Stage) -> None:
    shown = io.StringIO()
    with ConsoleProgress(Console(file=shown, width=150)) as progress:
        progress(stage, 0, 50, Figures(loss=0.5, accuracy=0.75, images_per_s=20_000))
    line = "pretrain epoch 1/2  loss 0.5000  accuracy 75.00%  20,000 images/s"
    assert line in [printed.strip() for printed in shown.getvalue().splitlines()]
