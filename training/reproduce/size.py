"""How large the experiments are: one TOML file a size, which says every count."""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, ValidationError, field_validator, model_validator

from model_store.frozen import Frozen, OpenFraction
from model_store.manifest import WideResNetSpec
from model_store.networks import outlined
from model_store.score_specs import ScoreName
from training.augment_spec import AugmentSpec
from training.config import fault
from training.errors import RecipeError
from training.objective_spec import Margins
from training.stage_specs import ExecutionSpec, FinetuneSpec, PretrainSpec
from training.synthetic_outliers import KINDS

SIZES = Path(__file__).parent / "sizes"
LARGEST_SEED = 2**31 - 1
Temperature = Annotated[FiniteFloat, Field(gt=0)]
Epsilon = Annotated[FiniteFloat, Field(ge=0)]
"""In the pixel range [0, 1]."""


class NetworkSize(Frozen):
    """A WideResNet, whatever it classifies."""

    depth: int = Field(ge=10, le=1000)
    widen_factor: int = Field(ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _can_be_built(self) -> "NetworkSize":
        outlined(self.spec(num_classes=2))
        return self

    @property
    def label(self) -> str:
        """Its name in results."""
        return f"WRN-{self.depth}-{self.widen_factor}"

    def spec(self, num_classes: int) -> WideResNetSpec:
        """Return the network for so many classes."""
        return WideResNetSpec(
            depth=self.depth, widen_factor=self.widen_factor, dropout=self.dropout, num_classes=num_classes
        )


class ValidationSize(Frozen):
    """What choices are made on: a share of the training images, stratified, and networks not trained on it."""

    own_network: bool = True
    """These networks are trained for that alone, and give no figure but those of Fig. 4b; all others see every training
    image. Otherwise no network sees the share, and choices are made on those of `seed` that figures are of."""
    share: OpenFraction
    images: int = Field(ge=2)
    """So many of the images held out stand for in-distribution; of these each kind of validation outliers is made."""
    seed: int = Field(ge=0, le=LARGEST_SEED)


class TemperatureExperiment(Frozen):
    """Fig. 4a: negative energy of the classifier at other temperatures."""

    temperatures: tuple[Temperature, ...] = Field(min_length=1)


class MarginExperiment(Frozen):
    """Fig. 4b, and the choice of margins: energy fine-tuning of the validation network with each pair of margins."""

    margin_in: tuple[FiniteFloat, ...] = Field(min_length=1)
    margin_out: tuple[FiniteFloat, ...] = Field(min_length=1)
    finetune: dict[str, Any] = Field(default_factory=dict)
    """Keys of the table `finetune` that are others here."""

    def pairs(self) -> tuple[Margins, ...]:
        """Return every pair of margins."""
        return tuple(Margins(margin_in=i, margin_out=o) for i in self.margin_in for o in self.margin_out)


class OdinGrid(Frozen):
    """What ODIN chooses from."""

    temperatures: tuple[Temperature, ...] = Field(min_length=1)
    epsilons: tuple[Epsilon, ...] = Field(min_length=1)


class MahalanobisGrid(Frozen):
    """What perturbed Mahalanobis chooses from."""

    epsilons: tuple[Epsilon, ...] = Field(min_length=1)


class FineTuning(Frozen):
    """One way to fine-tune the classifier, and the score that it is judged by."""

    title: str
    objective: dict[str, Any]
    """As in a recipe's `finetune.objective`; without margins if `margins` says where they come from."""
    margins: Literal["published", "chosen"] | None = None
    """`published`: the paper's; chosen where it has none. `chosen`: on validation outliers."""
    finetune: dict[str, Any] = Field(default_factory=dict)
    """Keys of the table `finetune` that are others here."""
    outliers: Literal["synthetic"] | None = None
    """`synthetic`: made of the training images; otherwise those of the benchmark. Margins are chosen with these."""
    score: ScoreName | Literal["chosen"] = "negative_energy"


class Size(Frozen):
    """Every count of the experiments."""

    name: str
    description: str
    seeds: tuple[int, ...] = Field(min_length=1)
    network: NetworkSize
    augment: AugmentSpec | None = None
    """Taken instead of the benchmark's own, if given."""
    execution: ExecutionSpec = ExecutionSpec()
    pretrain: PretrainSpec
    finetune: dict[str, Any]
    """What all fine-tunings share, as in a recipe's table; each adds its objective."""
    finetunings: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], FineTuning]
    validation: ValidationSize
    odin: OdinGrid
    mahalanobis: MahalanobisGrid
    temperature: TemperatureExperiment
    margins: MarginExperiment
    fit_images: int = Field(ge=2)
    """At most so many training images, stratified, are what scores are fitted on."""
    draws: int = Field(default=10, ge=1)
    resamples: int = Field(default=1000, ge=1)
    """Of the bootstrap."""

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) > LARGEST_SEED:
            raise ValueError(f"seeds are {seeds}; each must be another, from 0 to {LARGEST_SEED}")
        return seeds

    @model_validator(mode="after")
    def _choices_have_a_network(self) -> "Size":
        validation = self.validation
        if not validation.own_network and validation.seed not in self.seeds:
            raise ValueError(
                f"validation has no network of its own, and seeds are {self.seeds}; {validation.seed}, that of "
                "validation, must be one of them"
            )
        return self

    @model_validator(mode="after")
    def _fine_tunings_can_be_made(self) -> "Size":
        with _told_as("finetune"):  # whole by itself, since the report tells of it
            FinetuneSpec.model_validate(self.finetune | {"objective": {"kind": "outlier_exposure"}})
        with _told_as("margins"):
            pairs = self.margins.pairs()
            for pair in pairs:
                self.margin_trial(pair)
        for name, fine_tuning in self.finetunings.items():
            with _told_as(f"finetunings.{name}"):
                spec = self.finetune_spec(fine_tuning, pairs[0] if fine_tuning.margins else None)
            if fine_tuning.outliers and spec.outlier_batch_size < len(KINDS):
                raise ValueError(
                    f"finetunings.{name} has an outlier_batch_size of {spec.outlier_batch_size}; synthetic outliers "
                    f"are of {len(KINDS)} kinds, and a batch has one of each: take at least {len(KINDS)}"
                )
        return self

    def finetune_spec(self, fine_tuning: FineTuning, margins: Margins | None) -> FinetuneSpec:
        """Return a recipe's table `finetune`."""
        objective = fine_tuning.objective | (margins.model_dump() if margins else {})
        return FinetuneSpec.model_validate(self.finetune | fine_tuning.finetune | {"objective": objective})

    def margin_trial(self, margins: Margins) -> FinetuneSpec:
        """Return a recipe's table `finetune` for one point of Fig. 4b."""
        objective = {"kind": "energy_bounded"} | margins.model_dump()
        return FinetuneSpec.model_validate(self.finetune | self.margins.finetune | {"objective": objective})


@contextmanager
def _told_as(table: str) -> Iterator[None]:
    """Say in one line what is wrong with a table that others make up."""
    try:
        yield
    except ValidationError as err:
        raise ValueError(f"{table}: {'; '.join(map(fault, err.errors()))}") from None


def read_size(path: Path) -> Size:
    """Read a size's file; a bare name (`paper`) is one of those that come with the package.

    Raises:
        RecipeError: no such file, no TOML, or fields that are missing, unknown or out of range.
    """
    shipped = SIZES / f"{path.name.removesuffix('.toml')}.toml"
    if not path.is_file() and path.parent == Path() and shipped.exists():
        path = shipped
    try:
        return Size.model_validate({"name": path.stem} | tomllib.loads(path.read_text()))
    except OSError as err:
        known = ", ".join(sorted(size.stem for size in SIZES.glob("*.toml")))
        raise RecipeError(f"no size at {path} ({err.strerror}); the package has {known}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise RecipeError(f"{path} is not TOML: {err}") from err
    except ValidationError as err:
        raise RecipeError(f"{path}: {'; '.join(map(fault, err.errors()))}") from err
