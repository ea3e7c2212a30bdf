"""A page in a real browser: Debian's Chromium without a screen."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from live import Running
from playwright.sync_api import ConsoleMessage, Locator, Page, Request, expect

# Without them it looks for updates and for hosts that it knows.
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass
class Shown:
    """A page in the browser, and what it did that it should not do."""

    page: Page
    url: str
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", self._request)

    def open(self) -> Page:
        """Load it and wait for the first figures of the traffic."""
        self.page.goto(self.url)
        expect(self.page.locator("#live")).to_be_visible()
        return self.page

    def close(self) -> None:
        """Leave it, before its server is gone."""
        self.page.context.close()

    def cards(self, count: int) -> list[Locator]:
        """Wait for so many verdicts or refusals, newest first."""
        expect(self.page.locator("#verdicts > li:is(.known, .ood, .refused)")).to_have_count(count)
        return self.page.locator("#verdicts > li").all()

    def _console(self, message: ConsoleMessage) -> None:
        # The browser itself reports each status of 400 or more; the page shows them in words.
        refused = message.text.startswith("Failed to load resource: the server responded with a status of 4")
        if message.type in ("error", "warning") and not refused:
            self.faults.append(message.text)

    def _request(self, request: Request) -> None:
        if urlsplit(request.url).netloc != urlsplit(self.url).netloc:
            self.faults.append(f"asked {request.url}")


def predicted(server: Running, image: Path) -> dict[str, Any]:
    """Return what /predict says of an image file."""
    found: dict[str, Any] = httpx.post(f"{server.url}/predict", content=image.read_bytes()).json()
    return found
