"""The benchmark of training on small counts: what it compares, and that a slow loader shows."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import training as benchmark
from benchmarks.training import Round, StageSpeed, Turns, measure_stage, table
from model_store.networks import NetworkOutput
from training.config import Recipe, read_recipe
from training.stage_specs import ExecutionSpec, OptimisationSpec
from training.step import Batch
from training.trainer import Stage

CPU = torch.device("cpu")


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowBatches:
    """Three batches of four images, each two seconds of the clock in the making; the last is short."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __len__(self) -> int:
        return 3

    def __call__(self, _: torch.Generator) -> Iterator[Batch]:
        for rows in (4, 4, 1):
            self.clock.now += 2
            yield Batch(torch.full((rows, 32, 32, 3), 7, dtype=torch.uint8), torch.zeros(rows, dtype=torch.int64))


@pytest.fixture(scope="module")
def tiny() -> Recipe:
    return read_recipe(Path("tiny"))


def test_turns_are_training_and_random_data_and_the_first_changes() -> None:
    turns = Turns(SlowBatches(Clock()), 2, CPU)
    epochs = [[(batch.images == 7).all().item() for batch in turns(torch.Generator())] for _ in range(6)]
    assert turns.taken == ["as_trained", "random_data", "random_data", "as_trained", "as_trained", "random_data"]
    assert epochs == [[taken == "as_trained"] * 2 for taken in turns.taken]
    assert (turns.random.images.shape, turns.random.images.dtype) == ((4, 32, 32, 3), torch.uint8)
    assert len(turns.random.images.unique()) == 256


def test_time_that_batches_take_is_the_ratio(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of one second: four images a second alone, four in three seconds with batches that take two."""
    clock = Clock()
    monkeypatch.setattr("training.trainer.time.perf_counter", clock)

    def objective(output: NetworkOutput | torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        clock.now += 1
        return (output if isinstance(output, torch.Tensor) else output.logits).sum() * 0

    optimisation = OptimisationSpec(epochs=9, batch_size=4, learning_rate=0.1)
    stage = Stage("slow", objective, SlowBatches(clock), optimisation, ExecutionSpec(precision="float32"), 0, tmp_path)
    found = measure_stage(tiny, stage, CPU, steps=10, rounds=2)
    assert found == StageSpeed("slow", 4, 2, [Round(1.3, 4.0)] * 2)  # two whole batches, not the short one
    assert found.rounds[0].ratio == pytest.approx(1.3 / 4)


def test_stages_of_a_recipe_are_measured(image_sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new/speed.json"
    arguments = ["tiny", "--data", str(image_sets), "--device", "cpu", "--steps", "1", "--rounds", "1"]
    assert benchmark.main([*arguments, "--out", str(out), "--at-least", "1000"]) == 1
    written = json.loads(out.read_text())
    assert [(s["stage"], s["images_per_step"], len(s["rounds"])) for s in written["stages"]] == [
        ("pretrain", 50, 1),
        ("finetune", 100, 1),
    ]
    assert all(entry["as_trained"] > 0 < entry["random_data"] for s in written["stages"] for entry in s["rounds"])
    assert written["conditions"]["device"]
    printed = capsys.readouterr().out
    assert "benchmarks.training" in printed
    assert "| finetune | 100 | 1 |" in printed


def test_table_has_medians_and_ranges() -> None:
    rounds = [Round(90.0, 100.0), Round(190.0, 200.0), Round(50.0, 100.0)]
    assert table([StageSpeed("pretrain", 128, 50, rounds)]).splitlines()[-1] == (
        "| pretrain | 128 | 50 | 90 (50 to 190) | 100 (100 to 200) | 0.900 (0.500 to 0.950) |"
    )
