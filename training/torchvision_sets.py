"""Torchvision's data sets as pixels and labels. Nothing is downloaded here."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_store import images
from model_store.manifest import PreprocessSpec
from training.errors import DataError


class TorchvisionSet(NamedTuple):
    """How torchvision names the splits of one data set, and how its images are stored."""

    encoding: str
    splits: dict[str, dict[str, Any]]


TORCHVISION = "torchvision:"
_TRAIN_TEST: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
TORCHVISION_SETS = {
    "CIFAR10": TorchvisionSet("lossless", _TRAIN_TEST),
    "CIFAR100": TorchvisionSet("lossless", _TRAIN_TEST),
    "SVHN": TorchvisionSet("lossless", {name: {"split": name} for name in ("train", "test", "extra")}),
    "DTD": TorchvisionSet("jpeg", {name: {"split": name} for name in ("train", "val", "test")}),
    "CelebA": TorchvisionSet("jpeg", {name: {"split": name} for name in ("train", "valid", "test", "all")}),
    "Places365": TorchvisionSet(
        "jpeg", {"train": {"split": "train-standard", "small": True}, "val": {"split": "val", "small": True}}
    ),
}


def read_torchvision(
    source: str, data_dir: Path, preprocess: PreprocessSpec
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str], str]:
    """Read `torchvision:NAME:split` below `data_dir`: images uint8 (N, H, W, 3), labels, classes, encoding.

    Raises:
        DataError: no such data set or split, or its files are not there.
    """
    dataset = _open(source, data_dir)
    if dataset is None:
        raise DataError(f"{source!r} is not in {data_dir}")
    pixels, labels = _pixels(dataset, preprocess), _labels(dataset)
    classes = [str(name) for name in getattr(dataset, "classes", range(int(labels.max(initial=0)) + 1))]
    return pixels, labels, classes, _parse(source)[1].encoding


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


def _pixels(dataset: Any, preprocess: PreprocessSpec) -> NDArray[np.uint8]:
    data = getattr(dataset, "data", None)
    if isinstance(data, np.ndarray) and data.ndim == 4:
        rows = data if data.shape[3] == 3 else data.transpose(0, 2, 3, 1)
        return np.stack([images.fit(image, preprocess) for image in rows])
    return np.stack([images.fit(np.asarray(image.convert("RGB")), preprocess) for image, _ in dataset])


def _labels(dataset: Any) -> NDArray[np.int64]:
    for attribute in ("targets", "labels", "_labels"):
        if (labels := getattr(dataset, attribute, None)) is not None:
            return np.asarray(labels, np.int64)
    return np.zeros(len(dataset), np.int64)
