"""A store of bundles: (name, version) to a local directory, `<root>/<name>/<version>/`."""

import shutil
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from model_store.bundle import MANIFEST, BundleDraft, load_bundle, read_manifest, write_bundle
from model_store.errors import BundleExistsError, BundleNotFoundError, IntegrityError
from model_store.refs import SHIPPED, VERSION, BundleRef

__all__ = ["SHIPPED", "BundleRef", "Store"]


class Store:
    """Bundles below one directory. Published versions are never changed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def refs(self) -> list[BundleRef]:
        """Return every published bundle, by name and version; half-copied ones do not count."""
        manifests = self.root.glob(f"*/*/{MANIFEST}")
        return sorted(
            BundleRef(path.parent.parent.name, int(path.parent.name))
            for path in manifests
            if VERSION.fullmatch(path.parent.name)
        )

    def resolve(self, ref: BundleRef) -> Path:
        """Return the directory of a published bundle.

        Raises:
            BundleNotFoundError: no such name or version, or one that may not be read.
            IntegrityError: the directory holds another bundle than its path says.
            ManifestError: its manifest is not one.
        """
        self._require_readable(ref)
        refs = self.refs()
        versions = [found.version for found in refs if found.name == ref.name and found.version is not None]
        version = ref.version or max(versions, default=None)
        if version not in versions:
            known = ", ".join(map(str, refs)) or "none"
            raise BundleNotFoundError(
                f"no bundle {ref} in {self.root}; there are: {known}. --store or OOD_STORE names another store"
            )
        folder = self.root / ref.name / str(version)
        manifest = read_manifest(folder)
        if (manifest.name, manifest.version) != (ref.name, version):
            raise IntegrityError(f"{folder} holds {manifest.name}@{manifest.version}; expected {ref.name}@{version}")
        return folder

    def _require_readable(self, ref: BundleRef) -> None:
        """Refuse what `refs` passes over because it may not be read, so that no older version stands in for it."""
        try:
            for folder in (self.root / ref.name).iterdir():
                if VERSION.fullmatch(folder.name) and ref.version in (None, int(folder.name)):
                    with suppress(FileNotFoundError, NotADirectoryError):
                        (folder / MANIFEST).stat()
        except PermissionError as err:
            raise BundleNotFoundError(f"{err.filename} cannot be read ({err.strerror}); give this user access") from err
        except (OSError, ValueError):  # there is no such name
            return

    def publish(self, draft: BundleDraft, version: int | None = None, newer_than: int = 0) -> Path:
        """Write a draft as the next version of its name, or as `version`; return its directory.

        It is loaded, golden images and all, before anyone can find it.

        newer_than: the next version is above this one, too, which may be another store's.

        Whoever else publishes meanwhile, one of them gets a version and the others the next.

        Raises:
            BundleExistsError: `version` was given and is taken.
            BundleError: the draft does not make a bundle that loads.
        """
        family = self.root / draft.manifest.name
        family.mkdir(parents=True, exist_ok=True)
        while True:
            chosen = version or max(self._next_version(draft.manifest.name), newer_than + 1)
            try:
                return _publish_as(family / str(chosen), draft)
            except BundleExistsError:
                if version is not None:
                    raise

    def _next_version(self, name: str) -> int:
        taken = [int(path.name) for path in (self.root / name).iterdir() if path.name.isascii() and path.name.isdigit()]
        return max(taken, default=0) + 1


def _publish_as(folder: Path, draft: BundleDraft) -> Path:
    """Write beside the version's directory, then claim it: a rename onto a directory with files in it fails."""
    manifest = draft.manifest.model_copy(update={"version": int(folder.name)})
    incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=folder.parent))
    try:
        write_bundle(incoming, replace(draft, manifest=manifest))
        load_bundle(incoming)
        incoming.chmod(0o755)
        incoming.rename(folder)
    except OSError as err:
        if not folder.exists():
            raise
        raise BundleExistsError(f"{manifest.name}@{folder.name} is published already; versions are immutable") from err
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    return folder
