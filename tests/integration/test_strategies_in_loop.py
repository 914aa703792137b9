"""Every way of choosing, in the real loop, from alloop.toml to recorded queries."""

import collections
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import alloop
from factories import at_bench, make_project, tools_of, write_settings
from PIL import Image

from alloop.composition import STRATEGIES, Need
from alloop.engine.score_file import read_scores
from alloop.loop.intake.ingest import add_images
from alloop.loop.rounds.runner import RunOptions, run
from alloop.project import Project
from alloop.records import Reason
from alloop.store.queries import QueryRecord, list_queries
from alloop.store.rounds import find_round
from alloop.store.selections import SelectionRecord, list_selections
from alloop.store.session import reading

ALONE = {"near_duplicates": False}  # every image its own group
CLASSES = ("cat", "dog", "owl")
TRUNK = """
from torch import nn
from alloop.models.backbones import Backbone

def tiny():
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Backbone(nn.Sequential(*layers), n_features=8, image_size=16)
"""


def batch(project: Project, number: int) -> list[QueryRecord]:
    """Return the images that a round asked about besides the holdout, by rank."""
    with reading(project.database) as session:
        queries = list_queries(session, find_round(session, number).id)
    return [query for query in queries if query.reason is not Reason.HOLDOUT]


def selected(project: Project) -> SelectionRecord:
    """Return the selection of the newest round that chose images."""
    with reading(project.database) as session:
        return list(list_selections(session).values())[-1]


def ready(tmp_path: Path, n: int = 50, **sections: Any) -> Project:
    """A workspace whose round 1 is scored, to be selected by `alloop select`."""
    project = make_project(tmp_path, n=n, pool=ALONE, **sections)
    run(tools_of(project), RunOptions(rounds=1))
    assert alloop("train", "-C", project.folder).code == 0
    assert alloop("score", "-C", project.folder).code == 0
    return project


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_rounds_run_with_every_strategy(tmp_path: Path, strategy: str):
    acquisition = {"strategy": strategy, "random_fraction": 0.34}
    project = make_project(tmp_path, n=44, classes=CLASSES, pool=ALONE, acquisition=acquisition)

    run(tools_of(project), RunOptions(rounds=2))

    first, second = batch(project, 0), batch(project, 1)
    assert len({query.image_id for query in [*first, *second]}) == 12
    rule = STRATEGIES[strategy]
    seeded_by = strategy if rule.needs == {Need.FEATURES} else "max-herding"
    if strategy == "random":
        assert {(query.reason, query.strategy) for query in first} == {(Reason.SEED, "random")}
        assert {(query.reason, query.strategy) for query in second} == {(Reason.RANDOM, "random")}
        return
    assert collections.Counter((query.reason, query.strategy) for query in first) == {
        (Reason.RANDOM, "random"): 2,
        (Reason.SEED, seeded_by): 4,
    }
    assert collections.Counter((query.reason, query.strategy) for query in second) == {
        (Reason.RANDOM, "random"): 2,
        (Reason.ACQUIRED, strategy): 4,
    }
    assert all(query.score is not None for query in second if query.reason is Reason.ACQUIRED)
    assert all(query.predicted in CLASSES for query in second)
    # 44 images, 8 of them holdout, 6 asked in round 0.
    assert sorted((q.draw_number, q.draw_pool) for q in second if q.reason is Reason.RANDOM) == [(1, 30), (2, 30)]


@pytest.mark.parametrize("strategy", ["badge", "batchbald", "uherding", "dropquery", "typiclust"])
def test_a_trained_trunk_serves_strategies_that_see_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "ask_trunk.py").write_text(TRUNK)
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    model = {"backbone": "ask_trunk:tiny", "mode": "finetune"}
    project = make_project(
        tmp_path, n=36, pool=ALONE, acquisition={"strategy": strategy}, model=model, train={"epochs": 1}
    )

    run(tools_of(project), RunOptions(rounds=2))

    assert {query.strategy for query in batch(project, 1)} == {strategy, "random"}
    has_features = (project.folder / "runs/round-0001/features.npy").exists()
    assert has_features == (Need.FEATURES in STRATEGIES[strategy].needs)


@pytest.mark.parametrize("perturb", ["power", "softmax", "soft-rank"])
@pytest.mark.parametrize("strategy", ["entropy", "margin"])
def test_a_perturbed_score_is_drawn_and_every_draw_has_its_probability(tmp_path: Path, strategy: str, perturb: str):
    settings = {"strategy": strategy, "perturb": perturb, "random_fraction": 0.34, "explore": 0.2}
    project = make_project(tmp_path, n=50, pool=ALONE, acquisition=settings)

    run(tools_of(project), RunOptions(rounds=2))

    asked = sorted(batch(project, 1), key=lambda query: query.draw_number or 0)
    assert [query.draw_number for query in asked] == [1, 2, 3, 4, 5, 6]
    assert {query.draw_pool for query in asked} == {36}  # 50 without 8 of the holdout and 6 of round 0
    assert [query.probability for query in asked[:2]] == [2 / 36, 2 / 36]
    for query in asked[2:]:
        assert query.probability is not None
        # Of the weight, a fifth is spread evenly over the 34 that the uniform draws left.
        assert 0.2 / 34 <= query.probability < 1


def test_the_cold_start_is_typical_first_and_says_so(tmp_path: Path):
    project = make_project(tmp_path, n=40, pool=ALONE)

    run(tools_of(project), RunOptions(rounds=1))

    said = selected(project)
    assert ((said.settings or {})["strategy"], said.strategy) == ("entropy-spread", "max-herding")
    assert list(said.notes) == [
        "entropy-spread needs a model, and there is none yet: max-herding chose typical images by features."
    ]
    assert "max-herding chose typical images" in " ".join(alloop("status", "-v", "-C", project.folder).out.split())
    drawn = [query for query in batch(project, 0) if query.reason is Reason.RANDOM]
    assert [(query.draw_number, query.probability) for query in drawn] == [(1, 1 / 32)]
    assert all(query.probability is None for query in batch(project, 0) if query.reason is Reason.SEED)


@pytest.mark.parametrize(
    ("acquisition", "because"),
    [
        ({"cold_start": "random"}, ["There is no model yet, and [acquisition] cold_start = random: "]),
        ({"strategy": "random"}, []),
    ],
)
def test_the_first_batch_is_uniform_when_that_is_asked_for(tmp_path: Path, acquisition: Any, because: list[str]):
    project = make_project(tmp_path, n=40, pool=ALONE, acquisition=acquisition)

    run(tools_of(project), RunOptions(rounds=1))

    assert {(query.reason, query.strategy, query.probability) for query in batch(project, 0)} == {
        (Reason.SEED, "random", 6 / 32)
    }
    assert [note[: len(start)] for note, start in zip(selected(project).notes, because, strict=True)] == because


def test_without_learned_weights_the_first_batch_is_uniform(tmp_path: Path):
    model = {"backbone": "mobilenet_v3_small", "weights": "none", "image_size": 32}
    project = make_project(tmp_path, n=20, pool=ALONE, model=model)

    run(tools_of(project), RunOptions(rounds=1))

    assert {query.strategy for query in batch(project, 0)} == {"random"}
    assert "no learned weights" in selected(project).notes[0]


def test_a_quota_bounds_what_one_predicted_class_gets(tmp_path: Path):
    acquisition = {"strategy": "entropy", "random_fraction": 0.0}
    project = ready(tmp_path, n=80, classes=CLASSES, loop={"batch_size": 9}, acquisition=acquisition)
    free = alloop("select", "-C", project.folder)
    assert free.code == 0
    unbounded = collections.Counter(query.predicted for query in batch(project, 1))

    other = ready(
        tmp_path / "other",
        n=80,
        classes=CLASSES,
        loop={"batch_size": 9},
        acquisition={**acquisition, "class_quota": 0.34},
    )
    assert alloop("select", "-C", other.folder).code == 0
    asked = batch(other, 1)

    counts = collections.Counter(query.predicted for query in asked)
    assert max(unbounded.values()) > 4  # else the quota had nothing to do
    assert len(asked) == 9
    assert max(counts.values()) <= math.ceil(0.34 * 9)
    scores = read_scores(other.paths.scores(1))
    entropy = dict(zip(scores.image_ids.tolist(), scores.entropy.tolist(), strict=True))
    by_class: dict[str | None, list[float]] = {}
    for image_id, predicted in zip(scores.image_ids.tolist(), scores.predicted, strict=True):
        by_class.setdefault(predicted, []).append(entropy[image_id])
    for name, n in counts.items():
        # Of each class the most uncertain ones.
        mine = sorted((entropy[query.image_id] for query in asked if query.predicted == name), reverse=True)
        np.testing.assert_allclose(mine, sorted(by_class[name], reverse=True)[:n])


def test_a_cap_looks_at_a_uniform_sample_and_says_so(tmp_path: Path):
    settings = {"max_candidates": 12, "strategy": "k-center", "random_fraction": 0.5}
    project = make_project(tmp_path, n=50, pool=ALONE, acquisition=settings)

    run(tools_of(project), RunOptions(rounds=2))

    asked = batch(project, 1)
    assert len(asked) == 6
    drawn = [query for query in asked if query.reason is Reason.RANDOM]
    # 3 of the 12 looked at, which are 12 of the 36 that could be asked about.
    assert {query.draw_pool for query in drawn} == {12}
    assert [query.probability for query in drawn] == pytest.approx([3 / 36] * 3)
    assert "uniform sample of 12 of 36 images" in selected(project).notes[0]


@pytest.mark.parametrize("strategy", ["badge", "k-center"])
def test_a_strategy_that_needs_too_much_memory_is_refused_with_the_ways_out(tmp_path: Path, strategy: str):
    project = ready(tmp_path, acquisition={"strategy": strategy})

    refused = alloop("select", "--max-ram", "0.0001", "-C", project.folder)

    assert refused.code == 1
    assert f"{strategy} would take about" in refused.err
    assert "max_candidates" in refused.err
    assert "--max-ram" in refused.err
    assert batch(project, 1) == []
    assert alloop("select", "-C", project.folder).code == 0


def test_select_can_be_told_another_strategy_and_number(tmp_path: Path):
    project = ready(tmp_path)

    done = alloop("select", "--strategy", "coreset", "-n", "3", "--json", "-C", project.folder)

    assert done.data == {"round": 1, "queries": 3, "strategy": "k-center", "notes": []}
    assert {query.strategy for query in batch(project, 1)} <= {"k-center", "random"}
    assert len(batch(project, 1)) == 3


def test_what_was_not_kept_at_scoring_is_said_with_the_command_that_keeps_it(tmp_path: Path):
    project = ready(tmp_path)
    at = ("-C", project.folder)

    refused = alloop("select", "--strategy", "badge", *at)
    assert (refused.code, "alloop score --strategy badge" in refused.err) == (1, True)

    assert alloop("score", "--strategy", "badge", *at).code == 0
    assert alloop("select", "--strategy", "badge", *at).code == 0


def test_an_unknown_strategy_is_refused_by_name(tmp_path: Path):
    project = ready(tmp_path)

    refused = alloop("select", "--strategy", "entropi", "-C", project.folder)

    assert refused.code == 2
    assert "did you mean 'entropy'" in refused.err


def test_near_copies_send_the_largest_of_them_in_every_round_and_to_the_holdout(tmp_path: Path):
    """Most pixels, then most bytes; with a model and without one, drawn at random or chosen."""
    project = make_project(tmp_path, n=60, pool=ALONE, acquisition={"random_fraction": 0.5}, add=False)
    photos = sorted((project.folder / "photos").iterdir())
    for photo in photos[1::6]:  # enlarged: of every third pair the second
        Image.open(photo).resize((20, 20)).save(photo)
    at_bench(project, add_images, [str(project.folder / "photos")])
    with project.database.begin() as connection:
        connection.exec_driver_sql("UPDATE near_duplicate SET group_id = image_id - 1 WHERE image_id % 2 = 0")
    run(tools_of(project), RunOptions(rounds=2))
    with project.database.connect() as connection:
        groups = dict(connection.exec_driver_sql("SELECT image_id, group_id FROM near_duplicate").fetchall())
        sizes = (
            "SELECT image.id, width * height * 1000000 + size FROM image JOIN image_location l ON image_id = image.id"
        )
        largest = dict(connection.exec_driver_sql(sizes).fetchall())

    for number in (0, 1):
        with reading(project.database) as session:
            asked = list_queries(session, find_round(session, number).id)
        assert len({groups[query.image_id] for query in asked}) == len(asked) >= 6
        for query in asked:
            copies = [image_id for image_id in largest if groups[image_id] == groups[query.image_id]]
            assert largest[query.image_id] == max(largest[image_id] for image_id in copies)


def test_strategies_are_listed_with_what_they_need(tmp_path: Path):
    project = make_project(tmp_path, n=4, model={"uncertainty": "single", "members": None})
    at = ("-C", project.folder)

    listed = {row["name"]: row for row in alloop("strategies", "--json", *at).data}

    assert set(listed) >= set(STRATEGIES)
    assert listed["badge"]["needs"] == ["every member's predictions", "features"]
    assert listed["entropy-spread"]["is_set"] is True
    assert {name for name, row in listed.items() if not row["possible"]} == {
        "mutual-information", "variation-ratio", "batchbald"
    }  # fmt: skip
    assert "(not with this model)" in alloop("strategies", *at).out
    assert alloop("strategies", "-C", tmp_path).code == 0  # where there is no workspace


def test_the_same_seed_chooses_the_same_images_whatever_the_order_of_adding(tmp_path: Path):
    chosen = []
    for name, backwards in (("a", False), ("b", True)):
        acquisition = {"strategy": "k-center"}
        project = make_project(tmp_path / name, n=30, pool=ALONE, acquisition=acquisition, add=False)
        for path in sorted((project.folder / "photos").iterdir(), reverse=backwards):
            at_bench(project, add_images, [str(path)])
        run(tools_of(project), RunOptions(rounds=2))
        chosen.append([(query.sha256, query.score) for number in (0, 1) for query in batch(project, number)])

    assert chosen[0] == chosen[1]


def test_the_settings_of_a_round_are_those_it_began_with(tmp_path: Path):
    project = ready(tmp_path)

    write_settings(project, acquisition={"strategy": "margin"}, pool=ALONE)
    assert alloop("select", "-C", project.folder).code == 0

    assert {query.strategy for query in batch(project, 1)} <= {"entropy-spread", "random"}
