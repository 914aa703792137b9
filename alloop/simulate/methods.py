"""Methods of the papers by name, as settings that differ from a plain single head."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from alloop.config.load import validate_config
from alloop.config.schema import Config
from alloop.errors import ConfigError, did_you_mean

Sections = Mapping[str, Mapping[str, Any]]

BASELINE = "SL1H"  # method that times are relative to
OWN = "config"  # the workspace's own settings
# Settings that define a method. A comparison starts from their defaults, not from the workspace's values.
_METHOD_KEYS: Mapping[str, tuple[str, ...]] = {
    "model": (
        "uncertainty",
        "members",
        "heads",
        "head_weights",
        "dropout",
        "consistent_masks",
    ),
    "train": ("loss", "loss_parameters", "mixing", "mixing_alpha", "mixing_probability"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """Named method.

    Attributes:
        name: Name in the papers.
        summary: Description in one line.
        sections: Settings by section.
    """

    name: str
    summary: str
    sections: Sections


def _single(**train: Any) -> Sections:
    return {"model": {"uncertainty": "single"}, "train": train}


def _heads(n: int, *, weighted: bool = True) -> Sections:
    model = {"uncertainty": "multi-head", "members": n}
    return {"model": model if weighted else {**model, "head_weights": "same"}}


_ALL = (
    Method("SL1H", "one head, cross-entropy", _single()),
    Method("2HSL", "two heads, the same loss on each", _heads(2, weighted=False)),
    Method("4HSL", "four heads, the same loss on each", _heads(4, weighted=False)),
    Method("2HML", "Multi-Head Multi-Loss, two heads", _heads(2)),
    Method("4HML", "Multi-Head Multi-Loss, four heads", _heads(4)),
    Method("8HML", "Multi-Head Multi-Loss, eight heads", _heads(8)),
    Method("ensemble-5", "five single-head models", {"model": {"uncertainty": "ensemble", "members": 5}}),
    Method(
        "ensemble-5x4HML",
        "five models of four Multi-Head Multi-Loss heads",
        {"model": {"uncertainty": "ensemble", "members": 5, "heads": 4}},
    ),
    Method("MC-dropout", "one head, 20 dropout passes", {"model": {"uncertainty": "mc-dropout", "members": 20}}),
    Method("LS", "label smoothing", _single(loss="label-smoothing")),
    Method("MbLS", "margin-based label smoothing", _single(loss="mbls")),
    Method("FL-3", "focal loss, γ = 3", _single(loss="focal")),
    Method("FLSD-53", "focal loss, γ = 5 or 3 by the true class's probability", _single(loss="flsd-53")),
    Method("entropy-reg", "penalty on confident predictions", _single(loss="entropy")),
    Method("entropy-hinge", "penalty on entropies below a threshold", _single(loss="entropy-hinge")),
    Method("MMCE", "kernel calibration error as a penalty", _single(loss="mmce")),
    Method("DCA", "difference of confidence and accuracy as a penalty", _single(loss="dca")),
    Method("LogitNorm", "cross-entropy of normalized logits", _single(loss="logit-norm")),
    Method("MixUp", "training on mixed images (frozen: mixed features)", _single(mixing="mixup")),
    Method("CutMix", "training on images with a patch of another", _single(mixing="cutmix")),
    Method("MixUp/CutMix", "one of the two, drawn for every batch", _single(mixing="either")),
)
METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _ALL})


def find_method(name: str) -> Method:
    """Return the method of this name, in upper or lower case.

    Raises:
        ConfigError: The name is unknown; suggests the nearest one.
    """
    folded = {known.casefold(): known for known in METHODS}
    if name.casefold() == OWN:
        return Method(OWN, "the workspace's own settings", {})
    if name.casefold() not in folded:
        # Compared in lower case: "2hlm" is near "2HML".
        near = did_you_mean(name.casefold(), folded)
        raise ConfigError(
            f"There is no method '{name}'{_as_written(near, folded)}", f"There are: {', '.join([*METHODS, OWN])}."
        )
    return METHODS[folded[name.casefold()]]


def apply_method(config: Config, method: Method) -> Config:
    """Return settings for one method: settings that define a method are reset, then set by the method.

    Raises:
        ConfigError: The combination does not work; the error gives the reason.
    """
    if method.name == OWN:
        return config
    data = config.model_dump(mode="json")
    for section, keys in _METHOD_KEYS.items():
        data[section] = {key: value for key, value in data[section].items() if key not in keys}
    for section, values in method.sections.items():
        data[section] = {**data.get(section, {}), **values}
    return validate_config(data, f"method {method.name}")


def list_methods(config: Config) -> tuple[Method, ...]:
    """List the methods that work with a config, in the order of the table."""
    return tuple(method for method in _ALL if _goes_together(config, method))


def find_methods(config: Config, names: Sequence[str]) -> tuple[Method, ...]:
    """Return the named methods, each once, in the order given; without names, all that work with the config.

    Raises:
        ConfigError: A method is unknown, or does not work with the config.
    """
    named = {method.name: method for method in map(find_method, names)}
    found = tuple(named.values()) or list_methods(config)
    for method in found:
        apply_method(config, method)
    return found


def _goes_together(config: Config, method: Method) -> bool:
    try:
        apply_method(config, method)
    except ConfigError:
        return False
    return True


def _as_written(text: str, folded: Mapping[str, str]) -> str:
    """Return the end of a message about lower-case names, with the names as they are written."""
    if "did you mean" not in text:
        return "."
    return next(text.replace(f"'{key}'", f"'{name}'") for key, name in folded.items() if f"'{key}'" in text)
