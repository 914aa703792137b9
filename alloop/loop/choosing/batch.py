"""Choice of a batch from the candidates: a uniform share, then the strategy, within quotas. No database rows."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from alloop.acquisition.batch import Pick, compose_batch
from alloop.acquisition.registry import choose
from alloop.acquisition.scores import choose_by_score
from alloop.acquisition.strategy import Candidates, Choice, Keys, Positions
from alloop.composition import STRATEGIES, Need, strategy_name
from alloop.config.schema import AcquisitionConfig, Config
from alloop.loop.choosing.evidence import Evidence, needs_of
from alloop.records import ImageRef
from alloop.seeds import derive_seed

RANDOM, COLD = "random", "max-herding"


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images by rank (positions are rows of the candidates), their strategy, and notes about decisions."""

    picks: tuple[Pick, ...]
    strategy: str
    notes: tuple[str, ...]


def choose_images(
    refs: Sequence[ImageRef], keys: Keys, evidence: Evidence, n: int, seed: int, notes: Sequence[str] = ()
) -> Batch:
    """Choose n of the candidates.

    Args:
        refs: Candidates, one per group of near copies.
        keys: Distinct keys [N].
        evidence: Evidence about the candidates, with the settings of the choice.
        n: Number of images; fewer are chosen if there are fewer candidates.
        seed: Seed of the round.
        notes: Notes about earlier decisions.

    Raises:
        As `Evidence.gather`.
    """
    name, why = strategy_now(evidence.config, has_model=evidence.scores is not None)
    strategy = _Strategy(name, refs, keys, evidence, n, seed)
    generator = torch.Generator().manual_seed(derive_seed(seed, "random share"))
    share = 1.0 if name == RANDOM else evidence.config.acquisition.random_fraction
    picks, said = compose_batch(keys, n, share, generator, strategy)
    return Batch(picks, name, (*notes, *why, *said))


def strategy_now(config: Config, *, has_model: bool) -> tuple[str, tuple[str, ...]]:
    """Return the strategy that can choose, and the reason if it is not the configured one.

    Without a model, strategies that need only features choose by themselves. Instead of the others, max-herding takes
    typical images by pretrained features; without such features the batch is drawn uniformly.
    """
    name = strategy_name(config.acquisition.strategy)
    if has_model or name == RANDOM:
        return name, ()
    if config.acquisition.cold_start == "random":
        return RANDOM, ("There is no model yet, and [acquisition] cold_start = random: the batch was drawn uniformly.",)
    if not config.model.has_learned_features:
        return RANDOM, (
            "There is no model yet, and the backbone has no learned weights: the batch was drawn uniformly.",
        )
    if needs_of(name) == {Need.FEATURES}:
        return name, ()
    return COLD, (f"{name} needs a model, and there is none yet: {COLD} chose typical images by features.",)


class _Strategy:
    """Choice from the rest after the uniform share, by `[acquisition]`; `compose_batch` calls it."""

    def __init__(self, name: str, refs: Sequence[ImageRef], keys: Keys, evidence: Evidence, n: int, seed: int) -> None:
        self._name = name
        self._refs = refs
        self._keys = keys
        self._evidence = evidence
        self._settings: AcquisitionConfig = evidence.config.acquisition
        self._n = n
        self._seed = seed

    def __call__(self, rest: Positions, drawn: Positions, k: int) -> Choice:
        keys = self._keys[rest]
        refs, taken = [self._refs[at] for at in rest], [self._refs[at] for at in drawn]
        scores = self._evidence.scores
        if scores is not None and self._name in STRATEGIES and STRATEGIES[self._name].is_score:
            # Narrow columns hold these scores for every image, so nothing wide is read even for large pools.
            self._evidence.announce(self._name, len(refs), k)
            ids = [ref.image_id for ref in refs]
            values, entropies = scores.values(self._name, ids), scores.values("entropy", ids)
            ask: Ask = _OfScores(self._name, values, entropies, keys, self._settings)
        else:
            ask = _OfCandidates(self._name, self._evidence.gather(self._name, refs, keys, taken, k), self._settings)
        seed = derive_seed(self._seed, "strategy")
        if self._settings.class_quota == 1:
            return ask(np.arange(len(rest)), _NONE, k, seed)
        if scores is None:
            choice = ask(np.arange(len(rest)), _NONE, k, seed)
            note = "There is no model yet, so [acquisition] class_quota could not be applied."
            return dataclasses.replace(choice, notes=(*choice.notes, note))
        predicted = np.array(scores.predicted([ref.image_id for ref in (*refs, *taken)]), dtype=object)
        _, classes = np.unique(predicted.astype(str), return_inverse=True)
        limit = math.ceil(self._settings.class_quota * self._n)
        counts = np.bincount(classes[len(refs) :], minlength=int(classes.max()) + 1)
        return within_quota(ask, classes[: len(refs)], counts, limit, k, seed)


_NONE: Positions = np.empty(0, dtype=np.int64)


class _OfScores:
    """Choice by one score of each image: the highest scores, or a draw by the scores."""

    def __init__(
        self,
        name: str,
        values: npt.NDArray[np.float64],
        entropies: npt.NDArray[np.float64],
        keys: Keys,
        settings: AcquisitionConfig,
    ) -> None:
        self._name, self._values, self._entropies, self._keys, self._settings = name, values, entropies, keys, settings

    def __call__(self, eligible: Positions, kept: Positions, k: int, seed: int) -> Choice:
        choice = choose_by_score(
            self._name,
            self._values[eligible],
            self._entropies[eligible],
            self._keys[eligible],
            k,
            seed,
            perturb=self._settings.perturb,
            beta=self._settings.beta,
            explore=self._settings.explore,
        )
        return dataclasses.replace(choice, positions=eligible[choice.positions])


class _OfCandidates:
    """Choice by a strategy that considers the whole batch."""

    def __init__(self, name: str, candidates: Candidates, settings: AcquisitionConfig) -> None:
        self._name, self._candidates, self._settings = name, candidates, settings

    def __call__(self, eligible: Positions, kept: Positions, k: int, seed: int) -> Choice:
        """Choose from the eligible; `kept` images count as being asked about."""
        everyone = len(eligible) == len(self._candidates)
        candidates = self._candidates if everyone else _part(self._candidates, eligible, kept)
        choice = choose(self._name, candidates, k, seed)
        return dataclasses.replace(choice, positions=eligible[choice.positions])


Ask = _OfScores | _OfCandidates


def within_quota(
    ask: Ask, classes: npt.NDArray[np.intp], counts: npt.NDArray[np.intp], limit: int, k: int, seed: int
) -> Choice:
    """Let a strategy choose k images, at most `limit` of one predicted class.

    Images over the quota are dropped together with their class, and the strategy chooses the rest again; kept images
    count as being asked about. If only full classes are left, the batch exceeds the quota.

    Args:
        ask: (eligible, kept, k, seed) → choice.
        classes: Predicted class of each candidate [N].
        counts: Number of images of each class in the batch so far.
        limit: Largest number of images of one class.
        k: Number of images, at most N.
        seed: Seed of the first call of `ask`; later calls derive theirs.
    """
    counts = counts.copy()
    kept: list[int] = []
    scores: list[float] = []
    notes: list[str] = []
    attempt, choice = 0, None
    while len(kept) < k:
        left = np.setdiff1d(np.arange(len(classes)), kept)
        eligible = left[counts[classes[left]] < limit]
        is_full = len(eligible) == 0
        if is_full:
            notes.append(
                f"{k - len(kept)} images exceed the quota of {limit} per class, because no images of other classes "
                "were left."
            )
            eligible = left
        step = seed if attempt == 0 else derive_seed(seed, "quota", attempt)
        choice = ask(eligible, np.array(kept, dtype=np.int64), min(k - len(kept), len(eligible)), step)
        notes += choice.notes
        for position, score in zip(choice.positions.tolist(), choice.scores.tolist(), strict=True):
            if is_full or counts[classes[position]] < limit:
                counts[classes[position]] += 1
                kept.append(position)
                scores.append(score)
        attempt += 1
    # Once a class is excluded, the probabilities of the draws are no longer known.
    probabilities = choice.probabilities if choice is not None and attempt == 1 else None
    return Choice(
        np.array(kept, dtype=np.int64), np.array(scores, dtype=np.float64), probabilities, tuple(dict.fromkeys(notes))
    )


def _part(candidates: Candidates, eligible: Positions, kept: Positions) -> Candidates:
    """Return a part of the candidates, with others counted as being asked about."""
    rows = torch.from_numpy(eligible)
    features, labeled, labels = candidates.features, candidates.labeled, candidates.labels
    if features is not None and labeled is not None and labels is not None and len(kept):
        labeled = torch.cat([labeled, features[torch.from_numpy(kept)]])
        labels = torch.cat([labels, labels.new_full((len(kept),), -1)])
    return Candidates(
        keys=candidates.keys[eligible],
        calibrated_log_probs=None if candidates.calibrated_log_probs is None else candidates.calibrated_log_probs[rows],
        member_log_probs=None if candidates.member_log_probs is None else candidates.member_log_probs[:, rows],
        features=None if features is None else features[rows],
        labeled=labeled,
        labels=labels,
        head=candidates.head,
        rule=candidates.rule,
    )
