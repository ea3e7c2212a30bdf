"""The manifest: everything a bundle says about itself, as frozen models that forbid unknown fields."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

SCHEMA_VERSION = 1

Fraction = Annotated[float, Field(ge=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _free_for_variants(name: str) -> str:
    if name.endswith("-bytes"):
        raise ValueError(f"name is {name!r}; names ending in -bytes stand for the encoded-image variant when served")
    return name


BundleName = Annotated[
    str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"), AfterValidator(_free_for_variants)
]


class Frozen(BaseModel):
    """Immutable; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WideResNetSpec(Frozen):
    """A WideResNet of `model_store.networks`."""

    kind: Literal["wide_resnet"] = "wide_resnet"
    depth: int = Field(ge=10)
    widen_factor: int = Field(ge=1)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    num_classes: int = Field(ge=2)


class TorchvisionSpec(Frozen):
    """A classifier of `torchvision.models` that ends in a linear layer, named as `get_model` names it."""

    kind: Literal["torchvision"] = "torchvision"
    name: str
    num_classes: int = Field(ge=2)


NetworkSpec = Annotated[WideResNetSpec | TorchvisionSpec, Field(discriminator="kind")]


class PreprocessSpec(Frozen):
    """How a decoded image becomes the network's input.

    Resize, centre crop to (height, width), then (pixel / 255 - mean) / std per channel.
    `shorter_side` scales the shorter side to `resize_to` pixels and keeps the proportions;
    `stretch` scales to (height, width) and has no `resize_to`.
    """

    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    resize: Literal["shorter_side", "stretch"]
    resize_to: int | None = Field(default=None, ge=1, le=4096)
    crop: Literal["center"] = "center"
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
    antialias: Literal[True] = True
    colour: Literal["RGB"] = "RGB"
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[FiniteFloat, FiniteFloat, FiniteFloat]

    @field_validator("std")
    @classmethod
    def _std_is_positive(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError(f"std is {std}; each must be above 0")
        return std

    @model_validator(mode="after")
    def _resize_covers_the_crop(self) -> "PreprocessSpec":
        if self.resize == "stretch" and self.resize_to is not None:
            raise ValueError("resize 'stretch' takes no resize_to: it scales to height and width")
        if self.resize == "shorter_side" and (self.resize_to or 0) < max(self.height, self.width):
            raise ValueError(
                f"resize_to is {self.resize_to}; 'shorter_side' needs at least {max(self.height, self.width)}, "
                "the longer side of the crop"
            )
        return self


class Execution(Frozen):
    """How the network is run, and how far a golden negative energy may stray, in its own units."""

    precision: Literal["float32", "bfloat16"] = "float32"
    tolerance: float = Field(gt=0, allow_inf_nan=False)


ScoreName = Literal[
    "negative_energy",
    "max_softmax",
    "max_logit",
    "gen",
    "react",
    "scale",
    "knn",
    "mahalanobis",
    "relative_mahalanobis",
    "vim",
]
"""Every score that one forward pass gives; higher means more in-distribution."""


class NegativeEnergySpec(Frozen):
    """T logsumexp(f / T): Liu et al. 2020, Eq. 4."""

    kind: Literal["negative_energy"] = "negative_energy"
    temperature: FiniteFloat = Field(default=1.0, gt=0)


class MaxSoftmaxSpec(Frozen):
    """The greatest softmax probability: Hendrycks & Gimpel 2017."""

    kind: Literal["max_softmax"] = "max_softmax"


class MaxLogitSpec(Frozen):
    """The greatest logit: Hendrycks et al. 2022."""

    kind: Literal["max_logit"] = "max_logit"


class GenSpec(Frozen):
    """Minus the generalised entropy of the `top_classes` likeliest classes, all if there are fewer: Liu et al. 2023."""

    kind: Literal["gen"] = "gen"
    gamma: FiniteFloat = Field(default=0.1, gt=0)
    top_classes: int = Field(default=100, ge=1)


class ReactSpec(Frozen):
    """Negative energy of features cut off at a percentile of the training features: Sun et al. 2021."""

    kind: Literal["react"] = "react"
    percentile: OpenFraction = 0.9


class ScaleSpec(Frozen):
    """Negative energy of scaled features; those above each image's own percentile set the scale: Xu et al. 2024."""

    kind: Literal["scale"] = "scale"
    percentile: OpenFraction = 0.85


class KnnSpec(Frozen):
    """Minus the distance to the k-th nearest of `reference_rows` training features of unit length: Sun et al. 2022.

    The rows are drawn by `seed`, each class by its share; all are kept where there are fewer.
    """

    kind: Literal["knn"] = "knn"
    k: int = Field(default=50, ge=1)
    reference_rows: int = Field(default=5000, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _k_is_among_the_rows(self) -> "KnnSpec":
        if self.k > self.reference_rows:
            raise ValueError(f"k is {self.k}, above reference_rows = {self.reference_rows}")
        return self


class MahalanobisSpec(Frozen):
    """Minus the squared distance to the nearest class mean under one covariance: Lee et al. 2018, unperturbed.

    `ridge` times the mean variance of a feature is added to the covariance's diagonal, so that features that never
    vary leave it invertible.
    """

    kind: Literal["mahalanobis"] = "mahalanobis"
    ridge: FiniteFloat = Field(default=1e-6, gt=0)


class RelativeMahalanobisSpec(Frozen):
    """`mahalanobis` plus the squared distance under one Gaussian for all classes: Ren et al. 2021."""

    kind: Literal["relative_mahalanobis"] = "relative_mahalanobis"
    ridge: FiniteFloat = Field(default=1e-6, gt=0)


class VimSpec(Frozen):
    """Negative energy minus a virtual logit, the norm in the residual space: Wang et al. 2022.

    `residual_dimension` is how many directions that space has; half of the features' by default.
    """

    kind: Literal["vim"] = "vim"
    residual_dimension: int | None = Field(default=None, ge=1)

    def residual_of(self, width: int) -> int:
        """Return the number of directions for features of this width."""
        return width // 2 if self.residual_dimension is None else self.residual_dimension


ScoreSpec = Annotated[
    NegativeEnergySpec
    | MaxSoftmaxSpec
    | MaxLogitSpec
    | GenSpec
    | ReactSpec
    | ScaleSpec
    | KnnSpec
    | MahalanobisSpec
    | RelativeMahalanobisSpec
    | VimSpec,
    Field(discriminator="kind"),
]
"""A score and its hyperparameters; `kind` is its ScoreName."""


class Calibration(Frozen):
    """A threshold on one score and where it came from: flagged means score <= threshold, p <= k / (n + 1)."""

    method: Literal["empirical", "conformal", "pac"]
    alpha: OpenFraction
    delta: OpenFraction | None = None
    n: int = Field(ge=1)
    k: int = Field(ge=1)
    threshold: FiniteFloat
    histogram_edges: tuple[FiniteFloat, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _edges_and_k_fit(self) -> "Calibration":
        if self.k > self.n:
            raise ValueError(f"k is {self.k}; it must be in 1 to n = {self.n}")
        if list(self.histogram_edges) != sorted(set(self.histogram_edges)):
            raise ValueError("histogram_edges must increase strictly")
        if self.threshold not in self.histogram_edges:
            raise ValueError(f"histogram_edges must hold the threshold {self.threshold}")
        return self


class GoldenImage(Frozen):
    """An encoded image in the bundle and what the whole path must make of it."""

    file: str
    class_id: int = Field(ge=0)
    negative_energy: FiniteFloat


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


class ImageSetRecord(Frozen):
    """One set that went in."""

    role: str
    name: str
    images: int = Field(ge=1)
    encoding: str
    sha256: Sha256


class Provenance(Frozen):
    """Where the bundle comes from: enough to make it again."""

    created: str
    code_version: str
    recipe: dict[str, Any]
    seed: int
    data: tuple[ImageSetRecord, ...]
    libraries: dict[str, str]
    hardware: str
    stage_seconds: dict[str, float]


class FileEntry(Frozen):
    """A file of the bundle."""

    sha256: Sha256
    size_bytes: int = Field(ge=0)


class Manifest(Frozen):
    """A bundle's own account. Written last: its presence says that every file it names is there."""

    schema_version: Literal[1] = 1
    name: BundleName
    version: int = Field(ge=1)
    description: str
    network: NetworkSpec
    classes: tuple[str, ...]
    preprocess: PreprocessSpec
    decoder: str
    execution: Execution
    temperature: float = Field(gt=0, allow_inf_nan=False)
    verdict: ScoreName
    calibrations: dict[ScoreName, Calibration]
    golden: tuple[GoldenImage, ...] = Field(min_length=1)
    evaluation: Evaluation | None
    provenance: Provenance
    files: dict[str, FileEntry]

    @field_validator("files")
    @classmethod
    def _files_stay_inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for file in files:
            path = PurePosixPath(file)
            if path.is_absolute() or ".." in path.parts or str(path) != file or "\\" in file:
                raise ValueError(f"file {file!r} must be a plain path inside the bundle")
        return files

    @model_validator(mode="after")
    def _parts_agree(self) -> "Manifest":
        if len(self.classes) != self.network.num_classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(
                f"{len(self.classes)} classes for {self.network.num_classes} outputs; names must be unique"
            )
        if self.verdict not in self.calibrations:
            raise ValueError(f"verdict is {self.verdict!r}, which calibrations do not hold")
        for golden in self.golden:
            if golden.class_id >= len(self.classes):
                raise ValueError(f"{golden.file} expects class {golden.class_id} of {len(self.classes)}")
        return self
