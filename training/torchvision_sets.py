"""Torchvision's data sets as pixels or files, and labels. Nothing is downloaded here."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError


class TorchvisionSet(NamedTuple):
    """How torchvision names the splits of one data set, how its images are stored, and in which files.

    `files` lists them; None where torchvision holds the pixels in memory.
    """

    encoding: str
    splits: dict[str, dict[str, Any]]
    files: Callable[[Any], Sequence[str | Path]] | None = None


def _dtd_files(dataset: Any) -> Sequence[str | Path]:
    files: Sequence[str | Path] = dataset._image_files
    return files


def _celeba_files(dataset: Any) -> Sequence[str | Path]:
    folder = Path(dataset.root) / dataset.base_folder / "img_align_celeba"
    return [folder / name for name in dataset.filename]


def _places_files(dataset: Any) -> Sequence[str | Path]:
    return [path for path, _ in dataset.imgs]


TORCHVISION = "torchvision:"
_TRAIN_TEST: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
TORCHVISION_SETS = {
    "CIFAR10": TorchvisionSet("lossless", _TRAIN_TEST),
    "CIFAR100": TorchvisionSet("lossless", _TRAIN_TEST),
    "SVHN": TorchvisionSet("lossless", {name: {"split": name} for name in ("train", "test", "extra")}),
    "DTD": TorchvisionSet("jpeg", {name: {"split": name} for name in ("train", "val", "test")}, _dtd_files),
    "CelebA": TorchvisionSet(
        "jpeg", {name: {"split": name} for name in ("train", "valid", "test", "all")}, _celeba_files
    ),
    "Places365": TorchvisionSet(
        "jpeg",
        {"train": {"split": "train-standard", "small": True}, "val": {"split": "val", "small": True}},
        _places_files,
    ),
}


class OpenedSet(NamedTuple):
    """Pixels uint8 (N, H, W, 3) of any size, or the files to decode instead; labels int64 (N,), classes, encoding."""

    pixels: NDArray[np.uint8] | None
    files: Sequence[Path]
    labels: NDArray[np.int64]
    classes: list[str]
    encoding: str


def open_torchvision(source: str, data_dir: Path) -> OpenedSet:
    """Open `torchvision:NAME:split` below `data_dir`.

    Raises:
        DataError: no such data set or split, or its files are not there.
    """
    dataset = _open(source, data_dir)
    if dataset is None:
        raise DataError(f"{source!r} is not in {data_dir}")
    known, labels = _parse(source)[1], _labels(dataset)
    files = [] if known.files is None else [Path(path) for path in known.files(dataset)]
    classes = [str(name) for name in getattr(dataset, "classes", range(int(labels.max(initial=0)) + 1))]
    return OpenedSet(None if known.files else _pixels(dataset), files, labels, classes, known.encoding)


def locate_torchvision(source: str, data_dir: Path) -> Path | None:
    """Return `data_dir` if torchvision finds the set whole in it."""
    return None if _open(source, data_dir) is None else data_dir


def download_command(source: str, data_dir: Path) -> str:
    """Return a shell line that fetches a torchvision set into `data_dir`."""
    name, _, options = _parse(source)
    arguments = "".join(f", {key}={value!r}" for key, value in options.items())
    return f'python -c "import torchvision.datasets as d; d.{name}({str(data_dir)!r}{arguments}, download=True)"'


def _parse(source: str) -> tuple[str, TorchvisionSet, dict[str, Any]]:
    name, _, split = source.removeprefix(TORCHVISION).partition(":")
    if name not in TORCHVISION_SETS:
        raise DataError(f"{source!r}: torchvision sets are {', '.join(TORCHVISION_SETS)}, as torchvision:NAME:split")
    known = TORCHVISION_SETS[name]
    if split not in known.splits:
        raise DataError(f"{source!r}: {name} has the splits {', '.join(known.splits)}")
    return name, known, known.splits[split]


def _open(source: str, data_dir: Path) -> Any | None:
    import torchvision.datasets

    name, _, options = _parse(source)
    try:
        return getattr(torchvision.datasets, name)(data_dir, **options)
    except (RuntimeError, FileNotFoundError):  # torchvision's ways to say that files are missing or damaged
        return None


def _pixels(dataset: Any) -> NDArray[np.uint8]:
    data: NDArray[np.uint8] = dataset.data
    return data if data.shape[3] == 3 else data.transpose(0, 2, 3, 1)


def _labels(dataset: Any) -> NDArray[np.int64]:
    """Return int64 (N,); CelebA's targets are 40 attributes an image and no classes, so all of it is one class."""
    for attribute in ("targets", "labels", "_labels"):
        if (labels := getattr(dataset, attribute, None)) is not None:
            return np.asarray(labels, np.int64)
    return np.zeros(len(dataset), np.int64)
