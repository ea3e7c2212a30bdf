"""The models of a server: one value, replaced as a whole, never changed."""

from dataclasses import dataclass

from model_store.errors import BundleNotFoundError
from model_store.refs import BundleRef
from service.engine_protocol import Engine
from service.errors import NotReadyError, UnknownModelError


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
        return tuple(entry for entry in self.entries if not isinstance(entry, FailedModel))

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
        return _loaded(
            max([entry for entry in matching if not isinstance(entry, FailedModel)] or matching, key=_version)
        )

    def close(self) -> None:
        """Let every engine answer what waits, then stop."""
        for engine in self.engines:
            engine.close()


def label(entry: Engine | FailedModel) -> str:
    """Return what a model is called, `name@version` where the version is known."""
    return str(entry.ref) if isinstance(entry, FailedModel) else entry.name


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
