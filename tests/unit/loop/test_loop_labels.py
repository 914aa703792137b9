"""Labels in and out as files."""

import csv
import json
import os
import resource
import threading
from pathlib import Path

import pytest
from command_line import alloop
from factories import at_bench, make_project, write_picture
from sqlalchemy import text

from alloop.errors import LabelError, WorkspaceError
from alloop.loop.intake.ingest import add_images, check_images
from alloop.loop.intake.labels import export_labels, import_labels
from alloop.project import Project
from alloop.store.annotations import list_labels
from alloop.store.images import list_refs
from alloop.store.session import reading


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, n=6)


def write_csv(project: Project, *rows: str) -> Path:
    path = project.folder / "known.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def labels(project: Project) -> dict[str, str]:
    with reading(project.database) as session:
        return {Path(str(label.path)).name: label.consensus.value for label in list_labels(session)}


def count_annotations(project: Project) -> int:
    with reading(project.database) as session:
        return session.execute(text("SELECT count(*) FROM annotation")).scalar_one()


def sha256_of_image(project: Project, name: str) -> str:
    with reading(project.database) as session:
        return next(ref.sha256 for ref in list_refs(session) if Path(ref.path).name == name)


def test_a_file_is_found_by_path_relative_path_name_or_hash(project: Project):
    path = write_csv(
        project,
        "file,sha256,label",
        f"{project.folder}/photos/0000.png,,cat",
        "photos/0001.png,,dog",
        "0002.png,, cat ",
        f",{sha256_of_image(project, '0003.png').upper()},dog",
    )

    assert at_bench(project, import_labels, path) == (4, 0)
    assert labels(project) == {"0000.png": "cat", "0001.png": "dog", "0002.png": "cat", "0003.png": "dog"}


def test_importing_again_records_nothing_and_a_changed_label_is_a_new_version(project: Project):
    at_bench(project, import_labels, write_csv(project, "file,label", "0000.png,cat", "0001.png,dog"))

    assert at_bench(project, import_labels, write_csv(project, "file,label", "0000.png,cat", "0001.png,cat")) == (1, 1)
    assert labels(project) == {"0000.png": "cat", "0001.png": "cat"}
    assert count_annotations(project) == 3


def test_a_sheet_of_excel_is_read_with_its_mark_and_line_ends(project: Project):
    path = project.folder / "known.csv"
    path.write_bytes(b"\xef\xbb\xbffile,label\r\n0000.png,cat\r\n")

    assert at_bench(project, import_labels, path) == (1, 0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["file,class", "0000.png,cat"], "has the columns file, class"),
        (["label", "cat"], "has the columns label"),
        ([""], "is empty"),
        (["file,label", "0000.png,cat", "0001.png,cta"], "line 3: 'cta' is not a class; did you mean 'cat'?"),
        (["file,label", "0000.png,"], "line 2: '' is not a class"),
        (["file,label", "0000.png"], "line 2: '' is not a class"),
        (["file,label", "0000.png,cat", "nowhere.png,cat"], "line 3: nowhere.png is not in the pool"),
        (["sha256,label", "00ff,cat"], "line 2: 00ff is not in the pool"),
        (["file,label", "0000.png,cat", "photos/0000.png,dog"], "line 3: this image is 'dog' here and 'cat' in line 2"),
    ],
)
def test_a_file_that_is_wrong_anywhere_imports_nothing(project: Project, rows: list[str], message: str):
    with pytest.raises(LabelError, match=message) as caught:
        at_bench(project, import_labels, write_csv(project, *rows))

    assert "known.csv" in str(caught.value)
    assert caught.value.hint
    assert count_annotations(project) == 0


def test_a_file_that_is_not_there_is_named(project: Project):
    with pytest.raises(LabelError, match=r"nowhere\.csv cannot be read"):
        at_bench(project, import_labels, project.folder / "nowhere.csv")


def test_a_name_that_two_images_have_must_be_a_path(project: Project):
    write_picture(project.folder / "more" / "0000.png", label="cat", number=900)
    at_bench(project, add_images, [str(project.folder / "more")])

    with pytest.raises(LabelError, match=r"2 images are called 0000\.png"):
        at_bench(project, import_labels, write_csv(project, "file,label", "0000.png,cat"))
    assert at_bench(project, import_labels, write_csv(project, "file,label", "more/0000.png,cat")) == (1, 0)


def test_folder_names_are_labels_where_that_is_said(tmp_path: Path):
    project = make_project(tmp_path, n=0, add=False)
    for number in range(4):
        label = ("cat", "dog")[number % 2]
        write_picture(project.folder / "tree" / label / f"{number}.png", label=label, number=number)
    tree = str(project.folder / "tree")

    assert at_bench(project, add_images, [tree], labels_from_folders=True).labeled == 4
    assert at_bench(project, add_images, [tree], labels_from_folders=True).labeled == 0
    assert labels(project) == {"0.png": "cat", "1.png": "dog", "2.png": "cat", "3.png": "dog"}


def test_labels_from_folders_may_come_after_the_images(tmp_path: Path):
    project = make_project(tmp_path, n=0, add=False)
    write_picture(project.folder / "tree" / "dog" / "a.png", label="dog", number=1)
    at_bench(project, add_images, [str(project.folder / "tree")])
    assert labels(project) == {}

    assert at_bench(project, add_images, [str(project.folder / "tree")], labels_from_folders=True).labeled == 1
    assert labels(project) == {"a.png": "dog"}


def test_a_folder_that_is_no_class_is_refused_before_anything_is_added(tmp_path: Path):
    project = make_project(tmp_path, n=0, add=False)
    for label in ("cat", "bird"):
        write_picture(project.folder / "tree" / label / "a.png", label="cat", number=len(label))

    with pytest.raises(LabelError, match="'bird' is not one of the classes: cat, dog"):
        at_bench(project, add_images, [str(project.folder / "tree")], labels_from_folders=True)

    with reading(project.database) as session:
        assert list_refs(session) == []


def test_one_image_in_the_folders_of_two_classes_is_refused(tmp_path: Path):
    project = make_project(tmp_path, n=0, add=False)
    write_picture(project.folder / "tree" / "cat" / "a.png", label="cat", number=1)
    write_picture(project.folder / "tree" / "dog" / "b.png", label="cat", number=1)

    with pytest.raises(LabelError, match=r"cat/a\.png and .*dog/b\.png") as caught:
        at_bench(project, add_images, [str(project.folder / "tree")], labels_from_folders=True)

    assert caught.value.hint
    assert labels(project) == {}


@pytest.fixture
def labeled(project: Project) -> Project:
    at_bench(project, import_labels, write_csv(project, "file,label", "0000.png,cat", "0001.png,dog", "0003.png,dog"))
    return project


def test_exported_labels_can_be_imported_elsewhere(labeled: Project, tmp_path: Path):
    target = tmp_path / "out" / "labels.csv"
    assert export_labels(labeled, target, "csv") == 3

    rows = list(csv.DictReader(target.read_text(encoding="utf-8").splitlines()))
    assert list(rows[0]) == ["file", "sha256", "label", "split", "agreement", "annotations"]
    assert {row["sha256"]: row["label"] for row in rows} == {
        sha256_of_image(labeled, "0000.png"): "cat",
        sha256_of_image(labeled, "0001.png"): "dog",
        sha256_of_image(labeled, "0003.png"): "dog",
    }
    assert [row["sha256"] for row in rows] == sorted(row["sha256"] for row in rows)
    other = make_project(tmp_path, n=6, name="other")
    assert at_bench(other, import_labels, target) == (3, 0)
    assert labels(other) == labels(labeled)


def test_json_lines_hold_what_the_csv_holds(labeled: Project, tmp_path: Path):
    export_labels(labeled, tmp_path / "labels.jsonl", "jsonl")

    rows = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert sorted((Path(row["file"]).name, row["label"], row["split"], row["agreement"]) for row in rows) == [
        ("0000.png", "cat", "train", 1.0),
        ("0001.png", "dog", "train", 1.0),
        ("0003.png", "dog", "train", 1.0),
    ]


@pytest.mark.parametrize("copy", [False, True])
def test_a_folder_per_class_holds_links_or_copies(labeled: Project, tmp_path: Path, copy: bool):
    assert export_labels(labeled, tmp_path / "tree", "folders", copy=copy) == 3

    found = sorted((tmp_path / "tree").rglob("*.png"))
    assert [(path.parent.name, path.name[:5]) for path in found] == [
        ("cat", "0000-"),
        ("dog", "0001-"),
        ("dog", "0003-"),
    ]
    assert all(path.is_symlink() != copy for path in found)
    assert found[0].read_bytes() == (labeled.folder / "photos" / "0000.png").read_bytes()


def test_an_export_does_not_mix_with_what_is_there(labeled: Project, tmp_path: Path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "mine.txt").touch()

    with pytest.raises(LabelError, match="not empty"):
        export_labels(labeled, tmp_path / "tree", "folders")
    with pytest.raises(LabelError, match=r"mine\.txt is not a folder"):
        export_labels(labeled, tmp_path / "tree" / "mine.txt", "folders")


def test_an_export_that_needs_a_missing_image_writes_nothing(labeled: Project, tmp_path: Path):
    (labeled.folder / "photos" / "0001.png").unlink()

    with pytest.raises(LabelError, match=r"1 labeled images? (is|are) missing.*0001\.png"):
        export_labels(labeled, tmp_path / "tree", "folders")

    assert not (tmp_path / "tree").exists()
    assert export_labels(labeled, tmp_path / "labels.csv", "csv") == 3


def test_an_export_by_folders_uses_the_copy_that_is_still_there(labeled: Project, tmp_path: Path):
    copy = labeled.folder / "z" / "copy.png"
    copy.parent.mkdir()
    copy.write_bytes((labeled.folder / "photos" / "0001.png").read_bytes())
    at_bench(labeled, add_images, [str(copy)])
    (labeled.folder / "photos" / "0001.png").unlink()
    at_bench(labeled, check_images)

    assert export_labels(labeled, tmp_path / "tree", "folders") == 3
    assert labels(labeled)["copy.png"] == "dog"


def test_an_export_to_a_place_that_cannot_be_written_is_said_in_words(labeled: Project, tmp_path: Path):
    (tmp_path / "file").touch()

    with pytest.raises(WorkspaceError, match="could not be written"):
        export_labels(labeled, tmp_path / "file" / "labels.csv", "csv")


def test_a_copy_that_cannot_be_made_leaves_no_half_export(labeled: Project, tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = write_picture(labeled.folder / "photos" / "large.png", label="cat", number=7)
    large.write_bytes(large.read_bytes() + bytes(200_000))
    at_bench(labeled, add_images, [str(large)])
    at_bench(labeled, import_labels, write_csv(labeled, "file,label", "large.png,cat"))

    with pytest.raises(WorkspaceError, match="larger than the largest file allowed here"):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            export_labels(labeled, tmp_path / "tree", "folders", copy=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert not (tmp_path / "tree").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []
    assert export_labels(labeled, tmp_path / "tree", "folders", copy=True) == 4


def test_an_image_with_a_name_as_long_as_names_may_be_is_exported(labeled: Project, tmp_path: Path):
    for name in ("n" * 251, "n" + "é" * 125):
        write_picture(labeled.folder / "long" / f"{name}.png", label="cat", number=len(name))
    at_bench(labeled, add_images, [str(labeled.folder / "long")])
    at_bench(labeled, import_labels, write_csv(labeled, "file,label", f"{'n' * 251}.png,cat", f"n{'é' * 125}.png,cat"))

    assert export_labels(labeled, tmp_path / "tree", "folders", copy=True) == 5

    names = sorted(path.name for path in (tmp_path / "tree" / "cat").iterdir())
    assert [len(name.encode()) for name in names] == [17, 255, 254]
    assert all(name.endswith(".png") for name in names)


def test_labels_without_a_named_format_go_into_a_pipe_as_csv_and_never_as_folders(labeled: Project, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()

    assert alloop("labels", "export", tmp_path / "pipe", "-C", labeled.folder).code == 0
    reader.join(10)

    assert got[0].startswith("file,sha256,label,")
    with pytest.raises(LabelError, match="pipe is not a folder"):
        export_labels(labeled, tmp_path / "pipe", "folders")
