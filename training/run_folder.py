"""A run folder: one sub-folder a stage, each with what it was made from, so that nothing stale is taken for done."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from training.errors import ResumeError

INPUTS = "inputs.json"
WEIGHTS = "weights.safetensors"


def open_stage(folder: Path, inputs: dict[str, Any]) -> None:
    """Begin or resume the stage of `folder`.

    Raises:
        ResumeError: the folder was begun from other inputs, the first that differs named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / INPUTS
    given = json.loads(json.dumps(inputs))
    if not path.exists():
        write_json(path, given)
    elif (earlier := json.loads(path.read_text())) != given:
        raise ResumeError(
            f"{folder} was begun with {_first_difference(earlier, given)}; "
            "take another --run folder, or remove this one to begin again"
        )


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader, or a restart, sees all of it or none."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)


def write_weights(folder: Path, network: nn.Module) -> None:
    """Write the stage's final weights; that they are there means the stage is done."""
    partial = folder / "weights.partial"
    save_file({key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}, partial)
    partial.replace(folder / WEIGHTS)


def is_done(folder: Path) -> bool:
    """Return whether a training stage has left its final weights."""
    return (folder / WEIGHTS).exists()


def read_weights(folder: Path, network: nn.Module) -> None:
    """Load a finished stage's weights into `network`, strictly.

    Raises:
        ResumeError: the stage is not finished, or its weights are not this network's.
    """
    path = folder / WEIGHTS
    if not is_done(folder):
        raise ResumeError(f"{path} is not there: run the stage {folder.name} first")
    try:
        network.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as err:
        raise ResumeError(f"{path} does not hold this network's weights: {err}") from err


def _first_difference(earlier: Any, given: Any, where: str = "") -> str:
    if isinstance(earlier, dict) and isinstance(given, dict):
        for key in sorted(earlier.keys() | given.keys()):
            if earlier.get(key) != given.get(key):
                return _first_difference(earlier.get(key), given.get(key), f"{where}.{key}" if where else key)
    return f"{where} = {earlier!r}, now {given!r}"
