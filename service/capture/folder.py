"""The folder of captured images on disk: segments that appear and vanish as a whole, within a quota, oldest first out.

    <root>/<model>@<version>/<flagged | control>/<segment>/
        index.parquet               a row an image
        <segment>-<number>.<jpg | png | ...>

A segment is a few images and their index. It is written beside, in `.writing`, and renamed to its place, so that it is
there whole or not at all, whenever a process is killed. All processes that write share the folder: each holds `.lock`
while it changes something, so whatever lies in `.writing` when a process gets the lock was left by one that is gone,
and the quota is one for all.
"""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service.capture.record import KINDS, Kind

INDEX = "index.parquet"
BLOCK_BYTES = 4096
_LOCK, _WRITING = ".lock", ".writing"
_TIME = "%Y%m%dT%H%M%S.%fZ"
_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z-[0-9a-f]{8}")
_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600


@dataclass(frozen=True)
class Segment:
    """Files by name, of images that one model put into one kind; `name` orders segments by time."""

    model: str
    kind: Kind
    name: str
    files: Mapping[str, bytes]

    @property
    def bytes(self) -> int:
        """What it takes on disk."""
        return BLOCK_BYTES + sum(on_disk(len(content)) for content in self.files.values())


def segment_name() -> str:
    """Return a name that no other segment has; later ones sort behind it."""
    return f"{datetime.now(UTC).strftime(_TIME)}-{secrets.token_hex(4)}"


def on_disk(size: int) -> int:
    """Return the bytes that a file of `size` bytes takes, in blocks of 4 KiB, as file systems commonly have them."""
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


class CaptureFolder:
    """One process's view of the folder. One thread uses it; it waits for other processes that change something."""

    def __init__(self, root: Path, *, max_bytes: int, max_age: timedelta) -> None:
        self.bytes = 0
        """What all segments took when it was last looked."""
        self._root = root
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._sizes: dict[Path, int] = {}

    def add(self, segment: Segment) -> None:
        """Put a segment in its place, after as many of the oldest as there is no room for have gone.

        Raises:
            OSError: the disk is full, or the folder can't be written.
        """
        with self._locked():
            self._make_room(segment.bytes)
            self._write(segment)

    def tidy(self) -> None:
        """Remove what processes that were killed have left, what is too old and what is above the quota.

        Raises:
            OSError: the folder can't be written.
        """
        with self._locked():
            self._make_room(0)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock, which the kernel takes from a process that ends."""
        _make_private(self._root)
        descriptor = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT, _PRIVATE_FILE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, needed: int) -> None:
        if (self._root / _WRITING).exists():
            shutil.rmtree(self._root / _WRITING)
        self._sizes = {path: self._sizes.get(path) or _size(path) for path in segments(self._root)}
        self.bytes = sum(self._sizes.values())
        expired = (datetime.now(UTC) - self._max_age).strftime(_TIME)
        for path in sorted(self._sizes, key=lambda path: path.name):
            if path.name >= expired and self.bytes + needed <= self._max_bytes:
                break
            self._remove(path)

    def _remove(self, path: Path) -> None:
        """Take a segment away as a whole, then delete it."""
        gone = self._draft(path.name)
        path.rename(gone)
        self.bytes -= self._sizes.pop(path)
        shutil.rmtree(gone)

    def _write(self, segment: Segment) -> None:
        draft, place = self._draft(segment.name), self._root / segment.model / segment.kind
        try:
            for folder in (draft, place.parent, place):
                _make_private(folder)
            for name, content in segment.files.items():
                _write_private(draft / name, content)
            draft.rename(place / segment.name)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        self._sizes[place / segment.name] = segment.bytes
        self.bytes += segment.bytes

    def _draft(self, name: str) -> Path:
        _make_private(self._root / _WRITING)
        return self._root / _WRITING / name


def segments(root: Path) -> Iterator[Path]:
    """Give the segments in a folder, in no order; what has another name is none of ours."""
    for model in _folders(root):
        for kind in KINDS:
            for path in _folders(model / kind):
                if is_segment(path):
                    yield path


def is_segment(path: Path) -> bool:
    """Return whether a folder has a name that we give, and is none that is being written or removed."""
    return bool(_NAME.fullmatch(path.name)) and path.parent.name != _WRITING


def _folders(path: Path) -> Iterator[Path]:
    if path.is_dir():
        with os.scandir(path) as entries:
            yield from (Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False))


def _size(path: Path) -> int:
    with os.scandir(path) as entries:
        return BLOCK_BYTES + sum(on_disk(entry.stat(follow_symlinks=False).st_size) for entry in entries)


def _make_private(path: Path) -> None:
    if not path.is_dir():
        path.mkdir(_PRIVATE_FOLDER, parents=True, exist_ok=True)


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE_FILE)
    with open(descriptor, "wb") as file:  # noqa: PTH123
        file.write(content)
