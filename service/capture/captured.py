"""What a capture folder holds, read back."""

from dataclasses import dataclass
from pathlib import Path

from service.capture.folder import INDEX, is_segment
from service.capture.index import Row, read_index
from service.errors import CaptureError


@dataclass(frozen=True)
class CapturedImage:
    """A row of the index, and where its image lies."""

    row: Row
    path: Path


@dataclass(frozen=True)
class Captured:
    """All images, and why which segments could not be read."""

    images: list[CapturedImage]
    damaged: list[str]


def read_captured(folder: Path) -> Captured:
    """Read every index in a capture folder, or in a part of it; a server may write to it meanwhile.

    Raises:
        CaptureError: there is no such folder.
    """
    if not folder.is_dir():
        raise CaptureError(f"{folder} is no folder; give the one that OOD_CAPTURE_DIR names, or one within it")
    captured = Captured([], [])
    for path in sorted(folder.rglob(INDEX)):
        if not is_segment(path.parent):
            continue
        try:
            rows = read_index(path)
            captured.images.extend(CapturedImage(row, path.parent / Path(row.file).name) for row in rows)
        except FileNotFoundError:  # it was the oldest
            continue
        except CaptureError as err:
            captured.damaged.append(str(err))
    return captured
