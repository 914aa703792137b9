"""Labels in from files."""

from pathlib import Path

import pytest
from factories import at_bench, make_project, write_picture
from known_labels import labels, sha256_of_image, write_csv
from sqlalchemy import text

from alloop.errors import LabelError
from alloop.loop.intake.ingest import add_images
from alloop.loop.intake.labels import import_labels
from alloop.project import Project
from alloop.store.images import list_refs
from alloop.store.session import reading


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, n=6)


def count_annotations(project: Project) -> int:
    with reading(project.database) as session:
        return session.execute(text("SELECT count(*) FROM annotation")).scalar_one()


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
