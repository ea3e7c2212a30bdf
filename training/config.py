"""The recipe: one TOML file is one experiment. Unknown keys fail."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, FiniteFloat, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from model_store.manifest import BundleName, Fraction, Frozen, NetworkSpec, OpenFraction, PreprocessSpec
from model_store.networks import build_network
from training.errors import RecipeError

RECIPES = Path(__file__).parent / "recipes"


class DataSpec(Frozen):
    """The image sets, each a path below the data folder (`cifar10/train`) or `torchvision:CIFAR10:train`."""

    train: str
    test: str
    outliers: str
    far_ood: dict[str, str] = Field(default_factory=dict)
    near_ood: dict[str, str] = Field(default_factory=dict)
    """OOD test sets by the name they get in tables; the far ones make the mean."""
    calibration_images: int = Field(ge=0)
    """Training images held out for calibration, stratified and seeded; 0 trains on all and calibrates nothing."""
    reencode_jpeg_quality: int | None = Field(default=None, ge=1, le=100)
    """Re-encode every set alike, so that sets of different encodings may be mixed."""

    @model_validator(mode="after")
    def _ood_names_are_unique(self) -> "DataSpec":
        if twice := self.far_ood.keys() & self.near_ood.keys():
            raise ValueError(f"{', '.join(sorted(twice))} stands in far_ood and near_ood; each OOD set is one of them")
        return self

    def sources(self) -> dict[str, str]:
        """Return every set's source by its role."""
        ood = {f"ood {name}": source for name, source in (self.far_ood | self.near_ood).items()}
        return {"train": self.train, "outliers": self.outliers, "test": self.test} | ood


class JpegAugment(Frozen):
    """Re-encode a share of every batch as JPEG, each image with a quality of its own."""

    share: Fraction
    quality_min: int = Field(ge=1, le=100)
    quality_max: int = Field(ge=1, le=100)

    @model_validator(mode="after")
    def _quality_is_a_range(self) -> "JpegAugment":
        if self.quality_min > self.quality_max:
            raise ValueError(f"quality_min is {self.quality_min}, above quality_max {self.quality_max}")
        return self


class AugmentSpec(Frozen):
    """Random changes of each training image, the same for in-distribution and outliers."""

    flip: bool = True
    crop_padding: int = Field(default=4, ge=0)
    noise_sd_max: FiniteFloat = Field(default=0.0, ge=0, le=64)
    """Gaussian noise, before JPEG: each image draws its own standard deviation, uniform in [0, this] grey levels."""
    jpeg: JpegAugment | None = None


class CrossEntropySpec(Frozen):
    """Plain classification."""

    kind: Literal["cross_entropy"] = "cross_entropy"


class _Margins(Frozen):
    """Where the two squared hinges of an energy regulariser begin."""

    margin_in: FiniteFloat
    margin_out: FiniteFloat
    weight: FiniteFloat = Field(default=0.1, ge=0)

    @model_validator(mode="after")
    def _margins_are_ordered(self) -> Self:
        if self.margin_in >= self.margin_out:
            raise ValueError(
                f"margin_in is {self.margin_in}, margin_out {self.margin_out}; in-distribution energies are the lower "
                "ones, so margin_in must be below margin_out (the paper: -23 and -5)"
            )
        return self


class EnergyBoundedSpec(_Margins):
    """Cross-entropy plus the energy-bounded regulariser, Liu et al. 2020, Eqs. 8 to 10."""

    kind: Literal["energy_bounded"] = "energy_bounded"


class BalancedEnergySpec(_Margins):
    """The same with outliers weighted by pi_k^gamma of the classes k that they resemble (Choi et al. 2023).

    pi_k: the share of the outliers that the network takes for class k before it is fine-tuned.
    """

    kind: Literal["balanced_energy"] = "balanced_energy"
    gamma: FiniteFloat = Field(default=0.5, ge=0)


class OutlierExposureSpec(Frozen):
    """Cross-entropy plus uniform predictions on outliers (Hendrycks et al., 2019)."""

    kind: Literal["outlier_exposure"] = "outlier_exposure"
    weight: FiniteFloat = Field(default=0.5, ge=0)


OutlierObjectiveSpec = Annotated[
    EnergyBoundedSpec | BalancedEnergySpec | OutlierExposureSpec, Field(discriminator="kind")
]
ObjectiveSpec = CrossEntropySpec | EnergyBoundedSpec | BalancedEnergySpec | OutlierExposureSpec


class MiningSpec(Frozen):
    """Of every batch's outliers only the hardest of each of so many clusters enters the objective."""

    clusters: int = Field(ge=1)


class OptimisationSpec(Frozen):
    """SGD with Nesterov momentum; the learning rate falls from its first value to 1e-6 on a half cosine, per step."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    learning_rate: FiniteFloat = Field(gt=0)
    momentum: Fraction = 0.9
    weight_decay: FiniteFloat = Field(default=5e-4, ge=0)


class PretrainSpec(OptimisationSpec):
    """The classifier, by cross-entropy."""


class FinetuneSpec(OptimisationSpec):
    """From the classifier's weights, with outliers in every batch."""

    outlier_batch_size: int = Field(ge=1)
    augment: AugmentSpec | None = None
    """Taken instead of the recipe's own, if given."""
    objective: OutlierObjectiveSpec
    mining: MiningSpec | None = None

    @model_validator(mode="after")
    def _outliers_fill_the_clusters(self) -> "FinetuneSpec":
        if self.mining and self.mining.clusters > self.outlier_batch_size:
            raise ValueError(
                f"mining.clusters is {self.mining.clusters}, outlier_batch_size {self.outlier_batch_size}; every "
                "cluster needs an outlier, so clusters must be at most outlier_batch_size"
            )
        return self


class ExecutionSpec(Frozen):
    """How training steps run. The last layer, energies and losses are float32 whatever the precision."""

    precision: Literal["float32", "bfloat16"] = "bfloat16"
    compile: bool = False


class CalibrateSpec(Frozen):
    """How the threshold is set on the held-out images' negative energies."""

    method: Literal["empirical", "conformal", "pac"] = "conformal"
    alpha: OpenFraction = 0.05
    delta: OpenFraction | None = None
    temperature: FiniteFloat = Field(default=1.0, gt=0)

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


class Recipe(Frozen):
    """One experiment, whole."""

    name: BundleName
    description: str
    seed: int = Field(default=0, ge=0, lt=2**31)
    network: NetworkSpec
    preprocess: PreprocessSpec
    data: DataSpec
    augment: AugmentSpec
    execution: ExecutionSpec = ExecutionSpec()
    pretrain: PretrainSpec | None = None
    start: str | None = None
    """A published bundle, `name@version`, whose network is fine-tuned instead of a classifier from scratch."""
    finetune: FinetuneSpec
    calibrate: CalibrateSpec = CalibrateSpec()
    evaluate: EvaluateSpec = EvaluateSpec()

    @field_validator("start")
    @classmethod
    def _start_names_a_version(cls, start: str | None) -> str | None:
        if start is not None and not re.fullmatch(r"[^@]+@[1-9][0-9]*", start):
            raise ValueError(f"start is {start!r}; name a bundle and its version, as in cifar10@1")
        return start

    @model_validator(mode="after")
    def _begins_somewhere(self) -> "Recipe":
        if (self.pretrain is None) == (self.start is None):
            raise ValueError("give either [pretrain], a classifier from scratch, or start, a published bundle")
        return self

    @model_validator(mode="after")
    def _network_exists(self) -> "Recipe":
        with torch.device("meta"):
            build_network(self.network)
        return self


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file; a bare name (`cifar10`) is one of the recipes that come with the package.

    Raises:
        RecipeError: no such file, no TOML, or fields that are missing, unknown or out of range.
    """
    shipped = RECIPES / f"{path.name.removesuffix('.toml')}.toml"
    if not path.is_file() and path.parent == Path() and shipped.exists():
        path = shipped
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text()))
    except OSError as err:
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
        raise RecipeError(f"no recipe at {path} ({err.strerror}); the package has {known}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise RecipeError(f"{path} is not TOML: {err}") from err
    except ValidationError as err:
        raise RecipeError(f"{path}: {'; '.join(map(fault, err.errors()))}") from err


def fault(error: ErrorDetails) -> str:
    """Say where in a file a value is wrong, what is allowed, and what was given."""
    where = ".".join(map(str, error["loc"])) or "recipe"
    given = "" if isinstance(error["input"], dict) else f" (given {error['input']!r})"  # a whole table says nothing
    return f"{where}: {error['msg']}{given}"
