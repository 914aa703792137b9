"""Changes of a project between rounds: new images, moved and deleted files, other classes, another backbone."""

import csv
import errno
import os
from io import BufferedIOBase
from pathlib import Path

import pytest
from command_line import alloop
from factories import CLASSES, NOW, make_project, write_picture, write_pool, write_settings
from sqlalchemy import text

from alloop.loop.intake.ingest import look_at_images
from alloop.pool.local_files import LocalDisk
from alloop.project import Project
from alloop.store.images import set_unreadable
from alloop.store.session import transaction


def value(project: Project, statement: str, **values: object) -> object:
    with project.database.connect() as connection:
        return connection.execute(text(statement), values).scalar_one()


def step(project: Project, *arguments: str):
    return alloop("run", "-C", project.folder, "--json", *arguments)


def test_images_added_between_rounds_are_asked_about_and_the_holdout_stays(tmp_path: Path):
    project = make_project(tmp_path, n=24)
    step(project)
    before = value(project, "SELECT count(*) FROM image WHERE split = 'holdout'")
    write_pool(project.folder / "photos", 10, first=100)

    assert alloop("pool", "add", project.folder / "photos", "-C", project.folder, "--json").data["new"] == 10
    while step(project).data["stage"] != "done":
        pass

    assert value(project, "SELECT count(*) FROM label") == 34
    assert value(project, "SELECT count(*) FROM image WHERE split = 'holdout'") == before


def test_settings_name_images_from_the_workspace_wherever_the_command_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    project = make_project(tmp_path, n=5, add=False, pool={"images": ["photos"]})
    monkeypatch.chdir(tmp_path)

    assert alloop("pool", "add", "-C", project.folder, "--json").data["new"] == 5


def test_a_moved_file_keeps_its_label_and_is_not_asked_about_again(tmp_path: Path):
    project = make_project(tmp_path, n=20)
    step(project)
    moved = project.folder / "sorted" / "renamed.png"
    moved.parent.mkdir()
    asked = value(project, "SELECT min(path) FROM image_location l JOIN label USING (image_id)")
    Path(str(asked)).rename(moved)

    checked = alloop("pool", "check", "-C", project.folder)
    assert f"missing\t{asked}" in checked.out
    added = alloop("pool", "add", moved.parent, "-C", project.folder, "--json").data
    assert (added["new"], added["known"]) == (0, 1)

    assert value(project, "SELECT count(*) FROM image") == 20
    assert value(project, "SELECT path FROM image_location l JOIN label USING (image_id) WHERE path = :p", p=str(moved))
    while step(project).data["stage"] != "done":
        pass
    assert value(project, "SELECT count(*) FROM label") == 20
    assert value(project, "SELECT count(*) FROM query") == 20


def test_files_deleted_before_they_are_asked_about_are_reported_and_others_take_their_place(tmp_path: Path):
    project = make_project(tmp_path, n=30)
    step(project)
    at = ("-C", project.folder, "--json")
    alloop("train", *at)
    alloop("score", *at)
    unasked = "SELECT path FROM image_location WHERE image_id NOT IN (SELECT image_id FROM query) ORDER BY path"
    with project.database.connect() as connection:
        gone = [Path(path) for (path,) in connection.execute(text(unasked))][:11]
    assert len(gone) == 11  # of 16, so that a batch of 6 cannot do without them
    for path in gone:
        path.unlink()

    assert step(project).data["asked"] == 5
    while step(project).data["stage"] != "done":
        pass

    status = alloop("status", *at).data
    assert status["missing"] == [str(path) for path in gone]
    assert status["pool"]["labeled"] == 19
    assert value(project, "SELECT count(*) FROM query WHERE status = 'withdrawn'") == 0
    assert "11 files are missing" in alloop("status", "-C", project.folder).out.replace("\n", " ")


def test_a_file_that_vanishes_between_choice_and_push_is_not_pushed(tmp_path: Path):
    project = make_project(tmp_path, n=30)
    at = ("-C", project.folder, "--json")
    for name in ("train", "score", "select"):
        assert alloop(name, *at).code == 0
    path = Path(str(value(project, "SELECT path FROM image_location JOIN query USING (image_id) WHERE rank = 1")))
    path.unlink()

    assert alloop("push", *at).data["tasks"] == 13

    assert value(project, "SELECT status FROM query WHERE rank = 1") == "withdrawn"
    assert value(project, "SELECT count(*) FROM task") == 13


def test_a_file_that_changed_is_another_image(tmp_path: Path):
    project = make_project(tmp_path, n=20)
    step(project)
    labeled = Path(str(value(project, "SELECT min(path) FROM image_location JOIN label USING (image_id)")))
    write_picture(labeled, label="cat", number=777)

    counts = alloop("pool", "check", "-C", project.folder, "--json").data["counts"]

    assert (counts["images"], counts["missing"]) == (21, 1)
    assert value(project, "SELECT count(*) FROM label") == 11
    assert value(project, "SELECT count(*) FROM label JOIN image_location USING (image_id)") == 10


def test_a_broken_file_is_named_with_the_reason_until_it_is_mended_or_gone(tmp_path: Path):
    project = make_project(tmp_path, n=4, add=False)
    photos = project.folder / "photos"
    at = ("-C", project.folder)
    whole = (photos / "0000.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").touch()
    (photos / "words.gif").write_text("not an image")
    odd = photos / "odd\udcff.png"
    odd.write_bytes(whole)

    added = alloop("pool", "add", photos, *at)
    assert "4 new images, 0 known already.\n" in added.out
    assert "4 files could not be read: `alloop pool check` says why." in added.out
    checked = alloop("pool", "check", *at)
    for name in ("cut.png\t", "empty.jpg\t", "words.gif\t", "odd\\xff.png\tits name is not valid UTF-8; rename it"):
        assert f"unreadable\t{photos}/{name}" in checked.out
    assert "4 images, 0 of them missing; 4 files could not be read." in checked.out

    write_picture(photos / "cut.png", label="cat", number=55)
    (photos / "empty.jpg").unlink()
    again = alloop("pool", "check", *at, "--json").data
    assert sorted(Path(place["path"]).name for place in again["unreadable"]) == ["odd\\xff.png", "words.gif"]
    assert again["counts"]["images"] == 5


def test_a_link_that_leads_nowhere_is_named_until_it_leads_somewhere_or_is_gone(tmp_path: Path):
    project = make_project(tmp_path, n=4, add=False)
    photos, at = project.folder / "photos", ("-C", project.folder)
    link, other = photos / "link.png", photos / "other.png"
    link.symlink_to(tmp_path / "away.png")
    other.symlink_to(tmp_path / "away too.png")

    added = alloop("pool", "add", photos, *at).out
    checked = alloop("pool", "check", *at).out
    found = look_at_images(project)

    said = (
        "2 files could not be read: `alloop pool check` says why. The first one is link.png: a link that leads nowhere."
    )
    assert said in added
    assert [line for line in checked.splitlines() if "\t" in line] == [
        f"unreadable\t{path}\ta link that leads nowhere" for path in (link, other)
    ]
    assert "4 images, 0 of them missing; 2 files could not be read." in checked
    assert {kind: [place.path for place in places] for kind, places in found.items()} == {
        "missing": [],
        "unreadable": [str(link), str(other)],
        "changed": [],
    }
    write_picture(tmp_path / "away.png", label="cat", number=55)
    other.unlink()
    assert alloop("pool", "check", *at).out == "5 images, 0 of them missing; 0 files could not be read.\n"


def test_a_file_that_may_not_be_looked_at_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in a folder whose files may be listed and nothing more."""
    project = make_project(tmp_path, n=4, add=False)
    words, at = project.folder / "photos" / "words.gif", ("-C", project.folder)
    words.write_text("not an image")
    stamp, open_ = LocalDisk.stamp, LocalDisk.open

    def refuse(self: LocalDisk, location: str) -> BufferedIOBase:
        if location == str(words):
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_(self, location)

    alloop("pool", "add", project.folder / "photos", *at)
    monkeypatch.setattr(LocalDisk, "stamp", lambda self, name: None if name == str(words) else stamp(self, name))
    monkeypatch.setattr(LocalDisk, "open", refuse)

    assert f"unreadable\t{words}\t" in alloop("pool", "check", *at).out


def test_an_image_that_became_unreadable_and_is_gone_is_missing_for_those_who_only_look(tmp_path: Path):
    project = make_project(tmp_path, n=4)
    path = str(value(project, "SELECT min(path) FROM image_location"))
    with transaction(project.database) as session:
        set_unreadable(session, {path: "cut off"}, NOW)
    Path(path).unlink()

    found = look_at_images(project)

    assert ([place.path for place in found["missing"]], found["unreadable"]) == ([path], [])


@pytest.mark.parametrize("cold_start", ["auto", "random"])
def test_an_image_that_cannot_be_read_any_more_is_set_aside_with_the_reason(tmp_path: Path, cold_start: str):
    """Found out when its features are computed: for the first batch, or for the first scores."""
    project = make_project(tmp_path, n=24, acquisition={"cold_start": cold_start})
    if cold_start == "random":
        step(project)
    else:
        alloop("train", "-C", project.folder)  # draws the holdout
    unasked = (
        "SELECT min(path) FROM image_location JOIN image ON image.id = image_id WHERE split = 'train' "
        "AND image.id NOT IN (SELECT image_id FROM query)"
    )
    path = Path(str(value(project, unasked)))
    whole, stat = path.read_bytes(), path.stat()
    path.write_bytes(whole[:60] + b"\0" * (len(whole) - 60))

    while step(project).data["stage"] != "done":
        pass

    assert value(project, "SELECT status FROM image_location WHERE path = :p", p=str(path)) == "unreadable"
    assert value(project, "SELECT count(*) FROM label") == 23
    n = value(project, "SELECT count(*) FROM round")
    step(project)
    assert value(project, "SELECT count(*) FROM round") == n
    path.write_bytes(whole)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    alloop("pool", "check", "-C", project.folder)
    while step(project).data["stage"] != "done":
        pass
    assert value(project, "SELECT count(*) FROM label") == 24


def test_another_backbone_is_refused_until_it_is_accepted(tmp_path: Path):
    project = make_project(tmp_path)
    for _ in range(2):
        step(project)
    project = write_settings(project, model={"members": 3})

    refused = alloop("run", "-C", project.folder)
    assert refused.code == 2
    assert "the model changed since the last round: [model] members: 2 → 3" in refused.err
    assert "--accept-change" in refused.err
    assert value(project, "SELECT count(*) FROM round") == 2

    assert step(project, "--accept-change").code == 0
    assert step(project).code == 0
    assert value(project, "SELECT count(*) FROM label") == 8 + 4 * 6


def test_a_change_in_the_middle_of_a_round_counts_from_the_next(tmp_path: Path):
    project = make_project(tmp_path)
    step(project)
    alloop("train", "-C", project.folder)
    project = write_settings(project, model={"members": 3}, loop={"batch_size": 2})

    assert step(project).data["asked"] == 6
    assert alloop("run", "-C", project.folder).code == 2


def test_a_class_that_was_used_cannot_be_removed_but_one_may_be_added(tmp_path: Path):
    classes = ("cat", "dog", "bird")
    project = make_project(tmp_path, classes=classes)
    step(project)
    refused = alloop("run", "-C", write_settings(project, project={"classes": ["cat", "dog"]}).folder)
    assert refused.code == 2
    assert "no longer has 'bird', which annotators have used" in refused.err

    project = write_settings(project, project={"classes": [*classes, "fish"]})
    assert step(project).code == 0

    shown = alloop("round", "show", "1", "-C", project.folder, "--json").data
    assert shown["model"]["classes"] == [*classes, "fish"]
    assert "No training label yet: fish" in alloop("status", "-v", "-C", project.folder).out


def test_answers_of_a_class_that_is_not_one_are_named_and_count_when_it_becomes_one(tmp_path: Path):
    project = make_project(tmp_path, n=30, classes=("cat", "dog", "bird"))
    project = write_settings(project, project={"classes": ["cat", "dog"]}, labeling={"backend": "oracle"})

    step(project)

    shown = alloop("status", "-v", "-C", project.folder)
    assert "answers say 'bird', which is not a class: correct them, or add it to [project] classes." in shown.out
    unknown = value(project, "SELECT count(*) FROM annotation WHERE value = 'bird'")
    assert unknown
    n = value(project, "SELECT count(*) FROM label")

    project = write_settings(project, project={"classes": ["cat", "dog", "bird"]})
    assert alloop("train", "-C", project.folder).code == 0

    assert value(project, "SELECT count(*) FROM label") == n + unknown
    assert value(project, "SELECT count(*) FROM query WHERE status = 'unknown'") == 0


def fill_in(folder: Path, truth: dict[str, str], *, skip: int = 0) -> int:
    """Write answers into every empty cell of the sheets, as a person with a spreadsheet does."""
    filled = 0
    for path in sorted(folder.glob("*.csv")):
        lines = list(csv.reader(path.read_text("utf-8-sig").splitlines()))
        columns = {title.partition(" ")[0]: place for place, title in enumerate(lines[0])}
        for row in lines[1:]:
            if not row[columns["label"]]:
                filled += 1
                row[columns["label"]] = "skip" if filled <= skip else truth[row[columns["file"]]]
                row[columns["annotator"]] = "ada"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)
    return filled


def test_a_project_can_be_labeled_in_spreadsheets(tmp_path: Path):
    project = make_project(tmp_path, n=30, labeling={"backend": "csv"})
    truth = {str(path): CLASSES[int(path.stem) % 2] for path in (project.folder / "photos").glob("*.png")}
    at = ("-C", project.folder)

    waiting = alloop("run", *at)
    assert (waiting.code, waiting.out) == (0, "Round 0: 14 of 14 images wait for annotators.\n")
    assert alloop("run", *at, "--fail-if-waiting").code == 3
    assert value(project, "SELECT count(*) FROM task") == 14
    assert fill_in(project.folder / "sheets", truth) == 14

    closed = alloop("run", *at)
    assert closed.out == "Round 0 is closed: 14 of 14 images answered. Run `alloop run` again for the next round.\n"
    assert alloop("run", *at, "--json").data["open"] == 6
    assert fill_in(project.folder / "sheets", truth, skip=2) == 6
    alloop("run", *at)
    assert "2 images were skipped and are not asked again" in alloop("status", "-v", *at).out
    while alloop("run", *at, "--json").data["stage"] != "done":
        fill_in(project.folder / "sheets", truth)

    assert value(project, "SELECT count(*) FROM label") == 28
    assert value(project, "SELECT count(*) FROM query WHERE status = 'skipped'") == 2


def test_a_round_closes_when_enough_is_answered_and_late_answers_count(tmp_path: Path):
    project = make_project(tmp_path, n=30, labeling={"backend": "csv"}, loop={"batch_size": 6, "min_answered": 0.5})
    truth = {str(path): CLASSES[int(path.stem) % 2] for path in (project.folder / "photos").glob("*.png")}
    at = ("-C", project.folder)
    alloop("run", *at)
    sheet = next((project.folder / "sheets").glob("*.csv"))
    empty = sheet.read_bytes()
    fill_in(sheet.parent, truth)
    full = sheet.read_bytes().splitlines(keepends=True)
    # The first seven rows filled in, the other seven still empty.
    sheet.write_bytes(b"".join(full[:8]) + b"".join(empty.splitlines(keepends=True)[8:]))

    assert alloop("run", *at).out.startswith("Round 0 is closed: 7 of 14 images answered.")
    assert alloop("run", *at, "--json").data["round_number"] == 1
    sheet.write_bytes(b"".join(full))
    assert alloop("pull", *at, "--json").data["new"] == 7
    assert value(project, "SELECT count(*) FROM label") == 14


def test_closing_by_hand_takes_back_what_nobody_began(tmp_path: Path):
    project = make_project(tmp_path, n=30, labeling={"backend": "csv"})
    at = ("-C", project.folder)
    alloop("run", *at)

    assert alloop("round", "close", "--withdraw", *at, "--json").data == {"round": 0, "withdrawn": 14}

    assert value(project, "SELECT count(*) FROM query WHERE status = 'withdrawn'") == 14
    assert alloop("run", *at, "--json").data["asked"] == 14


def test_thumbnails_of_a_network_drive_and_a_workspace_among_the_photos_are_left_out_and_said_so(tmp_path: Path):
    project = make_project(tmp_path, n=6, add=False)
    write_pool(project.folder / "photos" / "@eaDir", 3, first=50)
    write_pool(project.folder / "photos" / "trip" / "@eaDir", 3, first=60)
    write_picture(project.folder / "runs" / "round-0000" / "diagram.png", label="cat", number=70)

    added = alloop("pool", "add", project.folder, "-C", project.folder)

    assert "6 new images" in added.out
    assert "3 hidden, system or alloop's own files and folders were left out: @eaDir (2), runs." in added.out


def test_images_that_came_from_thumbnails_are_left_out_of_an_older_pool_unless_they_are_named(tmp_path: Path):
    project = make_project(tmp_path, n=30, pool={"images": ["photos"]})
    photos = project.folder / "photos"
    (photos / "@eaDir").mkdir()
    thumbnails = sorted(photos.glob("*.png"))[:20]
    with project.database.begin() as connection:
        for path in thumbnails:  # as an alloop had them that walked every folder
            path.rename(photos / "@eaDir" / path.name)
            moved = {"new": str(photos / "@eaDir" / path.name), "old": str(path)}
            connection.execute(text("UPDATE image_location SET path = :new WHERE path = :old"), moved)
    at = ("-C", project.folder, "--json")

    assert alloop("pool", "add", *at).data["dropped"] == 20
    checked = alloop("pool", "check", "-C", project.folder).out

    assert (
        f"missing\t{photos / '@eaDir' / thumbnails[0].name}\tleft out: @eaDir belongs to an operating system, "
        "or alloop wrote it" in checked
    )
    assert "30 images, 20 of them missing" in checked
    step(project)
    assert value(project, "SELECT count(*) FROM query") <= 10
    assert alloop("pool", "add", photos / "@eaDir", *at).data["known"] == 20
    assert "0 of them missing" in alloop("pool", "check", "-C", project.folder).out
    write_settings(project, pool={"images": ["photos", "photos/@eaDir"]})
    assert alloop("pool", "add", *at).data["dropped"] == 0
