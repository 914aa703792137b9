"""Why an image was asked about, and whether a choice can be made again."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import alloop
from factories import at_bench, make_project, tools_of, write_pool, write_settings
from test_strategies_in_loop import ALONE, CLASSES, batch, ready

from alloop.engine.features import run_features
from alloop.engine.jobs import FeatureJob
from alloop.engine.score_file import read_scores
from alloop.engine.settings import EngineSettings
from alloop.files import sha256_of
from alloop.loop.intake.ingest import add_images
from alloop.loop.rounds.runner import RunOptions, run
from alloop.project import Project
from alloop.records import Reason, Split
from alloop.seeds import derive_seed, tie_keys
from alloop.store.annotations import list_labels
from alloop.store.images import find_refs, list_refs
from alloop.store.queries import list_queries
from alloop.store.rounds import find_round
from alloop.store.selections import list_selections
from alloop.store.session import reading


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two rounds of margins, the second one drawn by a power. Only to be read."""
    settings = {"strategy": "margin", "perturb": "power", "random_fraction": 0.34}
    project = make_project(tmp_path_factory.mktemp("asked"), n=50, classes=CLASSES, pool=ALONE, acquisition=settings)
    run(tools_of(project), RunOptions(rounds=2))
    return project


def explained(project: Project, name: str) -> Any:
    return alloop("explain", name, "--json", "-C", project.folder).data


def test_an_image_is_explained_by_the_round_that_asked_about_it(asked: Project):
    query = next(query for query in batch(asked, 1) if query.reason is Reason.ACQUIRED)

    found = explained(asked, query.sha256[:10])

    assert found["asked"] == [
        {
            "round_number": 1, "reason": "acquired", "strategy": "margin", "rank": query.rank, "score": query.score,
            "probability": query.probability, "draw_number": query.draw_number, "draw_pool": 36, "status": "answered",
            "notes": [],
        }
    ]  # fmt: skip
    assert found["standing"] == f"It is labeled: {found['label']}."
    assert (found["round_number"], found["model"][:3]) == (1, "r1-")
    assert next(iter(found["probs"])) == query.predicted
    assert sum(found["probs"].values()) == pytest.approx(1, abs=1e-5)
    assert -sum(p * math.log(p) for p in found["probs"].values()) == pytest.approx(found["entropy"], abs=1e-4)
    scores = read_scores(asked.paths.scores(1))
    mine = scores.image_ids.tolist().index(query.image_id)
    for name, values in scores.uncertainty.items():
        better = sum(value > values[mine] for value in values)
        assert found["ranks"][name] == {"value": float(values[mine]), "rank": 1 + better, "of": len(values)}


def test_the_nearest_labeled_images_are_those_of_the_highest_cosine(asked: Project):
    query = batch(asked, 1)[0]
    with reading(asked.database) as session:
        labeled = {label.sha256: label.consensus.value for label in list_labels(session, Split.TRAIN)}
        refs = [ref for ref in list_refs(session, Split.TRAIN) if ref.sha256 in labeled or ref.sha256 == query.sha256]
    rows = run_features(FeatureJob(EngineSettings.of(asked.config), tuple(refs), asked.paths.cache)).features.astype(
        np.float64
    )
    mine = next(row for ref, row in zip(refs, rows, strict=True) if ref.sha256 == query.sha256)
    cosines = {
        ref.sha256: float(row @ mine / np.linalg.norm(row) / np.linalg.norm(mine))
        for ref, row in zip(refs, rows, strict=True)
        if ref.sha256 != query.sha256
    }
    expected = sorted(cosines, key=lambda sha256: -cosines[sha256])[:5]

    near = explained(asked, query.sha256)["neighbors"]

    assert [each["sha256"] for each in near] == expected
    assert [each["similarity"] for each in near] == pytest.approx([cosines[sha256] for sha256 in expected])
    assert [each["class_name"] for each in near] == [labeled[sha256] for sha256 in expected]


def test_an_image_is_found_by_hash_path_or_name_and_said_in_words(asked: Project):
    query = next(query for query in batch(asked, 0) if query.reason is Reason.SEED)
    path = explained(asked, query.sha256)["path"]

    said = [alloop("explain", name, "-C", asked.folder).out for name in (query.sha256[:8], path, Path(path).name)]

    assert said[0] == said[1] == said[2]
    assert f"Round 0 asked about it as number {query.rank}: chosen by max-herding (seed), score" in said[0]
    assert "margin needs a model, and there is none yet" in said[0]


@pytest.mark.parametrize(
    ("name", "because"), [("none.png", "No image of the pool is called none.png"), ("abc", "No image")]
)
def test_an_image_that_is_not_there_is_said(asked: Project, name: str, because: str):
    refused = alloop("explain", name, "-C", asked.folder)

    assert (refused.code, because in refused.err) == (1, True)


def test_a_name_of_several_images_is_refused_with_the_choices(tmp_path: Path):
    project = make_project(tmp_path, n=2)
    write_pool(project.folder / "more", 2, first=0, classes=("cat", "dog"))
    (project.folder / "more" / "0000.png").write_bytes(
        (project.folder / "photos" / "0001.png").read_bytes()[:-1] + b"x"
    )
    write_pool(project.folder / "other", 1, first=7)
    (project.folder / "other" / "0007.png").rename(project.folder / "other" / "0000.png")
    at_bench(project, add_images, [str(project.folder / "other")])

    refused = alloop("explain", "0000.png", "-C", project.folder)

    assert "2 images are called 0000.png" in refused.err


def test_an_image_says_how_it_stands_now(tmp_path: Path):
    project = make_project(tmp_path, n=40, pool=ALONE, labeling={"backend": "csv"})
    run(tools_of(project), RunOptions(rounds=1))
    with reading(project.database) as session:
        holdout = list_refs(session, Split.HOLDOUT)
        asked_about = {query.image_id for query in batch(project, 0)}
        free = next(ref for ref in list_refs(session, Split.TRAIN) if ref.image_id not in asked_about)

    assert explained(project, next(iter(batch(project, 0))).sha256)["standing"] == "It is being asked about now."
    assert "being asked" in explained(project, holdout[0].sha256)["standing"]
    assert explained(project, free.sha256)["standing"] == "It can be asked about."
    assert explained(project, free.sha256)["note"] == "No training image has a label yet."
    filtered = write_settings(project, pool=ALONE, labeling={"backend": "csv"}, acquisition={"only": "x/*"})
    assert "does not match [acquisition] only" in explained(filtered, free.sha256)["standing"]


def test_the_page_holds_its_pictures(asked: Project, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    monkeypatch.setattr(click, "launch", lambda url: opened.append(url) or 0)
    query = batch(asked, 1)[0]

    data = alloop("explain", query.sha256, "--open", "--json", "-C", asked.folder).data

    page = Path(data["page"]).read_text()
    assert opened == [Path(data["page"]).as_uri()]
    assert page.count("data:image/png;base64,") == 6  # the image and five neighbors
    assert 'src="http' not in page
    assert "margin" in page


@pytest.mark.parametrize(
    "acquisition",
    [
        {"strategy": "entropy"},
        {"strategy": "margin", "perturb": "softmax"},
        {"strategy": "badge", "class_quota": 0.5},
        {"strategy": "uherding", "max_candidates": 20},
        {"strategy": "dropquery", "only": "*[02468].png"},
        {"strategy": "random"},
        {"strategy": "typiclust", "cold_start": "random"},
    ],
    ids=lambda acquisition: acquisition["strategy"],
)
def test_every_round_can_be_chosen_again_after_labels_images_and_rounds_came(tmp_path: Path, acquisition: Any):
    project = make_project(tmp_path, n=50, classes=CLASSES, pool=ALONE, acquisition=acquisition)
    run(tools_of(project), RunOptions(rounds=3))
    write_pool(project.folder / "more", 9, classes=CLASSES, first=100)
    at_bench(project, add_images, [str(project.folder / "more")])
    run(tools_of(project), RunOptions(rounds=1))

    for number in range(4):
        done = alloop("replay", str(number), "--json", "-C", project.folder)

        assert (done.code, done.data["changes"]) == (0, [])
        assert done.data["n"] == done.data["n_same"] == len(batch(project, number))
        assert done.data["is_equal"] is True


def test_a_replay_counts_the_flags_of_its_choice(tmp_path: Path):
    project = ready(tmp_path)
    assert alloop("select", "--strategy", "k-center", "-n", "4", "-C", project.folder).code == 0

    done = alloop("replay", "1", "-C", project.folder)

    assert (done.code, done.out) == (0, "Round 1: k-center chose the same 4 images again.\n")


def test_a_replay_records_nothing(asked: Project):
    def events() -> int:
        with asked.database.connect() as connection:
            return int(connection.exec_driver_sql("SELECT count(*) FROM event").scalar_one())

    before = events()
    alloop("replay", "1", "-C", asked.folder)

    assert events() == before


def test_a_replay_does_not_depend_on_what_became_of_the_database(tmp_path: Path):
    project = make_project(tmp_path, n=40, pool=ALONE)
    run(tools_of(project), RunOptions(rounds=2))
    with project.database.begin() as connection:
        connection.exec_driver_sql("DELETE FROM event")
        # As if one label that round 1 knew of was never given.
        connection.exec_driver_sql(
            "UPDATE annotation SET recorded_at = '2999-01-01' WHERE id = "
            "(SELECT min(a.id) FROM annotation a JOIN query q ON q.id = a.query_id WHERE q.reason = 'seed')"
        )
        # And as if images outside of the holdout were near copies of each other.
        connection.exec_driver_sql(
            "UPDATE near_duplicate SET group_id = (SELECT min(id) FROM image WHERE split = 'train') "
            "WHERE image_id IN (SELECT id FROM image WHERE split = 'train' AND id > 20)"
        )

    for number in (0, 1):
        done = alloop("replay", str(number), "--json", "-C", project.folder)

        assert (done.code, done.data["is_equal"], done.data["changes"]) == (0, True, [])


def test_what_changed_is_said_with_exit_code_1(tmp_path: Path):
    project = make_project(tmp_path, n=40, pool=ALONE)
    run(tools_of(project), RunOptions(rounds=1))
    shutil.rmtree(project.paths.cache)
    at = ("-C", project.folder)
    with reading(project.database) as session:
        asked = find_refs(session, {query.image_id for query in list_queries(session)})
        gone = next(ref for ref in list_refs(session, Split.TRAIN) if ref.image_id not in asked)
    Path(gone.path).unlink()

    changed = alloop("replay", "0", *at)

    assert changed.code == 1
    assert "1 candidates cannot be read any more: " in changed.out
    # `pool check` records that the file is missing; the candidate still counts.
    alloop("pool", "check", *at)
    assert "1 candidates cannot be read any more: " in alloop("replay", "0", *at).out


def test_scores_are_enough_to_replay_a_choice_from_images_that_are_gone(tmp_path: Path):
    project = make_project(tmp_path, n=40, pool=ALONE, acquisition={"strategy": "margin"})
    run(tools_of(project), RunOptions(rounds=2))
    for file in (project.folder / "photos").iterdir():
        file.unlink()

    done = alloop("replay", "1", "--json", "-C", project.folder)

    assert (done.code, done.data["n_same"], done.data["is_equal"]) == (0, len(batch(project, 1)), True)


def test_a_choice_without_a_file_of_its_candidates_cannot_be_repeated(tmp_path: Path):
    project = make_project(tmp_path, n=30, pool=ALONE)
    run(tools_of(project), RunOptions(rounds=1))
    project.paths.inputs(0).write_bytes(b"damaged")

    damaged = alloop("replay", "0", "-C", project.folder)

    assert damaged.code == 1
    assert "inputs.parquet are missing or damaged" in damaged.err
    with project.database.begin() as connection:  # as an upgrade leaves the rounds that an earlier alloop chose
        connection.exec_driver_sql("UPDATE selection SET path = NULL, sha256 = NULL")

    early = alloop("replay", "0", "-C", project.folder)

    assert early.code == 1
    assert "Round 0 cannot be replayed: an earlier alloop chose its images" in early.err


def test_the_file_of_a_choice_holds_its_candidates_with_their_keys_and_what_was_known(asked: Project):
    table = pq.read_table(asked.paths.inputs(1)).to_pydict()
    with reading(asked.database) as session:
        chosen = list_selections(session)[1]
        first = {query.image_id for query in batch(asked, 0)}
        holdout = {ref.image_id for ref in list_refs(session, Split.HOLDOUT)}
        sha256s = {ref.image_id: ref.sha256 for ref in list_refs(session)}
        seed = find_round(session, 1).seed
    images = table["image_id"]

    candidates = {image: key for image, key in zip(images, table["key"], strict=True) if key is not None}
    known = {image: label for image, label in zip(images, table["label"], strict=True) if label is not None}

    assert (chosen.path, chosen.sha256) == ("runs/round-0001/inputs.parquet", sha256_of(asked.paths.inputs(1)))
    assert (chosen.n, (chosen.settings or {})["perturb"]) == (6, "power")
    assert known.keys() == first
    assert set(known.values()) <= {0, 1, 2}
    assert candidates.keys() == sha256s.keys() - first - holdout
    keys = tie_keys([sha256s[image] for image in candidates], derive_seed(seed, "ties"))
    assert list(candidates.values()) == keys.tolist()


def test_a_round_whose_scores_are_gone_cannot_be_chosen_again(tmp_path: Path):
    project = make_project(tmp_path, n=30, pool=ALONE)
    run(tools_of(project), RunOptions(rounds=2))
    project.paths.scores(1).unlink()

    refused = alloop("replay", "1", "-C", project.folder)

    assert refused.code == 1
    assert "missing or damaged" in refused.err
    assert alloop("replay", "7", "-C", project.folder).code == 1


def test_another_version_of_a_library_is_said_and_the_same_images_count(tmp_path: Path):
    project = make_project(tmp_path, n=30, pool=ALONE)
    run(tools_of(project), RunOptions(rounds=1))
    with project.database.begin() as connection:
        said = connection.exec_driver_sql("SELECT library_versions FROM selection").scalar_one()
        versions = json.dumps({**json.loads(said), "numpy": "0.1"})
        connection.exec_driver_sql("UPDATE selection SET library_versions = ?", (versions,))

    done = alloop("replay", "0", "-C", project.folder)

    assert done.code == 0
    assert "numpy was 0.1 and is " in done.out
