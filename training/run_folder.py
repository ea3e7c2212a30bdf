"""A run folder: one sub-folder a stage, each with what it was made from, so that nothing stale is taken for done."""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from training.errors import OutputError, ResumeError, WeightsError

INPUTS = "inputs.json"
WEIGHTS = "weights.safetensors"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of what is written meanwhile where it should go, if it cannot.

    Raises:
        OutputError: the disk is full, or there is no such place, or none that may be written to.
    """
    try:
        yield
    except OSError as err:
        raise OutputError(
            f"{path} cannot be written ({err.strerror or err}); make room there, or name another place"
        ) from err


def require_writable(folder: Path) -> None:
    """Refuse a folder that could not be made or filled later; nothing is left of the attempt.

    Raises:
        OutputError: a temporary folder cannot be made in it, or in the nearest one above it that there is.
    """
    with writing(folder):
        there = next(each for each in (folder, *folder.parents) if each.exists() or each.is_symlink())
        tempfile.TemporaryDirectory(prefix=".probe-", dir=there).cleanup()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep every other process out of a run's folder; the lock goes when the process does, however it ends.

    Raises:
        OutputError: it cannot be made, or nothing can be written into it.
        ResumeError: another process is in it.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise ResumeError(f"another process works in {folder}; wait for it, or take another folder") from err
        yield


def open_stage(folder: Path, inputs: dict[str, Any]) -> None:
    """Begin or resume the stage of `folder`.

    Raises:
        ResumeError: the folder was begun from other inputs, the first that differs named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / INPUTS).exists():
        require_inputs(folder, inputs)
    else:
        write_json(folder / INPUTS, inputs)


def require_inputs(folder: Path, inputs: dict[str, Any]) -> None:
    """Hold what a stage's folder was made from against what is asked for now.

    Raises:
        ResumeError: the stage was never begun, or from other inputs, the first that differs named.
    """
    path = folder / INPUTS
    if not path.exists():
        raise ResumeError(f"{folder} is empty: run the stage {folder.name} first")
    earlier, given = (_given(json.loads(text)) for text in (path.read_text(), json.dumps(inputs)))
    if earlier != given:
        raise ResumeError(
            f"{folder} was made with {_first_difference(earlier, given)}; "
            "take another folder, or remove this one to begin again"
        )


def require_unbegun(folder: Path, origin: Path) -> None:
    """Refuse a stage that was begun from what was in `origin`, which is there no more and may come back as another.

    Raises:
        ResumeError: it was.
    """
    if (folder / INPUTS).exists():
        raise ResumeError(
            f"{folder} was begun from what was in {origin}, which is gone; remove {folder.name} as well to begin "
            "again, or take another folder"
        )


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader, a restart, or a start after a power loss finds all of it, or what was there.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    with writing(path):
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_bytes(path, f"{json.dumps(value, indent=2)}\n".encode())


def mean(networks: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of each parameter and statistic; what counts batches is the first's."""
    return {
        key: sum((weight * network[key] for network, weight in zip(networks, weights, strict=True)), 0 * value)
        if value.is_floating_point()
        else value
        for key, value in networks[0].items()
    }


def write_weights(folder: Path, network: nn.Module) -> None:
    """Write the stage's final weights; that they are there means the stage is done."""
    weights = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(weights))


def weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of a finished stage's weights file: what a later stage was made from.

    Raises:
        ResumeError: the stage is not finished.
    """
    path = folder / WEIGHTS
    if not is_done(folder):
        raise ResumeError(f"{path} is not there: run the stage {folder.name} first")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_done(folder: Path) -> bool:
    """Return whether a training stage has left its final weights."""
    return (folder / WEIGHTS).exists()


def read_weights(folder: Path, network: nn.Module) -> None:
    """Load a finished stage's weights into `network`, strictly.

    Raises:
        ResumeError: the stage is not finished, or its weights are not this network's.
        WeightsError: some are not finite.
    """
    path = folder / WEIGHTS
    if not is_done(folder):
        raise ResumeError(f"{path} is not there: run the stage {folder.name} first")
    try:
        weights = load_file(path)
        network.load_state_dict(weights)
    except (RuntimeError, SafetensorError) as err:
        raise ResumeError(f"{path} does not hold this network's weights: {err}") from err
    require_finite(path, weights)


def require_finite(path: Path, weights: Mapping[str, Tensor], remedy: str | None = None) -> None:
    """Refuse weights with NaN or infinity in them: hours of training could only end in the same.

    remedy: what to do then, where it is not to remove the folder that they lie in.

    Raises:
        WeightsError: the file, and the tensor that is not finite.
    """
    for name, tensor in weights.items():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise WeightsError(
                f"{path}: {bad:,} of {tensor.numel():,} values of {name} are not finite; "
                f"{remedy or f'remove the folder {path.parent} to make it anew'}"
            )


def _given(value: Any) -> Any:
    """Return `value` without the keys that are None: a folder from before there was a key goes on without it."""
    if isinstance(value, dict):
        return {key: _given(each) for key, each in value.items() if each is not None}
    return value


def _first_difference(earlier: Any, given: Any, where: str = "") -> str:
    if isinstance(earlier, dict) and isinstance(given, dict):
        for key in sorted(earlier.keys() | given.keys()):
            if earlier.get(key) != given.get(key):
                return _first_difference(earlier.get(key), given.get(key), f"{where}.{key}" if where else key)
    return f"{where} = {earlier!r}, now {given!r}"
