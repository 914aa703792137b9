"""Features and labels from NumPy archives, so that strategies can be compared without images."""

import dataclasses
import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alloop.errors import LabelError, PoolError
from alloop.names import as_answer, clean
from alloop.simulate.real_people import RealPeople

FEATURES, LABELS, PEOPLE = "F", "y", "annotators"


@dataclasses.dataclass(frozen=True)
class LabeledRows:
    """Features [N, D], float32, with class positions [N]."""

    features: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class GivenData:
    """Pool of features, with a test set if one is given.

    Attributes:
        classes: Class names in the order of a model's outputs [K]: whole numbers by size, text by alphabet.
        digest: Digest of all numbers.
        people: People who answer about the pool; None: true labels are the answers.
    """

    classes: tuple[str, ...]
    pool: LabeledRows
    test: LabeledRows | None
    digest: str
    people: RealPeople | None = None


def read_features(path: Path, test: Path | None = None) -> GivenData:
    """Read archives with the arrays F [N, D], numbers, and y [N], whole numbers or text. Nothing is unpickled.

    The file of the pool may have a third array, `annotators` [N, P]: the answers of P people in the form of y; -1, NaN
    or empty text means that the person was not asked. Simulated rounds then use these answers. The test set and the
    rows never asked about are measured against y.

    Raises:
        PoolError: A file or array cannot be read, has another shape, or has features that are not finite.
        LabelError: There are fewer than two classes, the test set or an answer has a class that the pool does not have,
            or nobody answered about a row.
    """
    features, labels, answers = _read(path)
    names = np.unique(labels)
    classes = tuple(str(name) for name in names.tolist())
    if len(names) < 2:
        raise LabelError(f"{path}: y has only the class {names[0]}.", "A simulation needs at least two classes.")
    pool = LabeledRows(features, np.searchsorted(names, labels).astype(np.int64))
    arrays: list[npt.NDArray[np.generic]] = [features, pool.targets]
    tested = None
    if test is not None:
        tested = _read_test(test, path, names, features.shape[1])
        arrays += [tested.features, tested.targets]
    people = None
    if answers is not None:
        people = _people(path, answers, names)
        arrays.append(_positions(people, classes))
    digest = hashlib.sha256(repr(names.tolist()).encode())
    for array in arrays:
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return GivenData(classes, pool, tested, digest.hexdigest(), people)


def _people(path: Path, answers: npt.NDArray[np.generic], names: npt.NDArray[np.generic]) -> RealPeople:
    known = tuple(str(name) for name in names.tolist())
    said = tuple(tuple(as_answer(_word(answer), known) for answer in row) for row in answers.tolist())
    for number, row in enumerate(said):
        strange = [answer for answer in row if answer is not None and answer not in known]
        if strange:
            raise LabelError(
                f"{path}: annotators has the answer {strange[0]!r} in row {number}, but y has no such class.",
                "Correct the answer or remove the row. -1, NaN and empty text mean that a person was not asked.",
            )
        if not any(row):
            raise LabelError(f"{path}: nobody answered about row {number}.", "Remove such rows.")
    return RealPeople(tuple(f"annotator{number + 1}" for number in range(answers.shape[1])), said)


def _word(answer: object) -> str:
    """Write an answer like a class. Integers that were stored as floats because of a NaN become integers again."""
    return str(int(answer)) if isinstance(answer, float) and answer.is_integer() else str(answer)


def _positions(people: RealPeople, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the answers as positions of classes [N, P]; -1 means not asked."""
    place = {name: position for position, name in enumerate(names)}
    return np.array([[-1 if said is None else place[said] for said in row] for row in people.answers], dtype=np.int64)


def _read_test(path: Path, pool: Path, names: npt.NDArray[np.generic], n_features: int) -> LabeledRows:
    features, labels, _ = _read(path)
    if features.shape[1] != n_features:
        raise PoolError(
            f"{path}: F has {features.shape[1]} features, but that of {pool} has {n_features}.",
            "Both must come from the same model.",
        )
    if labels.dtype.kind != names.dtype.kind:
        raise LabelError(f"{path}: y is {labels.dtype}, but that of {pool} is {names.dtype}.", "Write both alike.")
    strange = np.setdiff1d(labels, names)
    if len(strange):
        raise LabelError(
            f"{path}: y has the class {strange[0]}, which {pool} does not have.", "Take those rows out of the test set."
        )
    return LabeledRows(features, np.searchsorted(names, labels).astype(np.int64))


def _read(
    path: Path,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.generic], npt.NDArray[np.generic] | None]:
    """Read F, y and people's answers, if any."""
    raw, labels, answers = _arrays(path)
    if raw.dtype.kind not in "fiu" or raw.ndim != 2 or 0 in raw.shape:
        raise PoolError(f"{path}: F is {raw.dtype} {list(raw.shape)}.", "It must be numbers [N, D], a row per image.")
    if labels.dtype.kind not in "iuU" or labels.shape != (len(raw),):
        raise PoolError(
            f"{path}: y is {labels.dtype} {list(labels.shape)}, and F has {len(raw)} rows.",
            "y must be whole numbers or text, one for each row of F.",
        )
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(raw, dtype=np.float32)
    odd = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(odd):
        raise PoolError(
            f"{path}: {len(odd)} rows of F have numbers that are nan, infinite or too large for 32 bits, "
            f"first row {odd[0]}.",
            "Mend or remove them.",
        )
    if answers is not None and (answers.ndim != 2 or len(answers) != len(raw) or answers.shape[1] == 0):
        raise PoolError(
            f"{path}: annotators is {list(answers.shape)}, and F has {len(raw)} rows.",
            "It must be [N, P]: one answer per row and person.",
        )
    if answers is not None and (answers.dtype.kind == "U") != (labels.dtype.kind == "U"):
        raise PoolError(f"{path}: annotators is {answers.dtype}, but y is {labels.dtype}.", "Write both alike.")
    for name, numbers in (("y", labels), (PEOPLE, answers)):
        _check_exact(path, name, numbers)
    return features, _comparable(labels), answers


def _check_exact(path: Path, name: str, numbers: npt.NDArray[Any] | None) -> None:
    """Refuse class numbers so large that two of them could become the same number.

    Raises:
        PoolError: A number is beyond 2**53 (floats) or 2**63 - 1 (integers).
    """
    if numbers is None or numbers.dtype.kind not in "fu":
        return
    limit = 2**53 if numbers.dtype.kind == "f" else 2**63 - 1
    beyond = numbers[np.abs(numbers) > limit]
    if beyond.size:
        raise PoolError(f"{path}: {name} has {beyond[0]}, which is beyond {limit}.", "Store the classes as text.")


def _comparable(labels: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return labels in a form that can be compared between files: numbers signed, text cleaned as in tables."""
    if labels.dtype.kind == "U":
        return np.array([clean(text) for text in labels.tolist()])
    return labels.astype(np.int64) if labels.dtype.kind == "u" else labels


def _arrays(
    path: Path,
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic], npt.NDArray[np.generic] | None]:
    needs = f"It must be an .npz file with the arrays {FEATURES} [N, D] and {LABELS} [N]."
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise PoolError(f"{path} holds a single array.", needs)
        with archive:
            lacking = [name for name in (FEATURES, LABELS) if name not in archive.files]
            if lacking:
                found = ", ".join(archive.files) or "none"
                raise PoolError(f"{path} has no array {' and no array '.join(lacking)}; it has {found}.", needs)
            return archive[FEATURES], archive[LABELS], archive[PEOPLE] if PEOPLE in archive.files else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise PoolError(f"{path} cannot be read: {error}.", needs) from error
