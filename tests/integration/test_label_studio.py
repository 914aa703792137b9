"""Against a real Label Studio: keys, projects, images, the order people see, and a network that fails."""

import base64
import hashlib
import io
import json
import socket
import time
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from faulty_proxy import faulty_proxy
from label_studio_server import LabelStudioServer
from PIL import Image

from alloop.config.schema import ImagesConfig
from alloop.errors import LabelingError, ServerUnavailable
from alloop.labeling.connection import ServerConnection
from alloop.labeling.label_studio_project import find_project
from alloop.records import ImageRef, Outcome, OutgoingTask
from alloop.simulate.browser_people import label_all

pytestmark = pytest.mark.label_studio

IMPORT = "/import?return_task_ids"


def make_image(folder: Path, name: str, color: int = 0) -> ImageRef:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), (color, 10, 20)).save(path)
    return ImageRef(1, hashlib.sha256(path.read_bytes()).hexdigest(), str(path))


def make_tasks(server: LabelStudioServer, confidences: list[float | None], version: str | None = "m1"):
    images = [make_image(server.images, f"{number}.png", number) for number in range(len(confidences))]
    return [
        OutgoingTask(f"k{number}", image, "cat" if c is not None else None, c, version if c is not None else None)
        for number, (image, c) in enumerate(zip(images, confidences, strict=True))
    ]


def keys_on_server(server: LabelStudioServer, ref: str) -> Counter[str]:
    return Counter(task["data"]["alloop_key"] for task in server.tasks(ref))


def push_all(annotator, tasks):
    return {key: task_id for batch in annotator.push(tasks) for key, task_id in batch.items()}


def listed(annotator):
    return {task.id for task in annotator.list_tasks()}


def pull_all(annotator, mark=None):
    return {task.task.key: task.answers for page in annotator.pull(mark) for task in page.tasks}


# --- Keys -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def personal_token(label_studio: LabelStudioServer) -> str:
    reply = label_studio.admin._call("POST", "/api/token/", {})
    assert reply.status_code == 201, reply.text
    return reply.json()["token"]


def open_with(server: LabelStudioServer, key: str, url: str | None = None) -> str:
    return server.annotator(url=url or server.url, key=key).open_project(None)


def test_a_legacy_token_opens_a_project(label_studio: LabelStudioServer):
    assert open_with(label_studio, label_studio.credentials.token).isdecimal()


def test_a_personal_access_token_opens_a_project(label_studio: LabelStudioServer, personal_token: str):
    assert open_with(label_studio, personal_token).isdecimal()


def test_both_kinds_of_keys_work_below_a_path_prefix(label_studio: LabelStudioServer, personal_token: str):
    with faulty_proxy(label_studio.url, "/tools/labels") as proxy:
        assert open_with(label_studio, label_studio.credentials.token, proxy.url).isdecimal()
        assert open_with(label_studio, personal_token, proxy.url + "/").isdecimal()
        assert proxy.count("POST", "/tools/labels/api/token/refresh") >= 1


def test_a_wrong_legacy_token_is_called_one(label_studio: LabelStudioServer):
    wrong = "0123456789abcdef" * 2 + "01234567"

    with pytest.raises(LabelingError, match="does not accept the key, which looks like a legacy token") as caught:
        open_with(label_studio, wrong)

    assert label_studio.url in str(caught.value)
    assert "LABEL_STUDIO_API_KEY" in caught.value.hint
    assert wrong not in str(caught.value)


def test_a_wrong_personal_access_token_is_called_one(label_studio: LabelStudioServer, personal_token: str):
    head, claims, _ = personal_token.split(".")
    wrong = f"{head}.{claims}.{'A' * 43}"

    with pytest.raises(LabelingError, match="looks like a personal access token") as caught:
        open_with(label_studio, wrong)

    assert wrong not in str(caught.value)


def test_an_access_token_is_told_apart(label_studio: LabelStudioServer, personal_token: str):
    reply = label_studio.api("POST", "/api/token/refresh/", json={"refresh": personal_token})

    with pytest.raises(LabelingError, match="is an access token, which lives for five minutes"):
        open_with(label_studio, reply.json()["access"])


def test_an_expired_personal_access_token_is_said_to_be():
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    expired = f"{part({'alg': 'HS256'})}.{part({'token_type': 'refresh', 'exp': 1_000_000_000})}.c2lnbmF0dXJl"

    with pytest.raises(LabelingError, match="has expired"):
        ServerConnection("http://localhost:8080", expired)


def test_a_disabled_legacy_token_is_explained(label_studio: LabelStudioServer):
    settings = {"api_tokens_enabled": True, "legacy_api_tokens_enabled": False}
    assert label_studio.admin._call("POST", "/api/jwt/settings", settings).status_code in {200, 201}
    try:
        with pytest.raises(LabelingError, match="legacy tokens switched off"):
            open_with(label_studio, label_studio.credentials.token)
    finally:
        label_studio.admin._call("POST", "/api/jwt/settings", settings | {"legacy_api_tokens_enabled": True})


def test_no_secret_shows_in_what_gets_printed(label_studio: LabelStudioServer):
    annotator = label_studio.annotator()
    token, password = label_studio.credentials.token, label_studio.credentials.password

    shown = f"{annotator!r} {label_studio.credentials!r} {annotator.__dict__!r}"

    assert token not in shown
    assert password not in shown


# --- Projects ---------------------------------------------------------------------------------------------------------


def test_the_project_is_set_up_for_the_loop(label_studio: LabelStudioServer):
    ref = label_studio.annotator(preannotate=True, annotations_per_image=2).open_project(None)

    project = label_studio.api("GET", f"/api/projects/{ref}/").json()
    assert project["title"] == "alloop tests"
    assert project["sampling"] == "Uncertainty sampling"
    assert (project["maximum_annotations"], project["show_collab_predictions"]) == (2, True)


def test_settings_that_somebody_changed_are_put_back(label_studio: LabelStudioServer):
    annotator = label_studio.annotator()
    ref = annotator.open_project(None)
    label_studio.api("PATCH", f"/api/projects/{ref}/", json={"sampling": "Sequential sampling"})

    annotator.open_project(ref)

    assert label_studio.api("GET", f"/api/projects/{ref}/").json()["sampling"] == "Uncertainty sampling"


def test_a_deleted_project_is_explained_by_everything_that_needs_it(label_studio: LabelStudioServer):
    annotator = label_studio.annotator()
    ref = annotator.open_project(None)
    tasks = make_tasks(label_studio, [0.5])
    assert label_studio.api("DELETE", f"/api/projects/{ref}/").status_code == 204

    for use in (
        lambda: annotator.open_project(ref),
        lambda: annotator.reconcile({"k0": "0" * 64}),
        lambda: list(annotator.push(tasks)),
        lambda: list(annotator.pull(None)),
        annotator.list_tasks,
        lambda: annotator.withdraw(["1:k0"]),
    ):
        with pytest.raises(LabelingError, match=f"no project {ref}") as caught:
            use()
        assert "safe" in caught.value.hint


def test_a_class_added_to_the_configuration_is_added_to_the_project(label_studio: LabelStudioServer):
    key = uuid.uuid4().hex
    ref = label_studio.annotator(workspace_key=key).open_project(None)

    label_studio.annotator(workspace_key=key, classes=("cat", "dog", "bird & <egg>")).open_project(ref)

    parsed = label_studio.api("GET", f"/api/projects/{ref}/").json()["parsed_label_config"]
    assert parsed["label"]["labels"] == ["cat", "dog", "bird & <egg>"]


HAND_MADE = """<View><Header value="What is it?"/><Image name="photo" value="$picture"/>
<Choices name="kind" toName="photo" choice="single">{choices}</Choices></View>"""


def hand_made_project(server: LabelStudioServer, choices: str) -> int:
    body = {"title": "made by hand", "label_config": HAND_MADE.format(choices=choices)}
    return server.api("POST", "/api/projects/", json=body).json()["id"]


def test_a_project_made_by_hand_is_used_with_its_own_names(label_studio: LabelStudioServer):
    choices = '<Choice value="Cat" alias="cat"/><Choice value="dog"/><Choice value="other"/>'
    project_id = hand_made_project(label_studio, choices)
    annotator = label_studio.annotator(project_id=project_id, preannotate=True)

    assert annotator.open_project(None) == str(project_id)
    push_all(annotator, make_tasks(label_studio, [0.5]))

    (task,) = label_studio.tasks(str(project_id))
    assert task["data"]["picture"].startswith("/data/local-files/")
    (guess,) = label_studio.api("GET", f"/api/tasks/{task['id']}/").json()["predictions"]
    assert guess["result"][0]["from_name"] == "kind"
    number = task["id"]
    result = [{"from_name": "kind", "to_name": "photo", "type": "choices", "value": {"choices": ["cat"]}}]
    assert label_studio.api("POST", f"/api/tasks/{number}/annotations/", json={"result": result}).status_code == 201
    assert pull_all(annotator)["k0"][0].value == "cat"


def test_a_project_that_lacks_a_class_is_refused_by_name(label_studio: LabelStudioServer):
    project_id = hand_made_project(label_studio, '<Choice value="Cat"/><Choice value="dog"/>')

    with pytest.raises(LabelingError, match="cannot take the class 'cat'; it has 'Cat'"):
        label_studio.annotator(project_id=project_id).open_project(None)


def test_a_config_edited_by_hand_afterwards_is_noticed(label_studio: LabelStudioServer):
    annotator = label_studio.annotator()
    ref = annotator.open_project(None)
    config = HAND_MADE.format(choices='<Choice value="dog"/><Choice value="wolf"/>').replace("$picture", "$image")
    assert label_studio.api("PATCH", f"/api/projects/{ref}/", json={"label_config": config}).status_code == 200

    with pytest.raises(LabelingError, match="cannot take the class 'cat'; it has 'wolf'"):
        annotator.open_project(ref)


def test_a_task_deleted_on_the_server_is_missed_and_its_number_is_not_mistaken(label_studio: LabelStudioServer):
    annotator = label_studio.annotator()
    annotator.open_project(None)
    tasks = make_tasks(label_studio, [None, None, None])
    ids = push_all(annotator, tasks[:2])
    number = ids["k1"].partition(":")[0]
    assert label_studio.api("DELETE", f"/api/tasks/{number}/").status_code == 204

    later = push_all(annotator, tasks[2:])  # on SQLite this one gets the number of the deleted one

    assert listed(annotator) == {ids["k0"], later["k2"]}
    assert annotator.withdraw([ids["k1"]]) == {ids["k1"]}
    assert later["k2"] in listed(annotator)


def test_a_begun_draft_keeps_its_task(label_studio: LabelStudioServer):
    annotator = label_studio.annotator()
    ref = annotator.open_project(None)
    ids = push_all(annotator, make_tasks(label_studio, [None, None]))
    label_studio.person("drafter").save_draft(int(ref), int(ids["k0"].partition(":")[0]), "cat")

    assert annotator.withdraw(list(ids.values())) == {ids["k1"]}


# --- What people see --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preannotate", [False, True])
def test_people_get_the_most_uncertain_first_with_the_guess_hidden_or_shown(
    label_studio: LabelStudioServer, preannotate: bool
):
    annotator = label_studio.annotator(preannotate=preannotate)
    ref = annotator.open_project(None)
    push_all(annotator, make_tasks(label_studio, [0.7, 0.1, 0.9, 0.3, 0.5, 0.2]))
    one, two = label_studio.person("one"), label_studio.person("two")

    seen = []
    for person in (one, two, one, two, one, two):
        task = person.next_task(int(ref))
        seen.append(task.data["alloop_key"])
        assert bool(task.predictions) == preannotate
        person.answer(int(ref), task.id, "cat")

    assert seen == ["k1", "k5", "k3", "k4", "k0", "k2"]
    assert one.next_task(int(ref)) is None


def test_a_new_model_brings_its_own_order(label_studio: LabelStudioServer):
    annotator = label_studio.annotator()
    ref = annotator.open_project(None)
    first, second = make_tasks(label_studio, [0.4, 0.2]), make_tasks(label_studio, [0.9, 0.8], "m2")
    push_all(annotator, first)
    push_all(annotator, [OutgoingTask(f"n{t.key}", t.image, t.predicted, t.confidence, "m2") for t in second])

    seen = []
    label_all(label_studio.person("one"), int(ref), lambda task: seen.append(task.data["alloop_key"]) or "dog")

    assert seen[:2] == ["nk1", "nk0"]
    assert set(seen[2:]) == {"k0", "k1"}


def test_an_order_that_a_crash_left_behind_is_put_right_on_opening(label_studio: LabelStudioServer):
    annotator = label_studio.annotator()
    ref = annotator.open_project(None)
    push_all(annotator, make_tasks(label_studio, [0.4]))
    push_all(annotator, [OutgoingTask("n0", t.image, "cat", 0.1, "m2") for t in make_tasks(label_studio, [0.1])])
    push_all(annotator, [OutgoingTask("n1", t.image) for t in make_tasks(label_studio, [None])])  # drawn at random
    label_studio.api("PATCH", f"/api/projects/{ref}/", json={"model_version": "m1"})

    annotator.open_project(ref)

    assert label_studio.api("GET", f"/api/projects/{ref}/").json()["model_version"] == "m2"


def test_scripted_people_answer_skip_submit_nothing_and_change_their_minds(label_studio: LabelStudioServer):
    annotator = label_studio.annotator()
    ref = annotator.open_project(None)
    push_all(annotator, make_tasks(label_studio, [0.1, 0.2, 0.3]))
    person, project = label_studio.person("one"), int(ref)

    first = person.answer(project, person.next_task(project).id, "cat", lead_time=3.5)
    person.skip(project, person.next_task(project).id)
    person.answer(project, person.next_task(project).id, None)

    answers = {key: found[0] for key, found in pull_all(annotator).items()}
    assert (answers["k0"].annotator, answers["k0"].lead_time) == ("one@example.com", 3.5)
    assert [answers[key].outcome for key in ("k0", "k1", "k2")] == [Outcome.LABEL, Outcome.SKIP, Outcome.EMPTY]
    person.edit(first, "dog")
    assert pull_all(annotator)["k0"][0].value == "dog"
    person.delete(first)
    assert pull_all(annotator)["k0"] == ()
    row = find_project(annotator._connection, project)
    assert (row["task_number"], row["total_predictions_number"]) == (3, 3)
    assert (row["total_annotations_number"], row["skipped_annotations_number"]) == (1, 1)


ODD_NAMES = ["plain.png", "with space.png", "a#b%20c?.png", "ümläut 猫.png", "sub/folder/x&y=1.png"]


@pytest.mark.parametrize("via", ["local-files", "own-server", "upload"])
def test_images_load_in_the_browser_whatever_their_names(label_studio: LabelStudioServer, via: str):
    folder = label_studio.images / via
    images = [make_image(folder, name, number) for number, name in enumerate(ODD_NAMES)]
    settings = {
        "local-files": ImagesConfig(root=Path(label_studio.credentials.document_root)),
        "own-server": ImagesConfig(),  # the folders of `alloop labelstudio up` are known without being named
        "upload": ImagesConfig(via="upload"),
    }
    annotator = label_studio.annotator(images=settings[via])
    ref = annotator.open_project(None)
    push_all(annotator, [OutgoingTask(f"k{number}", image) for number, image in enumerate(images)])

    loaded = {task["data"]["alloop_key"]: task["data"]["image"] for task in label_studio.tasks(ref)}

    person = label_studio.person("one")
    for number, image in enumerate(images):
        assert person.load_image(loaded[f"k{number}"]) == Path(image.path).read_bytes()


def test_images_load_from_a_web_server_of_the_users(label_studio: LabelStudioServer, tmp_path: Path):
    image = make_image(tmp_path / "web", "a b#c.png")
    annotator = label_studio.annotator(
        images=ImagesConfig(via="url", root=tmp_path / "web", url_prefix="https://images.example.org/pets")
    )
    ref = annotator.open_project(None)
    push_all(annotator, [OutgoingTask("k0", image)])

    (task,) = label_studio.tasks(ref)
    assert task["data"]["image"] == "https://images.example.org/pets/a%20b%23c.png"


def test_what_browsers_cannot_draw_is_uploaded_as_png(label_studio: LabelStudioServer):
    path = label_studio.images / "scan.tiff"
    Image.new("I;16", (4, 4), 40_000).save(path)
    image = ImageRef(1, hashlib.sha256(path.read_bytes()).hexdigest(), str(path))
    annotator = label_studio.annotator()
    ref = annotator.open_project(None)
    push_all(annotator, [OutgoingTask("k0", image)])

    (task,) = label_studio.tasks(ref)

    assert label_studio.person("one").load_image(task["data"]["image"]).startswith(b"\x89PNG")


def test_people_are_served_deep_images_with_the_pixels_of_the_model(label_studio: LabelStudioServer):
    path = label_studio.images / "xray.png"
    Image.fromarray(np.array([[0, 2048, 4095]], dtype=np.uint16)).save(path)  # a browser would show 0, 8 and 15
    image = ImageRef(1, hashlib.sha256(path.read_bytes()).hexdigest(), str(path), depth=12)
    annotator = label_studio.annotator()
    ref = annotator.open_project(None)
    push_all(annotator, [OutgoingTask("k0", image)])

    (task,) = label_studio.tasks(ref)

    shown = Image.open(io.BytesIO(label_studio.person("one").load_image(task["data"]["image"])))
    assert (shown.mode, np.asarray(shown)[0, :, 0].tolist()) == ("RGB", [0, 128, 255])
    assert task["data"]["alloop_sha256"] == image.sha256


def test_an_uploaded_image_is_never_sent_again(label_studio: LabelStudioServer):
    tasks = make_tasks(label_studio, [None, None])
    key = uuid.uuid4().hex
    with faulty_proxy(label_studio.url) as proxy:
        for number in range(2):
            annotator = label_studio.annotator(url=proxy.url, workspace_key=key, images=ImagesConfig(via="upload"))
            annotator.open_project(None)
            push_all(annotator, [OutgoingTask(f"{t.key}-{number}", t.image) for t in tasks])

        assert proxy.count("POST", "commit_to_project=false") == 1


def test_an_image_outside_the_served_folder_is_named(label_studio: LabelStudioServer, tmp_path: Path):
    image = make_image(tmp_path, "elsewhere.png")
    annotator = label_studio.annotator()
    annotator.open_project(None)

    with pytest.raises(LabelingError, match=r"elsewhere\.png is outside the folder"):
        push_all(annotator, [OutgoingTask("k0", image)])


# --- A network that fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cut-before", "cut-after", "slow", "500", "500-after", "html", "html-after"])
def test_a_failed_import_leaves_exactly_one_task_per_key(label_studio: LabelStudioServer, kind: str):
    tasks = make_tasks(label_studio, [0.1, 0.2, 0.3, 0.4])
    with faulty_proxy(label_studio.url) as proxy:
        annotator = label_studio.annotator(url=proxy.url, timeout=1.5, push_batch=2)
        ref = annotator.open_project(None)
        proxy.fail(kind, "POST", IMPORT, seconds=2.5)

        ids = push_all(annotator, tasks)

        # Two batches, and one more only where the first never got through: nobody repeats a POST behind our back.
        delivered = kind in {"cut-after", "slow", "500-after", "html-after"}
        assert proxy.count("POST", IMPORT) == (2 if delivered else 3)
    assert keys_on_server(label_studio, ref) == Counter(["k0", "k1", "k2", "k3"])
    assert set(ids) == {"k0", "k1", "k2", "k3"}
    assert annotator_ids(label_studio, ref) == set(ids.values())


def annotator_ids(server: LabelStudioServer, ref: str) -> set[str]:
    return {f"{task['id']}:{task['data']['alloop_key']}" for task in server.tasks(ref)}


def test_a_request_delivered_long_after_its_connection_was_cut_leaves_no_copies(label_studio: LabelStudioServer):
    tasks = make_tasks(label_studio, [0.1, 0.2])
    with faulty_proxy(label_studio.url) as proxy:
        annotator = label_studio.annotator(url=proxy.url, timeout=1.0)
        ref = annotator.open_project(None)
        proxy.fail("late", "POST", IMPORT, seconds=5.0)
        push_all(annotator, tasks)
        for late in proxy.late:
            late.join()
        assert keys_on_server(label_studio, ref) == Counter({"k0": 2, "k1": 2})

        found = annotator.reconcile({task.key: task.image.sha256 for task in tasks})

    assert keys_on_server(label_studio, ref) == Counter(["k0", "k1"])
    assert annotator_ids(label_studio, ref) == set(found.values())


def test_a_server_that_stays_broken_stops_the_push_and_a_later_one_completes_it(label_studio: LabelStudioServer):
    tasks = make_tasks(label_studio, [0.1, 0.2, 0.3])
    with faulty_proxy(label_studio.url) as proxy:
        annotator = label_studio.annotator(url=proxy.url, timeout=5.0, push_batch=1)
        ref = annotator.open_project(None)
        batches = annotator.push(tasks)
        done = dict(next(batches))
        proxy.fail("cut-after", "POST", IMPORT)
        proxy.fail("500", "GET", "/api/", times=1000)

        with pytest.raises(ServerUnavailable, match="HTTP 500"):
            next(batches)

        proxy.faults.clear()
        done |= annotator.reconcile({task.key: task.image.sha256 for task in tasks})
        assert set(done) == {"k0", "k1"}  # the one whose reply was lost is recognised
        done |= push_all(annotator, [task for task in tasks if task.key not in done])
    assert keys_on_server(label_studio, ref) == Counter(["k0", "k1", "k2"])
    assert set(done) == {"k0", "k1", "k2"}


@pytest.mark.parametrize("kind", ["cut-after", "500-after", "slow"])
def test_a_project_whose_creation_was_not_answered_is_made_once(label_studio: LabelStudioServer, kind: str):
    key = uuid.uuid4().hex
    with faulty_proxy(label_studio.url) as proxy:
        proxy.fail(kind, "POST", "/api/projects/", seconds=2.5)
        ref = label_studio.annotator(url=proxy.url, workspace_key=key, timeout=1.5).open_project(None)

    projects = label_studio.api("GET", "/api/projects/?page_size=1000&include=id,description").json()["results"]
    assert [str(p["id"]) for p in projects if key in p["description"]] == [ref]


def test_an_upload_whose_reply_was_lost_is_not_repeated(label_studio: LabelStudioServer):
    with faulty_proxy(label_studio.url) as proxy:
        annotator = label_studio.annotator(url=proxy.url, images=ImagesConfig(via="upload"))
        ref = annotator.open_project(None)
        proxy.fail("cut-after", "POST", "commit_to_project=false")
        push_all(annotator, make_tasks(label_studio, [None, None]))

    uploads = label_studio.api("GET", f"/api/projects/{ref}/file-uploads?all=true").json()
    assert len(uploads) == 2


def test_short_trouble_while_reading_is_ridden_out(label_studio: LabelStudioServer):
    with faulty_proxy(label_studio.url) as proxy:
        annotator = label_studio.annotator(url=proxy.url)
        annotator.open_project(None)
        push_all(annotator, make_tasks(label_studio, [None]))
        proxy.fail("500", "GET", "/api/tasks")
        proxy.fail("cut-before", "GET", "/api/tasks")

        assert list(pull_all(annotator)) == ["k0"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [("500", "answered HTTP 500: out of order"), ("html", "is not Label Studio"), ("slow", "did not answer")],
)
def test_a_server_in_trouble_is_a_temporary_error_that_says_what_was_seen(
    label_studio: LabelStudioServer, kind: str, words: str
):
    with faulty_proxy(label_studio.url) as proxy:
        proxy.fail(kind, "GET", "/api/", times=1000, seconds=1.0)

        with pytest.raises(ServerUnavailable, match=words) as caught:
            label_studio.annotator(url=proxy.url, timeout=0.5).open_project(None)

    assert proxy.url in str(caught.value)
    assert label_studio.credentials.token not in str(caught.value)


def test_a_server_that_is_down_is_a_temporary_error():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"

        began = time.monotonic()
        with pytest.raises(ServerUnavailable, match="cannot be reached") as caught:
            ServerConnection(url, "0" * 40, timeout=5.0, patience=0.01).read("api/projects/")

    assert url in caught.value.message
    assert time.monotonic() - began < 60
