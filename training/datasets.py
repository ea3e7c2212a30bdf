"""Image sets, whatever form they come in: a folder per class, an .npz, or one of torchvision's data sets."""

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from model_store import images
from model_store.errors import ImageError
from model_store.manifest import PreprocessSpec
from training import encode, npy
from training.errors import DataError
from training.torchvision_sets import TORCHVISION, download_command, locate_torchvision, open_torchvision

RESIDENT_BYTES = 4 * 2**30
"""Pixels of a set that take more are held in a temporary file, memory-mapped."""
AT_ONCE = 256
"""Images that are decoded or re-encoded ahead of the one that is stored."""
NO_IMAGE_SUFFIXES = frozenset(
    {".csv", ".db", ".ini", ".json", ".jsonl", ".md", ".parquet", ".tsv", ".txt", ".xml", ".yaml", ".yml"}
)
"""Of what people, cameras and systems leave beside images; every other file is read, by its content."""

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class ImageSet:
    """Images as the network takes them: the `rows` int64 (N,) of `pixels` uint8 (M, H, W, 3), in that order.

    labels int64 (N,) index `classes`. `pixels` may be a memory map; `images` is the chosen rows in memory.
    `encoding` is how the pixels were stored before they came here: "lossless", "jpeg", "webp", or several joined
    by "+". `fingerprint` is the SHA-256 of pixels and labels. `fitted` of the M images had another size than the
    network's. `files` are those that the M images came from, if each had one of its own.
    """

    name: str
    pixels: NDArray[np.uint8]
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    encoding: str
    fingerprint: str
    fitted: int = 0
    files: Sequence[Path] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def uneven_classes(self) -> tuple[int, ...] | None:
        """How many images each class has; None where all have as many."""
        counts = tuple(np.bincount(self.labels, minlength=len(self.classes)).tolist())
        return counts if len(set(counts)) > 1 else None

    @property
    def images(self) -> NDArray[np.uint8]:
        """A copy in memory, uint8 (N, H, W, 3)."""
        images: NDArray[np.uint8] = np.asarray(self.pixels[self.rows])
        return images

    def where(self, at: int) -> str:
        """Return where the image at `at` came from: its file, or its number in the set as it was read."""
        row = int(self.rows[at])
        return str(self.files[row]) if self.files else f"{self.name}[{row}]"

    def subset(self, index: NDArray[np.int64]) -> "ImageSet":
        """Return the images at `index`, in that order, of the same pixels and under the same fingerprint."""
        return replace(self, rows=self.rows[index], labels=self.labels[index])

    def without(self, other: "ImageSet") -> "ImageSet":
        """Return the images that are not in `other`, a subset of the same pixels, in their order."""
        return self.subset(np.flatnonzero(~np.isin(self.rows, other.rows)))


class _Read(NamedTuple):
    """What a set's form of storage gave: fields as of `ImageSet`."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: Sequence[str]
    encoding: str
    fitted: int
    files: Sequence[Path] = ()


def locate(source: str, data_dir: Path) -> Path | None:
    """Return where a set of a recipe is, or None if it is not there.

    Raises:
        DataError: a torchvision source that torchvision has not.
    """
    if source.startswith(TORCHVISION):
        return locate_torchvision(source, data_dir)
    places = (data_dir / f"{source}.npz", data_dir / source)
    return next((path for path in places if path.exists()), None)


def how_to_get(source: str, data_dir: Path) -> str:
    """Return what a user does to make a missing set appear."""
    if source.startswith(TORCHVISION):
        return f"To download it: {download_command(source, data_dir)}"
    return (
        f"Put {data_dir / source}.npz there (images uint8 (N, H, W, 3), labels, classes), or a folder "
        f"{data_dir / source}/ with a sub-folder of image files a class, or name another set in the recipe, such as "
        "torchvision:CIFAR10:train"
    )


def load_set(source: str, data_dir: Path, preprocess: PreprocessSpec, reencode_jpeg_quality: int | None) -> ImageSet:
    """Load a set by its name in the recipe: `cifar10/train` or `torchvision:CIFAR10:train`.

    A path stands for `<data_dir>/<path>.npz` or a folder of images, one folder per class or flat.

    Raises:
        DataError: the set is missing, empty, or holds what is no image; a file is named by its path.
    """
    found = locate(source, data_dir)
    if found is None:
        raise DataError(f"no set {source!r} in {data_dir}. {how_to_get(source, data_dir)}")
    if source.startswith(TORCHVISION):
        read = _read_torchvision(source, data_dir, preprocess)
    else:
        read = _read_npz(found, preprocess) if found.is_file() else _read_folder(found, preprocess)
    pixels, labels, classes, encoding, fitted, files = read
    if len(pixels) == 0:
        raise DataError(f"set {source!r} in {data_dir} holds no images")
    if reencode_jpeg_quality is not None:
        pixels = _reencode(pixels, reencode_jpeg_quality, preprocess)
        encoding = f"jpeg{reencode_jpeg_quality}"
    rows, fingerprint = np.arange(len(pixels)), _fingerprint(pixels, labels)
    return ImageSet(source, pixels, rows, labels, tuple(classes), encoding, fingerprint, fitted, files)


def _read_torchvision(source: str, data_dir: Path, preprocess: PreprocessSpec) -> _Read:
    opened = open_torchvision(source, data_dir)
    if opened.pixels is not None:
        pixels, fitted = _fit_all(opened.pixels, opened.pixels.shape, preprocess)
        return _Read(pixels, opened.labels, opened.classes, opened.encoding, fitted)
    pixels, _, fitted = _decode_files(opened.files, preprocess)
    return _Read(pixels, opened.labels, opened.classes, opened.encoding, fitted, opened.files)


def _read_npz(path: Path, preprocess: PreprocessSpec) -> _Read:
    """Read `images` uint8 (N, H, W, 3), and if there, `labels`, `classes` and `encoding` ("lossless" otherwise)."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _read_arrays(path, arrays, arrays.zip, preprocess)
    except DataError:
        raise
    except Exception as err:  # of zipfile, zlib and numpy's parser of headers; a dozen types, no list is complete
        raise DataError(f"{path} cannot be read as an .npz with an array `images`: {err}") from err


def _read_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], archive: ZipFile, preprocess: PreprocessSpec) -> _Read:
    stored = archive.getinfo("images" if "images" in archive.namelist() else "images.npy")
    with archive.open(stored.filename) as file:
        header = npy.read_header(file)
        shape = header.shape
        if header.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape[1:]:
            raise DataError(
                f"{path}: images are {header.dtype} {shape}; expected uint8 (N, H, W, 3) of at least a pixel each"
            )
        if math.prod(shape) > stored.file_size:
            raise ValueError(f"{stored.file_size:,} bytes are too few for images {shape}")
        labels, classes = _read_labels(path, arrays, shape[0])
        encoding = _read_encoding(path, arrays["encoding"]) if "encoding" in arrays else "lossless"
        rows = npy.read_rows(file, shape)
        if header.fortran_order:
            rows = npy.fortran_rows(_store(rows, shape), shape)
        pixels, fitted = _fit_all(rows, shape, preprocess)
    return _Read(pixels, labels, classes, encoding, fitted)


def _read_labels(path: Path, arrays: Mapping[str, NDArray[Any]], count: int) -> tuple[NDArray[np.int64], list[str]]:
    """Return labels and classes of `count` images: class 0 without labels, numbers without names."""
    labels = arrays["labels"] if "labels" in arrays else np.zeros(count, np.int64)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: labels are {labels.dtype} {labels.shape}; expected integers ({count},)")
    names = arrays["classes"] if "classes" in arrays else np.arange(int(labels.max(initial=0)) + 1)
    if names.ndim != 1:
        raise DataError(f"{path}: classes are {names.dtype} {names.shape}; expected names (K,)")
    classes = [_text(name) for name in names]
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise DataError(f"{path}: labels span {labels.min()} to {labels.max()}; expected 0 to {len(classes) - 1}")
    return labels.astype(np.int64), classes


def _read_encoding(path: Path, encoding: NDArray[Any]) -> str:
    if encoding.shape != () or encoding.dtype.kind not in "US":
        raise DataError(
            f"{path}: encoding is {encoding.dtype} {encoding.shape}; expected one string (), such as lossless or jpeg"
        )
    return _text(encoding[()])


def _text(name: Any) -> str:
    """Return a name as str; numpy keeps bytes as they are, which are taken for UTF-8."""
    return name.decode() if isinstance(name, bytes) else str(name)


def _fit_all(
    rows: Iterable[NDArray[np.uint8]], shape: tuple[int, ...], preprocess: PreprocessSpec
) -> tuple[NDArray[np.uint8], int]:
    """Store images of `shape` (N, H, W, 3) as (N, height, width, 3); and return how many had another size."""
    size = preprocess.height, preprocess.width
    pixels = _store((images.fit(image, preprocess) for image in rows), (shape[0], *size, 3))
    return pixels, 0 if shape[1:3] == size else shape[0]


def _read_folder(folder: Path, preprocess: PreprocessSpec) -> _Read:
    entries = sorted(folder.iterdir())
    class_dirs = [path for path in entries if path.is_dir() and not path.name.startswith(".")]
    loose = [path for path in entries if not path.is_dir() and _is_meant(path)]
    if class_dirs and loose:
        raise DataError(
            f"{folder} has folders of classes, and beside them files of no class: {len(loose)}, the first {loose[0]}; "
            "put each into the folder of its class, or take it out of the set"
        )
    files = [sorted(_image_files(path)) for path in class_dirs or [folder]]
    paths = [path for members in files for path in members]
    labels = np.repeat(np.arange(len(files)), [len(members) for members in files]).astype(np.int64)
    pixels, encodings, fitted = _decode_files(paths, preprocess)
    classes = [path.name for path in class_dirs or [folder]]
    return _Read(pixels, labels, classes, "+".join(sorted(encodings)), fitted, paths)


def _decode_files(paths: Sequence[Path], preprocess: PreprocessSpec) -> tuple[NDArray[np.uint8], set[str], int]:
    """Return pixels, their encodings, and how many had another size."""
    pixels = _allocate((len(paths), preprocess.height, preprocess.width, 3))
    encodings: set[str] = set()
    fitted = 0
    read = _in_threads(lambda path: _read_file(path, preprocess), paths)
    for row, (image, was_fitted, encoding) in enumerate(read):
        pixels[row] = image
        fitted += was_fitted
        encodings.add(encoding)
    return pixels, encodings, fitted


def _image_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from filter(_is_meant, (Path(parent, name) for name in names))


def _is_meant(file: Path) -> bool:
    """Return whether a file is meant for an image: it is not hidden, and not one of what lies beside images."""
    return not file.name.startswith(".") and file.suffix.lower() not in NO_IMAGE_SUFFIXES


def _refuse(err: OSError) -> NoReturn:
    raise DataError(f"{err.filename} cannot be read: {err.strerror}") from err


def _store(rows: Iterable[NDArray[np.uint8]], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Keep shape[0] arrays uint8 of shape[1:], one as soon as it comes, where `_allocate` puts them."""
    pixels = _allocate(shape)
    for at, row in enumerate(rows):
        pixels[at] = row
    return pixels


def _allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return an array to be filled, in memory, or beyond RESIDENT_BYTES a map of a temporary file.

    Raises:
        DataError: the disk has no room for the file.
    """
    size = math.prod(shape)
    if size <= RESIDENT_BYTES:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:  # without a name; its space is free again when the map is gone
        try:
            os.posix_fallocate(file.fileno(), 0, size)  # to write to a map for which the disk has no room is fatal
        except OSError as err:
            raise DataError(
                f"{tempfile.gettempdir()} has no room for {size:,} bytes of pixels: {err.strerror}; set TMPDIR"
            ) from err
        return np.memmap(file, np.uint8, mode="r+", shape=shape)


def _in_threads(make: Callable[[Given], Made], given: Iterable[Given]) -> Iterator[Made]:
    """Yield what is made of each, in order; AT_ONCE at a time, or what is made faster than taken fills the memory."""
    remaining = iter(given)
    with ThreadPoolExecutor() as pool:
        while some := list(islice(remaining, AT_ONCE)):
            yield from pool.map(make, some)


def _read_file(path: Path, preprocess: PreprocessSpec) -> tuple[NDArray[np.uint8], bool, str]:
    try:
        encoded = path.read_bytes()
        return *images.load_and_tell(encoded, preprocess), images.encoding(encoded)
    except (ImageError, OSError) as err:
        raise DataError(f"{path}: {err}, or take it out of the set") from err


def _reencode(pixels: NDArray[np.uint8], quality: int, preprocess: PreprocessSpec) -> NDArray[np.uint8]:
    def through_jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return images.load(encode.jpeg(image, quality), preprocess)

    return _store(_in_threads(through_jpeg, pixels), pixels.shape)


def _fingerprint(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> str:
    digest = hashlib.sha256(f"{pixels.shape}".encode())
    for start in range(0, len(pixels), 4096):
        digest.update(np.ascontiguousarray(pixels[start : start + 4096]).data)
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()
