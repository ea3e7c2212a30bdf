"""Between stages 1 and 2, if a recipe asks for it: the margins, by validation outliers, before the fine-tuning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from model_store.predictor import Scorer
from model_store.runtimes import TorchRuntime
from training.config import Recipe
from training.datasets import ImageSet
from training.errors import ResumeError
from training.finetune import finetune_inputs, try_margins
from training.objective_spec import Margins
from training.run_folder import open_stage, require_inputs, write_json
from training.selection import Choice, ValidationSets, select
from training.splits import split_validation
from training.trainer import Trainer

CHOICE = "choice.json"


def select_margins(
    recipe: Recipe,
    train_set: ImageSet,
    outliers: ImageSet | None,
    pretrained: Path,
    folder: Path,
    trainer: Trainer,
    say: Callable[[str], None],
) -> Choice:
    """Fine-tune the classifier a little with each pair of margins, and choose the pair that validates best.

    Leaves a folder a pair and `choice.json` with every pair's figures in `folder`; done or resumed from there.
    The classifier has seen the validation images, as it has all that it was trained on; the trials have not.

    Args:
        recipe: one with a selection.
        train_set: the recipe's, from which the validation images are held out here.
        outliers: None if they are made of the training images.
        pretrained: the classifier's folder.
        folder: the selection's own.
        trainer: trains each trial; the choice of the first of its processes holds.
        say: is told which margins are tried.

    Raises:
        DataError: there are too few training images to hold any out.
        ResumeError: the classifier is not trained, or `folder` holds another recipe's selection.
        DivergedError: a trial's loss is not finite.
    """
    if made := trainer.processes.first_does(lambda: _made(folder, _inputs(recipe, train_set, outliers, pretrained))):
        return made
    held_out = split_validation(train_set, recipe.selection.validation_images, recipe.seed)[1]

    def trial(margins: Margins) -> Scorer:
        say(f"trying margins {margins}")
        place = folder / str(margins)
        network = try_margins(recipe, margins, train_set, held_out, outliers, pretrained, place, trainer)
        return Scorer(
            TorchRuntime(network, recipe.preprocess, device=trainer.device), recipe.preprocess, temperature=1.0
        )

    def deferred(margins: Margins) -> Callable[[], Scorer]:
        return lambda: trial(margins)

    sets = ValidationSets(held_out.images, held_out.labels, recipe.seed)
    choice = select({str(margins): deferred(margins) for margins in recipe.selection.pairs}, sets)
    return trainer.processes.first_does(lambda: _kept(folder, choice))


def chosen_margins(
    recipe: Recipe, train_set: ImageSet, outliers: ImageSet | None, pretrained: Path, folder: Path
) -> Margins:
    """Return the margins that `folder` says were chosen.

    Raises:
        ResumeError: none were, or for another recipe or on other images.
    """
    require_inputs(folder, _inputs(recipe, train_set, outliers, pretrained))
    if not (folder / CHOICE).exists():
        raise ResumeError(f"{folder / CHOICE} is not there: run the stage {folder.name} first")
    chosen = Choice.model_validate_json((folder / CHOICE).read_text()).chosen
    return next(margins for margins in recipe.selection.pairs if str(margins) == chosen)


def _made(folder: Path, inputs: dict[str, Any]) -> Choice | None:
    open_stage(folder, inputs)
    path = folder / CHOICE
    return Choice.model_validate_json(path.read_text()) if path.exists() else None


def _kept(folder: Path, choice: Choice) -> Choice:
    write_json(folder / CHOICE, choice.model_dump())
    return choice


def _inputs(recipe: Recipe, train_set: ImageSet, outliers: ImageSet | None, pretrained: Path) -> dict[str, Any]:
    return finetune_inputs(recipe, train_set, outliers, pretrained)
