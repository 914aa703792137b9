"""The pages: each function returns the name of a template and its values. Nothing here changes the workspace."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import numpy as np

from alloop.loop.stopping import Rule, Standing
from alloop.names import count
from alloop.records import Reason, RoundState
from alloop.report.charts import make_curve
from alloop.report.cost import gather_cost
from alloop.report.gather import RoundReport, StatusReport, describe_by_hand, describe_measured, random_arms
from alloop.report.headlines import Headline, next_step, of_project, waiting
from alloop.report.histogram import histogram_of
from alloop.report.mistakes import gather_mistakes
from alloop.report.people import gather_people
from alloop.report.reliability import gather_model
from alloop.report.rounds import round_rows
from alloop.report.shown import TASKS, Shown
from alloop.serve.desk import Desk
from alloop.serve.details import find_details
from alloop.serve.features import find_nearest, read_labeled
from alloop.serve.filters import (
    PAGE,
    SORTS,
    STATES,
    BadFilter,
    Filter,
    apply,
    offer_attributes,
    offer_sources,
    read_filter,
)
from alloop.serve.map import COLORS, coloring, find_doubt, head_of, names_on, note_of, points, words_of
from alloop.serve.snapshot import Snapshot, Tile
from alloop.store.images import find_image_ids
from alloop.store.queries import QueryRecord, list_queries
from alloop.store.rounds import find_round
from alloop.store.selections import list_selections
from alloop.store.session import reading

Values = dict[str, Any]
REASONS = {
    Reason.ACQUIRED: "chosen by the strategy",
    Reason.RANDOM: "drawn at random",
    Reason.HOLDOUT: "holdout",
    Reason.SEED: "first images",
    Reason.RELABEL: "asked again",
    Reason.AUDIT: "audit of automatic labels",
    Reason.MANUAL: "asked by hand",
}
MOST_ON_PAGE = 200  # pictures
DAYS_AHEAD = 7  # newest days on the page Overview
MOST_LOOKS = 24  # labels worth a second look
STRIP = 24  # pictures of an area below the map


class NotFound(Exception):
    """There is no such image or round. The message says which."""


def overview(desk: Desk, query: Mapping[str, str]) -> tuple[str, Values]:
    """Answer how good the model is, and whether it is still learning."""
    status, shown = desk.status(), _shown(desk)
    return (
        "overview",
        {
            "title": "Overview",
            "head": of_project(status),
            "chart": make_curve(desk.curve(), random_arms(status.rounds)),
            "next": next_step(dataclasses.replace(status, label_at=None)),  # a link says it on a page
            **_tasks(status, status.rounds[-1] if status.rounds else None),
            "outlook": status.findings.outlook.says if status.findings.outlook else "",
            "stopping": _stopping(status),
            "attention": status.attention,
            "by_hand": describe_by_hand(status),
            "metrics": shown.metrics,
            "rounds": round_rows(status, shown),
            "explained": shown.explained.format(measured=describe_measured(status.findings)),
            "cost": desk.part("cost", gather_cost).says,
            "days": desk.part("people", gather_people).days[:DAYS_AHEAD],
        },
    )


def round_(desk: Desk, query: Mapping[str, str]) -> tuple[str, Values]:
    """Answer what a round asked about, and why: by default the newest one that asked anything."""
    status, pool = desk.status(), desk.pool()
    numbers = [row.number for row in status.rounds]
    if not numbers:
        head = Headline("No round yet.", next_step(status))
        nothing: Values = {
            **_tasks(status, None),
            "chips": [],
            "notes": [],
            "images": [],
            "empty": "",
            "before": None,
            "after": None,
        }
        return "round", {"title": "Round", "head": head, **nothing}
    newest = next((row.number for row in reversed(status.rounds) if row.queries), numbers[-1])
    number = _whole(query.get("number", str(newest)), "round")
    if number not in numbers:
        raise NotFound(f"There is no round {number}.")
    project = desk.project()
    with reading(project.database) as session:
        queries = list_queries(session, find_round(session, number).id)
        selection = list_selections(session).get(number)
    reasons = Counter(one.reason for one in queries)
    wanted = query.get("reason", "")
    shown = [one for one in queries if not wanted or one.reason.value == wanted]
    at = numbers.index(number)
    return "round", {
        "title": "Round",
        "head": Headline(_asked_words(status.rounds[at], queries), _state_words(status.rounds[at])),
        **_tasks(status, status.rounds[at]),
        "chips": _reason_chips(number, reasons, wanted),
        "notes": [] if selection is None else [f"Chosen by {selection.strategy}.", *selection.notes],
        "images": [tile for one in shown[:MOST_ON_PAGE] if (tile := _as_asked(pool, one)) is not None],
        "empty": _empty_words(status.rounds[at]),
        "before": numbers[at - 1] if at else None,
        "after": numbers[at + 1] if at + 1 < len(numbers) else None,
    }


def images(desk: Desk, query: Mapping[str, str]) -> tuple[str, Values]:
    """Show the whole pool, filtered and sorted."""
    pool, problem = desk.pool(), ""
    try:
        wanted = read_filter(query, pool)
    except BadFilter as error:
        wanted, problem = Filter(), str(error)
    rows = apply(wanted, pool)
    n_pages = max(1, math.ceil(len(rows) / PAGE))
    wanted = dataclasses.replace(wanted, page=min(wanted.page, n_pages))
    start = (wanted.page - 1) * PAGE
    sorts = {**SORTS, **{name: f"highest {name} first" for name in pool.scored.others}}
    offers = [
        (words, wanted.address(**changes))
        for words, changes, is_on in (
            ("unlabeled", {"state": "unlabeled"}, wanted.state),
            ("being asked about", {"state": "asked"}, wanted.state),
            ("predicted wrongly", {"state": "wrong"}, wanted.state),
            ("unlike the rest", {"suspect": "1"}, wanted.suspect),
            ("near copies", {"copies": "1"}, wanted.copies),
            *([("junk", {"state": "junk"}, wanted.state)] if desk.status().pool.junk else []),
        )
        if not is_on
    ]
    return "images", {
        "title": "Images",
        "head": f"{count(len(rows), 'image')}, {sorts[wanted.sort]}",
        "wanted": wanted,
        "offers": offers,
        "problem": problem,
        "states": STATES,
        "sorts": sorts,
        "classes": pool.scored.classes,
        "sources": offer_sources(pool),
        "attributes": offer_attributes(pool),
        "images": [pool.row(int(row)) for row in rows[start : start + PAGE]],
        "n_pages": n_pages,
        "n_matching": len(rows),
        "empty": "No image of the pool is like this. Remove a filter." if len(pool) else "The pool is empty.",
    }


def map_(desk: Desk, query: Mapping[str, str]) -> tuple[str, Values]:
    """Answer where the labels are, and where the doubt is."""
    making, pool = desk.making(), desk.pool()
    by = _color(query)
    wanted, problem = Filter(), ""
    try:
        wanted = read_filter({"area": query.get("area", "")}, pool)
    except BadFilter as error:
        problem = str(error)
    doubt = find_doubt(pool)
    found, spots = coloring(pool, by, doubt), pool.spots
    rows = apply(wanted, pool).tolist() if wanted.area else []
    return "map", {
        "title": "Map",
        "head": head_of(pool, doubt),
        "by": by,
        "colors": [(name, words, _map_address(name, wanted.area)) for name, words in COLORS.items()],
        "problem": problem,
        "making": making if spots is None or making.says else None,
        "map_name": "" if spots is None else spots.pool_map.name,
        "names": [] if spots is None else names_on(pool, spots, by, doubt),
        "note": "" if spots is None else note_of(pool, spots),
        "what": found.what,
        "heads": found.heads,
        "keys": found.keys,
        "counted": words_of(by, doubt),
        "area": wanted.area,
        "without_area": _map_address(by, ""),
        "selected": [pool.row(row) for row in rows[:STRIP]],
        "selected_words": f"{count(len(rows), 'image')}, the most uncertain first",
        "selected_address": wanted.address(),
        "unlabeled_address": wanted.address(state="unlabeled"),
    }


def map_points(desk: Desk, query: Mapping[str, str]) -> Values:
    """Return the points of the map as numbers."""
    pool, by = desk.pool(), _color(query)
    if pool.spots is None:
        raise NotFound("The map is not made yet.")
    return {**points(pool, pool.spots, coloring(pool, by, find_doubt(pool)).codes)}


def map_progress(desk: Desk, query: Mapping[str, str]) -> Values:
    """Return how far the map is."""
    return {**dataclasses.asdict(desk.making()), "is_ready": desk.pool().spots is not None}


def tile(desk: Desk, query: Mapping[str, str]) -> tuple[str, Values]:
    """Show one image as in a grid."""
    pool = desk.pool()
    return "tile", {"tile": pool.row(_place(pool, query))}


def image(desk: Desk, query: Mapping[str, str]) -> tuple[str, Values]:
    """Answer what the model and people say about one image."""
    pool = desk.pool()
    at = _place(pool, query)
    tile = pool.row(at)
    details = find_details(desk.project(), pool, tile.image_id)
    near = np.flatnonzero(pool.group == pool.group[at])
    nearest = find_nearest(desk.project(), desk.part("labeled", read_labeled), tile.image_id)
    return "image", {
        "title": "Image",
        "head": f"Predicted: {tile.guess}" if tile.predicted else tile.name or "Image",
        "standing_words": f"{tile.name} · {tile.standing}" if tile.predicted else tile.standing,
        "tile": tile,
        "shares": details.shares,
        "most_entropy": math.log(max(2, len(pool.scored.classes))),
        "round_number": pool.scored.round_number,
        "task_at": details.task_at,
        "history": details.history,
        "places": details.places,
        "near": [pool.row(int(row)) for row in near if row != at][:MOST_ON_PAGE],
        "nearest": [_similar(pool, image_id, cosine) for image_id, cosine in nearest.found],
        "nearest_note": nearest.note,
    }


def people(desk: Desk, query: Mapping[str, str]) -> tuple[str, Values]:
    """Answer whether people agree."""
    found = desk.part("people", gather_people)
    return "people", {"title": "People", "head": found.head, "people": found.people, "days": found.days}


def mistakes(desk: Desk, query: Mapping[str, str]) -> tuple[str, Values]:
    """Answer what is confused with what."""
    holdout, looks = desk.holdout(), desk.looks()
    shown = looks.found[:MOST_LOOKS]
    doubtful = _tiles(desk, [look.sha256 for look in shown])
    doubted = {
        "title": "Mistakes",
        "looks": [(doubtful[look.sha256], look) for look in shown if look.sha256 in doubtful],
        "more_looks": len(looks.found) - len(shown),
        "n_checked": looks.n_checked,
        "checked": looks.checked,
    }
    if holdout is None:
        waits = "They show when a model was measured on the holdout. " + next_step(desk.status())
        return "mistakes", {**doubted, "head": Headline("No mistakes to show yet.", waits), "matrix": (), "sure": ()}
    found = gather_mistakes(holdout)
    return "mistakes", {
        **doubted,
        "head": found.head,
        "classes": found.classes,
        "left_out": found.left_out,
        "matrix": found.matrix,
        "confusions": found.confusions,
        "worst": found.worst,
        "sure": list(_tiles(desk, found.sure).values()),
    }


def model(desk: Desk, query: Mapping[str, str]) -> tuple[str, Values]:
    """Answer whether the probabilities can be trusted."""
    scored = desk.pool().scored
    ood = scored.others.get("ood", np.zeros(0))
    suspect = scored.suspect if len(ood) else np.zeros(0, dtype=bool)
    return "model", {
        "title": "Model",
        **gather_model(desk.status(), desk.holdout(), _shown(desk)),
        "strange": histogram_of(ood, suspect),
        "strange_axis": f"out-of-distribution score ({desk.project().config.acquisition.ood_score})",
        "n_suspect": int(suspect.sum()),
        "made": desk.made(),
    }


def _shown(desk: Desk) -> Shown:
    return TASKS[desk.project().config.project.task]


def _stopping(status: StatusReport) -> list[Rule]:
    """Return the stop rules that are set or hold; none of them says anything before there are images."""
    rules = status.findings.rules if status.pool.images else ()
    return [rule for rule in rules if rule.stops or rule.standing is Standing.HOLDS]


def _tasks(status: StatusReport, row: RoundReport | None) -> Values:
    """Return address and number of the tasks of a round that wait for an answer; no address without any."""
    n_open = 0 if row is None else row.queries.get("open", 0)
    return {"tasks_at": status.label_at if n_open else None, "tasks": f"Open the {count(n_open, 'task')}"}


def _asked_words(row: RoundReport, queries: Sequence[QueryRecord]) -> str:
    if queries:
        return f"Round {row.number} asked about {count(len(queries), 'image')}."
    return f"Round {row.number} asked nothing." if row.closed_because else f"Round {row.number} has asked nothing yet."


def _empty_words(row: RoundReport) -> str:
    if sum(row.queries.values()):
        return "No image of this round has this reason."
    return "It was closed before it chose images." if row.state == "closed" else "It has not chosen its images yet."


def _state_words(row: RoundReport) -> str:
    n_open = row.queries.get("open", 0)
    others = ", ".join(f"{n} {status}" for status, n in row.queries.items() if status != "open")
    said = waiting(n_open) if n_open else "No image waits for an answer"
    if row.state == RoundState.SELECTED and n_open:
        said = f"{count(n_open, 'image')} not sent yet"
    because = f" Closed: {row.closed_because}." if row.closed_because else ""
    return f"{said}{f'; {others}' if others else ''}.{because}"


def _reason_chips(number: int, reasons: Mapping[Reason, int], wanted: str) -> list[Values]:
    if not reasons:
        return []
    all_ = {"words": f"all {sum(reasons.values())}", "address": f"round?number={number}", "is_on": not wanted}
    return [
        all_,
        *(
            {
                "words": f"{REASONS[reason]} {n}",
                "address": f"round?number={number}&reason={reason.value}",
                "is_on": wanted == reason.value,
            }
            for reason, n in sorted(reasons.items())
        ),
    ]


def _as_asked(pool: Snapshot, query: QueryRecord) -> Tile | None:
    """Return the image of a query with the prediction of that time; None if the image is no longer in the pool."""
    at = pool.place(query.image_id)
    if at is None:
        return None
    share = math.nan if query.confidence is None else 1 - query.confidence
    return dataclasses.replace(
        pool.row(at),
        predicted=query.predicted or "",
        probability=math.nan,
        uncertainty=share,
        entropy=share * math.log(max(2, len(pool.scored.classes))),
        mark="" if query.reason is Reason.ACQUIRED else REASONS[query.reason],
    )


def _tiles(desk: Desk, sha256s: Sequence[str]) -> dict[str, Tile]:
    """Return the images of the pool with these content hashes, by hash, in this order."""
    pool = desk.pool()
    with reading(desk.project().database) as session:
        ids = find_image_ids(session, sha256s)
    places = {sha256: pool.place(ids[sha256]) for sha256 in sha256s if sha256 in ids}
    return {sha256: pool.row(at) for sha256, at in places.items() if at is not None}


def _similar(pool: Snapshot, image_id: int, cosine: float) -> Tile:
    at = pool.place(image_id)
    assert at is not None  # images never leave the pool
    return dataclasses.replace(pool.row(at), mark=f"similarity {cosine:.2f}")


def _color(query: Mapping[str, str]) -> str:
    asked = query.get("color", "")
    return asked if asked in COLORS else next(iter(COLORS))


def _map_address(by: str, area: str) -> str:
    return "?" + urlencode({"color": by, **({"area": area} if area else {})})


def _place(pool: Snapshot, query: Mapping[str, str]) -> int:
    at = pool.place(_whole(query.get("id", ""), "image"))
    if at is None:
        raise NotFound("There is no such image.")
    return at


def _whole(text: str, name: str) -> int:
    if not text.isdecimal() or len(text) > 15:
        raise NotFound(f"There is no such {name}.")
    return int(text)


def frame(status: StatusReport) -> Values:
    """Return what is around every page."""
    names = ("Overview", "Round", "Images", "Map", "Mistakes", "People", "Model")
    address = {"Overview": "./"}
    return {
        "name": status.name,
        "pages": [{"name": name, "address": address.get(name, name.lower())} for name in names],
    }
