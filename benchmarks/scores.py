"""What every one-pass score costs beside the forward pass that it comes from.

The network is a shipped bundle's, on the runtimes that serve it on this machine. Scores are fitted on seeded random
features, as many as bundles keep: what a score costs depends on shapes alone.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from pydantic import TypeAdapter

from benchmarks.conditions import conditions
from model_store import calibration
from model_store.bundle import load_bundle
from model_store.predictor import CalibratedScore, Predictor
from model_store.runtimes import RuntimeChoice
from model_store.score_specs import ScoreName, ScoreSpec
from model_store.scores import Head, OnePassScore
from model_store.store import SHIPPED, BundleRef, Store
from training.fit_scores import fit_score

TRAINING_ROWS = 6000
CALIBRATION_ROWS = 5000
RUNTIMES: tuple[RuntimeChoice, ...] = ("torch-eager", "openvino")
WARM_UP = 3


@dataclass(frozen=True)
class Cost:
    """Median seconds of one forward pass, of all scores with their verdicts, and of each score alone."""

    runtime: str
    forward_s: float
    all_s: float
    each_s: dict[ScoreName, float]

    def __str__(self) -> str:
        rows = [("forward pass", self.forward_s), ("all scores, p-values and flags", self.all_s), *self.each_s.items()]
        lines = [f"| {self.runtime} | ms | % of the forward pass |", "| --- | --- | --- |"]
        lines += [f"| {name} | {1000 * s:.3f} | {100 * s / self.forward_s:.2f} |" for name, s in rows]
        return "\n".join(lines)


def fitted_scores(head: Head) -> list[OnePassScore]:
    """Return every score with its default hyperparameters, fitted on random features."""
    generator = torch.Generator().manual_seed(0)
    classes, width = head.weight.shape
    labels = torch.arange(TRAINING_ROWS) % classes
    means = torch.rand(classes, width, generator=generator)
    features = (means[labels] + torch.randn(TRAINING_ROWS, width, generator=generator)).relu()
    spec = TypeAdapter[ScoreSpec](ScoreSpec)
    return [fit_score(spec.validate_python({"kind": kind}), features, labels, head) for kind in get_args(ScoreName)]


def measure(model: str, runtime: RuntimeChoice, batch_size: int, repeats: int) -> Cost:
    """Time forward passes and scores by turns, so that what else the machine does meets both alike."""
    bundle = load_bundle(
        Store(SHIPPED).resolve(BundleRef.parse(model)),
        runtime=runtime,
        device=torch.device("cpu"),
        threads=torch.get_num_threads(),
    )
    scorer, random = bundle.predictor.scorer, np.random.default_rng(0)
    shape = (bundle.manifest.preprocess.height, bundle.manifest.preprocess.width, 3)
    images = random.integers(0, 256, (batch_size, *shape), dtype=np.uint8)
    scores = fitted_scores(_head(bundle.manifest.network.num_classes, scorer.score(images).features.shape[1]))
    stored = np.sort(random.normal(size=CALIBRATION_ROWS).astype(np.float32))
    threshold = calibration.threshold(stored, CALIBRATION_ROWS // 20)
    predictor = Predictor(scorer, {score.name: CalibratedScore(score, stored, threshold) for score in scores})
    scored = scorer.score(images)
    steps: dict[str, Callable[[], object]] = {
        "forward": lambda: scorer.runtime.finish(scorer.start(images)),
        "all": lambda: predictor.judge_by_all(scored),
        **{score.name: lambda score=score: score(scored.output) for score in scores},  # type: ignore[misc]
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(WARM_UP + repeats):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            if repeat >= WARM_UP:
                seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    each = {score.name: medians[score.name] for score in scores}
    return Cost(scorer.runtime.name, medians["forward"], medians["all"], each)


def _head(classes: int, width: int) -> Head:
    generator = torch.Generator().manual_seed(1)
    return Head(torch.randn(classes, width, generator=generator), torch.randn(classes, generator=generator))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table a runtime."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scores", description=__doc__)
    parser.add_argument("--model", default="cifar10", help="the bundle, of those that ship")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    given = parser.parse_args(arguments)
    where = conditions("benchmarks.scores")
    print(
        f"{where['command']}: {given.model}, batch {given.batch}, medians of {given.repeats}; {where['cpu']}, "
        f"{where['torch_default_threads']} of {where['cores']} cores, load {where['load_average_before']} before, "
        f"torch {where['libraries']['torch']}, {where['date']}"
    )
    for runtime in given.runtimes:
        print(f"\n{measure(given.model, runtime, given.batch, given.repeats)}")


if __name__ == "__main__":
    main()
