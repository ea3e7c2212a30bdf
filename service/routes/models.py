"""What is served, and how the server is configured."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import SecretStr

import model_store
from model_store.images import DECODER
from model_store.score_specs import ScoreName
from service.engine_protocol import Described, Engine
from service.routes.documentation import error_responses
from service.schemas import CalibratedScore, InfoReply, ModelReply, ModelsReply, ServedModel
from service.served_models import FailedModel, Models
from service.settings import Settings
from service.state import state_of

router = APIRouter(tags=["models"])


@router.get("/models", responses=error_responses(401), summary="List the models")
async def models(request: Request) -> ModelsReply:
    """List what is served, the default model first, and what failed to load."""
    return ModelsReply(models=_served(state_of(request).models))


@router.get("/models/{model}", responses=error_responses(401, 404, 503), summary="Describe a model")
async def model(
    request: Request,
    model: Annotated[str, Path(description="`name`, its newest version that is loaded, or `name@version`.")],
) -> ModelReply:
    """Show one model, with the calibration of each score: its threshold and the histogram of its images."""
    served = state_of(request).models
    engine = served.find(model)
    described = _describe(engine, default=engine is served.entries[0])
    return ModelReply(**dict(described), calibrations=_calibrations(engine.bundle))


@router.get("/info", responses=error_responses(401), summary="Show what runs")
async def info(request: Request) -> InfoReply:
    """Show the effective configuration, versions and bundles."""
    state = state_of(request)
    return InfoReply(
        version=model_store.__version__,
        libraries={"python": platform.python_version(), "decoder": DECODER} | _installed(),
        settings=shown_settings(state.settings),
        models=_served(state.models),
    )


def shown_settings(settings: Settings) -> dict[str, str | int | float | bool | list[str] | None]:
    """Return every setting as it took effect; of secrets only how many there are."""
    shown: dict[str, str | int | float | bool | list[str] | None] = {}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, tuple):
            shown[name] = ["***" if isinstance(item, SecretStr) else item for item in value]
        else:
            shown[name] = value if isinstance(value, str | int | float | bool | None) else str(value)
    return shown


def _installed() -> dict[str, str]:
    found = {}
    for name in ("torch", "openvino", "fastapi", "uvicorn", "numpy"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _served(models: Models) -> list[ServedModel]:
    return [_describe(entry, default=at == 0) for at, entry in enumerate(models.entries)]


def _calibrations(bundle: Described) -> dict[ScoreName, CalibratedScore]:
    return {
        name: CalibratedScore(
            method=spec.method,
            alpha=spec.alpha,
            n=spec.n,
            k=spec.k,
            threshold=spec.threshold,
            edges=list(spec.histogram_edges),
            counts=list(bundle.calibration_counts[name]),
        )
        for name, spec in bundle.manifest.calibrations.items()
    }


def _describe(entry: Engine | FailedModel, *, default: bool) -> ServedModel:
    if isinstance(entry, FailedModel):
        return ServedModel(
            name=entry.ref.name, version=entry.ref.version, state="failed", default=default, reason=entry.reason
        )
    manifest = entry.bundle.manifest
    calibration = manifest.calibrations[manifest.verdict]
    return ServedModel(
        name=manifest.name,
        version=manifest.version,
        state=entry.health,
        default=default,
        sha256=entry.bundle.sha256,
        description=manifest.description,
        runtime=entry.runtime_name,
        classes=list(manifest.classes),
        input=f"{manifest.preprocess.height} x {manifest.preprocess.width} pixels, RGB",
        verdict=manifest.verdict,
        threshold=calibration.threshold,
        thresholds={name: manifest.calibrations[name].threshold for name in manifest.score_names},
        alpha=calibration.alpha,
        method=calibration.method,
    )
