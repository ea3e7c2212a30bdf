"""What is handed over of one image: its content as it came, and what was found."""

from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from service.engine_protocol import Verdict

Kind = Literal["flagged", "control"]
DropReason = Literal["rate", "too_large", "queue_full", "disk_full", "write_failed", "killed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DROP_REASONS: tuple[DropReason, ...] = get_args(DropReason)


class Record(NamedTuple):
    """One image that is to be kept.

    `content` is the encoded file, or uint8 (H, W, 3) where pixels were sent. `model` is `name@version`, `sha256` its
    bundle's, `score` the one that the verdict is by; `time` in seconds since 1970.
    """

    kind: Kind
    model: str
    sha256: str
    score: str
    class_name: str
    verdict: Verdict
    time: float
    request_id: str
    content: bytes | NDArray[np.uint8]

    @property
    def bytes(self) -> int:
        """What the content takes in memory."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.nbytes


class CaptureMetrics(Protocol):
    """Where it is counted. Its methods are called on any thread."""

    def captured(self, kind: Kind, images: int) -> None:
        """Count images that are on disk, with their rows in the index."""

    def dropped(self, reason: DropReason, images: int = 1) -> None:
        """Count images that were chosen and are not kept."""

    def holds(self, total: int) -> None:
        """Say how many bytes the folder takes now."""
