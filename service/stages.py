"""The stages of a request whose seconds are counted."""

from typing import Literal

Stage = Literal["decode", "queue", "forward", "total"]
STAGES: tuple[Stage, ...] = ("decode", "queue", "forward", "total")
