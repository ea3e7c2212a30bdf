"""The bundles of a server, each with its own engine: one value, replaced as a whole, never changed."""

import logging
import time
from dataclasses import dataclass

from model_store.bundle import load_bundle
from model_store.errors import BundleNotFoundError
from model_store.store import BundleRef, Store
from service.engine import Engine
from service.errors import NotReadyError, StartError, UnknownModelError
from service.metrics import Metrics
from service.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FailedModel:
    """A bundle that was asked for and could not be loaded."""

    ref: BundleRef
    reason: str


@dataclass(frozen=True)
class Models:
    """What is served, in the order in which it was named; the first is the default."""

    entries: tuple[Engine | FailedModel, ...]

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The models that were loaded."""
        return tuple(entry for entry in self.entries if isinstance(entry, Engine))

    @property
    def failed(self) -> tuple[FailedModel, ...]:
        """Those that were not."""
        return tuple(entry for entry in self.entries if isinstance(entry, FailedModel))

    def default(self) -> Engine:
        """Return the first model's engine.

        Raises:
            NotReadyError: it is not loaded.
        """
        return _loaded(self.entries[0])

    def find(self, text: str) -> Engine:
        """Return the engine of `name` (the newest version that is loaded) or `name@version`.

        Raises:
            UnknownModelError: it is not served.
            NotReadyError: it is not loaded.
        """
        try:
            ref = BundleRef.parse(text)
        except BundleNotFoundError:
            raise UnknownModelError(f"model {text[:80]!r}: a version is a positive integer, as in cifar10@1") from None
        matching = [entry for entry in self.entries if _matches(entry, ref)]
        if not matching:
            served = ", ".join(label(entry) for entry in self.entries)
            raise UnknownModelError(f"model {text[:80]!r} is not served; there are: {served}")
        return _loaded(max([entry for entry in matching if isinstance(entry, Engine)] or matching, key=_version))

    def close(self) -> None:
        """Let every engine answer what waits, then stop."""
        for engine in self.engines:
            engine.close()


def load_models(settings: Settings, metrics: Metrics) -> Models:
    """Load, replay and warm every bundle of the settings.

    Raises:
        StartError: none of them could be loaded.
    """
    entries = tuple(_load(BundleRef.parse(name), settings, metrics) for name in settings.models)
    models = Models(entries)
    labels = [label(entry) for entry in entries]
    if twice := {name for name in labels if labels.count(name) > 1}:
        models.close()
        raise StartError(f"models names {', '.join(sorted(twice))} twice")
    if not models.engines:
        raise StartError("; ".join(f"{failed.ref}: {failed.reason}" for failed in models.failed))
    return models


def label(entry: Engine | FailedModel) -> str:
    """Return what a model is called, `name@version` where the version is known."""
    return entry.name if isinstance(entry, Engine) else str(entry.ref)


def _load(ref: BundleRef, settings: Settings, metrics: Metrics) -> Engine | FailedModel:
    begun = time.monotonic()
    try:
        bundle = load_bundle(
            Store(settings.store).resolve(ref),
            runtime=settings.runtime,
            cache_dir=settings.cache_dir,
            threads=settings.threads,
        )
        series = metrics.model(bundle.manifest)
        engine = Engine(
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


def _loaded(entry: Engine | FailedModel) -> Engine:
    if isinstance(entry, FailedModel):
        raise NotReadyError(f"model {entry.ref} could not be loaded: {entry.reason}")
    return entry


def _matches(entry: Engine | FailedModel, ref: BundleRef) -> bool:
    found = _ref(entry)
    return found.name == ref.name and ref.version in (None, found.version)


def _version(entry: Engine | FailedModel) -> int:
    return _ref(entry).version or 0


def _ref(entry: Engine | FailedModel) -> BundleRef:
    return entry.ref if isinstance(entry, FailedModel) else BundleRef.parse(entry.name)
