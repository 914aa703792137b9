"""Report of a project: what the live pages show, as one HTML file that needs no other file and no network."""

import base64
import dataclasses
import datetime as dt
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from alloop.files import write_bytes
from alloop.loop.measuring.findings import Findings, learning_curve, read_last_holdout
from alloop.loop.measuring.holdout_file import HoldoutPredictions
from alloop.project import Project
from alloop.records import ImageRef, Uncertain
from alloop.report.charts import make_curve
from alloop.report.cost import gather_cost
from alloop.report.gallery import Shot, Still, make_stills
from alloop.report.gather import (
    StatusReport,
    describe_by_hand,
    describe_findings,
    describe_measured,
    describe_people,
    gather_status,
    random_arms,
)
from alloop.report.headlines import five_lines, of_project, with_share
from alloop.report.html import STYLE, TEMPLATES, make_environment
from alloop.report.mistakes import Mistakes, gather_mistakes
from alloop.report.people import gather_people
from alloop.report.provenance import gather_provenance
from alloop.report.reliability import gather_model
from alloop.report.rounds import round_rows
from alloop.report.second_looks import SecondLooks, gather_second_looks
from alloop.report.shown import TASKS
from alloop.store.images import find_image_ids, find_refs
from alloop.store.session import reading

N_UNCERTAIN, N_LOOKS = 24, 12  # pictures
LOOKS = "Labels worth a second look"
DOUBTED = (
    "A model that never learned from these labels finds another class clearly more probable. It can be wrong, too."
)
UNDOUBTED = "No label that was checked is in clear contradiction to a model that never learned from it."
LINES = ("Project", "Next", "When to stop")  # of the five; the headline says the others


def write_report(project: Project, path: Path, uncertain: Sequence[Uncertain] = (), *, is_public: bool = False) -> Path:
    """Gather the numbers and pictures, and write the report.

    Args:
        project: The workspace.
        path: File to write.
        uncertain: Images that the newest model is least sure of, in order.
        is_public: True to leave out names of files and people, and all places.

    Returns:
        Path of the page.

    Raises:
        WorkspaceError: The disk is full or the folder cannot be written.
    """
    write_bytes(path, render_report(gather_report(project, uncertain, is_public=is_public)).encode())
    return path


def render_report(values: dict[str, Any]) -> str:
    """Return the report as HTML. The browser loads nothing, and accepts only the style and the script of the report."""
    style = STYLE.read_text(encoding="utf-8") + (TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    template = make_environment().get_template("report.html.jinja")
    return template.render(style=Markup(style), script=Markup(script), policy=policy, **values)  # noqa: S704 (our own)


def _digest(text: str) -> str:
    """Return a text's hash as a Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def gather_report(project: Project, uncertain: Sequence[Uncertain] = (), *, is_public: bool = False) -> dict[str, Any]:
    """Return the values of the template; the arguments are those of `write_report`."""
    status, shown = gather_status(project), TASKS[project.config.project.task]
    if is_public:
        status = dataclasses.replace(status, label_at=None, sheets=None, attention=())
    with reading(project.database) as session:
        curve, holdout = learning_curve(session, project), read_last_holdout(session, project)
        looks = gather_second_looks(session, project)
    mistakes = None if holdout is None else gather_mistakes(holdout)
    return {
        "name": status.name,
        "is_public": is_public,
        "made": f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
        "head": of_project(status),
        "lines": [line for line in five_lines(status, shown) if line[0] in LINES],
        "chart": make_curve(curve, random_arms(status.rounds)),
        "metrics": shown.metrics,
        "rounds": round_rows(status, shown),
        "explained": shown.explained.format(measured=describe_measured(status.findings)),
        "measured_on": describe_people(status.findings),
        "gains": _gains(status.findings),
        "mistakes": mistakes,
        "model": gather_model(status, holdout, shown),
        "galleries": _galleries(project, uncertain, holdout, mistakes, looks, is_public=is_public),
        "people": gather_people(project, is_public=is_public),
        "labels": _labels(status),
        "notes": [*([] if status.auto is None else [status.auto.says]), *describe_by_hand(status)],
        "cost": gather_cost(project),
        "outlook": "" if status.findings.outlook is None else status.findings.outlook.says,
        "rules": status.findings.rules,
        "attention": status.attention,
        "provenance": gather_provenance(project, is_public=is_public),
    }


def _galleries(
    project: Project,
    uncertain: Sequence[Uncertain],
    holdout: HoldoutPredictions | None,
    mistakes: Mistakes | None,
    looks: SecondLooks,
    *,
    is_public: bool,
) -> list[tuple[str, str, tuple[Still, ...]]]:
    """Return the pictures as (title, explanation, pictures), without empty galleries."""
    doubts = [
        Shot(one.image, with_share(one.predicted, one.probability), f"entropy {one.entropy:.2f} nats")
        for one in uncertain[:N_UNCERTAIN]
    ]
    found = [
        ("Most uncertain", "Images without a label, the highest predictive entropy first.", doubts),
        (
            "Most confident mistakes",
            "Holdout images that the model takes for another class than people do.",
            [] if holdout is None or mistakes is None else _mistaken(project, holdout, mistakes.sure),
        ),
        (
            LOOKS,
            f"{DOUBTED if looks.found else UNDOUBTED} {looks.checked}",
            _doubted(project, looks),
        ),
    ]
    galleries = [(title, words, make_stills(shots, with_names=not is_public)) for title, words, shots in found]
    return [gallery for gallery in galleries if gallery[2] or (gallery[0] == LOOKS and looks.n_checked)]


def _mistaken(project: Project, holdout: HoldoutPredictions, sha256s: Sequence[str]) -> list[Shot]:
    places, shots = {sha256: at for at, sha256 in enumerate(holdout.sha256s)}, []
    for sha256, image in _find(project, sha256s).items():
        at, guess = places[sha256], holdout.predicted[places[sha256]]
        if holdout.calibrated_log_probs is not None:
            guess = with_share(guess, math.exp(float(holdout.calibrated_log_probs[at].max())))
        shots.append(Shot(image, guess, f"labeled {holdout.targets[at]}"))
    return shots


def _doubted(project: Project, looks: SecondLooks) -> list[Shot]:
    found = looks.found[:N_LOOKS]
    images = _find(project, [look.sha256 for look in found])
    return [
        Shot(images[look.sha256], f"model: {look.predicted}", f"labeled {look.label}", look.reason)
        for look in found
        if look.sha256 in images
    ]


def _find(project: Project, sha256s: Sequence[str]) -> dict[str, ImageRef]:
    """Return the images with a present file, by hash, in the given order."""
    with reading(project.database) as session:
        ids = find_image_ids(session, sha256s)
        refs = find_refs(session, ids.values())
    return {sha256: refs[ids[sha256]] for sha256 in sha256s if ids.get(sha256) in refs}


def _gains(found: Findings) -> list[str]:
    """Return sentences about what labels, active learning and the unlabeled pool brought."""
    said = [] if found.matched is None else [f"{found.matched['says']} (Round {found.matched['round']}.)"]
    return said + describe_findings(found)


def _labels(status: StatusReport) -> dict[str, Any]:
    """Return the table of labels per class: titles of its columns, and rows."""
    columns = {"To train on": status.class_counts, "Holdout": status.class_counts_holdout}
    if status.auto is not None:
        columns["Automatic, by no person"] = status.auto.classes
    rows = [(name, [counts.get(name, 0) for counts in columns.values()]) for name in status.classes]
    return {"columns": tuple(columns), "rows": rows}
