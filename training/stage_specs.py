"""What a recipe says of each stage. Unknown keys fail."""

from itertools import product
from typing import Literal

from pydantic import Field, FiniteFloat, model_validator

from model_store.frozen import Frozen, OpenFraction
from model_store.score_specs import ScoreName
from training.augment_spec import AugmentSpec, JpegShare
from training.objective_spec import Margins, OutlierExposureSpec, OutlierObjectiveSpec, RankedExposureSpec


class MiningSpec(Frozen):
    """Of every batch's outliers only the hardest of each of so many clusters enters the objective."""

    clusters: int = Field(ge=1)


class SelectionSpec(Frozen):
    """Margins chosen by validation outliers: each pair is tried for a few epochs, without the validation images.

    `validation_images` are held out of the training images for as long, besides the calibration images.
    """

    margin_in: tuple[FiniteFloat, ...] = Field(min_length=1)
    margin_out: tuple[FiniteFloat, ...] = Field(min_length=1)
    epochs: int = Field(ge=1)
    validation_images: int = Field(ge=2)
    chosen: Margins | None = None
    """What came out, as a published recipe has it; no pair is tried then."""

    @model_validator(mode="after")
    def _pairs_are_margins(self) -> "SelectionSpec":
        for name, values in (("margin_in", self.margin_in), ("margin_out", self.margin_out)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} is {values}; each value is tried once")
        pairs = self.pairs  # which raises where margins are no pair
        if self.chosen is not None and self.chosen not in pairs:
            raise ValueError(f"chosen is {self.chosen}; it must be one of {', '.join(map(str, pairs))}")
        return self

    @property
    def pairs(self) -> tuple[Margins, ...]:
        """Every margin_in with every margin_out."""
        return tuple(Margins(margin_in=i, margin_out=o) for i, o in product(self.margin_in, self.margin_out))


class OptimisationSpec(Frozen):
    """SGD with Nesterov momentum; the learning rate falls from its first value to 1e-6 on a half cosine, per step.

    With a momentum of 0 it is SGD alone.
    """

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    learning_rate: FiniteFloat = Field(gt=0)
    momentum: FiniteFloat = Field(default=0.9, ge=0, lt=1)
    weight_decay: FiniteFloat = Field(default=5e-4, ge=0)
    averaged_epochs: int | None = Field(default=None, ge=1)
    """Stochastic weight averaging (Izmailov et al., 2018): the rate stays at its first value, and what the stage leaves
    is the mean of the weights over this many last epochs."""

    @model_validator(mode="after")
    def _averaged_epochs_are_some_of_them(self) -> "OptimisationSpec":
        if self.averaged_epochs is not None and self.averaged_epochs > self.epochs:
            raise ValueError(f"averaged_epochs is {self.averaged_epochs}; there are {self.epochs} epochs")
        return self


class PretrainSpec(OptimisationSpec):
    """The classifier, by cross-entropy."""


class FinetuneSpec(OptimisationSpec):
    """From the classifier's weights, with outliers in every batch."""

    outlier_batch_size: int = Field(ge=1)
    augment: AugmentSpec | None = None
    """Taken instead of the recipe's own, if given."""
    objective: OutlierObjectiveSpec
    mining: MiningSpec | None = None
    selection: SelectionSpec | None = None

    @model_validator(mode="after")
    def _margins_come_from_one_place(self) -> "FinetuneSpec":
        if isinstance(self.objective, OutlierExposureSpec | RankedExposureSpec):
            if self.selection:
                raise ValueError(f"selection chooses margins, and objective {self.objective.kind} has none")
        elif (self.objective.margin_in is None) == (self.selection is None):
            raise ValueError("give margin_in and margin_out in the objective, or [finetune.selection] to choose them")
        return self

    @model_validator(mode="after")
    def _averaged_epochs_are_some_of_a_trial_s(self) -> "FinetuneSpec":
        if self.selection and (self.averaged_epochs or 0) > self.selection.epochs:
            raise ValueError(
                f"averaged_epochs is {self.averaged_epochs}; selection.epochs, by which margins are tried, is "
                f"{self.selection.epochs} and must be at least as many"
            )
        return self

    @model_validator(mode="after")
    def _outliers_fill_the_clusters(self) -> "FinetuneSpec":
        if self.mining and self.mining.clusters > self.outlier_batch_size:
            raise ValueError(
                f"mining.clusters is {self.mining.clusters}, outlier_batch_size {self.outlier_batch_size}; every "
                "cluster needs an outlier, so clusters must be at most outlier_batch_size"
            )
        return self


class AverageSpec(Frozen):
    """The mean of networks is taken as it is, but for its batch-norm statistics, which are measured anew.

    On batches with outliers in each, as in fine-tuning. Of which networks: of the bundles that the recipe starts from,
    all alike; or, where it fine-tunes, of the classifier and the fine-tuned network (WiSE-FT; Wortsman et al., 2022),
    between which lies the choice between accuracy and distance of energies.
    """

    batch_size: int = Field(ge=2)
    outlier_batch_size: int = Field(ge=1)
    fine_tuned: OpenFraction | None = None
    """The weight of the fine-tuned network beside the classifier; for a recipe that fine-tunes, and only for that."""
    augment: AugmentSpec | None = None
    """Taken instead of the recipe's own, if given; that of a fine-tuning is not."""


class ExecutionSpec(Frozen):
    """How training steps run. The last layer, energies and losses are float32 whatever the precision."""

    precision: Literal["float32", "bfloat16"] = "bfloat16"
    compile: bool = False


class CalibrateSpec(Frozen):
    """How every score's threshold is set on the held-out images, and which score the flag is of."""

    method: Literal["empirical", "conformal", "pac"] = "conformal"
    alpha: OpenFraction = 0.05
    delta: OpenFraction | None = None
    temperature: FiniteFloat = Field(default=1.0, gt=0)
    """Of negative energy."""
    verdict: ScoreName = "negative_energy"
    jpeg: JpegShare | None = None
    """How many of the held-out images are sent as JPEG. The guarantee is for traffic that looks like them."""

    @model_validator(mode="after")
    def _delta_is_the_pac_methods(self) -> "CalibrateSpec":
        if (self.method == "pac") != (self.delta is not None):
            raise ValueError(
                f"method is {self.method!r}, delta {self.delta}; 'pac' needs a delta, the others take none"
            )
        return self


class EvaluateSpec(Frozen):
    """The test protocol: the mean over `draws` of 2,000 OOD images each."""

    draws: int = Field(default=10, ge=1)


class PublishSpec(Frozen):
    """What a bundle may be."""

    max_bytes: int | None = Field(default=None, ge=1)
    """Of all its files together. A recipe that cannot keep to it is refused, before training where its weights,
    calibration scores and statistics alone take more."""
