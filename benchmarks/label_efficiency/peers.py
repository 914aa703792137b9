"""Other libraries' strategies on the same features, the same seed batches and one logistic head.

    pip install --target FOLDER scikit-activeml==1.0.1 modAL-python==0.4.2.1   # and PYTHONPATH=FOLDER

If a library needs too much time or memory at n = 20,000, it chooses from a random part, or clusters by mini-batches.
`settings_of` and the results name these cases.
"""

import dataclasses
import importlib.metadata
import time
import warnings
from collections.abc import Callable

import numpy as np
from sets import ROUNDS, C, Head
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

LARGE = 10_000  # a peer may need help from this number of rows on
DISTRIBUTIONS = {"skactiveml": "scikit-activeml", "modal": "modAL-python"}


@dataclasses.dataclass(frozen=True)
class Asked:
    """Input of a peer: standardized features [N, D], the labels so far, and a head fitted to them."""

    Z: np.ndarray
    y: np.ndarray  # [N], NaN without an answer
    classifier: object
    labeled: np.ndarray
    k: int
    seed: int

    @property
    def is_large(self) -> bool:
        return len(self.Z) > LARGE


def uncertainty(method: str) -> Callable[[Asked], np.ndarray]:
    def choose(asked: Asked) -> np.ndarray:
        from skactiveml.pool import UncertaintySampling

        strategy = UncertaintySampling(method=method, random_state=asked.seed)
        return strategy.query(asked.Z, asked.y, asked.classifier, fit_clf=False, batch_size=asked.k)

    return choose


def badge(asked: Asked) -> np.ndarray:
    from skactiveml.pool import Badge

    return _query(asked, Badge(random_state=asked.seed), 2_000, clf=asked.classifier, fit_clf=False)


def falcun(asked: Asked) -> np.ndarray:
    from skactiveml.pool import Falcun

    strategy = Falcun(random_state=asked.seed)
    return strategy.query(asked.Z, asked.y, asked.classifier, fit_clf=False, batch_size=asked.k)


def dropquery(asked: Asked) -> np.ndarray:
    from skactiveml.pool import DropQuery

    strategy = DropQuery(cluster_algo_dict={"random_state": asked.seed}, random_state=asked.seed)
    return strategy.query(asked.Z, asked.y, asked.classifier, fit_clf=False, batch_size=asked.k)


def coreset(asked: Asked) -> np.ndarray:
    from skactiveml.pool import CoreSet

    return CoreSet(random_state=asked.seed).query(asked.Z, asked.y, batch_size=asked.k)


def typiclust(asked: Asked) -> np.ndarray:
    from skactiveml.pool import TypiClust

    faster = {"cluster_algo": MiniBatchKMeans, "cluster_algo_dict": {"n_init": 1, "random_state": asked.seed}}
    strategy = TypiClust(random_state=asked.seed, **(faster if asked.is_large else {}))
    return strategy.query(asked.Z, asked.y, batch_size=asked.k)


def max_herding(asked: Asked) -> np.ndarray:
    from skactiveml.pool import MaxHerding

    # For rows of length 1. gamma = 1 is the published kernel; the library's default is 1 / D.
    strategy = MaxHerding(metric_dict={"gamma": 1.0}, random_state=asked.seed)
    return _query(asked, strategy, 3_000)


def probcover(asked: Asked) -> np.ndarray:
    from skactiveml.pool import ProbCover

    n_classes = len(np.unique(asked.y[asked.labeled]))
    strategy = ProbCover(n_classes=n_classes, random_state=asked.seed)
    return strategy.query(normalize(asked.Z), asked.y, batch_size=asked.k)


def modal(name: str) -> Callable[[Asked], np.ndarray]:
    def choose(asked: Asked) -> np.ndarray:
        from modAL import batch, uncertainty
        from modAL.models import ActiveLearner

        strategy = {
            "entropy": uncertainty.entropy_sampling,
            "margin": uncertainty.margin_sampling,
            "ranked-batch": batch.uncertainty_batch_sampling,
        }[name]
        known = asked.labeled
        learner = ActiveLearner(
            LogisticRegression(C=C, max_iter=300),
            query_strategy=strategy,
            X_training=asked.Z[known],
            y_training=asked.y[known],
        )
        free = np.flatnonzero(np.isnan(asked.y))
        return free[learner.query(asked.Z[free], n_instances=asked.k)[0]]

    return choose


PEERS: dict[str, Callable[[Asked], np.ndarray]] = {
    "skactiveml-margin": uncertainty("margin_sampling"),
    "skactiveml-entropy": uncertainty("entropy"),
    "skactiveml-badge": badge,
    "skactiveml-typiclust": typiclust,
    "skactiveml-coreset": coreset,
    "skactiveml-dropquery": dropquery,
    "skactiveml-max-herding": max_herding,
    "skactiveml-falcun": falcun,
    "skactiveml-probcover": probcover,
    "modal-margin": modal("margin"),
    "modal-entropy": modal("entropy"),
    "modal-ranked-batch": modal("ranked-batch"),
}
SMALL_ONLY = ("skactiveml-probcover", "modal-ranked-batch")  # n × n distances, or minutes for a batch
HELPED = {
    "skactiveml-badge": "among 2,000 random candidates",
    "skactiveml-typiclust": "clusters by MiniBatchKMeans, one start",
    "skactiveml-max-herding": "among 3,000 random candidates, which are also what is covered",
}


def settings_of(name: str, n: int) -> str:
    """Return the help that a peer got; empty if it ran with its defaults."""
    return HELPED.get(name, "") if n > LARGE else ""


def version_of(name: str) -> str:
    distribution = DISTRIBUTIONS[name.partition("-")[0]]
    return f"{distribution} {importlib.metadata.version(distribution)}"


def run_peer(name: str, head: Head, first: list[int], seed: int) -> dict[str, object]:
    """Run nine more batches of the size of the first. Return picks, accuracies of the head, seconds of choosing."""
    from skactiveml.classifier import SklearnClassifier

    n_classes = len(np.unique(head.y))
    picks = [list(map(int, first))]
    accuracy, seconds = [], [0.0]
    while True:
        labeled = np.concatenate([np.array(batch) for batch in picks])
        y = np.full(len(head.y), np.nan)
        y[labeled] = head.y[labeled]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other packages' own code, and of heads stopped at 300 iterations
            classifier = SklearnClassifier(LogisticRegression(C=C, max_iter=300), classes=range(n_classes))
            classifier.fit(head.Z[labeled], y[labeled])
            accuracy.append(float((classifier.predict(head.Z_test) == head.y_test).mean()))
            if len(picks) == ROUNDS:
                break
            asked = Asked(head.Z, y, classifier, labeled, len(first), 1000 * seed + len(picks))
            started = time.process_time()
            batch = np.asarray(PEERS[name](asked))
            seconds.append(time.process_time() - started)
        assert len(set(batch.tolist()) - set(labeled.tolist())) == len(first), name
        picks.append(batch.tolist())
    return {
        "strategy": name,
        "seed": seed,
        "picks": picks,
        "head_accuracy": accuracy,
        "select_seconds": seconds,
        "version": version_of(name),
        "settings": settings_of(name, len(head.y)),
    }


def _query(asked: Asked, strategy: object, most: int, **given: object) -> np.ndarray:
    """Return the picks of a library's strategy; from a random part if the pool is large."""
    from skactiveml.pool import SubSamplingWrapper

    if asked.is_large:
        strategy = SubSamplingWrapper(
            strategy, max_candidates=most, exclude_non_subsample=False, random_state=asked.seed
        )
    return strategy.query(asked.Z, asked.y, batch_size=asked.k, **given)
