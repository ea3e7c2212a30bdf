"""What training minimises, as a recipe says it."""

from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from model_store.frozen import Frozen


class CrossEntropySpec(Frozen):
    """Plain classification."""

    kind: Literal["cross_entropy"] = "cross_entropy"


class Margins(Frozen):
    """The energies at which the two squared hinges of an energy regulariser begin."""

    margin_in: FiniteFloat
    margin_out: FiniteFloat

    @model_validator(mode="after")
    def _are_ordered(self) -> "Margins":
        if self.margin_in >= self.margin_out:
            raise ValueError(
                f"margin_in is {self.margin_in}, margin_out {self.margin_out}; in-distribution energies are the lower "
                "ones, so margin_in must be below margin_out (the paper: -23 and -5)"
            )
        return self

    def __str__(self) -> str:
        return f"in{self.margin_in:.10g}_out{self.margin_out:.10g}"


class _WithMargins(Frozen):
    """An objective with two margins; both are absent where `finetune.selection` chooses them."""

    margin_in: FiniteFloat | None = None
    margin_out: FiniteFloat | None = None
    weight: FiniteFloat = Field(default=0.1, ge=0)

    @model_validator(mode="after")
    def _margins_are_a_pair(self) -> Self:
        if (self.margin_in is None) != (self.margin_out is None):
            raise ValueError(f"margin_in is {self.margin_in}, margin_out {self.margin_out}; give both or neither")
        if self.margin_in is not None:
            _ = self.margins  # which raises where they are out of order
        return self

    @property
    def margins(self) -> Margins:
        """The margins.

        Raises:
            ValueError: there are none yet.
        """
        if self.margin_in is None or self.margin_out is None:
            raise ValueError("the objective has no margins; finetune.selection is to choose them")
        return Margins(margin_in=self.margin_in, margin_out=self.margin_out)


class EnergyBoundedSpec(_WithMargins):
    """Cross-entropy plus the energy-bounded regulariser, Liu et al. 2020, Eqs. 8 to 10."""

    kind: Literal["energy_bounded"] = "energy_bounded"


class BalancedEnergySpec(_WithMargins):
    """The same with outliers weighted by pi_k^gamma of the classes k that they resemble (Choi et al. 2023).

    pi_k: the share of the outliers that the network takes for class k before it is fine-tuned.
    """

    kind: Literal["balanced_energy"] = "balanced_energy"
    gamma: FiniteFloat = Field(default=0.5, ge=0)


class OutlierExposureSpec(Frozen):
    """Cross-entropy plus uniform predictions on outliers (Hendrycks et al., 2019)."""

    kind: Literal["outlier_exposure"] = "outlier_exposure"
    weight: FiniteFloat = Field(default=0.5, ge=0)


class RankedExposureSpec(Frozen):
    """Outlier Exposure plus a ranking of energies, `ranking` times: outliers above in-distribution images; ours.

    It has no margins, so it suits a network whatever the scale of its energies.
    """

    kind: Literal["ranked_exposure"] = "ranked_exposure"
    weight: FiniteFloat = Field(default=0.5, ge=0)
    ranking: FiniteFloat = Field(default=1.0, ge=0)


OutlierObjectiveSpec = Annotated[
    EnergyBoundedSpec | BalancedEnergySpec | OutlierExposureSpec | RankedExposureSpec, Field(discriminator="kind")
]
ObjectiveSpec = CrossEntropySpec | EnergyBoundedSpec | BalancedEnergySpec | OutlierExposureSpec | RankedExposureSpec
