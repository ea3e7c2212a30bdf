"""How a command opens what it works on: its device, and its run, with processes, a folder of its own, and progress."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path

import torch
import typer
from rich.console import Console

from model_store.store import SHIPPED, Store
from training.config import read_recipe
from training.distributed import joined, own_device, tells
from training.evaluate import Say
from training.pipeline import Run
from training.progress import ConsoleProgress, silent
from training.run_folder import exclusive
from training.trainer import Progress

INTERRUPTED = 128 + signal.SIGINT
"""The exit status by which a shell tells that Ctrl-C ended a command."""
console = Console(stderr=True)


@contextmanager
def opened_run(
    recipe_path: Path, data: Path, folder: Path | None, device: str | None, store: Path = SHIPPED
) -> Iterator[Run]:
    """Open a recipe's run, alone or with the other processes that torchrun started, its folder locked meanwhile.

    A bundle that the recipe starts from is looked for in `store`, then among those that ship.

    Raises:
        BadParameter: there is no such device.
        TrainingError: the recipe is none, the processes have different ones, or the folder is in use.
    """
    chosen, stores = find_device(device), tuple(Store(path) for path in dict.fromkeys((store, SHIPPED)))
    with joined() as processes, ExitStack() as stack:
        recipe = processes.each_does(lambda: read_recipe(recipe_path))
        processes.require_same(
            f"the fingerprint of {recipe_path}", sha256(recipe.model_dump_json().encode()).hexdigest()
        )
        own = processes.each_does(lambda: own_device(chosen, processes))
        folder = folder or Path("runs") / recipe_path.name.removesuffix(".toml")  # recipes of one bundle share its name
        processes.first_does(lambda: stack.enter_context(exclusive(folder)))
        progress: Progress = silent
        say: Say = silent
        if processes.is_first:
            shown = stack.enter_context(ConsoleProgress(console))
            progress, say = shown, shown.say
        opened = Run(recipe, data, folder, own, progress, say, stores, processes)
        with interruptible(opened.kept):
            yield opened


@contextmanager
def interruptible(kept: Callable[[], str]) -> Iterator[None]:
    """End on Ctrl-C with a line on what is kept, said by the first process alone."""
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would end this in a traceback
        if tells():
            console.print(f"interrupted: {kept()}", highlight=False)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def opened_by_first(recipe_path: Path, data: Path, folder: Path | None, device: str | None) -> Iterator[Run]:
    """Open a run for what one process does; of several that torchrun started the others end."""
    with opened_run(recipe_path, data, folder, device) as opened:
        opened.processes.leave_to_first()
        yield opened


def find_device(name: str | None) -> torch.device:
    """Return a device by its name; without one, CUDA where there is any.

    Raises:
        BadParameter: it is no device, or not here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise typer.BadParameter(f"{name!r} is no device; expected cpu, cuda or cuda:N") from err
    if device.type not in ("cpu", "cuda"):
        raise typer.BadParameter(f"{name!r} is not supported; expected cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise typer.BadParameter(f"{name!r} asked for, but PyTorch finds {torch.cuda.device_count()} CUDA devices here")
    return device
