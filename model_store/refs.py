"""What a bundle is asked for by, and where those are that ship. Imports no network library."""

import re
from dataclasses import dataclass
from pathlib import Path

from model_store.errors import BundleNotFoundError

SHIPPED = Path(__file__).parent / "bundles"
"""The store inside the package: the bundle that ships."""
VERSION = re.compile("[1-9][0-9]{0,8}")
"""How a version is written, in a reference and as a directory; 01 and 0 are nobody's."""


@dataclass(frozen=True, order=True)
class BundleRef:
    """A bundle's name, and its version or None for the newest."""

    name: str
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> "BundleRef":
        """Read `cifar10` or `cifar10@3`.

        Raises:
            BundleNotFoundError: the version is no positive integer, written as such.
        """
        name, at, version = text.partition("@")
        if at and not VERSION.fullmatch(version):
            raise BundleNotFoundError(
                f"{text!r}: the version is {version!r}; expected a positive integer, as in {name}@1"
            )
        return cls(name, int(version) if at else None)

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"
