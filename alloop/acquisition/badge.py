"""BADGE: batches with diverse gradients of the last layer.

Gradients have M * K * (D + 1) numbers each and are never formed: g = a ⊗ (h, 1), so their inner products are products
of inner products.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from alloop.acquisition.arrange import BLOCK_FLOATS, drawn, in_key_order, squared_lengths
from alloop.acquisition.strategy import Candidates, Choice, Cost, Size
from alloop.composition import Need
from alloop.predictive import mean_log_probs
from alloop.seeds import derive_seed

ROUNDING = 1e-6  # largest relative squared distance that rounding leaves between equal gradients


@in_key_order(Need.MEMBER_LOG_PROBS, Need.FEATURES)
def badge(candidates: Candidates, k: int, seed: int) -> Choice:
    """Choose by k-means++ seeding on gradients of the cross-entropy at the label that the model itself predicts.

    The first image is drawn by its squared length, each next one by its squared distance to the nearest drawn image. If
    only copies are left, the rest is drawn uniformly. All heads use the label of their mean prediction, and their
    gradients are joined, so inner products are summed over heads.

    Returns:
        Scores are the squared distance to the nearest earlier image when each was drawn; of the first, its squared
        length. Probabilities are omitted: sure images and copies have a probability of about 0, which makes weighted
        estimates worthless.

    Source: Ash et al. (2020), arXiv 1906.03671, algorithm 1; docs/acquisition.md section 9.
    """
    assert candidates.member_log_probs is not None and candidates.features is not None
    errors, h = output_gradients(candidates.member_log_probs), candidates.features
    scale = torch.stack([h.amax(), -h.amin()]).amax().clamp_min(1)  # 1e19 squared is too much for float32
    h /= scale
    bias = float(1 / scale) ** 2
    lengths = squared_lengths(errors) * (squared_lengths(h) + bias)
    generator = np.random.default_rng(derive_seed(seed, "badge"))

    left = np.ones(len(h), dtype=bool)
    distances = lengths.clone()
    picked, scores = [], []
    for number in range(k):
        chosen = drawn(distances.double().numpy() * left, left, generator)
        picked.append(chosen)
        scores.append(float(distances[chosen]) * float(scale) ** 2)
        left[chosen] = False
        between = lengths + lengths[chosen]
        inner = (errors @ errors[chosen]) * (h @ h[chosen] + bias)
        to_chosen = between - 2 * inner
        to_chosen.masked_fill_(to_chosen <= ROUNDING * between, 0)
        # The first distances replace the lengths, because the origin is not a center.
        distances = to_chosen if number == 0 else torch.minimum(distances, to_chosen)
    return Choice(np.array(picked, dtype=np.int64), np.array(scores))


def output_gradients(members: Float[Tensor, "M N K"]) -> Float[Tensor, "N M*K"]:
    """Return p_m - onehot(argmax p̄) of every head, side by side."""
    n_members, n, n_classes = members.shape
    labels = mean_log_probs(members).argmax(dim=1)
    errors = members.float().exp()
    errors[:, torch.arange(n), labels] -= 1
    return errors.transpose(0, 1).reshape(n, n_members * n_classes)


def cost(size: Size) -> Cost:
    """Estimate the cost: one pass over features and output gradients for each image of the batch."""
    outputs = max(size.members, 1) * size.classes
    operations = 8.0 * size.k * size.candidates * (size.features + outputs + 10)
    return Cost(operations, 4.0 * size.candidates * (size.features + 4 * outputs + 20) + 4 * BLOCK_FLOATS)
