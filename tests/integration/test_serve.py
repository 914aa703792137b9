"""The live pages of a real workspace, through a real server."""

import contextlib
import html
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

pytest.importorskip("uvicorn")
import sqlalchemy as sa
from command_line import alloop
from factories import NOW, at_bench, make_project, make_query, write_picture
from learned import HOSTILE, HOSTILE_PROJECT
from learned import learned as learned
from starlette.testclient import TestClient

from alloop.loop.choosing.pool_scores import find_newest_scores
from alloop.loop.choosing.uncertain import find_most_uncertain
from alloop.loop.measuring.findings import read_last_holdout
from alloop.loop.rounds import steps
from alloop.project import Project, open_project
from alloop.records import Consensus, RoundState, Split
from alloop.report.page import gather_report
from alloop.serve.app import make_app
from alloop.store.annotations import set_labels
from alloop.store.images import find_image_ids, list_refs
from alloop.store.queries import add_queries, add_tasks, list_queries
from alloop.store.rounds import add_round, set_state
from alloop.store.session import reading, transaction
from alloop.store.workspace import find_lease_holder, set_project

HOST = "127.0.0.1:8571"
PAGES = ("", "overview", "round", "images", "map", "mistakes", "people", "model")


@contextlib.contextmanager
def client_of(project: Project) -> Iterator[TestClient]:
    with TestClient(make_app(project.folder, {HOST}), base_url=f"http://{HOST}") as client:  # type: ignore[arg-type]
        yield client


def test_every_page_answers_and_no_name_becomes_markup(learned: Project):
    with client_of(learned) as client:
        for page in PAGES:
            answer = client.get(f"/{page}")
            assert answer.status_code == 200, page
            assert "<script>alert" not in answer.text and "<b>&amp;" not in answer.text
            assert 'onload="x' not in answer.text and HOSTILE_PROJECT not in answer.text
            assert "<h1" in answer.text
        found = client.get("/images", params={"text": "<b>"})
        assert "1 image," in found.text and "a &lt;b&gt;&amp;amp;#?%+ é.png" in found.text
        assert "&lt;script&gt;alert(1)" in client.get("/mistakes").text


HEAVY = ("torch", "torchvision", "sklearn", "scipy", "pandas", "matplotlib", "label_studio_sdk")
LOOK = """
import sys
from pathlib import Path
from starlette.testclient import TestClient
from alloop.serve.app import make_app
folder, host, *pages = sys.argv[1:]
with TestClient(make_app(Path(folder), {host}), base_url=f"http://{host}") as client:
    print([client.get(f"/{page}").status_code for page in pages])
print([name for name in HEAVY if name in sys.modules])
"""


def test_looking_at_pages_loads_no_heavy_library(learned: Project):
    pages = [*PAGES, f"image?id={first_image(learned)}", f"thumbnail?id={first_image(learned)}&side=160"]
    program = f"HEAVY = {HEAVY}\n{LOOK}"

    found = subprocess.run(
        [sys.executable, "-c", program, str(learned.folder), HOST, *pages], capture_output=True, text=True, check=True
    )

    assert found.stdout.splitlines() == [str([200] * len(pages)), "[]"]


def test_no_page_has_styles_or_scripts_that_the_policy_forbids(learned: Project):
    with client_of(learned) as client:
        for page in (*PAGES, f"image?id={first_image(learned)}"):
            text = client.get(f"/{page}").text
            tags = _Tags(text)
            assert "style" not in tags.names and not [name for name in tags.attributes if name.startswith("on")], page
            assert "style" not in tags.attributes and "javascript:" not in text, page
            assert not re.search(r'(?:href|src|action)="(?:https?:)?//', text), page


def test_a_page_says_the_same_numbers_as_the_status(learned: Project):
    with client_of(learned) as client:
        text = client.get("/").text

    measured = [row for row in alloop("status", "--json", "-C", learned.folder).data["rounds"] if row["metrics"]][-1]
    assert f"{100 * measured['metrics']['accuracy']['value']:.1f} %" in text


def test_an_image_leads_to_its_picture_and_other_numbers_to_nothing(learned: Project):
    with client_of(learned) as client:
        number = first_image(learned)
        assert client.get(f"/image?id={number}").status_code == 200
        picture = client.get(f"/thumbnail?id={number}&side=320")
        assert (picture.status_code, picture.headers["content-type"], picture.content[:2]) == (
            200,
            "image/jpeg",
            b"\xff\xd8",
        )
        assert picture.headers["content-security-policy"] == "default-src 'none'; sandbox"
        again = client.get(f"/thumbnail?id={number}&side=320", headers={"if-none-match": picture.headers["etag"]})
        assert again.status_code == 304
        for address in (
            "/image?id=999999", "/image?id=-1", "/image?id=../1", "/image", f"/thumbnail?id={number}&side=9999",
            "/thumbnail?id=999999&side=160", "/thumbnail?id=1%00&side=160", "/picture?id=x", "/static?file=../app.py",
            "/static?file=", "/static/../app.py", "/%2e%2e/alloop.toml", "/round?number=99", "/nothing",
        ):  # fmt: skip
            assert client.get(address).status_code == 404, address


def test_the_map_is_made_and_its_areas_are_filters(learned: Project):
    with client_of(learned) as client:
        assert "The map is not there yet" in client.get("/map").text or map_of(client)
        points = map_of(client)
        page = client.get("/map?color=predicted").text
        name = re.findall(r'data-map="(\w{8})"', page)[0]
        right = sum(x >= 0 for x in points["x"])
        inside = {"area": f"{name},0,-1100,1100,-1100,1100,1100,0,1100"}
        selected, shown = client.get("/map", params=inside).text, client.get("/images", params=inside).text

    assert len(points["id"]) == 41 and sum(points["labeled"]) > 8
    assert 0 < right < 41 and f"{right} images" in selected and f"{right} images," in shown
    assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page
    assert "in an area of the map" in shown


def test_an_image_that_comes_after_the_map_is_placed_on_it(learned: Project, tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(learned.folder, folder)
    new = write_picture(tmp_path / "new.png", label=HOSTILE[1], number=500, classes=HOSTILE)
    with open_project(folder, {}) as copy, client_of(copy) as client:
        before = map_of(client)
        assert alloop("pool", "add", new, "-C", folder).code == 0
        assert "1 image came to the pool later, and cannot be placed without features." in client.get("/map").text
        assert alloop("pool", "add", "--features", new, "-C", folder).code == 0
        after, page = map_of(client), client.get("/map").text

    assert "Diamonds: 1 image placed since then" in page and "came to the pool later" not in page
    assert not any(before["placed"]) and sum(after["placed"]) == 1
    at = after["placed"].index(1)
    assert abs(after["x"][at]) <= 1000 and abs(after["y"][at]) <= 1000
    assert {name: after[name][:at] for name in ("id", "x", "y")} == {name: before[name] for name in ("id", "x", "y")}


def test_the_map_refuses_areas_of_other_maps_and_its_script_gets_no_page_of_errors(learned: Project):
    with client_of(learned) as client:
        map_of(client)
        assert "drawn on another map" in client.get("/map?area=ffffffff,0,0,1,0,1,1").text
        assert "Map" in client.get("/map?color=nothing").text
        assert client.get("/tile?id=999999").status_code == 404
        assert f'href="image?id={first_image(learned)}"' in client.get(f"/tile?id={first_image(learned)}").text


def test_an_image_shows_the_labeled_images_that_are_most_alike(learned: Project):
    with reading(learned.database) as session:
        labeled = [ref.image_id for ref in list_refs(session, Split.TRAIN, labeled=True)]
    with client_of(learned) as client:
        texts = {number: client.get(f"/image?id={number}").text for number in (*labeled[:2], first_image(learned))}

    for number, text in texts.items():
        alike = [float(one) for one in re.findall(r"similarity (-?[0-9.]+)", text)]
        assert len(alike) == 6 and alike == sorted(alike, reverse=True) and alike[0] <= 1
        near = re.findall(r'href="image\?id=(\d+)"', text[text.index("Nearest labeled images") :])[:6]
        assert {int(one) for one in near} <= set(labeled) - {number}


def test_a_model_whose_files_are_gone_leaves_the_page_of_an_image_and_the_map_with_a_reason(
    learned: Project, tmp_path: Path
):
    folder = tmp_path / "copy"
    shutil.copytree(learned.folder, folder, ignore=shutil.ignore_patterns("map", "model.json"))
    with open_project(folder, {}) as copy, client_of(copy) as client:
        assert "cannot be read" in client.get(f"/image?id={first_image(learned)}").text
        assert "cannot be read" in client.get("/map").text


def test_a_file_that_is_no_picture_any_more_is_not_served(learned: Project, tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(learned.folder, folder)
    with reading(learned.database) as session:
        image = list_refs(session)[0]
    Path(image.path).rename(tmp_path / "kept")
    try:
        Path(image.path).symlink_to("/etc/hostname")
        with client_of(learned) as client:
            answer = client.get(f"/picture?id={image.image_id}")
        assert answer.status_code == 404 and answer.headers["content-type"].startswith("text/plain")
        assert Path("/etc/hostname").read_text().strip() not in answer.text
    finally:
        Path(image.path).unlink()
        (tmp_path / "kept").rename(image.path)


def test_a_new_workspace_says_on_each_page_what_it_waits_for(tmp_path: Path):
    with client_of(make_project(tmp_path, n=12)) as client:
        heads = {page: re.sub(r"\s+", " ", client.get(f"/{page}").text) for page in PAGES}

    assert "No model yet." in heads[""] and "Nobody can say before a model is measured." in heads[""]
    assert "Nobody has answered yet." in heads[""]
    assert "No round yet." in heads["round"]
    assert "12 images, most uncertain first" in heads["images"]
    assert "No image has a prediction yet." in heads["map"] and "There is no model yet." in heads["map"]
    assert "No mistakes to show yet." in heads["mistakes"]
    assert "Labels to train on are not checked: there is no model yet." in heads["mistakes"]
    assert "Nobody has labeled yet." in heads["people"]
    assert "No model was measured yet." in heads["model"]


def test_a_round_at_work_says_what_it_has_not_done_yet(tmp_path: Path):
    project = make_project(tmp_path, n=12)
    at_bench(project, steps.start_round)
    with client_of(project) as client:
        assert "Round 0 has asked nothing yet." in client.get("/round").text

        for step in (steps.train, steps.score, steps.select):
            at_bench(project, step, 0)
        page = client.get("/round").text
        n = len(re.findall("asked in round 0", page))
        assert f"{n} images not sent yet." in page


def test_the_round_that_is_shown_first_is_the_newest_one_that_asked(learned: Project, tmp_path: Path):
    shutil.copytree(learned.folder, tmp_path / "copy")
    with open_project(tmp_path / "copy") as project, transaction(project.database) as session:
        asking = max(query.round_number for query in list_queries(session))
        add_round(session, asking + 1, project.config.model_dump(mode="json"), 0, NOW)
    with client_of(project) as client:
        first, newest = client.get("/round").text, client.get(f"/round?number={asking + 1}").text

    assert f"Round {asking} asked about" in first
    assert f"Round {asking + 1} has asked nothing yet." in newest and "all 0" not in newest


def test_scores_whose_file_is_gone_are_passed_over(learned: Project, tmp_path: Path):
    shutil.copytree(learned.folder, tmp_path / "copy")
    with open_project(tmp_path / "copy") as project:
        found = []
        while True:
            with reading(project.database) as session:
                newest = find_newest_scores(session, project)
            assert len(find_most_uncertain(project, 3)) == (0 if newest is None else 3)
            with client_of(project) as client:
                assert client.get("/images").status_code == 200
            if newest is None:
                break
            found.append(newest[0])
            project.paths.scores(newest[0]).unlink()

    assert found and found == sorted(set(found), reverse=True)


def test_open_tasks_are_linked_where_people_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://labels.example.org")
    project = make_project(tmp_path, n=12, labeling={"backend": "label-studio"})
    with transaction(project.database) as session:
        current = add_round(session, 0, project.config.model_dump(mode="json"), 0, NOW)
        set_state(session, current.id, RoundState.CREATED, RoundState.PUSHED)
        image_id = list_refs(session)[0].image_id
        add_queries(session, current.id, [make_query(image_id)], "r0", NOW)
        set_project(session, "label-studio", "7")
        add_tasks(session, "label-studio", "7", {list_queries(session)[0].id: "345:r0-1"}, NOW)

    with client_of(project) as client:
        for page in ("overview", "round"):
            text = client.get(f"/{page}").text
            assert '<a href="http://labels.example.org/projects/7/data" rel="noreferrer">Open the 1 task</a>' in text
        assert "http://labels.example.org/projects/7/data?task=345" in client.get(f"/image?id={image_id}").text


def test_a_label_that_the_model_contradicts_is_worth_a_second_look(learned: Project, tmp_path: Path):
    shutil.copytree(learned.folder, tmp_path / "copy")
    with open_project(tmp_path / "copy") as project:
        with transaction(project.database) as session:
            holdout = read_last_holdout(session, project)
            assert holdout is not None and holdout.calibrated_log_probs is not None
            surest = int(holdout.calibrated_log_probs.max(axis=1).argmax())
            image_id = find_image_ids(session, [holdout.sha256s[surest]])[holdout.sha256s[surest]]
            other = next(name for name in HOSTILE if name != holdout.predicted[surest])
            set_labels(session, {image_id: Consensus(other, 1.0, 1)}, NOW)
        with client_of(project) as client:
            text = client.get("/mistakes").text

    assert f"; of the label {other}: " in html.unescape(text)
    assert f'href="image?id={image_id}"' in text.partition("Labels worth a second look")[2]


def test_the_model_is_shown_before_and_after_calibration_if_it_was_kept(learned: Project, tmp_path: Path):
    with client_of(learned) as client:
        text = client.get("/model").text
    assert "Rings: before it" in text and "% before calibration, " in text and "Accuracy before, %" in text

    shutil.copytree(learned.folder, tmp_path / "old")
    with open_project(tmp_path / "old") as project:
        with transaction(project.database) as session:
            session.execute(sa.text("DELETE FROM metric WHERE name = 'ece_uncalibrated'"))
        path = max((project.folder / "runs").glob("*/holdout.parquet"))
        pq.write_table(pq.read_table(path).drop_columns(["plain_log_probs"]), path)
        with client_of(project) as client:
            text = client.get("/model").text
    assert "this model was trained before alloop kept them" in text
    assert "Rings: before it" not in text and "The columns of a calibrated model end on the dashed line." in text


def test_a_wrong_label_that_the_model_learned_from_is_worth_a_second_look(tmp_path: Path):
    project = make_project(tmp_path, n=72)
    rows = (project.folder / "truth.csv").read_text().splitlines()
    name, said = rows[5].rsplit(",", 1)
    wrong = f"{name},{'dog' if said == 'cat' else 'cat'}"
    (tmp_path / "labels.csv").write_text("\n".join([*rows[:5], wrong, *rows[6:]]))
    assert alloop("labels", "import", tmp_path / "labels.csv", "-C", project.folder).code == 0
    assert alloop("train", "-C", project.folder).code == 0

    with client_of(project) as client:
        text = client.get("/mistakes").text

    assert "labels to train on." in text.partition("Checked: ")[2][:60]
    first = text.partition("Labels worth a second look")[2].partition("</p></div>")[0]
    assert f'title="{Path(name).name}"' in first.replace("&#34;", "")
    assert "four fifths of the labels, without this one, gives a probability of" in first
    assert f" % to {said} and of " in first
    assert alloop("pool", "junk", name, "-C", project.folder).code == 0
    with client_of(project) as client:
        assert f'title="{Path(name).name}"' not in client.get("/mistakes").text
    max((project.folder / "runs").glob("*/holdout.parquet")).unlink()  # as if nobody had labeled the holdout
    with client_of(project) as client:
        text = client.get("/mistakes").text
    assert "No mistakes to show yet." in text
    assert "No label that was checked is in clear contradiction" in text.partition("Labels worth a second look")[2]
    assert "labels to train on." in text.partition("Checked: ")[2][:60]
    assert "Labels worth a second look" in [title for title, *_ in gather_report(project)["galleries"]]
    path = max((project.folder / "runs").glob("*/out-of-fold.parquet"))
    path.write_bytes(path.read_bytes()[:500])
    with client_of(project) as client:
        assert (
            "Labels to train on are not checked: the predictions for them are missing" in client.get("/mistakes").text
        )


def test_models_whose_labels_cannot_be_checked_say_why(learned: Project):
    with client_of(learned) as client:
        assert "Labels to train on are not checked: there are fewer than 50 of them." in client.get("/mistakes").text


def test_a_filter_that_cannot_be_read_is_explained_and_the_rest_is_shown(learned: Project):
    with client_of(learned) as client:
        answer = client.get("/images?least=0,5")

    assert answer.status_code == 200
    assert "least=0,5 is not a number" in answer.text


def test_a_change_by_another_command_is_on_the_next_page_and_looking_holds_no_lease(tmp_path: Path):
    project = make_project(tmp_path, n=12)
    with client_of(project) as client:
        assert "12 images" in client.get("/").text
        write_picture(project.folder / "photos" / "new.png", label="cat", number=500)
        assert alloop("pool", "add", project.folder / "photos", "-C", project.folder).code == 0
        assert "13 images" in client.get("/").text
        with reading(project.database) as session:
            assert find_lease_holder(session) is None


def test_a_backup_that_is_put_in_place_is_shown_and_a_missing_database_is_named(tmp_path: Path):
    project = make_project(tmp_path, n=12)
    backup, present = tmp_path / "backup.db", project.folder / "alloop.db"
    assert alloop("db", "backup", backup, "-C", project.folder).code == 0
    write_picture(project.folder / "photos" / "new.png", label="cat", number=500)
    assert alloop("pool", "add", project.folder / "photos", "-C", project.folder).code == 0
    project.close()
    with client_of(project) as client:
        assert "13 images" in client.get("/").text

        present.unlink()
        missing = client.get("/")
        assert missing.status_code == 503 and "alloop.db" in missing.text and not present.exists()

        backup.rename(present)
        assert "12 images" in client.get("/").text


def test_a_database_that_a_newer_alloop_upgrades_meanwhile_is_named(tmp_path: Path):
    project = make_project(tmp_path, n=12)
    with client_of(project) as client:
        assert client.get("/").status_code == 200
        with transaction(project.database) as session:
            session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))

        for page in ("/", "/images", "/people"):
            answer = client.get(page)
            assert answer.status_code == 503 and "a newer alloop made it" in answer.text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_another_address_than_this_machine_needs_a_token(learned: Project, host: str, tmp_path: Path):
    refused = alloop("serve", "--host", host, "-C", learned.folder)
    short = tmp_path / "token"
    short.write_text("short\n")

    assert refused.code == 2 and "--token-file" in refused.err
    too_short = alloop("serve", "--host", host, "--token-file", short, "-C", learned.folder)
    assert too_short.code == 2 and "too short" in too_short.err


def test_a_folder_that_is_no_workspace_is_refused_and_stays_as_it_is(tmp_path: Path):
    assert "is not an alloop workspace" in alloop("serve", "-C", tmp_path).err
    assert list(tmp_path.iterdir()) == []


def test_the_server_answers_several_readers_and_ends_at_ctrl_c(learned: Project):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "alloop", "serve", "--port", str(port), "-C", str(learned.folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
    try:
        assert server.stdout is not None
        assert f"http://127.0.0.1:{port}/" in server.stdout.readline()
        slow = socket.create_connection(("127.0.0.1", port))  # a client that never ends its request
        slow.send(b"GET / HTTP/1.1\r\n")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            assert [client.get(f"/{page}").status_code for page in PAGES] == [200] * len(PAGES)
            with client.stream("GET", "/events") as stream:  # of a page that stays open
                assert next(stream.iter_lines()).startswith("event: ")
                server.send_signal(signal.SIGINT)
                assert server.wait(timeout=30) in (0, 130)
        slow.close()
    finally:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


class _Tags(HTMLParser):
    """Names of the tags of a page, and of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


def first_image(project: Project) -> int:
    with reading(project.database) as session:
        return list_refs(session)[0].image_id


def map_of(client: TestClient) -> dict[str, list[int]]:
    """Return the points of the map when it is made."""
    for _ in range(1200):
        state = client.get("/map/progress").json()
        if state["is_ready"]:
            return dict(client.get("/map/points").json())
        assert state["is_under_way"], state
        time.sleep(0.1)
    raise AssertionError("the map was not made")
