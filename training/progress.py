"""What a person sees of a run: a bar that moves, and a line an epoch that stays."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training.trainer import Figures, Stage


class ConsoleProgress:
    """A progress bar with loss, accuracy, images/s and time left; use as a context."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.tasks: dict[str, TaskID] = {}
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
        )

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(text, highlight=False)

    def __call__(self, stage: Stage, epoch: int, step: int, figures: Figures) -> None:
        """Move the stage's bar; at the end of an epoch leave a line."""
        steps, epochs = len(stage.batches), stage.optimisation.epochs
        shown = f"loss {figures.loss:.4f}  accuracy {figures.accuracy:.2%}  {figures.images_per_s:,.0f} images/s"
        done = epoch * steps + step
        if stage.name not in self.tasks:
            self.tasks[stage.name] = self.bar.add_task(stage.name, total=epochs * steps, completed=done, figures=shown)
        self.bar.update(self.tasks[stage.name], completed=done, figures=shown)
        if step == steps:
            self.say(f"{stage.name} epoch {epoch + 1}/{epochs}  {shown}")


def silent(*_: object, **__: object) -> None:
    """Show nothing: a progress and a `say` for callers without a console."""
