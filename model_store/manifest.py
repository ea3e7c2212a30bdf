"""The manifest: everything a bundle says about itself, as frozen models that forbid unknown fields."""

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, FiniteFloat, field_validator, model_validator

from model_store.evaluation import Evaluation
from model_store.frozen import Frozen, OpenFraction, Sha256
from model_store.optimisation import Optimisation
from model_store.score_specs import ScoreName, ScoreSpec, further_names

SCHEMA_VERSION = 3
"""What is written. Version 1 knew one score, negative energy, and version 2 no int8 and no figures of an optimisation;
both are read as they always were."""
Precision = Literal["float32", "bfloat16", "int8"]


def _free_for_variants(name: str) -> str:
    if name.endswith("-bytes"):
        raise ValueError(f"name is {name!r}; names ending in -bytes stand for the encoded-image variant when served")
    return name


BundleName = Annotated[
    str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"), AfterValidator(_free_for_variants)
]


class WideResNetSpec(Frozen):
    """A WideResNet of `model_store.networks`."""

    kind: Literal["wide_resnet"] = "wide_resnet"
    depth: int = Field(ge=10, le=1000)
    widen_factor: int = Field(ge=1, le=1000)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    num_classes: int = Field(ge=2)

    @property
    def title(self) -> str:
        """The short name that people use: WRN-40-2."""
        return f"WRN-{self.depth}-{self.widen_factor}"


class _LibraryClassifier(Frozen):
    name: str
    num_classes: int = Field(ge=2)

    @property
    def title(self) -> str:
        """The library's name for it."""
        return self.name


class TorchvisionSpec(_LibraryClassifier):
    """A classifier of `torchvision.models` that ends in a linear layer, named as `get_model` names it."""

    kind: Literal["torchvision"] = "torchvision"


class TimmSpec(_LibraryClassifier):
    """A classifier of timm that ends in a linear layer, named as `create_model` names it."""

    kind: Literal["timm"] = "timm"


class OnnxSpec(Frozen):
    """An ONNX graph up to the features, float32 (N, D), kept among the weights as so many bytes; then a linear layer.

    It is run as it is, not trained.
    """

    kind: Literal["onnx"] = "onnx"
    graph_bytes: int = Field(ge=1, lt=2**31)  # a protocol buffer has less than 2 GiB
    features: int = Field(ge=1, lt=2**31)
    num_classes: int = Field(ge=2)

    @property
    def title(self) -> str:
        """What it is; the architecture has no name here."""
        return "ONNX"


NetworkSpec = Annotated[WideResNetSpec | TorchvisionSpec | TimmSpec | OnnxSpec, Field(discriminator="kind")]


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


class QuantisedGraph(Frozen):
    """An int8 network, as files of the bundle: OpenVINO's intermediate representation up to the features.

    It takes uint8 (N, H, W, 3) and gives features float32 (N, D); the last layer is that of the weights, in float32.
    """

    structure: str
    weights: str
    images: int = Field(ge=1)
    """Training images that the ranges of its activations were measured on."""


class Execution(Frozen):
    """How the network is run, and how far a golden negative energy may stray, in its own units.

    Thresholds and golden values belong to this precision; the last layer and all scores are float32 in each.
    """

    precision: Precision = "float32"
    quantised: QuantisedGraph | None = None
    tolerance: float = Field(gt=0, allow_inf_nan=False)
    score_tolerances: dict[ScoreName, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """The same for each further score, in its own units."""

    @model_validator(mode="after")
    def _int8_has_a_graph(self) -> "Execution":
        if (self.precision == "int8") != (self.quantised is not None):
            given = "given" if self.quantised else "not given"
            raise ValueError(
                f"precision is {self.precision!r}, quantised is {given}; int8 needs a graph, the others have none"
            )
        return self


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
    def _delta_edges_and_k_fit(self) -> "Calibration":
        if (self.method == "pac") != (self.delta is not None):
            raise ValueError(
                f"method is {self.method!r}, delta {self.delta}; 'pac' needs a delta, the others have none"
            )
        if self.k > self.n:
            raise ValueError(f"k is {self.k}; it must be in 1 to n = {self.n}")
        if list(self.histogram_edges) != sorted(set(self.histogram_edges)):
            raise ValueError("histogram_edges must increase strictly")
        if self.threshold not in self.histogram_edges:
            raise ValueError(f"histogram_edges must hold the threshold {self.threshold}")
        return self


class GoldenImage(Frozen):
    """An encoded image in the bundle and what the whole path must make of it; `scores` holds the further scores."""

    file: str
    class_id: int = Field(ge=0)
    negative_energy: FiniteFloat
    scores: dict[ScoreName, FiniteFloat] = Field(default_factory=dict)


class ImageSetRecord(Frozen):
    """One set that went in.

    fitted: images of the set as it was read that had another size than the network's. in_training: images whose pixels
    are those of a training image or an outlier. uneven_classes: of the set that was trained on, how many images each
    class has; None where all have as many.
    """

    role: str
    name: str
    images: int = Field(ge=1)
    encoding: str
    sha256: Sha256
    fitted: int = Field(default=0, ge=0)
    in_training: int = Field(default=0, ge=0)
    uneven_classes: tuple[int, ...] | None = None


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
    """A bundle's own account. Written last: its presence says that every file it names is there.

    Negative energy, at `temperature`, is a score of every bundle; `scores` are the further ones. Each of them has its
    own calibration, and `verdict` is the one that p-value and flag are of.
    """

    schema_version: Literal[1, 2, 3] = 3
    name: BundleName
    version: int = Field(ge=1)
    description: str
    network: NetworkSpec
    classes: tuple[str, ...]
    preprocess: PreprocessSpec
    decoder: str
    execution: Execution
    temperature: float = Field(gt=0, allow_inf_nan=False)
    scores: tuple[ScoreSpec, ...] = ()
    verdict: ScoreName
    calibrations: dict[ScoreName, Calibration]
    golden: tuple[GoldenImage, ...] = Field(min_length=1)
    evaluation: Evaluation | None
    optimisation: Optimisation | None = None
    """What a precision below float32 was measured to cost and gain, where it was."""
    provenance: Provenance
    files: dict[str, FileEntry]

    @field_validator("files")
    @classmethod
    def _files_stay_inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for file in files:
            path = PurePosixPath(file)
            if path.is_absolute() or ".." in path.parts or str(path) != file or "\\" in file or "\0" in file:
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

    @model_validator(mode="after")
    def _scores_are_whole(self) -> "Manifest":
        """Hold every further score to a calibration, a tolerance and golden values of its own, and no other to any."""
        further = further_names(self.scores)
        if self.schema_version == 1 and further:
            raise ValueError(f"schema_version 1 knows negative_energy alone; scores holds {', '.join(further)}")
        if self.calibrations.keys() != {"negative_energy", *further}:
            raise ValueError(
                f"calibrations are of {_list(self.calibrations)}; the scores are {_list(self.score_names)}"
            )
        stated = {"execution.score_tolerances": self.execution.score_tolerances}
        stated |= {f"the scores of {golden.file}": golden.scores for golden in self.golden}
        for what, values in stated.items():
            if values.keys() != set(further):
                raise ValueError(f"{what} are of {_list(values)}; the further scores are {_list(further)}")
        measured = self.evaluation.scores if self.evaluation else {}
        if measured and measured.keys() != set(self.score_names):
            raise ValueError(f"evaluation.scores are of {_list(measured)}; the scores are {_list(self.score_names)}")
        return self

    @model_validator(mode="after")
    def _schema_knows_the_precision(self) -> "Manifest":
        if self.schema_version < 3 and (self.execution.precision == "int8" or self.optimisation is not None):
            raise ValueError(f"schema_version {self.schema_version} knows neither int8 nor optimisation; 3 does")
        return self

    @property
    def score_names(self) -> tuple[ScoreName, ...]:
        """Every score of the bundle, negative energy first."""
        return ("negative_energy", *(spec.kind for spec in self.scores))


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
