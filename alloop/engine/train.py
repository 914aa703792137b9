"""Train one model version: features or fine-tuning, heads, calibrator, files."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from alloop.calibration.temperature import FEWEST
from alloop.engine.batch_norm import Norm, settle_statistics
from alloop.engine.build import (
    Hardware,
    build_backbone,
    build_finetune_recipe,
    build_hardware,
    build_head_recipe,
    build_loss,
    search_paths,
)
from alloop.engine.calibrate import apply_calibration, calibrate
from alloop.engine.cross_validate import calibrate_apart, out_of_fold, predict_unlearned
from alloop.engine.device import deterministic, explained_shortage
from alloop.engine.distill import distilled_files
from alloop.engine.features import Failed, depth_of_all, ensure_features, trunk_features
from alloop.engine.finetune import Labeled, Setup, finetune, split_stratified
from alloop.engine.fit_heads import HeadFits, choose_solver_device
from alloop.engine.head_passes import HeadPasses
from alloop.engine.jobs import OutOfFold, TrainJob, TrainResult
from alloop.engine.links import link_images
from alloop.engine.members import Fitted, Members
from alloop.engine.model_files import Network, library_versions, save_version
from alloop.engine.objective import Objective, balanced_weights
from alloop.engine.pool_features import prepare_graph
from alloop.engine.targets import TASKS, Coding, Target
from alloop.errors import LabelError
from alloop.losses.multi_head import Specialties, assign_specialties, class_weights
from alloop.models.backbones import Backbone
from alloop.models.ensemble import pool_members
from alloop.models.heads import MultiHead
from alloop.progress import Progress, silent
from alloop.records import Calibration, ImageRef
from alloop.seeds import derive_seed
from alloop.smoothing.smoothing import Smoothing


@explained_shortage()
def run_train(job: TrainJob, progress: Progress = silent) -> TrainResult:
    """Fit the heads and, in finetune mode, the trunk. Then calibrate, and save the model version.

    The calibrator is fitted to the holdout, or to the training labels if the holdout is a test set. The same job on the
    same machine gives the same bytes: images are sorted by content hash, and all random choices come from the seed of
    the job.

    Raises:
        LabelError: The labels are of fewer than two classes.
        ModelError: The backbone or its weights are not available.
        WorkspaceError: The disk is full. No half-written file stays.
    """
    started = time.perf_counter()
    _check_labels(job)
    hardware = build_hardware(job.settings, job.device)
    job = dataclasses.replace(job, settings=job.settings.with_precision(hardware.precision))
    backbone = build_backbone(job.settings, search_paths(job.cache)).in_precision(hardware.precision)
    fingerprint = backbone.fingerprint()
    graph = prepare_graph(job, backbone, fingerprint, hardware, progress)
    metadata = _metadata(job, fingerprint) | {"pool_features": dict(graph.about)}
    n_networks = job.settings.model.n_networks
    parts = [_specialties(job, number) for number in range(n_networks)]
    members = Members(job, n_networks, graph.about)
    shared = functools.cache(lambda: _material(job, job.seed, backbone, hardware, graph.smoothing, progress))
    fitted = []
    for number in range(n_networks):
        one = members.fit(number, lambda n: _fit(job, n, parts[n], hardware, shared, progress))
        fitted.append(_without_trunk(one))
        if n_networks > 1:
            progress("networks", number + 1, n_networks)
    pooled, targets = _pool(job, fitted)
    method, seed = job.settings.calibration, derive_seed(job.seed, "calibration")
    if job.is_test:
        can_repeat = job.settings.model.mode == "frozen"
        again = (lambda: _cross_validate(job, parts, shared(), list(members.networks()), seed)) if can_repeat else None
        calibration = calibrate_apart(method, len(job.images), seed, again, pooled[:0])
        calibrated = apply_calibration(calibration, pooled)
    else:
        calibrated, calibration = calibrate(method, pooled, targets, seed)
    head_classes = tuple(tuple(job.classes[position] for position in part) for heads in parts for part in heads)
    metadata |= {"head_classes": head_classes}
    distilled = distilled_files(job, members.networks(), calibration, graph.smoothing, backbone, hardware)
    files = save_version(job.out, members.networks(), calibration, metadata, graph.files() | distilled)
    unlearned = _predict_unlearned(job, shared, next(iter(members.networks())), calibration)
    members.clear()
    return TrainResult(
        files=files,
        calibration=calibration,
        holdout_calibrated_log_probs=calibrated.numpy().astype(np.float32),
        holdout_pooled_log_probs=pooled.numpy().astype(np.float32),
        head_classes=head_classes,
        library_versions=library_versions(),
        history=_history(fitted) | {"pool_features": dict(graph.about)},
        seconds=time.perf_counter() - started,
        failed=tuple(dict.fromkeys(pair for one in fitted for pair in one.failed)),
        out_of_fold=unlearned,
    )


@dataclasses.dataclass(frozen=True)
class _Material:
    """Labels and features that heads are fitted to.

    Attributes:
        train: Images to fit to.
        n_labels: Number of labeled images, also of those that early stopping watches.
        holdout: Holdout images that could be read.
        fits: Fits to raw features, and with a smoothing those to smoothed features.
        features: Features of the training images and of the holdout, on the CPU, for each of `fits`.
        failed: Images that could not be read, and the reasons.
    """

    train: Labeled
    n_labels: int
    holdout: list[ImageRef]
    fits: tuple[HeadFits, ...]
    features: tuple[tuple[Tensor, Tensor], ...]
    failed: Failed


def _material(
    job: TrainJob,
    seed: int,
    backbone: Backbone,
    hardware: Hardware,
    smoothing: Smoothing | None,
    progress: Progress,
) -> _Material:
    images, targets = _sorted_by_content(job.images, job.targets)
    cache, failed = ensure_features([*images, *job.holdout], backbone, job.cache, hardware, progress)
    coding = _coding(job)
    images, labels = _readable(images, targets, failed, coding)
    _check_enough(labels.tolist(), coding)
    train, _ = _parts(job, seed, images, labels)
    holdout, _ = _readable(job.holdout, job.holdout_targets, failed, coding)
    keys = [[ref.key for ref in refs] for refs in (train.images, holdout)]
    raw = [torch.from_numpy(cache.take(part)) for part in keys]
    kinds = [(raw[0], raw[1])]
    if smoothing is not None:
        transform = link_images(smoothing, [*keys[0], *keys[1]], cache, job.cache, progress)
        kinds.append((transform(keys[0], raw[0]), transform(keys[1], raw[1])))
    fits = tuple(_fits_on(hardware, features, train.targets, job) for features, _ in kinds)
    return _Material(train, len(images), holdout, fits, tuple(kinds), failed)


def _fits_on(hardware: Hardware, features: Tensor, targets: Tensor, job: TrainJob) -> HeadFits:
    """Return fits on the device that is fastest for them. The features stay there between the fits."""
    is_solved = build_head_recipe(job.settings).has_one_solution(build_loss(job.settings))
    device = choose_solver_device(features, hardware.device) if is_solved else features.device
    return HeadFits(features.to(device), targets.to(device), len(job.classes))


def _fit(
    job: TrainJob,
    number: int,
    specialties: Specialties,
    hardware: Hardware,
    shared: Callable[[], _Material],
    progress: Progress,
) -> Fitted:
    """Fit one network: its heads, and in finetune mode its trunk. Networks differ in initial weights and data order."""
    seed = job.seed if number == 0 else derive_seed(job.seed, "member", number)
    with deterministic():
        if job.settings.model.mode == "frozen":
            return _fit_frozen(job, seed, shared(), specialties, progress)
        backbone = build_backbone(job.settings, search_paths(job.cache), number).in_precision(hardware.precision)
        new_norms = settle_statistics(backbone, _sorted_by_content(job.images, job.targets)[0], hardware)
        material = _material(job, seed, backbone, hardware, None, progress)
        probe = _fit_frozen(job, seed, material, specialties, progress)
        return _finetune(job, seed, backbone, hardware, specialties, probe, new_norms, progress)


def _fit_frozen(job: TrainJob, seed: int, material: _Material, specialties: Specialties, progress: Progress) -> Fitted:
    """Fit heads to raw features, and with a smoothing others to smoothed features."""
    progress("heads", 0, 1)
    fitted, predicted = [], []
    history: dict[str, object] = {}
    for kind, purpose in enumerate(("heads", "smoothed heads")[: len(material.fits)]):
        heads, record = _fit_to(material, kind, job, derive_seed(seed, purpose), specialties)
        fitted.append(heads)
        predicted.append(_member_log_probs(job, heads, material.features[kind][1], material.holdout))
        history |= {"smoothed": record} if kind else record
    progress("heads", 1, 1)
    return Fitted(
        network=Network(fitted[0], {}, fitted[1] if len(fitted) > 1 else None),
        holdout_member_log_probs=predicted[0] if len(predicted) == 1 else torch.stack(predicted, dim=2),
        holdout_ids=tuple(image.image_id for image in material.holdout),
        history={"mode": "frozen", "n_labels": material.n_labels, **history},
        failed=material.failed,
    )


def _fit_to(
    material: _Material,
    kind: int,
    job: TrainJob,
    seed: int,
    specialties: Specialties,
    part: Tensor | None = None,
    start: MultiHead | None = None,
) -> tuple[MultiHead, dict[str, object]]:
    """Fit the heads of one network to raw (`kind` 0) or smoothed features (1), of all images or a part."""
    generator, targets = torch.Generator().manual_seed(seed), material.train.targets
    recipe = build_head_recipe(job.settings, is_smoothed=bool(kind))
    objective = _objective(job, specialties, targets if part is None else targets[part])
    heads, history = material.fits[kind].fit(len(specialties), objective, recipe, generator, part, start)
    return heads.cpu(), history


def _finetune(
    job: TrainJob,
    seed: int,
    backbone: Backbone,
    hardware: Hardware,
    specialties: Specialties,
    probe: Fitted,
    new_norms: tuple[Norm, ...],
    progress: Progress,
) -> Fitted:
    """Train trunk and heads together, from heads that were fitted to the features of the untrained trunk."""
    images, targets = _sorted_by_content(job.images, job.targets)
    images, labels = _readable(images, targets, probe.failed, _coding(job))
    train, validation = _parts(job, seed, images, labels)
    recipe = build_finetune_recipe(job.settings, len(train), is_watched=len(validation) > 0)
    objective = _objective(job, specialties, train.targets)
    heads, tuning = probe.network.heads, derive_seed(seed, "finetune")
    is_calibrated = job.settings.calibration != "none" and not job.is_test and len(job.holdout) >= FEWEST
    setup = Setup(backbone, heads, objective.to(hardware.device), recipe, hardware, new_norms, is_calibrated)
    history = finetune(setup, train, validation, tuning, progress, job.list_unlabeled())
    features, positions, failed = trunk_features(backbone, job.holdout, hardware)
    read = [job.holdout[position] for position in positions]
    return Fitted(
        network=Network(heads.cpu(), dict(backbone.module.cpu().state_dict())),
        holdout_member_log_probs=_member_log_probs(job, heads, features, read),
        holdout_ids=tuple(image.image_id for image in read),
        history={**probe.history, "mode": "finetune", **history},
        failed=tuple(dict.fromkeys((*probe.failed, *failed))),
    )


def _parts(job: TrainJob, seed: int, images: list[ImageRef], labels: Tensor) -> tuple[Labeled, Labeled]:
    """Return the part to fit to and the part that early stopping watches, which is empty in frozen mode.

    The heads that fine-tuning starts from are fitted to the first part only. If they had seen the second part, its NLL
    would be near 0 before the first epoch, and no epoch could look better.
    """
    whole = Labeled(images, labels)
    if job.settings.model.mode == "frozen":
        return whole, whole.take([])
    return split_stratified(whole, job.settings.train.validation_share, derive_seed(seed, "finetune", "validation"))


def _cross_validate(
    job: TrainJob, parts: Sequence[Specialties], material: _Material, networks: Sequence[Network], seed: int
) -> tuple[Tensor, Tensor]:
    """Return out-of-fold predictions of the training images by heads of the same recipe, and their targets [N].

    Where heads have one solution, those of a fold start from the heads that were fitted to all images: the solution is
    the same, and nearer. Predictions are log p̄ [N, K], or [N, 2, K] by raw and smoothed heads.
    """

    def predict(rest: Tensor, fold: Tensor) -> Tensor:
        seen = [material.train.images[row] for row in fold.tolist()]
        both = []
        for kind, (features, _) in enumerate(material.features):
            rows = []
            for number, (specialties, network) in enumerate(zip(parts, networks, strict=True)):
                chosen, start = derive_seed(seed, "fold", number), network.smoothed if kind else network.heads
                heads, _ = _fit_to(material, kind, job, chosen, specialties, rest, start)
                rows.append(_member_log_probs(job, heads, features[fold], seen))
            both.append(pool_members(member for part in rows for member in part))
        return both[0] if len(both) == 1 else torch.stack(both, dim=1)

    with deterministic():
        return out_of_fold(material.train.targets, seed, predict), material.train.targets


def _predict_unlearned(
    job: TrainJob, shared: Callable[[], _Material], network: Network, calibration: Calibration
) -> OutOfFold | None:
    """Return out-of-fold predictions of the training images, by the kind of heads that counts for more.

    None for a trained trunk, which has learned all labels.
    """
    if not job.is_kept or job.settings.model.mode == "finetune":
        return None
    raw, smoothed = calibration.weights or (0.0, 1.0)
    heads, kind = network.heads, 0
    if network.smoothed is not None and smoothed >= raw:
        heads, kind = network.smoothed, 1
    decay = build_head_recipe(job.settings, is_smoothed=bool(kind)).weight_decay
    material = shared()
    with deterministic():
        log_probs = predict_unlearned(material.fits[kind], heads, decay, derive_seed(job.seed, "second looks"))
    if log_probs is None:
        return None
    return OutOfFold(tuple(image.image_id for image in material.train.images), log_probs.numpy())


def _member_log_probs(job: TrainJob, heads: MultiHead, features: Tensor, images: Sequence[ImageRef]) -> Tensor:
    passes = HeadPasses(job.settings, job.seed)
    return passes.member_log_probs(passes.logits(heads, features, [image.sha256 for image in images]))


def _without_trunk(fitted: Fitted) -> Fitted:
    """Drop the trunk of a network, so that it is not in memory while the next one trains."""
    return dataclasses.replace(fitted, network=dataclasses.replace(fitted.network, trunk={}))


def _pool(job: TrainJob, fitted: Sequence[Fitted]) -> tuple[Tensor, Tensor]:
    """Return log p̄, float64, and targets of the holdout images that every network could read, in job order.

    log p̄ is [N, K], or [N, 2, K] by raw and smoothed heads.
    """
    kept = set(fitted[0].holdout_ids).intersection(*(one.holdout_ids for one in fitted))
    rows = [
        one.holdout_member_log_probs[:, [place for place, image_id in enumerate(one.holdout_ids) if image_id in kept]]
        for one in fitted
    ]
    pairs = zip(job.holdout, job.holdout_targets, strict=True)
    targets = torch.from_numpy(_coding(job).array([target for ref, target in pairs if ref.image_id in kept]))
    return pool_members(member for part in rows for member in part), targets


def _history(fitted: Sequence[Fitted]) -> dict[str, object]:
    if len(fitted) == 1:
        return fitted[0].history
    first = fitted[0].history
    return {"mode": first["mode"], "n_labels": first["n_labels"], "networks": [one.history for one in fitted]}


def _objective(job: TrainJob, specialties: Specialties, labels: Tensor) -> Objective:
    train, n_classes = job.settings.train, len(job.classes)
    is_same = job.settings.model.head_weights == "same"
    return Objective(
        loss=build_loss(job.settings),
        head_weights=None if is_same else class_weights(specialties, n_classes),
        class_weights=balanced_weights(labels, n_classes) if train.class_weights == "balanced" else None,
        loss_scale=train.loss_scale,
    )


def _specialties(job: TrainJob, number: int) -> Specialties:
    """Classes that each head of a network weighs strongly. Heads keep their classes from the previous version."""
    seed = job.seed if number == 0 else derive_seed(job.seed, "member", number)
    generator = torch.Generator().manual_seed(derive_seed(seed, "specialties"))
    n_heads = job.settings.model.n_heads
    known: Sequence[Sequence[int]] = ()
    if len(job.head_classes) == n_heads * job.settings.model.n_networks:
        mine = job.head_classes[number * n_heads : (number + 1) * n_heads]
        known = [[job.classes.index(name) for name in part] for part in mine]
    return assign_specialties(len(job.classes), n_heads, generator, known)


def _sorted_by_content(images: Sequence[ImageRef], targets: Sequence[Target]) -> tuple[list[ImageRef], list[Target]]:
    pairs = sorted(zip(images, targets, strict=True), key=lambda pair: pair[0].sha256)
    return [image for image, _ in pairs], [target for _, target in pairs]


def _readable(
    images: Sequence[ImageRef], targets: Sequence[Target], failed: Failed, coding: Coding
) -> tuple[list[ImageRef], Tensor]:
    """Return the images that did not fail, and their targets [N]."""
    gone = {image_id for image_id, _ in failed}
    kept = [pair for pair in zip(images, targets, strict=True) if pair[0].image_id not in gone]
    return [image for image, _ in kept], torch.from_numpy(coding.array([target for _, target in kept]))


def _coding(job: TrainJob) -> Coding:
    return TASKS[job.settings.task](job.classes)


def _check_labels(job: TrainJob) -> None:
    coding = _coding(job)
    unknown = [target for target in (*job.targets, *job.holdout_targets) if not coding.is_target(target)]
    if unknown:
        raise LabelError(f"Target {unknown[0]} is not a class: there are {len(job.classes)}.")
    _check_enough(job.targets, coding)


def _check_enough(targets: Sequence[Target], coding: Coding) -> None:
    if shortage := coding.shortage(targets):
        raise LabelError(shortage, "Label some images of another class.")


def _metadata(job: TrainJob, fingerprint: Mapping[str, object]) -> dict[str, object]:
    """Content of model.json. It holds only the settings that shape a model, because others may hold secrets."""
    return {
        "classes": list(job.classes),
        "config": {
            "model": job.settings.model.model_dump(mode="json"),
            "train": job.settings.train.model_dump(mode="json"),
        },
        "seed": job.seed,
        "n_labels": len(job.images),
        "n_holdout": len(job.holdout),
        "depth": depth_of_all((*job.images, *job.holdout)),
        "backbone": dict(fingerprint),
        "library_versions": library_versions(),
    }
