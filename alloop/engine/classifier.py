"""A model that predicts: everything between an image and its calibrated prediction, in one object."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from alloop.calibration.calibrator import plain
from alloop.composition import OOD_SCORES
from alloop.config.schema import PoolConfig
from alloop.engine.build import Hardware, build_backbone, build_hardware, search_paths
from alloop.engine.cached_features import CachedFeatures, open_features
from alloop.engine.calibrate import apply_calibration
from alloop.engine.device import choose_device, has_bfloat16
from alloop.engine.features import (
    Failed,
    Preparation,
    depth_of_all,
    ensure_features,
    features_of,
    look_up_features,
    trunk_batches,
    trunk_features,
)
from alloop.engine.head_passes import HeadPasses
from alloop.engine.links import Transform, kept_links, link_images
from alloop.engine.model_files import ModelVersion, load_model
from alloop.engine.odin import odin_scores
from alloop.engine.ood_score import ModelOutputs, ood_score
from alloop.engine.pool_features import open_graph
from alloop.engine.predictions import Predictions
from alloop.engine.settings import EngineSettings
from alloop.errors import ModelError
from alloop.models.backbones import Backbone, without_pixels
from alloop.models.heads import MultiHead
from alloop.pool.outside import OutsideImage, Reading, open_images, refuse_one_image
from alloop.predictive import floor, mean_log_probs
from alloop.progress import Progress, silent
from alloop.records import ImageRef, ModelFiles, Precision
from alloop.smoothing.smoothing import Smoothing

CHUNK = 4096  # images whose features are in memory at once
AHEAD = 32  # batches whose images are opened before the first one goes through the trunk
BLOCK = 8192  # images that one network of an ensemble goes through before the next one is loaded
LOGITS = 50_000_000  # logits of all members in memory at once


@dataclasses.dataclass(frozen=True, eq=False)
class Outputs:
    """Outputs of the networks for a batch of images [B], before they become probabilities.

    Attributes:
        images: Images of the batch that could be read.
        failed: Ids of the other images of the batch, and the reasons.
        features: Features [B, D] by the trunk of the first network.
        logits: Raw logits of every member [M, B, K], by heads on raw features.
        lengths: L1 norm of the input of every member's last layer [M, B].
        smoothed_logits: The same by heads on smoothed features; None without such heads.
    """

    images: Sequence[ImageRef]
    failed: Failed
    features: Float[Tensor, "B D"]
    logits: Float[Tensor, "M B K"]
    lengths: Float[Tensor, "M B"]
    smoothed_logits: Float[Tensor, "M B K"] | None = None

    def without(self, failed: Failed) -> "Outputs":
        """Leave out images that turned out to be unreadable."""
        if not failed:
            return self
        gone = {image_id for image_id, _ in failed}
        rows = [row for row, image in enumerate(self.images) if image.image_id not in gone]
        return Outputs(
            [self.images[row] for row in rows],
            (*self.failed, *failed),
            self.features[rows],
            self.logits[:, rows],
            self.lengths[:, rows],
            None if self.smoothed_logits is None else self.smoothed_logits[:, rows],
        )


class Classifier:
    """A model version that predicts images of the pool and others.

    It holds the preprocessing and the trunk, the heads of all networks, the dropout masks, the calibrator and the OOD
    score. Images are predicted batch by batch, with memory for one batch. Of an ensemble whose networks have trunks of
    their own, one network is in memory at a time. The trunk is built when the first image needs it.

    Attributes:
        version: The model version on disk.
    """

    def __init__(
        self,
        version: ModelVersion,
        settings: EngineSettings,
        cache: Path,
        device: str | None = None,
        *,
        is_calibrated: bool = True,
        fills_cache: bool = True,
        reading: Reading | None = None,
        pool: Callable[[], Sequence[ImageRef]] = tuple,
        precision: Precision | None = None,
    ) -> None:
        """Make a classifier of a loaded version; `Classifier.open` reads the version first.

        Args:
            version: The model version.
            settings: Settings of today: where to compute, the trunk that [model] names, and [acquisition] ood_score.
            cache: Folder of cached features. Models with a published trunk read it.
            device: Device instead of `[model] device`.
            is_calibrated: False leaves the calibrator out.
            fills_cache: True adds features of the pool's images to the cache. Those of other images are never added.
            reading: Rules for images outside the pool; None: the defaults of [pool].
            pool: Function that lists images among which those of the model's graph are. It is called only if the cache
                lost the graph.
            precision: Precision of the trunk; None: that of the features that the model was trained on, or float32
                where the device has no bfloat16.
        """
        self.version = version
        self._precision = precision
        self._settings, self._cache, self._device, self._is_calibrated = settings, cache, device, is_calibrated
        self._fills_cache, self._pool = fills_cache, pool
        self._reading = self._with_depth(reading or Reading(PoolConfig().max_pixels))
        self._passes = HeadPasses(version.as_trained(settings), int(version.metadata["seed"]))
        self._in_use: int | None = None  # number of the network whose trunk is loaded

    @classmethod
    def open(
        cls,
        files: ModelFiles,
        settings: EngineSettings,
        cache: Path,
        device: str | None = None,
        *,
        is_calibrated: bool = True,
        fills_cache: bool = True,
        reading: Reading | None = None,
        pool: Callable[[], Sequence[ImageRef]] = tuple,
    ) -> "Classifier":
        """Read a model version from its folder. See `__init__` for the arguments.

        Raises:
            ModelError: The version is missing, damaged, or written by a newer alloop.
        """
        return cls(
            load_model(files),
            settings,
            cache,
            device,
            is_calibrated=is_calibrated,
            fills_cache=fills_cache,
            reading=reading,
            pool=pool,
        )

    @property
    def has_own_trunk(self) -> bool:
        """True if the trunk was trained with the heads, so that cached features do not help."""
        return bool(self.version.trunk)

    @property
    def is_repeatable(self) -> bool:
        """True if pixels that belong to no known image get the same logits at every call, as ODIN needs."""
        return self._passes.is_repeatable

    def predict(self, images: Iterable[ImageRef | OutsideImage], progress: Progress = silent) -> Iterator[Predictions]:
        """Predict images in the order given, batch by batch.

        Every image is in exactly one batch, among its images or among those that failed. Images outside the pool are
        paths, bytes of files, Pillow images, arrays of uint8 [H, W, 3] or [H, W], and tensors of uint8 [3, H, W]. They
        are read by the same rules as the pool's images (`pool/pixels.py`). Files and bytes of an image of the pool get
        the numbers of that image. An iterator is read as far as the next batch needs.

        Raises:
            ModelError: The model was trained on another backbone, or the images have another depth than its images.
            TypeError: One image was given instead of several.
        """
        needs_images = OOD_SCORES[self._ood_name].needs_images
        for outputs in self.outputs(images, progress):
            yield self._with_odin(outputs, progress) if needs_images else self._predicted(outputs)

    def outputs(self, images: Iterable[ImageRef | OutsideImage], progress: Progress = silent) -> Iterator[Outputs]:
        """Logits and features of images, batch by batch, as `predict` uses them.

        Raises:
            ModelError: As in `predict`.
        """
        refuse_one_image(images)
        refs = _all_refs(images) if self._fills_cache else None
        if refs is None:
            return self._streamed(images, progress)
        self._check_backbone(refs)
        return self._of_cached_features(refs, progress) if not self.has_own_trunk else self._of_own_trunks(refs)

    def features(self, images: Sequence[ImageRef]) -> Iterator[tuple[list[ImageRef], Float[Tensor, "B D"]]]:
        """Features by the trained trunk of the first network, batch by batch. Unreadable images are left out."""
        for read, _, features in self._through_trunk(images):
            yield read, features

    def predict_features(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """Calibrated log p̄ for features instead of images, on the CPU.

        An ensemble with trained trunks answers with its first network, as `features` does.
        """
        heads = [self.version.heads] if self.has_own_trunk else self._published_heads
        raw = self._mean_of(heads, features)
        if self.smoothing is None:
            return self._calibrated(raw)
        smoothed = self._mean_of(self._smoothed_heads, self.smoothing.place(features))
        return self._calibrated(torch.stack([raw, smoothed], dim=1))

    def odin(self, images: Sequence[ImageRef], progress: Progress = silent) -> tuple[Float[Tensor, "B"], Failed]:
        """ODIN scores of the images that could be read, in the order given, and the images that could not.

        Raises:
            ModelError: The trunk has no gradient.
        """
        return odin_scores(self.backbone, self._networks(), self._passes, images, self._hardware, progress)

    def _with_odin(self, outputs: Outputs, progress: Progress) -> Predictions:
        ood, failed = self.odin(outputs.images, progress)
        return self._predicted(outputs.without(failed), ood)

    def _predicted(self, outputs: Outputs, ood: Tensor | None = None) -> Predictions:
        raw = members = self._passes.member_log_probs(outputs.logits)
        uncalibrated = mean_log_probs(raw)
        if outputs.smoothed_logits is not None:
            smoothed = self._passes.member_log_probs(outputs.smoothed_logits)
            members = self._weighed(raw, smoothed)
            uncalibrated = torch.stack([uncalibrated, mean_log_probs(smoothed)], dim=1)
        calibrated = self._calibrated(uncalibrated)
        if ood is None:
            ood = ood_score(self._ood_name, self._seen_by_ood(outputs, raw, calibrated))
        return Predictions(
            outputs.images,
            outputs.failed,
            self._settings.task,
            self.version.classes,
            calibrated,
            outputs.features,
            members,
            uncalibrated,
            ood,
        )

    def _seen_by_ood(self, outputs: Outputs, raw: Tensor, calibrated: Tensor) -> ModelOutputs:
        """Return what OOD scores are computed from, given the members' predictions by raw features."""
        shown = calibrated if outputs.smoothed_logits is None else mean_log_probs(raw)
        if self._passes.loss.rule.normalizes_logits:
            # Under LogitNorm the norm of raw logits tells what is unlike; normalized ones have lost it.
            shown = mean_log_probs(outputs.logits.log_softmax(dim=-1))
        return ModelOutputs(outputs.logits, outputs.lengths, raw, shown.unsqueeze(0))

    def _weighed(self, raw: Tensor, smoothed: Tensor) -> Tensor:
        """Return the members' predictions [M, B, K] by both kinds of heads, with the calibrator's weights, of sum 1."""
        a, b = self.version.calibration.weights or (0.0, 1.0)
        return ((a * floor(raw) + b * floor(smoothed)) / (a + b)).log_softmax(dim=-1) if a + b > 0 else smoothed

    def _calibrated(self, uncalibrated_log_probs: Tensor) -> Tensor:
        if not self._is_calibrated:
            return plain(uncalibrated_log_probs)
        return apply_calibration(self.version.calibration, uncalibrated_log_probs)

    def _mean_of(self, heads: Sequence[MultiHead], features: Tensor) -> Tensor:
        logits = torch.cat([self._passes.logits(part, features) for part in heads])
        return mean_log_probs(self._passes.member_log_probs(logits))

    # -- from images to outputs ---------------------------------------------------------------------------------------

    def _of_cached_features(self, images: Sequence[ImageRef], progress: Progress) -> Iterator[Outputs]:
        """Outputs of heads on a published trunk, from features that are cached or computed now."""
        cache, failed = ensure_features(images, self.backbone, self._cache, self._hardware, progress)
        gone = {image_id for image_id, _ in failed}
        readable = [image for image in images if image.image_id not in gone]
        if failed:
            yield self._unread(failed)
        size, transform = self._images_at_once(CHUNK), None
        if readable and self.smoothing is not None:
            transform = link_images(self.smoothing, [image.key for image in readable], cache, self._cache, progress)
        for start in range(0, len(readable), size):
            chunk = readable[start : start + size]
            features = torch.from_numpy(cache.take([image.key for image in chunk]))
            yield self._of_heads(self._published_heads, chunk, (), features, transform)

    def _streamed(self, images: Iterable[ImageRef | OutsideImage], progress: Progress) -> Iterator[Outputs]:
        """Outputs of images of the pool and others, a few batches at a time; nothing is added to the cache."""
        total = len(images) if isinstance(images, Sized) else 0
        numbered, done = enumerate(images), 0
        size = BLOCK if self._n_networks > 1 and self.has_own_trunk else min(CHUNK, AHEAD * self._hardware.batch_size)
        size = self._images_at_once(size)
        while chunk := list(itertools.islice(numbered, size)):
            refs, failed = open_images(chunk, self._reading)
            self._check_backbone(refs)

            def say(n: int, done: int = done) -> None:
                progress("predict", done + n, total)

            for outputs in self._of_own_trunks(refs) if self.has_own_trunk else self._of_looked_up(refs, say):
                yield dataclasses.replace(outputs, failed=(*failed, *outputs.failed))
                failed = ()
            if failed:  # none of the images could be opened
                yield self._unread(failed)
            done += len(chunk)
            progress("predict", done, total)

    def _of_looked_up(self, refs: Sequence[ImageRef], say: Callable[[int], None]) -> Iterator[Outputs]:
        """Outputs of heads on a published trunk, from features that are cached, or computed and not kept."""
        if refs:
            features, places, failed = look_up_features(
                refs, self._features, self.backbone, self._hardware, self._preparation, say
            )
            read = [refs[place] for place in places]
            yield self._of_heads(self._published_heads, read, failed, features, self._kept_links)

    def _of_own_trunks(self, images: Sequence[ImageRef]) -> Iterator[Outputs]:
        return self._of_one_trunk(images) if self._n_networks == 1 else self._of_several_trunks(images)

    def _of_one_trunk(self, images: Sequence[ImageRef]) -> Iterator[Outputs]:
        for read, failed, features in self._through_trunk(images):
            yield self._of_heads([self.version.heads], read, failed, features)

    def _of_several_trunks(self, images: Sequence[ImageRef]) -> Iterator[Outputs]:
        """Outputs of networks with trunks of their own: a block of images goes through one network after the other."""
        size = self._images_at_once(BLOCK)
        for start in range(0, len(images), size):
            yield self._of_block(images[start : start + size])

    def _of_block(self, block: Sequence[ImageRef]) -> Outputs:
        parts: list[Outputs] = []
        for heads in self._networks():
            features, places, failed = trunk_features(self.backbone, block, self._hardware)
            part = self._of_heads(heads, [block[place] for place in places], failed, features)
            # Features of later networks are not used, and would add up.
            parts.append(dataclasses.replace(part, features=features.new_empty(len(places), 0)) if parts else part)
        failed = tuple({pair[0]: pair for part in parts for pair in part.failed}.values())
        read = [dataclasses.replace(part, failed=()).without(failed) for part in parts]
        return Outputs(
            read[0].images,
            failed,
            read[0].features,
            torch.cat([part.logits for part in read]),
            torch.cat([part.lengths for part in read]),
        )

    def _of_heads(
        self,
        heads: Sequence[MultiHead],
        images: Sequence[ImageRef],
        failed: Failed,
        features: Tensor,
        transform: Transform | None = None,
    ) -> Outputs:
        """Outputs of all heads that see the same features. `transform` smooths features as `Smoothing.transform`."""
        sha256s = [image.sha256 for image in images]
        logits = torch.cat([self._passes.logits(part, features, sha256s) for part in heads])
        lengths = torch.cat([self._passes.lengths(part, features) for part in heads])
        smoothed_logits = None
        if self.version.network.smoothed is not None and not images:
            smoothed_logits = logits  # of no image; the graph need not be there for that
        elif self.smoothing is not None:
            smoothed = (transform or self.smoothing.transform)([image.key for image in images], features)
            smoothed_logits = torch.cat([self._passes.logits(part, smoothed, sha256s) for part in self._smoothed_heads])
        return Outputs(images, failed, features, logits, lengths, smoothed_logits)

    def _unread(self, failed: Failed) -> Outputs:
        """Outputs for images of which none could be read."""
        heads = [self.version.heads] if self.has_own_trunk else self._published_heads
        return self._of_heads(heads, (), failed, torch.empty(0, self.backbone.n_features))

    def _through_trunk(self, images: Sequence[ImageRef]) -> Iterator[tuple[list[ImageRef], Failed, Tensor]]:
        """Images that could be read, those that could not, and features [B, D] by the trunk of the first network."""
        self._use(0)
        for passed in trunk_batches(images, self.backbone, self._hardware):
            yield [images[position] for position in passed.positions], passed.failed, features_of(passed)

    def _images_at_once(self, most: int) -> int:
        """Number of images whose logits are in memory at once."""
        n_values = self.version.n_members * len(self.version.classes)
        return min(most, max(64, LOGITS // n_values))

    # -- parts --------------------------------------------------------------------------------------------------------

    @property
    def _n_networks(self) -> int:
        return len(self.version.files)

    @property
    def _ood_name(self) -> str:
        return self._settings.ood_score

    @functools.cached_property
    def _hardware(self) -> Hardware:
        device = choose_device(self._device or self._settings.model.device)
        wanted = self._precision or self.version.precision
        usable: Precision = wanted if has_bfloat16(device) else "float32"
        return build_hardware(self._settings.with_precision(usable), str(device))

    @functools.cached_property
    def backbone(self) -> Backbone:
        """Trunk and preprocessing. Of networks with trunks of their own, the trunk in use."""
        backbone = build_backbone(self._settings, search_paths(self._cache))
        return backbone.in_precision(self._hardware.precision)

    @property
    def _as_trained(self) -> Backbone:
        """The same trunk in the precision of the features that the model was trained on."""
        return self.backbone.in_precision(self.version.precision)

    @functools.cached_property
    def _features(self) -> CachedFeatures:
        return open_features(self._cache, self._fingerprint_now)

    @functools.cached_property
    def _preparation(self) -> Preparation:
        """Preparation of the published trunk."""
        return Preparation(self._hardware, self._cache)

    @functools.cached_property
    def _fingerprint(self) -> dict[str, object]:
        """Fingerprint of the backbone of the training. Hashing all weights takes a while, so it is done once."""
        return self._as_trained.fingerprint()

    @functools.cached_property
    def _fingerprint_now(self) -> dict[str, object]:
        """Fingerprint of the backbone as it runs here, which may be in another precision."""
        is_same = self.backbone.precision == self._as_trained.precision
        return self._fingerprint if is_same else self.backbone.fingerprint()

    @functools.cached_property
    def _published_heads(self) -> list[MultiHead]:
        """Heads of all networks. They share the published trunk and are small: all of them stay in memory."""
        return [self.version.load_network(number).heads for number in range(self._n_networks)]

    @functools.cached_property
    def _smoothed_heads(self) -> list[MultiHead]:
        """Heads of all networks on smoothed features."""
        networks = [self.version.load_network(number) for number in range(self._n_networks)]
        return [network.smoothed for network in networks if network.smoothed is not None]

    @functools.cached_property
    def smoothing(self) -> Smoothing | None:
        """The smoothing that the model was trained with; None if it has raw heads only."""
        if self.version.network.smoothed is None:
            return None
        folder = self.version.files[0].parent
        ways = (self._as_trained, self._fingerprint), (self.backbone, self._fingerprint_now)
        return open_graph(folder, self._cache, ways, self._pool, self._hardware)

    @functools.cached_property
    def _kept_links(self) -> Transform | None:
        return None if self.smoothing is None else kept_links(self.smoothing, self._cache)

    def _networks(self) -> Iterator[Sequence[MultiHead]]:
        """Heads that share a trunk, one trunk after the other; `backbone` holds the trunk of the heads at hand."""
        if not self.has_own_trunk:
            yield self._published_heads
            return
        for number in range(self._n_networks):
            yield [self._use(number)]

    def _use(self, number: int) -> MultiHead:
        """Load the trunk of a network in place of the one before, and return the heads."""
        network = self.version.load_network(number)
        if self._in_use != number:
            self.backbone.module.load_state_dict(network.trunk)
            self._in_use = number
        return network.heads

    def _with_depth(self, reading: Reading) -> Reading:
        """Return the rules with the depth of the model's own images, if they had more than 8 bits a channel."""
        depth = self.version.metadata["depth"]
        return reading if depth is None else dataclasses.replace(reading, depth=depth)

    def _check_backbone(self, images: Sequence[ImageRef]) -> None:
        folder, metadata = self.version.files[0].parent, self.version.metadata
        trained_on, now = without_pixels(metadata["backbone"]), without_pixels(self._fingerprint)
        if self.has_own_trunk:  # its own weights replace those that the name stands for
            del trained_on["weights"], now["weights"]
        if trained_on != now:
            raise ModelError(
                f"The model in {folder} was trained on another backbone, other weights or another image size.",
                "Train it again with `alloop train`.",
            )
        depth = metadata["depth"], depth_of_all(images)
        if None not in depth and depth[0] != depth[1]:
            raise ModelError(
                f"The model in {folder} was trained on images read with {depth[0]} bits, but the pool's images "
                f"are now read with {depth[1]} bits.",
                "Train it again with `alloop train`.",
            )


def _all_refs(images: Iterable[ImageRef | OutsideImage]) -> Sequence[ImageRef] | None:
    """Return a sequence of images of the pool as it is; None for anything else."""
    if not isinstance(images, Sequence):
        return None
    refs = [image for image in images if isinstance(image, ImageRef)]
    return refs if len(refs) == len(images) else None
