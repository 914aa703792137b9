"""Questions asked by hand, and junk, in a real workspace whose people fill in sheets."""

from collections import Counter
from pathlib import Path

import pytest
from asked import SHEETS
from asked import asked_folder as asked_folder
from asked import project as project
from command_line import Outcome, alloop
from factories import at_bench, copy_project, make_project

from alloop.errors import LabelError
from alloop.labeling.sheets import list_sheets, read_sheet, write_sheet
from alloop.loop.asking import people
from alloop.loop.asking.by_hand import ask_by_hand, take_back
from alloop.loop.asking.junk import mark_junk, unmark_junk
from alloop.loop.rounds import steps
from alloop.loop.rounds.training import read_labels
from alloop.project import Project
from alloop.records import QueryStatus, Reason, Split
from alloop.store.images import find_refs, list_refs
from alloop.store.queries import QueryRecord, list_queries
from alloop.store.session import reading
from alloop.store.workspace import list_events


def command(project: Project, *arguments: object) -> Outcome:
    return alloop(*map(str, arguments), "-C", project.folder)


def queries(project: Project) -> list[QueryRecord]:
    with reading(project.database) as session:
        return list_queries(session)


def unasked(project: Project) -> list[tuple[int, Path]]:
    """Images of the training pool that nobody was asked about, with their files."""
    asked = {query.image_id for query in queries(project)}
    with reading(project.database) as session:
        refs = list_refs(session, Split.TRAIN, labeled=False)
    return [(ref.image_id, Path(ref.path)) for ref in refs if ref.image_id not in asked]


def fill(project: Project) -> None:
    for path in list_sheets(project.folder / "sheets"):
        sheet = read_sheet(path)
        rows = [{**row, "label": row["label"] or ("cat", "dog")[at % 2]} for at, row in enumerate(sheet.rows)]
        write_sheet(path, sheet.header, rows)


def n_tasks(project: Project) -> int:
    return sum(len(read_sheet(path).rows) for path in list_sheets(project.folder / "sheets"))


def test_images_asked_for_by_hand_are_sent_at_once_or_with_the_next_run(project: Project):
    (first, one), (second, two), *_ = unasked(project)

    waits = command(project, "ask", one)
    assert waits.out == "People are asked about 1 image with the next `alloop run` (round 0).\n"
    assert n_tasks(project) == 8
    assert command(project, "ask", two.name, "--now").code == 0
    assert n_tasks(project) == 10

    by_hand = [query for query in queries(project) if query.reason is Reason.MANUAL]
    assert [(query.image_id, query.rank, query.strategy) for query in by_hand] == [
        (first, 9, "manual"),
        (second, 10, "manual"),
    ]
    assert all(query.probability is query.draw_number is query.predicted is None for query in by_hand)
    fill(project)
    assert command(project, "run").out.startswith("Round 0 is closed: 10 of 10 images answered")
    said = "2 of the labels to train on were asked for by hand. They are no random draw"
    assert said in command(project, "status", "-v").out
    report = project.folder / "report.html"
    assert command(project, "report", "--out", report).code == 0 and said in report.read_text()
    with reading(project.database) as session:
        (event, _) = list_events(session, "asked by hand")
    assert (event["round"], event["data"]) == (0, {"images": [second]}) and " pid " in event["actor"]
    assert "asked for by hand (manual)" in command(project, "explain", one).out


def test_what_cannot_be_asked_about_is_named_and_the_rest_is_asked(project: Project):
    (image, path), (junk, rotten), (lost, gone), *_ = unasked(project)
    open_one = next(query for query in queries(project) if query.reason is not Reason.HOLDOUT)
    held = next(query for query in queries(project) if query.reason is Reason.HOLDOUT)
    command(project, "pool", "junk", rotten)
    gone.unlink()
    command(project, "pool", "check", "--accept-missing")

    found = at_bench(project, ask_by_hand, [held.image_id, image, open_one.image_id, junk, lost, 4711, image])

    assert found.asked == (image,)
    assert {ids: why.split()[0] for why, ids in found.left_out.items()} == {
        (held.image_id,): "in",
        (open_one.image_id,): "being",
        (junk,): "marked",
        (lost,): "their",
        (4711,): "not",
    }
    again = command(project, "ask", path)
    assert again.code == 1 and "1 left out: being asked about already." in again.err
    assert "is not in the pool" in command(project, "ask", "nothing.png").err
    assert command(project, "ask").code == 2


def test_before_anything_was_asked_nothing_can_be_asked_for_by_hand(tmp_path: Path):
    project = make_project(tmp_path, 12, **SHEETS)

    with pytest.raises(LabelError, match="No round has asked people anything yet"):
        at_bench(project, ask_by_hand, [1])


def test_a_round_that_has_not_chosen_yet_chooses_the_same_images_but_those(project: Project, tmp_path: Path):
    fill(project)
    command(project, "run")
    at_bench(project, steps.start_round)
    at_bench(project, steps.train, 1)
    at_bench(project, steps.score, 1)
    project.close()
    twin = copy_project(project.folder, tmp_path / "twin", {"project": {"classes": ["cat", "dog"]}, **SHEETS})
    at_bench(twin, steps.select, 1)
    alone = [(query.image_id, query.rank, query.reason) for query in queries(twin) if query.round_number == 1]
    with reading(twin.database) as session:
        spare = [image_id for image_id, _ in unasked(twin) if image_id in find_refs(session, [image_id])]

    asked = at_bench(project, ask_by_hand, spare[:2])
    at_bench(project, steps.select, 1)

    assert asked.round_number == 0
    chosen = [(query.image_id, query.rank, query.reason) for query in queries(project) if query.round_number == 1]
    assert len(chosen) == len(alone) == 5
    assert not {image_id for image_id, *_ in chosen} & set(spare[:2])
    # The drawn image is the same unless one of the two took its place; ranks are those of a round without manual ones.
    assert [rank for _, rank, _ in chosen] == [rank for _, rank, _ in alone]


def test_a_question_whose_sending_was_interrupted_is_sent_once_by_the_next_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    image, path = unasked(project)[0]

    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(people, "push", interrupted)
        assert command(project, "ask", path, "--now").code == 130
    assert n_tasks(project) == 8

    command(project, "run")
    command(project, "run")

    assert n_tasks(project) == 9
    assert [query.image_id for query in queries(project) if query.reason is Reason.MANUAL] == [image]


def test_a_question_that_was_not_sent_can_be_taken_back_and_asked_again(project: Project):
    image, _ = unasked(project)[0]
    at_bench(project, ask_by_hand, [image])

    assert at_bench(project, take_back, [image]) == 1
    assert at_bench(project, take_back, [image]) == 0
    assert image in {image_id for image_id, _ in unasked(project)} | {image}
    assert at_bench(project, ask_by_hand, [image]).asked == (image,)
    assert Counter(query.image_id for query in queries(project))[image] == 1


def test_a_round_is_replayed_although_more_was_asked_by_hand(project: Project):
    at_bench(project, ask_by_hand, [unasked(project)[0][0]])

    assert command(project, "replay", 0, "--json").data["is_equal"]


def test_questions_by_hand_are_sent_although_a_stop_rule_has_ended_the_loop(tmp_path: Path):
    project = make_project(tmp_path, 24, **{**SHEETS, "loop": {"batch_size": 5, "label_budget": 8}})
    command(project, "run")
    fill(project)
    command(project, "run")
    assert command(project, "run").out.startswith("Done: label budget reached")

    assert command(project, "ask", unasked(project)[0][1]).code == 0
    assert command(project, "run").out.startswith("Done: label budget reached")

    assert n_tasks(project) == 9


def test_junk_is_never_asked_about_and_its_label_is_not_trained_on_until_the_mark_is_removed(project: Project):
    fill(project)
    command(project, "run")
    labeled = next(query for query in queries(project) if query.reason is not Reason.HOLDOUT)
    (free, path), *others = unasked(project)
    with reading(project.database) as session:
        n = len(read_labels(session, project.config).train)
        file = find_refs(session, [labeled.image_id])[labeled.image_id].path

    marked = command(project, "pool", "junk", path, file, "--reason", "blurred")

    assert marked.out == "2 images marked as junk.\n"
    with reading(project.database) as session:
        assert len(read_labels(session, project.config).train) == n - 1
    assert "2 images are marked as junk" in command(project, "status", "-v").out
    assert "It is marked as junk" in command(project, "explain", path).out
    assert command(project, "pool", "list", "--split", "junk").out.count("\n") == 2
    exported = project.folder / "labels.jsonl"
    command(project, "labels", "export", exported, "--format", "jsonl")
    assert len(exported.read_text().splitlines()) == 7
    for _ in range(5):
        command(project, "run")
        fill(project)
    assert free not in {query.image_id for query in queries(project)}
    assert {image_id for image_id, _ in unasked(project)} == set()

    assert command(project, "pool", "junk", "--undo", path, file).out.startswith("2 images no longer marked")
    with reading(project.database) as session:
        assert labeled.image_id in {ref.image_id for ref in list_refs(session, Split.TRAIN, labeled=True)}
    assert [image_id for image_id, _ in unasked(project)] == [free]
    assert others


def test_the_holdout_cannot_be_marked_and_the_refusal_says_why(project: Project):
    held = next(query for query in queries(project) if query.reason is Reason.HOLDOUT)

    refused = command(project, "pool", "junk", "--sha256", held.sha256)

    assert refused.code == 1
    assert (
        "would make the model look better or worse than it is. Skip such an image in the labeling tool" in refused.err
    )
    with reading(project.database) as session:
        assert list_events(session, "marked as junk") == []


def test_an_open_question_about_junk_is_withdrawn_with_its_task(project: Project):
    mine = next(query for query in queries(project) if query.reason is not Reason.HOLDOUT)

    marked = command(project, "pool", "junk", "--sha256", mine.sha256[:12])

    assert "1 open question withdrawn." in marked.out
    assert n_tasks(project) == 7
    assert {query.id: query.status for query in queries(project)}[mine.id] is QueryStatus.WITHDRAWN
    fill(project)
    assert command(project, "run").out.startswith("Round 0 is closed: 7 of 8 images answered; 1 withdrawn")


def test_a_question_whose_task_is_still_there_is_open_again_after_an_undo(project: Project):
    """As if the labeling back end had not answered when the image was marked."""
    mine = next(query for query in queries(project) if query.reason is not Reason.HOLDOUT)

    at_bench(project, mark_junk, [mine.image_id])
    assert n_tasks(project) == 8
    assert at_bench(project, unmark_junk, [mine.image_id]) == (mine.image_id,)

    assert {query.id: query.status for query in queries(project)}[mine.id] is QueryStatus.OPEN
    fill(project)
    assert command(project, "run").out.startswith("Round 0 is closed: 8 of 8 images answered")


def test_an_answer_about_junk_is_kept_but_reopens_nothing(project: Project):
    mine = next(query for query in queries(project) if query.reason is not Reason.HOLDOUT)
    fill(project)

    at_bench(project, mark_junk, [mine.image_id])
    command(project, "run")

    with reading(project.database) as session:
        assert len(read_labels(session, project.config).train) == 4
        assert mine.image_id not in {ref.image_id for ref in list_refs(session, Split.TRAIN)}
    assert {query.id: query.status for query in queries(project)}[mine.id] is QueryStatus.ANSWERED


def test_the_next_pull_takes_back_a_task_about_junk_and_a_deleted_answer_reopens_nothing(project: Project):
    mine, other = (query for query in queries(project) if query.reason is not Reason.HOLDOUT and query.rank in (4, 5))
    (sheet,) = [read_sheet(path) for path in list_sheets(project.folder / "sheets")]

    def answer(key: str, label: str) -> None:
        write_sheet(sheet.path, sheet.header, [{**row, "label": label * (row["key"] == key)} for row in sheet.rows])
        assert command(project, "pull").code == 0

    answer(other.key, "cat")
    at_bench(project, mark_junk, [mine.image_id, other.image_id])
    answer(other.key, "")

    assert n_tasks(project) == 6
    now = {query.id: query.status for query in queries(project)}
    assert (now[mine.id], now[other.id]) == (QueryStatus.WITHDRAWN, QueryStatus.WITHDRAWN)


def test_junk_marked_before_the_first_round_is_not_drawn_into_the_holdout(tmp_path: Path):
    project = make_project(tmp_path, 12, **SHEETS)
    images = [image_id for image_id, _ in unasked(project)]

    at_bench(project, mark_junk, images[:9])
    command(project, "run")

    assert {query.image_id for query in queries(project)} == set(images[9:])
    assert Counter(query.reason for query in queries(project))[Reason.HOLDOUT] == 1
