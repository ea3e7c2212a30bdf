"""Whether a recipe can be run at all, before hours go into it: its batches, its network, its sets."""

from model_store.networks import outlined
from training.bundle_size import require_small_enough
from training.config import Recipe
from training.distributed import Processes
from training.errors import RecipeError
from training.evaluate import Say
from training.fit_scores import require_fittable
from training.recipe_network import require_fit
from training.run_sets import RunSets
from training.set_roles import require_one_encoding
from training.splits import split_validation
from training.synthetic_outliers import KINDS


def require_batches(recipe: Recipe, processes: Processes) -> None:
    """Refuse batches that the processes cannot share evenly.

    Raises:
        RecipeError: a batch size of any stage is no multiple of the number of processes, or a process's share of a
            batch has not all kinds of synthetic outliers.
    """
    stages = {"pretrain": recipe.pretrain, "finetune": recipe.finetune}
    sizes = {f"{name}.batch_size": spec.batch_size for name, spec in stages.items() if spec is not None}
    if recipe.finetune is not None:
        sizes["finetune.outlier_batch_size"] = recipe.finetune.outlier_batch_size
    for what, size in sizes.items():
        processes.require_divisible(what, size)
    if recipe.finetune is not None and recipe.data.outliers_are_synthetic:
        own = recipe.finetune.outlier_batch_size // processes.count
        if own < len(KINDS):
            raise RecipeError(
                f"finetune.outlier_batch_size is {recipe.finetune.outlier_batch_size}, {own} in each of "
                f"{processes.count} processes; synthetic outliers are of {len(KINDS)} kinds, and each process "
                f"makes one of each a batch: take at least {len(KINDS) * processes.count}"
            )


def require_network(recipe: Recipe, processes: Processes, images: int = 2) -> None:
    """Refuse a network that does not take batches of so many of the recipe's images; tried in the first process.

    Raises:
        RecipeError: what the network says to them.
    """
    trained = any((recipe.pretrain, recipe.finetune, recipe.average))
    processes.first_does(lambda: require_fit(recipe.network, recipe.preprocess, images, trained=trained))


def require_runnable(recipe: Recipe, sets: RunSets, processes: Processes, say: Say) -> None:
    """Read every set and see whether each can play its role, and whether the network takes their images.

    Says which sets hold training images. The test sets are read in the first process alone.

    Raises:
        DataError: a set is missing or unfit, sets differ in encoding, or there are too few images to validate margins
            by or to fit a score on.
        RecipeError: the network does not take images of the recipe's size, or the bundle would be larger than the
            recipe allows.
    """
    require_network(recipe, processes)
    for spec in filter(None, (recipe.pretrain, recipe.finetune)):
        processes.require_last_share(len(sets.train), spec.batch_size)
    if recipe.pretrain and len(sets.train) % recipe.pretrain.batch_size // processes.count == 1:
        require_network(recipe, processes, images=1)
    _ = sets.outliers  # which all processes read together
    processes.first_does(lambda: _require_roles(recipe, sets, processes, say))


def _require_roles(recipe: Recipe, sets: RunSets, processes: Processes, say: Say) -> None:
    require_one_encoding(list(sets.by_role().values()))
    if recipe.selects_margins:
        trained_on, _ = split_validation(sets.train, recipe.selection.validation_images, recipe.seed)
        processes.require_last_share(len(trained_on), recipe.finetuning.batch_size)
    width = outlined(recipe.network).get_parameter("head.weight").shape[1]
    for spec in recipe.scores:
        require_fittable(spec, len(sets.train), width)
    if held_out := recipe.data.calibration_images:
        require_small_enough(recipe, len(sets.train), held_out)
    for overlap in sets.overlaps.values():
        say(f"warning: {overlap}")
