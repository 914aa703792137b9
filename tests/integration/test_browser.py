"""The live pages in a real browser: console, keys, dark and narrow windows, accessibility."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("selenium")
from browser import NARROW, WIDE, Browser, served
from browser import axe as axe
from browser import chromium as chromium
from learned import HOSTILE, HOSTILE_PROJECT
from learned import learned as learned
from selenium.webdriver.common.keys import Keys

from alloop.project import Project
from alloop.store.images import list_refs
from alloop.store.session import reading

BOX = "const map = document.getElementById('map'), box = map.getBoundingClientRect();"
FIRST_POINT = f"""{BOX}
const request = new XMLHttpRequest();
request.open("GET", map.dataset.points, false);
request.send();
const points = JSON.parse(request.responseText), scale = 0.94 * Math.min(box.width, box.height) / 2000;
return [box.x + box.width / 2 + points.x[0] * scale, box.y + box.height / 2 - points.y[0] * scale];
"""
PAGES = ("overview", "round", "images", "map", "mistakes", "people", "model")


@pytest.fixture(scope="session")
def address(learned: Project, chromium: Any) -> Iterator[str]:
    """Serve the workspace that has learned, for all tests of the browser."""
    with served(learned.folder) as found:
        yield found


@pytest.fixture
def browser(chromium: Any, address: str) -> Iterator[Browser]:
    """Return the browser in a wide, light window; after the test, fail on errors in the console."""
    found = Browser(chromium, address)
    found.show()
    found.complaints()
    yield found
    assert found.complaints() == []


@pytest.fixture
def every_page(learned: Project) -> tuple[str, ...]:
    """Return the addresses of all pages, with that of an image and of a page that does not exist."""
    with reading(learned.database) as session:
        return (*PAGES, f"image?id={list_refs(session)[0].image_id}")


def test_every_page_loads_without_an_error_and_hostile_names_do_nothing(browser: Browser, every_page: tuple[str, ...]):
    seen = ""
    for page in every_page:
        browser.open(page)
        assert browser.text("h1"), page
        assert browser.text(".project") == HOSTILE_PROJECT
        assert browser.all("[onload], [onerror], main script, b b") == [], page
        assert browser.complaints() == [], page
        seen += browser.text("main")
    for name in HOSTILE:
        assert name in seen


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Browser, every_page: tuple[str, ...], axe: str, dark: bool):
    browser.show(WIDE, dark=dark)
    found = []
    for page in (*every_page, "images?least=0,5", "login", "image?id=999999"):
        browser.open(page)
        found += [f"{page}: {fault}" for fault in browser.faults(axe)]

    assert found == []
    assert len(browser.complaints()) == 1  # of the image that does not exist


def test_dark_and_light_follow_the_system(browser: Browser):
    color = "return getComputedStyle(document.body).backgroundColor"
    browser.open("overview")
    light = browser.run(color)
    browser.show(WIDE, dark=True)

    assert (light, browser.run(color)) == ("rgb(251, 251, 249)", "rgb(22, 24, 27)")


def test_a_window_of_400_pixels_scrolls_in_one_direction_only_and_hides_nothing_for_good(
    browser: Browser, every_page: tuple[str, ...]
):
    browser.show(NARROW)
    for page in every_page:
        browser.open(page)
        assert browser.run("return document.documentElement.scrollWidth") <= NARROW[0], page
        if not (more := browser.all("th.more")):
            continue
        assert not any(column.is_displayed() for column in more), page
        for switch in browser.all(".columns-switch"):
            switch.click()
        assert all(column.is_displayed() for column in more), page


def test_a_page_prints_whole_and_without_its_frame(browser: Browser):
    browser.show(WIDE, media="print")
    browser.open("mistakes")

    assert not browser.one(".rail").is_displayed()
    for box in browser.all(".scroll"):
        assert browser.run("return getComputedStyle(arguments[0]).overflowX", box) == "visible"
    browser.show(NARROW, media="print")
    browser.open("overview")
    assert all(column.is_displayed() for column in browser.all("th.more"))


def test_filters_narrow_the_grid_and_the_way_back_leads_to_the_images_before(browser: Browser):
    browser.open("images")
    all_ = len(browser.all(".tile"))
    browser.one("a.chip[href*='state=unlabeled']").click()
    some = len(browser.all(".tile"))
    assert 0 < some < all_
    assert "without a label" in browser.one(".chip.on").text
    browser.press("/")
    assert browser.focused().get_attribute("name") == "text"
    browser.press(*"0001", Keys.ENTER)
    assert "text=0001" in browser.driver.current_url and "state=unlabeled" in browser.driver.current_url
    assert len(browser.all(".tile")) <= 1
    browser.driver.back()

    assert len(browser.all(".tile")) == some


def test_the_keyboard_alone_reaches_the_content_moves_in_the_grid_and_comes_back(browser: Browser):
    browser.open("images")
    browser.press(Keys.TAB)
    assert browser.focused().text == "Skip to the content" and browser.focused().is_displayed()
    browser.press(Keys.ENTER, Keys.ARROW_RIGHT)
    tiles = browser.all(".tile")
    assert browser.focused() == tiles[0]
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_UP)
    assert browser.focused() == tiles[1]
    there = tiles[1].get_attribute("href")
    browser.press(Keys.ENTER)
    assert browser.driver.current_url == there
    browser.press(Keys.ESCAPE)

    assert browser.driver.current_url.endswith("/images#content")


def test_every_thing_that_can_be_pressed_has_a_visible_focus(browser: Browser):
    browser.open("mistakes")
    found = browser.all("a[href], button, input, select, [tabindex='0'], summary")
    for _ in range(sum(one.get_attribute("class") == "skip" or one.is_displayed() for one in found)):
        browser.press(Keys.TAB)
        outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline not in ("none", ""), browser.focused().get_attribute("outerHTML")


def test_the_map_shows_images_by_keys_and_its_area_is_in_the_address(browser: Browser):
    browser.open("map?color=label")
    canvas = wait_for(browser, "#map")
    assert painted(browser, canvas)
    browser.run("arguments[0].focus()", canvas)
    browser.press("+", Keys.ARROW_LEFT)
    assert "labeled" in wait_for(browser, "#near .tile").text or "not asked" in browser.one("#near").text
    assert "#" in browser.driver.current_url
    browser.press("0", "t")
    link = wait_for(browser, "a[href^='images?area=']")
    assert "area=" in browser.driver.current_url and "color=label" in browser.driver.current_url
    shown = link.get_attribute("href")
    browser.driver.get(shown)
    assert "41 images" in browser.one("h1").text


def test_an_area_is_drawn_with_the_pointer(browser: Browser):
    from selenium.webdriver import ActionChains

    browser.open("map")
    canvas = wait_for(browser, "#map")
    assert painted(browser, canvas)
    browser.one("[data-does=draw]").click()
    steps = ActionChains(browser.driver, duration=10).move_to_element_with_offset(canvas, -270, -270).click_and_hold()
    for x, y in ((540, 0), (0, 540), (-540, 0)):
        steps = steps.move_by_offset(x, y)
    steps.release().perform()

    assert "In the area: 41 images" in wait_for(browser, "a[href^='images?area=']").find_element("xpath", "../..").text
    assert browser.driver.current_url.count("%2C") in range(6, 129)


@pytest.fixture
def touched(browser: Browser) -> Iterator[Browser]:
    """Return the browser as a phone with a touch screen, at the map."""
    emulate = browser.driver.execute_cdp_cmd
    emulate("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
    browser.show(NARROW)
    browser.open("map?color=label")
    canvas = wait_for(browser, "#map")
    assert painted(browser, canvas)
    browser.run("arguments[0].scrollIntoView({block: 'center'})", canvas)
    yield browser
    emulate("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_two_fingers_zoom_the_map_and_one_moves_it(touched: Browser):
    x, y = middle(touched)
    touched.touch([(x - 30, y), (x + 30, y)], [(x - 60, y), (x + 60, y)])
    zoomed = view(touched)
    touched.touch([(x, y)], [(x + 20, y + 10)], [(x + 40, y + 20)])
    moved = view(touched)

    assert zoomed[0] == pytest.approx(2, abs=0.1)
    assert moved[0] == zoomed[0]
    width, height = touched.run(
        "const map = document.getElementById('map'); return [map.clientWidth, map.clientHeight]"
    )
    shift = ((moved[1] - zoomed[1]) * width, (moved[2] - zoomed[2]) * height)
    assert shift == pytest.approx((40, 20), abs=2)


def test_a_tap_shows_an_image_of_the_map_and_another_tap_opens_it(touched: Browser):
    place = touched.run(FIRST_POINT)
    touched.touch([place])
    tile = wait_for(touched, "#near .tile").get_attribute("href")
    time.sleep(0.6)  # two quick taps zoom
    touched.touch([place])

    assert any(touched.driver.current_url == tile or time.sleep(0.1) for _ in range(100))


def test_a_finger_draws_an_area_and_a_second_finger_gives_it_up(touched: Browser):
    x, y = middle(touched)
    side = min(x, 170)
    touched.one("[data-does=draw]").click()
    touched.touch([(x - 50, y), (x + 50, y)], [(x - 50, y + 30), (x + 50, y + 30)], [(x, y + 30), (x + 50, y)])
    assert "area=" not in touched.driver.current_url
    around = [(x - side, y - side), (x + side, y - side), (x + side, y + side), (x - side, y + side)]
    touched.touch(*([place] for place in around))

    assert "41 images" in wait_for(touched, "a[href^='images?area=']").find_element("xpath", "../..").text


def middle(browser: Browser) -> tuple[float, float]:
    """Return the place of the middle of the map in the window."""
    x, y, width, height = browser.run(f"{BOX} return [box.x, box.y, box.width, box.height]")
    return x + width / 2, y + height / 2


def view(browser: Browser) -> tuple[float, float, float]:
    """Return zoom and shift of the map, which are in its address."""
    scale, x, y = browser.driver.current_url.partition("#")[2].split(",")
    return float(scale), float(x), float(y)


def wait_for(browser: Browser, selector: str) -> Any:
    """Return the first element of a selector, when it is there and can be seen."""
    for _ in range(1200):
        found = browser.all(selector)
        if found and found[0].is_displayed():
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"{selector} did not appear")


def painted(browser: Browser, canvas: Any) -> bool:
    """Return whether something is drawn on a canvas, at the latest after some seconds."""
    script = "return arguments[0].getContext('2d').getImageData(0, 0, 2000, 2000).data.some(one => one > 0)"
    return any(browser.run(script, canvas) or time.sleep(0.1) for _ in range(300))
