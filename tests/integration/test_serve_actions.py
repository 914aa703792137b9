"""What the live pages change: forms as a browser sends them, and forms that nobody should send."""

import contextlib
import html
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

pytest.importorskip("uvicorn")
from asked import asked_folder as asked_folder
from asked import project as project
from browser import served
from factories import at_bench, tools_of, write_picture
from learned import learned as learned
from starlette.testclient import TestClient

from alloop.loop.asking.junk import mark_junk
from alloop.loop.intake.ingest import add_images
from alloop.loop.rounds.runner import RunOptions, run
from alloop.loop.workbench import open_workbench
from alloop.project import Project, open_project
from alloop.records import QueryStatus, Reason, Split
from alloop.serve.app import make_app
from alloop.serve.step import Step
from alloop.store.images import list_refs, list_split
from alloop.store.queries import QueryRecord, list_queries
from alloop.store.session import reading

HOST = "127.0.0.1:8571"
HERE = f"http://{HOST}"


@contextlib.contextmanager
def browser(project: Project, **options: bool) -> Iterator[TestClient]:
    app = make_app(project.folder, {HOST}, **options)
    with TestClient(app, base_url=HERE, headers={"origin": HERE}) as client:  # type: ignore[arg-type]
        yield client


def send(client: TestClient | httpx.Client, page: str, action: str, **fields: str) -> httpx.Response:
    """Send a form of a page with its hidden fields, as a browser does."""
    text = client.get(page).text
    form = next((found for found in re.findall(r"<form.*?</form>", text, re.S) if f'action="{action}"' in found), None)
    assert form is not None, f"{page} has no form {action}"
    hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form))
    hidden = {name: html.unescape(value) for name, value in hidden.items()}
    return client.post(f"/{action}", data=hidden | fields)  # type: ignore[return-value]


def queries(project: Project) -> list[QueryRecord]:
    with reading(project.database) as session:
        return list_queries(session)


def junk(project: Project) -> list[int]:
    with reading(project.database) as session:
        return list_split(session, Split.JUNK)


def unasked(project: Project) -> list[int]:
    asked = {query.image_id for query in queries(project)}
    with reading(project.database) as session:
        return [ref.image_id for ref in list_refs(session, Split.TRAIN) if ref.image_id not in asked]


def wait_for(is_so: Callable[[], bool]) -> None:
    while not is_so():
        time.sleep(0.05)


def test_selected_images_are_asked_about_and_taken_back(project: Project):
    first, second, *_ = unasked(project)
    with browser(project) as client:
        page = send(client, "/images?state=unlabeled", "ask", id=f"{first},{second}")

        assert page.url.query == b"state=unlabeled" and "People are asked about 2 images" in page.text
        assert "asked by hand" in page.text
        by_hand = [query.image_id for query in queries(project) if query.reason is Reason.MANUAL]
        assert by_hand == [first, second]
        assert "People are asked about" not in client.get("/images").text  # it is said once
        assert "Asked for by hand by " in client.get(f"/image?id={first}").text

        send(client, "/images", "ask", id=f"{first}")
        page = client.post("/unask", data={**fields_of(client), "id": f"{first},{second}"})

    assert "2 questions taken back." in page.text
    manual = [query for query in queries(project) if query.reason is Reason.MANUAL]
    assert {query.status for query in manual} == {QueryStatus.WITHDRAWN}


def fields_of(client: TestClient) -> dict[str, str]:
    text = client.get("/images").text
    return {"csrf": re.findall(r'name="csrf" value="(\w+)"', text)[0], "back": "images"}


def test_marking_as_junk_changes_what_it_says_and_undo_takes_exactly_that_back(project: Project):
    held = next(query.image_id for query in queries(project) if query.reason is Reason.HOLDOUT)
    first, second, third, *_ = unasked(project)
    with browser(project) as client:
        client.post("/junk", data={**fields_of(client), "id": str(third)})
        page = client.post("/junk", data={**fields_of(client), "id": f"{first},{held},{third},{second}"})

        assert "2 images marked as junk." in page.text and "in the holdout or the test set" in page.text
        assert junk(project) == [first, second, third]
        shown = client.get("/images?state=junk").text
        assert "3 images," in shown and "Undo the mark" in shown and "Ask for these" not in shown
        assert "Marked as junk by " in client.get(f"/image?id={first}").text

        client.post("/junk", data={**fields_of(client), "id": f"{unasked(project)[0]}"})
        undo = re.findall(r'action="unjunk".*?name="id" value="([\d,]+)"', client.get("/people").text, re.S)
        assert undo == []  # the notice was shown with the answer
        page = client.post("/unjunk", data={**fields_of(client), "id": f"{first},{second}"})

    assert "2 images no longer marked as junk" in page.text
    assert third in junk(project) and not {first, second} & set(junk(project))


def test_a_mark_as_junk_keeps_its_reason(project: Project):
    image = unasked(project)[0]
    with browser(project) as client:
        assert 'name="reason"' in client.get(f"/image?id={image}").text
        client.post("/junk", data={**fields_of(client), "id": str(image), "reason": " too <b>dark</b>\r\n  to see "})
        text = client.get(f"/image?id={image}").text

    assert re.search(r"Marked as junk by [^(]+ UTC \(too &lt;b&gt;dark&lt;/b&gt; to see\)", text)


def test_all_images_that_match_a_filter_are_one_selection(project: Project, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("alloop.serve.views.PAGE", 3)
    page = "images?state=unlabeled"
    with browser(project) as client:
        n = int(re.findall(r'name="matching" id="matching" value="(\d+)"', client.get(f"/{page}").text)[0])
        fields = {**fields_of(client), "back": page}
        stale = client.post("/junk", data={**fields, "matching": str(n + 1)})
        assert stale.status_code == 400 and f"{n} images match the filter now, and {n + 1} when" in stale.text
        assert junk(project) == []
        marked = client.post("/junk", data={**fields, "matching": str(n)})
        left = set(re.findall(r'href="image\?id=(\d+)"', marked.text))

    n_held = sum(query.reason is Reason.HOLDOUT for query in queries(project))
    assert n > 3 and len(junk(project)) == n - n_held
    assert f"{n - n_held} images marked as junk." in marked.text
    assert not left & set(map(str, junk(project)))


@pytest.mark.parametrize(
    ("ids", "code", "says"),
    [
        ("x", 400, "is not the number of an image"),
        ("1,-2", 400, "is not the number of an image"),
        ("1;DROP TABLE image", 400, "is not the number of an image"),
        ("<script>alert(1)</script>", 400, "&lt;script&gt;alert(1)"),
        ("9" * 30, 400, "is not the number of an image"),
        (",".join(map(str, range(10_001))), 400, "10,001 images are selected, and at most 10,000"),
        ("", 200, "No image is selected"),
        ("999999", 200, "No image was marked. 1 left out: not in the pool."),
    ],
)
def test_ids_that_are_no_images_change_nothing(asked_folder: Path, ids: str, code: int, says: str):
    with TestClient(make_app(asked_folder, {HOST}), base_url=HERE, headers={"origin": HERE}) as client:  # type: ignore[arg-type]
        fields = fields_of(client)
        page = client.post("/junk", data={**fields, **({"id": ids} if ids else {})})

    assert (page.status_code, says in page.text) == (code, True)
    with open_project(asked_folder) as project:
        assert junk(project) == []


def test_ten_thousand_ids_are_one_action(project: Project):
    mine = unasked(project)
    ids = [*mine, *range(10**6, 10**6 + 9_000)]
    with browser(project) as client:
        page = client.post("/junk", data={**fields_of(client), "id": ",".join(map(str, ids))})

    assert f"{len(mine)} images marked as junk." in page.text
    assert "9000 left out: not in the pool." in page.text


def test_a_server_that_only_shows_draws_no_button_and_refuses_a_form(project: Project):
    with browser(project) as client:
        fields = fields_of(client)
    with browser(project, is_read_only=True) as client:
        for page in ("/", "/round", "/images", f"/image?id={unasked(project)[0]}"):
            text = client.get(page).text
            assert 'method="post"' not in text and 'class="pick"' not in text, page
        refused = client.post("/junk", data={**fields, "id": str(unasked(project)[0])})

    assert refused.status_code == 403 and "--read-only" in refused.text
    assert junk(project) == []


def test_the_person_who_logged_in_is_named_beside_the_user_of_the_server(project: Project):
    image, token = unasked(project)[0], "a token that is long enough"
    app = make_app(project.folder, {HOST}, token)
    with TestClient(app, base_url=HERE, headers={"origin": HERE}) as client:  # type: ignore[arg-type]
        client.post("/login", data={"token": token, "name": " <b>Ada</b> \n pid 1 #"})
        client.post("/junk", data={**fields_of(client), "id": str(image)})
        text = client.get(f"/image?id={image}").text

    assert re.search(r"Marked as junk by &lt;b&gt;Ada&lt;/b&gt; 1 as \S+@\S+, ", text)


@pytest.mark.parametrize(
    "back", ["//evil.example", "https://evil.example/", "/\\evil.example", "nowhere", "images\r\nx: y"]
)
def test_a_form_never_leads_to_another_server(project: Project, back: str):
    with browser(project) as client:
        fields = {**fields_of(client), "back": back, "id": str(unasked(project)[0])}
        answer = client.post("/junk", data=fields, follow_redirects=False)

    assert answer.status_code == 303
    assert answer.headers["location"] in ("./", "images%0D%0Ax:%20y")


def test_while_another_alloop_is_at_work_an_action_is_refused_in_plain_words(project: Project):
    image = unasked(project)[0]
    with browser(project) as client, open_workbench(tools_of(project)):
        pages = [
            send(client, "/images", "ask", id=str(image)),
            client.post("/junk", data={**fields_of(client), "id": str(image)}),
            send(client, "/", "run"),
        ]

    for page in pages:
        assert page.status_code == 409
        assert "Another alloop is working on this workspace: " in page.text and "Nothing was changed." in page.text


def test_a_button_of_a_page_that_is_no_longer_true_does_nothing(project: Project):
    with browser(project) as client:
        page = client.post("/run", data={**fields_of(client), "seen": "0 selected"})

    assert page.status_code == 409 and "has moved on since your page was made" in page.text


def test_the_next_step_runs_beside_the_server_and_only_once_at_a_time(project: Project):
    """A real server: its stream tells of the step, and of what other commands change."""
    run(tools_of(project), RunOptions())  # its tasks name the files of the workspace that this one is a copy of
    with served(project.folder) as address, httpx.Client(base_url=address, timeout=60) as client:
        client.headers["origin"] = address
        client.follow_redirects = True
        with client.stream("GET", "/events") as stream:
            told = Told(stream)
            assert not told.step()["is_running"]
            version = told.of("version")

            assert "The next step has started." in send(client, "/", "run").text
            again = send(client, "/", "run")
            assert again.status_code == 409 and "A step is running already" in again.text
            refused = client.post("/junk", data={**fields_of(client), "id": str(unasked(project)[0])})  # type: ignore[arg-type]
            assert refused.status_code == 409 and "Wait for its end" in refused.text

            while told.step()["is_running"] or told.step()["number"] == 0:
                told.next()
            assert told.step()["says"] == "Round 0: 8 of 8 images wait for annotators."
            assert told.of("version") == version  # nothing changed: nobody has answered

            at_bench(project, mark_junk, unasked(project)[:1])
            while told.of("version") == version:
                told.next()


def test_a_step_that_is_stopped_or_killed_says_so_and_the_next_one_goes_on(project: Project):
    step = Step(project.folder)
    assert step.start("run") and not step.start("run")
    assert step._child is not None
    step._child.kill()
    wait_for(lambda: not step.state().is_running)
    assert step.state().is_failed and "ended without a result (exit code -9). Nothing that" in step.state().words

    assert step.start("run")
    wait_for(lambda: not step.state().is_running)
    assert (step.state().is_failed, step.state().number) == (False, 2)

    step.stop()
    assert not step.start("run")


class _KilledWhileItWrites(Step):
    def _spawn(self, job: Sequence[str]) -> "subprocess.Popen[str]":
        half = """printf '{"label": "training", "done": 1, "total": 4}\\n{"label": "trai'; kill -9 $$"""
        return subprocess.Popen(["sh", "-c", half], stdout=subprocess.PIPE, text=True)


def test_a_step_that_is_killed_in_the_middle_of_a_line_has_ended(tmp_path: Path):
    step = _KilledWhileItWrites(tmp_path)
    step.start("run")
    wait_for(lambda: not step.state().is_running)
    assert step.state().is_failed and "ended without a result (exit code -9)" in step.state().words


def test_a_step_that_cannot_be_taken_says_why(project: Project):
    shutil.rmtree(project.folder / "sheets")
    (project.folder / "alloop.toml").write_text("[project]\n")

    step = Step(project.folder)
    step.start("run")
    wait_for(lambda: not step.state().is_running)

    assert step.state().is_failed and "alloop.toml" in step.state().words


def test_a_result_is_shown_until_the_project_changes(project: Project):
    with browser(project) as client:
        send(client, "/", "run")
        wait_for(lambda: "images wait for annotators" in client.get("/").text)
        at_bench(project, mark_junk, unasked(project)[:1])

        assert "images wait for annotators" not in client.get("/").text


def test_a_failure_is_shown_on_each_page_until_the_project_changes(project: Project):
    settings = (project.folder / "alloop.toml").read_text()
    with browser(project) as client:
        (project.folder / "sheets").rename(project.folder / "away")
        send(client, "/", "run")
        wait_for(lambda: "There are no sheets in" in client.get("/people").text)
        (project.folder / "alloop.toml").write_text(f"# corrected\n{settings}")

        assert "There are no sheets in" not in client.get("/people").text


class Told:
    """What a stream of events has said last."""

    def __init__(self, stream: httpx.Response) -> None:
        self._lines = stream.iter_lines()
        self._said: dict[str, str] = {}

    def next(self) -> None:
        name = ""
        for line in self._lines:
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            if line.startswith("data: "):
                self._said[name] = line.removeprefix("data: ")
            if not line:
                return
        raise StopIteration

    def of(self, name: str) -> str:
        while name not in self._said:
            self.next()
        return self._said[name]

    def step(self) -> dict[str, object]:
        return dict(json.loads(self.of("step")))


def test_the_map_is_made_again_when_asked_and_the_selection_of_an_area_can_be_asked_about(
    learned: Project, tmp_path: Path
):
    folder = tmp_path / "copy"
    shutil.copytree(learned.folder, folder)
    write_picture(folder / "new.png", label="cat", number=900)
    with open_project(folder, {}) as project, browser(project) as client:
        wait_for(lambda: client.get("/map/progress").json()["is_ready"])
        at_bench(project, add_images, [str(folder / "new.png")])
        page = client.get("/map?color=label").text
        assert "1 image came to the pool later, and cannot be placed without features." in page

        answer = send(client, "/map?color=label", "remap")

        assert "The map is being made again" in answer.text and answer.url.path == "/map"
        wait_for(lambda: not client.get("/map/progress").json()["is_under_way"])
        again = client.get("/map").text
        assert "came to the pool later" not in again and "1 image had no features" in again
        name = re.findall(r'data-map="(\w{8})"', again)[0]
        chosen = client.get("/map", params={"area": f"{name},-1100,-1100,1100,-1100,1100,1100,-1100,1100"}).text
        assert 'action="ask"' in chosen and 'form="chosen"' in chosen
    with open_project(folder, {}) as project, browser(project, is_read_only=True) as client:
        assert 'action="remap"' not in client.get("/map").text


def test_a_map_that_cannot_be_made_again_is_refused_with_the_reason(project: Project):
    with browser(project) as client:
        answer = client.post("/remap", data={**fields_of(client), "back": "map"})

    assert answer.status_code == 409 and "There is no model yet." in answer.text
