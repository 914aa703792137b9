"""Buttons and keys of the live pages in a real browser, and pages that follow what happens."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("selenium")
from asked import asked_folder as asked_folder
from asked import project as project
from browser import Browser, served
from browser import axe as axe
from browser import chromium as chromium
from factories import at_bench
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from alloop.loop.asking.junk import mark_junk
from alloop.project import Project
from alloop.records import Reason, Split
from alloop.store.images import list_refs, list_split
from alloop.store.queries import list_queries
from alloop.store.session import reading


@pytest.fixture
def browser(chromium: Any, project: Project) -> Iterator[Browser]:
    with served(project.folder) as address:
        found = Browser(chromium, address)
        found.show()
        found.complaints()
        yield found
        assert found.complaints() == []
        chromium.get("about:blank")  # its stream ends before the server


def wait(browser: Browser, selector: str, words: str) -> None:
    gone = [StaleElementReferenceException]  # the page changes between finding an element and reading it
    WebDriverWait(browser.driver, 60, poll_frequency=0.1, ignored_exceptions=gone).until(
        lambda _: any(words in found.text for found in browser.all(selector))
    )


def picked(browser: Browser, which: str = "") -> list[int]:
    return [int(pick.get_attribute("value")) for pick in browser.all(f".pick{which}")]


def test_images_are_selected_asked_for_and_marked_with_the_keyboard_alone(browser: Browser, project: Project):
    browser.open("images?state=unlabeled&sort=name")
    with reading(project.database) as session:
        held = list_split(session, Split.HOLDOUT)
    for image_id in picked(browser)[:4]:
        browser.press(Keys.ARROW_RIGHT, *([] if image_id in held else [" "]))
    chosen = picked(browser, ":checked")
    assert 1 < len(chosen) < 5 and not set(chosen) & set(held)
    assert browser.one(".n-chosen").text == f"{len(chosen)} selected"
    browser.press("x")
    wait(browser, ".notice", f"{len(chosen)} images marked as junk.")
    with reading(project.database) as session:
        assert list_split(session, Split.JUNK) == chosen

    browser.one(".notice button").click()
    wait(browser, ".notice", f"{len(chosen)} images no longer marked as junk")
    with reading(project.database) as session:
        asked = {query.image_id for query in list_queries(session)}
    free = next(at for at, image_id in enumerate(picked(browser)) if image_id not in asked)
    browser.press(*[Keys.ARROW_RIGHT] * (free + 1), "a")  # without a selection: the image with the focus
    wait(browser, ".notice", "People are asked about 1 image")
    with reading(project.database) as session:
        assert [query.reason for query in list_queries(session)].count(Reason.MANUAL) == 1

    browser.press("?")
    assert "mark the selected images as junk" in browser.one("dialog").text
    browser.press(Keys.ESCAPE)
    assert not browser.one("dialog").is_displayed()


def test_a_page_shows_the_step_that_it_started_and_then_its_result(browser: Browser):
    browser.open("")
    browser.one(".top button").click()
    wait(browser, "#step", "Round 0: 8 of 8 images wait for annotators.")


def test_a_page_comes_back_by_itself_when_the_settings_can_be_read_again(browser: Browser, project: Project):
    settings = project.folder / "alloop.toml"
    right = settings.read_text()
    settings.write_text(right + "\n[nothing]\n")
    browser.open("overview")
    assert "alloop.toml" in browser.one("h1").text
    assert len(browser.complaints()) == 1  # the answer is an error

    settings.write_text(right)

    wait(browser, ".top button", "Run the next step")


def test_axe_finds_no_serious_fault_in_buttons_notices_and_the_list_of_keys(browser: Browser, axe: str):
    browser.open("images")
    browser.one(".top button[data-key=x]").click()
    wait(browser, ".notice", "No image is selected.")
    assert browser.faults(axe) == []
    browser.press("?")
    assert browser.faults(axe) == []


def test_a_page_offers_what_another_command_has_changed_and_keeps_the_selection(browser: Browser, project: Project):
    browser.open("images?state=unlabeled&sort=name")
    browser.one("#choose-all").click()
    n = len(browser.all(".pick"))
    assert browser.one(".n-chosen").text == f"{n} selected"
    with reading(project.database) as session:
        free = next(ref.image_id for ref in list_refs(session, Split.TRAIN))
    at_bench(project, mark_junk, [free])

    wait(browser, "#changed", "The project has changed.")

    assert sum(pick.is_selected() for pick in browser.all(".pick")) == n
    browser.one("#changed a").click()
    assert len(browser.all(".pick")) == n - 1
