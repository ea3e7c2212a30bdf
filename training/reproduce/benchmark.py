"""The image sets of the experiments: which are trained on, which are told apart from them, where they are found."""

import tomllib
from pathlib import Path

from pydantic import Field, model_validator

from model_store.frozen import Frozen
from model_store.manifest import PreprocessSpec
from training.augment_spec import AugmentSpec
from training.datasets import locate
from training.errors import DataError
from training.objective_spec import Margins
from training.torchvision_sets import TORCHVISION, download_command


class SourcesSpec(Frozen):
    """Where a set may be found, the paper's name for its own, and what differs."""

    sources: tuple[str, ...] = Field(min_length=1)
    paper: str | None = None
    published: str | None = None
    """What `published.toml` calls the paper's own."""
    differs: str


class InDistributionSpec(Frozen):
    """A labelled set that classifiers are trained on, and the OOD sets it is told apart from."""

    title: str
    classes: int = Field(ge=2)
    train: tuple[str, ...] = Field(min_length=1)
    test: tuple[str, ...] = Field(min_length=1)
    far_ood: tuple[str, ...] = Field(min_length=1)
    near_ood: tuple[str, ...]
    published_margins: Margins | None = None
    knn_k: int = Field(ge=1)


class Benchmark(Frozen):
    """All sets, and how their images are prepared: alike in every role."""

    preprocess: PreprocessSpec
    augment: AugmentSpec
    outliers: SourcesSpec
    in_distribution: dict[str, InDistributionSpec]
    ood: dict[str, SourcesSpec]

    @model_validator(mode="after")
    def _ood_sets_are_known(self) -> "Benchmark":
        for name, spec in self.in_distribution.items():
            if unknown := {*spec.far_ood, *spec.near_ood} - self.ood.keys():
                raise ValueError(f"in_distribution.{name} names {', '.join(sorted(unknown))}, which is no table of ood")
        return self


def read_benchmark() -> Benchmark:
    """Return the sets that come with the package."""
    return Benchmark.model_validate(tomllib.loads((Path(__file__).parent / "benchmark.toml").read_text()))


def find(sources: tuple[str, ...], data_dir: Path) -> str | None:
    """Return the first of the sources that is there, or None."""
    return next((source for source in sources if locate(source, data_dir) is not None), None)


def require(sources: tuple[str, ...], data_dir: Path) -> str:
    """Return the first of the sources that is there.

    Raises:
        DataError: none is; how to get each is said.
    """
    found = find(sources, data_dir)
    if found is None:
        raise DataError(f"no set {' or '.join(sources)} in {data_dir}. {ways_to_get(sources, data_dir)}")
    return found


def ways_to_get(sources: tuple[str, ...], data_dir: Path) -> str:
    """Return what a user does to make a missing set appear."""
    return " Or: ".join(_way_to_get(source, data_dir) for source in sources)


def _way_to_get(source: str, data_dir: Path) -> str:
    if source.startswith(TORCHVISION):
        return download_command(source, data_dir)
    folder = data_dir / source
    return f"Put {folder}.npz there (images uint8 (N, H, W, 3), labels, classes), or a folder {folder}/ of images."
