"""Labels out as tables, and as folders for other programs."""

import csv
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote

import pyarrow.parquet as pq
import pytest
from command_line import alloop
from factories import NOW, at_bench, make_project, tools_of, write_picture
from known_labels import labels, sha256_of_image, write_csv
from PIL import Image
from torchvision.datasets import ImageFolder

from alloop.composition import EXPORTS
from alloop.errors import LabelError, WorkspaceError
from alloop.export.formats import export_labels
from alloop.export.rows import COLUMNS, join_names
from alloop.loop.intake.ingest import add_images, check_images
from alloop.loop.intake.judge import judge_of
from alloop.loop.intake.labels import derive_labels, import_labels
from alloop.loop.rounds.runner import RunOptions, run
from alloop.names import count
from alloop.project import Project
from alloop.records import Answer, Outcome, Split
from alloop.store.annotations import AnnotationRecord, add_annotations, list_current
from alloop.store.auto_labels import add_auto_labels, add_look
from alloop.store.images import list_refs, set_split
from alloop.store.queries import list_queries
from alloop.store.session import reading, transaction

WITH_IMAGES = [name for name, has_images in EXPORTS.items() if has_images]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path, n=6)


def ids_by_name(project: Project) -> dict[str, int]:
    with reading(project.database) as session:
        return {Path(ref.path).name: ref.image_id for ref in list_refs(session)}


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def label_automatically(project: Project, **given: str) -> None:
    """Give images automatic labels, as in label_automatically(project, **{"0002.png": "cat"})."""
    look = {
        "model": "round-0001",
        "model_sha256": "0" * 64,
        "holdout_digest": "0" * 64,
        "max_error": 0.05,
        "confidence": 0.95,
        "is_classwise": False,
        "n_holdout": 100,
        "outcome": {},
    }
    ids = ids_by_name(project)
    with transaction(project.database) as session:
        found = [
            {"image_id": ids[name], "class_name": label, "probability": 0.875, "threshold": 0.75}
            for name, label in given.items()
        ]
        add_auto_labels(session, add_look(session, look, NOW).id, found, NOW)


@pytest.fixture
def labeled(project: Project) -> Project:
    at_bench(project, import_labels, write_csv(project, "file,label", "0000.png,cat", "0001.png,dog", "0003.png,dog"))
    return project


def test_exported_labels_can_be_imported_elsewhere(labeled: Project, tmp_path: Path):
    target = tmp_path / "out" / "labels.csv"
    assert export_labels(labeled, target, "csv") == 3

    rows = read_csv(target)
    assert list(rows[0])[:6] == ["file", "sha256", "label", "split", "agreement", "annotations"]
    assert tuple(rows[0]) == COLUMNS
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
    assert ImageFolder(tmp_path / "tree").classes == ["cat", "dog"]
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


# -- columns -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A workspace whose first round was answered by the oracle."""
    project = make_project(tmp_path_factory.mktemp("asked"), n=40)
    run(tools_of(project), RunOptions(rounds=1))
    return project


def test_a_row_says_who_was_asked_when_and_why(asked: Project, tmp_path: Path):
    export_labels(asked, tmp_path / "labels.jsonl", "jsonl")

    rows = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    with reading(asked.database) as session:
        queries = {query.sha256: query for query in list_queries(session)}
    assert len(rows) == len(queries) > 10
    for row in rows:
        query = queries[row["sha256"]]
        assert (row["round"], row["reason"]) == (0, query.reason.value)
        assert row["selection_probability"] == query.probability
        assert (row["provenance"], row["source"], row["annotators"]) == ("human", "oracle", ["oracle-1"])
        assert (row["agreement"], row["annotations"], row["probability"], row["model"]) == (1.0, 1, None, None)
    assert {row["reason"] for row in rows} == {"holdout", "seed", "random"}
    assert {row["split"] for row in rows} == {"train", "holdout"}


def test_annotators_are_those_whose_votes_count(project: Project, tmp_path: Path):
    image_id = ids_by_name(project)["0000.png"]
    given = [("ann", "cat"), ("bob;jr", "dog"), ("cyd", "cat"), ("dan", "mouse")]  # a mouse is not a class
    with transaction(project.database) as session:
        answers = [Answer(f"a{n}", who, Outcome.LABEL, what, NOW) for n, (who, what) in enumerate(given)]
        answers.append(Answer("a9", "eve", Outcome.SKIP, None, NOW))
        add_annotations(session, [AnnotationRecord(image_id, None, "label-studio", 1, one) for one in answers], NOW)
        derive_labels(session, judge_of(project.config.project), NOW, [image_id])

    export_labels(project, tmp_path / "labels.csv", "csv")
    export_labels(project, tmp_path / "labels.parquet", "parquet")

    (row,) = read_csv(tmp_path / "labels.csv")
    assert row["annotators"] == 'ann;"bob;jr";cyd'
    assert (row["label"], row["annotations"]) == ("cat", "3")
    assert float(row["agreement"]) == pytest.approx(2 / 3)
    assert (row["source"], row["round"], row["reason"], row["model"]) == ("label-studio", "", "", "")
    (column,) = pq.read_table(tmp_path / "labels.parquet")["annotators"].to_pylist()
    assert column == ["ann", "bob;jr", "cyd"]
    assert next(csv.reader([row["annotators"]], delimiter=";")) == column
    assert join_names([]) == ""


def test_parquet_has_one_schema_also_without_labels(labeled: Project, tmp_path: Path):
    empty = make_project(tmp_path, n=6, name="empty")
    assert export_labels(empty, tmp_path / "none.parquet", "parquet") == 0
    assert alloop("labels", "export", tmp_path / "some.parquet", "-C", labeled.folder).code == 0

    none, some = pq.read_table(tmp_path / "none.parquet"), pq.read_table(tmp_path / "some.parquet")
    assert none.schema == some.schema
    assert none.schema.names == list(COLUMNS)
    assert some["label"].to_pylist().count("dog") == 2
    assert some["round"].to_pylist() == [None] * 3


@pytest.mark.parametrize(("include", "expected"), [("human", 3), ("auto", 1), ("both", 4)])
def test_automatic_labels_are_exported_when_asked_for(labeled: Project, tmp_path: Path, include: str, expected: int):
    label_automatically(labeled, **{"0002.png": "cat"})

    told = alloop("labels", "export", tmp_path / "out.csv", "--include", include, "-C", labeled.folder)

    rows = read_csv(tmp_path / "out.csv")
    assert told.out.startswith(f"{count(expected, 'label')} written")
    assert len(rows) == expected
    assert [row["sha256"] for row in rows] == sorted(row["sha256"] for row in rows)
    auto = [row for row in rows if row["provenance"] == "auto"]
    assert len(auto) == (include != "human")
    for row in auto:
        assert Path(row["file"]).name == "0002.png"
        assert (row["label"], row["source"], row["model"], row["probability"]) == ("cat", "auto", "round-0001", "0.875")
        assert (row["agreement"], row["annotations"], row["annotators"], row["split"]) == ("", "", "", "train")


def test_people_replace_an_automatic_label_in_exports(labeled: Project, tmp_path: Path):
    label_automatically(labeled, **{"0002.png": "cat"})
    at_bench(labeled, import_labels, write_csv(labeled, "file,label", "0002.png,dog"))

    assert export_labels(labeled, tmp_path / "out.csv", "csv", include="both") == 4
    assert {row["provenance"] for row in read_csv(tmp_path / "out.csv")} == {"human"}


def test_automatic_labels_do_not_come_back_as_people_s(labeled: Project, tmp_path: Path):
    label_automatically(labeled, **{"0002.png": "cat"})
    export_labels(labeled, tmp_path / "out.csv", "csv", include="both")
    before = count_annotations(labeled)

    with pytest.raises(LabelError, match=r"line \d: a model gave this label"):
        at_bench(labeled, import_labels, tmp_path / "out.csv")

    assert count_annotations(labeled) == before


def count_annotations(project: Project) -> int:
    with reading(project.database) as session:
        return len(list_current(session))


# -- folders with images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", WITH_IMAGES)
def test_every_format_with_images_refuses_what_folders_refuse(labeled: Project, tmp_path: Path, form: str):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(LabelError, match="not empty"):
        export_labels(labeled, tmp_path / "full", form)
    (labeled.folder / "photos" / "0001.png").unlink()

    with pytest.raises(LabelError, match="1 labeled images are missing"):
        export_labels(labeled, tmp_path / "out", form)

    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("form", WITH_IMAGES)
@pytest.mark.parametrize("copy", [False, True])
def test_every_format_with_images_holds_each_image_once(labeled: Project, tmp_path: Path, form: str, copy: bool):
    assert export_labels(labeled, tmp_path / "out", form, copy=copy) == 3

    images = sorted(path for path in (tmp_path / "out").rglob("*.png"))
    assert [path.name[:4] for path in images if "0000" in path.name] == ["0000"]
    assert len(images) == 3
    assert all(path.is_symlink() != copy for path in images)
    assert {path.read_bytes() for path in images} == {
        (labeled.folder / "photos" / name).read_bytes() for name in ("0000.png", "0001.png", "0003.png")
    }


def test_images_of_one_name_keep_apart(project: Project, tmp_path: Path):
    for number, place in enumerate(("a/same.png", "b/same.png", "c/SAME.png", "d/.hidden.png")):
        write_picture(project.folder / place, label="cat", number=100 + number)
        at_bench(project, add_images, [str(project.folder / place)])
    rows = [f"{place},cat" for place in ("a/same.png", "b/same.png", "c/SAME.png", "d/.hidden.png")]
    at_bench(project, import_labels, write_csv(project, "file,label", *rows))

    export_labels(project, tmp_path / "out", "fiftyone")

    names = [path.name for path in (tmp_path / "out" / "data").iterdir()]
    assert len({name.casefold() for name in names}) == 4
    assert sum(name.startswith("_hidden-") for name in names) == 1


def test_equal_names_with_equal_first_digits_get_more_digits():
    from alloop.export.images import file_names
    from alloop.export.rows import LabelRow

    def label(file: str, sha256: str) -> LabelRow:
        return LabelRow(file, sha256, "cat", "train", 1.0, 1, "human", "import", (), *[None] * 5)

    names = file_names(
        {
            1: label("/a/x.png", "0" * 64),
            2: label("/b/x.png", "0" * 8 + "1" * 56),
            3: label("/c/X.jpg", "0" * 16 + "2" * 48),
        }
    )

    assert names == {
        1: "x-00000000.png",
        2: f"x-{'0' * 8}{'1' * 8}.png",
        3: "X-0000000000000000.jpg",
    }


ODD = ("Cat", "cat", "CON", "x:y", "50%", ".git", "end.", "Ärger", "ärger", "%43at", "aux.txt")


def test_classes_that_are_no_folder_names_are_escaped_and_can_be_read_back(tmp_path: Path):
    project = make_project(tmp_path, n=len(ODD), classes=ODD)
    rows = [f"{number:04d}.png,{name}" for number, name in enumerate(ODD)]
    at_bench(project, import_labels, write_csv(project, "file,label", *rows))

    assert export_labels(project, tmp_path / "tree", "folders") == len(ODD)

    found = [path.name for path in (tmp_path / "tree").iterdir() if path.is_dir()]
    assert sorted(unquote(name) for name in found) == sorted(ODD)
    assert len({name.casefold() for name in found}) == len(ODD)
    assert not [name for name in found if set(name) & set('<>:"|?*\\') or name[0] == "." or name[-1] in ". "]
    assert "CON" not in found
    assert "cat" in found  # nothing is escaped without need


def test_a_class_too_long_for_a_folder_is_refused_before_anything_is_written(tmp_path: Path):
    project = make_project(tmp_path, n=2, classes=("cat", "d" * 300))
    at_bench(project, import_labels, write_csv(project, "file,label", "0000.png,cat"))

    with pytest.raises(LabelError, match="300 bytes, and 255 are allowed"):
        export_labels(project, tmp_path / "tree", "folders")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets"]
    assert export_labels(project, tmp_path / "coco", "coco") == 1


# -- read by the programs that the formats are for ---------------------------------------------------------------------


def read_elsewhere(program: str, *arguments: str | Path) -> object:
    """Run a program in a Python of its own, without network, and return the JSON that it prints last."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment["HF_HOME"] = str(arguments[-1])
    ended = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


LOAD_HF = """
import json, sys
from datasets import load_dataset
found = load_dataset("imagefolder", data_dir=sys.argv[1])
print(json.dumps({name: [{**row, "image": row["image"].size} for row in split] for name, split in found.items()}))
"""


def test_datasets_loads_the_hugging_face_layout(asked: Project, tmp_path: Path):
    export_labels(asked, tmp_path / "hf", "hf-imagefolder")

    found = read_elsewhere(LOAD_HF, tmp_path / "hf", tmp_path / "home")

    assert isinstance(found, dict)
    assert set(found) == {"train", "test"}
    assert {row["split"] for row in found["train"]} == {"train"}
    assert {row["split"] for row in found["test"]} == {"holdout"}
    rows = [*found["train"], *found["test"]]
    assert {Path(row["file"]).name: row["label"] for row in rows} == labels(asked)
    assert all(row["image"] == [16, 16] for row in rows)
    assert {row["reason"] for row in rows} == {"holdout", "seed", "random"}


def test_datasets_loads_splits_of_which_one_lacks_what_the_other_has(tmp_path: Path):
    """Automatic labels of one class, which have no round, beside holdout labels that have one, and a near copy."""
    project = make_project(tmp_path, n=40)
    run(tools_of(project), RunOptions(rounds=1))
    with transaction(project.database) as session:
        session.connection().exec_driver_sql(
            "DELETE FROM label WHERE image_id IN (SELECT id FROM image WHERE split = 'train')"
        )
    names = unlabeled(project)
    label_automatically(project, **dict.fromkeys(names[:4], "cat"))
    with transaction(project.database) as session:
        set_split(session, [ids_by_name(project)[names[0]]], Split.EXCLUDED)

    export_labels(project, tmp_path / "hf", "hf-imagefolder", include="both")

    found = read_elsewhere(LOAD_HF, tmp_path / "hf", tmp_path / "home")

    assert isinstance(found, dict)
    assert set(found) == {"train", "test"}
    assert [(row["label"], row["probability"], row["round"]) for row in found["train"]] == [("cat", "0.875", "")] * 3
    assert {(row["probability"], row["round"]) for row in found["test"]} == {("", "0")}
    assert [path.name[:4] for path in (tmp_path / "hf" / "excluded").glob("*.png")] == [names[0][:4]]


def unlabeled(project: Project) -> list[str]:
    with reading(project.database) as session:
        return [Path(ref.path).name for ref in list_refs(session, labeled=False)]


LOAD_COCO = """
import contextlib, json, sys
from pycocotools.coco import COCO
with contextlib.redirect_stdout(sys.stderr):
    coco = COCO(sys.argv[1])
found = {}
for category in coco.loadCats(coco.getCatIds()):
    for image in coco.loadImgs(coco.getImgIds(catIds=[category["id"]])):
        found[image["file_name"]] = [category["name"], image["width"], image["height"]]
print(json.dumps([found, coco.getCatIds(), coco.getImgIds(), len(coco.anns)]))
"""


def test_pycocotools_loads_coco(labeled: Project, tmp_path: Path):
    turned = labeled.folder / "photos" / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (30, 20), "red").save(turned, exif=exif)
    at_bench(labeled, add_images, [str(turned)])
    at_bench(labeled, import_labels, write_csv(labeled, "file,label", "turned.jpg,cat"))
    export_labels(labeled, tmp_path / "coco", "coco")

    found, categories, images, n = read_elsewhere(LOAD_COCO, tmp_path / "coco" / "labels.json", tmp_path / "home")

    assert {name[:4]: what for name, what in found.items()} == {
        "0000": ["cat", 16, 16],
        "0001": ["dog", 16, 16],
        "0003": ["dog", 16, 16],
        "turn": ["cat", 20, 30],
    }
    assert all((tmp_path / "coco" / "data" / name).exists() for name in found)
    assert (categories, n) == ([1, 2], 4)
    assert min(images) >= 1
    annotation = json.loads((tmp_path / "coco" / "labels.json").read_text())["annotations"][0]
    assert annotation["bbox"] == []
    assert annotation["attributes"]["source"] == "import"


def test_ids_of_coco_stay_when_a_class_is_added(asked: Project, tmp_path: Path):
    from factories import write_settings

    export_labels(asked, tmp_path / "before", "coco")
    later = write_settings(asked, project={"classes": ["ant", "cat", "dog"]})
    export_labels(later, tmp_path / "after", "coco")
    write_settings(asked)

    before, after = (json.loads((tmp_path / name / "labels.json").read_text()) for name in ("before", "after"))
    assert [(one["id"], one["name"]) for one in before["categories"]] == [(1, "cat"), (2, "dog")]
    assert [(one["id"], one["name"]) for one in after["categories"]] == [(1, "cat"), (2, "dog"), (3, "ant")]
    assert before["images"] == after["images"]
    assert before["annotations"] == after["annotations"]


def test_fiftyone_labels_follow_its_published_format(labeled: Project, tmp_path: Path):
    """FiftyOne itself needs a MongoDB server, so its importer's rules are applied here.

    Source: FiftyOne user guide, "Importing data", FiftyOneImageClassificationDataset: a target is a class's place in
    `classes`, or an object with `label`, `confidence` and `attributes`; keys are the names in data/ without endings.
    """
    label_automatically(labeled, **{"0002.png": "cat"})
    export_labels(labeled, tmp_path / "out", "fiftyone", include="both")

    content = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert set(content) == {"classes", "labels"}
    media = {path.stem for path in (tmp_path / "out" / "data").iterdir()}
    assert media == set(content["labels"])
    assert all(set(target) <= {"label", "confidence", "attributes"} for target in content["labels"].values())
    read = {key[:4]: content["classes"][target["label"]] for key, target in content["labels"].items()}
    assert read == {"0000": "cat", "0001": "dog", "0002": "cat", "0003": "dog"}
    (auto,) = (target for key, target in content["labels"].items() if key.startswith("0002"))
    assert auto["confidence"] == 0.875
    assert auto["attributes"]["provenance"] == "auto"
    assert not [
        value for target in content["labels"].values() for value in target["attributes"].values() if value is None
    ]
