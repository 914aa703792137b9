"""Labeled images for a comparison: where they come from, how they are split."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from factories import write_picture
from PIL import Image

from alloop.errors import LabelError, PoolError
from alloop.pool.picture import picture_of
from alloop.simulate.labeled import Parts, read_csv, read_folder, split_holdout, split_stratified
from alloop.simulate.ood import read_strangers


def _write(folder: Path, n: int = 6) -> None:
    for label in ("cat", "dog"):
        for number in range(n):
            write_picture(folder / label / "more" / f"{number}.png", label=label, number=number)


def test_a_folder_per_class_is_read_to_its_bottom(tmp_path: Path):
    _write(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")

    data = read_folder(tmp_path)

    assert data.classes == ("cat", "dog")
    assert data.targets.tolist() == [0] * 6 + [1] * 6
    assert all(
        Path(image.path).parts[-3] == data.classes[t] for image, t in zip(data.images, data.targets, strict=True)
    )


def test_thumbnails_and_results_beside_the_classes_are_no_class(tmp_path: Path):
    _write(tmp_path)
    for name in ("@eaDir", "#recycle", "results"):
        shutil.copytree(tmp_path / "cat", tmp_path / name)
    (tmp_path / "results" / ".alloop-output").touch()

    assert read_folder(tmp_path).classes == ("cat", "dog")


def test_files_that_end_too_early_are_taken_where_the_settings_say_so(tmp_path: Path):
    (tmp_path / "strange").mkdir()
    for place, first in (("all/cat", 0), ("all/dog", 6), ("strange", 12)):
        for number in range(6):
            file = io.BytesIO()
            Image.effect_noise((32, 32), 40 + first + number).convert("RGB").save(file, "JPEG")
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            (tmp_path / place / f"{number}.jpg").write_bytes(file.getvalue()[:-40])
    for label in ("cat", "dog"):
        for number in range(6):
            (tmp_path / f"{label}{number}.jpg").write_bytes((tmp_path / f"all/{label}/{number}.jpg").read_bytes())
    rows = "".join(f"{label}{number}.jpg,{label}\n" for label in ("cat", "dog") for number in range(6))
    (tmp_path / "labels.csv").write_text("file,label\n" + rows)

    for may_be_cut in (True, False):
        folder = read_folder(tmp_path / "all", may_be_cut=may_be_cut)
        table = read_csv(tmp_path / "labels.csv", may_be_cut=may_be_cut)
        strangers = read_strangers(tmp_path / "strange", (), may_be_cut=may_be_cut)
        for image in (*folder.images, *table.images, *strangers):
            if may_be_cut:
                assert picture_of(image).size == (32, 32)
            else:
                with pytest.raises(PoolError, match="truncated"):
                    picture_of(image)


def test_a_csv_names_files_from_where_it_lies(tmp_path: Path):
    _write(tmp_path / "photos")
    files = sorted((tmp_path / "photos").rglob("*.png"))
    lines = [f"{file.relative_to(tmp_path)},{file.parts[-3]}" for file in files]
    (tmp_path / "labels.csv").write_text("file,label\n" + "\n".join(lines))

    data = read_csv(tmp_path / "labels.csv")

    assert [image.path for image in data.images] == [str(file) for file in files]


def test_a_csv_line_without_its_file_is_named(tmp_path: Path):
    (tmp_path / "labels.csv").write_text("file,label\ngone.png,cat\n")

    with pytest.raises(LabelError, match=r"line 2 names .*gone\.png, which does not exist"):
        read_csv(tmp_path / "labels.csv")


def _write_table(folder: Path, answer: str) -> Path:
    """Twelve images; Ann is right, and Bob says cat, but `answer` of the last one."""
    _write(folder / "photos")
    files = sorted((folder / "photos").rglob("*.png"))
    said = ["cat"] * (len(files) - 1) + [answer]
    lines = [f"{file},{file.parts[-3]},{file.parts[-3]},{bob}" for file, bob in zip(files, said, strict=True)]
    (folder / "table.csv").write_text("file,label,ann,bob\n" + "\n".join(lines))
    return folder / "table.csv"


def test_what_people_answered_stays_beside_their_image(tmp_path: Path):
    data = read_csv(_write_table(tmp_path, "dog"), people=("bob", "ann"))

    assert data.people is not None
    assert data.people.names == ("bob", "ann")
    assert [ann for _, ann in data.people.answers] == [data.classes[target] for target in data.targets]
    assert [bob for bob, _ in data.people.answers] == ["cat"] * 11 + ["dog"]


@pytest.mark.parametrize(
    ("people", "answer", "message"),
    [
        (("ann", "cyd"), "dog", "It needs 'file', 'label', 'ann' and 'cyd'"),
        (("bob",), "", r"nobody answered about .*5\.png"),
        (("bob",), "cow", "somebody answered 'cow' about .*, but no image has this label"),
    ],
)
def test_answers_that_are_missing_or_no_class_are_refused(
    tmp_path: Path, people: tuple[str, ...], answer: str, message: str
):
    table = _write_table(tmp_path, answer)

    with pytest.raises(LabelError) as caught:
        read_csv(table, people=people)

    assert re.search(message, f"{caught.value.message} {caught.value.hint}")


def test_a_table_of_excel_with_windows_paths_is_read(tmp_path: Path):
    _write(tmp_path / "photos")
    files = sorted((tmp_path / "photos").rglob("*.png"))
    (tmp_path / "photos" / "dog" / "more" / "5.png").rename(tmp_path / "photos" / "cafe\u0301.png")
    names = [str(file.relative_to(tmp_path)).replace("/", "\\") for file in files[:-1]] + ["photos\\caf\u00e9.png"]
    labels = ["cafe\u0301", "caf\u00e9"] * 3 + ["dog"] * 6
    rows = [f" {name} ;{label};;\r\n" for name, label in zip(names, labels, strict=True)]
    (tmp_path / "labels.csv").write_bytes(("sep=;\r\n FILE ;Label;;\r\n\r\n" + "".join(rows)).encode("utf-16"))

    data = read_csv(tmp_path / "labels.csv")

    assert data.classes == ("caf\u00e9", "dog")
    assert data.targets.tolist() == [0] * 6 + [1] * 6
    assert data.images[-1].path == str(tmp_path / "photos" / "cafe\u0301.png")


def test_folders_whose_names_only_differ_in_how_letters_are_composed_are_one_class(tmp_path: Path):
    for number, label in enumerate(["cafe\u0301", "caf\u00e9", "dog"] * 4):
        write_picture(tmp_path / label / f"{number}.png", label="cat", number=number)

    assert read_folder(tmp_path).classes == ("caf\u00e9", "dog")


@pytest.mark.parametrize("nothing", ["", "-1", "NaN"])
def test_people_who_were_not_asked_have_no_answer(tmp_path: Path, nothing: str):
    data = read_csv(_write_table(tmp_path, nothing), people=("ann", "bob"))

    assert data.people is not None
    assert data.people.answers[-1] == ("dog", None)


def test_a_copy_counts_once_and_a_contradicting_copy_is_refused(tmp_path: Path):
    _write(tmp_path)
    source = (tmp_path / "cat" / "more" / "0.png").read_bytes()
    (tmp_path / "cat" / "copy.png").write_bytes(source)
    assert len(read_folder(tmp_path).images) == 12

    (tmp_path / "dog" / "copy.png").write_bytes(source)

    with pytest.raises(LabelError, match=r"is 'dog', but .* is 'cat'"):
        read_folder(tmp_path)


def test_one_folder_is_no_comparison(tmp_path: Path):
    (tmp_path / "cat").mkdir()

    with pytest.raises(LabelError, match="holds 1 folders"):
        read_folder(tmp_path)


def _all(parts: Parts) -> list[int]:
    return np.concatenate([parts.train, parts.calibration, parts.test]).tolist()


def test_parts_are_stratified_and_do_not_overlap():
    targets = np.repeat([0, 1, 2], [60, 30, 10])

    parts = split_stratified(targets, seed=3)

    assert sorted(_all(parts)) == list(range(100))
    # 40 and 20 of 100 images, a class of 30 % gives 12 and 6 of them, give or take one.
    assert [len(part) for part in (parts.train, parts.calibration, parts.test)] == [40, 20, 40]
    for part, expected in ((parts.test, [24, 12, 4]), (parts.calibration, [12, 6, 2]), (parts.train, [24, 12, 4])):
        assert np.abs(np.bincount(targets[part], minlength=3) - expected).max() <= 1


def test_a_seed_always_gives_the_same_parts_and_another_seed_others():
    targets = np.arange(100) % 4

    assert _all(split_stratified(targets, 1)) == _all(split_stratified(targets, 1))
    assert _all(split_stratified(targets, 1)) != _all(split_stratified(targets, 2))


def test_fewer_labels_leave_what_is_measured_as_it_was():
    targets = np.arange(100) % 4

    few, many = split_stratified(targets, 1, n_labels=8), split_stratified(targets, 1)

    assert few.test.tolist() == many.test.tolist()
    assert np.bincount(targets[few.train]).tolist() == [2, 2, 2, 2]
    assert set(few.train) <= set(many.train)


def test_more_labels_than_there_are_left_is_an_error_with_the_number():
    with pytest.raises(LabelError, match="41 training labels were asked for, but 40 are left"):
        split_stratified(np.arange(100) % 4, 1, n_labels=41)


def test_the_holdout_is_measured_on_and_never_trained_on():
    is_holdout = np.arange(20) < 5

    parts = split_holdout(np.arange(20) % 2, is_holdout, seed=0)

    assert sorted(parts.test) == [0, 1, 2, 3, 4]
    assert sorted(parts.train) == list(range(5, 20))
    assert len(parts.calibration) == 0


def test_a_holdout_without_labels_cannot_be_measured_on():
    with pytest.raises(LabelError, match="No holdout image is labeled"):
        split_holdout(np.arange(4) % 2, np.zeros(4, dtype=bool), seed=0)
