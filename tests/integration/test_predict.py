"""`alloop predict`: rows for images of the pool and others, with the numbers of the pool's scores."""

import csv
import hashlib
import io
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import alloop
from factories import make_project, make_settings, render_toml
from PIL import Image

from alloop.engine import pool_features
from alloop.engine.score_file import read_log_probs, read_scores
from alloop.files import sha256_of
from alloop.loop.choosing.pool_scores import find_suspects, suspect_bound, suspect_threshold
from alloop.loop.using.row_files import TerminalLines
from alloop.project import Project

FIRST = ["file", "sha256", "predicted", "probability", "entropy", "suspect", "label", "model", "reason"]
SETTINGS = {"acquisition": {"suspect_quantile": 0.9}, "loop": {"batch_size": 12}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after two rounds with a model, and smoothed heads."""
    project = make_project(tmp_path_factory.mktemp("made"), 60, **SETTINGS)
    for _ in range(3):
        assert alloop("run", "-C", project.folder).code == 0
    project.close()
    return project.folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predict(folder: Path, out: Path, *arguments: str | Path) -> list[dict[str, str]]:
    done = alloop("predict", "-C", folder, "--out", out, "-q", *arguments)
    assert done.code == 0, done.err
    return rows(out)


def names(*lines: str | Path) -> io.TextIOWrapper:
    """Return a standard input that holds these lines."""
    return io.TextIOWrapper(io.BytesIO("".join(f"{line}\n" for line in lines).encode()))


def listing(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_the_pool_has_the_numbers_of_its_scores_and_nothing_in_the_workspace_changes(made: Path, tmp_path: Path):
    path = made / "runs" / "round-0002" / "scores.parquet"
    scores = read_scores(path)
    probs = np.concatenate([part.exp().numpy() for _, part in read_log_probs(path)])
    before = listing(made)

    found = {row["sha256"]: row for row in predict(made, tmp_path / "out.csv", "--pool")}

    assert listing(made).keys() == before.keys()
    assert {
        path for path, state in listing(made).items() if state != before[path] and "alloop.db" not in path.name
    } == set()
    assert list(next(iter(found.values()))) == [*FIRST, "p_cat", "p_dog"]
    assert len(found) == 60
    suspects = find_suspects(scores, 0.9)
    assert suspects
    for place, sha256 in enumerate(scores.sha256s):
        row = found[sha256]
        assert row["predicted"] == scores.predicted[place]
        assert [float(row["p_cat"]), float(row["p_dog"])] == pytest.approx(probs[place], abs=1e-6)
        assert float(row["probability"]) == pytest.approx(probs[place].max(), abs=1e-6)
        assert float(row["entropy"]) == pytest.approx(scores.entropy[place], abs=1e-6)
        assert row["suspect"] == ("true" if int(scores.image_ids[place]) in suspects else "false")
        assert row["reason"] == ""
    alloop("labels", "export", tmp_path / "labels.csv", "-C", made)
    labels = {row["sha256"]: row["label"] for row in rows(tmp_path / "labels.csv")}
    assert {sha256: row["label"] for sha256, row in found.items() if row["label"]} == labels


def test_the_same_bytes_have_the_same_row_wherever_they_are(made: Path, tmp_path: Path, monkeypatch):
    shutil.copytree(made / "photos", tmp_path / "copy")
    pool = {row["sha256"]: {**row, "file": ""} for row in predict(made, tmp_path / "pool.csv", "--pool")}
    monkeypatch.setattr(sys, "stdin", names(*sorted((tmp_path / "copy").iterdir())))
    ways = {"folder": [tmp_path / "copy"], "glob": [str(tmp_path / "copy" / "*.png")], "names": ["-"]}

    for arguments in ways.values():
        found = predict(made, tmp_path / "out.csv", *arguments)
        assert [row["file"] for row in found] == [str(path) for path in sorted((tmp_path / "copy").iterdir())]
        for row in found:
            expected = pool[row["sha256"]]
            numbers = {name for name in row if name.startswith("p")} - {"predicted"} | {"entropy"}
            for name in numbers:
                assert float(row[name]) == pytest.approx(float(expected[name]), abs=1e-6)
            assert {**row, **dict.fromkeys(numbers), "file": ""} == {**expected, **dict.fromkeys(numbers)}


def test_every_format_holds_the_same_rows(made: Path, tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    images = [made / "photos" / "0003.png", tmp_path / "broken.png", made / "photos" / "0004.png"]
    table = predict(made, tmp_path / "out.csv", *images)
    alloop("predict", "-C", made, "-o", tmp_path / "out.jsonl", "-q", *images)
    alloop("predict", "-C", made, "-o", tmp_path / "out.parquet", "-q", *images)
    program = [sys.executable, "-m", "alloop", "predict", "-C", made, *images]
    printed = subprocess.run([*program, "-q"], capture_output=True, text=True, check=True)
    document = subprocess.run([*program, "--json"], capture_output=True, text=True, check=True)

    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    parquet = pq.read_table(tmp_path / "out.parquet")
    assert [list(line) for line in lines] == [list(table[0])] * 3 == [parquet.column_names] * 3
    assert lines == json.loads(document.stdout)["images"]
    assert [json.loads(json.dumps(line)) for line in lines] == lines
    assert list(csv.DictReader(io.StringIO(printed.stdout))) == table
    for row, line, record in zip(table, lines, parquet.to_pylist(), strict=True):
        for name, value in line.items():
            if isinstance(value, float):
                assert float(row[name]) == value == pytest.approx(record[name], abs=1e-7)
            else:
                assert row[name] == {None: "", True: "true", False: "false"}.get(value, value)
                assert record[name] == value
    assert lines[1]["reason"].startswith("truncated or damaged")
    assert json.loads(document.stdout)["unreadable"] == 1


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_the_columns_are_the_same_if_no_image_can_be_read(made: Path, tmp_path: Path, form: str):
    (tmp_path / "text.png").write_text("text")
    out = tmp_path / f"out.{form}"

    done = alloop("predict", tmp_path / "text.png", "-C", made, "-o", out, "--json")

    assert done.code == 0
    assert (done.data["images"], done.data["unreadable"]) == (0, 1)
    if form == "parquet":
        good = tmp_path / "good.parquet"
        alloop("predict", made / "photos" / "0000.png", "-C", made, "-o", good)
        assert pq.read_schema(out) == pq.read_schema(good)
        assert pq.read_table(out).num_rows == 1
    else:
        text = out.read_text()
        assert "p_dog" in text
        assert "not an image" in text


def test_of_a_stream_of_names_those_that_are_gone_get_a_reason(made: Path, tmp_path: Path, monkeypatch):
    photos = sorted((made / "photos").iterdir())
    stream = [name for photo in photos for name in (photo, photo.with_suffix(".gone"))]
    monkeypatch.setattr(sys, "stdin", names(*stream, "", tmp_path))
    monkeypatch.setattr("alloop.engine.classifier.CHUNK", 7)

    done = alloop("predict", "-", "-C", made, "-o", tmp_path / "out.csv")

    found = rows(tmp_path / "out.csv")
    assert done.code == 0
    assert "60 images predicted by" in done.err
    assert "61 images could not be read, for example" in done.err
    assert [row["file"] for row in found] == [*map(str, stream), str(tmp_path)]
    assert {row["reason"] for row in found[1::2]} == {"it does not exist (any more)"}
    assert found[-1]["reason"] == "a folder, not a file"
    assert [row["predicted"] != "" for row in found[:-1]] == [True, False] * 60


def test_images_of_every_kind_are_predicted(made: Path, tmp_path: Path):
    folder = tmp_path / "kinds"
    folder.mkdir()
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    Image.new("1", (10_000, 10_000)).save(folder / "hundred-megapixels.png")
    Image.new("RGBA", (9, 5), (200, 10, 10, 40)).save(folder / "alpha.png")
    Image.new("CMYK", (9, 5), (0, 10, 200, 40)).save(folder / "cmyk.jpg")
    Image.fromarray(np.full((6, 7), 60_000, dtype=np.uint16)).save(folder / "deep.png")
    Image.new("1", (20_000, 10_000)).save(folder / "too-large.png")

    found = {Path(row["file"]).name: row for row in predict(made, tmp_path / "out.csv", folder)}

    reasons = {name: row["reason"] for name, row in found.items() if row["reason"]}
    assert list(reasons) == ["too-large.png"]
    assert "200000000 pixels, and [pool] max_pixels is 178956970" in reasons["too-large.png"]
    assert len(found) == 6
    for name in found.keys() - reasons.keys():
        assert float(found[name]["p_cat"]) + float(found[name]["p_dog"]) == pytest.approx(1)


def test_the_best_classes_are_written_on_request(made: Path, tmp_path: Path):
    photo = made / "photos" / "0001.png"
    (whole,) = predict(made, tmp_path / "out.csv", photo)

    (one,) = predict(made, tmp_path / "out.csv", photo, "--top", "1")
    (more,) = predict(made, tmp_path / "out.csv", photo, "--top", "9")

    assert list(one) == [*FIRST, "class_1", "probability_1"]
    assert list(more) == [*one, "class_2", "probability_2"]
    assert (one["class_1"], one["probability_1"]) == (whole["predicted"], whole["probability"])
    assert more["class_2"] != more["class_1"]
    assert float(more["probability_2"]) == pytest.approx(1 - float(more["probability_1"]), abs=2**-24)  # float32


def test_images_go_into_a_folder_for_each_class(made: Path, tmp_path: Path):
    shutil.copytree(made / "photos", tmp_path / "b")
    Image.new("RGB", (16, 16), (9, 200, 30)).save(tmp_path / "b" / "green.png")
    (tmp_path / "b" / "broken.png").write_text("no picture")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    images = [made / "photos", tmp_path / "b"]
    found = predict(made, tmp_path / "out.csv", *images)
    shares = sorted({round(float(row["probability"]), 6) for row in found if not row["reason"]})
    least = (shares[2] + shares[3]) / 2
    expected = {
        row["file"]: "unsure" if float(row["probability"]) < least else row["predicted"]
        for row in found
        if not row["reason"]
    }

    n_unsure = list(expected.values()).count("unsure")

    done = alloop("predict", *images, "-C", made, "--into", tmp_path / "tree", "--min-probability", f"{least!r}")

    assert done.code == 0, done.err
    assert 3 <= n_unsure < 60
    assert f"They are in {tmp_path / 'tree'}, {n_unsure} of them in unsure." in done.err
    assert "1 image could not be read" in done.err
    assert "1 file in folders was left out" in done.err
    placed = [path for path in (tmp_path / "tree").rglob("*") if path.name.endswith(".png")]
    assert all(path.is_symlink() for path in placed)
    assert {str(path.readlink()): path.parent.name for path in placed} == expected
    assert len(placed) == 121  # the same picture twice, under one file name, is there twice

    again = alloop("predict", *images, "-C", made, "--into", tmp_path / "tree")
    assert again.code == 1
    assert "is not empty" in again.err


def test_copies_are_files_of_their_own(made: Path, tmp_path: Path):
    done = alloop("predict", "--pool", "-C", made, "--into", tmp_path / "tree", "--copy", "-q")

    assert (done.code, done.out, done.err) == (0, "", "")
    copies = list((tmp_path / "tree").rglob("*.png"))
    assert not any(path.is_symlink() for path in copies)
    hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in copies}
    assert hashes == {hashlib.sha256(path.read_bytes()).hexdigest() for path in (made / "photos").iterdir()}
    assert all(path.stem.split("-")[-1] == sha256_of(path)[:8] for path in copies)


def test_a_full_disk_leaves_the_old_file_and_no_litter(made: Path, tmp_path: Path, monkeypatch):
    old = tmp_path / "out.csv"
    predict(made, old, made / "photos" / "0000.png")
    kept = old.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    gone = [f"/{hashlib.sha256(bytes([n % 256, n // 256])).hexdigest()}.png" for n in range(5000)]
    ended = []
    try:
        for form in ("csv", "jsonl", "parquet"):
            monkeypatch.setattr(sys, "stdin", names(*gone))
            ended.append(alloop("predict", "-", "-C", made, "-o", tmp_path / f"out.{form}"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    for done in ended:
        assert done.code == 1
        assert "could not be written: it is larger than the largest file allowed here" in done.err
    assert old.read_bytes() == kept
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert len(predict(made, old, "--pool")) == 60  # an existing file is replaced as a whole


def test_a_round_has_its_own_model(made: Path, tmp_path: Path):
    first, newest = (predict(made, tmp_path / "out.csv", "--pool", *more) for more in (["--round", "1"], []))

    assert {row["model"][:3] for row in first} == {"r1-"}
    assert {row["model"][:3] for row in newest} == {"r2-"}
    without = alloop("predict", "--pool", "--round", "0", "-C", made)
    assert (without.code, "Round 0 has no model." in without.err) == (1, True)


def test_without_scores_nobody_knows_what_is_suspect(made: Path, tmp_path: Path):
    folder = shutil.copytree(made, tmp_path / "pets")
    (folder / "runs" / "round-0002" / "scores.parquet").unlink()

    done = alloop("predict", made / "photos", "-C", folder, "-o", tmp_path / "out.csv", "--json")

    assert "No image can be marked as suspect" in done.data["notes"][0]
    assert "alloop score" in done.err
    assert {row["suspect"] for row in rows(tmp_path / "out.csv")} == {""}


def test_a_class_that_was_added_since_is_named(made: Path, tmp_path: Path):
    folder = shutil.copytree(made, tmp_path / "pets")
    changed = make_settings(**SETTINGS, project={"classes": ["bird", "cat", "dog"]})
    (folder / "alloop.toml").write_text(render_toml(changed))

    done = alloop("predict", made / "photos", "-C", folder, "-o", tmp_path / "out.csv")

    assert done.code == 0
    assert "was trained before these classes were added: bird." in done.err
    assert list(rows(tmp_path / "out.csv")[0])[-2:] == ["p_cat", "p_dog"]


def test_a_missing_image_of_the_pool_has_a_row(made: Path, tmp_path: Path):
    folder = shutil.copytree(made, tmp_path / "pets")
    lost = made / "photos" / "0007.png"
    data = lost.read_bytes()
    lost.unlink()
    try:
        assert alloop("pool", "check", "-C", folder).code == 0
        found = {row["file"]: row for row in predict(folder, tmp_path / "out.csv", "--pool")}
    finally:
        lost.write_bytes(data)

    assert len(found) == 60
    assert found[str(lost)]["reason"] == "the file is missing"
    assert found[str(lost)]["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_model_that_cannot_be_read_is_refused_with_the_way_out(made: Path, tmp_path: Path):
    fresh = make_project(tmp_path, 20, name="fresh")
    none = alloop("predict", "--pool", "-C", fresh.folder)
    assert none.code == 1
    assert "There is no model yet.\n`alloop run` trains one" in none.err

    folder = shutil.copytree(made, tmp_path / "pets")
    about = folder / "runs" / "round-0002" / "model" / "model.json"
    about.write_text(about.read_text().replace('"format": 3', '"format": 1'))
    _set_checksum(folder, sha256_of(about))
    old = alloop("predict", "--pool", "-C", folder)
    assert old.code == 1
    assert "was written by an alloop that is too old" in old.err
    assert "alloop train" in old.err


def _set_checksum(folder: Path, sha256: str) -> None:
    import contextlib
    import sqlite3

    with contextlib.closing(sqlite3.connect(folder / "alloop.db")) as connection, connection:
        connection.execute(
            "UPDATE model_version SET sha256 = ? WHERE id = (SELECT max(id) FROM model_version)", (sha256,)
        )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Name images, or give --pool"),
        (["--pool", "a.png"], "not both"),
        (["-", "a.png"], "name no other images"),
        (["--pool", "--out", "x.txt"], "must be .csv, .parquet or .jsonl"),
        (["--pool", "--min-probability", "0.5"], "needs --into"),
        (["--pool", "--min-probability", "1.5", "--into", "x"], "1.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(made: Path, arguments: list[str], words: str):
    done = alloop("predict", "-C", made, *arguments)

    assert done.code == 2
    assert words in done.err


def test_a_name_that_leads_to_nothing_is_refused_before_any_work(made: Path, tmp_path: Path):
    for images in ([tmp_path / "nothing.png"], [tmp_path / "*.jpg"], [tmp_path]):
        done = alloop("predict", *images, "-C", made, "-o", tmp_path / "out.csv")
        assert done.code == 1
        assert str(tmp_path) in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_class_called_unsure_is_not_mixed_with_unsure_images(tmp_path: Path):
    project: Project = make_project(tmp_path, 40, classes=("unsure", "x:y"), loop={"batch_size": 12})
    for _ in range(2):
        assert alloop("run", "-C", project.folder).code == 0

    refused = alloop("predict", "--pool", "-C", project.folder, "--into", tmp_path / "t", "--min-probability", "0.5")
    done = alloop("predict", "--pool", "-C", project.folder, "--into", tmp_path / "t")

    assert refused.code == 1
    assert "there is a class 'unsure'" in refused.err
    assert done.code == 0
    assert {path.name for path in (tmp_path / "t").iterdir() if path.is_dir()} == {"unsure", "x%3Ay"}


def test_a_terminal_shows_a_line_for_each_image():
    out = io.StringIO()
    columns = {
        "file": ["/a.png", "/b.png"],
        "predicted": ["cat", None],
        "probability": [0.9312, None],
        "suspect": [True, None],
        "label": ["dog", None],
        "reason": [None, "empty file"],
    }

    TerminalLines(out).write(pa.RecordBatch.from_pydict(columns))

    assert out.getvalue() == "/a.png  cat  0.931  suspect  (label: dog)\n/b.png  not readable: empty file\n"


def test_the_threshold_for_suspects_lies_between_two_scores_of_the_pool():
    ood = np.arange(10, dtype=np.float32)

    assert suspect_bound(ood, 0.8) == 7
    assert suspect_threshold(ood, 0.8) == 7.5
    assert 9 < suspect_threshold(ood, 0.99) < 9.0001
    assert suspect_threshold(ood[:0], 0.99) is None


def test_a_deleted_cache_changes_no_number(made: Path, tmp_path: Path):
    folder = tmp_path / "pets"
    shutil.copytree(made, folder)
    before = predict(folder, tmp_path / "before.csv", "--pool")
    shutil.rmtree(folder / "cache")
    pool_features._last.clear()  # as in another process

    assert predict(folder, tmp_path / "after.csv", "--pool") == before


def test_a_deleted_cache_comes_back_although_an_image_of_the_graph_is_junk_now(made: Path, tmp_path: Path):
    folder = tmp_path / "pets"
    shutil.copytree(made, folder)
    rest = predict(folder, tmp_path / "before.csv", "--pool")
    rest.remove(gone := next(row for row in rest if not row["label"]))
    assert alloop("pool", "junk", gone["file"], "--reason", "blurred", "-C", folder).code == 0
    shutil.rmtree(folder / "cache")
    pool_features._last.clear()  # as in another process

    found = predict(folder, tmp_path / "after.csv", *(row["file"] for row in rest))
    probabilities = [[float(row["p_dog"]) for row in lines] for lines in (found, rest)]
    np.testing.assert_allclose(*probabilities, atol=1e-6)
