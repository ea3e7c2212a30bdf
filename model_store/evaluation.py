"""What was measured of a bundle, as its manifest has it; percent, in-distribution positive."""

from typing import Literal

from pydantic import Field

from model_store.frozen import Fraction, Frozen, Percent


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
    """What was measured on images that neither training nor calibration saw."""

    test_images: int = Field(ge=1)
    far_ood: tuple[str, ...]
    fine_tuned: NetworkEvaluation
    untuned: NetworkEvaluation | None = None
    served: dict[str, ServedEvaluation]
    odd_inputs: dict[str, OddInputEvaluation]

    def mean_over_far_ood(self, network: NetworkEvaluation, score: Literal["softmax", "energy"]) -> Detection:
        """Return the mean of one score's figures over the far OOD sets, each set counting alike."""
        figures = [getattr(network.ood[name], score) for name in self.far_ood]
        return Detection(
            fpr95=sum(f.fpr95 for f in figures) / len(figures),
            auroc=sum(f.auroc for f in figures) / len(figures),
            aupr=sum(f.aupr for f in figures) / len(figures),
        )
