"""From settings to numbers and modules. Nothing else reads [model] and [train]."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from alloop.composition import MIXINGS
from alloop.config.schema import Config
from alloop.engine.device import choose_device
from alloop.files import from_folder
from alloop.losses.mixing import Mixing
from alloop.losses.multi_head import LossScale
from alloop.losses.named import Loss, find_loss
from alloop.models.backbones import Backbone, load_backbone
from alloop.models.dropout import HeadDropout
from alloop.seeds import derive_seed

HEAD_STEPS, HEAD_DECAY, HEAD_PRIOR = 200, 5e-5, 3.0  # found in benchmarks/recipe
NO_MIXING = Mixing()
HEAD_UPDATES, HEAD_BATCH, HEAD_RATE = 1000, 64, 0.1  # where the whole set cannot be taken at once


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Device, batch size, and number of processes that decode images."""

    device: torch.device
    batch_size: int
    workers: int


@dataclasses.dataclass(frozen=True)
class HeadRecipe:
    """Recipe of heads on fixed features. The defaults were found in benchmarks/recipe.

    Attributes:
        steps: Most L-BFGS iterations.
        weight_decay: Factor of half the squared weights, averaged over heads, for features of mean squared norm 1.
        prior: How many images at the center of all features count as evenly of every class. Without it a class that
            nobody has labeled yet gets a probability of nearly 0 everywhere, and one image of it in the holdout spoils
            NLL and temperature.
        loss_scale: See `losses.multi_head`.
        updates: Number of updates of Adam (mini-batches of 64, learning rate 0.1, cosine to 0), if L-BFGS cannot be
            used.
        mixing: Mixing of features; needs mini-batches.
        dropout: Dropout of features; needs mini-batches.
    """

    steps: int
    weight_decay: float
    prior: float
    loss_scale: LossScale
    updates: int = HEAD_UPDATES
    mixing: Mixing = NO_MIXING
    dropout: HeadDropout | None = None

    def has_one_solution(self, loss: Loss) -> bool:
        """True if the heads minimize a smooth function of all labels, which L-BFGS solves."""
        return loss.rule.is_smooth and not self.mixing.is_on and self.dropout is None


@dataclasses.dataclass(frozen=True)
class FinetuneRecipe:
    """Recipe of training trunk and heads together.

    Attributes:
        learning_rate: Learning rate of the heads; the trunk's is a tenth of it.
        patience: Epochs without a better validation NLL before stopping.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    loss_scale: LossScale
    patience: int
    mixing: Mixing = NO_MIXING
    dropout: HeadDropout | None = None


def build_hardware(config: Config, device: str | None) -> Hardware:
    """The device asked for (an argument beats the settings), and the batch size for running a trunk there."""
    chosen = choose_device(device or config.model.device)
    batch_size = config.train.batch_size or (256 if chosen.type == "cuda" else 32)
    return Hardware(chosen, batch_size, config.train.workers)


def build_backbone(config: Config, search_paths: Sequence[Path] = (), member: int = 0) -> Backbone:
    """The trunk that [model] names, on the CPU, in eval mode. A weights file is relative to the first search path.

    Untrained trunks that are fine-tuned start from other weights in each network of an ensemble.
    """
    model = config.model
    seed = derive_seed(config.project.seed, "backbone")
    if member and model.mode == "finetune":
        seed = derive_seed(config.project.seed, "backbone", member)
    weights = model.weights
    if weights not in {"DEFAULT", "none"}:
        weights = str(from_folder(search_paths[0] if search_paths else Path(), weights))
    return load_backbone(model.backbone, weights, model.image_size, search_paths, seed)


def build_dropout(config: Config) -> HeadDropout | None:
    """Dropout before the heads, or None without MC dropout."""
    model = config.model
    return HeadDropout(model.dropout, model.n_passes) if model.uncertainty == "mc-dropout" else None


def build_head_recipe(config: Config) -> HeadRecipe:
    """The recipe of frozen mode; in finetune mode [train] is about what follows the first fit."""
    train = config.train
    if config.model.mode == "finetune":
        return HeadRecipe(HEAD_STEPS, HEAD_DECAY, HEAD_PRIOR, train.loss_scale, dropout=build_dropout(config))
    decay = HEAD_DECAY if train.weight_decay is None else train.weight_decay
    return HeadRecipe(
        steps=train.epochs or HEAD_STEPS,
        weight_decay=decay,
        prior=HEAD_PRIOR,
        loss_scale=train.loss_scale,
        updates=train.epochs or HEAD_UPDATES,
        mixing=build_mixing(config),
        dropout=build_dropout(config),
    )


def build_finetune_recipe(config: Config) -> FinetuneRecipe:
    """The recipe of finetune mode."""
    train = config.train
    return FinetuneRecipe(
        epochs=train.epochs or 40,
        batch_size=train.batch_size or 32,
        learning_rate=train.learning_rate or 1e-3,
        weight_decay=0.01 if train.weight_decay is None else train.weight_decay,
        loss_scale=train.loss_scale,
        patience=train.patience,
        mixing=build_mixing(config),
        dropout=build_dropout(config),
    )


def build_loss(config: Config) -> Loss:
    """The loss that [train] names, its parameters set."""
    return find_loss(config.train.loss, config.train.loss_parameters)


def build_mixing(config: Config) -> Mixing:
    """Return how [train] mixes batches."""
    train = config.train
    return Mixing(
        kind=train.mixing,
        mixup_alpha=0.2 if train.mixing_alpha is None else train.mixing_alpha,
        cutmix_alpha=1.0 if train.mixing_alpha is None else train.mixing_alpha,
        probability=MIXINGS[train.mixing].probability if train.mixing_probability is None else train.mixing_probability,
    )


def search_paths(cache: Path) -> tuple[Path, ...]:
    """Folders in which a user's own factory is searched: the workspace, then the current folder.

    The workspace is the folder that holds the cache. Links are not resolved: the cache may be a link to another disk.
    """
    return (cache.absolute().parent, Path.cwd())
