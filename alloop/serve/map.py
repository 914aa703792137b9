"""The page Map: where labels and doubt are. Numbers count the whole pool, also where the map is a sample."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alloop.names import count
from alloop.report.headlines import Headline
from alloop.serve.filters import Filter
from alloop.serve.snapshot import Snapshot, Spots

COLORS = {"uncertainty": "uncertainty", "predicted": "prediction", "label": "label", "round": "round asked"}
COLORED = 8  # classes or rounds with a color of their own; the others are gray
REST, NONE = COLORED, COLORED + 1  # codes: another class or round; none at all
DOUBTFUL = 0.9  # quantile of uncertainty from which an unlabeled image counts as most uncertain
STEPS = (0.97, DOUBTFUL, 0.75, 0.5)  # quantiles at which the color of uncertainty changes
TINTS = (0, 2, 4, 5, 7)  # of the steps
MOST_NAMES = 20  # on the map
NAMED = 24  # cells a side, in whose fullest one the name of a class stands

Codes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """Number of images, and the address of these images."""

    n: int
    address: str


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """Row of the table beside the map: a color, its meaning, and numbers of images.

    Attributes:
        swatch: Class of the color in the style sheet.
        cells: Numbers, from the first column on. None leaves a column empty.
    """

    code: int
    swatch: str
    words: str
    cells: tuple[Cell | None, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """Name on the map, with its place."""

    words: str
    x: float
    y: float


@dataclasses.dataclass(frozen=True, eq=False)
class Coloring:
    """Colors of all images by one of their properties.

    Attributes:
        codes: Color of each image [N].
        what: Head of the table's first column.
        heads: Heads of its columns of numbers.
    """

    codes: Codes
    what: str
    heads: tuple[str, ...]
    keys: tuple[Key, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Doubt:
    """The most uncertain unlabeled images.

    Attributes:
        is_doubtful: Mask [N].
        bound: Smallest predictive entropy of them in nats, as it is written in addresses; "" without predictions.
    """

    is_doubtful: Mask
    bound: str


def find_doubt(pool: Snapshot) -> Doubt:
    """Find the tenth of the unlabeled images with the highest predictive entropy."""
    entropy = pool.scored.entropy
    is_open = (pool.label == "") & pool.is_kept & np.isfinite(entropy)
    if not is_open.any():
        return Doubt(is_open, "")
    bound = _bound(entropy[is_open], DOUBTFUL)
    return Doubt(is_open & (entropy >= float(bound)), bound)


def head_of(pool: Snapshot, doubt: Doubt) -> Headline:
    """Say which predicted class holds most of the doubt, and its share of the labels."""
    n, n_labels = int(doubt.is_doubtful.sum()), int((pool.label != "").sum())
    if not n:
        says = "Every image has a label." if len(pool) and n_labels == len(pool) else "No image has a prediction yet."
        return Headline(says, f"{count(n_labels, 'label')} in a pool of {count(len(pool), 'image')}.")
    name = _by_doubt(pool, doubt)[0]
    k = int((doubt.is_doubtful & (pool.scored.predicted == name)).sum())
    own = int((pool.label == name).sum())
    labels = f"which has {100 * own / n_labels:.0f} % of the labels" if n_labels else "and there are no labels yet"
    return Headline(
        f"{100 * k / n:.0f} % of the most uncertain images are predicted as {name}, {labels}.",
        f"Of the {count(n, 'unlabeled image')} with a predictive entropy of {doubt.bound} nats or more, about a tenth, "
        f"{k:,} are predicted as {name}; {own:,} of {count(n_labels, 'label')} are {name}.",
    )


def coloring(pool: Snapshot, by: str, doubt: Doubt) -> Coloring:
    """Return colors and table for one of `COLORS`."""
    return _COLORINGS[by](pool, doubt)


def points(pool: Snapshot, spots: Spots, codes: Codes) -> dict[str, list[int]]:
    """Return the points of the map as columns: ids, places in thousandths, colors, who has a label, who came later."""
    rows = np.flatnonzero(_is_shown(pool, spots))
    places = np.rint(1000 * spots.places[rows]).astype(np.int64)
    columns = {
        "id": pool.image_id[rows],
        "x": places[:, 0],
        "y": places[:, 1],
        "code": codes[rows],
        "labeled": (pool.label[rows] != "").astype(np.int64),
        "placed": spots.is_new[rows].astype(np.int64),
    }
    return {name: values.tolist() for name, values in columns.items()}


def names_on(pool: Snapshot, spots: Spots, by: str, doubt: Doubt) -> list[Name]:
    """Return the names of the classes that matter most, each where most images of the class lie close together."""
    classes = pool.label if by == "label" else pool.scored.predicted
    found = []
    for name in _by_doubt(pool, doubt)[:MOST_NAMES]:
        places = spots.places[(classes == name) & np.isfinite(spots.places[:, 0])]
        if len(places):
            cells = np.floor((places + 1) / 2 * NAMED).astype(np.int64)
            _, members, sizes = np.unique(cells @ [NAMED + 1, 1], return_inverse=True, return_counts=True)
            x, y = places[members.reshape(-1) == int(sizes.argmax())].mean(axis=0).round(3).tolist()
            found.append(Name(name, x, y))
    return found


def words_of(by: str, doubt: Doubt) -> str:
    """Say what the numbers of the table count."""
    said = "The numbers count the whole pool."
    if by in ("predicted", "label") and doubt.bound:
        said += f" Most uncertain: images without a label and with a predictive entropy of {doubt.bound} nats or more."
    if by == "uncertainty":
        said += " No prediction: images that came later, and labeled ones that the model has learned from."
    return said


def note_of(pool: Snapshot, spots: Spots) -> str:
    """Say which images the map shows, and which it does not."""
    known, is_on = spots.pool_map, _is_shown(pool, spots)
    if known.is_sample:
        shown = f"The map shows a uniform sample of {known.n_known:,} images, and all that had a label when it was made"
    else:
        shown = "The map shows all images that had features when it was made"
    is_new, is_later = is_on & spots.is_new, pool.image_id > known.newest_id
    said = [f"{shown}: {count(int((is_on & ~spots.is_new).sum()), 'image')}."]
    if n_new := int(is_new.sum()):
        said.append(f"Diamonds: {count(n_new, 'image')} placed since then, beside the images that are most like them.")
    without = known.n_pool - known.n_known - int((is_new & ~is_later).sum())
    if without > 0:
        said.append(f"{count(without, 'image')} had no features, because they were not scored or could not be read.")
    if known.layout is None:
        new, why = int(pool.is_kept.sum()) - known.n_pool, ""
    else:
        new, why = int((pool.is_kept & ~is_on & is_later).sum()), ", and cannot be placed without features"
    if new > 0:
        said.append(f"{count(new, 'image')} came to the pool later{why}.")
    labels = int(((pool.label != "") & pool.is_kept & ~is_on).sum())
    if labels:
        said.append(f"{count(labels, 'labeled image')} {'is' if labels == 1 else 'are'} not on it.")
    return " ".join(said)


def _is_shown(pool: Snapshot, spots: Spots) -> Mask:
    """Return a mask of the images that the map shows. Images that are marked as junk are no longer shown."""
    return np.isfinite(spots.places[:, 0]) & pool.is_kept


def _by_class(pool: Snapshot, doubt: Doubt, values: npt.NDArray[np.object_], none: Key) -> Coloring:
    names = _by_doubt(pool, doubt)
    guesses, labels = Counter(pool.scored.predicted.tolist()), Counter(pool.label.tolist())
    doubtful = Counter(pool.scored.predicted[doubt.is_doubtful].tolist())
    open_ = Filter(state="unlabeled", least=doubt.bound)
    keys = [
        Key(
            min(at, REST),
            f"tone-{at + 1}" if at < COLORED else "rest",
            name,
            (
                Cell(guesses[name], Filter(predicted=name).address()),
                Cell(labels[name], Filter(label=name).address()),
                Cell(doubtful[name], dataclasses.replace(open_, predicted=name).address()),
            ),
        )
        for at, name in enumerate(names)
    ]
    heads = ("Predicted", "Labels", "Most uncertain")
    return Coloring(_coded(values, names), "Class", heads, (*keys, none))


def _by_prediction(pool: Snapshot, doubt: Doubt) -> Coloring:
    n = int((pool.scored.predicted == "").sum())
    none = _none("no prediction", Cell(n, Filter(unpredicted="1").address()))
    return _by_class(pool, doubt, pool.scored.predicted, none)


def _by_label(pool: Snapshot, doubt: Doubt) -> Coloring:
    n = int(((pool.label == "") & pool.is_kept).sum())
    return _by_class(pool, doubt, pool.label, _none("no label", None, Cell(n, Filter(state="unlabeled").address())))


def _by_uncertainty(pool: Snapshot, doubt: Doubt) -> Coloring:
    entropy = pool.scored.entropy
    known = entropy[np.isfinite(entropy) & (pool.label == "")]
    bounds = list(dict.fromkeys(_bound(known, quantile) for quantile in STEPS)) if len(known) else []
    codes = np.where(np.isfinite(entropy), sum(entropy < float(bound) for bound in bounds), NONE)
    keys = []
    for code, (low, high) in enumerate(zip([*bounds, ""], ["", *bounds], strict=True)):
        cells = _counts(pool, codes == code, Filter(least=low, most=high))
        keys.append(
            Key(code, f"tint-{TINTS[code]}", f"{low or 0} to {high}" if high else f"{low or 0} and more", cells)
        )
    none = _none("no prediction", *_counts(pool, codes == NONE, Filter(unpredicted="1")))
    return Coloring(codes, "Predictive entropy, nats", ("Images", "Labels"), (*keys, none))


def _by_round(pool: Snapshot, doubt: Doubt) -> Coloring:
    rounds = sorted({int(number) for number in pool.asked if number >= 0}, reverse=True)  # the newest matter most
    keys = [
        Key(
            min(at, REST),
            f"tint-{at}" if at < COLORED else "rest",
            str(number),
            _counts(pool, pool.asked == number, Filter(round=str(number))),
        )
        for at, number in enumerate(rounds)
    ]
    none = _none("never asked", *_counts(pool, pool.asked < 0, Filter(unasked="1")))
    return Coloring(_coded(pool.asked, rounds), "Round", ("Images", "Labels"), (*keys, none))


def _counts(pool: Snapshot, here: Mask, wanted: Filter) -> tuple[Cell, Cell]:
    """Return the number of these images, which the filter keeps, and the number of those with a label."""
    labeled = dataclasses.replace(wanted, state="labeled")
    return Cell(int(here.sum()), wanted.address()), Cell(int((here & (pool.label != "")).sum()), labeled.address())


def _bound(entropy: npt.NDArray[np.float64], quantile: float) -> str:
    """Return a quantile as it is written in addresses."""
    return f"{float(f'{np.quantile(entropy, quantile):.2g}'):g}"


def _none(words: str, *cells: Cell | None) -> Key:
    return Key(NONE, "none", words, cells)


_COLORINGS: dict[str, Callable[[Snapshot, Doubt], Coloring]] = {
    "uncertainty": _by_uncertainty,
    "predicted": _by_prediction,
    "label": _by_label,
    "round": _by_round,
}


def _by_doubt(pool: Snapshot, doubt: Doubt) -> list[str]:
    """Return the classes, those with the most uncertain images first, then those with the most images."""
    doubtful, all_ = Counter(pool.scored.predicted[doubt.is_doubtful].tolist()), Counter(pool.scored.predicted.tolist())
    return sorted(pool.scored.classes, key=lambda name: (doubtful[name], all_[name]), reverse=True)


def _coded(values: npt.NDArray[Any], ranked: Sequence[object]) -> Codes:
    codes = {value: min(at, REST) for at, value in enumerate(ranked)}
    return np.array([codes.get(value, NONE) for value in values.tolist()], dtype=np.int64)
