"""The page in headless Chromium, before a real server: dropped, chosen and pasted images, and the traffic."""

import base64
import io
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from live import Running, running
from PIL import Image
from playwright.sync_api import Locator, Page, expect
from safetensors.numpy import load_file
from shown import Shown, predicted

from model_store.store import SHIPPED, BundleRef, Store
from service.settings import Settings

pytestmark = pytest.mark.slow
Show = Callable[..., Shown]
NEWEST = Store(SHIPPED).resolve(BundleRef("cifar10"))
STATED = 250 / 5001  # k / (n + 1) of its calibration, as its model card has it


def drop(page: Page, *files: Path) -> None:
    """Drop files onto the middle of the page as a person does: the browser itself makes the events."""
    size = page.viewport_size
    assert size is not None
    data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
    at = {"x": size["width"] / 2, "y": size["height"] / 2}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "data": data, **at})


def percent_of(mark: Locator) -> float:
    """Where it stands, in percent of the chart's width."""
    return float(
        mark.evaluate("e => (e.getAttribute('x') ?? e.getAttribute('x1') ?? e.getAttribute('cx')).slice(0, -1)")
    )


def test_a_dropped_image_gets_the_verdict_of_predict(show: Show, newest: Running, frog: Path) -> None:
    shown = show(newest)
    page = shown.open()
    drop(page, frog)
    (card,) = shown.cards(1)
    (expected,) = predicted(newest, frog)["predictions"]
    expect(card.locator(".name")).to_have_text("06404.png")
    expect(card.locator(".answer")).to_have_text("frog over 99.9 % sure")
    assert expected["class_name"] == "frog"
    assert expected["confidence"] > 0.9995
    energy = expected["negative_energy"]
    expect(card.locator("text.value")).to_have_text(f"{energy:.2f}")
    scores = load_file(NEWEST / "calibration.safetensors")["negative_energy"]
    higher_than = int(100 * np.mean(scores <= np.float32(energy)))
    expect(card.locator(".words")).to_have_text(
        f"Higher than {higher_than} of 100 in-distribution images: not flagged."
    )
    expect(page.locator("#said")).to_contain_text("06404.png: frog")


def test_the_pin_stands_where_the_energy_is(show: Show, newest: Running, frog: Path) -> None:
    shown = show(newest)
    shown.open().set_input_files("#files", frog)
    (card,) = shown.cards(1)
    (expected,) = predicted(newest, frog)["predictions"]
    calibration = httpx.get(f"{newest.url}/models/cifar10").json()["calibrations"]["negative_energy"]
    edges, counts, energy = calibration["edges"], calibration["counts"], expected["negative_energy"]
    last = max(at for at, count in enumerate(counts) if count)
    starts = [edges[at - 1] for at, count in enumerate(counts) if count]
    percents = [percent_of(bar) for bar in card.locator("rect").all()]
    slope, origin = np.polyfit(starts, percents, 1)  # the axis, by where the bars of known edges begin
    assert np.allclose(percents, slope * np.array(starts) + origin, atol=1e-6)
    assert slope * edges[last] + origin == pytest.approx(100)
    threshold = calibration["threshold"]
    marks = {"line.pin": energy, "circle": energy, "text.value": energy, "line.threshold": threshold}
    for mark, value in marks.items():
        assert percent_of(card.locator(mark)) == pytest.approx(slope * value + origin, abs=1e-6)
    sides = [card.get_by_text(text).bounding_box() or {} for text in ("← flagged", "in distribution →")]
    whole = card.locator("svg").bounding_box() or {}
    at = whole["x"] + whole["width"] * (slope * threshold + origin) / 100
    assert sides[0]["x"] + sides[0]["width"] < at < sides[1]["x"]
    # The flagged bars are k - 1 of n images: their area is that share, outlines and the least height of a bar aside.
    areas = {"flagged": 0.0, "": 0.0}
    for bar in card.locator("rect").all():
        width, height = (float((bar.get_attribute(side) or "").rstrip("%")) for side in ("width", "height"))
        areas[bar.get_attribute("class") or ""] += width * height
    assert areas["flagged"] / sum(areas.values()) == pytest.approx(249 / 5000, abs=0.02)


def test_an_image_is_shown_as_it_is(show: Show, newest: Running, frog: Path) -> None:
    """Pixel by pixel, six times as large as its 32 of them."""
    shown = show(newest)
    shown.open().set_input_files("#files", frog)
    (card,) = shown.cards(1)
    canvas = card.locator("canvas")
    expect(canvas).to_have_attribute("width", "192")
    drawn = canvas.evaluate("c => [...c.getContext('2d').getImageData(0, 0, 192, 192).data]")
    with Image.open(frog) as image:
        large = np.asarray(image.convert("RGB")).repeat(6, axis=0).repeat(6, axis=1)
    np.testing.assert_array_equal(np.reshape(drawn, (192, 192, 4))[..., :3], large)


def test_an_image_between_threshold_and_median_is_not_flagged(show: Show, newest: Running, image_sets: Path) -> None:
    ship = image_sets / "cifar10" / "test" / "ship" / "08102.png"
    shown = show(newest)
    shown.open().set_input_files("#files", ship)
    (card,) = shown.cards(1)
    expect(card).to_have_class("known")
    (expected,) = predicted(newest, ship)["predictions"]
    scores = load_file(NEWEST / "calibration.safetensors")["negative_energy"]
    lower_than = int(100 * np.mean(scores > np.float32(expected["negative_energy"])))
    assert lower_than > 50
    expect(card.locator(".words")).to_have_text(
        f"Lower than {lower_than} of 100 in-distribution images, but above the threshold: not flagged."
    )


def test_an_out_of_distribution_sample_is_flagged(show: Show, newest: Running) -> None:
    shown = show(newest)
    page = shown.open()
    page.get_by_role("button", name="bricks").click()
    (card,) = shown.cards(1)
    expect(card).to_have_class("ood")
    expect(card.locator(".answer")).to_contain_text("Out of distribution It would have said")
    expect(card.locator(".words")).to_have_text(
        "Lower than 99 of 100 in-distribution images: flagged as out of distribution."
    )
    for count in (2, 3):
        page.get_by_role("button", name="frog").click()
        shown.cards(count)
    expect(page.locator("#tally")).to_have_text("3 images, 1 flagged")


def test_more_images_than_are_asked_for_at_once_all_get_verdicts(show: Show, newest: Running, image_sets: Path) -> None:
    files = sorted((image_sets / "cifar10" / "test" / "ship").iterdir())[:10]
    assert len(files) == 10
    shown = show(newest)
    drop(shown.open(), *files)
    cards = shown.cards(10)
    assert [card.locator(".name").inner_text() for card in cards] == [file.name for file in files]
    flagged = [predicted(newest, file)["predictions"][0]["is_ood"] for file in files]
    assert [card.get_attribute("class") for card in cards] == ["ood" if is_ood else "known" for is_ood in flagged]


def test_every_sample_is_what_it_is_there_for(show: Show, newest: Running) -> None:
    shown = show(newest)
    page = shown.open()
    for button in page.locator("#samples button").all():
        button.click()
    cards = shown.cards(8)
    found = {card.locator(".name").inner_text(): card.get_attribute("class") for card in cards}
    known = {"frog.png", "cat.jpg", "truck.png", "airplane.png"}
    assert found == {name: "known" if name in known else "ood" for name in found}
    for card in cards:
        name = card.locator(".name").inner_text()
        assert (card.locator(".answer").inner_text().startswith(name.partition(".")[0])) == (name in known)


def test_a_broken_file_shows_the_servers_words_beside_its_name(
    show: Show, newest: Running, frog: Path, tmp_path: Path
) -> None:
    """And the image beside it has its verdict."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(frog.read_bytes()[:700])
    message = predicted(newest, broken)["error"]["message"]
    shown = show(newest)
    drop(shown.open(), broken, frog)
    refused, known = shown.cards(2)
    expect(refused).to_have_class("refused")
    expect(refused.locator(".name")).to_have_text("broken.png")
    assert refused.locator(".words").inner_text().rstrip(".").lower() == message.rstrip(".").lower()
    expect(known.locator(".answer")).to_contain_text("frog")
    expect(refused.get_by_role("button", name="Try again")).to_be_hidden()


def test_a_refusal_that_passes_can_be_tried_again(show: Show, newest: Running, frog: Path) -> None:
    shown = show(newest)
    page = shown.open()
    page.route("**/predict", lambda route: route.abort(), times=1)
    page.set_input_files("#files", frog)
    (card,) = shown.cards(1)
    expect(card.locator(".words")).to_have_text("The server does not answer.")
    card.get_by_role("button", name="Try again").click()
    expect(card.locator(".answer")).to_contain_text("frog")
    shown.faults.remove("Failed to load resource: net::ERR_FAILED")


def test_a_sample_that_can_not_be_fetched_is_told_of(show: Show, newest: Running) -> None:
    shown = show(newest)
    page = shown.open()
    page.route("**/frog.png", lambda route: route.abort(), times=1)
    page.get_by_role("button", name="frog").click()
    expect(page.get_by_role("alert")).to_have_text("The sample can't be fetched: the server does not answer.")
    page.get_by_role("button", name="frog").click()
    shown.cards(1)
    expect(page.get_by_role("alert")).to_be_hidden()
    shown.faults.remove("Failed to load resource: net::ERR_FAILED")


def test_an_image_may_be_pasted(show: Show, newest: Running, frog: Path) -> None:
    shown = show(newest)
    page = shown.open()
    page.evaluate(
        """content => {
            const data = new DataTransfer();
            const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
            data.items.add(new File([bytes], "pasted.png", {type: "image/png"}));
            document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
        }""",
        base64.b64encode(frog.read_bytes()).decode(),
    )
    (card,) = shown.cards(1)
    expect(card.locator(".name")).to_have_text("pasted.png")
    expect(card.locator(".answer")).to_contain_text("frog")


def test_the_traffic_moves_with_requests(show: Show, newest: Running, frog: Path) -> None:
    """Whoever sends them; figures and bars are those of /models/{model}/watch."""
    page = show(newest).open()
    before = httpx.get(f"{newest.url}/models/cifar10/watch").json()
    for _ in range(5):
        httpx.post(f"{newest.url}/predict", content=frog.read_bytes()).raise_for_status()
    seen = httpx.get(f"{newest.url}/models/cifar10/watch").json()
    assert seen["images"] == before["images"] + 5
    expect(page.locator("#throughput-words")).to_contain_text(f"{seen['images']:,} in all")
    last = seen["window"]
    expect(page.locator("#ood-rate")).to_have_text(f"{100 * last['flagged_ratio']:.1f} %")
    expect(page.locator("#ood-rate-words")).to_contain_text(f"in distribution it would be {100 * STATED:.1f} %")
    expect(page.locator("#ood-share")).to_have_text(f"{100 * last['ood_share']['estimate']:.1f} %")
    expect(page.locator("#alarm")).to_have_text("Shifted" if seen["cusum"]["shifted"] else "Quiet")
    expect(page.locator("#alarm")).to_have_class("ood" if seen["cusum"]["shifted"] else "")
    bars = sum(count > 0 for count in last["negative_energy"]["counts"])
    expect(page.locator("#energies rect")).to_have_count(bars)


def half_of(histogram: dict[str, Any]) -> str:
    """Where the lower half ends, at the edges, in words."""
    edges, counts = histogram["edges"], histogram["counts"]
    at = int(np.argmax(np.cumsum(counts) >= sum(counts) / 2))
    return f"up to {edges[at]:.4g}" if at < len(edges) else f"above {edges[-1]:.4g}"


def test_the_shape_of_the_traffic_is_said_in_words(show: Show, newest: Running, frog: Path) -> None:
    shown = show(newest)
    page = shown.open()
    page.get_by_role("button", name="bricks").click()
    shown.cards(1)
    httpx.post(f"{newest.url}/predict", content=frog.read_bytes()).raise_for_status()
    last = httpx.get(f"{newest.url}/models/cifar10/watch").json()["window"]
    calibration = httpx.get(f"{newest.url}/models/cifar10").json()["calibrations"]["negative_energy"]
    threshold, images = calibration["threshold"], last["images"]
    flagged = f"{100 * last['flagged_ratio']:.1f}\u00a0%"
    expected = f"{100 * STATED:.1f}\u00a0%"
    assert 0 < last["flagged_ratio"] < 1
    expect(page.locator("#energies-words")).to_have_text(f"the last {images:,} images")
    expect(page.locator("#p-values-words")).to_have_text(f"the last {images:,} images")
    expect(page.locator("#energies")).to_have_attribute(
        "aria-label",
        f"Negative energies of the last {images:,} images: half of them lie {half_of(last['negative_energy'])}, of the "
        f"calibration images {half_of(calibration)}; {flagged} lie up to the threshold, {threshold:.4g}, in "
        f"distribution {expected}.",
    )
    expect(page.locator("#p-values")).to_have_attribute(
        "aria-label",
        f"p-values of the last {images:,} images: half of them lie {half_of(last['p_value'])}, in distribution up to "
        f"0.5; {flagged} lie up to the threshold, {STATED:.3f}, in distribution {expected}.",
    )


def test_the_charts_are_of_the_last_images(
    show: Show, settings: Callable[..., Settings], tmp_path: Path, pngs: list[bytes]
) -> None:
    """Of 140 images the last 100; and after a restart the same."""
    ours = settings(models=("cifar10",), watch_window_images=100, state_dir=tmp_path / "state")

    def charts(server: Running) -> list[str | None]:
        with closing(show(server)) as shown:
            page = shown.open()
            expect(page.locator("#energies-words")).to_have_text("the last 100 images")
            return [page.locator(f"#{name}").get_attribute("aria-label") for name in ("energies", "p-values")]

    with running(ours) as server:
        for png in [*pngs[:40], *pngs]:
            httpx.post(f"{server.url}/predict", content=png).raise_for_status()
        before = charts(server)
        seen = httpx.get(f"{server.url}/models/cifar10/watch").json()
        assert seen["images"] == sum(seen["negative_energy"]["counts"]) == 140
        assert sum(seen["window"]["negative_energy"]["counts"]) == 100
    with running(ours) as server:
        assert charts(server) == before


def test_a_dropped_folder_is_told_from_a_server_that_does_not_answer(
    show: Show, newest: Running, frog: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    shown = show(newest)
    drop(shown.open(), folder, frog)
    refused, known = shown.cards(2)
    expect(refused.locator(".name")).to_have_text("images")
    expect(refused.locator(".words")).to_have_text("It can't be read; if it is a folder, drop the images in it.")
    expect(refused.get_by_role("button", name="Try again")).to_be_hidden()
    expect(known.locator(".answer")).to_contain_text("frog")


def test_the_traffic_is_drawn_where_it_is(show: Show, newest: Running, frog: Path) -> None:
    """The axes, by where the numbers stand on them."""
    httpx.post(f"{newest.url}/predict", content=frog.read_bytes()).raise_for_status()
    page = show(newest).open()
    threshold = httpx.get(f"{newest.url}/models/cifar10").json()["calibrations"]["negative_energy"]["threshold"]
    for name, limit, words in (("energies", threshold, f"{threshold:.4g}"), ("p-values", STATED, f"{STATED:.3f}")):
        chart = page.locator(f"#{name}")
        ticks = chart.locator("text.tick").all()
        axis = np.polyfit([float(tick.inner_html()) for tick in ticks], [percent_of(tick) for tick in ticks], 1)
        line = percent_of(chart.locator("line.threshold"))
        assert line == pytest.approx(np.polyval(axis, limit), abs=1e-6)
        expect(chart.locator("text.side")).to_have_text(f"flagged up to {words}")
        middle = "e => parseFloat(e.getAttribute('x')) + parseFloat(e.getAttribute('width')) / 2"
        bars = chart.locator("rect").all()
        assert bars
        for bar in bars:
            assert bar.get_attribute("class") == ("flagged" if bar.evaluate(middle) <= line else "")


def test_another_version_than_the_one_watched_is_found(show: Show, newest: Running) -> None:
    shown = show(newest)
    page = shown.open()
    with page.expect_response("**/models"):
        page.route("**/watch", lambda route: route.fulfill(status=404, json={"error": {"message": "gone"}}), times=1)
    expect(page.locator("#pulse")).to_have_text("live")


def test_a_hidden_tab_asks_nothing(show: Show, newest: Running) -> None:
    shown = show(newest)
    shown.page.clock.install()
    shown.page.add_init_script(
        "Object.defineProperty(document, 'hidden', {get: () => window.away ?? false});"
        "window.turn = away => { window.away = away; document.dispatchEvent(new Event('visibilitychange')); };"
    )
    page = shown.open()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with page.expect_response("**/watch"):
        page.clock.run_for(3000)
    page.evaluate("turn(true)")
    asked.clear()
    page.clock.run_for(60_000)
    expect(page.locator("#pulse")).to_have_text("paused")
    assert asked == []
    with page.expect_response("**/watch"):
        page.evaluate("turn(false)")
        page.clock.run_for(10)
    expect(page.locator("#pulse")).to_have_text("live")


def test_what_the_browser_cannot_read_is_judged_all_the_same(show: Show, newest: Running, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "green").save(file, "TIFF")
    (tmp_path / "green.tif").write_bytes(file.getvalue())
    shown = show(newest)
    shown.open().set_input_files("#files", tmp_path / "green.tif")
    (card,) = shown.cards(1)
    expect(card).not_to_have_class("refused")
    assert card.locator("canvas").get_attribute("width") == "0"
