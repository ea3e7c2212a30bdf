"""Picture the page for its documentation: a server of the shipped bundle, asked of some images while others come."""

import argparse
import io
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser, expect, sync_playwright

from deploy.programs import require_free, running
from deploy.replay import IMAGES, load_pools, mixed, replaying
from deploy.stack import LOOPBACK

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "images"
FROG = IMAGES / "cifar10" / "test" / "frog" / "06404.png"
SAMPLES = [ROOT / "service" / "web" / name for name in ("rocket.jpg", "bricks.jpg")]
BROKEN_BYTES = 300
REPLAYED = 1100
IMAGES_PER_S = 200.0
OOD_SHARE = 0.1
TIMEOUT_S = 60.0
HEIGHT = 900
MODEL = "model"
"""The text in a picture's file that says which bundle it shows."""


@dataclass(frozen=True)
class View:
    """How the page is looked at; the width is in CSS pixels."""

    name: str
    width: int
    scheme: Literal["light", "dark"]


VIEWS = (View("light", 1100, "light"), View("dark", 1100, "dark"), View("narrow", 390, "light"))


def replay(url: str, images: int) -> None:
    """Send so many images, OOD_SHARE of them OOD.

    Raises:
        RuntimeError: a request failed, or it took too long.
    """
    limit = time.monotonic() + TIMEOUT_S
    with replaying(url, mixed(load_pools(), OOD_SHARE, seed=0), IMAGES_PER_S) as sent:
        while sent.images < images:
            if sent.failures or time.monotonic() > limit:
                raise RuntimeError(f"{sent.images} of {images} images were judged; {sent.last_failure or 'too slow'}")
            time.sleep(0.05)


@contextmanager
def browsing() -> Iterator[Browser]:
    """Run Chromium without a screen.

    Raises:
        FileNotFoundError: it is not installed.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        raise FileNotFoundError("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def picture(browser: Browser, url: str, view: View, files: Sequence[Path]) -> Image.Image:
    """Return the whole page once it has answered for all files and shows the traffic; in 256 colours, for size."""
    viewport = {"width": view.width, "height": HEIGHT}
    page = browser.new_context(color_scheme=view.scheme, viewport=viewport).new_page()  # type: ignore[arg-type]
    page.goto(url)
    # It knows its model by then; files that were chosen before would not be taken.
    expect(page.locator("#ask")).to_be_visible(timeout=1000 * TIMEOUT_S)
    page.set_input_files("#files", files)
    expect(page.locator("#verdicts > li:is(.known, .ood, .refused)")).to_have_count(
        len(files), timeout=1000 * TIMEOUT_S
    )
    expect(page.locator("#throughput")).to_contain_text("/s", timeout=1000 * TIMEOUT_S)
    shot = page.screenshot(full_page=True, animations="disabled")
    page.context.close()
    return Image.open(io.BytesIO(shot)).convert("RGB").quantize(dither=Image.Dither.NONE)


def write_pictures(folder: Path, port: int, images: int) -> None:
    """Start a server, replay images, and write a picture of the page for each view."""
    require_free(LOOPBACK, port)
    url = f"http://{LOOPBACK}:{port}"
    serve = [str(Path(sysconfig.get_path("scripts"), "ood-serve")), "--host", LOOPBACK, "--port", str(port)]
    with tempfile.TemporaryDirectory(prefix="screenshots-") as name:
        broken = Path(name, "broken.png")
        broken.write_bytes(FROG.read_bytes()[:BROKEN_BYTES])
        with running(serve, ready=f"{url}/readyz", log=Path(name, "ood-serve.log")), browsing() as browser:
            replay(url, images)
            model = httpx.get(f"{url}/models").raise_for_status().json()["models"][0]
            shows = PngInfo()
            shows.add_text(MODEL, f"{model['name']}@{model['version']}")
            for view in VIEWS:
                shot = picture(browser, f"{url}/", view, [FROG, *SAMPLES, broken])
                shot.save(folder / f"page-{view.name}.png", optimize=True, pnginfo=shows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write them."""
    parser = argparse.ArgumentParser(prog="screenshots", description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURES)
    parser.add_argument("--port", type=int, default=8000, help="the server's")
    parser.add_argument("--images", type=int, default=REPLAYED, help="replayed before")
    options = parser.parse_args(arguments)
    write_pictures(options.out, options.port, options.images)


if __name__ == "__main__":
    main()
