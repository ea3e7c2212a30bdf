"""Our bundles as models of the protocol: `NAME` takes pixels, `NAME-bytes` encoded image files."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from service.engine_protocol import Engine
from service.errors import UnknownModelError
from service.open_inference.schemas import IndexEntry, ModelConfig, ModelMetadata, TensorConfig, TensorMetadata
from service.served_models import Models

BYTES_SUFFIX = "-bytes"
INPUT = "IMAGE"
OutputName = Literal["LABEL", "LOGITS", "NEGATIVE_ENERGY", "IS_OOD"]
OUTPUTS: dict[OutputName, str] = {"LABEL": "INT64", "LOGITS": "FP32", "NEGATIVE_ENERGY": "FP32", "IS_OOD": "BOOL"}
"""Every output and its datatype, in the order in which they come unless others are asked for."""


class InputTensor(NamedTuple):
    """What a model takes: its datatype, and the shape of one image, empty where it is an encoded file."""

    datatype: Literal["UINT8", "BYTES"]
    sides: tuple[int, ...]

    @property
    def shape(self) -> list[int]:
        """The shape of the whole tensor; -1 is as many as one likes."""
        return [-1, *self.sides]


@dataclass(frozen=True)
class ServedModel:
    """An engine under one of its two names."""

    engine: Engine
    takes_files: bool

    @property
    def name(self) -> str:
        """The name that clients ask for."""
        return self.engine.bundle.manifest.name + (BYTES_SUFFIX if self.takes_files else "")

    @property
    def version(self) -> str:
        """The bundle's version, a text as the protocol wants it."""
        return str(self.engine.bundle.manifest.version)

    @property
    def input(self) -> InputTensor:
        """What it takes."""
        spec = self.engine.bundle.manifest.preprocess
        return InputTensor("BYTES", ()) if self.takes_files else InputTensor("UINT8", (spec.height, spec.width, 3))

    def output_sides(self, name: OutputName) -> list[int]:
        """Return the shape of an output beyond its first side, which is the images."""
        return [len(self.engine.bundle.manifest.classes)] if name == "LOGITS" else []


def find(models: Models, name: str, version: str | None) -> ServedModel:
    """Return what is served under a name; without a version, the newest that is loaded.

    Raises:
        UnknownModelError: nothing is.
        NotReadyError: it could not be loaded.
    """
    base = name.removesuffix(BYTES_SUFFIX)
    if "@" in base:
        raise UnknownModelError(f"model {name[:80]!r} is not served; a version goes into /versions/ of the path")
    return ServedModel(models.find(base if version is None else f"{base}@{version}"), takes_files=base != name)


def metadata(models: Models, model: ServedModel) -> ModelMetadata:
    """Describe a model: the versions that are served under its name, its inputs and its outputs."""
    name = model.engine.bundle.manifest.name
    manifests = [engine.bundle.manifest for engine in models.engines]
    return ModelMetadata(
        name=model.name,
        versions=[str(version) for version in sorted(m.version for m in manifests if m.name == name)],
        platform=model.engine.runtime_name,
        inputs=[TensorMetadata(name=INPUT, datatype=model.input.datatype, shape=model.input.shape)],
        outputs=[
            TensorMetadata(name=output, datatype=datatype, shape=[-1, *model.output_sides(output)])
            for output, datatype in OUTPUTS.items()
        ],
    )


def config(model: ServedModel, max_images: int) -> ModelConfig:
    """Describe a model as Triton's clients read it: dims are those of one image, a request may hold `max_images`."""
    return ModelConfig(
        name=model.name,
        platform=model.engine.runtime_name,
        max_batch_size=max_images,
        input=[_config(INPUT, model.input.datatype, list(model.input.sides))],
        output=[_config(output, datatype, model.output_sides(output)) for output, datatype in OUTPUTS.items()],
    )


def index(models: Models, *, ready_only: bool) -> list[IndexEntry]:
    """List every model under both of its names, and why one that is not ready is not."""
    entries = []
    for engine in models.engines:
        state: Literal["READY", "UNAVAILABLE"] = "READY" if engine.health == "ready" else "UNAVAILABLE"
        reason = "" if state == "READY" else f"the engine is {engine.health}"
        manifest = engine.bundle.manifest
        entries += _index(manifest.name, str(manifest.version), state, reason)
    for failed in models.failed:
        entries += _index(failed.ref.name, str(failed.ref.version or ""), "UNAVAILABLE", failed.reason)
    return [entry for entry in entries if entry.state == "READY" or not ready_only]


def _config(name: str, datatype: str, dims: list[int]) -> TensorConfig:
    # Triton wants at least one side beside that of the batch, and writes a scalar an image so.
    scalar = None if dims else {"shape": list[int]()}
    return TensorConfig(
        name=name, data_type=f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}", dims=dims or [1], reshape=scalar
    )


def _index(name: str, version: str, state: Literal["READY", "UNAVAILABLE"], reason: str) -> list[IndexEntry]:
    return [
        IndexEntry(name=name + suffix, version=version, state=state, reason=reason) for suffix in ("", BYTES_SUFFIX)
    ]
