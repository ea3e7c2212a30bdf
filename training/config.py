"""The recipe: one TOML file is one experiment. Unknown keys fail."""

import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from model_store.frozen import Frozen
from model_store.manifest import BundleName, NetworkSpec, OnnxSpec, PreprocessSpec
from model_store.networks import outlined
from model_store.score_specs import OFFLINE_ONLY, ScoreSpec, further_names
from training.augment_spec import AugmentSpec
from training.errors import RecipeError
from training.objective_spec import Margins
from training.stage_specs import (
    AverageSpec,
    CalibrateSpec,
    EvaluateSpec,
    ExecutionSpec,
    FinetuneSpec,
    PretrainSpec,
    PublishSpec,
    SelectionSpec,
)
from training.synthetic_outliers import KINDS

RECIPES = Path(__file__).parent / "recipes"
SYNTHETIC = "synthetic"
"""Stands for a set of outliers: they are made of the training images."""


class DataSpec(Frozen):
    """The image sets, each a path below the data folder (`cifar10/train`) or `torchvision:CIFAR10:train`."""

    train: str
    test: str
    outliers: str | None = None
    """A set, or `synthetic`: made of each batch's own training images. For a recipe that has a stage with outliers."""
    far_ood: dict[str, str] = Field(default_factory=dict)
    near_ood: dict[str, str] = Field(default_factory=dict)
    """OOD test sets by the name they get in tables; the far ones make the mean."""
    calibration_images: int = Field(ge=0)
    """Training images held out for calibration, of each class its share; 0 trains on all and calibrates nothing."""
    reencode_jpeg_quality: int | None = Field(default=None, ge=1, le=100)
    """Re-encode every set alike, so that sets of different encodings may be mixed."""

    @model_validator(mode="after")
    def _ood_names_are_unique(self) -> "DataSpec":
        if twice := self.far_ood.keys() & self.near_ood.keys():
            raise ValueError(f"{', '.join(sorted(twice))} stands in far_ood and near_ood; each OOD set is one of them")
        return self

    @property
    def outliers_are_synthetic(self) -> bool:
        """Whether outliers are made instead of read."""
        return self.outliers == SYNTHETIC

    def sources(self) -> dict[str, str]:
        """Return every set's source by its role; synthetic outliers have none."""
        ood = {f"ood {name}": source for name, source in (self.far_ood | self.near_ood).items()}
        outliers = {} if self.outliers is None or self.outliers_are_synthetic else {"outliers": self.outliers}
        return {"train": self.train} | outliers | {"test": self.test} | ood


class Recipe(Frozen):
    """One experiment, whole."""

    name: BundleName
    description: str
    seed: int = Field(default=0, ge=0, lt=2**31)
    network: NetworkSpec
    preprocess: PreprocessSpec
    data: DataSpec
    augment: AugmentSpec = AugmentSpec()
    execution: ExecutionSpec = ExecutionSpec()
    pretrain: PretrainSpec | None = None
    start: str | tuple[str, ...] | None = None
    """A published bundle, `name@version`, whose network training begins with instead of one from scratch.

    Of several the mean of their weights is taken (a model soup; Wortsman et al., 2022): they must be descendants of one
    network, or the mean is none.
    """
    weights: str | None = None
    """A file of weights, below the data folder, of a network that was trained elsewhere; instead of `start`."""
    finetune: FinetuneSpec | None = None
    average: AverageSpec | None = None
    scores: tuple[ScoreSpec, ...] = ()
    """What the bundle carries beside negative energy."""
    calibrate: CalibrateSpec = CalibrateSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    publish: PublishSpec = PublishSpec()

    @field_validator("start")
    @classmethod
    def _start_names_a_version(cls, start: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(start, tuple) and (not start or len(set(start)) < len(start)):
            raise ValueError(
                f"start is {list(start)}; a list is of different bundles, of whose weights the mean is taken: name "
                "each once, or leave it out"
            )
        for name in (start,) if isinstance(start, str) else start or ():
            if not re.fullmatch(r"[^@]+@[1-9][0-9]*", name):
                raise ValueError(f"start is {name!r}; name a bundle and its version, as in cifar10@1")
        return start

    @field_validator("scores", mode="before")
    @classmethod
    def _scores_take_one_pass(cls, scores: Any) -> Any:
        for spec in scores if isinstance(scores, list | tuple) else ():
            if isinstance(spec, dict) and spec.get("kind") in OFFLINE_ONLY:
                raise ValueError(
                    f"{spec['kind']} is offline only: it takes gradients and a second forward pass, which no bundle "
                    "does; leave it out"
                )
        return scores

    @model_validator(mode="after")
    def _verdict_is_a_score(self) -> "Recipe":
        names = ("negative_energy", *further_names(self.scores))
        if self.calibrate.verdict not in names:
            raise ValueError(
                f"calibrate.verdict is {self.calibrate.verdict!r}; the recipe's scores are {', '.join(names)}: add a "
                "table [[scores]] of that kind"
            )
        return self

    @property
    def starts(self) -> tuple[str, ...]:
        """The bundles that training begins with."""
        return (self.start,) if isinstance(self.start, str) else self.start or ()

    @property
    def origin(self) -> str:
        """What training begins with, in words."""
        if self.weights is not None:
            return self.weights
        bundles = ", ".join(self.starts)
        return f"the mean of {bundles}" if len(self.starts) > 1 else bundles or "a classifier from scratch"

    @model_validator(mode="after")
    def _begins_somewhere(self) -> "Recipe":
        if self.pretrain is None and self.start is None and self.weights is None:
            raise ValueError(
                "give [pretrain], a classifier from scratch; or start, a published bundle, or weights, a file: to "
                "train on from, or to take as it is"
            )
        if self.start is not None and self.weights is not None:
            raise ValueError(f"start is {self.start!r}, weights {self.weights!r}; a network begins with one of them")
        if len(self.starts) > 1 and not (self.pretrain or self.finetune or self.average):
            raise ValueError(
                f"start is {self.start!r}: the mean of bundles is no network before its batch norm is measured anew; "
                "give [average] or [finetune]"
            )
        return self

    @model_validator(mode="after")
    def _average_is_of_networks(self) -> "Recipe":
        if self.average and self.finetune is None and (self.pretrain or len(self.starts) < 2):
            raise ValueError(
                f"without [finetune], [average] is of the bundles that start names; start is {self.start!r}: "
                "name two or more, and no [pretrain]"
            )
        if self.average and (self.average.fine_tuned is None) != (self.finetune is None):
            raise ValueError(
                f"average.fine_tuned is {self.average.fine_tuned}; it is the weight of the fine-tuned network beside "
                "the classifier: give it with [finetune], and not without"
            )
        return self

    @model_validator(mode="after")
    def _onnx_is_taken_as_it_is(self) -> "Recipe":
        stages = {"pretrain": self.pretrain, "finetune": self.finetune, "average": self.average}
        asked = [f"[{name}]" for name, spec in stages.items() if spec]
        if isinstance(self.network, OnnxSpec) and asked:
            raise ValueError(f"an ONNX network cannot be trained; leave {', '.join(asked)} out")
        return self

    @model_validator(mode="after")
    def _outliers_are_of_a_stage(self) -> "Recipe":
        if (self.data.outliers is None) == (self.finetune is not None or self.average is not None):
            raise ValueError(
                f"data.outliers is {self.data.outliers!r}; [finetune] and [average] need a set or 'synthetic', and a "
                "recipe without them takes none"
            )
        return self

    @model_validator(mode="after")
    def _batches_hold_every_kind(self) -> "Recipe":
        sizes = [spec.outlier_batch_size for spec in (self.finetune, self.average) if spec]
        if self.data.outliers_are_synthetic and min(sizes) < len(KINDS):
            raise ValueError(
                f"outlier_batch_size is {min(sizes)}; synthetic outliers are of {len(KINDS)} kinds, and every batch "
                "needs one of each"
            )
        return self

    @property
    def finetuning(self) -> FinetuneSpec:
        """How the network is fine-tuned.

        Raises:
            RecipeError: it is not; the recipe averages.
        """
        if self.finetune is None:
            raise RecipeError(f"recipe {self.name} has no [finetune]: it takes {self.origin}")
        return self.finetune

    @property
    def averaging(self) -> AverageSpec:
        """How a mean is made a network.

        Raises:
            RecipeError: none is taken; the recipe only fine-tunes.
        """
        if self.average is None:
            raise RecipeError(f"recipe {self.name} has no [average]: no mean is taken")
        return self.average

    def with_chosen(self, margins: Margins) -> "Recipe":
        """Return the recipe with what its selection chose written beside it, as it is published."""
        selection = self.selection.model_copy(update={"chosen": margins})
        return self._with_finetune(selection=selection)

    def settled(self) -> "Recipe":
        """Return the recipe with the chosen margins in its objective, and nothing left to select.

        Raises:
            RecipeError: they are still to be chosen.
        """
        if self.finetuning.selection is None:
            return self
        if self.finetuning.selection.chosen is None:
            raise RecipeError(f"recipe {self.name} has no margins yet: run the stage select first")
        return self._with_margins(self.finetuning.selection.chosen)

    def trial(self, margins: Margins) -> "Recipe":
        """Return the recipe of the few epochs by which its selection tries margins."""
        return self._with_margins(margins)._with_finetune(epochs=self.selection.epochs)

    @property
    def selects_margins(self) -> bool:
        """Whether margins are still to be chosen."""
        return bool(self.finetune and self.finetune.selection and self.finetune.selection.chosen is None)

    @property
    def selection(self) -> SelectionSpec:
        """How margins are chosen.

        Raises:
            RecipeError: the recipe gives them.
        """
        if self.finetuning.selection is None:
            raise RecipeError(f"recipe {self.name} has no [finetune.selection]: its margins are given")
        return self.finetuning.selection

    def _with_margins(self, margins: Margins) -> "Recipe":
        objective = self.finetuning.objective.model_copy(update=margins.model_dump())
        return self._with_finetune(objective=objective, selection=None)

    def _with_finetune(self, **changes: Any) -> "Recipe":
        return self.model_copy(update={"finetune": self.finetuning.model_copy(update=changes)})

    @model_validator(mode="after")
    def _network_exists(self) -> "Recipe":
        outlined(self.network)
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
