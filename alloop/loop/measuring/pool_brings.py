"""Finding: what the unlabeled pool teaches the newest model, measured on the holdout where that is possible."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from alloop.loop.stopping import percent
from alloop.names import count
from alloop.records import Interval, Split
from alloop.store.rounds import ModelRecord, find_last_model, find_round_number, list_metrics

# Names in place of a split: the holdout, measured with one kind of heads alone.
RAW_HEADS, SMOOTHED_HEADS = "raw heads", "smoothed heads"
_WEIGHED = "weighed"
_MEANINGS = {
    RAW_HEADS: "without these features (raw heads)",
    SMOOTHED_HEADS: "with these features only (smoothed heads)",
    _WEIGHED: "with both, as the model predicts",
}


@dataclasses.dataclass(frozen=True)
class PoolBrings:
    """Accuracy and NLL (nats) of a model's heads on raw features, on smoothed ones, and of both as weighed.

    Attributes:
        is_on: False if the model has heads on raw features only; `reason` says why.
        n_nodes: Number of images in the graph of the pool.
        n_unlabeled: Number of images from which fine-tuning drew those that taught without a label.
        sure: Share of sure images in the epoch that was kept; None if no epoch was better than the start.
        weights: Weights a, b of raw and smoothed heads; None without smoothed heads.
        accuracy, nll: "raw heads", "smoothed heads" and "weighed" → interval; empty without a labeled holdout.
    """

    round_number: int
    is_on: bool
    reason: str
    n_nodes: int
    weights: tuple[float, float] | None
    accuracy: dict[str, Interval]
    nll: dict[str, Interval]
    says: str
    n_unlabeled: int = 0
    sure: float | None = None


def find_pool_brings(session: Session, model: ModelRecord | None = None) -> PoolBrings | None:
    """Return the finding for a model, else for the newest one.

    None without a model, or for one of an alloop before this feature.
    """
    model = find_last_model(session) if model is None else model
    about = None if model is None else model.history.get("pool_features")
    if model is None or about is None:
        return None
    splits = {RAW_HEADS: RAW_HEADS, SMOOTHED_HEADS: SMOOTHED_HEADS, _WEIGHED: Split.HOLDOUT.value}
    metrics = {name: list_metrics(session, model.id, split) for name, split in splits.items()}
    is_measured = about["is_on"] and all("accuracy" in found and "nll" in found for found in metrics.values())
    weights = model.calibration.weights
    found = PoolBrings(
        round_number=find_round_number(session, model.round_id),
        is_on=bool(about["is_on"]),
        reason=str(about.get("reason", "")),
        n_nodes=int(about.get("n_nodes", 0)),
        weights=None if weights is None else (weights[0], weights[1]),
        accuracy={name: found["accuracy"] for name, found in metrics.items()} if is_measured else {},
        nll={name: found["nll"] for name, found in metrics.items()} if is_measured else {},
        says="",
        **_fine_tuning(model.history),
    )
    return dataclasses.replace(found, says=describe(found))


def _fine_tuning(history: Mapping[str, Any]) -> dict[str, Any]:
    """Return what unlabeled images taught in fine-tuning, in an ensemble to its first network."""
    first = history.get("networks", [history])[0]
    if not first.get("n_unlabeled"):
        return {}
    kept = first["best_epoch"]
    return {"n_unlabeled": first["n_unlabeled"], "sure": first["epochs"][kept - 1]["sure"] if kept else None}


def describe(found: PoolBrings) -> str:
    """Describe the finding in sentences."""
    if found.n_unlabeled:
        words = (
            f"Fine-tuning also learns from {count(found.n_unlabeled, 'image')} without a label; each epoch shows as "
            "many of them as training labels."
        )
        if found.sure is None:
            return f"{words} No epoch was better than the untrained trunk, which is kept."
        return f"{words} In the epoch that is kept, the network was sure of {100 * found.sure:.0f} % of those shown."
    if not found.is_on:
        return f"The model does not see features that are averaged over similar images of the pool: {found.reason}."
    words = (
        f"The model also sees features that are averaged over similar images of the pool ({found.n_nodes:,} different "
        "ones), without their labels."
    )
    if found.accuracy:
        parts = [
            f"{percent(found.accuracy[name])}, NLL {found.nll[name].value:.3f} [{found.nll[name].low:.3f}, "
            f"{found.nll[name].high:.3f}] {meaning}"
            for name, meaning in _MEANINGS.items()
        ]
        words += f" Holdout accuracy: {'; '.join(parts)}."
    if found.weights is not None:
        words += f" The weights are {found.weights[0]:.2f} (raw) and {found.weights[1]:.2f} (smoothed)."
    return words
