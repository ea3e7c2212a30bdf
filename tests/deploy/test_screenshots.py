"""The pictures of the page in its documentation: of the bundle that ships, small, made by the command it names."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.servers import free_port
from deploy import screenshots
from model_store.store import SHIPPED, BundleRef, Store

SHIPPED_VERSION = int(Store(SHIPPED).resolve(BundleRef("cifar10")).name)
PAGE = (screenshots.ROOT / "docs" / "page.md").read_text()


EXPECTED = {
    f"page-{view.name}.png": (view.width, view.scheme, f"cifar10@{SHIPPED_VERSION}") for view in screenshots.VIEWS
}
SMALL_BYTES = 300_000


def shown(folder: Path) -> dict[str, tuple[int, str, str]]:
    """Return of each small picture of a whole page its width, whether it is dark, and the bundle that it names."""
    found = {}
    for file in folder.iterdir():
        with Image.open(file) as picture:
            scheme = "dark" if picture.convert("L").getpixel((0, 0)) < 128 else "light"
            if picture.height > screenshots.HEIGHT and file.stat().st_size < SMALL_BYTES:
                found[file.name] = (picture.width, scheme, picture.info[screenshots.MODEL])
    return found


def test_the_pictures_show_the_bundle_that_ships() -> None:
    assert shown(screenshots.PICTURES) == EXPECTED, "make screenshots"


def test_the_page_of_the_documentation_shows_each_of_them() -> None:
    for view in screenshots.VIEWS:
        assert f"(images/page-{view.name}.png)" in PAGE
    assert "`make screenshots`" in PAGE


@pytest.mark.slow
def test_pictures_are_made_anew(tmp_path: Path, openvino_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OOD_CACHE_DIR", str(openvino_cache))
    screenshots.main(["--out", str(tmp_path), "--port", str(free_port()), "--images", "40"])
    assert shown(tmp_path) == EXPECTED
