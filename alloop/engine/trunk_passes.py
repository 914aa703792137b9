"""Images through trunks: batches of a size that fits, copies beside the computation, results that stay on the card.

On a CUDA card nothing waits for the card between two batches: pixels travel as uint8 on a stream of their own, features
stay on the card, and about once a second all that are ready come back together. The card computes on meanwhile.
"""

import copy
import dataclasses
import itertools
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from alloop.engine.build import Hardware
from alloop.engine.device import full_float32, in_halves
from alloop.errors import ModelError
from alloop.models.backbones import Backbone
from alloop.models.side_by_side import split_pixels
from alloop.pool.dataset import ImageBatch

Failed = tuple[tuple[int, str], ...]  # image ids that could not be read now, and why

BLOCK_ROWS = 8192  # most features that wait on the card
BLOCK_SECONDS = 1.0  # longest wait
FASTER = 1.05  # gain of speed that is worth a doubled batch
_KNOWN = ("torchvision.", "timm.")  # packages whose networks run in bfloat16 and in any memory order
# The memory order that networks of other packages take, found by trying it.
_orders: weakref.WeakKeyDictionary[nn.Module, torch.memory_format] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True, eq=False)
class Trunk:
    """A trunk that is ready to run on a device.

    Attributes:
        backbone: The trunk, whose precision counts.
        module: The module on the device: in float32 that of the backbone, in bfloat16 a copy.
        order: Memory order of images and weights.
    """

    backbone: Backbone
    module: nn.Module
    device: torch.device
    order: torch.memory_format


def prepare_trunk(backbone: Backbone, device: torch.device) -> Trunk:
    """Bring a trunk in eval mode to a device, in the memory order that is fastest there.

    That is channels last, except in float32 on a card: without TF32, its kernels take up to ten times as long there.

    In bfloat16, networks of torchvision and timm become a copy whose weights are bfloat16, except those of batch
    normalization. Networks of one's own code run under autocast, which keeps everything in float32 that needs it, but
    is slower.
    """
    with torch.inference_mode(mode=False):  # weights that move in inference mode could never be trained again
        module = backbone.module.to(device)
        is_half = backbone.precision == "bfloat16"
        order = _order(backbone, module, device) if is_half or device.type != "cuda" else torch.contiguous_format
        if is_half and _is_known(module):
            module = _in_bfloat16(module)
        return Trunk(backbone, module.to(memory_format=order), device, order)


def run_trunk(trunk: Trunk, images: Tensor) -> Tensor:
    """Run images uint8 [B, 3, S, S] through a trunk. Features [B, D] are float32, on its device.

    In float32 they are full float32, without TF32. If memory does not suffice, the batch is halved.

    Raises:
        ModelError: The trunk gives another shape.
    """
    backbone, device = trunk.backbone, trunk.device
    is_half = backbone.precision == "bfloat16"
    takes = torch.bfloat16 if is_half and _is_known(backbone.module) else torch.float32

    def run(part: Tensor) -> Tensor:
        normal = backbone.normalize(part.to(device)).to(takes, memory_format=trunk.order)
        output: Tensor = trunk.module(normal)
        return output.float()

    autocast = torch.autocast(device.type, torch.bfloat16, enabled=is_half and takes is torch.float32)
    with torch.inference_mode(), full_float32(), autocast:
        features = in_halves(run, images)
    if features.shape != (len(images), backbone.n_features):
        raise ModelError(
            f"The backbone gave {list(features.shape)} for {len(images)} images.",
            f"It must give features [B, {backbone.n_features}].",
        )
    return features


def finite(features: Tensor) -> Tensor:
    """Return features that are finite.

    Raises:
        ModelError: One is not.
    """
    if not bool(torch.isfinite(features).all()):
        raise _not_finite()
    return features


def _not_finite() -> ModelError:
    return ModelError("The backbone gave features that are not finite.", "Check its weights.")


@dataclasses.dataclass(frozen=True, eq=False)
class Passed:
    """Images that are through, in the order given.

    Attributes:
        done: Number of images that are through so far, readable or not.
        positions: Positions of those of this block that could be read.
        failed: Ids of the others of this block, and the reasons.
        rows: Features [B, D] by each trunk, finite float32, on the CPU.
    """

    done: int
    positions: list[int]
    failed: Failed
    rows: tuple[Tensor, ...]


class Growth:
    """Number of images that pass the trunk at once on a card.

    It is doubled while a doubled batch is faster by a twentieth, memory allows it, and the card is what the others wait
    for. The times are those of the card's own clock, so that nothing has to wait for them.

    Attributes:
        size: The size of the next batch.
        ran: The largest size that ran.
    """

    def __init__(self, hardware: Hardware) -> None:
        self.size, self.ran = hardware.batch_size, 0
        self._device = hardware.device
        # With other sizes the last bits are others, and deterministic jobs promise the same ones.
        is_fixed = hardware.device.type != "cuda" or torch.are_deterministic_algorithms_enabled()
        self._most = hardware.batch_size if is_fixed else hardware.largest_batch
        self._rate = 0.0  # images a second at half the size
        self._timed: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def run(self, trunks: Sequence[Trunk], images: Tensor) -> tuple[Tensor, ...]:
        """Run a batch through all trunks, and measure it if a larger one is possible."""
        parts = [images] if len(trunks) == 1 else split_pixels(images, [one.backbone.image_size for one in trunks])
        if len(images) < self.size or self.size >= self._most:
            rows = tuple(run_trunk(trunk, part) for trunk, part in zip(trunks, parts, strict=True))
        else:
            rows = self._measured(trunks, parts)
        self.ran = max(self.ran, len(images))
        return rows

    def _measured(self, trunks: Sequence[Trunk], parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self._timed and self._timed[-1][1].query():  # type: ignore[no-untyped-call]
            self._timed.clear()  # the card has waited for images: a larger batch would only wait longer
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record(torch.cuda.current_stream(self._device))
        rows = tuple(run_trunk(trunk, part) for trunk, part in zip(trunks, parts, strict=True))
        end.record(torch.cuda.current_stream(self._device))
        self._timed.append((start, end))
        self._decide()
        return rows

    def _decide(self) -> None:
        if len(self._timed) < 3:
            return
        start, end = self._timed[1]  # the first batch of a size loads kernels
        if not end.query():  # type: ignore[no-untyped-call]
            return
        rate = self.size * 1000 / start.elapsed_time(end)
        free, _ = torch.cuda.mem_get_info(self._device)
        if rate < FASTER * self._rate:
            self.size //= 2
            self._most = self.size
        elif torch.cuda.memory_reserved(self._device) > free:  # a doubled batch takes about as much again
            self._most = self.size
        else:
            self._rate, self.size = rate, 2 * self.size
        self._timed.clear()


def pass_trunks(
    batches: Iterable[ImageBatch], parts: Sequence[Backbone], hardware: Hardware, growth: Growth | None = None
) -> Iterator[Passed]:
    """Run images through one or several trunks, in the order given. Memory is O(block).

    Args:
        batches: Pixels, uint8 [b, 3, S, S], or rows [b, P] with the pixels of several trunks. Small batches are joined.
        parts: Trunks, each of one module.
        hardware: Device and sizes of batches.
        growth: Where the size of batches is found; None: made here.

    Raises:
        ModelError: A trunk gives another shape, or numbers that are not finite.
    """
    before: _Returning | None = None
    for block in _blocks(batches, parts, hardware, growth or Growth(hardware)):
        if before is not None:
            yield before.take()
        before = block
        if hardware.device.type != "cuda":  # nothing is computed meanwhile
            yield before.take()
            before = None
    if before is not None:
        yield before.take()


def _blocks(
    batches: Iterable[ImageBatch], parts: Sequence[Backbone], hardware: Hardware, growth: Growth
) -> Iterator["_Returning"]:
    """Start the computation of all images, block by block. On a card, nothing here waits for it."""
    device = hardware.device
    trunks, upload = [prepare_trunk(part, device) for part in parts], _Upload(device)
    block, waiting, done = _Block(parts), list[Tensor](), 0
    for batch in batches:
        done += block.note(batch)
        if len(batch.positions):
            waiting.append(upload(batch.images))
        if sum(map(len, waiting)) >= growth.size:
            block.rows.append(growth.run(trunks, _joined(waiting)))
            waiting.clear()
        if not waiting and block.is_due(device):
            yield _Returning(block, done, device)
            block = _Block(parts)
    if waiting:
        block.rows.append(growth.run(trunks, _joined(waiting)))
    if block.positions or block.failed:
        yield _Returning(block, done, device)


class _Block:
    """Images on their way, and features that stay on the card."""

    def __init__(self, parts: Sequence[Backbone]) -> None:
        self._widths = [part.n_features for part in parts]
        self.positions: list[int] = []
        self.failed: list[tuple[int, str]] = []
        self.rows: list[tuple[Tensor, ...]] = []
        self._since = time.monotonic()

    def note(self, batch: ImageBatch) -> int:
        """Take the images of a batch. Return their number."""
        self.positions += batch.positions.tolist()
        self.failed += batch.failed
        return len(batch.positions) + len(batch.failed)

    def is_due(self, device: torch.device) -> bool:
        if not self.positions and not self.failed:
            return False
        is_long = time.monotonic() - self._since >= BLOCK_SECONDS
        return device.type != "cuda" or len(self.positions) >= BLOCK_ROWS or is_long

    def features(self, device: torch.device) -> tuple[Tensor, ...]:
        if not self.rows:
            return tuple(torch.empty(0, width, device=device) for width in self._widths)
        return tuple(_joined(rows) for rows in zip(*self.rows, strict=True))


class _Returning:
    """Features that travel back from the device, while it computes the next ones."""

    def __init__(self, block: _Block, done: int, device: torch.device) -> None:
        self._block, self._done = block, done
        features = block.features(device)
        self._is_finite = [_to_cpu(torch.isfinite(rows).all()) for rows in features]
        self._rows = tuple(_to_cpu(rows) for rows in features)
        self._arrived = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(device))

    def take(self) -> Passed:
        if self._arrived is not None:
            self._arrived.synchronize()  # before this, the memory may hold anything
        if not all(map(bool, self._is_finite)):
            raise ModelError("The backbone gave features that are not finite.", "Check its weights.")
        rows = (
            self._rows if self._arrived is None else tuple(rows.clone() for rows in self._rows)
        )  # frees pinned memory
        return Passed(self._done, self._block.positions, tuple(self._block.failed), rows)


class _Upload:
    """Copies pixels to the device. On a card the copy has a stream of its own, beside the computation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, images: Tensor) -> Tensor:
        if self._stream is None:
            return images.to(self._device)
        with torch.cuda.stream(self._stream):
            moved = images.to(self._device, non_blocking=True)
        now = torch.cuda.current_stream(self._device)
        now.wait_stream(self._stream)
        moved.record_stream(now)  # otherwise its memory could be used again while the trunk reads it
        return moved


def _to_cpu(rows: Tensor) -> Tensor:
    """Start the copy to the CPU. On a card the result is there when an event recorded after this call has happened."""
    if rows.device.type != "cuda":
        return rows.cpu()
    place = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
    return place.copy_(rows, non_blocking=True)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _is_known(module: nn.Module) -> bool:
    return type(module).__module__.startswith(_KNOWN)


def _in_bfloat16(module: nn.Module) -> nn.Module:
    """Return a copy in bfloat16, for evaluation only.

    Batch normalization right behind a convolution becomes a part of it, before the weights are rounded: on a card it
    takes longer than the convolution where channels are convolved one by one (EfficientNet). Other batch normalization
    keeps float32 weights and takes bfloat16 images all the same.
    """
    fused = copy.deepcopy(module)
    for chain in [part for part in fused.modules() if isinstance(part, nn.Sequential)]:
        _fuse_neighbors(chain)
    half = copy.deepcopy(fused).to(torch.bfloat16)
    for original, layer in zip(fused.modules(), half.modules(), strict=True):
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.float()
            layer.load_state_dict(original.state_dict())
    return half


def _fuse_neighbors(chain: nn.Sequential) -> None:
    """Fuse each convolution with the batch normalization that directly follows it in a chain, in place."""
    for at, (first, second) in enumerate(itertools.pairwise(list(chain))):
        if type(first) is nn.Conv2d and type(second) is nn.BatchNorm2d and second.running_mean is not None:
            chain[at] = fuse_conv_bn_eval(first, second)
            chain[at + 1] = nn.Identity()


def _order(backbone: Backbone, module: nn.Module, device: torch.device) -> torch.memory_format:
    """Return the memory order for a module that is on the device. Code of one's own is tried on a black image."""
    if _is_known(module):
        return torch.channels_last
    if module not in _orders:
        black = torch.zeros(1, 3, backbone.image_size, backbone.image_size, device=device)
        order = torch.channels_last
        module.to(memory_format=order)
        try:
            with torch.inference_mode():
                module(black.to(memory_format=order))
        except Exception:  # a view that this order does not allow; any other fault shows in the usual order, too
            order = torch.contiguous_format
        _orders[module] = order
    return _orders[module]
