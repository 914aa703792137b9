"""The filter of the page Images. It is written in the address, so that an address shows a colleague the same images."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt

from alloop.serve.snapshot import Floats, Snapshot, Spots

PAGE = 60  # images on a page
MOST_OFFERED = 50  # values of a filter that are offered
MOST_CORNERS = 64  # of an area on the map
_COORDINATE = re.compile(r"-?[0-9]{1,4}").fullmatch
STATES = {
    "unlabeled": "without a label",
    "labeled": "with a label",
    "asked": "being asked about",
    "holdout": "in the holdout",
    "wrong": "labeled and predicted as another class",
    "junk": "marked as junk",
}
SORTS = {"uncertain": "most uncertain first", "certain": "most certain first", "name": "by file name"}


class BadFilter(ValueError):
    """The address holds a filter that cannot be read. The message says which, for people."""


@dataclasses.dataclass(frozen=True, slots=True)
class Filter:
    """Conditions and order in the address; an empty field filters nothing.

    Attributes:
        source: First part of the place of the file: a folder, or another source with a colon, like `zip:photos.zip`.
        attribute: Name and value of an attribute, like `site=A`.
        suspect, copies, unpredicted, unasked: "1" keeps only such images; `words` says them.
        least, most: Bounds of the predictive entropy, in nats.
        area: Polygon on the map: name of the map, then x and y of each corner in thousandths, separated by commas.
        sort: One of `SORTS`, or the name of a score, the highest first.
    """

    state: str = ""
    predicted: str = ""
    label: str = ""
    text: str = ""
    source: str = ""
    attribute: str = ""
    round: str = ""
    group: str = ""
    suspect: str = ""
    copies: str = ""
    unpredicted: str = ""
    unasked: str = ""
    least: str = ""
    most: str = ""
    area: str = ""
    sort: str = "uncertain"
    page: int = 1

    def address(self, **changes: object) -> str:
        """Return the query of the address with some fields changed. A changed filter begins at its first page."""
        fields = dataclasses.asdict(self) | ({} if "page" in changes else {"page": 1}) | changes
        default = dataclasses.asdict(Filter())
        return "?" + urlencode({name: value for name, value in fields.items() if value != default[name]})

    def words(self) -> list[tuple[str, str]]:
        """Return the conditions in words, each with the address without it."""
        said = {
            "state": STATES.get(self.state, ""),
            "predicted": f"predicted {self.predicted}",
            "label": f"labeled {self.label}",
            "text": f"file name contains “{self.text}”",
            "source": f"from {self.source}",
            "attribute": self.attribute.replace("=", " is ", 1),
            "round": f"asked in round {self.round}",
            "group": "near copies of one image",
            "suspect": "unlike the rest of the pool",
            "copies": "with near copies",
            "unpredicted": "without a prediction",
            "unasked": "never asked about",
            "least": f"uncertainty from {self.least} nats",
            "most": f"uncertainty up to {self.most} nats",
            "area": "in an area of the map",
        }
        return [(words, self.address(**{name: ""})) for name, words in said.items() if getattr(self, name)]


def read_filter(query: Mapping[str, str], snapshot: Snapshot) -> Filter:
    """Read the filter of an address.

    Raises:
        BadFilter: A field has a value that cannot be.
    """
    names = {field.name for field in dataclasses.fields(Filter)}
    given = {name: value.strip() for name, value in query.items() if name in names and value.strip()}
    for name in ("least", "most"):
        if name in given:
            given[name] = f"{_number(name, given[name]):g}"
    for name in ("round", "group", "page"):
        if name in given and not given[name].isdecimal():
            raise BadFilter(f"{name}={given[name]} is not a whole number.")
    if given.get("state", "unlabeled") not in STATES:
        raise BadFilter(f"state={given['state']} is none of {', '.join(STATES)}.")
    if given.get("sort", "name") not in {**SORTS, **snapshot.scored.others}:
        raise BadFilter(f"sort={given['sort']} is none of {', '.join({**SORTS, **snapshot.scored.others})}.")
    _check_attribute(given.get("attribute", ""), snapshot)
    if "area" in given:
        _check_area(given["area"], snapshot)
    page = max(1, int(given.pop("page", "1")[:9]))
    return Filter(**given, page=page)


def _check_attribute(text: str, snapshot: Snapshot) -> None:
    name, sign, _ = text.partition("=")
    if text and (not sign or name not in snapshot.attributes):
        known = f"The attributes are {', '.join(snapshot.attributes)}." if snapshot.attributes else "There are none."
        raise BadFilter(f"attribute={text} is not an attribute and its value, like site=A. {known}")


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise BadFilter(f"{name}={text} is not a number. Write it with a point, like 0.5.")
    return value


def offer_attributes(pool: Snapshot) -> list[str]:
    """Return attributes with their values, as the filter writes them. An attribute with many values is left out."""
    known = pool.attribute_values.items()
    return [f"{name}={value}" for name, values in known if len(values) <= MOST_OFFERED for value in values]


def offer_sources(pool: Snapshot) -> tuple[str, ...]:
    """Return the folders and other sources of the files; none if there are too many to offer."""
    return pool.sources if len(pool.sources) <= MOST_OFFERED else ()


def _check_area(area: str, snapshot: Snapshot) -> None:
    name, *numbers = area.split(",")
    if snapshot.spots is None or snapshot.spots.pool_map.name != name:
        raise BadFilter("The area was drawn on another map. Open the page Map and draw it again.")
    if not (6 <= len(numbers) <= 2 * MOST_CORNERS and len(numbers) % 2 == 0 and all(map(_COORDINATE, numbers))):
        raise BadFilter(f"The area is not a polygon of 3 to {MOST_CORNERS} corners. Draw it again on the page Map.")


def corners_of(area: str) -> Floats:
    """Return the corners [n, 2] of an area that `read_filter` has checked, in the coordinates of the map."""
    return np.array(area.split(",")[1:], dtype=np.float64).reshape(-1, 2) / 1000


def _in_area(pool: Snapshot, spots: Spots, area: str) -> npt.NDArray[np.bool_]:
    return inside(spots.places, corners_of(area)) & pool.is_kept  # as on the map


def inside(places: Floats, corners: Floats) -> npt.NDArray[np.bool_]:
    """Return a mask [N] of the places [N, 2] that lie in a polygon [n, 2], by the even-odd rule; nan lies outside."""
    x, y = places.T
    is_in = np.zeros(len(places), dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, 1, axis=0), strict=True):
        crosses = (ay > y) != (by > y)
        with np.errstate(divide="ignore", invalid="ignore"):  # a level edge crosses nothing
            is_in ^= crosses & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return is_in


def apply(wanted: Filter, pool: Snapshot) -> npt.NDArray[np.intp]:
    """Return the rows of the images that the filter keeps, in its order. Images without a score come last."""
    rows = np.flatnonzero(_kept(wanted, pool))
    if wanted.text:
        text = wanted.text.casefold()
        rows = rows[np.array([text in name.rpartition("/")[2].casefold() for name in pool.path[rows]], dtype=bool)]
    if wanted.source:
        rows = rows[np.array([name.startswith(wanted.source) for name in pool.path[rows]], dtype=bool)]
    return rows[_order(wanted.sort, pool, rows)]


def _kept(wanted: Filter, pool: Snapshot) -> npt.NDArray[np.bool_]:
    states: dict[str, Callable[[], Any]] = {  # computed when asked for: one column of 100,000 texts takes milliseconds
        "": lambda: np.ones(len(pool), dtype=bool),
        "unlabeled": lambda: (pool.label == "") & pool.is_kept,
        "labeled": lambda: pool.label != "",
        "asked": lambda: pool.state == "open",
        "holdout": lambda: pool.split == "holdout",
        "junk": lambda: ~pool.is_kept,
        "wrong": lambda: (pool.label != "") & (pool.scored.predicted != "") & (pool.scored.predicted != pool.label),
    }
    conditions: dict[str, Callable[[str], Any]] = {
        "predicted": lambda name: pool.scored.predicted == name,
        "label": lambda name: pool.label == name,
        "attribute": lambda text: pool.attributes[text.partition("=")[0]] == text.partition("=")[2],
        "round": lambda number: pool.asked == int(number[:9]),
        "group": lambda number: pool.group == int(number[:18]),
        "suspect": lambda _: pool.scored.suspect,
        "copies": lambda _: pool.copies > 1,
        "unpredicted": lambda _: pool.scored.predicted == "",
        "unasked": lambda _: pool.asked < 0,
        "least": lambda nats: pool.scored.entropy >= float(nats),
        "most": lambda nats: pool.scored.entropy <= float(nats),
        "area": lambda area: pool.spots is not None and _in_area(pool, pool.spots, area),
    }
    keep: npt.NDArray[np.bool_] = states[wanted.state]()
    for name, condition in conditions.items():
        if value := getattr(wanted, name):
            keep = keep & condition(value)
    return keep


def _order(sort: str, pool: Snapshot, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    if sort == "name":
        return np.argsort(pool.name_rank[rows])
    values = pool.scored.others.get(sort, pool.scored.entropy)[rows]
    return np.argsort(values if sort == "certain" else -values, kind="stable")  # nan comes last in both
