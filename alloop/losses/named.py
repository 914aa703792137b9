"""Losses by their names in alloop.toml, with the terms that multi-head training needs."""

import dataclasses
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.composition import LOSSES, LossPlace, LossRule, loss_parameters
from alloop.losses.batch_calibration import dca_loss, mmce_loss
from alloop.losses.cross_entropy import Reduction, Targets, cross_entropy
from alloop.losses.entropy_penalty import entropy_regularized
from alloop.losses.focal import focal, focal_53
from alloop.losses.logit_norm import logit_norm_loss, normalize_logits
from alloop.losses.smoothing import label_smoothing, margin_label_smoothing

Term = Callable[[Tensor, Targets, Tensor | None, Reduction], Tensor]  # (scores, targets, class weights, reduction)


@dataclasses.dataclass(frozen=True, slots=True)
class Loss:
    """Loss with its parameters.

    Attributes:
        name: Name in `composition.LOSSES`.
        parameters: All parameters, sorted by name.
        rule: Properties and needs, from the same table.
        head_term: Term of one head's raw logits [B, K].
        pooled_term: Term of log p̄ [B, K], pooled from `log_probs`.
    """

    name: str
    parameters: tuple[tuple[str, float], ...]
    rule: LossRule
    head_term: Term = dataclasses.field(repr=False, compare=False)
    pooled_term: Term = dataclasses.field(repr=False, compare=False)

    def value(
        self,
        logits: Float[Tensor, "B K"],
        targets: Targets,
        weights: Float[Tensor, "K"] | None = None,
        reduction: Reduction = "mean",
        *,
        check: bool = True,
    ) -> Tensor:
        """Return the loss of a single predictor's raw logits, in float32 or wider. `check` as in `composed_loss`.

        Raises:
            ValueError: The loss does not accept soft targets, or a row of logits is not finite.
        """
        with torch.autocast(logits.device.type, enabled=False):
            wide = check_finite(widen(logits)) if check else widen(logits)
            if self.rule.place is LossPlace.POOLED:
                return self.pooled_term(self.log_probs(wide), targets, weights, reduction)
            return self.head_term(wide, targets, weights, reduction)

    def scores(self, logits: Float[Tensor, "*members B K"]) -> Float[Tensor, "*members B K"]:
        """Return the input of softmax, in training and at inference: logits, or for LogitNorm normalized logits."""
        wide = widen(logits)
        return normalize_logits(wide, dict(self.parameters)["tau"]) if self.rule.normalizes_logits else wide

    def log_probs(self, logits: Float[Tensor, "*members B K"]) -> Float[Tensor, "*members B K"]:
        """Return log-probabilities at inference, float32 or wider. OOD scores may need raw logits instead."""
        return self.scores(logits).log_softmax(dim=-1)


def find_loss(name: str = "cross-entropy", parameters: Mapping[str, float] | None = None) -> Loss:
    """Return the loss of this name; parameters that are not given have their defaults.

    Raises:
        ValueError: The loss or a parameter is unknown, or a value is outside its range.
    """
    values = loss_parameters(name, parameters)
    return Loss(name, tuple(sorted(values.items())), LOSSES[name], *_terms(name, values))


def widen(logits: Tensor) -> Tensor:
    """Convert to float32; float64 stays."""
    return logits if logits.dtype == torch.float64 else logits.float()


def check_finite(logits: Float[Tensor, "*members B K"]) -> Float[Tensor, "*members B K"]:
    """Return the logits unchanged after checking them.

    Raises:
        ValueError: A logit is nan or infinite; names the first row.
    """
    if not bool(torch.isfinite(logits).all()):
        bad = ~torch.isfinite(logits).all(dim=-1).reshape(-1, logits.shape[-2]).all(dim=0)
        raise ValueError(f"the logits of row {int(bad.nonzero()[0])} are not finite ({int(bad.sum())} such rows)")
    return logits


def _terms(name: str, values: dict[str, float]) -> tuple[Term, Term]:
    """Return the term of a head and the pooled term; where the loss does not act, the term is plain cross-entropy."""
    rule, function = LOSSES[name], _FUNCTIONS[name]
    if rule.needs_raw_logits:
        return lambda z, q, w, r: function(z, q, weights=w, reduction=r, **values), cross_entropy
    if rule.place is LossPlace.POOLED:
        return _of_logits(cross_entropy), lambda lp, q, w, r: function(lp, q, class_weights=w, reduction=r, **values)

    def term(log_probs: Tensor, targets: Targets, weights: Tensor | None, reduction: Reduction) -> Tensor:
        return function(log_probs, targets, weights=weights, reduction=reduction, **values)

    return _of_logits(term), term


def _of_logits(term: Term) -> Term:
    return lambda z, q, w, r: term(z.log_softmax(dim=-1), q, w, r)


# Functions of raw logits where the rule says so, else of log-probabilities.
_FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "cross-entropy": cross_entropy,
    "label-smoothing": label_smoothing,
    "mbls": margin_label_smoothing,
    "focal": focal,
    "flsd-53": focal_53,
    "entropy": entropy_regularized,
    "entropy-hinge": entropy_regularized,
    "mmce": mmce_loss,
    "dca": dca_loss,
    "logit-norm": logit_norm_loss,
}
