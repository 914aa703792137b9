import json
import stat
from pathlib import Path

import pytest

from alloop.config.schema import Config
from alloop.errors import ConfigError, LabelingError
from alloop.labeling import local_server
from alloop.labeling.backend import Answering
from alloop.labeling.build import build_annotator, find_page
from alloop.labeling.csv_file import CsvAnnotator
from alloop.labeling.simulated import SimulatedAnnotator
from alloop.pool.picture import PICTURES
from alloop.records import ImageRef

TOKEN = "0123456789abcdef0123456789abcdef01234567"


def build(folder: Path, environ: dict[str, str] | None = None, **labeling: object):
    config = Config.model_validate({"project": {"classes": ["cat", "dog"]}, "labeling": labeling}, strict=False)
    return build_annotator(config, folder, "key", environ or {}, PICTURES)


def give_local_server(folder: Path, url: str = "http://127.0.0.1:20123") -> local_server.Credentials:
    credentials = local_server.Credentials(
        url,
        "alloop@example.com",
        str(folder / "files"),
        (("/pool", str(folder / "files" / "pool")),),
        "secret-pw",
        TOKEN,
    )
    (folder / "label-studio").mkdir()
    local_server._write_credentials(local_server.credentials_path(folder), credentials)
    return credentials


UPLOAD = {"via": "upload"}


def test_the_back_end_is_the_one_named(tmp_path: Path):
    (tmp_path / "truth.csv").write_text("file,label\nx.png,cat\n")

    assert isinstance(build(tmp_path, backend="csv"), CsvAnnotator)
    assert isinstance(build(tmp_path, backend="oracle", oracle={"file": "truth.csv"}), SimulatedAnnotator)
    assert build(tmp_path, {"LABEL_STUDIO_API_KEY": TOKEN}, images=UPLOAD).source == "label-studio"


@pytest.mark.parametrize(("n", "answers"), [(1, 1), (2, 2)])
def test_of_the_people_in_an_oracles_columns_as_many_are_asked_as_must_answer(tmp_path: Path, n: int, answers: int):
    (tmp_path / "people.csv").write_text("file,ann,bob\nx.png,cat,dog\n")
    oracle = {"file": "people.csv", "columns": ["ann", "bob"]}

    annotator = build(tmp_path, backend="oracle", oracle=oracle, annotations_per_image=n)

    assert isinstance(annotator, SimulatedAnnotator)
    assert len(annotator.answers(ImageRef(1, "00", "x.png"))) == answers


def test_an_oracle_needs_its_file(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"\[labeling\.oracle\] file is not set"):
        build(tmp_path, backend="oracle")


def test_only_label_studio_cannot_ask_for_a_class_that_reads_like_a_field(tmp_path: Path):
    def classes(**labeling: object) -> Config:
        return Config.model_validate({"project": {"classes": ["cat", "$5"]}, "labeling": labeling}, strict=False)

    with pytest.raises(ConfigError, match=r"class '\$5'"):
        build_annotator(classes(images=UPLOAD), tmp_path, "key", {"LABEL_STUDIO_API_KEY": TOKEN}, PICTURES)

    assert isinstance(build_annotator(classes(backend="csv"), tmp_path, "key", {}, PICTURES), CsvAnnotator)
    own = classes(images=UPLOAD, label_studio={"project_id": 5})  # its interface is looked at when it is opened
    assert build_annotator(own, tmp_path, "key", {"LABEL_STUDIO_API_KEY": TOKEN}, PICTURES).source == "label-studio"


def test_no_key_is_explained_with_every_way_out(tmp_path: Path):
    with pytest.raises(LabelingError, match="no key for Label Studio at http://localhost:8080") as caught:
        build(tmp_path)

    for way in ("LABEL_STUDIO_API_KEY", "api_key_file", "alloop labelstudio up"):
        assert way in caught.value.hint


def test_the_key_may_lie_in_a_file_beside_the_workspace(tmp_path: Path):
    (tmp_path / "key.txt").write_text(TOKEN + "\n")
    settings = {"url": "https://labels.example.org/", "api_key_file": "key.txt"}

    annotator = build(tmp_path, label_studio=settings, images=UPLOAD)

    assert "https://labels.example.org" in repr(annotator)
    assert TOKEN not in repr(annotator)


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_key_file_that_is_missing_or_empty_is_named(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "key.txt").write_text(content)

    with pytest.raises(LabelingError, match=r"key\.txt"):
        build(tmp_path, label_studio={"api_key_file": "key.txt"})


def test_the_own_server_is_found_without_being_named(tmp_path: Path):
    give_local_server(tmp_path)

    annotator = build(tmp_path)

    assert "http://127.0.0.1:20123" in repr(annotator)
    assert TOKEN not in repr(annotator)


def test_the_environment_goes_before_the_own_server(tmp_path: Path):
    give_local_server(tmp_path)
    environ = {"LABEL_STUDIO_URL": "https://labels.example.org", "LABEL_STUDIO_API_KEY": TOKEN}

    assert "https://labels.example.org" in repr(build(tmp_path, environ, images=UPLOAD))


def test_the_own_servers_key_is_never_sent_elsewhere(tmp_path: Path):
    give_local_server(tmp_path)

    with pytest.raises(LabelingError, match=r"no key for Label Studio at https://labels\.example\.org"):
        build(tmp_path, label_studio={"url": "https://labels.example.org"})
    with pytest.raises(LabelingError, match=r"no key for Label Studio at https://labels\.example\.org"):
        build(tmp_path, {"LABEL_STUDIO_URL": "https://labels.example.org"})


def test_damaged_credentials_are_named(tmp_path: Path):
    give_local_server(tmp_path)
    path = local_server.credentials_path(tmp_path)
    whole = json.loads(path.read_text())

    for text in ('{"url": 1', json.dumps({**whole, "url": "http://localhost"}), json.dumps({**whole, "url": 8080})):
        path.write_text(text)
        with pytest.raises(LabelingError, match=r"credentials\.json cannot be used"):
            build(tmp_path)


def test_credentials_come_back_whole_and_only_their_owner_can_read_them(tmp_path: Path):
    credentials = give_local_server(tmp_path)
    path = local_server.credentials_path(tmp_path)

    assert local_server.read_credentials(tmp_path) == credentials
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())["token"] == TOKEN
    assert TOKEN not in repr(credentials)
    assert "secret-pw" not in repr(credentials)


def test_local_files_without_a_root_say_what_to_set(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"\[labeling\.images\] root is not set"):
        build(tmp_path, {"LABEL_STUDIO_API_KEY": TOKEN})


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "not an address", "http://user:pw@host"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, url: str):
    with pytest.raises(LabelingError, match="address") as caught:
        build(tmp_path, {"LABEL_STUDIO_API_KEY": TOKEN}, label_studio={"url": url}, images=UPLOAD)

    assert "pw" not in str(caught.value)


def test_a_key_with_its_scheme_pasted_along_is_refused_without_showing_it(tmp_path: Path):
    with pytest.raises(LabelingError, match="contains spaces") as caught:
        build(tmp_path, {"LABEL_STUDIO_API_KEY": f"Token {TOKEN}"}, images=UPLOAD)

    assert TOKEN not in str(caught.value)


def page(folder: Path, environ: dict[str, str] | None = None, task: str | None = None, **labeling: object):
    config = Config.model_validate({"project": {"classes": ["cat", "dog"]}, "labeling": labeling}, strict=False)
    return find_page(Answering(config, folder, environ or {}, "12", task))


def test_people_answer_on_the_page_of_their_project_or_task(tmp_path: Path):
    there = {"LABEL_STUDIO_URL": "https://me:secret@labels.example.org/team/"}

    assert page(tmp_path) == "http://localhost:8080/projects/12/data"
    assert page(tmp_path, there) == "https://labels.example.org/team/projects/12/data"
    assert page(tmp_path, task="345:r3-0007") == "http://localhost:8080/projects/12/data?task=345"


def test_the_page_is_on_the_server_that_is_asked(tmp_path: Path):
    give_local_server(tmp_path)

    assert page(tmp_path) == "http://127.0.0.1:20123/projects/12/data"
    assert page(tmp_path, {"LABEL_STUDIO_API_KEY": TOKEN}) == "http://localhost:8080/projects/12/data"


def test_sheets_and_addresses_that_no_browser_may_open_have_no_page(tmp_path: Path):
    assert page(tmp_path, backend="csv") is None
    assert page(tmp_path, {"LABEL_STUDIO_URL": "javascript:alert(1)"}) is None
