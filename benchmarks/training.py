"""Training's own speed: its steps as they are beside the same steps on random images that lie on the device already.

What reading, gathering and augmenting cost is the difference. Both are epochs of one training, by turns, so they share
network, optimizer, compiled code and whatever else the machine does meanwhile.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from benchmarks.conditions import conditions
from benchmarks.spread import spread
from model_store.networks import NormalisedNetwork, build_network
from training.config import Recipe, read_recipe
from training.pipeline import Run
from training.progress import silent
from training.run_folder import write_weights
from training.step import Batch
from training.trainer import EpochBatches, Stage, Trainer

LEARNING_RATE = 1e-6
"""Random labels are learnt from; this keeps the network where it is."""


@dataclass(frozen=True)
class Round:
    """One turn of each, in images of both roles a second."""

    as_trained: float
    random_data: float

    @property
    def ratio(self) -> float:
        """The share of the speed on random data that training reaches."""
        return self.as_trained / self.random_data


@dataclass(frozen=True)
class StageSpeed:
    """One stage's rounds, of so many steps a turn and images a step."""

    stage: str
    images_per_step: int
    steps: int
    rounds: list[Round]


class Turns:
    """Batches of `real` in one epoch, one random batch over and over in another; which begins changes each round."""

    def __init__(self, real: EpochBatches, steps: int, device: torch.device) -> None:
        self.real = real
        self.steps = steps
        like = next(iter(real(Generator(device).manual_seed(0))))
        drawn = torch.randint(256, like.images.shape, dtype=torch.uint8, device=device)
        self.random = Batch(drawn, like.labels.clone())
        self.taken: list[str] = []

    def __len__(self) -> int:
        return self.steps

    def __call__(self, generator: Generator) -> Iterator[Batch]:
        """Yield one epoch, of the kind whose turn it is."""
        number, second = divmod(len(self.taken), 2)
        as_trained = bool(second) == bool(number % 2)
        self.taken.append("as_trained" if as_trained else "random_data")
        return itertools.islice(self.real(generator), self.steps) if as_trained else iter([self.random] * self.steps)


def measure(recipe: Recipe, data: Path, device: torch.device, *, steps: int, rounds: int) -> list[StageSpeed]:
    """Measure each training stage of a recipe, on networks that are not trained.

    Raises:
        DataError: a set that a stage needs is missing or unfit.
    """
    with tempfile.TemporaryDirectory() as folder:
        eager = recipe.execution.model_copy(update={"compile": False})  # for the one step that shows what a stage is
        run = Run(recipe.model_copy(update={"execution": eager}), data, Path(folder), device, _stop, silent)
        stages = [stage for train_stage in (run.pretrain, run.finetune) if (stage := _begun(recipe, train_stage))]
        return [measure_stage(recipe, stage, device, steps, rounds) for stage in stages]


def measure_stage(recipe: Recipe, stage: Stage, device: torch.device, steps: int, rounds: int) -> StageSpeed:
    """Train on the stage's batches and on random ones by turns, after a turn of each that warms up.

    steps: of one turn, at most; fewer if an epoch has no so many whole batches. The stage's own results stay.
    """
    full_batches = max(len(stage.batches) - 1, 1)  # the last one may be short
    turns = Turns(stage.batches, min(steps, full_batches), device)
    slow = {"epochs": 2 * (rounds + 1), "learning_rate": LEARNING_RATE}
    optimisation = stage.optimisation.model_copy(update=slow)
    measured = replace(
        stage,
        batches=turns,
        optimisation=optimisation,
        execution=recipe.execution,
        folder=stage.folder / "speed",
    )
    network = NormalisedNetwork(build_network(recipe.network), recipe.preprocess)
    speeds = [epoch.images_per_s for epoch in Trainer(device, silent).train(network, measured)]
    turn_of = [dict(zip(turns.taken[at : at + 2], speeds[at : at + 2], strict=True)) for at in range(0, len(speeds), 2)]
    warm = [Round(**{name: round(speed, 1) for name, speed in entry.items()}) for entry in turn_of[1:]]
    return StageSpeed(stage.name, len(turns.random.images), len(turns), warm)


def table(speeds: Sequence[StageSpeed]) -> str:
    """Return medians and ranges over the rounds, as Markdown."""
    lines = [
        "| stage | images a step | steps a turn | as trained, images/s | random data on the device, images/s | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for speed in speeds:
        figures = [
            spread([entry.as_trained for entry in speed.rounds], 0),
            spread([entry.random_data for entry in speed.rounds], 0),
            spread([entry.ratio for entry in speed.rounds], 3),
        ]
        lines.append(f"| {speed.stage} | {speed.images_per_step} | {speed.steps} | {' | '.join(figures)} |")
    return "\n".join(lines)


class _BegunError(Exception):
    """Carries a stage out of the training that has begun it."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.name)
        self.stage = stage


def _stop(stage: Stage, *_: object, **__: object) -> None:
    raise _BegunError(stage)


def _begun(recipe: Recipe, train_stage: Callable[[], object]) -> Stage | None:
    """Return a stage as training makes it, after its first step; None if there is nothing to train.

    Its folder then holds an untrained network as its result, for the next stage to go on from.
    """
    try:
        train_stage()
    except _BegunError as begun:
        write_weights(begun.stage.folder, build_network(recipe.network))
        return begun.stage
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return the exit status, 1 if a stage reaches less than was asked for."""
    options = _parser().parse_args(arguments)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    found: dict[str, Any] = {"conditions": conditions("benchmarks.training") | {"device": _name(device)}}
    speeds = measure(read_recipe(options.recipe), options.data, device, steps=options.steps, rounds=options.rounds)
    found["stages"] = [asdict(speed) for speed in speeds]
    where = found["conditions"]
    print(f"{where['command']}\n{where['device']}, {where['cores']} cores, torch {where['libraries']['torch']}")
    print(f"{table(speeds)}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    ratios = [statistics.median(entry.ratio for entry in speed.rounds) for speed in speeds]
    return 1 if min(ratios) < options.at_least else 0


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(conditions("")["cpu"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="training", description=__doc__)
    parser.add_argument("recipe", type=Path, help="a recipe file, or the name of a shipped one")
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds the image sets")
    parser.add_argument("--device", help="cuda, cuda:1, cpu; CUDA where there is one")
    parser.add_argument("--steps", type=int, default=50, help="how many steps a turn has")
    parser.add_argument("--rounds", type=int, default=5, help="how many turns each has, after one to warm up")
    parser.add_argument("--at-least", type=float, default=0.0, help="the ratio below which the exit status is 1")
    parser.add_argument("--out", type=Path, help="where to write all figures and their conditions, as JSON")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
