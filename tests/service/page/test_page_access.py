"""The page in headless Chromium for everybody: by keyboard, on a phone, in the dark, with a key, of several models."""

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from live import BUNDLE, Running, running
from playwright.sync_api import Route, expect
from pydantic import SecretStr
from safetensors.numpy import load_file
from shown import Shown

from service.settings import Settings

pytestmark = pytest.mark.slow
Show = Callable[..., Shown]


def test_all_of_it_works_by_keyboard(show: Show, newest: Running, frog: Path) -> None:
    shown = show(newest)
    page = shown.open()
    page.keyboard.press("Tab")
    with page.expect_file_chooser() as chooser:
        # Playwright doesn't wait until the browser has agreed to hand choosers over, and a key, going another way, may
        # reach the page before that. Questions to the page go the same way: once one is answered, it is agreed.
        expect(page.locator("#files")).to_be_focused()
        assert page.locator("#drop").evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
        page.keyboard.press("Enter")
    chooser.value.set_files(frog)
    shown.cards(1)
    expect(page.locator("#files")).to_have_value("")  # so that the same file may be chosen again
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="frog")).to_be_focused()
    page.keyboard.press("Space")
    shown.cards(2)
    for _ in range(8):
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Clear")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#verdicts > li")).to_have_count(0)
    expect(page.locator("#files")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(show: Show, newest: Running, frog: Path, tmp_path: Path, scheme: str) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    shown = show(newest, color_scheme=scheme, reduced_motion="reduce")
    page = shown.open()
    page.set_input_files("#files", [frog, broken])
    page.get_by_role("button", name="coffee").click()
    shown.cards(3)
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    brightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(brightness) < 300) == (scheme == "dark")


CONTRASTS = {
    "#energies rect:not(.flagged)": "fill",
    "#energies rect.flagged": "fill",
    "#energies line.outline": "stroke",
    "#energies line.threshold": "stroke",
    "#energies line.base": "stroke",
    "#p-values rect.flagged": "fill",
    "#verdicts .known rect:not(.flagged)": "fill",
    "#verdicts .known rect.flagged": "fill",
    "#verdicts .known line.pin": "stroke",
    "#verdicts .ood line.pin": "stroke",
    "#verdicts .ood circle": "fill",
    "#token": "border-top-color",
    "#models": "border-top-color",
    "#clear": "border-top-color",
    "#drop": "border-top-color",
}
"""What must stand out from what is behind it, by WCAG 2.2, 1.4.11; and the property that colours it."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_and_controls_stand_out(show: Show, newest: Running, frog: Path, scheme: str) -> None:
    shown = show(newest, color_scheme=scheme, reduced_motion="reduce")
    page = shown.open()
    page.set_input_files("#files", frog)
    page.get_by_role("button", name="bricks").click()
    shown.cards(2)
    expect(page.locator("#energies rect.flagged").first).to_be_visible()
    for selector, colour in CONTRASTS.items():
        shape, behind = page.locator(selector).first.evaluate(
            """(element, colour) => {
                const opaque = (one) => getComputedStyle(one).backgroundColor !== "rgba(0, 0, 0, 0)";
                let behind = element.parentElement;
                while (!opaque(behind)) behind = behind.parentElement;
                return [getComputedStyle(element).getPropertyValue(colour), getComputedStyle(behind).backgroundColor];
            }""",
            colour,
        )
        assert contrast(shape, behind) >= 3, (selector, shape, behind)


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.005)


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two opaque colours as computed styles have them."""
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Return the relative luminance of `rgb(red, green, blue)`, as WCAG defines it."""
    found = re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour)
    assert found, colour
    parts = [int(part) / 255 for part in found.groups()]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_phone_scrolls_in_one_direction(show: Show, newest: Running, tmp_path: Path, frog: Path) -> None:
    long_name = tmp_path / f"{'a-very-long-name-' * 8}.png"
    long_name.write_bytes(frog.read_bytes())
    shown = show(newest, viewport={"width": 360, "height": 640}, has_touch=True)
    page = shown.open()
    page.set_input_files("#files", [long_name, frog])
    page.get_by_role("button", name="rocket").click()
    rocket, *_ = shown.cards(3)
    assert "\u00a0% sure" in rocket.locator(".answer").inner_text()  # never parted from its number
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    beyond = "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > 360.5).length"
    assert page.evaluate(beyond) == 0


def test_motion_stops_for_who_wants_none(show: Show, newest: Running) -> None:
    page = show(newest, reduced_motion="reduce").open()
    moving = "getComputedStyle(document.querySelector('#pulse'), '::before').animationName"
    assert page.evaluate(moving) == "none"


def test_the_policy_holds_in_the_browser(show: Show, newest: Running) -> None:
    shown = show(newest)
    page = shown.open()
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
        }"""
    )
    assert page.evaluate("window.ran") is None
    assert "Content Security Policy" in shown.faults.pop()


def test_a_closed_server_asks_for_its_key_and_the_page_forgets_it(
    show: Show, settings: Callable[..., Settings], frog: Path
) -> None:
    with running(settings(api_keys=(SecretStr("sesame"),))) as server, closing(show(server)) as shown:
        page = shown.page
        page.goto(shown.url)
        expect(page.get_by_label("This server asks for a key")).to_be_focused()
        expect(page.locator("#ask")).to_be_hidden()
        assert Axe().run(page).violations_count == 0
        page.keyboard.type("wrong")
        with page.expect_response("**/models") as refused:
            page.keyboard.press("Enter")
        assert refused.value.status == 401
        expect(page.get_by_role("alert")).to_have_text("The server does not know this key.")
        page.get_by_label("This server asks for a key").fill("sesame")
        page.keyboard.press("Enter")
        expect(page.locator("#live")).to_be_visible()
        expect(page.locator("#lock")).to_be_hidden()
        expect(page.get_by_role("alert")).to_be_hidden()
        page.set_input_files("#files", frog)
        (card,) = shown.cards(1)
        expect(card.locator(".answer")).to_contain_text("frog")
        kept = "[localStorage.length, sessionStorage.length, document.cookie, document.querySelector('#token').value]"
        assert page.evaluate(kept) == [0, 0, "", ""]
        page.reload()
        expect(page.locator("#lock")).to_be_visible()


def test_a_model_is_chosen_among_several(
    show: Show, settings: Callable[..., Settings], bundles: Path, image_sets: Path
) -> None:
    """strict@2 flags half of all; broken@1 could not be loaded."""
    ship = image_sets / "cifar10" / "test" / "ship" / "08102.png"
    with (
        running(settings(store=bundles, models=("cifar10", "strict", "broken"))) as server,
        closing(show(server)) as shown,
    ):
        page = shown.open()
        page.set_input_files("#files", ship)
        (card,) = shown.cards(1)
        expect(card).to_have_class("known")
        assert page.get_by_label("Model").locator("option:disabled").inner_text() == "broken: not loaded"
        page.get_by_label("Model").select_option("strict@2")
        expect(page.locator("#facts")).to_contain_text("strict@2")
        expect(page.locator("#throughput-words")).to_contain_text("0 in all")
        page.set_input_files("#files", ship)
        strict, _ = shown.cards(2)
        expect(strict).to_have_class("ood")
        expect(strict.locator(".name")).to_have_text("08102.png, by strict@2")
        scores = load_file(BUNDLE / "calibration.safetensors")["negative_energy"]
        threshold = scores[len(scores) // 2 - 1]
        expect(page.locator("#energies text.side")).to_have_text(f"flagged up to {threshold:.2f}")


def test_a_model_that_can_not_be_chosen_leaves_the_last_in_its_place(
    show: Show, settings: Callable[..., Settings], bundles: Path
) -> None:
    """It is told, but not of a model that nobody waits for any more."""
    gone = {"error": {"message": "it is gone"}}
    with running(settings(store=bundles, models=("cifar10", "strict"))) as server, closing(show(server)) as shown:
        page = shown.open()
        models, alert = page.get_by_label("Model"), page.get_by_role("alert")
        page.route("**/models/strict@2", lambda route: route.fulfill(status=404, json=gone), times=1)
        models.select_option("strict@2")
        expect(alert).to_have_text("It is gone.")
        expect(models).to_have_value("cifar10@1")
        expect(page.locator("#facts")).to_contain_text("cifar10@1")
        held: list[Route] = []
        page.route("**/models/strict@2", lambda route: held.append(route), times=1)  # Playwright marks what it is given
        with page.expect_request("**/models/strict@2"):
            models.select_option("strict@2")
        models.select_option("cifar10@1")
        expect(alert).to_be_hidden()
        with page.expect_response("**/models/strict@2"):
            held[0].fulfill(status=404, json=gone)
        page.evaluate("fetch('healthz').then((reply) => reply.text())")  # what the page asked before has been heard
        expect(alert).to_be_hidden()
        expect(models).to_have_value("cifar10@1")


def test_another_score_than_energy_may_judge(
    show: Show, settings: Callable[..., Settings], scored_bundles: Path, frog: Path
) -> None:
    with running(settings(store=scored_bundles, models=("by-knn",))) as server, closing(show(server)) as shown:
        shown.open().set_input_files("#files", frog)
        (card,) = shown.cards(1)
        reply = httpx.post(f"{server.url}/predict?scores=all", content=frog.read_bytes()).json()
        value = reply["predictions"][0]["scores"]["knn"]["value"]
        expect(card.locator("text.value")).to_have_text(f"{value:.4g}")
        expect(card.locator("svg")).to_have_attribute(
            "aria-label",
            f"This image's knn, {value:.4g}, among those of 100 in-distribution images; up to {reply['threshold']:.4g} "
            "they are flagged.",
        )
