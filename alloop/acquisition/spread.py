"""Predictive entropy, spread over the pool: alloop's default (docs/acquisition.md section 14).

The value of a question is the entropy of its image, and the entropy of similar images that no image of the batch covers
yet. The weight of both depends on the model:

* With few labels, entropies mean little. Then coverage decides, and labeled images cover, too: typical images of
  regions without labels come first.
* The surer the calibrated model is of the pool, the more an image's own entropy counts, and the less a labeled neighbor
  matters: if the model is unsure in spite of it, the image is near a class boundary.
* The surer the model is, the more its predictions are sharpened before the entropy is taken. The entropy of a sharpened
  prediction is high where two classes are equally probable, and low where probability is spread over many classes of
  which one is far ahead: in the end images are ranked almost like by margin, which teaches more per label there.
* Uncertain images are unevenly spread over the classes, and labels of few classes teach a wrong prior. Therefore images
  of classes with fewer labels than their share of the pool count more, as far as the model can tell.
* The nearer the pool is to labeled images, the narrower is the kernel. In the end images cover only themselves, and the
  highest entropies are chosen.

benchmarks/label_efficiency shows how the strategy was chosen.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from alloop.acquisition.arrange import in_key_order, nearest, none_labeled, unit_
from alloop.acquisition.coverage import cost_of_herding, gaussian, herd
from alloop.acquisition.strategy import Candidates, Choice, Cost, Size
from alloop.composition import Need
from alloop.seeds import derive_seed

SHARPEST = 2.0  # power of the probabilities that a fully sure model's entropies are taken of
WIDTH = 0.85  # width of the kernel, in median distances from an image of the pool to the nearest labeled one
TARGETS, SOURCES = 4_000, 5_000  # largest numbers of images that are covered, and that may be chosen
PROBES = 3_000  # number of images that the median is taken over
NARROWEST = 1e-3


@in_key_order(Need.CALIBRATED_LOG_PROBS, Need.FEATURES)
def entropy_spread(candidates: Candidates, k: int, seed: int) -> Choice:
    """Choose in each step the image c with the largest Σ_x √u_x max(0, k(x, c) - m_x) · u_c^r f_c^(2r²).

    r = 1 - mean H(p̄) / ln K is the sureness of the model, in [0, 1]. u = H(q) / ln K, in [0, 1], is the predictive
    entropy of the sharpened prediction q = p̄^β / Σ p̄^β with β = 1 + (SHARPEST - 1) r. p̄ is calibrated. k(x, c) =
    exp(-d² / sigma²) of features that are centered and scaled to length 1; sigma is 0.85 of the median
    distance to the nearest labeled image. m_x is the coverage of x: images of this batch count fully, labeled ones with
    the factor 1 - r. f_c = Σ_k p̄_ck need_k, where need_k is the predicted share of class k over its share of the
    labels.

    Returns:
        Scores are the gain with a mean over the pool in place of the sum; at least 0.

    Source: herding weighted by uncertainty as in Bae et al. (2025), arXiv 2412.20644, with entropy in place of the
    margin; the sharpening, the fading of coverage, the width and the needs of classes are alloop's own.
    """
    assert candidates.calibrated_log_probs is not None and candidates.features is not None
    log_probs, rule = candidates.calibrated_log_probs, candidates.rule
    n_classes = log_probs.shape[1]
    sureness = 1 - float(rule.share_of_highest(log_probs).mean())
    power = 1 + (SHARPEST - 1) * sureness
    labeled = none_labeled(candidates)
    _center(candidates.features, labeled)
    sigma = _width(unit_(candidates.features), unit_(labeled), k, seed)
    u = rule.share_of_highest(rule.sharpen(log_probs, power)).double().numpy()
    factors = u**sureness * _needed(candidates, n_classes) ** (2 * sureness**2)
    choice = herd(
        candidates,
        k,
        seed,
        gaussian(sigma),
        np.sqrt(u),
        factors=factors,
        labeled_share=1 - sureness,
        n_targets=TARGETS,
        n_sources=SOURCES,
    )
    note = _explain(sureness, power, sigma)
    return dataclasses.replace(choice, notes=(note, *choice.notes))


def _explain(sureness: float, power: float, sigma: float) -> str:
    """Return what decided the choice, in words for people who label."""
    if sureness < 1 / 3:
        led = "mostly takes typical images of regions without labels"
    elif sureness < 2 / 3:
        led = "weighs typical images of regions without labels against images that the model is unsure of"
    else:
        led = "mostly takes images that the model is unsure of, spread over the pool"
    return (
        f"On average, the model is {100 * sureness:.0f} % sure of an image (0 %: all classes are equally probable). So "
        f"the batch {led}. Images count as similar up to a distance of about {sigma:.3f} between their features. "
        f"Entropies are computed from probabilities to the power {power:.2f}: the higher the power, the more images "
        "between two classes count."
    )


def _needed(candidates: Candidates, n_classes: int) -> npt.NDArray[np.float64]:
    """Return f [N]: above 1 for images of classes with too few labels for their predicted share; 1 without labels."""
    assert candidates.calibrated_log_probs is not None
    mass = candidates.rule.mass(candidates.calibrated_log_probs).numpy()
    labels = np.empty(0, dtype=np.int64) if candidates.labels is None else candidates.labels.numpy()
    labels = labels[labels >= 0]
    if len(labels) == 0:
        return np.ones(len(mass))
    counts = np.bincount(labels, minlength=n_classes)
    expected = (mass.sum(axis=0) + counts) / (len(mass) + len(labels))
    # One label is added to each class, so that a class without labels has a finite weight.
    there = (counts + 1) / (len(labels) + n_classes)
    return np.asarray(mass @ (expected / there))


def cost(size: Size) -> Cost:
    """Estimate the cost: herding, and the distances to the labeled images."""
    herding = cost_of_herding(size, TARGETS, SOURCES)
    probes = min(size.candidates, PROBES)
    return Cost(
        herding.operations + 0.6 * probes * size.labeled * size.features,
        herding.n_bytes + 12.0 * size.candidates * size.classes + 4.0 * probes * size.features,
    )


def _center(features: Float[Tensor, "N D"], labeled: Float[Tensor, "L D"]) -> None:
    """Subtract the mean of all rows in place, since features that are never negative point in similar directions."""
    total = features.double().sum(dim=0) + labeled.double().sum(dim=0)
    mean = (total / (len(features) + len(labeled))).float()
    features -= mean
    labeled -= mean


def _width(z: Float[Tensor, "N D"], labeled: Float[Tensor, "L D"], k: int, seed: int) -> float:
    """Return the width of the kernel. Without labels, a random batch replaces the labeled images."""
    generator = np.random.default_rng(derive_seed(seed, "width"))
    drawn = torch.from_numpy(generator.permutation(len(z)))
    reference = labeled if len(labeled) else z[drawn[:k]]
    distances = nearest(z[drawn[:PROBES].sort().values], reference)[0].sqrt()
    return max(WIDTH * float(distances.median()), NARROWEST)
