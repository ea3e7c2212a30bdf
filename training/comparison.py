"""A network as it was optimised beside the float32 one: logits, verdicts, figures and speed."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch
from numpy.typing import NDArray

from model_store.bundle import Bundle
from model_store.optimisation import Compared, Optimisation
from model_store.predictor import Predictor, Scores
from training.evaluate import NetworkScores, TestSets, detection, percent
from training.hardware import hardware
from training.publish import code_version
from training.throughput import BATCH_SIZE, images_per_second

LIBRARIES = ("torch", "numpy", "openvino", "nncf")
"""Those of them that are installed are named."""


@dataclass(frozen=True)
class Measured:
    """A predictor and what its network said of the test images and OOD sets."""

    predictor: Predictor
    scores: NetworkScores

    @property
    def pieces(self) -> list[Scores]:
        """Return the scores of every set."""
        return [self.scores.test, *self.scores.ood.values()]

    def flags(self, predictor: Predictor) -> NDArray[np.bool_]:
        """Return what a predictor's thresholds say of every image, bool (N,)."""
        return np.concatenate([predictor.judge(scores).is_ood for scores in self.pieces])


@dataclass(frozen=True)
class Comparison:
    """What is compared: the bundle that was optimised, on which sets and hardware, by which draws."""

    source: Bundle
    sets: TestSets
    device: torch.device
    draws: int
    seed: int


def compare(before: Measured, after: Measured, by: Comparison) -> Optimisation:
    """Return the figures of a network in a lower precision beside those of float32, both timed here and now.

    before: the source bundle under eager PyTorch. after: the network as it was optimised, at its own thresholds.
    """
    manifest, verdicts = by.source.manifest, before.flags(before.predictor)
    runtimes = [each.predictor.scorer.runtime for each in (before, after)]
    speeds = images_per_second(runtimes, by.sets.test.subset(np.arange(min(BATCH_SIZE, len(by.sets.test)))).images)
    return Optimisation(
        source=f"{manifest.name}@{manifest.version}",
        source_sha256=by.source.sha256,
        runtime=after.predictor.scorer.runtime.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=code_version(),
        libraries=_versions(),
        hardware=hardware(by.device),
        images=len(verdicts),
        max_logit_difference=round(_max_logit_difference(before.pieces, after.pieces), 6),
        changed_classes=percent(
            np.concatenate([a.class_id != b.class_id for a, b in zip(before.pieces, after.pieces, strict=True)])
        ),
        flipped=percent(after.flags(after.predictor) != verdicts),
        flipped_uncalibrated=percent(after.flags(before.predictor) != verdicts),
        accuracy=_compared([percent(each.scores.test.class_id == by.sets.test.labels) for each in (before, after)]),
        fpr95=_compared([_fpr95(each, by) for each in (before, after)]) if by.sets.ood else None,
        images_per_second=_compared([round(speed, 1) for speed in speeds]),
        batch_size=BATCH_SIZE,
    )


def _compared(figures: Sequence[float]) -> Compared:
    float32, optimised = figures
    return Compared(float32=float32, optimised=optimised)


def _max_logit_difference(before: Sequence[Scores], after: Sequence[Scores]) -> float:
    return max(float((a.logits - b.logits).abs().max()) for a, b in zip(before, after, strict=True))


def _fpr95(measured: Measured, by: Comparison) -> float:
    """Return the verdict's, the mean over the far OOD sets, or over the near ones where there are no others."""
    score = measured.predictor.scores[measured.predictor.verdict].score
    test = score(measured.scores.test.output).numpy()
    sets = [score(measured.scores.ood[name].output).numpy() for name in by.sets.far_ood or by.sets.near_ood]
    return round(float(np.mean([detection(test, ood, by.draws, by.seed).fpr95 for ood in sets])), 4)


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
