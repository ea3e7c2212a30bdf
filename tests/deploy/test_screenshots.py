"""The pictures of the page in its documentation: of the bundle that ships, small, made by the command it names."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.servers import free_port
from deploy import screenshots
from model_store.store import SHIPPED, BundleRef, Store

SHIPPED_VERSION = int(Store(SHIPPED).resolve(BundleRef("cifar10")).name)
PAGE = (screenshots.ROOT / "docs" / "page.md").read_text()


def check(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == {f"page-{view.name}.png" for view in screenshots.VIEWS}
    for view in screenshots.VIEWS:
        file = folder / f"page-{view.name}.png"
        with Image.open(file) as picture:
            assert picture.width == view.width
            assert picture.height > screenshots.HEIGHT
            assert picture.info[screenshots.MODEL] == f"cifar10@{SHIPPED_VERSION}", "make screenshots"
            corner = picture.convert("L").getpixel((0, 0))
            assert (corner < 128) == (view.scheme == "dark")
        assert file.stat().st_size < 300_000


def test_the_pictures_show_the_bundle_that_ships() -> None:
    check(screenshots.PICTURES)


def test_the_page_of_the_documentation_shows_each_of_them() -> None:
    for view in screenshots.VIEWS:
        assert f"(images/page-{view.name}.png)" in PAGE
    assert "`make screenshots`" in PAGE


@pytest.mark.slow
def test_pictures_are_made_anew(tmp_path: Path, openvino_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OOD_CACHE_DIR", str(openvino_cache))
    screenshots.main(["--out", str(tmp_path), "--port", str(free_port()), "--images", "40"])
    check(tmp_path)
