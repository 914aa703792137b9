"""Choose by any strategy from given predictions and features, as a round does: scores first, then the choice."""

import numpy as np
from torch import Tensor

from alloop.acquisition import registry
from alloop.acquisition.scores import SCORES, choose_by_score
from alloop.acquisition.strategy import Candidates, Choice
from alloop.composition import STRATEGIES, Need, strategy_name


def choose(name: str, candidates: Candidates, k: int, seed: int, **perturbation) -> Choice:
    """Choose k images; `perturb`, `beta` and `explore` are for strategies that score every image."""
    known = strategy_name(name)
    if known not in SCORES:
        return registry.choose(known, candidates, k, seed)
    scores, entropies = scores_of(known, candidates), scores_of("entropy", candidates, STRATEGIES[known].needs)
    return choose_by_score(known, scores, entropies, candidates.keys, k, seed, **perturbation)


def scores_of(name: str, candidates: Candidates, needs: frozenset[Need] | None = None) -> np.ndarray:
    """Return the score of each image, from the predictions that the strategy needs."""
    of_members = Need.MEMBER_LOG_PROBS in (STRATEGIES[name].needs if needs is None else needs)
    log_probs: Tensor = candidates.member_log_probs if of_members else candidates.calibrated_log_probs.unsqueeze(0)
    return SCORES[name].function(log_probs).double().numpy()
