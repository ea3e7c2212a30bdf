"""The page's files over HTTP: what comes with them, what is public, and where its histogram comes from."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pytest
from live import BUNDLE, Running, running, samples
from PIL import Image
from pydantic import SecretStr
from safetensors.numpy import load_file

from service.routes.page import HEADERS, assets
from service.settings import Settings

WEB = Path(__file__).parents[3] / "service" / "web"


class Markup(HTMLParser):
    """What a page refers to, and what of it a strict policy would refuse."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: set[str] = set()
        self.inline: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        given = dict(attrs)
        self.references |= {value for name in ("src", "href") if (value := given.get(name))}
        self.references |= {value for value in (given.get("value"),) if tag == "button" and value}
        self.inline += [name for name in given if name == "style" or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style") and data.strip():
            self.inline.append(data)


MARKUP = Markup((WEB / "index.html").read_text())


def test_the_page_comes_with_a_strict_policy(server: Running) -> None:
    reply = httpx.get(f"{server.url}/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"


def test_the_page_has_nothing_inline() -> None:
    assert MARKUP.inline == []


def test_all_that_the_page_refers_to_is_there(server: Running) -> None:
    """Relative, so that it works below a path of a proxy, too."""
    assert {name.removeprefix("web/") for name in MARKUP.references if name.startswith("web/")} == assets().keys() - {
        "index.html"
    }
    for reference in MARKUP.references:
        assert not reference.startswith(("/", "http")), reference
        reply = httpx.get(f"{server.url}/{reference}").raise_for_status()
        if reference.startswith("web/"):
            assert reply.content == (WEB / reference.removeprefix("web/")).read_bytes()
            assert HEADERS.items() <= {name.title(): value for name, value in reply.headers.items()}.items()


@pytest.mark.parametrize(
    ("file", "media_type"),
    [
        ("page.css", "text/css; charset=utf-8"),
        ("page.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
        ("frog.png", "image/png"),
        ("cat.jpg", "image/jpeg"),
    ],
)
def test_each_file_has_its_type(server: Running, file: str, media_type: str) -> None:
    assert httpx.get(f"{server.url}/web/{file}").headers["content-type"] == media_type


@pytest.mark.parametrize("path", ["/", "/web/page.js"])
def test_what_a_browser_has_is_not_sent_again(server: Running, path: str) -> None:
    first = httpx.get(server.url + path)
    assert first.headers["cache-control"] == "no-cache"
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = httpx.get(server.url + path, headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert httpx.get(server.url + path, headers={"if-none-match": '"other"'}).content == first.content


def test_the_head_of_the_page_is_that_of_the_page(server: Running) -> None:
    head, whole = httpx.head(f"{server.url}/"), httpx.get(f"{server.url}/")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"] == str(len(whole.content))


@pytest.mark.parametrize("path", ["/web/", "/web/none.js", "/web/..%2Fapp.py", "/web/../app.py", "/web/index.html/"])
def test_there_are_no_other_files(server: Running, path: str) -> None:
    reply = httpx.get(server.url + path)
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "unknown_route"


def test_the_page_of_a_closed_server_is_public_and_nothing_else_is(settings: Callable[..., Settings]) -> None:
    with running(settings(api_keys=(SecretStr("open"),))) as server:
        for reference in ("", *(name for name in MARKUP.references if name.startswith("web/"))):
            assert httpx.get(f"{server.url}/{reference}").status_code == 200
        for path in ("/models", "/models/cifar10", "/models/cifar10/watch", "/webs", "/web"):
            assert httpx.get(server.url + path).status_code == 401


def test_requests_for_its_files_count_under_one_route(server: Running) -> None:
    key = 'ood_http_requests_total{{route="{}",status="200"}}'
    before = samples(server.url)
    for path in ("/", "/web/page.js", "/web/page.css"):
        httpx.get(server.url + path)
    after = samples(server.url)
    assert after[key.format("/")] - before[key.format("/")] == 1
    assert after[key.format("/web/{file}")] - before[key.format("/web/{file}")] == 2


def test_a_models_histogram_is_that_of_its_calibration_file(server: Running) -> None:
    shown = httpx.get(f"{server.url}/models/cifar10").raise_for_status().json()
    listed = httpx.get(f"{server.url}/models").json()["models"][0]
    found = shown.pop("calibrations")
    assert shown == listed
    scores = load_file(BUNDLE / "calibration.safetensors")["negative_energy"].astype(np.float64)
    calibration = found["negative_energy"]
    edges = [-np.inf, *calibration["edges"], np.inf]
    expected = [int(((low < scores) & (scores <= high)).sum()) for low, high in pairwise(edges)]
    assert calibration["counts"] == expected
    assert sum(expected) == calibration["n"] == len(scores)
    flagged = sum(expected[: calibration["edges"].index(calibration["threshold"]) + 1])
    assert flagged == calibration["k"] - 1  # s_(k) itself is the least that is not


def test_the_page_knows_nothing_of_a_model() -> None:
    """Neither classes nor thresholds nor the names of bundles: they are the server's to say."""
    code = (WEB / "page.js").read_text()
    assert not re.search(r"cifar|airplane|frog|\b5000\b|\b5,000\b|10\.97|12\.50", code)


def test_its_samples_are_small_images() -> None:
    for file in (*WEB.glob("*.png"), *WEB.glob("*.jpg")):
        assert file.stat().st_size < 6000
        with Image.open(file) as image:
            assert max(image.size) <= 128
