"""What is watched survives a restart: a file a model, version and bundle, in a folder of this server's own."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from service.errors import StartError
from service.watching.watch import Watch

SAVE_S = 10.0
"""How often it is saved; what came since is lost to a process that is killed."""
log = logging.getLogger(__name__)


class WatchState(BaseModel):
    """Frozen; unknown fields are an error. Of one bundle: its window and its alarm, but no counters.

    Format 1 knew no negative energies; a window of it goes on without those of its images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1, 2] = 2
    model: str
    sha256: str
    p_values: list[Annotated[float, Field(gt=0, le=1)]]
    energy_buckets: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    cusum: float = Field(ge=0, allow_inf_nan=False)
    shifted: bool


class Watched(NamedTuple):
    """A model, `name@version`, its bundle's SHA-256, and what is watched of it."""

    model: str
    sha256: str
    watch: Watch

    def state(self) -> WatchState:
        """Return what is to be kept, a copy."""
        watch = self.watch
        return WatchState.model_construct(
            model=self.model,
            sha256=self.sha256,
            p_values=list(watch.p_values),
            energy_buckets=list(watch.energy_buckets),
            cusum=watch.cusum.statistic,
            shifted=watch.cusum.shifted,
        )


def require_folder(folder: Path | None) -> None:
    """Make the folder of states, if there is to be one.

    Raises:
        StartError: it can't be made or written to.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as err:
        raise StartError(f"state_dir is {folder}, which can't be written to ({err.strerror}); name another") from err


@asynccontextmanager
async def kept(folder: Path | None, watched: Sequence[Watched]) -> AsyncIterator[None]:
    """Restore what is watched, save it from time to time, off the event loop, and at the end; if there is a folder."""
    if folder is None:
        yield
        return
    for model in watched:
        restore(folder, model)
    ending = asyncio.Event()
    saving = asyncio.ensure_future(_save_on(folder, watched, ending))
    try:
        yield
    finally:
        ending.set()
        await saving


def restore(folder: Path, watched: Watched) -> None:
    """Restore a model's state, if there is one; set it aside if it can't be read or is another bundle's."""
    path = _path(folder, watched)
    try:
        state = WatchState.model_validate_json(path.read_bytes())
        if (state.model, state.sha256) != (watched.model, watched.sha256):
            raise ValueError(f"it is of {state.model[:80]} with sha256 {state.sha256[:80]}")
        watched.watch.restore(state.p_values, state.energy_buckets, state.cusum, shifted=state.shifted)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as err:
        aside = path.with_suffix(".set-aside")
        with suppress(OSError):
            path.replace(aside)
        reason = " ".join(str(err).split())[:200]
        log.warning("state set aside", extra={"model": watched.model, "file": str(aside), "reason": reason})
        return
    log.info("state restored", extra={"model": watched.model, "images": len(state.p_values)})


async def _save_on(folder: Path, watched: Sequence[Watched], ending: asyncio.Event) -> None:
    """Save what has changed, again and again, and once more when it ends: nothing is judged any more then."""
    saved = dict.fromkeys((model.model for model in watched), 0)
    ended = False
    while not ended:
        with suppress(TimeoutError):
            await asyncio.wait_for(ending.wait(), SAVE_S)
        ended = ending.is_set()
        for model in watched:
            images = model.watch.images
            if images > saved[model.model] and await asyncio.to_thread(_save, _path(folder, model), model.state()):
                saved[model.model] = images


def _save(path: Path, state: WatchState) -> bool:
    """Replace a model's file as a whole; a disk that is full is no reason to stop. Return whether it is replaced."""
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            file.write(state.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as err:
        log.warning("state not saved", extra={"model": state.model, "file": str(path), "reason": str(err)})
        return False
    return True


def _path(folder: Path, watched: Watched) -> Path:
    return folder / f"{watched.model}-{watched.sha256[:16]}.json"
