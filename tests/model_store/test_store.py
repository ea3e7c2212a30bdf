import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from model_store.bundle import MANIFEST, BundleDraft, load_bundle, read_manifest
from model_store.errors import BundleExistsError, BundleNotFoundError, IntegrityError
from model_store.store import BundleRef, Store


def test_publish_counts_versions_up(store: Store, draft: BundleDraft) -> None:
    assert [store.publish(draft).name for _ in range(3)] == ["1", "2", "3"]
    assert store.refs() == [BundleRef("untrained", version) for version in (1, 2, 3)]
    assert store.resolve(BundleRef("untrained")).name == "3"
    assert store.resolve(BundleRef("untrained", 2)).name == "2"


def test_versions_sort_as_numbers(store: Store, draft: BundleDraft) -> None:
    for version in (2, 10, 9):
        store.publish(draft, version)
    assert store.resolve(BundleRef("untrained")).name == "10"
    assert store.publish(draft).name == "11"


def test_version_is_newer_than_one_of_another_store(store: Store, draft: BundleDraft) -> None:
    assert store.publish(draft, newer_than=4).name == "5"
    assert store.publish(draft, newer_than=4).name == "6"


def test_published_version_is_immutable(store: Store, draft: BundleDraft) -> None:
    folder = store.publish(draft, 1)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    other = replace(draft, manifest=draft.manifest.model_copy(update={"description": "another"}))
    with pytest.raises(BundleExistsError, match="untrained@1 is published already"):
        store.publish(other, 1)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


@pytest.mark.parametrize("text", ["a@", "a@0", "a@-1", "a@x", "a@1.0", "a@1@2", "a@²", "a@01", "a@1000000000"])
def test_reference_with_a_version_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BundleNotFoundError, match="positive integer"):
        BundleRef.parse(text)


def test_reference_round_trip() -> None:
    assert BundleRef.parse("cifar10") == BundleRef("cifar10", None)
    assert BundleRef.parse("cifar10@12") == BundleRef("cifar10", 12)
    assert str(BundleRef("cifar10", 12)) == "cifar10@12"


@pytest.mark.parametrize("ref", [BundleRef("nothing"), BundleRef("untrained", 7), BundleRef("../untrained", 1)])
def test_unknown_bundle_is_refused_and_the_known_are_named(store: Store, bundle_folder: Path, ref: BundleRef) -> None:
    with pytest.raises(BundleNotFoundError, match="there are: untrained@1"):
        store.resolve(ref)


def test_half_copied_version_does_not_count(store: Store, bundle_folder: Path) -> None:
    half = bundle_folder.parent / "2"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    (bundle_folder.parent / ".incoming-x").mkdir()
    assert store.refs() == [BundleRef("untrained", 1)]
    assert store.resolve(BundleRef("untrained")) == bundle_folder


@pytest.mark.parametrize("name", ["0", "02", "\u0662"])
def test_directory_that_no_version_is_called_by_does_not_count(store: Store, bundle_folder: Path, name: str) -> None:
    shutil.copytree(bundle_folder, bundle_folder.parent / name)
    assert store.refs() == [BundleRef("untrained", 1)]
    assert store.resolve(BundleRef("untrained")) == bundle_folder


@contextmanager
def _bound_by_modes() -> Iterator[None]:
    """Be a user who may read what modes say, which root is not."""
    own = os.geteuid()
    os.seteuid(own or 65534)
    try:
        yield
    finally:
        os.seteuid(own)


@pytest.mark.parametrize("closed", ["", "untrained", "untrained/2"])
def test_what_may_not_be_read_is_named_and_nothing_stands_in_for_it(bundle_folder: Path, closed: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's are closed to others
        store = Store(Path(folder) / "store")
        for version in ("1", "2"):
            shutil.copytree(bundle_folder, store.root / "untrained" / version)
        Path(folder).chmod(0o755)
        (store.root / closed).chmod(0)
        with _bound_by_modes():
            if closed == "untrained/2":
                assert store.resolve(BundleRef("untrained", 1)) == store.root / "untrained" / "1"
            with pytest.raises(
                BundleNotFoundError, match=rf"{store.root / closed}.* cannot be read \(Permission denied"
            ):
                store.resolve(BundleRef("untrained"))
        (store.root / closed).chmod(0o755)


def test_half_copied_version_is_not_written_over(store: Store, bundle_folder: Path, draft: BundleDraft) -> None:
    half = bundle_folder.parent / "2"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert store.publish(draft).name == "3"
    assert (half / "weights.safetensors").read_bytes() == b"half"


def test_renamed_bundle_is_refused(store: Store, bundle_folder: Path) -> None:
    bundle_folder.rename(bundle_folder.parent / "5")
    with pytest.raises(IntegrityError, match=r"holds untrained@1; expected untrained@5"):
        store.resolve(BundleRef("untrained", 5))


def test_empty_store_says_so(tmp_path: Path) -> None:
    assert Store(tmp_path / "none").refs() == []
    with pytest.raises(BundleNotFoundError, match="there are: none"):
        Store(tmp_path / "none").resolve(BundleRef("cifar10"))


def _publish(root: Path, draft: BundleDraft, version: int | None, start, results) -> None:
    start.wait()
    try:
        results.put(Store(root).publish(draft, version).name)
    except BundleExistsError:
        results.put("exists")


@pytest.mark.parametrize(
    ("version", "expected"), [(1, ["1", "exists", "exists", "exists"]), (None, ["1", "2", "3", "4"])]
)
def test_processes_that_publish_at_once_corrupt_nothing(
    tmp_path: Path, draft: BundleDraft, version: int | None, expected: list[str]
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["model_store.bundle"])  # so that PyTorch is imported once, not by each
    start, results = context.Barrier(4), context.Queue()
    drafts = [
        replace(draft, manifest=draft.manifest.model_copy(update={"description": f"process {n}"})) for n in range(4)
    ]
    processes = [context.Process(target=_publish, args=(tmp_path, d, version, start, results)) for d in drafts]
    for process in processes:
        process.start()
    outcomes = sorted(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert outcomes == expected
    folders = [tmp_path / "untrained" / outcome for outcome in outcomes if outcome != "exists"]
    descriptions = {load_bundle(folder).manifest.description for folder in folders}
    assert len(descriptions) == len(folders)
    assert {path.name for path in (tmp_path / "untrained").iterdir()} == {folder.name for folder in folders}


def test_failed_write_leaves_no_version(store: Store, draft: BundleDraft) -> None:
    broken = replace(draft, golden={"golden/0.png": None})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        store.publish(broken)
    assert store.refs() == []
    assert list((store.root / "untrained").iterdir()) == []


def test_manifest_says_its_own_version(store: Store, draft: BundleDraft) -> None:
    folder = store.publish(draft, 42)
    assert read_manifest(folder).version == json.loads((folder / MANIFEST).read_text())["version"] == 42
