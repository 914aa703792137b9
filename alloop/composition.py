"""Methods by name, with their defaults and needs, and the combinations that work. No tensors.

Source: docs/methods.md sections 1 (Composition), 11 and 12.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping

from alloop.errors import did_you_mean
from alloop.plugins import list_installed

# Name of a task: the kind of answer that people give about an image and that models learn. Every room in which tasks
# differ has a table `TASKS` with one entry for each task: consensus, labeling.label_config, engine.targets,
# acquisition.rows, evaluation.measures and report.shown.
CLASSIFICATION = "classification"


class LossPlace(enum.StrEnum):
    """Terms in which a loss replaces cross-entropy if there are several heads."""

    BOTH = "on every head and on the pooled prediction"
    HEADS = "on every head only"
    POOLED = "on the pooled prediction only, once"


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """Parameter of a method. `also` is a value outside the range that is accepted, too."""

    default: float
    low: float
    high: float = math.inf
    also: float | None = None
    excludes_low: bool = False

    def accepts(self, value: float) -> bool:
        if value == self.also:
            return True
        above = value > self.low if self.excludes_low else value >= self.low
        return math.isfinite(value) and above and value <= self.high

    def __str__(self) -> str:
        upper = "" if self.high == math.inf else f" and at most {self.high:g}"
        other = "" if self.also is None else f", or {self.also:g}"
        return f"{'above' if self.excludes_low else 'at least'} {self.low:g}{upper}{other}"


@dataclasses.dataclass(frozen=True, slots=True)
class LossRule:
    """Properties and needs of a loss.

    Attributes:
        parameters: Parameters by name.
        place: Place where the loss acts with several heads.
        is_plain: True for cross-entropy itself.
        is_smooth: True if the loss over all labels is smooth with one minimum, which L-BFGS finds.
        needs_raw_logits: True if the function takes raw logits of a head, not log-probabilities.
        normalizes_logits: True if softmax is taken of normalized logits, in training and at inference.
        takes_soft_targets: True if the loss is defined for mixed targets.
        smallest_batch: Smallest number of images in a batch.
    """

    parameters: Mapping[str, Parameter]
    place: LossPlace = LossPlace.BOTH
    is_plain: bool = False
    is_smooth: bool = False
    needs_raw_logits: bool = False
    normalizes_logits: bool = False
    takes_soft_targets: bool = True
    smallest_batch: int = 1

    @property
    def has_prior(self) -> bool:
        """True if a prior may act at the center of the features; normalized logits have no direction there."""
        return not self.normalizes_logits


_BETA = Parameter(0.1, 0.0)

# Not smooth: MMCE and DCA compare the images of a batch with each other; FLSD-53 jumps; MbLS and the entropy's hinge
# have kinks; the slope of LogitNorm grows as its logits shrink.
LOSSES: Mapping[str, LossRule] = {
    "cross-entropy": LossRule({}, is_plain=True, is_smooth=True),
    "label-smoothing": LossRule({"epsilon": Parameter(0.05, 0.0, 1.0)}, is_smooth=True),
    "mbls": LossRule(
        {"margin": Parameter(10.0, 0.0), "alpha": Parameter(0.1, 0.0)}, LossPlace.HEADS, needs_raw_logits=True
    ),
    # Below 1 the slope is infinite where the true class has probability 1.
    "focal": LossRule({"gamma": Parameter(3.0, 1.0, also=0.0)}, is_smooth=True),
    "flsd-53": LossRule({}),
    "entropy": LossRule({"beta": _BETA}, is_smooth=True),
    "entropy-hinge": LossRule({"beta": _BETA, "threshold": Parameter(0.5, 0.0)}),
    "mmce": LossRule(
        {"weight": Parameter(2.0, 0.0), "width": Parameter(0.4, 0.0, excludes_low=True)},
        LossPlace.POOLED,
        takes_soft_targets=False,
        smallest_batch=16,
    ),
    "dca": LossRule(
        {"alpha": Parameter(1.0, 0.0), "beta": Parameter(5.0, 0.0)}, LossPlace.POOLED, takes_soft_targets=False
    ),
    "logit-norm": LossRule(
        {"tau": Parameter(0.04, 0.0, excludes_low=True)}, LossPlace.HEADS, needs_raw_logits=True, normalizes_logits=True
    ),
}


@dataclasses.dataclass(frozen=True, slots=True)
class MixingRule:
    """Properties of a way to mix batches. One that blends and cuts chooses one of the two for each batch.

    Attributes:
        blends: True if images are averaged (MixUp).
        cuts: True if a rectangle is replaced (CutMix), which needs images.
        probability: Default probability that a batch is mixed.
    """

    blends: bool = False
    cuts: bool = False
    probability: float = 1.0


MIXINGS: Mapping[str, MixingRule] = {
    "none": MixingRule(),
    "mixup": MixingRule(blends=True),
    "cutmix": MixingRule(cuts=True, probability=0.5),
    "either": MixingRule(blends=True, cuts=True),
}


@dataclasses.dataclass(frozen=True, slots=True)
class CalibratorRule:
    """Properties and needs of a calibrator.

    Attributes:
        smallest: Number of images for a calibrator by name.
        considered: Number of images from which `auto` considers it.
        considered_per_class: Number of images per class from which `auto` considers it.
        is_flexible: True if `auto` takes it only when it is clearly better than a simple calibrator.
        chooses: True if it takes the best of the others and fits nothing of its own.
        title: Name of the fit in sentences; empty for the calibrator's own name.
        unfitted: Consequence of too few images, in words.
    """

    smallest: int
    considered: int
    considered_per_class: int = 0
    is_flexible: bool = False
    chooses: bool = False
    title: str = ""
    unfitted: str = "predictions stay as they are"


CALIBRATORS: Mapping[str, CalibratorRule] = {  # from simple to flexible; of equals `auto` takes the first
    "none": CalibratorRule(0, 0),
    "temperature": CalibratorRule(50, 50, title="a temperature", unfitted="T = 1"),
    "platt": CalibratorRule(50, 100, 10, is_flexible=True),
    "histogram-mass": CalibratorRule(50, 200, 30, is_flexible=True),
    "histogram-width": CalibratorRule(50, 200, 30, is_flexible=True),
    # With fewer the curve is mostly steps of single images.
    "isotonic": CalibratorRule(200, 1000, 100, is_flexible=True),
    "auto": CalibratorRule(50, 50, chooses=True),
}


@dataclasses.dataclass(frozen=True, slots=True)
class OodRule:
    """Needs of an out-of-distribution score.

    Attributes:
        title: Name in tables.
        of_several: True if the score compares members.
        needs_images: True if the score changes pixels and runs the trunk again.
    """

    title: str
    of_several: bool = False
    needs_images: bool = False


OOD_SCORES: Mapping[str, OodRule] = {
    "msp": OodRule("MSP"),
    "entropy": OodRule("entropy"),
    "gen": OodRule("GEN"),
    "max-logit": OodRule("max logit"),
    "energy": OodRule("energy"),
    "gradnorm": OodRule("GradNorm"),
    "mutual-information": OodRule("mutual information", of_several=True),
    "odin": OodRule("ODIN", needs_images=True),
}


@dataclasses.dataclass(frozen=True, slots=True)
class PerturbationRule:
    """Needs of a perturbation.

    Attributes:
        needs_positive: True if scores must not be negative.
    """

    needs_positive: bool = False


PERTURBATIONS: Mapping[str, PerturbationRule] = {
    "none": PerturbationRule(),
    "power": PerturbationRule(needs_positive=True),
    "softmax": PerturbationRule(),
    "soft-rank": PerturbationRule(),
}


class Need(enum.StrEnum):
    """Part of the candidates that a strategy needs (`acquisition.strategy.Candidates`)."""

    CALIBRATED_LOG_PROBS = "predictions"
    MEMBER_LOG_PROBS = "every member's predictions"
    FEATURES = "features"
    HEAD = "the model's head"


@dataclasses.dataclass(frozen=True, slots=True)
class StrategyRule:
    """Properties and needs of a strategy.

    Attributes:
        needs: Parts of the candidates that it needs. Without a model, only strategies that need just features can
            choose.
        is_score: True if it gives every image a score, which can be perturbed; others choose a batch as a whole.
        of_several: True if it compares members, so that it needs several.
    """

    summary: str
    needs: frozenset[Need] = frozenset()
    is_score: bool = False
    of_several: bool = False


def _score(summary: str, *needs: Need, of_several: bool = False) -> StrategyRule:
    return StrategyRule(summary, frozenset(needs), is_score=True, of_several=of_several)


def _batch(summary: str, *needs: Need, of_several: bool = False) -> StrategyRule:
    return StrategyRule(summary, frozenset(needs), of_several=of_several)


STRATEGIES: Mapping[str, StrategyRule] = {
    "entropy-spread": _batch("predictive entropy, spread over the pool", Need.CALIBRATED_LOG_PROBS, Need.FEATURES),
    "entropy": _score("highest predictive entropy", Need.CALIBRATED_LOG_PROBS),
    "margin": _score("a small margin between the two best classes", Need.CALIBRATED_LOG_PROBS),
    "least-confidence": _score("a low probability of the best class", Need.CALIBRATED_LOG_PROBS),
    "expected-entropy": _score("mean entropy of the members", Need.MEMBER_LOG_PROBS),
    "mutual-information": _score("members that disagree (BALD)", Need.MEMBER_LOG_PROBS, of_several=True),
    "variation-ratio": _score("members that vote differently", Need.MEMBER_LOG_PROBS, of_several=True),
    "batchbald": _batch("members that disagree, jointly over the batch", Need.MEMBER_LOG_PROBS, of_several=True),
    "badge": _batch("diverse gradients of the last layer", Need.MEMBER_LOG_PROBS, Need.FEATURES),
    "cluster-margin": _batch("small margins, spread over clusters", Need.CALIBRATED_LOG_PROBS, Need.FEATURES),
    "dropquery": _batch(
        "predictions that change under dropout, one per cluster", Need.CALIBRATED_LOG_PROBS, Need.FEATURES, Need.HEAD
    ),
    "uherding": _batch("coverage of the pool, weighted by the margin", Need.CALIBRATED_LOG_PROBS, Need.FEATURES),
    "max-herding": _batch("coverage of the pool by a kernel", Need.FEATURES),
    "probcover": _batch("coverage of the pool by balls", Need.FEATURES),
    "typiclust": _batch("the most typical image of each cluster", Need.FEATURES),
    "k-center": _batch("images far from labeled ones (CoreSet)", Need.FEATURES),
    "random": _batch("a uniform draw"),
}
DEFAULT_STRATEGY = "entropy-spread"
ALIASES = {"default": DEFAULT_STRATEGY, "bald": "mutual-information", "coreset": "k-center", "kcenter": "k-center"}
STRATEGY_GROUP = "alloop.strategies"  # the entry points by which others add theirs

# Name in `[labeling] backend` → where its `labeling.backend.Backend` is written.
BACKENDS: Mapping[str, str] = {
    "label-studio": "alloop.labeling.label_studio_backend:BACKEND",
    "csv": "alloop.labeling.csv_file:BACKEND",
    "oracle": "alloop.labeling.simulated:BACKEND",
}
DEFAULT_BACKEND = "label-studio"
BACKEND_GROUP = "alloop.labeling"  # the entry points by which others add theirs

# Name of an executor → its class, an `alloop.executor.Executor` that is made without arguments.
EXECUTORS: Mapping[str, str] = {"local": "alloop.engine.executor_local:LocalExecutor"}
DEFAULT_EXECUTOR = "local"
EXECUTOR_GROUP = "alloop.executors"  # the entry points by which others add theirs


def check_backend(name: str) -> None:
    """Refuse an unknown labeling back end.

    Raises:
        ValueError: The name is unknown; suggests the nearest one.
    """
    if name not in BACKENDS:
        _check_name("labeling back end", name, (*BACKENDS, *list_installed(BACKEND_GROUP)))


def strategy_name(name: str) -> str:
    """Return the name of a strategy, with aliases and underscores resolved.

    A strategy of another package keeps the spelling of its entry point.
    """
    known = ALIASES.get(_folded(name), _folded(name))
    if known in STRATEGIES:
        return known
    alike = [own for own in own_strategies() if _folded(own) == known]
    return name if name in alike else next(iter(alike), known)


def _folded(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def own_strategies() -> tuple[str, ...]:
    """List the strategies that other installed packages add, without importing them."""
    return list_installed(STRATEGY_GROUP)


def check_strategy_name(name: str) -> None:
    """Refuse an unknown strategy.

    Raises:
        ValueError: The name is unknown; suggests the nearest one.
    """
    known = strategy_name(name)
    if known not in STRATEGIES:
        _check_name("strategy", known, (*STRATEGIES, *ALIASES, *own_strategies()))


def check_strategy(name: str, *, n_members: int = 1, perturb: str = "none") -> None:
    """Refuse a strategy that cannot work with the model. Strategies of other packages are not checked.

    Args:
        name: Name as written, possibly an alias.
        n_members: Number of members M of the model, with dropout passes.
        perturb: Name in `PERTURBATIONS`.

    Raises:
        ValueError: The strategy cannot work; gives the reason and an alternative.
    """
    known = strategy_name(name)
    _check_name("perturbation", perturb, PERTURBATIONS)
    if known not in STRATEGIES:
        if perturb != "none":
            raise ValueError(
                f"{perturb} perturbs a score that alloop computes, and {known} of another package chooses by itself; "
                'set perturb = "none"'
            )
        return
    rule = STRATEGIES[known]
    if rule.of_several and n_members < 2:
        raise ValueError(
            f"the strategy {known} measures disagreement between members, but the model has only one; "
            "use entropy, or a model with several members"
        )
    if perturb != "none" and not rule.is_score:
        raise ValueError(f"{perturb} perturbs scores of images, but {known} has no such scores; use entropy or margin")


def loss_parameters(name: str, given: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the parameters of a loss, with defaults filled in.

    Raises:
        ValueError: The loss or a parameter is unknown, or a value is outside its range.
    """
    _check_name("loss", name, LOSSES)
    rules = LOSSES[name].parameters
    for key, value in (given or {}).items():
        if key not in rules:
            raise ValueError(f"the loss {name} has no parameter '{key}'{did_you_mean(key, rules)}")
        if not rules[key].accepts(value):
            raise ValueError(f"{key} of the loss {name} must be {rules[key]}, not {value:g}")
    return {key: rule.default for key, rule in rules.items()} | {key: float(v) for key, v in (given or {}).items()}


def check_composition(
    *,
    loss: str = "cross-entropy",
    parameters: Mapping[str, float] | None = None,
    mixing: str = "none",
    frozen: bool = True,
    has_images: bool = True,
    batch_size: int | None = None,
    n_members: int = 1,
    dropout_passes: int | None = None,
    dropout_rate: float | None = None,
    consistent_masks: bool = False,
    calibrator: str = "temperature",
    ood_score: str = "msp",
) -> None:
    """Refuse combinations of methods that do not work.

    Args:
        loss: Name in `LOSSES`.
        parameters: Parameters of the loss, by name.
        mixing: Name in `MIXINGS`.
        frozen: True if training uses features [N, D] instead of images.
        has_images: True if there are images behind the features.
        batch_size: Number of images per update; None: all at once.
        n_members: Heads times networks, without dropout passes.
        dropout_passes: Number of passes of MC dropout; None without it.
        dropout_rate: Rate of MC dropout; None: the default.
        consistent_masks: True if MC dropout uses the same masks for all images.
        calibrator: Name in `CALIBRATORS`.
        ood_score: Name in `OOD_SCORES`.

    Raises:
        ValueError: A combination does not work; gives the reason and an alternative.
    """
    loss_parameters(loss, parameters)
    _check_name("mixing", mixing, MIXINGS)
    _check_name("calibrator", calibrator, CALIBRATORS)
    _check_name("OOD score", ood_score, OOD_SCORES)
    _check_mixing(loss, mixing, frozen)
    smallest = LOSSES[loss].smallest_batch
    if batch_size is not None and batch_size < smallest:
        raise ValueError(
            f"{loss} compares the images of a batch with each other, and {batch_size} images are too few; "
            f"set batch_size to at least {smallest}"
        )
    _check_dropout(dropout_passes, dropout_rate)
    _check_ood_score(ood_score, n_members, dropout_passes, consistent_masks)
    if OOD_SCORES[ood_score].needs_images and not has_images:
        title = OOD_SCORES[ood_score].title
        raise ValueError(f"{title} changes the pixels of images, but the pool holds only features; use energy instead")


def _check_ood_score(name: str, n_members: int, dropout_passes: int | None, consistent_masks: bool) -> None:
    rule = OOD_SCORES[name]
    if rule.of_several and n_members * (dropout_passes or 1) < 2:
        raise ValueError(f"{rule.title} measures disagreement between members, but there is only one; use msp instead")
    if rule.needs_images and dropout_passes is not None and not consistent_masks:
        raise ValueError(
            f"{rule.title} compares what a network says of an image and of a changed one, and dropout masks drawn anew "
            "would change it, too; set consistent_masks = true, or score by energy instead"
        )


def _check_mixing(loss: str, mixing: str, frozen: bool) -> None:
    if mixing != "none" and not LOSSES[loss].takes_soft_targets:
        raise ValueError(
            f"{mixing} makes soft targets, and {loss} needs to know whether a prediction is right, which is undefined "
            "for a mixed image; turn mixing off or choose another loss"
        )
    if MIXINGS[mixing].cuts and frozen:
        raise ValueError(
            f"{mixing} cuts rectangles out of images, and a frozen trunk is trained on features, which have none; "
            "choose mixup, or fine-tune"
        )


def _check_dropout(passes: int | None, rate: float | None) -> None:
    if passes is not None and passes < 2:
        raise ValueError(f"MC dropout needs at least 2 passes, not {passes}")
    if rate is not None and not 0 <= rate < 1:
        raise ValueError(f"a dropout rate is at least 0 and below 1, not {rate:g}")
    if passes is not None and rate == 0:
        raise ValueError("MC dropout at rate 0 repeats one prediction; take a rate of 0.25, or another method")


def _check_name(kind: str, name: str, known: Mapping[str, object] | tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"there is no {kind} '{name}'{did_you_mean(name, known)}")


# Formats of exported labels, which alloop/export/formats.py writes: name → True for a folder with the images.
EXPORTS: Mapping[str, bool] = {
    "csv": False,
    "jsonl": False,
    "parquet": False,
    "folders": True,
    "hf-imagefolder": True,
    "coco": True,
    "fiftyone": True,
}
