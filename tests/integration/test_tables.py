"""Tables and names from outside, by the command line: what a person means is what is recorded."""

import json
from pathlib import Path

import pytest
from command_line import alloop
from factories import make_project, write_picture

from alloop.project import Project
from alloop.store.annotations import list_labels
from alloop.store.images import list_facts
from alloop.store.session import reading

NFC, NFD = "caf\u00e9", "cafe\u0301"


def labels(project: Project) -> dict[str, str]:
    with reading(project.database) as session:
        return {Path(str(label.path)).name: label.consensus.value for label in list_labels(session)}


DIALECTS = {
    "german excel": ("File;Label\r\nphotos\\0000.png;cat\r\n0001.png ; dog\r\n;\r\n", "cp1252"),
    "unicode text": ("FILE\tLABEL\r\n0000.png\tcat\r\n0001.png\tdog\r\n", "utf-16"),
    "separator line": ("sep=;\r\nfile;label;;\r\n0000.png;cat;;\r\n0001.png;dog;;\r\n", "utf-8-sig"),
    "empty lines": ("\n\n file , label \n\n0000.png,cat\n\n\n0001.png,dog\n", "utf-8"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_labels_are_imported_from_whatever_a_spreadsheet_saves(tmp_path: Path, dialect: str):
    project = make_project(tmp_path, n=4)
    text, encoding = DIALECTS[dialect]
    (tmp_path / "pets" / "known.csv").write_bytes(text.encode(encoding))

    done = alloop("labels", "import", project.folder / "known.csv", "-C", project.folder)

    assert (done.code, done.err) == (0, "")
    assert labels(project) == {"0000.png": "cat", "0001.png": "dog"}


def test_attributes_are_read_from_whatever_a_spreadsheet_saves(tmp_path: Path):
    project = make_project(tmp_path, n=2)
    table = tmp_path / "pets" / "a.csv"
    table.write_bytes("sep=;\r\nFile;Site ;year;\r\nphotos\\0000.png;Zürich;2024;\r\n;;;\r\n".encode("cp1252"))

    done = alloop("pool", "add", "--attributes", table, "-C", project.folder)

    assert done.code == 0, done.err
    assert "is not UTF-8 and was read as Windows-1252" in done.err
    with reading(project.database) as session:
        found = {Path(image.paths[0]).name: dict(image.attributes) for image in list_facts(session)}
    assert found["0000.png"] == {"Site": "Zürich", "year": "2024"}


def test_the_oracle_and_the_test_set_take_the_same_tables(tmp_path: Path):
    project = make_project(tmp_path, n=20, evaluation={"test": "test.csv"})
    truth = (project.folder / "truth.csv").read_text().replace(",", ";").replace("file;label", "File;LABEL")
    (project.folder / "truth.csv").write_bytes(("sep=;\r\n" + truth).encode("utf-16"))
    for number in range(4):
        write_picture(project.folder / "tested" / f"{number}.png", label="cat", number=900 + number)
    rows = "".join(f"tested\\{number}.png;cat\r\n" for number in range(4))
    (project.folder / "test.csv").write_text(f"File;Label\r\n{rows}")

    done = alloop("run", "-C", project.folder, "--json")

    assert done.code == 0, done.err
    found = alloop("status", "-C", project.folder, "--json").data["pool"]
    assert (found["holdout"], found["labeled"]) == (4, 10)


@pytest.mark.parametrize(("on_disk", "in_table"), [(NFC, NFD), (NFD, NFC)])
def test_a_file_is_found_under_the_other_spelling_where_that_is_one_file(tmp_path: Path, on_disk: str, in_table: str):
    project = make_project(tmp_path, n=2)
    write_picture(project.folder / on_disk / f"{on_disk}.png", label="cat", number=900)
    assert alloop("pool", "add", project.folder / on_disk, "-C", project.folder).code == 0
    for name in (f"{in_table}.png", f"{in_table}/{in_table}.png", f"{in_table}\\{in_table}.png"):
        (project.folder / "known.csv").write_text(f"file,label\n{name},cat\n")
        assert alloop("labels", "import", project.folder / "known.csv", "-C", project.folder).code == 0
    assert labels(project) == {f"{on_disk}.png": "cat"}
    write_picture(project.folder / "other" / f"{in_table}.png", label="dog", number=901)
    assert alloop("pool", "add", project.folder / "other", "-C", project.folder).code == 0

    (project.folder / "known.csv").write_text(f"file,label\n{in_table}.png,dog\n")
    assert alloop("labels", "import", project.folder / "known.csv", "-C", project.folder).code == 0

    assert labels(project) == {f"{on_disk}.png": "cat", f"{in_table}.png": "dog"}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (f"{NFC},{NFD}", "classes 'caf\\xe9' and 'cafe\\u0301' look the same"),
        ("cat,c\u200bat", "U+200B ZERO WIDTH SPACE"),
        ("cat,dog\ufeff", "U+FEFF ZERO WIDTH NO-BREAK SPACE"),
        ("ca\u00adt,dog", "U+00AD SOFT HYPHEN"),
        ("cat,\u202edog", "U+202E RIGHT-TO-LEFT OVERRIDE"),
        ("new york,new\u00a0york", "look the same"),
    ],
)
def test_classes_that_people_cannot_tell_apart_are_refused(tmp_path: Path, classes: str, message: str):
    refused = alloop("init", tmp_path / "pets", "--classes", classes)

    assert refused.code == 2
    assert message in refused.err
    assert not (tmp_path / "pets").exists()


@pytest.mark.parametrize(("class_name", "said"), [(NFC, NFD), (NFD, NFC), (NFC, f"\u200b{NFC}\ufeff")])
def test_a_label_counts_in_whatever_way_its_letters_are_composed(tmp_path: Path, class_name: str, said: str):
    project = make_project(tmp_path, n=6, classes=(class_name, "dog"), labeling={"backend": "csv"})
    (project.folder / "known.csv").write_text(f"file,label\n0000.png,{said}\n")

    done = alloop("labels", "import", project.folder / "known.csv", "-C", project.folder)

    assert done.code == 0, done.err
    assert labels(project) == {"0000.png": class_name}
    write_picture(
        project.folder / "tree" / said.strip("\u200b\ufeff") / "x.png", label="dog", number=77, classes=("dog",)
    )
    added = alloop("pool", "add", "--labels-from-folders", project.folder / "tree", "-C", project.folder)
    assert added.code == 0, added.err
    assert alloop("run", "-C", project.folder).code == 0
    sheet = next((project.folder / "sheets").glob("*.csv"))
    lines = sheet.read_text(encoding="utf-8-sig").splitlines()
    sheet.write_text("\n".join([lines[0], *(said + line for line in lines[1:])]))
    assert alloop("pull", "-C", project.folder).code == 0
    assert set(labels(project).values()) == {class_name}
    assert alloop("status", "-C", project.folder, "--json").data["unknown_values"] == {}


def test_a_byte_order_mark_in_the_settings_is_accepted(tmp_path: Path):
    project = make_project(tmp_path, n=2)
    path = project.folder / "alloop.toml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    assert json.loads(alloop("status", "-C", project.folder, "--json").out)["pool"]["images"] == 2
