"""Load the bundles of a server, each into an engine of its own."""

import logging
import time

from model_store.bundle import load_bundle
from model_store.refs import BundleRef
from model_store.store import Store
from service.engine import LocalEngine
from service.errors import StartError
from service.metrics import Metrics
from service.served_models import FailedModel, Models, label
from service.settings import Settings
from service.watching.state import Watched, require_folder

log = logging.getLogger(__name__)


def load_models(settings: Settings, metrics: Metrics) -> Models:
    """Load, replay and warm every bundle of the settings.

    Raises:
        StartError: none of them could be loaded, or there is no place for what is watched of them.
    """
    require_folder(settings.state_dir)
    entries = tuple(_load(BundleRef.parse(name), settings, metrics) for name in settings.models)
    models = Models(entries)
    labels = [label(entry) for entry in entries]
    if twice := {name for name in labels if labels.count(name) > 1}:
        models.close()
        raise StartError(f"models names {', '.join(sorted(twice))} twice")
    if not models.engines:
        raise StartError("; ".join(f"{failed.ref}: {failed.reason}" for failed in models.failed))
    return models


def watched(models: Models, metrics: Metrics) -> list[Watched]:
    """Return what is watched of each model that was loaded."""
    return [Watched(engine.name, engine.bundle.sha256, metrics.watch_of(engine.name)) for engine in models.engines]


def _load(ref: BundleRef, settings: Settings, metrics: Metrics) -> LocalEngine | FailedModel:
    begun = time.monotonic()
    try:
        bundle = load_bundle(
            Store(settings.store).resolve(ref),
            runtime=settings.runtime,
            cache_dir=settings.cache_dir,
            threads=settings.threads,
        )
        series = metrics.model(bundle.manifest)
        engine = LocalEngine(
            bundle,
            series,
            max_batch_size=settings.max_batch_size,
            max_queue_images=settings.max_queue_images,
            stall_s=settings.stall_s,
        )
        engine.start()
    except Exception as err:  # whatever it is, the models beside it are served
        log.error("model not loaded", extra={"model": str(ref), "reason": str(err)})
        metrics.model_up.labels(ref.name, str(ref.version or "")).set(0)
        return FailedModel(ref, str(err))
    series.loaded(bundle.sha256, engine.runtime_name, lambda: engine.health == "ready")
    seconds = round(time.monotonic() - begun, 3)
    log.info("model loaded", extra={"model": engine.name, "runtime": engine.runtime_name, "seconds": seconds})
    return engine
