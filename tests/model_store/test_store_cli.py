"""The commands of ood-store, each in this process; that the program itself runs is for README's commands to show."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from rich.text import Text

from model_store.bundle import BundleDraft
from model_store.cli import main
from model_store.store import Store

OodStore = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ood_store(run_command: OodStore) -> OodStore:
    return partial(run_command, main)


def test_list_names_every_bundle(ood_store: OodStore, store: Store, bundle_folder: Path) -> None:
    finished = ood_store("list", "--store", store.root)
    assert finished.returncode == 0
    assert "untrained@1" in finished.stdout
    assert "WRN-10-1" in finished.stdout


def test_list_of_the_shipped_store_names_cifar10(ood_store: OodStore) -> None:
    assert "cifar10@1" in ood_store("list").stdout


def test_list_shows_what_looks_like_markup_as_it_is(ood_store: OodStore, draft: BundleDraft, store: Store) -> None:
    described = draft.manifest.model_copy(update={"description": "a [b] and [/c]"})
    store.publish(replace(draft, manifest=described))
    finished = ood_store("list", "--store", store.root, COLUMNS="200")
    assert finished.returncode == 0
    assert "a [b] and [/c]" in finished.stdout


def test_list_gives_a_program_a_bundle_a_line(ood_store: OodStore, draft: BundleDraft, store: Store) -> None:
    name, description = "long-" * 12 + "name", "described at length " * 5 + "and to the end"
    said = draft.manifest.model_copy(update={"name": name, "description": description})
    store.publish(replace(draft, manifest=said))
    _, line = ood_store("list", "--store", store.root, COLUMNS="80").stdout.splitlines()
    assert line.split()[0] == f"{name}@1"
    assert description in line


def test_list_cuts_nothing_off_for_a_narrow_window(ood_store: OodStore, store: Store, bundle_folder: Path) -> None:
    finished = ood_store("list", "--store", store.root, COLUMNS="40", FORCE_COLOR="1")
    listed = Text.from_ansi(finished.stdout).plain
    assert max(map(len, listed.splitlines())) <= 40
    assert "\N{HORIZONTAL ELLIPSIS}" not in listed


def test_store_may_be_named_by_the_environment(ood_store: OodStore, store: Store, bundle_folder: Path) -> None:
    assert "untrained@1" in ood_store("list", OOD_STORE=str(store.root)).stdout


def test_show_prints_the_manifest(ood_store: OodStore, store: Store, bundle_folder: Path) -> None:
    finished = ood_store("show", "untrained", "--store", store.root)
    assert json.loads(finished.stdout) == json.loads((bundle_folder / "manifest.json").read_text())


def test_verify_says_that_a_bundle_is_whole(ood_store: OodStore, store: Store, bundle_folder: Path) -> None:
    finished = ood_store("verify", "untrained@1", "--store", store.root)
    assert finished.returncode == 0
    assert "untrained@1 is whole: 5 files, WRN-10-1, 3 golden images" in finished.stdout


@pytest.mark.parametrize("command", ["show", "verify"])
@pytest.mark.parametrize("name", ["nothing", "untrained@2", "untrained@x"])
def test_unknown_bundle_gets_a_message_and_status_1(
    ood_store: OodStore, store: Store, bundle_folder: Path, command: str, name: str
) -> None:
    finished = ood_store(command, name, "--store", store.root)
    assert finished.returncode == 1
    assert finished.stderr.startswith("ood-store: ")
    assert "Traceback" not in finished.stderr


def test_damaged_bundle_gets_a_message_and_status_1(ood_store: OodStore, store: Store, bundle_folder: Path) -> None:
    (bundle_folder / "weights.safetensors").write_bytes(b"")
    finished = ood_store("verify", "untrained", "--store", store.root)
    assert finished.returncode == 1
    assert "weights.safetensors has 0 bytes" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_place_that_cannot_be_gets_a_message_and_status_1(ood_store: OodStore) -> None:
    finished = ood_store("list", "--store", "a" * 300)
    assert finished.returncode == 1
    assert finished.stderr.startswith("ood-store: [Errno 36] File name too long")
