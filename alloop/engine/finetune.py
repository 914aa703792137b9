"""Train the trunk together with its heads: augmentation, mixed precision, early stopping. For more labels and a GPU.

Images without a label may teach, too, by FixMatch: where the network is sure of the class of a random view, it learns
this class in a changed copy of the view (docs/methods.md section 6).
"""

import copy
import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from alloop.calibration.temperature import fit_temperature
from alloop.engine.batch_norm import Norm
from alloop.engine.build import FinetuneRecipe, Hardware
from alloop.engine.device import in_halves, may_fit_smaller, release_memory
from alloop.engine.objective import Objective
from alloop.engine.trunk_passes import finite, memory_order, prepare_trunk, run_trunk
from alloop.engine.views import change_views, draw_numbers, make_views, shrink
from alloop.errors import ModelError
from alloop.losses.mixing import as_soft, mix
from alloop.losses.multi_head import multi_head_loss
from alloop.models.backbones import Backbone
from alloop.models.heads import MultiHead
from alloop.pool.held import SHARE, HeldImages
from alloop.predictive import mean_log_probs
from alloop.progress import Progress
from alloop.records import ImageRef
from alloop.seeds import derive_seed

log = logging.getLogger(__name__)

TRUNK_RATE = 0.1  # learning rate of the trunk, as a share of that of the heads
SURE = 0.95  # probability of a class in a view, from which on a changed copy of the view must agree


@dataclasses.dataclass(frozen=True)
class Labeled:
    """Images and their class positions."""

    images: list[ImageRef]
    targets: Tensor  # [N] int64

    def __len__(self) -> int:
        return len(self.images)

    def take(self, positions: Sequence[int]) -> "Labeled":
        return Labeled([self.images[position] for position in positions], self.targets[list(positions)])


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that stays over epochs. Modules change in place.

    Attributes:
        backbone, heads: Modules to train.
        objective: Loss of the labeled images.
        recipe, hardware: How and where to train.
        new_norms: Batch normalization that started without statistics, and learns them.
        is_calibrated: True if a calibrator is fitted to the trained network.
    """

    backbone: Backbone
    heads: MultiHead
    objective: Objective
    recipe: FinetuneRecipe
    hardware: Hardware
    new_norms: tuple[Norm, ...] = ()
    is_calibrated: bool = True

    def learn(self) -> None:
        """Put the trunk into training mode, except for batch normalization that came with statistics.

        Validation in float32 on a card needs another memory order than training in mixed precision, which is set again.
        """
        self.backbone.module.train().to(memory_format=self.order)
        for module in self.backbone.module.modules():
            if isinstance(module, Norm) and module not in self.new_norms:
                module.eval()

    def learn_statistics(self, n_images: int) -> None:
        """Set whether batch normalization learns from the next batch. A single image has no statistics to learn."""
        for module in self.new_norms:
            module.train(n_images > 1)

    def keep_gradients(self, wanted: bool) -> None:
        for module in (self.backbone.module, self.heads):
            module.to(self.hardware.device).requires_grad_(wanted)
        self.backbone.module.to(memory_format=self.order if wanted else torch.contiguous_format)

    @functools.cached_property
    def order(self) -> torch.memory_format:
        """Memory order of training, which is in mixed precision on a card. It is found with the trunk on its device."""
        return memory_order(self.backbone.in_precision("bfloat16"), self.backbone.module, self.hardware.device)

    @property
    def is_cuda(self) -> bool:
        return self.hardware.device.type == "cuda"

    def prepare(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return images [B, 3, S, S] on the device, normalized and mixed as the recipe says, and their targets."""
        normalized, mixing = self.normalized(images), self.recipe.mixing
        labels = targets.to(self.hardware.device, non_blocking=True)
        if not mixing.is_on:
            return normalized, labels
        return mix(normalized, labels, self.heads.n_classes, mixing, generator)

    def normalized(self, images: Tensor) -> Tensor:
        """Return images [B, 3, S, S] on the device, normalized, in the memory order of training."""
        moved = images.to(self.hardware.device, non_blocking=True)
        return self.backbone.normalize(moved).contiguous(memory_format=self.order)

    def logits(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Raw logits [M, B, K] of prepared images. On CUDA the trunk runs in mixed precision, the heads never do."""
        device = self.hardware.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.is_cuda):
            features = self.backbone.module(images)
        if self.recipe.dropout is not None:
            return self.recipe.dropout.train_step(self.heads, features, generator)
        logits: Tensor = self.heads(features)
        return logits


def finetune(
    setup: Setup,
    train: Labeled,
    validation: Labeled,
    seed: int,
    progress: Progress,
    unlabeled: Sequence[ImageRef] = (),
) -> dict[str, object]:
    """Train trunk and heads in place, from heads that were fitted to the untrained trunk's features of `train`.

    Early stopping watches the NLL of log p̄ on `validation`, which no weight is fitted to. The untrained trunk counts as
    epoch 0, so the result is never worse there than the start. Batch normalization keeps statistics that came with
    trained weights: batches of a few dozen images would spoil them.

    Args:
        setup: Modules to train, and how.
        train: Labeled images to learn from.
        validation: Labeled images that early stopping watches.
        seed: Seed of orders, views and dropout.
        progress: Called after each epoch.
        unlabeled: Images that teach without a label, as many in each epoch as `train` has.

    Returns:
        Losses of every epoch and the number of the epoch that was kept, JSON-able. With unlabeled images, also the
        share of them that the network was sure of in each epoch.

    Sources: probing before fine-tuning, Kumar et al., ICLR 2022 (arXiv 2202.10054); FixMatch, Sohn et al., NeurIPS 2020
    (arXiv 2001.07685).
    """
    recipe = setup.recipe
    setup.keep_gradients(True)
    optimizer, schedule = _optimizer(setup, n_steps=recipe.epochs * math.ceil(len(train) / recipe.batch_size))
    shown, watched = _Shown(setup, train, unlabeled, derive_seed(seed, "unlabeled")), _Watched(setup, validation)
    best = _Best(watched.nll(), setup)
    epochs: list[dict[str, float]] = []
    device = setup.hardware.device
    with torch.random.fork_rng([device] if setup.is_cuda else []):
        torch.manual_seed(derive_seed(seed, "dropout within the trunk"))
        for epoch in range(1, recipe.epochs + 1):
            record = _train_epoch(setup, shown, optimizer, schedule, derive_seed(seed, "order", epoch))
            nll = watched.nll()
            epochs.append(record if math.isnan(nll) else {**record, "validation_nll": nll})
            progress("epochs", epoch, recipe.epochs)
            if best.offer(nll, epoch, setup) >= recipe.patience:
                break
    best.restore(setup)
    counts = {"n_train": len(train), "n_validation": len(validation), "n_unlabeled": len(unlabeled)}
    return {"epochs": epochs, "best_epoch": best.epoch, **counts}


def split_stratified(labeled: Labeled, share: float, seed: int) -> tuple[Labeled, Labeled]:
    """Split off a share of each class, rounded, for validation. The last training image of a class is never taken."""
    generator = torch.Generator().manual_seed(seed)
    held: set[int] = set()
    for target in sorted(set(labeled.targets.tolist())):
        members = torch.nonzero(labeled.targets == target).flatten()
        n_held = min(math.floor(len(members) * share + 0.5), len(members) - 1)
        order = torch.randperm(len(members), generator=generator)
        held |= set(members[order[:n_held]].tolist())
    kept = [position for position in range(len(labeled)) if position not in held]
    return labeled.take(kept), labeled.take(sorted(held))


class _Best:
    """Weights of the epoch with the lowest validation NLL, or of the last epoch without a validation part.

    They are copied within the device: the room is taken once, before the first epoch.
    """

    def __init__(self, nll: float, setup: Setup) -> None:
        self.epoch, self._nll, self._waited = 0, nll, 0
        self._states = [{name: tensor.clone() for name, tensor in state.items()} for state in _states(setup)]

    def offer(self, nll: float, epoch: int, setup: Setup) -> int:
        """Keep these weights if they are better. Return the number of epochs since the last better ones."""
        if math.isnan(nll) or nll < self._nll:
            # A few kernels instead of one for each weight.
            for kept, state in zip(self._states, _states(setup), strict=True):
                torch._foreach_copy_([kept[name] for name in state], list(state.values()))
            self.epoch, self._nll, self._waited = epoch, nll, 0
        else:
            self._waited += 1
        return self._waited

    def restore(self, setup: Setup) -> None:
        for module, state in zip((setup.backbone.module, setup.heads), self._states, strict=True):
            module.load_state_dict(state)
            module.eval()
        setup.keep_gradients(False)


def _states(setup: Setup) -> list[dict[str, Tensor]]:
    """Return the weights of trunk and heads, where they are.

    Raises:
        ModelError: A weight is not finite. The loss does not show this, because it was computed before the last step.
    """
    modules = (setup.backbone.module, setup.heads)
    largest = get_total_norm([weight.detach() for module in modules for weight in module.parameters()], math.inf)
    if not bool(torch.isfinite(largest)):
        raise _diverged()
    return [{name: tensor.detach() for name, tensor in module.state_dict().items()} for module in modules]


def _optimizer(setup: Setup, n_steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with a cosine to zero. Weight decay spares vectors: biases and the scales of normalization layers."""
    recipe = setup.recipe
    groups: list[dict[str, object]] = []
    for module, rate in (
        (setup.backbone.module, recipe.learning_rate * TRUNK_RATE),
        (setup.heads, recipe.learning_rate),
    ):
        matrices = [parameter for parameter in module.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in module.parameters() if parameter.ndim <= 1]
        groups.append({"params": matrices, "lr": rate, "weight_decay": recipe.weight_decay})
        groups.append({"params": vectors, "lr": rate, "weight_decay": 0.0})
    fused = True if setup.is_cuda else None  # one kernel for all weights; None leaves other devices to PyTorch
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], fused=fused)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, n_steps))


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Views of images for one update, on the device.

    Attributes:
        views: Views of labeled images, uint8 [B, 3, S, S].
        targets: Their class positions, int64 [B].
        plain: Views of unlabeled images, uint8 [U, 3, S, S]; U may be 0.
        changed: The same views, each changed by one random operation, uint8 [U, 3, S, S].
    """

    views: Tensor
    targets: Tensor
    plain: Tensor
    changed: Tensor

    def pieces(self, n: int) -> "list[_Batch]":
        """Split the batch into n parts of about the same size."""
        split = [tensor.tensor_split(n) for tensor in (self.views, self.targets, self.plain, self.changed)]
        return [_Batch(*part) for part in zip(*split, strict=True)]


class _Shown:
    """Images as training sees them: new random views in each epoch, of images that are decoded once.

    Args:
        setup: Modules and recipe.
        train: Labeled images, all of which an epoch shows.
        unlabeled: Images without a label. Each batch shows the next of them, as many as labeled ones.
        seed: Seed of the order of the unlabeled images.
    """

    def __init__(self, setup: Setup, train: Labeled, unlabeled: Sequence[ImageRef] = (), seed: int = 0) -> None:
        self._setup, self._look = setup, setup.backbone.without_weights()
        self._train, self._unlabeled = train, unlabeled
        self._held, self._pool = self._hold(train.images, SHARE), self._hold(unlabeled, SHARE / 2)
        self._stream = self._endless(seed)

    @property
    def has_unlabeled(self) -> bool:
        return bool(self._unlabeled)

    def batches(self, seed: int) -> Iterator[_Batch]:
        """Yield the labeled images in random order, with the next unlabeled ones. Unreadable images are left out."""
        size, seed_of_views = self._setup.recipe.batch_size, derive_seed(seed, "views")
        order = _shuffled(len(self._train), seed)
        for places, images in _in_batches(order, self._held.read(order), size):
            numbers = self._draw_numbers(self._train.images, places, seed_of_views)
            views = self._views(images, numbers)
            if self._setup.recipe.augment == "trivial":
                views = change_views(views, numbers)
            targets = self._train.targets[places].to(self._setup.hardware.device, non_blocking=True)
            yield _Batch(views, targets, *self._pairs(len(places), seed_of_views))

    def _pairs(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return views of the next n unlabeled images, of all if there are fewer, and changed copies of the views."""
        following = itertools.islice(self._stream, min(n, len(self._unlabeled)))
        read = [(place, image) for place, image in following if image is not None]
        numbers = self._draw_numbers(self._unlabeled, [place for place, _ in read], seed)
        plain = self._views([image for _, image in read], numbers)
        return plain, change_views(plain, numbers)

    def _endless(self, seed: int) -> Iterator[tuple[int, Tensor | None]]:
        """Yield all unlabeled images in random order, again and again.

        The processes that decode go on over the epochs: with few labels, starting them would take longer than an epoch.
        """
        for number in itertools.count():
            order = _shuffled(len(self._unlabeled), derive_seed(seed, "pass", number))
            yield from zip(order, self._pool.read(order), strict=True)

    def _hold(self, images: Sequence[ImageRef], share: float) -> HeldImages:
        return HeldImages(images, functools.partial(shrink, look=self._look), *_where(self._setup.hardware), share)

    def _draw_numbers(self, images: Sequence[ImageRef], places: Sequence[int], seed: int) -> npt.NDArray[np.float64]:
        return draw_numbers([images[place].sha256 for place in places], seed)

    def _views(self, images: Sequence[Tensor], numbers: npt.NDArray[np.float64]) -> Tensor:
        device = self._setup.hardware.device

        def make(part: Tensor) -> Tensor:
            return make_views([images[row] for row in part.tolist()], numbers[part.numpy()], self._look, device)

        return in_halves(make, torch.arange(len(images)))


def _shuffled(n: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


class _Watched:
    """Images that early stopping watches, at the size of the trunk, and decoded once."""

    def __init__(self, setup: Setup, validation: Labeled) -> None:
        look = setup.backbone.without_weights()
        self._held = HeldImages(validation.images, look.preprocess, *_where(setup.hardware))
        self._setup, self._targets = setup, validation.targets

    def nll(self) -> float:
        """Return the mean negative log-likelihood of the labels, in nats, or nan if no image can be read.

        Trunk and heads predict without dropout. If a calibrator follows the training, the predictions get the
        temperature that suits these images best: a network grows too sure of itself while its accuracy still rises, and
        without a temperature an early epoch would have the lowest value.
        """
        setup, features = self._setup, []
        order = memory_order(setup.backbone, setup.backbone.module.eval(), setup.hardware.device)
        setup.backbone.module.to(memory_format=order)
        trunk = prepare_trunk(setup.backbone, setup.hardware.device)
        positions = list[int]()
        everything = range(len(self._held))
        for part, images in _in_batches(everything, self._held.read(everything), setup.hardware.batch_size):
            stacked = torch.stack([image.to(setup.hardware.device, non_blocking=True) for image in images])
            features.append(run_trunk(trunk, stacked))
            positions += part
        if not positions:
            return math.nan
        with torch.inference_mode():
            logits = copy.deepcopy(setup.heads).cpu()(finite(torch.cat(features).cpu()))
            log_probs, targets = mean_log_probs(setup.objective.loss.log_probs(logits)), self._targets[positions]
            if setup.is_calibrated:
                temperature, _ = fit_temperature(log_probs.double(), targets)
                log_probs = temperature.apply(log_probs.double())
            return nn.functional.nll_loss(log_probs, targets).item()


def _where(hardware: Hardware) -> tuple[torch.device, int]:
    return hardware.device, hardware.workers


def _in_batches(
    positions: Iterable[int], images: Iterable[Tensor | None], size: int
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Yield up to `size` positions at a time with their images, without those that are None."""
    pairs = zip(positions, images, strict=True)
    while chunk := list(itertools.islice(pairs, size)):
        read = [(position, image) for position, image in chunk if image is not None]
        if read:
            yield [position for position, _ in read], [image for _, image in read]


def _train_epoch(
    setup: Setup,
    shown: _Shown,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    seed: int,
) -> dict[str, float]:
    """One pass over the training part. Returns the mean loss of its batches.

    With unlabeled images, it also returns the share of those shown that have a sure class.

    The host waits for the device only at the end.

    Raises:
        ModelError: A loss or a logit was not finite.
    """
    found, n_plain, pieces = [], 0, 1
    generator = torch.Generator().manual_seed(derive_seed(seed, "mixing and dropout"))
    setup.learn()
    for batch in shown.batches(seed):
        values, pieces = _step(setup, optimizer, batch, pieces, generator)
        schedule.step()
        found.append(values)
        n_plain += len(batch.plain)
    total, n_sure = torch.stack(found).sum(dim=0).tolist() if found else (0.0, 0.0)
    if not math.isfinite(total):
        raise _diverged()
    record = {"loss": total / max(1, len(found))}
    return {**record, "sure": n_sure / max(1, n_plain)} if shown.has_unlabeled else record


def _step(
    setup: Setup, optimizer: torch.optim.Optimizer, batch: _Batch, pieces: int, generator: torch.Generator
) -> tuple[Tensor, int]:
    """Update once from a batch, in as many pieces as the memory demands.

    Mixing, MMCE and DCA treat each piece as a batch of its own.

    Returns:
        The loss of the labeled images and the number of unlabeled images with a sure class, [2], and the number of
        pieces. The loss stays on the device; it is nan if a logit was not finite.
    """
    n = max(len(batch.views), len(batch.plain))
    while True:
        optimizer.zero_grad()
        try:
            parts = [_backward(setup, part, batch, generator) for part in batch.pieces(pieces)]
            break
        except RuntimeError as error:
            if not may_fit_smaller(error) or pieces >= n:
                raise
        # Outside the except block, since the exception holds the tensors of the failed try.
        optimizer.zero_grad()
        release_memory()
        pieces = min(2 * pieces, n)
        log.warning("out of memory: a batch of %d images is now taken in %d pieces", n, pieces)
    optimizer.step()
    return torch.stack(parts).sum(dim=0), pieces


def _backward(setup: Setup, part: _Batch, whole: _Batch, generator: torch.Generator) -> Tensor:
    """Add the gradients of a part of a batch, and return the part's share of what `_step` returns.

    A part of a small batch may have images of one kind only.
    """
    loss = n_sure = torch.zeros((), device=setup.hardware.device)
    if len(part.views):
        loss = _learn_labels(setup, part, len(part.views) / len(whole.views), generator)
    if len(part.plain):
        n_sure = _learn_to_agree(setup, part, len(part.plain) / len(whole.plain), generator)
    return torch.stack([loss, n_sure])


def _learn_labels(setup: Setup, part: _Batch, share: float, generator: torch.Generator) -> Tensor:
    """Add the gradients of the loss of labeled images, times `share`, and return that; nan if a logit is not finite."""
    setup.learn_statistics(len(part.views))
    prepared, labels = setup.prepare(part.views, part.targets, generator)
    logits = setup.logits(prepared, generator)
    loss = share * setup.objective(logits, labels, check=False)
    torch.autograd.backward(loss)
    return torch.where(torch.isfinite(logits).all(), loss.detach(), math.nan)


def _learn_to_agree(setup: Setup, part: _Batch, share: float, generator: torch.Generator) -> Tensor:
    """Add the gradients of FixMatch's loss, times `share`. Return the number of images with a sure class.

    Where p̄ of a class is at least `SURE` in the plain view, the loss is the cross-entropy of this class in the changed
    view. The others count as 0 in the mean. The plain views get no gradient.
    """
    setup.learn_statistics(len(part.plain))
    log_probs_of = setup.objective.loss.log_probs
    with torch.no_grad():
        plain = mean_log_probs(log_probs_of(setup.logits(setup.normalized(part.plain), generator)))
    highest, classes = plain.max(dim=1)
    is_sure = (highest >= math.log(SURE)).float()
    wanted = as_soft(classes, plain.shape[1]) * is_sure[:, None]  # a row of zeros has the loss 0
    changed = log_probs_of(setup.logits(setup.normalized(part.changed), generator))
    weights, scale = setup.objective.head_weights, setup.objective.loss_scale
    torch.autograd.backward(share * multi_head_loss(changed, wanted, weights, loss_scale=scale))
    return is_sure.sum()


def _diverged() -> ModelError:
    return ModelError(
        "Fine-tuning diverged: the loss or a weight is not finite.", "Set a smaller [train] learning_rate."
    )
