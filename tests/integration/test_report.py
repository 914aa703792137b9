"""The report of a real workspace: complete in one file, and without names where it is public."""

import base64
import csv
import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from browser import NARROW, Browser
from browser import axe as axe
from browser import chromium as chromium
from command_line import alloop
from factories import make_project, tools_of
from sqlalchemy import text

from alloop.loop.choosing.uncertain import find_most_uncertain
from alloop.loop.rounds.runner import RunOptions, run
from alloop.project import Project
from alloop.report.page import gather_report, render_report
from alloop.report.provenance import gather_provenance
from alloop.store.session import transaction

HOSTILE = "<script>alert(1)"
PEOPLE = ("zelda@secret.example", "Yusuf <b>")
PLACE = "http://labels.secret.example:8080"


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Three rounds answered by two people, with a missing file and a server. Only to be read."""
    folder = tmp_path_factory.mktemp("report")
    project = make_project(
        folder,
        n=48,
        name="workspace-secret",
        classes=("cat", HOSTILE),
        labeling={"backend": "oracle", "annotations_per_image": 2},
        labeling__oracle={"file": "people.csv", "columns": list(PEOPLE)},
    )
    write_people(project.folder)
    run(tools_of(project), RunOptions(rounds=3))
    (project.folder / "photos" / "0047.png").unlink()
    alloop("pool", "check", "-C", project.folder)
    with transaction(project.database) as session:  # as Label Studio does
        session.execute(text("UPDATE annotation SET lead_time = 2.5"))
    return project


def write_people(folder: Path) -> None:
    """Write answers of two people, who differ about every ninth image."""
    with (folder / "truth.csv").open(newline="") as file:
        rows = [(row["file"], row["label"]) for row in csv.DictReader(file)]
    with (folder / "people.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *PEOPLE])
        writer.writerows([name, label, "cat" if at % 9 == 0 else label] for at, (name, label) in enumerate(rows))


def test_the_report_is_complete_in_one_file_and_escapes_every_name(learned: Project, tmp_path: Path):
    done = alloop("report", "-o", tmp_path / "report.html", "-C", learned.folder)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")

    assert done.out == f"Report in {tmp_path / 'report.html'}.\n"
    for heading in (
        "Accuracy by labels, %", "Rounds", "Gain over random choice", "Classes, the worst first", "Confusion matrix",
        "Accuracy of the newest model by its confidence", "Most uncertain", "Answers a day", "Labels per class", "Cost",
        "Stop rules", "Settings and provenance", "Needs a look",
    ):  # fmt: skip
        assert heading in page, heading
    assert "2.5 s an answer (median)" in page
    assert "0047.png" in page and "zelda@secret.example" in page and "Yusuf &lt;b&gt;" in page
    assert page.count("<script") == 1 and "&lt;script&gt;alert(1)" in page
    assert len(re.findall(r"<img ", page)) > 10


def test_the_report_loads_nothing_and_its_policy_allows_only_its_own_style(learned: Project):
    page = render_report(gather_report(learned))

    assert not re.search(r'(?:src|href|action|data|srcset)="(?!data:image/jpeg;base64,|#)', page)
    assert not re.search(r"url\(|@import|<link|<iframe|\son\w+=|\sstyle=", page)
    parts = {kind: re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)[0] for kind in ("style", "script")}
    policy = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)[0].replace("&#39;", "'")
    for kind, part in parts.items():
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_a_public_report_names_no_file_no_person_and_no_place(learned: Project, tmp_path: Path):
    environ = {"LABEL_STUDIO_URL": PLACE}
    with dataclasses.replace(learned, environ=environ) as project:
        uncertain = find_most_uncertain(project, 24)
        private, public = (
            render_report(gather_report(project, uncertain, is_public=is_public)) for is_public in (False, True)
        )
    assert uncertain

    secrets = [
        *PEOPLE, "zelda", "Yusuf", "secret", "photos", ".png", "people.csv", str(learned.folder), "oracle-1",
        *(path.stem for path in (learned.folder / "photos").iterdir()),
        *(image.image.sha256[:12] for image in uncertain),
    ]  # fmt: skip
    bare = re.sub(r"base64,[A-Za-z0-9+/=]+", "", public).replace("workspace-secret", "")
    assert not [secret for secret in secrets if secret in bare]
    assert "Person 1" in public and "Person 2" in public
    assert "This report is public: names of files and people" in public
    assert "This report is public" not in private and "Person 1" not in private
    assert public.count("<img ") == private.count("<img ")

    alloop("report", "--public", "-o", tmp_path / "report.html", "-C", learned.folder)
    assert "This report is public" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def browser(learned: Project, tmp_path: Path, chromium: Any) -> Browser:
    """Return the browser with the report as a file."""
    path = tmp_path / "report.html"
    path.write_text(render_report(gather_report(learned, find_most_uncertain(learned, 24))), encoding="utf-8")
    found = Browser(chromium, f"file://{tmp_path}")
    found.show()
    found.open("report.html")
    return found


def test_a_browser_shows_the_report_from_a_file_and_sorts_its_tables(browser: Browser):
    assert browser.complaints() == []
    assert browser.run("return [...document.images].every(one => one.naturalWidth > 0)")
    table = "[aria-label='Rounds'] tbody tr td:first-child"
    assert [cell.text for cell in browser.all(table)] == ["2", "1", "0"]

    browser.one("[aria-label='Rounds'] th button").click()

    assert [cell.text for cell in browser.all(table)] == ["0", "1", "2"]
    assert browser.one("[aria-label='Rounds'] th").get_attribute("aria-sort") == "ascending"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_report_follows_the_system_and_has_no_serious_fault(browser: Browser, axe: str, dark: bool):
    browser.show(dark=dark)

    color = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert color == ("rgb(22, 24, 27)" if dark else "rgb(251, 251, 249)")
    assert browser.faults(axe) == []


def test_the_report_fits_a_narrow_window_and_paper(browser: Browser):
    browser.show(NARROW)
    assert browser.run("return document.documentElement.scrollWidth") <= NARROW[0]

    browser.show(NARROW, dark=True, media="print")
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert all(column.is_displayed() for column in browser.all("th.more"))
    assert not browser.one(".chips").is_displayed()


def test_public_settings_name_no_file_no_place_and_no_attribute(tmp_path: Path):
    project = make_project(
        tmp_path,
        n=4,
        model={"backbone": "zelda.nets:make", "weights": "zelda.pth"},
        acquisition={"only": "clinic = 'zelda'", "strategy": "margin"},
        train={"loss": "focal"},
    )

    private, public = (gather_provenance(project, is_public=is_public).settings for is_public in (False, True))

    assert len([line for line in private if "zelda" in line]) >= 3
    assert "zelda" not in " ".join(public) and "photos" not in " ".join(public) and "[pool]" not in public
    assert 'loss = "focal"' in public and 'strategy = "margin"' in public


def test_an_empty_project_and_one_without_a_model_have_a_report(tmp_path: Path):
    empty = make_project(tmp_path / "empty", n=4, add=False)
    asked = make_project(tmp_path / "asked", n=12, labeling={"backend": "csv"})
    run(tools_of(asked), RunOptions())

    assert "No images yet." in render_report(gather_report(empty))
    assert "No model yet." in render_report(gather_report(asked, is_public=True))
