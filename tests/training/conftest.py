"""The tiny recipe, small sets, and a progress that says nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_store.manifest import PreprocessSpec
from training.cli import main
from training.config import RECIPES, Recipe, read_recipe
from training.datasets import ImageSet, load_set


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    return read_recipe(Path("tiny"))


@pytest.fixture(scope="session")
def quick_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe with fewer epochs, `quick.toml`: the whole way, for tests that need no more than the way."""
    path = tmp_path_factory.mktemp("recipes") / "quick.toml"
    text = (RECIPES / "tiny.toml").read_text()
    path.write_text(text.replace("epochs = 3", "epochs = 2").replace("epochs = 12", "epochs = 3"))
    return path


@pytest.fixture(scope="session")
def quick(quick_file: Path) -> Recipe:
    return read_recipe(quick_file)


@pytest.fixture(scope="session")
def preprocess(tiny: Recipe) -> PreprocessSpec:
    return tiny.preprocess


@pytest.fixture(scope="session")
def train_set(image_sets: Path, preprocess: PreprocessSpec) -> ImageSet:
    return load_set("cifar10/train", image_sets, preprocess, None)


@pytest.fixture(scope="session")
def outliers(image_sets: Path, preprocess: PreprocessSpec) -> ImageSet:
    return load_set("outliers/train", image_sets, preprocess, None)


@pytest.fixture
def further(quick_file: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Write `<tmp_path>/further.toml`: the quick recipe, from a published bundle instead of from scratch."""

    def write(start: str) -> Path:
        text = quick_file.read_text()
        pretrain = text[text.index("[pretrain]") : text.index("[finetune]")]
        path = tmp_path / "further.toml"
        path.write_text(text.replace(pretrain, "").replace("seed = 0", f'seed = 0\nstart = "{start}"'))
        return path

    return write


@pytest.fixture
def labelled_npz(tmp_path: Path):
    """Write `<tmp_path>/set.npz` of random images with the labels given."""

    def write(labels: list[int], classes: list[str] | None = None, **more: object) -> Path:
        images = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
        named = {} if classes is None else {"classes": np.array(classes)}
        np.savez(tmp_path / "set.npz", **({"images": images, "labels": np.array(labels, np.int64)} | named | more))
        return tmp_path

    return write


@pytest.fixture(scope="session")
def jpeg_folder() -> Callable[[Path, ImageSet], None]:
    """Write the first images of a set into a folder that is not there yet, as JPEG: `0.jpg` to `4.jpg`."""

    def write(folder: Path, source: ImageSet) -> None:
        folder.mkdir()
        for row, image in enumerate(source.images[:5]):
            Image.fromarray(image).save(folder / f"{row}.jpg", quality=90)

    return write


@pytest.fixture
def ood_train(
    run_command: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `ood-train` with the arguments given, in this process."""
    return partial(run_command, main)


@pytest.fixture
def interrupted(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run `ood-train` in `tmp_path`, press Ctrl-C once it has said `once`; return its status and what it says then."""

    def run(*arguments: str | Path, once: str) -> tuple[int, str]:
        with subprocess.Popen(
            [sys.executable, "-c", "from training.cli import main; main()", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"},
            stderr=subprocess.PIPE,
            text=True,
            # Not ignored, as it is in what a shell runs in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            assert process.stderr is not None
            assert any(once in line for line in process.stderr)
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
        return process.returncode, said

    return run
