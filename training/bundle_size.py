"""How many bytes a bundle takes: its parts from the recipe, before training, and from the draft, all of it."""

import math
from collections.abc import Mapping

from model_store.bundle import BundleDraft, pack
from model_store.networks import outlined
from model_store.score_specs import KnnSpec, ScoreSpec
from model_store.scores import statistic_shapes
from training.config import Recipe
from training.errors import RecipeError

FLOAT32 = 4
"""Bytes of a calibration score or a fitted statistic."""


def require_small_enough(recipe: Recipe, train_images: int, held_out_images: int) -> None:
    """Refuse, before anything is trained, a recipe whose bundle cannot be as small as its `publish.max_bytes`.

    Golden images, manifest and the headers of the files come on top of what is counted here.

    Raises:
        RecipeError: weights, calibration scores and statistics alone take more.
    """
    _require(recipe, recipe_parts(recipe, train_images, held_out_images), "at least ")


def require_draft_small_enough(recipe: Recipe, draft: BundleDraft) -> None:
    """Refuse a draft whose files together are larger than the recipe's `publish.max_bytes`.

    Raises:
        RecipeError: they are.
    """
    if recipe.publish.max_bytes is not None:  # what is packed to be counted is in memory twice
        _require(recipe, draft_parts(draft), "")


def recipe_parts(recipe: Recipe, train_images: int, held_out_images: int) -> dict[str, int]:
    """Return the bytes of what follows from the recipe: weights, calibration scores, and each score's statistics."""
    network = outlined(recipe.network)
    classes, width = network.get_parameter("head.weight").shape
    parts = {
        "weights": sum(tensor.nbytes for tensor in network.state_dict().values()),
        "calibration scores": FLOAT32 * held_out_images * (1 + len(recipe.scores)),
    }
    return parts | {spec.kind: _statistics_bytes(spec, classes, width, train_images) for spec in recipe.scores}


def draft_parts(draft: BundleDraft) -> dict[str, int]:
    """Return the same of a draft, and what is left of its files: headers and the manifest, and the golden images."""
    files = sum(map(len, pack(draft)[1].values()))
    parts = {
        "weights": sum(tensor.nbytes for tensor in draft.weights.values()),
        "calibration scores": sum(scores.nbytes for scores in draft.calibration_scores.values()),
        "golden images": sum(map(len, draft.golden.values())),
    }
    if draft.quantised is not None:
        parts["int8 graph"] = len(draft.quantised.graph) + len(draft.quantised.weights)
    parts |= {name: sum(tensor.nbytes for tensor in kept.values()) for name, kept in draft.statistics.items()}
    return parts | {"manifest and headers": files - sum(parts.values())}


def _statistics_bytes(spec: ScoreSpec, classes: int, width: int, train_images: int) -> int:
    rows = min(spec.reference_rows, train_images) if isinstance(spec, KnnSpec) else 0
    shapes = statistic_shapes(spec, classes, width).values()
    return FLOAT32 * sum(math.prod(rows if size is None else size for size in shape) for shape in shapes)


def _require(recipe: Recipe, parts: Mapping[str, int], bound: str) -> None:
    limit, total = recipe.publish.max_bytes, sum(parts.values())
    if limit is None or total <= limit:
        return
    largest_first = sorted(parts.items(), key=lambda part: -part[1])
    listed = ", ".join(f"{part} {size:,}" for part, size in largest_first if size)
    remedies = "leave a score out of [[scores]], take a smaller network, or raise publish.max_bytes"
    if knn := next((spec for spec in recipe.scores if isinstance(spec, KnnSpec)), None):
        remedies = f"lower knn's reference_rows, {knn.reference_rows}, {remedies}"
    raise RecipeError(
        f"a bundle of recipe {recipe.name} would take {bound}{total:,} bytes, {total - limit:,} above "
        f"publish.max_bytes = {limit:,}: {listed}. Remedies: {remedies}"
    )
