"""A published bundle on a recipe's test sets, as `ood-train evaluate --bundle` measures it."""

from dataclasses import replace

from model_store.bundle import Bundle
from model_store.evaluation import Evaluation
from training import report
from training.errors import DataError
from training.evaluate import evaluate, score_sets
from training.pipeline import EVALUATE, Run


def evaluate_bundle(bundle: Bundle, run: Run) -> Evaluation:
    """Measure a published bundle on a run's test sets, fitted and predicted as the bundle says; write into its folder.

    Raises:
        DataError: the test images are not of the bundle's classes.
    """
    recipe = run.recipe.model_copy(update={"preprocess": bundle.manifest.preprocess})
    predictor, sets = bundle.predictor, replace(run, recipe=recipe).sets.tests
    if sets.test.classes != bundle.manifest.classes:
        raise DataError(f"{sets.test.name} has classes {sets.test.classes}; the bundle has {bundle.manifest.classes}")
    scores = score_sets(predictor.scorer, sets, run.say)
    result = evaluate(sets, scores, None, predictor, draws=run.recipe.evaluate.draws, seed=run.recipe.seed, say=run.say)
    folder = run.folder / f"{EVALUATE}-{bundle.manifest.name}@{bundle.manifest.version}"
    report.write(folder, result, bundle.manifest.verdict, scores, None)
    return result
