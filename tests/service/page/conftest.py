"""A browser, and pages in it at the end of which nothing may have gone wrong."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live import Running, running
from playwright.sync_api import Browser, expect, sync_playwright
from shown import QUIET, Shown

from service.settings import Settings


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser; not for longer than a file, since an event loop runs in this thread as long as Playwright does."""
    found = shutil.which("chromium")
    assert found, "no chromium; on Debian: apt-get install chromium"
    expect.set_options(timeout=15_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def newest(settings: Callable[..., Settings]) -> Iterator[Running]:
    """A server of the bundle that ships."""
    with running(settings(models=("cifar10",))) as server:
        yield server


@pytest.fixture
def show(browser: Browser) -> Iterator[Callable[..., Shown]]:
    """Show the page of a server in a fresh profile; at the end nothing may have gone wrong."""
    shown: list[Shown] = []

    def make(server: Running, **context: object) -> Shown:
        page = browser.new_context(**context).new_page()  # type: ignore[arg-type]
        page.set_default_timeout(10_000)
        shown.append(Shown(page, f"{server.url}/"))
        return shown[-1]

    yield make
    for one in shown:
        one.close()
        assert one.faults == []


@pytest.fixture
def frog(image_sets: Path) -> Path:
    """A test image that the model knows for what it is."""
    return image_sets / "cifar10" / "test" / "frog" / "06404.png"
