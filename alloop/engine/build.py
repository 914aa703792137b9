"""Numbers and modules built from settings. No other file reads the sections [model] and [train]."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from alloop.composition import MIXINGS
from alloop.config.schema import Augmentation
from alloop.engine.device import choose_device, choose_onnx, choose_precision
from alloop.engine.settings import EngineSettings
from alloop.files import from_folder
from alloop.losses.mixing import Mixing
from alloop.losses.multi_head import LossScale
from alloop.losses.named import Loss, find_loss
from alloop.machine import count_workers
from alloop.models.backbones import Backbone, is_weights_name, load_backbone, side_by_side
from alloop.models.dropout import HeadDropout
from alloop.records import Precision
from alloop.seeds import derive_seed

HEAD_STEPS, HEAD_DECAY, HEAD_PRIOR = 200, 5e-5, 3.0  # found in benchmarks/recipe
SMOOTHED_DECAY = 1e-4  # of heads on smoothed features (benchmarks/pool_features)
NO_MIXING = Mixing()
_SHARED_EACH = 2**25  # bytes that a process hands over ahead: four times 32 images of up to 290 x 290 pixels
EPOCHS, PATIENCE = 40, 10  # of fine-tuning
UPDATES = 640  # fewest updates in so many epochs: with few labels an epoch has few updates (benchmarks/recipe)
HEAD_UPDATES, HEAD_BATCH, HEAD_RATE = 1000, 64, 0.1  # for mini-batches, where L-BFGS cannot be used


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Place and manner in which a trunk runs.

    Attributes:
        device: Device of the trunk.
        batch_size: Number of images that pass the trunk at once.
        workers: Number of processes that decode images.
        precision: Precision of features that are computed now.
        largest_batch: Number of images up to which a card may try larger batches; 0: always `batch_size`.
        has_onnx: True if ONNX Runtime may run published trunks; see `onnx_trunk`.
    """

    device: torch.device
    batch_size: int
    workers: int
    precision: Precision = "float32"
    largest_batch: int = 0
    has_onnx: bool = False


@dataclasses.dataclass(frozen=True)
class HeadRecipe:
    """Recipe for fitting heads to fixed features. benchmarks/recipe says how the defaults were found.

    Attributes:
        steps: Most iterations of L-BFGS.
        weight_decay: Factor of half the squared weights, averaged over heads, for features of mean squared norm 1.
        prior: Number of imaginary images at the center of all features that belong to every class alike. Without them
            a class that nobody has labeled yet gets a probability of nearly 0 everywhere, and one image of this class
            in the holdout spoils NLL and temperature.
        loss_scale: See `losses.multi_head`.
        updates: Number of updates of Adam, which is used where L-BFGS cannot be: mini-batches of 64, learning rate 0.1
            with a cosine to 0.
        mixing: Mixing of features. It needs mini-batches.
        dropout: Dropout of features. It needs mini-batches.
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
    """Recipe for training trunk and heads together.

    Attributes:
        learning_rate: Learning rate of the heads. The trunk learns at a tenth of it.
        patience: Number of epochs without a better validation NLL before training stops.
        augment: Random views of images; see `engine.views`.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    loss_scale: LossScale
    patience: int
    augment: Augmentation = "crop-flip"
    mixing: Mixing = NO_MIXING
    dropout: HeadDropout | None = None


def build_hardware(settings: EngineSettings, device: str | None) -> Hardware:
    """Return the device and how to run a trunk there. `device` overrides the settings."""
    chosen = choose_device(device or settings.model.device)
    precision = choose_precision(settings.model.precision, chosen)
    workers = count_workers(settings.train.workers, _SHARED_EACH)
    if settings.train.batch_size is not None or chosen.type != "cuda":
        has_onnx = choose_onnx(settings.model.engine, chosen, precision)
        return Hardware(chosen, settings.train.batch_size or 32, workers, precision, has_onnx=has_onnx)
    return Hardware(chosen, 256, workers, precision, largest_batch=1024)


def build_backbone(settings: EngineSettings, search_paths: Sequence[Path] = (), member: int = 0) -> Backbone:
    """Return the trunk that [model] names, or its trunks side by side, on the CPU, in eval mode.

    The first search path holds weights files. In each network of an ensemble an untrained trunk starts from other
    weights, if it is fine-tuned.
    """
    model = settings.model
    seed = derive_seed(settings.seed, "backbone")
    if member and model.mode == "finetune":
        seed = derive_seed(settings.seed, "backbone", member)
    folder = search_paths[0] if search_paths else Path()
    parts = []
    for name, weights, image_size in model.trunks:
        source = weights if is_weights_name(name, weights) else str(from_folder(folder, weights))
        parts.append(load_backbone(name, source, image_size, search_paths, seed))
    return side_by_side(parts)


def build_dropout(settings: EngineSettings) -> HeadDropout | None:
    """Return the dropout before the heads, or None without MC dropout."""
    model = settings.model
    return HeadDropout(model.dropout, model.n_passes) if model.uncertainty == "mc-dropout" else None


def build_head_recipe(settings: EngineSettings, *, is_smoothed: bool = False) -> HeadRecipe:
    """Return the recipe for heads on raw or smoothed features.

    In finetune mode the settings in [train] belong to the fine-tuning that follows.
    """
    train = settings.train
    if settings.model.mode == "finetune":
        return HeadRecipe(HEAD_STEPS, HEAD_DECAY, HEAD_PRIOR, train.loss_scale, dropout=build_dropout(settings))
    default = SMOOTHED_DECAY if is_smoothed else HEAD_DECAY
    decay = default if train.weight_decay is None else train.weight_decay
    return HeadRecipe(
        steps=train.epochs or HEAD_STEPS,
        weight_decay=decay,
        prior=HEAD_PRIOR,
        loss_scale=train.loss_scale,
        updates=train.epochs or HEAD_UPDATES,
        mixing=build_mixing(settings),
        dropout=build_dropout(settings),
    )


def build_finetune_recipe(settings: EngineSettings, n_labels: int, *, is_watched: bool = True) -> FinetuneRecipe:
    """Return the recipe for finetune mode. With few labels there are more epochs, and training does not stop early.

    Args:
        settings: Settings of the engine.
        n_labels: Number of labeled images that are learned from.
        is_watched: False without a validation part. The last epoch is kept then, so training is not made longer.
    """
    train = settings.train
    batch_size = train.batch_size or 32
    epochs_needed = math.ceil(UPDATES / max(1, math.ceil(n_labels / batch_size))) if is_watched else 0
    return FinetuneRecipe(
        epochs=train.epochs or max(EPOCHS, epochs_needed),
        batch_size=batch_size,
        learning_rate=train.learning_rate or 1e-3,
        weight_decay=0.01 if train.weight_decay is None else train.weight_decay,
        loss_scale=train.loss_scale,
        patience=train.patience or max(PATIENCE, epochs_needed),
        augment=train.augment,
        mixing=build_mixing(settings),
        dropout=build_dropout(settings),
    )


def build_loss(settings: EngineSettings) -> Loss:
    """Return the loss that [train] names, with its parameters."""
    return find_loss(settings.train.loss, settings.train.loss_parameters)


def build_mixing(settings: EngineSettings) -> Mixing:
    """Return the mixing of batches that [train] asks for."""
    train = settings.train
    return Mixing(
        kind=train.mixing,
        mixup_alpha=0.2 if train.mixing_alpha is None else train.mixing_alpha,
        cutmix_alpha=1.0 if train.mixing_alpha is None else train.mixing_alpha,
        probability=MIXINGS[train.mixing].probability if train.mixing_probability is None else train.mixing_probability,
    )


def search_paths(cache: Path) -> tuple[Path, ...]:
    """Return the folders that may hold a user's own factory: the workspace, then the current folder.

    The workspace is the folder that holds the cache. Links are not resolved: the cache may be a link to another disk.
    """
    return (cache.absolute().parent, Path.cwd())
