import io
import pickle
import resource
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from model_store import images
from model_store.manifest import PreprocessSpec
from training import encode
from training.batches import PlacedImages
from training.datasets import ImageSet, load_set
from training.errors import DataError
from training.splits import split_calibration

Write = Callable[..., Path]


def test_folder_of_classes(image_sets: Path, train_set: ImageSet) -> None:
    assert train_set.images.shape == (200, 32, 32, 3)
    assert train_set.classes[:3] == ("airplane", "automobile", "bird")
    np.testing.assert_array_equal(np.bincount(train_set.labels), [20] * 10)
    assert train_set.encoding == "lossless"
    assert train_set.fitted == 0
    files = sorted((image_sets / "cifar10/train/bird").iterdir())
    np.testing.assert_array_equal(train_set.images[40], np.asarray(Image.open(files[0])))
    assert train_set.labels[40] == 2


def test_flat_folder_is_one_class(image_sets: Path, preprocess: PreprocessSpec) -> None:
    cats = load_set("cifar10/train/cat", image_sets, preprocess, None)
    assert (cats.classes, len(cats), set(cats.labels)) == (("cat",), 20, {0})


def test_npz_without_labels_is_one_class(outliers: ImageSet) -> None:
    assert outliers.images.shape == (150, 32, 32, 3)
    assert outliers.classes == ("0",)


def test_forms_of_one_set_have_one_fingerprint(train_set: ImageSet, tmp_path: Path, preprocess: PreprocessSpec) -> None:
    np.savez(tmp_path / "same.npz", images=train_set.images, labels=train_set.labels.astype(np.uint8))
    assert load_set("same", tmp_path, preprocess, None).fingerprint == train_set.fingerprint
    changed = train_set.images.copy()
    changed[0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "other.npz", images=changed, labels=train_set.labels)
    assert load_set("other", tmp_path, preprocess, None).fingerprint != train_set.fingerprint


def test_torchvision_set(tmp_path: Path, train_set: ImageSet, preprocess: PreprocessSpec) -> None:
    """CIFAR-10 in torchvision's layout, made of our images; it checks the real files' MD5, so that is off."""
    import torchvision.datasets

    _write_cifar(tmp_path, train_set)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda _: True)
        patch.setattr(torchvision.datasets.CIFAR10, "_load_meta", _load_meta)
        loaded = load_set("torchvision:CIFAR10:test", tmp_path, preprocess, None)
    np.testing.assert_array_equal(loaded.images, train_set.images)
    np.testing.assert_array_equal(loaded.labels, train_set.labels)
    assert loaded.classes == train_set.classes
    assert loaded.fingerprint == train_set.fingerprint


def _write_cifar(folder: Path, source: ImageSet) -> None:
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    rows = source.images.transpose(0, 3, 1, 2).reshape(len(source), -1)
    (batches / "test_batch").write_bytes(pickle.dumps({"data": rows, "labels": source.labels.tolist()}))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": list(source.classes)}))


def _load_meta(self) -> None:
    self.classes = pickle.loads((Path(self.root) / self.base_folder / "batches.meta").read_bytes())["label_names"]


def test_torchvision_set_with_channels_first(
    tmp_path: Path, train_set: ImageSet, preprocess: PreprocessSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_: True)
    arrays = {"X": train_set.images.transpose(1, 2, 3, 0), "y": train_set.labels[:, None]}
    savemat(tmp_path / "test_32x32.mat", arrays)
    loaded = load_set("torchvision:SVHN:test", tmp_path, preprocess, None)
    np.testing.assert_array_equal(loaded.images, train_set.images)
    np.testing.assert_array_equal(loaded.labels, train_set.labels)


def test_torchvision_set_of_files_goes_through_the_decoder(
    tmp_path: Path, train_set: ImageSet, preprocess: PreprocessSpec
) -> None:
    folder = tmp_path / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    names = ["banded/0.jpg", "banded/1.jpg", "woven/2.jpg"]
    (folder / "labels" / "test1.txt").write_text("\n".join(names))
    for row, name in enumerate(names):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        enlarged = Image.fromarray(train_set.images[row]).resize((300, 400))
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down
        enlarged.rotate(180).save(folder / "images" / name, exif=exif)
    loaded = load_set("torchvision:DTD:test", tmp_path, preprocess, None)
    assert (loaded.classes, loaded.labels.tolist(), loaded.encoding) == (("banded", "woven"), [0, 0, 1], "jpeg")
    expected = images.load((folder / "images" / names[2]).read_bytes(), preprocess)
    np.testing.assert_array_equal(loaded.images[2], expected)
    assert (loaded.fitted, loaded.where(2)) == (3, str(folder / "images" / names[2]))


def _photographs(folder: Path, names: list[str], source: ImageSet) -> None:
    for image, name in zip(source.images, names, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((48, 64)).save(folder / name)


def test_celeba_of_torchvision_is_one_class_of_its_splits_files(
    tmp_path: Path, train_set: ImageSet, preprocess: PreprocessSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In torchvision's layout; it checks the real lists' MD5, so that is off."""
    monkeypatch.setattr("torchvision.datasets.celeba.check_integrity", lambda *_: True)
    folder = tmp_path / "celeba"
    splits = {"000001.jpg": 0, "000002.jpg": 2, "000003.jpg": 1, "000004.jpg": 2}
    _photographs(folder / "img_align_celeba", list(splits), train_set)
    (folder / "list_eval_partition.txt").write_text("".join(f"{name} {split}\n" for name, split in splits.items()))
    (folder / "identity_CelebA.txt").write_text("".join(f"{name} 7\n" for name in splits))
    for name in ("bbox_celeba", "landmarks_align_celeba", "attr_celeba"):
        rows = "".join(f"{name} 1 -1\n" for name in splits)
        (folder / f"list_{name}.txt").write_text(f"{len(splits)}\nYoung Male\n{rows}")
    loaded = load_set("torchvision:CelebA:test", tmp_path, preprocess, None)
    files = [folder / "img_align_celeba" / name for name in ("000002.jpg", "000004.jpg")]
    assert [loaded.where(0), loaded.where(1)] == list(map(str, files))
    assert (loaded.classes, loaded.labels.tolist(), loaded.encoding, loaded.fitted) == (("0",), [0, 0], "jpeg", 2)
    np.testing.assert_array_equal(loaded.images[1], images.load(files[1].read_bytes(), preprocess))


@pytest.mark.parametrize(
    ("split", "listed", "folder"),
    [("train", "train_standard", "data_256_standard"), ("val", "val", "val_256")],
)
def test_places_of_torchvision_are_the_small_images_by_their_lists(
    tmp_path: Path,
    train_set: ImageSet,
    preprocess: PreprocessSpec,
    monkeypatch: pytest.MonkeyPatch,
    split: str,
    listed: str,
    folder: str,
) -> None:
    monkeypatch.setattr("torchvision.datasets.places365.check_integrity", lambda *_, **__: True)
    (tmp_path / "categories_places365.txt").write_text("/a/airfield 0\n/b/bow_window/indoor 1\n")
    labels = {"a/1.jpg": 1, "b/2.jpg": 0, "3.jpg": 1}
    (tmp_path / f"places365_{listed}.txt").write_text("".join(f"/{name} {label}\n" for name, label in labels.items()))
    _photographs(tmp_path / folder, list(labels), train_set)
    loaded = load_set(f"torchvision:Places365:{split}", tmp_path, preprocess, None)
    assert (loaded.classes, loaded.labels.tolist()) == (("/a/airfield", "/b/bow_window/indoor"), [1, 0, 1])
    assert (loaded.encoding, loaded.fitted, loaded.where(1)) == ("jpeg", 3, str(tmp_path / folder / "b/2.jpg"))
    expected = images.load((tmp_path / folder / "3.jpg").read_bytes(), preprocess)
    np.testing.assert_array_equal(loaded.images[2], expected)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("cifar10/train", ("cifar10/train", ".npz", "sub-folder")),
        ("torchvision:CIFAR10:train", ("CIFAR10", "train=True", "download=True")),
        ("torchvision:SVHN:extra", ("SVHN", "split='extra'", "download=True")),
        ("torchvision:ImageNet:train", ("torchvision sets are CIFAR10",)),
        ("torchvision:CIFAR10:validation", ("has the splits train, test",)),
    ],
)
def test_missing_set_says_how_to_get_it(
    tmp_path: Path, preprocess: PreprocessSpec, source: str, parts: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as caught:
        load_set(source, tmp_path, preprocess, None)
    for part in parts:
        assert part in str(caught.value)


def test_unreadable_file_is_named_by_path(image_sets: Path, tmp_path: Path, preprocess: PreprocessSpec) -> None:
    shutil.copytree(image_sets / "cifar10" / "train", tmp_path / "train")
    broken = sorted((tmp_path / "train" / "frog").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match=str(broken)):
        load_set("train", tmp_path, preprocess, None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("photograph.heic", "no image of a format that is read"),
        ("photograph", "0 bytes"),
        ("photograph.png", "No such file"),
    ],
)
def test_file_that_is_not_read_is_refused_not_passed_over(
    tmp_path: Path, jpeg_folder: Write, train_set: ImageSet, preprocess: PreprocessSpec, name: str, reason: str
) -> None:
    jpeg_folder(tmp_path / "set", train_set)
    unread = tmp_path / "set" / name
    match unread.suffix:
        case ".heic":
            unread.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
        case ".png":
            unread.symlink_to("nowhere")
        case _:
            unread.touch()
    with pytest.raises(DataError, match=rf"{unread}: .*{reason}.*take it out of the set"):
        load_set("set", tmp_path, preprocess, None)


def test_images_are_read_by_any_name_and_in_linked_folders(
    tmp_path: Path, jpeg_folder: Write, train_set: ImageSet, preprocess: PreprocessSpec
) -> None:
    jpeg_folder(tmp_path / "elsewhere", train_set)
    (tmp_path / "elsewhere/0.jpg").rename(tmp_path / "elsewhere/0.jpe")
    (tmp_path / "elsewhere/1.jpg").rename(tmp_path / "elsewhere/without-suffix")
    (tmp_path / "set/cat").mkdir(parents=True)
    (tmp_path / "set/cat/more").symlink_to(tmp_path / "elsewhere")
    loaded = load_set("set", tmp_path, preprocess, None)
    assert (len(loaded), loaded.classes, loaded.encoding) == (5, ("cat",), "jpeg")


def test_files_that_are_no_images_of_the_set_are_passed_over(
    tmp_path: Path, jpeg_folder: Write, train_set: ImageSet, preprocess: PreprocessSpec
) -> None:
    jpeg_folder(tmp_path / "set", train_set)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "index.parquet", "LABELS.CSV", ".hidden/0.jpg"):
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"no image")
    assert len(load_set("set", tmp_path, preprocess, None)) == 5


def test_image_beside_the_folders_of_classes_is_refused(
    image_sets: Path, tmp_path: Path, train_set: ImageSet, preprocess: PreprocessSpec
) -> None:
    shutil.copytree(image_sets / "cifar10" / "train", tmp_path / "train")
    (tmp_path / "train/labels.txt").touch()
    assert load_set("train", tmp_path, preprocess, None).fingerprint == train_set.fingerprint
    for name in ("b.png", "a.png"):
        Image.fromarray(train_set.images[0]).save(tmp_path / "train" / name)
    with pytest.raises(DataError, match=rf"{tmp_path}/train has .* 2, the first {tmp_path}/train/a\.png; put each"):
        load_set("train", tmp_path, preprocess, None)


def test_empty_folder_is_refused(tmp_path: Path, preprocess: PreprocessSpec) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_set("train", tmp_path, preprocess, None)


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": np.zeros((2, 32, 32, 3), np.float32)},
        {"images": np.zeros((2, 3, 32, 32), np.uint8)},
        {"images": np.zeros((2, 32, 32), np.uint8)},
        {"images": np.zeros((2, 0, 0, 3), np.uint8)},
        {"images": np.zeros((2, 32, 32, 3), np.uint8), "labels": np.zeros(3, np.int64)},
        {"images": np.zeros((2, 32, 32, 3), np.uint8), "labels": np.zeros(2)},
        {"images": np.zeros((2, 32, 32, 3), np.uint8), "labels": np.array([0, -1])},
        {"images": np.zeros((2, 32, 32, 3), np.uint8), "labels": np.array([0, 5]), "classes": np.array(["a", "b"])},
        {"images": np.zeros((2, 32, 32, 3), np.uint8), "classes": np.array([["a", "b"]])},
        {"images": np.zeros((2, 32, 32, 3), np.uint8), "classes": np.array([b"na\xefve"])},
        {"pixels": np.zeros((2, 32, 32, 3), np.uint8)},
        {"images": np.array([{"an": "object"}], dtype=object)},
    ],
)
def test_npz_that_is_no_image_set_is_named_by_path(
    tmp_path: Path, preprocess: PreprocessSpec, arrays: dict[str, np.ndarray]
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=r"bad\.npz"):
        load_set("bad", tmp_path, preprocess, None)


@pytest.mark.parametrize("encoding", [np.array("jpeg"), np.array(b"jpeg")])
def test_npz_may_hold_its_texts_as_bytes(
    labelled_npz: Callable[..., Path], preprocess: PreprocessSpec, encoding: np.ndarray
) -> None:
    folder = labelled_npz([0, 1, 0], [b"cat", "naïve".encode()], encoding=encoding)
    found = load_set("set", folder, preprocess, None)
    assert (found.classes, found.encoding) == (("cat", "naïve"), "jpeg")


@pytest.mark.parametrize("encoding", [np.array(["jpeg"]), np.array(["jpeg", "png"]), np.array(3), np.array([])])
def test_npz_with_another_encoding_than_one_string_is_refused(
    labelled_npz: Callable[..., Path], preprocess: PreprocessSpec, encoding: np.ndarray
) -> None:
    folder = labelled_npz([0, 1, 0], encoding=encoding)
    with pytest.raises(
        DataError, match=r"set\.npz: encoding is .*; expected one string \(\), such as lossless or jpeg"
    ):
        load_set("set", folder, preprocess, None)


def _zipped(array: bytes, *, flags: int = 0, method: int = 0) -> bytes:
    """Return an .npz with one member `images.npy`, with these general-purpose flags and compression in its headers."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images.npy", array)
    content = bytearray(file.getvalue())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.index(magic) + offset
        content[at : at + 4] = struct.pack("<HH", flags, method)
    return bytes(content)


def _array(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


PETABYTES = "{'descr': '|u1', 'fortran_order': False, 'shape': (3000000000000, 32, 32, 3), }\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no zip",
        b"PK\x03\x04 half a zip",
        _zipped(_array(PETABYTES)),
        _zipped(_array("{'descr': ((\n")),
        _zipped(_array(PETABYTES), flags=1),  # encrypted
        _zipped(_array(PETABYTES), method=99),  # a compression that nobody knows
    ],
)
def test_file_that_is_no_npz_is_named_by_path(tmp_path: Path, preprocess: PreprocessSpec, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.npz"):
        load_set("bad", tmp_path, preprocess, None)


def test_images_of_another_size_are_fitted(tmp_path: Path, preprocess: PreprocessSpec) -> None:
    large = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    np.savez(tmp_path / "large.npz", images=large)
    (tmp_path / "files").mkdir()
    Image.fromarray(large[0]).save(tmp_path / "files" / "0.png")
    from_array = load_set("large", tmp_path, preprocess, None)
    from_file = load_set("files", tmp_path, preprocess, None)
    assert from_array.images.shape == (2, 32, 32, 3)
    assert (from_array.fitted, from_file.fitted) == (2, 1)
    assert (from_array.where(1), from_file.where(0)) == ("large[1]", str(tmp_path / "files/0.png"))
    np.testing.assert_array_equal(from_array.images[0], from_file.images[0])


@pytest.mark.parametrize(
    ("suffix", "options", "encoding"),
    [
        (".jpg", {}, "jpeg"),
        (".png", {}, "lossless"),
        (".webp", {"lossless": True}, "lossless"),
        (".webp", {"quality": 80}, "webp"),
        (".bmp", {}, "lossless"),
        (".avif", {}, "avif"),
    ],
)
def test_encoding_is_read_from_the_content(
    tmp_path: Path, train_set: ImageSet, preprocess: PreprocessSpec, suffix: str, options: dict, encoding: str
) -> None:
    (tmp_path / "set").mkdir()
    Image.fromarray(train_set.images[0]).save(tmp_path / "set" / f"0{suffix}", **options)
    assert load_set("set", tmp_path, preprocess, None).encoding == encoding


def test_large_folder_is_streamed_from_a_memory_map(
    image_sets: Path, tmp_path: Path, train_set: ImageSet, preprocess: PreprocessSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(image_sets / "cifar10" / "train", tmp_path / "train")
    monkeypatch.setattr("training.datasets.RESIDENT_BYTES", 1000)
    loaded = load_set("train", tmp_path, preprocess, None)
    assert loaded.fingerprint == train_set.fingerprint
    fit, expected = split_calibration(loaded, 50, seed=0)[0], split_calibration(train_set, 50, seed=0)[0]
    assert isinstance(fit.pixels, np.memmap)  # the split is of rows, not a copy
    placed = PlacedImages(fit, torch.device("cpu"))
    index = torch.tensor([3, 149, 0])
    np.testing.assert_array_equal(placed.take(index).numpy(), expected.images[index.numpy()])
    assert {path.name for path in tmp_path.iterdir()} == {"train"}


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every set held in a memory map, and rows in Fortran order put right a few at a time."""
    monkeypatch.setattr("training.datasets.RESIDENT_BYTES", 1000)
    monkeypatch.setattr("training.npy.BLOCK_BYTES", 2**18)


MANY = 4000
FORMS = {
    "stored": lambda path, images: np.savez(path, images=images),
    "compressed": lambda path, images: np.savez_compressed(path, images=images),
    "in Fortran order": lambda path, images: np.savez(path, images=np.asfortranarray(images)),
    "in Fortran order, compressed": lambda path, images: np.savez_compressed(path, images=np.asfortranarray(images)),
}


def _smooth(count: int, height: int, width: int) -> np.ndarray:
    """Return images uint8 (count, height, width, 3), no two alike nor symmetric, which zip and JPEG make small."""
    start = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3))
    return (start + 3 * np.arange(height)[:, None, None] + np.arange(width)[:, None]).astype(np.uint8)


def _peak_bytes(load: Callable[[], ImageSet]) -> tuple[ImageSet, int]:
    """Return a set and the most bytes that Python and numpy had allocated at once for it; maps are not counted."""
    tracemalloc.start()
    try:
        return load(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(32, 32), (40, 56)])
def test_large_npz_is_streamed_into_a_memory_map(
    tmp_path: Path, preprocess: PreprocessSpec, mapped: None, form: str, size: tuple[int, int]
) -> None:
    stored = _smooth(MANY, *size)
    FORMS[form](tmp_path / "large.npz", stored)
    loaded, peak_bytes = _peak_bytes(lambda: load_set("large", tmp_path, preprocess, None))
    assert isinstance(loaded.pixels, np.memmap)
    assert peak_bytes < 1e6 < stored.nbytes / 12
    assert loaded.fitted == (0 if size == (32, 32) else MANY)
    np.testing.assert_array_equal(loaded.pixels, [images.fit(image, preprocess) for image in stored])
    assert {path.name for path in tmp_path.iterdir()} == {"large.npz"}


@pytest.mark.parametrize("form", FORMS)
def test_npz_is_one_set_whether_it_is_held_in_memory_or_mapped(
    tmp_path: Path, preprocess: PreprocessSpec, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    stored = _smooth(50, 32, 32)
    FORMS[form](tmp_path / "set.npz", stored)
    in_memory = load_set("set", tmp_path, preprocess, None)
    assert not isinstance(in_memory.pixels, np.memmap)
    np.testing.assert_array_equal(in_memory.pixels, stored)
    monkeypatch.setattr("training.datasets.RESIDENT_BYTES", stored.nbytes - 1)
    mapped = load_set("set", tmp_path, preprocess, None)
    assert isinstance(mapped.pixels, np.memmap)
    assert mapped.fingerprint == in_memory.fingerprint


def test_large_set_is_re_encoded_into_a_memory_map(tmp_path: Path, preprocess: PreprocessSpec, mapped: None) -> None:
    stored = _smooth(MANY, 32, 32)
    np.savez(tmp_path / "large.npz", images=stored)
    loaded, peak_bytes = _peak_bytes(lambda: load_set("large", tmp_path, preprocess, 80))
    assert isinstance(loaded.pixels, np.memmap)
    assert peak_bytes < 2.5e6 < stored.nbytes / 4
    expected = [images.load(encode.jpeg(image, 80), preprocess) for image in stored]
    np.testing.assert_array_equal(loaded.pixels, expected)


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("damage", "said"), [(_cut, "not a zip file|pickle"), (_flipped, "CRC|decompressing")])
def test_damaged_npz_is_refused_while_it_is_streamed(
    tmp_path: Path,
    preprocess: PreprocessSpec,
    mapped: None,
    form: str,
    damage: Callable[[bytes], bytes],
    said: str,
) -> None:
    path = tmp_path / "large.npz"
    FORMS[form](path, _smooth(50, 32, 32))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"^{path} cannot be read as an .npz with an array `images`: .*({said})"):
        load_set("large", tmp_path, preprocess, None)


def test_npz_with_fewer_bytes_than_images_is_refused(tmp_path: Path, preprocess: PreprocessSpec, mapped: None) -> None:
    """By what its directory says, or if that lies as well, where the data end."""
    path = tmp_path / "large.npz"
    content = _zipped(_array("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 32, 32, 3), }\n") + bytes(6000))
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{path} .* 6,078 bytes are too few for images \(2, 32, 32, 3\)"):
        load_set("large", tmp_path, preprocess, None)
    sizes = content.index(b"PK\x01\x02") + 20
    path.write_bytes(content[:sizes] + struct.pack("<II", 9000, 9000) + content[sizes + 8 :])
    with pytest.raises(DataError, match=f"^{path} cannot be read as an .npz with an array `images`"):
        load_set("large", tmp_path, preprocess, None)


def test_map_that_the_disk_has_no_room_for_is_refused(tmp_path: Path, preprocess: PreprocessSpec, mapped: None) -> None:
    np.savez_compressed(tmp_path / "large.npz", images=np.zeros((100, 32, 32, 3), np.uint8))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"has no room for 307,200 bytes of pixels: File too large; set TMPDIR"):
            load_set("large", tmp_path, preprocess, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
