"""The page in a real browser: opened from a file, offline, by keyboard, on a phone, without JavaScript, in print."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from answers import answer

from clsprobe.reports.page import write_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on the path"),
]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, {"poolings": answer(), "again": answer(40)})
    return path.as_uri()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Open]:
    """A page in a context of its own; afterwards: it has made no request but for itself, and logged no error."""
    contexts, requests, faults = [], [], []

    def opened(**settings: Any) -> Any:
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [url for url in requests if url != address and not url.startswith("data:")] == []
    assert faults == []


def test_arrow_keys_walk_the_scatter_and_the_live_region_describes_them(open_page: Open) -> None:
    page = open_page()
    canvas, description = page.locator(".panel canvas").first, page.locator(".description").first
    assert description.get_attribute("aria-live") == "polite"
    assert "500 points" in canvas.get_attribute("aria-label")
    canvas.focus()
    descriptions = []
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowDown"):
        canvas.press(key)
        descriptions.append(description.inner_text())
    assert all("What is question number" in text for text in descriptions)
    assert all(a != b for a, b in pairwise(descriptions))
    outline = "getComputedStyle(document.querySelector('.panel canvas')).outlineStyle"
    assert page.evaluate(outline) == "solid", "the focus is seen"


def test_pointing_describes_a_dot_and_the_legend_hides(open_page: Open) -> None:
    page = open_page()
    canvas, description = page.locator(".panel canvas").first, page.locator(".description").first
    canvas.focus()
    canvas.press("ArrowRight")
    label = description.locator(".label").inner_text()
    first_description = description.inner_text()
    box = canvas.bounding_box()
    for x in range(10, int(box["width"]), 15):
        page.mouse.move(box["x"] + x, box["y"] + box["height"] * 0.3)
    assert description.inner_text() != first_description
    button = page.locator(".legend").first.get_by_role("button", name=label)
    pixels = "document.querySelector('.panel canvas').toDataURL()"
    before = page.evaluate(pixels)
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert page.evaluate(pixels) != before


def test_tapping_describes_a_dot(open_page: Open) -> None:
    page = open_page(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    canvas, description = page.locator(".panel canvas").first, page.locator(".description").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for x in range(20, int(box["width"]), 40):
        page.touchscreen.tap(box["x"] + x, box["y"] + box["height"] * 0.3)
    assert "What is question number" in description.inner_text()


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("unfolded", [False, True])
def test_the_page_never_scrolls_sideways(open_page: Open, width: int, unfolded: bool) -> None:
    page = open_page(viewport={"width": width, "height": 800})
    if unfolded:
        page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_javascript_the_figures_and_tables_are_there(open_page: Open) -> None:
    page = open_page(java_script_enabled=False)
    assert page.locator("figure .static svg").count() == 12
    assert page.locator("figure .static svg").nth(5).is_visible()
    assert page.locator(".scatter").first.is_hidden()
    page.locator("figure summary").first.click()
    assert page.locator("figure details table").first.is_visible()


def test_dark_mode_is_dark_and_its_figures_stay_on_white(open_page: Open) -> None:
    def lightness(page: Any, selector: str) -> float:
        colour = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).backgroundColor")
        return sum(map(float, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 765

    dark, light = open_page(color_scheme="dark"), open_page(color_scheme="light")
    assert lightness(dark, "body") < 0.2
    assert lightness(light, "body") > 0.9
    assert lightness(dark, ".card") == lightness(light, ".card") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "selector", [".because", ".claim", ".eyebrow", "figcaption", "nav .badge", "th", "summary", "dt"]
)
def test_text_has_contrast(open_page: Open, scheme: str, selector: str) -> None:
    """WCAG AA: 4.5 to 1 against the nearest painted ground."""
    page = open_page(color_scheme=scheme)
    ratio = page.evaluate(
        """(selector) => {
          const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
          const light = (c) => c.slice(0, 3).map((v) => v / 255)
            .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
          return Math.min(...[...document.querySelectorAll(selector)].map((node) => {
            let ground = node;
            const paint = (n) => rgb(getComputedStyle(n).backgroundColor);
            while (paint(ground)[3] === 0) ground = ground.parentElement;
            const [a, b] = [light(rgb(getComputedStyle(node).color)), light(paint(ground))].sort((x, y) => y - x);
            return (a + .05) / (b + .05);
          }));
        }""",
        selector,
    )
    assert ratio >= 4.5


def test_print_shows_the_static_figures_and_the_settings(open_page: Open) -> None:
    page = open_page()
    page.emulate_media(media="print")
    assert page.locator(".live > .static").first.is_visible()
    assert page.locator(".live > .scatter").first.is_hidden()
    printed = page.pdf(format="A4", print_background=True)
    assert printed.startswith(b"%PDF-")
    assert len(printed) > 50_000


def test_headings_and_language(open_page: Open) -> None:
    page = open_page()
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("h1").count() == 1
    assert page.title() == "2 questions put to an encoder"
    page.locator("nav a").nth(1).click()
    assert page.url.endswith("#a2")
