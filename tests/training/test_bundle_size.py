"""What a bundle takes: by hand, and against the files on disk."""

from pathlib import Path

import pytest
import safetensors.numpy
import torch
from safetensors.torch import load_file

from model_store.bundle import CALIBRATION, WEIGHTS, BundleDraft, read_manifest, write_bundle
from model_store.manifest import Execution, QuantisedGraph
from model_store.runtimes import OpenVinoIr
from model_store.score_specs import (
    EnergyMahalanobisSpec,
    GenSpec,
    KnnSpec,
    MahalanobisSpec,
    ReactSpec,
    RelativeMahalanobisSpec,
    VimSpec,
)
from model_store.store import SHIPPED
from training.bundle_size import draft_parts, recipe_parts, require_draft_small_enough, require_small_enough
from training.config import Recipe, read_recipe
from training.errors import RecipeError
from training.pipeline import Run
from training.progress import silent
from training.stage_specs import PublishSpec

SEVERAL = (
    GenSpec(),
    ReactSpec(),
    KnnSpec(),
    MahalanobisSpec(),
    RelativeMahalanobisSpec(),
    VimSpec(),
    EnergyMahalanobisSpec(),
)


def _limited(recipe: Recipe, max_bytes: int | None) -> Recipe:
    return recipe.model_copy(update={"publish": PublishSpec(max_bytes=max_bytes)})


@pytest.fixture(scope="module")
def wide() -> Recipe:
    """The paper's network, 128 features and 10 classes, with scores at their defaults."""
    return read_recipe(Path("cifar10-wrn-40-2")).model_copy(update={"scores": SEVERAL})


def test_parts_of_a_recipe_by_hand(wide: Recipe) -> None:
    parts = recipe_parts(wide, train_images=45_000, held_out_images=5_000)
    gaussian = 4 * (10 * 128 + 128 * 128)
    # Batch norms: 12 in each of three blocks, the first of a block over the channels before it, and one at the end.
    channels = 16 + 11 * 32 + 32 + 11 * 64 + 64 + 11 * 128 + 128
    assert parts == {
        # 2,243,546 parameters; a running mean and a variance a channel; a counter a batch norm.
        "weights": 4 * (2_243_546 + 2 * channels) + 8 * 37,
        "calibration scores": 4 * 5_000 * 8,
        "gen": 0,
        "react": 4,
        "knn": 4 * 5_000 * 128,
        "mahalanobis": gaussian,
        "relative_mahalanobis": 2 * gaussian - 4 * 9 * 128,  # the background has one mean instead of ten
        "vim": 4 * (128 + 128 * 64 + 1),
        "energy_mahalanobis": gaussian + 4,
    }
    assert recipe_parts(wide, train_images=300, held_out_images=50)["knn"] == 4 * 300 * 128  # no more rows than images


def test_limit_is_kept_to_the_byte_before_training(wide: Recipe) -> None:
    total = sum(recipe_parts(wide, 45_000, 5_000).values())
    require_small_enough(_limited(wide, total), 45_000, 5_000)
    require_small_enough(_limited(wide, None), 45_000, 5_000)
    with pytest.raises(RecipeError) as caught:
        require_small_enough(_limited(wide, total - 1), 45_000, 5_000)
    for part in (
        f"at least {total:,} bytes, 1 above publish.max_bytes = {total - 1:,}: weights 8,996,112, knn 2,560,000, ",
        "react 4. ",
        "lower knn's reference_rows, 5000, leave a score out",
    ):
        assert part in str(caught.value)
    assert "gen" not in str(caught.value)
    with pytest.raises(RecipeError, match="Remedies: leave a score out"):
        require_small_enough(_limited(wide.model_copy(update={"scores": (VimSpec(),)}), 9_000_000), 45_000, 5_000)


def test_draft_is_counted_as_it_is_written(wide: Recipe, tmp_path: Path) -> None:
    folder = SHIPPED / "cifar10" / "1"
    graph = QuantisedGraph(structure="openvino/features.xml", weights="openvino/features.bin", images=1)
    execution = Execution(precision="int8", quantised=graph, tolerance=1)
    manifest = read_manifest(folder).model_copy(update={"schema_version": 3, "execution": execution})
    draft = BundleDraft(
        manifest,
        load_file(folder / WEIGHTS),
        safetensors.numpy.load_file(folder / CALIBRATION),
        {golden.file: (folder / golden.file).read_bytes() for golden in manifest.golden},
        {"knn": {"reference": torch.zeros(10, 128)}},
        OpenVinoIr(b"<net/>", bytes(1000)),
    )
    write_bundle(tmp_path, draft)
    total = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    parts = draft_parts(draft)
    assert sum(parts.values()) == total
    assert parts["knn"] == 4 * 10 * 128
    assert parts["int8 graph"] == 1006
    assert parts["golden images"] == sum(path.stat().st_size for path in (folder / "golden").iterdir())
    require_draft_small_enough(_limited(wide, total), draft)
    with pytest.raises(RecipeError, match=rf"take {total:,} bytes, 1 above .*manifest and headers"):
        require_draft_small_enough(_limited(wide, total - 1), draft)


def test_recipe_of_too_large_a_bundle_is_refused_before_training(
    tiny: Recipe, image_sets: Path, tmp_path: Path
) -> None:
    run = Run(_limited(tiny, 300_000), image_sets, tmp_path, torch.device("cpu"), silent, silent)
    with pytest.raises(RecipeError, match=r"recipe tiny .* at least .* knn 25,600, .*, calibration scores 2,200"):
        run.check()
    without_bundle = tiny.data.model_copy(update={"calibration_images": 0})
    recipe = _limited(tiny, 300_000).model_copy(update={"data": without_bundle})
    Run(recipe, image_sets, tmp_path, torch.device("cpu"), silent, silent).check()
