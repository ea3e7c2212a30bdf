"""What was measured of a bundle, as its manifest has it; percent, in-distribution positive."""

from collections.abc import Sequence
from typing import Literal, TypeVar

from pydantic import Field, model_validator

from model_store.frozen import Fraction, Frozen, Percent
from model_store.score_specs import ScoreName


class Detection(Frozen):
    """How one score tells a test set from an OOD set, in percent, in-distribution positive."""

    fpr95: Percent
    auroc: Percent
    aupr: Percent


class OodSetEvaluation(Frozen):
    """One OOD set: both scores, and the share of it that the served threshold does not flag."""

    images: int = Field(ge=1)
    drawn: int = Field(ge=1)
    softmax: Detection
    energy: Detection
    missed: Percent | None


class ScoreOnOodSet(Detection):
    """One score on one OOD set, and the share of it that the score's own threshold does not flag."""

    missed: Percent


class ScoreEvaluation(Frozen):
    """One score of a bundle that carries several: the test images that its own threshold flags, and every OOD set."""

    false_flags: Percent
    ood: dict[str, ScoreOnOodSet]


class NetworkEvaluation(Frozen):
    """One network on the test set and every OOD set."""

    test_error: Percent
    ood: dict[str, OodSetEvaluation]


class ServedEvaluation(Frozen):
    """The test images as a user may send them: how many are classified right, how many are flagged, in percent."""

    images: int = Field(ge=1)
    accuracy: Percent
    false_flags: Percent


class OddInputEvaluation(Frozen):
    """Inputs that belong to no class: how many there were, what share is flagged, their mean p-value."""

    images: int = Field(ge=1)
    flagged: Percent
    mean_p_value: Fraction


class Evaluation(Frozen):
    """What was measured on images that neither training nor calibration saw.

    `scores` holds every score of a bundle that carries several, negative energy and the verdict among them, each at its
    own threshold. It is empty where negative energy is the only one, and in bundles older than it.
    """

    test_images: int = Field(ge=1)
    far_ood: tuple[str, ...]
    fine_tuned: NetworkEvaluation
    untuned: NetworkEvaluation | None = None
    served: dict[str, ServedEvaluation]
    odd_inputs: dict[str, OddInputEvaluation]
    scores: dict[ScoreName, ScoreEvaluation] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _scores_are_of_the_same_sets(self) -> "Evaluation":
        for name, score in self.scores.items():
            if score.ood.keys() != self.fine_tuned.ood.keys():
                raise ValueError(
                    f"scores.{name} is of the OOD sets {', '.join(score.ood) or 'none'}; the network was measured on "
                    f"{', '.join(self.fine_tuned.ood) or 'none'}"
                )
        return self

    def mean_over_far_ood(self, network: NetworkEvaluation, score: Literal["softmax", "energy"]) -> Detection:
        """Return the mean of softmax's or energy's figures over the far OOD sets, each set counting alike."""
        sets = [network.ood[name] for name in self.far_ood]
        return _mean([ood.softmax if score == "softmax" else ood.energy for ood in sets])

    def mean_of_score(self, score: ScoreName) -> ScoreOnOodSet:
        """Return the mean of the figures of one of `scores` over the far OOD sets, each set counting alike."""
        return _mean([self.scores[score].ood[name] for name in self.far_ood])


_Figures = TypeVar("_Figures", bound=Detection)


def _mean(figures: Sequence[_Figures]) -> _Figures:
    kind = type(figures[0])
    return kind(**{field: sum(getattr(f, field) for f in figures) / len(figures) for field in kind.model_fields})
