"""The contact sheet: what it shows in which order, of how many, and that nothing on it comes from elsewhere."""

import base64
import io
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.capture.captured import read_captured
from service.capture.folder import CaptureFolder, segments
from service.capture.record import Record
from service.capture.sheet import page
from service.cli import main
from service.engine_protocol import Verdict

Make = Callable[..., Record]
Folder = Callable[..., CaptureFolder]


class Sheet(HTMLParser):
    """What a browser would make of a page: its headings and cards in order, its text, and all that it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cards: list[dict[str, str | None]] = []
        self.headings: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.pictures: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in ("meta", "img", "input", "br"):
            self._open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action", "data")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag == "h2":
            self.headings.append("")
        if tag == "img":
            self.pictures.append(found["src"] or "")
        if "data-energy" in found:
            self.cards.append(found)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "h2":
            self.headings[-1] += data
        if not {"style", "script"} & set(self._open):
            self.text += data

    @property
    def energies(self) -> list[float]:
        return [float(card["data-energy"] or "") for card in self.cards]


def found(record: Make, at: int, name: str, energy: float, **more: Any) -> Record:
    return record(at, class_name=name, verdict=Verdict(0, 0.5, energy, 0.01, is_ood=True), **more)


def sheet(root: Path, limit: int = 1000) -> Sheet:
    return Sheet(page(read_captured(root).images, limit=limit))


def test_classes_and_images_begin_with_the_least_negative_energy(
    root: Path, folder: Folder, write, record: Make
) -> None:
    energies = [("cat", 5.0), ("dog", -2.0), ("cat", 1.5), ("ant", 9.0), ("dog", 30.0)]
    write(folder(), [found(record, at, *each) for at, each in enumerate(energies)])
    made = sheet(root)
    assert made.headings == ["dog", "cat", "ant"]
    assert made.energies == [-2.0, 30.0, 1.5, 5.0, 9.0]
    assert [link for link in made.links if link.startswith("#class")] == ["#class-0", "#class-1", "#class-2"]
    assert set(made.links) <= {f"#{name}" for name in made.ids} | set(made.pictures)


def test_a_card_shows_the_verdict_and_the_picture_itself(root: Path, folder: Folder, write, record: Make) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    verdict = Verdict(3, 0.875, 12.34567, 0.03125, is_ood=False)
    time = datetime(2026, 11, 5, 7, 8, 9, tzinfo=UTC).timestamp()
    write(folder(), [record(kind="control", verdict=verdict, time=time, request_id="abc-1", content=pixels)])
    made = sheet(root)
    words = " ".join(made.text.split())
    for part in ("1 image (0 flagged, 1 control)", "cat control", "negative energy12.346", "p-value0.0312"):
        assert part in words
    for part in ("2026-11-05 07:08:09", "confidence 87.5%", "request abc-1", "sent as pixels", "cifar10@1/control/2"):
        assert part in words
    (picture,) = made.pictures
    shown = Image.open(io.BytesIO(base64.b64decode(picture.removeprefix("data:image/png;base64,"))))
    np.testing.assert_array_equal(np.asarray(shown), pixels)
    assert made.cards[0]["class"] == "control"


@pytest.mark.parametrize(("side", "shown"), [(800, 160), (161, 160), (160, 160), (65, 65)])
def test_large_images_become_small_pictures(
    root: Path, folder: Folder, write, record: Make, encode, side: int, shown: int
) -> None:
    write(folder(), [record(content=encode(0, "PNG", side))])
    (picture,) = sheet(root).pictures
    kind, _, data = picture.partition(";base64,")
    assert kind == "data:image/jpeg"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (shown, shown)
    assert len(picture) < 30_000  # of noise, the worst there is


def test_nothing_captured_is_a_page_too(root: Path, folder: Folder) -> None:
    folder().tidy()
    made = sheet(root)
    assert (made.cards, made.headings) == ([], [])
    assert "No image is captured yet." in made.text


@pytest.fixture
def five_thousand(root: Path, folder: Folder, write, record: Make, encode) -> Path:
    """4,000 flagged images of negative energies 0, 1, ..., and 1,000 to compare with, of 10,000, 10,001, ..."""
    small, mine = encode(0), folder()
    flagged = [found(record, at, f"class {at % 10}", float(at), content=small) for at in range(4000)]
    control = [found(record, at, "cat", 10_000.0 + at, kind="control", content=small) for at in range(1000)]
    write(mine, flagged + control, batch=500)
    return root


def test_a_page_of_thousands_is_bounded_and_says_so(five_thousand: Path) -> None:
    images = read_captured(five_thousand).images
    assert len(images) == 5000
    text = page(images, limit=1000)
    made = Sheet(text)
    assert len(made.cards) == len(made.pictures) == 1000
    assert sorted(made.energies) == [*range(750), *range(10_000, 10_250)]
    assert "5,000 images (4,000 flagged, 1,000 control)" in made.text
    assert "The page is limited to 1,000 of them" in made.text
    assert "1,000 images (750 flagged, 250 control)" in made.text
    assert len(text) < 10**7


@pytest.mark.parametrize(
    ("kinds", "limit", "shown"),
    [("fffffffffc", 4, "fffc"), ("fccccccccc", 4, "fccc"), ("fff", 2, "ff"), ("fc", 1, "f"), ("ffcc", 9, "ffcc")],
)
def test_a_quarter_of_those_shown_are_there_to_compare_with(
    root: Path, folder: Folder, write, record: Make, kinds: str, limit: int, shown: str
) -> None:
    names = {"f": "flagged", "c": "control"}
    write(folder(), [found(record, at, "cat", float(at), kind=names[kind]) for at, kind in enumerate(kinds)])
    assert [str(card["class"])[0] for card in sheet(root, limit).cards] == list(shown)


def test_what_is_not_ours_is_shown_as_text(root: Path, folder: Folder, write, record: Make) -> None:
    """A bundle may come from others, and so may its classes' names; a request's id is a client's."""
    name = "<script>alert(1)</script> & \"'@IMAGES@@STYLE@"
    write(folder(), [record(class_name=name, request_id="<b>'\"", score="<i>", sha256="<u>")])
    made = sheet(root)
    assert made.headings == [name]
    assert made.cards[0]["data-class"] == name
    assert made.text.count(name) == 3  # among the classes, as heading, on the card
    assert "request <b>'\"" in made.text
    text = page(read_captured(root).images, limit=1)
    assert text.count("<script") == 1
    assert "<b>" not in text


def test_a_page_asks_nothing_of_a_network(root: Path, folder: Folder, write, record: Make) -> None:
    write(folder(), [record()])
    text = page(read_captured(root).images, limit=1)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch|XMLHttp", text)
    assert "default-src 'none'; img-src data:" in text
    assert all(link.startswith(("#", "data:image/")) for link in Sheet(text).links)


def test_images_that_are_gone_or_damaged_leave_their_verdicts(root: Path, folder: Folder, write, record: Make) -> None:
    write(folder(), [record(at) for at in range(3)])
    gone, damaged, _ = sorted(root.rglob("*.png"))
    gone.unlink()
    damaged.write_bytes(damaged.read_bytes()[:100])
    made = sheet(root)
    assert len(made.cards) == 3
    assert len(made.pictures) == 1
    assert made.text.count("The image can't be read.") == 2


def test_the_command_writes_a_private_file_and_tells_what_it_left_out(
    root: Path, folder: Folder, write, record: Make, run_command: Callable[..., Any], tmp_path: Path
) -> None:
    for at in range(3):
        write(folder(), [record(at)])
    index = next(segments(root)) / "index.parquet"
    index.write_bytes(index.read_bytes()[:-9])
    finished = run_command(main, "review", root, "--out", "sheet.html", "--limit", "1", OOD_PORT="no port")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "sheet.html: 1 of 2 captured images\n"
    assert str(index) in finished.stderr
    assert (tmp_path / "sheet.html").stat().st_mode & 0o777 == 0o600
    made = Sheet((tmp_path / "sheet.html").read_text())
    assert len(made.cards) == 1
    assert "1 parts of the index are damaged" in made.text
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["sheet.html"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["review", "nowhere", "--out", "x.html"], "nowhere is no folder; give the one that OOD_CAPTURE_DIR names"),
        (["review", ".", "--out", "nowhere/x.html"], "cannot write nowhere/x.html: No such file or directory"),
        (["review", ".", "--out", "x.html", "--limit", "0"], "'0' is no number above 0"),
        (["review", "."], "required: --out"),
    ],
)
def test_a_command_that_can_not_be_done_says_why(
    run_command: Callable[..., Any], arguments: list[str], message: str
) -> None:
    finished = run_command(main, *arguments)
    assert finished.returncode in (1, 2)
    assert message in finished.stderr


def test_what_is_being_written_or_removed_is_not_counted(root: Path, folder: Folder, write, record: Make) -> None:
    write(folder(), [record()])
    (only,) = segments(root)
    (root / ".writing").mkdir(exist_ok=True)
    subprocess.run(["cp", "-r", only, root / ".writing"], check=True)
    assert len(read_captured(root).images) == 1


SORTED = """
<script>
"use strict";
const form = document.getElementById("controls");
const told = [form.hidden];
function shown() {
  return [...document.querySelectorAll("main li")].map((item) => Number(item.dataset.energy)).join(" ");
}
function choose(name, value) {
  const control = form.elements[name];
  if (control.type === "checkbox") control.checked = value; else control.value = value;
  control.dispatchEvent(new Event("change", { bubbles: true }));
  const headings = [...document.querySelectorAll("h2")].map((heading) => heading.textContent).join(" ");
  const links = [...document.querySelectorAll("nav a")].filter((a) => document.querySelector(a.hash)).length;
  told.push(`${shown()} | ${headings} | ${links} | ${form.querySelector("output").textContent}`);
}
told.push(shown());
choose("order", "-energy");
choose("order", "time");
choose("grouped", false);
choose("kind", "control");
choose("kind", "all");
document.title = "told: " + told.join("; ");
</script>
"""


@pytest.mark.slow
def test_a_browser_orders_groups_and_filters(root: Path, folder: Folder, write, record: Make, tmp_path: Path) -> None:
    images = [("cat", 5.0, "flagged"), ("dog", -2.0, "control"), ("cat", 1.5, "flagged"), ("dog", 30.0, "control")]
    write(folder(), [found(record, at, name, energy, kind=kind) for at, (name, energy, kind) in enumerate(images)])
    text = page(read_captured(root).images, limit=9).replace("</body>", f"{SORTED}</body>")
    (tmp_path / "sheet.html").write_text(text)
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    more = f"--disable-component-update --disable-sync --user-data-dir={tmp_path}/browser --dump-dom"
    command = ["chromium", *flags.split(), *more.split(), (tmp_path / "sheet.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    told = re.search("<title>told: (.*)</title>", dom)
    assert told is not None, dom[:500]
    assert told[1].split("; ") == [
        "false",
        "-2 30 1.5 5",
        "30 -2 5 1.5 | dog cat | 2 | 4 images",
        "5 1.5 -2 30 | cat dog | 2 | 4 images",
        "5 -2 1.5 30 |  | 0 | 4 images",
        "-2 30 |  | 0 | 2 images",
        "5 -2 1.5 30 |  | 0 | 4 images",
    ]
